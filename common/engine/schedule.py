"""The learning rate: a pure function of epoch and step, or of the scores so far, whose state every last.pt holds."""

import math
from dataclasses import dataclass

import torch

from common.errors import InputError

SCHEDULES = ("cosine", "plateau")


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


class Plateau:
    """A factor on the learning rates that falls when the score has not risen for a while: torch's ReduceLROnPlateau.

    It watches a rate of its own, so that warm-up and the rates of the parts stay what they are.
    """

    def __init__(self, factor: float, patience: int):
        if not 0 < factor < 1 or patience < 0:
            given = f"--plateau-factor {factor} --plateau-patience {patience}"
            raise InputError(f"{given}: give a factor between 0 and 1 and 0 epochs or more")
        self.optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, mode="max", factor=factor, patience=patience
        )

    @property
    def factor(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, score: float | None) -> None:
        if score is not None:
            self.scheduler.step(score)

    def state_dict(self) -> dict:
        return {"factor": self.factor, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.param_groups[0]["lr"] = state["factor"]
        self.scheduler.load_state_dict(state["scheduler"])


def set_lr(
    optimizer,
    stages: list[Stage],
    epoch: int,
    step: int,
    steps: int,
    plateau: Plateau | None = None,
    scale: float = 1.0,
) -> float:
    """Set the rate of every parameter group ("lr0" is its own rate, "part" its part); returns the largest.

    With a plateau its factor takes the place of the cosine after the warm-up. scale: a factor on all of it.
    """
    _, stage, done = stage_at(stages, epoch)
    progress = done + (step + 1) / steps
    if plateau is None:
        factor = lr_factor(progress, stage.epochs, stage.warmup)
    else:
        factor = plateau.factor * min(1.0, progress / stage.warmup if stage.warmup else 1.0)
    for group in optimizer.param_groups:
        group["lr"] = group["lr0"] * scale * factor * stage.scale.get(group["part"], 1.0)
    return max(group["lr"] for group in optimizer.param_groups)
