"""Losses of the segmenters. All of them work in float32, over the valid pixels of all processes.

Sums and masks instead of F.cross_entropy and gather: their CUDA kernels refuse deterministic mode.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from common.errors import InputError
from common.losses.reduce import all_sum, global_mean
from common.precision import full_precision

# Settings of a whole training phase, by name: A for pretraining, B for what is handed in.
PHASES = {
    "A": {"focal": 0.6, "dice": 0.4},
    "B": {"focal": 0.25, "dice": 0.25, "mcc": 0.35, "boundary": 0.15},
}
# {part: (share of its weight in epoch 0, epochs until all of it)}; parts that are not named have all of it at once.
RAMP = {"boundary": (0.05, 30)}
SMALL = 1e-6  # miss of a pixel below which a power of it has no gradient: that of x**.7 is infinite at 0


@dataclass(frozen=True)
class Pixels:
    """What a loss looks at; a pixel that is not valid is False in every class of `hot` and has logits of 0."""

    logits: torch.Tensor  # (B,K,H,W) float32
    hot: torch.Tensor  # (B,K,H,W) bool, the true class of every valid pixel
    valid: torch.Tensor  # (B,H,W) float32, 1 or 0

    @cached_property
    def log_prob(self) -> torch.Tensor:
        return torch.log_softmax(self.logits, 1)

    @cached_property
    def prob(self) -> torch.Tensor:
        return self.log_prob.exp()

    @cached_property
    def cross_entropy(self) -> torch.Tensor:
        """-log of the probability of the true class (B,H,W), 0 where not valid."""
        return -torch.where(self.hot, self.log_prob, 0.0).sum(1)

    @cached_property
    def miss(self) -> torch.Tensor:
        """1 - probability of the true class (B,H,W); expm1 keeps its digits where that is nearly 1."""
        return -torch.expm1(-self.cross_entropy)

    @cached_property
    def confusion(self) -> torch.Tensor:
        return soft_confusion(self.prob, self.hot)


def soft_confusion(prob: torch.Tensor, hot: torch.Tensor) -> torch.Tensor:
    """(K,K) sums over all processes: [t, p] is the probability of class p summed over the pixels of class t."""
    rows = [(prob * hot[:, t : t + 1]).sum((0, 2, 3)) for t in range(hot.shape[1])]
    return all_sum(torch.stack(rows))


def cross_entropy_loss(pixels: Pixels) -> torch.Tensor:
    return global_mean(pixels.cross_entropy, pixels.valid)


def focal_loss(pixels: Pixels, alpha: Sequence[float], gamma: float) -> torch.Tensor:
    """Mean of alpha_t (1 - p_t)^gamma (-log p_t), p_t the probability of the true class t.

    Lin et al. 2017, Focal Loss for Dense Object Detection, equation 5. Not divided by the alphas.
    """
    weight = (pixels.hot * torch.tensor(alpha, device=pixels.hot.device).view(1, -1, 1, 1)).sum(1)
    return global_mean(weight * pixels.miss.clamp_min(SMALL) ** gamma * pixels.cross_entropy, pixels.valid)


def dice_loss(pixels: Pixels) -> torch.Tensor:
    return tversky_loss(pixels, 0.5, 0.5)


def tversky_loss(pixels: Pixels, false_positive: float, false_negative: float) -> torch.Tensor:
    """1 - TP / (TP + a FP + b FN) of the soft counts of the whole batch, mean over the classes that occur in it.

    Salehi et al. 2017, equation 4. a = false_positive is called alpha in segmentation-models-pytorch, b beta; half and
    half is Dice. A class without a true pixel is left out (smp counts it as 0): missing it is another class's error.
    """
    counts = pixels.confusion
    hit = counts.diagonal()
    row, column = counts.sum(1), counts.sum(0)
    present = (row.detach() > 0).float()
    index = hit / (hit + false_positive * (column - hit) + false_negative * (row - hit)).clamp_min(1e-12)
    return (present * (1 - index)).sum() / present.sum().clamp_min(1)


def mcc_loss(pixels: Pixels, phi: float) -> torch.Tensor:
    """1 - Gorodkin's R_K (multi-class Matthews correlation) of the soft confusion matrix of the whole batch.

    What a pixel of class t gives to another class is multiplied by (1 - p_t)^phi and the rest given back to t: rows
    still count pixels, a confident right pixel is worth a hard one, and phi = 0 is the plain soft matrix.
    Where the valid pixels hold one class only (or there are none) R_K is undefined and the loss 0.
    Gorodkin 2004, Comparing two K-category assignments by a K-category correlation coefficient, equation 8.
    """
    factor = pixels.miss.clamp_min(SMALL) ** phi
    kept = torch.where(pixels.hot, (1 - factor * pixels.miss).unsqueeze(1), factor.unsqueeze(1) * pixels.prob)
    counts = soft_confusion(kept, pixels.hot)
    several = (counts.detach().sum(1) > 0).sum() > 1
    mcc = correlation(counts / counts.detach().sum().clamp_min(1e-12))
    return torch.where(several, 1 - mcc, 0.0 * counts.sum())


def correlation(share: torch.Tensor) -> torch.Tensor:
    """R_K of a confusion matrix (K,K) whose entries sum to 1.

    Written without 1 - x: sums over the other classes keep the digits of a class of a few pixels in a million.
    """
    off = 1 - torch.eye(len(share), device=share.device)
    rest = (off[:, :, None] * off[:, None, :] * share).sum((1, 2))  # the matrix without row and column k
    covariance = (share.diagonal() * rest - (share * off).sum(1) * (share * off).sum(0)).sum()
    true, pred = share.sum(1).detach(), share.sum(0)
    spread = (true * (off * true).sum(1)).sum() * (pred * (off * pred).sum(1)).sum()
    return covariance / spread.clamp_min(1e-20).sqrt()


def boundary_loss(pixels: Pixels, **borders) -> torch.Tensor:
    """Cross entropy, mean weighted by border_weights."""
    weight = border_weights(pixels.hot, **borders) * pixels.valid
    return global_mean(pixels.cross_entropy, weight)


def border_weights(
    hot: torch.Tensor, *, border_weight: float, pair_weight: float, pairs: Sequence[tuple[int, int]], width: int
) -> torch.Tensor:
    """(B,H,W): 1 inside, border_weight within `width` px (diagonals too) of another class, pair_weight for `pairs`.

    hot (B,K,H,W) bool, False where not valid: the edge of no data is no border. A pixel is on the border of a pair of
    class indices when it is of one of them and the other is near.
    """
    near = F.max_pool2d(hot.float(), 2 * width + 1, stride=1, padding=width) > 0
    weight = torch.where(near.sum(1) > 1, border_weight, 1.0)
    for a, b in pairs:
        weight = torch.where((hot[:, a] & near[:, b]) | (hot[:, b] & near[:, a]), pair_weight, weight)
    return weight


LOSSES = {
    "cross-entropy": cross_entropy_loss,
    "focal": focal_loss,
    "dice": dice_loss,
    "tversky": tversky_loss,
    "boundary": boundary_loss,
    "mcc": mcc_loss,
}


def resolve_parts(loss: str | Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    """{name of LOSSES: weight} from a phase ("B"), a loss ("dice"), a list ("focal=.6", "dice=.4") or such a table."""
    if isinstance(loss, Mapping):
        parts = dict(loss)
    else:
        words = [loss] if isinstance(loss, str) else list(loss)
        if len(words) == 1 and words[0] in PHASES:
            return dict(PHASES[words[0]])
        parts = dict(word.partition("=")[::2] for word in words)
        parts = {name: weight if weight else 1.0 for name, weight in parts.items()}
    try:
        parts = {name: float(weight) for name, weight in parts.items()}
        right = all(name in LOSSES and 0 < weight < float("inf") for name, weight in parts.items())
    except (TypeError, ValueError):
        right = False
    if not parts or not right:
        said = (
            loss if isinstance(loss, str) else " ".join(map(str, loss.items() if isinstance(loss, Mapping) else loss))
        )
        raise InputError(
            f"--loss {said}: give a phase ({', '.join(PHASES)}) or NAME=WEIGHT with weights above zero and names out "
            f"of {', '.join(LOSSES)}"
        )
    return parts


def build_loss(
    *,
    loss: str | Sequence[str] | Mapping[str, float],
    outputs: Sequence[str],
    focal_alpha: Sequence[float] | None = None,
    focal_gamma: float = 2.0,
    border_weight: float = 3.0,
    pair_weight: float = 5.0,
    border_pairs: Sequence[tuple[str, str]] = (),
    border_width: int = 1,
    mcc_phi: float = 0.7,
    tversky: tuple[float, float] = (0.3, 0.7),
    ramp: Mapping[str, tuple[float, int]] = RAMP,
) -> "SegmentationLoss":
    """The loss of a run: loss(logits (B,K,H,W), batch) -> {"loss": scalar with gradient, parts without}.

    loss            see resolve_parts; the weighted sum of the parts is the loss.
    focal_alpha     a weight for each of the outputs; None is 1, 2, 3, .. K.
    border_weight   of pixels within border_width px of another class, pair_weight where the classes are one of
                    border_pairs (names of outputs), in "boundary".
    mcc_phi         see mcc_loss.
    tversky         weights of false positives and of false negatives.
    ramp            {part: (share of its weight in epoch 0, epochs until all of it)}, linear; needs batch["epoch"].
    """
    outputs = list(outputs)
    numbers = {
        "--focal-gamma": focal_gamma,
        "--mcc-phi": mcc_phi,
        "--border-weight": border_weight,
        "--pair-weight": pair_weight,
        "--tversky": min(tversky),
    }
    check_numbers(numbers, border_width)
    options = {
        "focal": {"alpha": class_weights(focal_alpha, outputs), "gamma": focal_gamma},
        "tversky": {"false_positive": tversky[0], "false_negative": tversky[1]},
        "boundary": {
            "border_weight": float(border_weight),
            "pair_weight": float(pair_weight),
            "pairs": class_pairs(border_pairs, outputs),
            "width": border_width,
        },
        "mcc": {"phi": mcc_phi},
    }
    return SegmentationLoss(classes=len(outputs), parts=resolve_parts(loss), options=options, ramp=dict(ramp))


def check_numbers(numbers: Mapping[str, float], border_width: int) -> None:
    for name, value in numbers.items():
        if not 0 <= value < float("inf"):
            raise InputError(f"{name} {value}: it must be a number from 0 up")
    if border_width < 1:
        raise InputError(f"--border-width {border_width}: it must be at least 1 pixel")


def class_weights(alpha: Sequence[float] | None, outputs: Sequence[str]) -> list[float]:
    """A weight for each of the outputs; 1, 2, 3, .. where none are given."""
    weights = [float(a) for a in (range(1, len(outputs) + 1) if alpha is None else alpha)]
    if len(weights) != len(outputs) or not all(0 <= a < float("inf") for a in weights) or not sum(weights):
        raise InputError(f"--focal-alpha {weights}: give {len(outputs)} numbers from 0 up, for {', '.join(outputs)}")
    return weights


def class_pairs(pairs: Sequence[tuple[str, str]], outputs: Sequence[str]) -> list[tuple[int, int]]:
    for name in [name for pair in pairs for name in pair]:
        if name not in outputs:
            raise InputError(f"--border-pairs: '{name}' is no output; choose from {', '.join(outputs)}")
    return [(outputs.index(a), outputs.index(b)) for a, b in pairs]


def ramp_share(ramp: Mapping[str, tuple[float, int]], name: str, epoch: int) -> float:
    """Share of its weight that a part has in an epoch (from 0 on)."""
    start, epochs = ramp[name]
    return start + (1 - start) * min(1.0, epoch / max(1, epochs))


@dataclass(frozen=True)
class SegmentationLoss:
    """See build_loss. Numbers in the returned dict are of all processes, not of this one."""

    classes: int
    parts: dict[str, float]
    options: dict[str, dict]
    ramp: dict[str, tuple[float, int]]

    def __call__(self, logits: torch.Tensor, batch: dict) -> dict:
        with full_precision(logits.device):
            pixels = self.pixels(logits, batch)
            terms = {name: evaluate(name, pixels, self.options) for name in self.parts}
            loss = sum(self.weight(name, batch) * term for name, term in terms.items())
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def pixels(self, logits: torch.Tensor, batch: dict) -> Pixels:
        valid = batch["valid"].to(logits.device)
        target = batch["target"].to(logits.device)
        classes = torch.arange(self.classes, device=logits.device).view(1, -1, 1, 1)
        return Pixels(
            logits=torch.where(valid.unsqueeze(1), logits.float(), 0.0),
            hot=(target.unsqueeze(1) == classes) & valid.unsqueeze(1),
            valid=valid.float(),
        )

    def weight(self, name: str, batch: dict) -> float:
        share = ramp_share(self.ramp, name, int(batch["epoch"])) if name in self.ramp else 1.0
        return self.parts[name] * share


def evaluate(name: str, pixels: Pixels, options: dict[str, dict]) -> torch.Tensor:
    loss: Callable = LOSSES[name]
    return loss(pixels, **options.get(name, {}))
