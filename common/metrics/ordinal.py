"""Agreement and ranking of ordered classes: from confusion counts, and from histograms that add up over tiles.

A histogram (K, bins) int64 holds the pixels of every true class by a value from 0 to 1 in bins of equal width; pixels
of one bin are tied. Everything is exact for the binned values.
"""

from typing import NamedTuple

import numpy as np

from common.errors import InputError

BINS = 1 << 16
SLACK = 1e-3  # that a value may pass 0 or 1 by: sums of probabilities kept as float16
WEIGHTS = {None: lambda gap: gap > 0, "linear": lambda gap: gap, "quadratic": lambda gap: gap**2}


class RateCurve(NamedTuple):
    """Success or prediction rate: found[i] of the positives lie in the area[i] of all pixels of highest value."""

    area: np.ndarray  # (n,) rising from 0 to 1
    found: np.ndarray  # (n,)
    auc: float  # area under it; .5 without skill, 1 - half the share of positives at best


def cohens_kappa(counts, weights: str | None = None):
    """Cohen's kappa of counts (..., K, K) [true, pred]: a float, or an array (...) for stacked counts.

    weights: None, "linear" or "quadratic" in the distance of the classes (Cohen 1968). As scikit-learn's
    cohen_kappa_score, but 0 where truth and prediction are one and the same class, or
    nothing is counted; exactly 0 where either is one class alone.
    """
    if weights not in WEIGHTS:
        raise InputError(f"kappa: weights {weights}; choose one of {', '.join(map(str, WEIGHTS))}")
    counts = np.asarray(counts, np.float64)
    share = counts / np.maximum(counts.sum((-2, -1), keepdims=True), 1)
    order = np.arange(counts.shape[-1])
    cost = WEIGHTS[weights](np.abs(order[:, None] - order)).astype(np.float64)
    seen = (share * cost).sum((-2, -1))
    chance = (share.sum(-1)[..., :, None] * share.sum(-2)[..., None, :] * cost).sum((-2, -1))
    # one class alone on either side makes both sums equal: exactly 0, whatever the rounding
    lone = ((share.sum(-1) > 0).sum(-1) < 2) | ((share.sum(-2) > 0).sum(-1) < 2)
    answer = np.where(lone, 0.0, 1 - seen / np.where(lone, 1.0, chance))
    return float(answer) if answer.ndim == 0 else answer


def value_histogram(values, target, valid, *, classes: int, bins: int = BINS) -> np.ndarray:
    """(classes, bins) int64 pixels by true class and value; sums of such arrays are those of more pixels.

    values: floats 0..1, target: class indices, valid: bool or None for all, all of one shape. InputError where shapes
    differ, or a valid pixel has a value that is not in 0..1 (beyond rounding) or an index that is no class.
    """
    values, target = np.asarray(values), np.asarray(target)
    valid = np.ones(values.shape, bool) if valid is None else np.asarray(valid, bool)
    if not values.shape == target.shape == valid.shape:
        shapes = f"values {values.shape}, target {target.shape}, valid {valid.shape}"
        raise InputError(f"histogram: {shapes}: must have one shape")
    values, target = values[valid].astype(np.float64), target[valid].astype(np.int64)
    if values.size and not -SLACK <= values.min() <= values.max() <= 1 + SLACK:
        raise InputError(f"histogram: values from {values.min():g} to {values.max():g}; they must be from 0 to 1")
    if target.size and not 0 <= target.min() <= target.max() < classes:
        raise InputError(f"histogram: classes {target.min()} to {target.max()}; they are 0 to {classes - 1}")
    place = np.clip((values * bins).astype(np.int64), 0, bins - 1)
    return np.bincount(target * bins + place, minlength=classes * bins).reshape(classes, bins)


def mid_ranks(counts: np.ndarray) -> np.ndarray:
    """(n,) rank of the pixels of every cell of counts (n,), tied pixels sharing theirs, minus the mean of all ranks."""
    total = counts.cumsum()
    return total - (counts + total[-1]) / 2


def spearman(hist) -> float:
    """Spearman's rho of true class and binned value, ties at their mean rank, as scipy.stats.spearmanr.

    Nan where one class or one bin holds every pixel.
    """
    hist = np.asarray(hist, np.float64)
    of_class, of_value = mid_ranks(hist.sum(1)), mid_ranks(hist.sum(0))
    spread = (hist.sum(1) * of_class**2).sum() * (hist.sum(0) * of_value**2).sum()
    if not spread > 0:
        return float("nan")
    return float(of_class @ hist @ of_value / np.sqrt(spread))


def two_sides(hist, at_least: int | None, of_class: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(negatives, positives) (bins,) float64: positive is a class >= at_least, or the class of_class alone."""
    hist = np.asarray(hist, np.float64)
    classes = np.arange(len(hist))
    if (at_least is None) == (of_class is None):
        raise InputError("ranking: give one of at_least and of_class")
    wanted = classes >= at_least if of_class is None else classes == of_class
    if wanted.all() or not wanted.any():
        raise InputError(
            f"ranking: class {at_least if of_class is None else of_class} of {len(hist)} has no other side"
        )
    return hist[~wanted].sum(0), hist[wanted].sum(0)


def auroc(hist, *, at_least: int | None = None, of_class: int | None = None) -> float:
    """Area under the ROC curve, ties counted half; nan where there are no positives or no negatives."""
    negative, positive = two_sides(hist, at_least, of_class)
    if not (negative.sum() and positive.sum()):
        return float("nan")
    below = negative.cumsum() - negative / 2
    return float(positive @ below / (negative.sum() * positive.sum()))


def average_precision(hist, *, at_least: int | None = None, of_class: int | None = None) -> float:
    """Sum over falling values of precision times the recall gained, as scikit-learn's; nan without positives."""
    negative, positive = (side[::-1] for side in two_sides(hist, at_least, of_class))
    if not positive.sum():
        return float("nan")
    hits, kept = positive.cumsum(), (negative + positive).cumsum()
    return float((positive * hits / np.maximum(kept, 1)).sum() / hits[-1])


def rate_curve(hist, *, at_least: int) -> RateCurve:
    """Share of the positives found in a share of the area, from the highest value down (Chung & Fabbri 2003).

    Called success rate on the data a model was made of, prediction rate on other data. A point per value that occurs,
    and (0, 0); between points, where pixels are tied, the line is straight. Nan throughout without positives.
    """
    negative, positive = (side[::-1] for side in two_sides(hist, at_least, None))
    held = negative + positive > 0
    area, found = (
        np.concatenate([[0.0], side[held].cumsum()]) / (side.sum() or np.nan)
        for side in (negative + positive, positive)
    )
    return RateCurve(area, found, float((np.diff(area) * (found[1:] + found[:-1])).sum() / 2))
