"""Thresholds per class: pred = the class of largest prob / threshold, fitted for a score of a sample of pixels.

Only ratios of thresholds matter, so they add up to one; all equal is the plain argmax, and for two classes
(1 - t, t) is prob > t.
"""

from collections.abc import Sequence

import numpy as np

from common.errors import InputError
from common.metrics.segmentation import MCC, Metric

SPANS = (64.0, 8.0, 1.5)  # how far a threshold is moved either way at most: coarse, then fine
STEPS, PASSES = 65, 4


def apply_thresholds(prob: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """uint8 (H,W), the class of largest prob / threshold, from prob (K,H,W); the lower class where two are equal."""
    scale = 1 / np.asarray(thresholds, np.float32)
    return (prob.astype(np.float32) * scale[:, None, None]).argmax(0).astype(np.uint8)


def over_thresholds(prob: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """float32 (K,H,W) prob / threshold scaled to add up to 1; the largest is the class of `apply_thresholds`."""
    scaled = prob.astype(np.float32) / np.asarray(thresholds, np.float32)[:, None, None]
    return scaled / np.maximum(scaled.sum(0), np.finfo(np.float32).tiny)


def checked_thresholds(thresholds, classes: int) -> list[float]:
    """K positive numbers scaled to add up to one; InputError otherwise."""
    try:
        values = np.asarray(thresholds, np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != (classes,) or not (np.isfinite(values) & (values > 0)).all():
        raise InputError(f"thresholds: need {classes} numbers above zero, one per class, got {thresholds}")
    return (values / values.sum()).tolist()


def sample_pixels(target, valid, *, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) flat indices of valid pixels and (n,) what each stands for: at most `per_class` pixels of every true class.

    target: class index, (H,W); valid: bool (H,W). A class of fewer pixels is taken whole, so that rare classes are
    all seen; the weights of a class add up to its pixels.
    """
    rng = np.random.default_rng(seed)
    flat, known = np.asarray(target).ravel(), np.asarray(valid, bool).ravel()
    indices, weights = [np.zeros(0, np.int64)], [np.zeros(0)]
    for value in np.unique(flat[known]):
        inside = np.flatnonzero(known & (flat == value))
        taken = rng.choice(inside, per_class, replace=False) if len(inside) > per_class else inside
        indices.append(np.sort(taken))
        weights.append(np.full(len(taken), len(inside) / len(taken)))
    return np.concatenate(indices), np.concatenate(weights)


def weighted_counts(target, pred, weight, classes: int) -> np.ndarray:
    """(K, K) float64, [t, p] = weight of the pixels of class t predicted as p; target, pred, weight: (n,)."""
    pair = np.asarray(target, np.int64) * classes + np.asarray(pred, np.int64)
    return np.bincount(pair, weight, classes**2).reshape(classes, classes)


def moved_scores(prob, target, weight, thresholds, chosen: int, tried, background: float, metric: Metric = MCC):
    """(g,) scores with the threshold of class `chosen` at each of the ascending values `tried` (g,), the others kept.

    A pixel is `chosen` while its threshold is below prob / (largest prob / threshold of the others), so one histogram
    of that ratio by truth and runner-up gives the counts at every value, exactly.
    """
    classes = prob.shape[1]
    others = prob / thresholds
    others[:, chosen] = -1
    second = others.argmax(1)
    with np.errstate(divide="ignore"):
        ratio = prob[:, chosen] / np.take_along_axis(others, second[:, None], 1)[:, 0]
    place = np.searchsorted(tried, ratio)  # values tried below the ratio: there the pixel is `chosen`
    cell = (place * classes + target) * classes + second
    table = np.bincount(cell, weight, (len(tried) + 1) * classes**2).reshape(-1, classes, classes)
    given_up = table.cumsum(0)[:-1]
    given_up[..., chosen] += (table.sum(0) - given_up).sum(-1)
    given_up[:, 0, 0] += background
    return metric.of(given_up)


def climb(prob, target, weight, thresholds: np.ndarray, background: float, metric: Metric):
    """(score, thresholds): one class after the other takes its best value, until a pass over all gains nothing."""
    best = -np.inf
    for span in SPANS:
        factors = np.geomspace(1 / span, span, STEPS)
        near = 1e-9 * np.abs(np.log(factors))  # of equal scores the smaller move
        for _ in range(PASSES):
            before = best
            for chosen in range(prob.shape[1]):
                tried = thresholds[chosen] * factors
                scores = moved_scores(prob, target, weight, thresholds, chosen, tried, background, metric) - near
                pick = int(scores.argmax())
                if scores[pick] > best:
                    best = float(scores[pick])
                    thresholds = thresholds.copy()
                    thresholds[chosen] = tried[pick]
                    thresholds /= thresholds.sum()
            if best <= before + 1e-7:
                break
    return best, thresholds


def fit_thresholds(prob, target, weight=None, *, background: float = 0.0, metric: Metric = MCC) -> list[float]:
    """K thresholds, adding up to one, of the largest score of the pixels given.

    prob: (n, K); target: (n,) class index; weight: (n,), what each pixel stands for (default 1); background: further
    pixels that are background in truth and output (no data). Coordinate ascent from equal thresholds and from the
    roots of the class shares, the better of both; where one class alone occurs they stay equal.
    """
    prob, target = np.asarray(prob, np.float64), np.asarray(target, np.int64)
    classes = prob.shape[1]
    weight = np.ones(len(target)) if weight is None else np.asarray(weight, np.float64)
    equal = np.full(classes, 1 / classes)
    if len(np.unique(target)) < 2:
        return equal.tolist()
    share = np.bincount(target, weight, classes)
    rooted = np.sqrt(np.maximum(share / share.sum(), 1e-4))
    found = [climb(prob, target, weight, start, background, metric) for start in (equal, rooted / rooted.sum())]
    return max(found, key=lambda answer: answer[0])[1].tolist()
