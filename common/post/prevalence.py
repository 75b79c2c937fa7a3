"""Sets of tiles at a wanted ratio of negatives to positives, where real negatives do not suffice for it.

A ratio r stands for r tiles without the class on every tile that has it. Each negative tile then weighs r * P / N (P
positive, N negative tiles), a positive one 1: exact for whatever is a ratio of sums over tiles, as precision and recall
of pixels and of objects. What N negatives do not show, no weight adds: N is told beside every such score.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from common.errors import InputError
from common.metrics.curves import average_precision, confusion_at, full_curve, threshold_at_precision
from common.post.calibration import threshold_prob

COLUMNS = ("ratio", "prevalence", "ap", "threshold", "precision", "recall", "reachable", "positives", "negatives")


def negative_weight(positives: int, negatives: int, ratio: float) -> float:
    """What a negative tile stands for at 1:ratio; 0 where there is none, since then nothing can stand for them."""
    if not ratio > 0:
        raise InputError(f"ratio 1:{ratio}: give the number of negative tiles per positive one, above 0")
    return ratio * positives / negatives if negatives else 0.0


def tile_weights(positive, ratio: float) -> np.ndarray:
    """(n,) float64 weights of tiles at 1:ratio: 1 on positives, ratio * P / N on negatives; positive: bool (n,)."""
    positive = np.asarray(positive, bool)
    count = int(positive.sum())
    return np.where(positive, 1.0, negative_weight(count, len(positive) - count, ratio))


def subsample(positive, ratio: float, seed: int) -> tuple[np.ndarray | None, str]:
    """(ascending indices of a seeded sub-sample at 1:ratio, or None where there is none; a line that says which).

    All positives with ratio times as many negatives; where the negatives do not suffice, as many positives as they
    suffice for (negatives // ratio), with ratio times as many negatives.
    """
    positive = np.asarray(positive, bool)
    inside, outside = np.flatnonzero(positive), np.flatnonzero(~positive)
    count = min(len(inside), int(len(outside) // ratio))
    if not count:
        return None, f"none: 1:{ratio:g} takes {ratio:g} negatives, there are {len(outside)}"
    rng = np.random.default_rng((seed, int(ratio)))
    wanted = int(round(count * ratio))
    taken = [rng.choice(inside, count, replace=False), rng.choice(outside, wanted, replace=False)]
    return np.sort(np.concatenate(taken)), f"{count} of {len(inside)} positives, {wanted} of {len(outside)} negatives"


def at_ratio(hist, ratio: float, *, positives: int, negatives: int) -> np.ndarray:
    """float64 (2, bins) [negative pixel, positive pixel] at 1:ratio, from hist (2, 2, bins) [tile, pixel, bin]."""
    return hist[1] + negative_weight(positives, negatives, ratio) * np.asarray(hist[0], np.float64)


def best_threshold(hist, beta: float = 1.0) -> float:
    """The logit above which pixels are called positive for the largest F_beta of a histogram (2, bins).

    beta 1 is the largest IoU as well, since IoU = F1 / (2 - F1); beta below 1 favours precision. 0 without positives.
    """
    curve = full_curve(hist)
    if not len(curve.recall) or np.isnan(curve.recall[-1]):
        return 0.0
    bottom = beta**2 * curve.precision + curve.recall
    score = (1 + beta**2) * curve.precision * curve.recall / np.where(bottom > 0, bottom, 1)
    return float(curve.threshold[score.argmax()])  # of equal scores the highest threshold


def pixel_scores(hit: float, false: float, missed: float) -> dict[str, float]:
    """iou, precision, recall, f1 and f0.5 from hits, false and missed pixels (may be weighted)."""

    def share(part, whole):
        return float(part / whole) if whole > 0 else float("nan")

    return {
        "iou": share(hit, hit + false + missed),
        "precision": share(hit, hit + false),
        "recall": share(hit, hit + missed),
        "f1": share(2 * hit, 2 * hit + false + missed),
        "f0.5": share(1.25 * hit, 1.25 * hit + false + 0.25 * missed),
    }


def chosen_threshold(hist, target_precision: float) -> tuple[float, bool]:
    """(logit, whether the precision is reached): where recall is largest at that precision, else the best F0.5."""
    found = threshold_at_precision(hist, target_precision)
    return (best_threshold(hist, 0.5), False) if found is None else (float(found[0]), True)


def ratio_table(
    hist, ratios: Sequence[float], *, positives: int, negatives: int, target_precision=0.8, temperature: float = 1.0
) -> pd.DataFrame:
    """A line per ratio: what is reached at the threshold where precision >= target_precision and recall is largest.

    hist: (2, 2, bins) [tile is positive, pixel is positive, bin] of uncalibrated logits; positives, negatives: tiles.
    threshold is a calibrated probability. Where the precision is not reachable, `reachable` is False and the threshold
    is that of the best F0.5. Without negative tiles no ratio can be told: all is nan, the threshold that of the best
    F0.5 among the positives.
    """
    lines = []
    for ratio in ratios:
        known = at_ratio(hist, ratio, positives=positives, negatives=negatives)
        threshold, reachable = chosen_threshold(known, target_precision)
        hit, false, missed, _ = confusion_at(known, threshold)
        scores = pixel_scores(hit, false, missed)
        line = {"ratio": ratio, "prevalence": known[1].sum() / max(known.sum(), 1), "ap": average_precision(known)}
        line |= {"precision": scores["precision"], "recall": scores["recall"]}
        line = line if negatives else dict.fromkeys(line, float("nan")) | {"ratio": ratio}
        line |= {"threshold": threshold_prob(threshold, temperature), "reachable": bool(reachable and negatives)}
        lines.append(line | {"positives": positives, "negatives": negatives})
    table = pd.DataFrame(lines, columns=list(COLUMNS))
    return table.assign(weight=[negative_weight(positives, negatives, ratio) for ratio in ratios])
