"""The biomass metric: one globally weighted R2 over all (image, target) rows, and the tables that explain it."""

import numpy as np
import pandas as pd

from common.errors import InputError

# Green, Dead, Clover, GDM, Total: how the competition weighs a squared error in grams.
WEIGHTS = (0.1, 0.1, 0.1, 0.2, 0.5)


def checked(target, pred, weights, valid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 target and pred (n, k) and the weight of every entry (n, k), zero where not valid; InputError else."""
    target, pred = np.asarray(target, np.float64), np.asarray(pred, np.float64)
    if target.ndim != 2 or pred.shape != target.shape:
        raise InputError(f"score: target {target.shape} and pred {pred.shape} must be the same (rows, targets)")
    weights = np.asarray(weights, np.float64)
    if weights.shape != target.shape[1:] or not (weights >= 0).all() or not weights.sum() > 0:
        raise InputError(f"score: needs {target.shape[1]} weights at or above zero, got {weights.tolist()}")
    valid = np.ones(target.shape, bool) if valid is None else np.asarray(valid, bool)
    if valid.shape != target.shape:
        raise InputError(f"score: valid {valid.shape} must have the shape of target {target.shape}")
    for name, values in (("target", target), ("pred", pred)):
        bad = valid & ~np.isfinite(values)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise InputError(f"score: {name} has {bad.sum()} non-finite values, the first in row {row} column {column}")
    return np.where(valid, target, 0), np.where(valid, pred, 0), np.where(valid, weights, 0)


def weighted_r2(target, pred, *, weights=WEIGHTS, valid=None) -> float:
    """Global weighted R2 = 1 - sum w (y-p)^2 / sum w (y-ybar)^2, ybar = sum w y / sum w over ALL rows of ALL targets.

    target, pred: (n, k) grams; weights: (k,); valid: (n, k) bool, entries that count (default all). Not clipped;
    nan where nothing varies. InputError on wrong shapes or non-finite valid values. Source: Kaggle csiro-biomass.
    """
    target, pred, weight = checked(target, pred, weights, valid)
    total = weight.sum()
    if total == 0:
        return float("nan")
    mean = (weight * target).sum() / total
    spread = (weight * (target - mean) ** 2).sum()
    return float(1 - (weight * (target - pred) ** 2).sum() / spread) if spread > 0 else float("nan")


def target_table(target, pred, outputs, *, valid=None) -> pd.DataFrame:
    """One line per target: rows, r2 (about the target's own mean; nan if constant), rmse and bias in grams.

    target, pred: (n, k) grams; outputs: the k names; valid: (n, k) bool.
    """
    target, pred, weight = checked(target, pred, np.ones(len(outputs)), valid)
    count = weight.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = pred - target
        squared = (weight * error**2).sum(0)
        spread = (weight * (target - (weight * target).sum(0) / count) ** 2).sum(0)
        r2 = np.where(spread > 0, 1 - squared / spread, np.nan)
        table = {
            "target": list(outputs),
            "rows": count.astype(int),
            "r2": r2,
            "rmse": np.sqrt(squared / count),
            "bias": (weight * error).sum(0) / count,
        }
    return pd.DataFrame(table)


def score_by(target, pred, column, *, weights=WEIGHTS, valid=None) -> pd.DataFrame:
    """One line per value of `column` (n,), e.g. state or group: rows, score, rmse, bias, error_share, in sorted order.

    score is weighted R2 about the part's own mean (harsh where a part hardly varies, nan where it does not); rmse and
    bias are weighted, in grams; error_share is the part's share of the whole squared error.
    """
    target, pred, weight = checked(target, pred, weights, valid)
    column = np.asarray(column).astype(str)
    if column.shape != target.shape[:1]:
        raise InputError(f"score: the column to group by has {column.shape}, target has {len(target)} rows")
    names, code = np.unique(column, return_inverse=True)

    def part_sums(values):
        return np.bincount(code, values.sum(1), len(names))

    error = pred - target
    squared, total = part_sums(weight * error**2), part_sums(weight)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = part_sums(weight * target) / total
        spread = part_sums(weight * (target - mean[code][:, None]) ** 2)
        table = {
            "part": names,
            "rows": np.bincount(code, minlength=len(names)),
            "score": np.where(spread > 0, 1 - squared / spread, np.nan),
            "rmse": np.sqrt(squared / total),
            "bias": part_sums(weight * error) / total,
            "error_share": squared / squared.sum(),
        }
    return pd.DataFrame(table)
