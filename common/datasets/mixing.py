"""MixUp and CutMix of whole samples: partner, lambda and box are pure functions of (seed, epoch, index).

Nothing depends on the batch, so that several processes, or another batch size, mix the same pairs.
MixUp: Zhang et al. 2018 (arXiv:1710.09412); CutMix: Yun et al. 2019 (arXiv:1905.04899).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from common.datasets.draws import MIX, generator
from common.errors import InputError


@dataclass(frozen=True)
class MixPlan:
    """partner: row number; weight: share of the sample itself; box (top, bottom, left, right) on a half, or None."""

    partner: int
    weight: float
    box: tuple[int, int, int, int] | None


class Mix:
    """Decides for each (epoch, index) whether and how a sample is mixed.

    rows: the training table, one line per sample; `within`: columns in which a partner must have the same values
    (a row with a missing value there, or without such a partner, stays as it is). mixup_prob and cutmix_prob are the
    shares of samples mixed either way; lambda is drawn from Beta(alpha, alpha). InputError: unknown column, shares
    that do not fit into 1, alpha not above 0.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        *,
        seed: int,
        mixup_prob: float = 0.0,
        mixup_alpha: float = 0.4,
        cutmix_prob: float = 0.0,
        cutmix_alpha: float = 1.0,
        within: Sequence[str] = (),
    ):
        if min(mixup_prob, cutmix_prob) < 0 or mixup_prob + cutmix_prob > 1:
            raise InputError(
                f"--mixup-prob {mixup_prob} and --cutmix-prob {cutmix_prob} must be 0 or more and at most 1 together"
            )
        if min(mixup_alpha, cutmix_alpha) <= 0:
            raise InputError(f"--mixup-alpha {mixup_alpha} and --cutmix-alpha {cutmix_alpha} must be above 0")
        self.seed = seed
        self.mixup_prob, self.mixup_alpha = mixup_prob, mixup_alpha
        self.cutmix_prob, self.cutmix_alpha = cutmix_prob, cutmix_alpha
        self.pools = partner_pools(rows, within)

    def plan(self, epoch: int, index: int, size: tuple[int, int]) -> MixPlan | None:
        """What happens to sample `index` in `epoch`; `size` (H, W) of a half. None: it stays as it is."""
        draws = generator(self.seed, epoch, index, MIX)
        choice = draws.random()
        pool = self.pools[index]
        if choice >= self.mixup_prob + self.cutmix_prob or len(pool) < 2:
            return None
        place = int(draws.integers(len(pool) - 1))
        own = int(np.searchsorted(pool, index))
        partner = int(pool[place + (place >= own)])
        if choice < self.mixup_prob:
            return MixPlan(partner, float(draws.beta(self.mixup_alpha, self.mixup_alpha)), None)
        box = draw_box(draws, float(draws.beta(self.cutmix_alpha, self.cutmix_alpha)), size)
        area = (box[1] - box[0]) * (box[3] - box[2])
        return MixPlan(partner, 1 - area / (size[0] * size[1]), box)


def partner_pools(rows: pd.DataFrame, within: Sequence[str]) -> list[np.ndarray]:
    """For each row the sorted numbers of the rows with its values in `within`, itself among them."""
    missing = [name for name in within if name not in rows.columns]
    if missing:
        raise InputError(
            f"--mix-within {missing[0]}: no such column; the rows have {', '.join(map(str, rows.columns))}"
        )
    if not within:
        return [np.arange(len(rows))] * len(rows)
    code = rows.groupby(list(within), sort=False, dropna=True).ngroup().to_numpy()
    complete = rows[list(within)].notna().all(axis=1).to_numpy()
    pools = {c: np.flatnonzero((code == c) & complete) for c in np.unique(code[complete])}
    return [pools[c] if known else np.array([i]) for i, (c, known) in enumerate(zip(code, complete, strict=True))]


def draw_box(draws: np.random.Generator, weight: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Box of about (1 - weight) of a half's area, its centre anywhere, cut off at the border."""
    height, width = size
    half_h, half_w = (round(side * np.sqrt(1 - weight) / 2) for side in size)
    row, column = int(draws.integers(height)), int(draws.integers(width))
    return max(row - half_h, 0), min(row + half_h, height), max(column - half_w, 0), min(column + half_w, width)


def mix_image(own: np.ndarray, other: np.ndarray, plan: MixPlan) -> np.ndarray:
    """A half (H, W, 3) uint8 of the sample mixed with the same half of its partner; a new array."""
    if plan.box is None:
        return cv2.addWeighted(own, plan.weight, other, 1 - plan.weight, 0)
    top, bottom, left, right = plan.box
    mixed = own.copy()
    mixed[top:bottom, left:right] = other[top:bottom, left:right]
    return mixed


def mix_targets(
    own: np.ndarray, own_valid: np.ndarray, other: np.ndarray, other_valid: np.ndarray, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of two target vectors, and where it is known: where both are; 0 elsewhere."""
    valid = own_valid & other_valid
    mixed = np.where(valid, weight * own + (1 - weight) * other, 0)
    return mixed.astype(own.dtype), valid


def mix_labels(own: np.ndarray, other: np.ndarray, weight: float) -> np.ndarray:
    """Weighted mean of two label distributions (K,); all zeros, that is unknown, where either one is."""
    if not own.any() or not other.any():
        return np.zeros_like(own)
    return (weight * own + (1 - weight) * other).astype(own.dtype)
