"""The learning rate as a pure function of epoch and step: a resume cannot get it wrong."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Epochs trained alike. scale: part of the model -> factor on its learning rates; 0 freezes the part."""

    epochs: int
    scale: dict[str, float]
    warmup: float = 0.0  # in epochs


def stage_at(stages: list[Stage], epoch: int) -> tuple[int, Stage, int]:
    """(number of the stage, the stage, epochs done in it) at an epoch counted from 0."""
    start = 0
    for number, stage in enumerate(stages):
        if epoch < start + stage.epochs:
            return number, stage, epoch - start
        start += stage.epochs
    raise ValueError(f"epoch {epoch} lies after the last stage ({start} epochs)")


def lr_factor(progress: float, epochs: float, warmup: float, floor: float = 0.01) -> float:
    """Linear warm-up over `warmup` epochs, then half a cosine from 1 to `floor`; progress and epochs in epochs."""
    if progress < warmup:
        return max(progress, 0.0) / warmup * (1 - floor) + floor
    share = min(1.0, (progress - warmup) / max(epochs - warmup, 1e-9))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


def set_lr(optimizer, stages: list[Stage], epoch: int, step: int, steps: int) -> float:
    """Set the rate of every parameter group ("lr0" is its own rate, "part" its part); returns the largest."""
    _, stage, done = stage_at(stages, epoch)
    factor = lr_factor(done + (step + 1) / steps, stage.epochs, stage.warmup)
    for group in optimizer.param_groups:
        group["lr"] = group["lr0"] * factor * stage.scale.get(group["part"], 1.0)
    return max(group["lr"] for group in optimizer.param_groups)
