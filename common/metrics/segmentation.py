"""Scores of class masks from confusion counts: counted once per tile, added up and reduced later."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from common.errors import InputError


def confusion(target, pred, valid, classes: int) -> np.ndarray:
    """(K, K) int64, [t, p] = valid pixels of true class t predicted as p.

    target, pred: class indices of one shape; valid: bool of that shape, or None for all. InputError where the shapes
    differ or a valid pixel holds an index that is no class.
    """
    target, pred = np.asarray(target), np.asarray(pred)
    valid = np.ones(target.shape, bool) if valid is None else np.asarray(valid, bool)
    if not target.shape == pred.shape == valid.shape:
        raise InputError(f"score: target {target.shape}, pred {pred.shape}, valid {valid.shape}: must have one shape")
    target, pred = target[valid].astype(np.int64), pred[valid].astype(np.int64)
    for name, values in (("target", target), ("pred", pred)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise InputError(f"score: {name} has {values.min()} to {values.max()}; classes are 0 to {classes - 1}")
    return np.bincount(target * classes + pred, minlength=classes**2).reshape(classes, classes)


def mcc(counts):
    """Matthews correlation of counts (..., K, K): a float, or an array (...) for stacked counts.

    Gorodkin's R_K (Computational Biology and Chemistry 28, 2004, eq. 8), for two classes the usual MCC; 0 where truth
    or prediction has one class only, as in scikit-learn's matthews_corrcoef.
    """
    counts = np.asarray(counts, np.float64)
    share = counts / np.maximum(counts.sum((-2, -1), keepdims=True), 1)
    truth, said = share.sum(-1), share.sum(-2)
    right = np.trace(share, axis1=-2, axis2=-1)
    both = (truth * said).sum(-1)
    # 1 - sum of squares, written as the sum of products of different classes: exactly 0 for one class alone
    spread = (truth * (truth.sum(-1, keepdims=True) - truth)).sum(-1) * (
        said * (said.sum(-1, keepdims=True) - said)
    ).sum(-1)
    lone = ((truth > 0).sum(-1) < 2) | ((said > 0).sum(-1) < 2)
    answer = np.where(lone, 0.0, (right - both) / np.sqrt(np.where(lone, 1.0, spread)))
    return float(answer) if answer.ndim == 0 else answer


@dataclass(frozen=True)
class Metric:
    """A score of class masks: its key in tables, its name for people, of(counts (..., K, K)) -> (...), higher is better
    and 0 that of a constant; nodata: whether pixels without data count, as class 0 in truth and output."""

    key: str
    name: str
    of: Callable
    nodata: bool


MCC = Metric("mcc", "MCC", mcc, nodata=True)


def one_against_rest(counts) -> np.ndarray:
    """(..., K, 2, 2) counts of every class against all others, [1, 1] = hits, from counts (..., K, K)."""
    counts = np.asarray(counts)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    missed, false = counts.sum(-1) - hit, counts.sum(-2) - hit
    rest = counts.sum((-2, -1))[..., None] - hit - missed - false
    return np.stack([np.stack([rest, false], -1), np.stack([missed, hit], -1)], -2)


def class_mcc(counts) -> np.ndarray:
    """(..., K) MCC of every class against all others; 0 where undefined."""
    return mcc(one_against_rest(counts))


def class_table(counts, outputs: Sequence[str]) -> pd.DataFrame:
    """A line per class: class, pixels (of the truth), iou, dice, precision, recall, f1, mcc; nan where undefined.

    counts: (K, K); outputs: the K names. f1 is the Dice coefficient by its other name; both are asked for.
    """
    parts = one_against_rest(counts).astype(np.float64)
    hit, missed, false = parts[:, 1, 1], parts[:, 1, 0], parts[:, 0, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        dice = 2 * hit / (2 * hit + missed + false)
        table = {
            "class": list(outputs),
            "pixels": np.asarray(counts).sum(1).astype(np.int64),
            "iou": hit / (hit + missed + false),
            "dice": dice,
            "precision": hit / (hit + false),
            "recall": hit / (hit + missed),
            "f1": dice,
            "mcc": np.where(hit + missed + false > 0, class_mcc(counts), np.nan),
        }
    return pd.DataFrame(table)


def mean_iou(counts) -> float:
    """Mean IoU over the classes that occur in truth or prediction; nan where none does."""
    parts = one_against_rest(counts)
    union = parts[:, 1, 1] + parts[:, 1, 0] + parts[:, 0, 1]
    return float((parts[union > 0, 1, 1] / union[union > 0]).mean()) if (union > 0).any() else float("nan")


def count_columns(classes: int) -> list[str]:
    """Names of the columns of a set that hold counts [t, p], row by row: n_0_0, n_0_1, …"""
    return [f"n_{t}_{p}" for t in range(classes) for p in range(classes)]


def count_row(counts, nodata: int) -> dict[str, int]:
    """The counts (K, K) of one tile and its no-data pixels as the columns of a set."""
    counts = np.asarray(counts)
    return {"nodata": int(nodata)} | dict(zip(count_columns(len(counts)), counts.ravel().tolist(), strict=True))


def counts_of(frame: pd.DataFrame, classes: int, *, nodata: bool = False) -> np.ndarray:
    """(n, K, K) int64 counts per tile from the columns n_<t>_<p> of a set.

    nodata: add the column `nodata` to [0, 0], since such pixels are background in label and output alike: the counts
    over ALL pixels. InputError where a column is absent.
    """
    names = count_columns(classes)
    missing = [name for name in (*names, *(["nodata"] if nodata else [])) if name not in frame]
    if missing:
        raise InputError(f"set: no column {missing[0]}; a set with truth counts {classes} classes (n_<truth>_<pred>)")
    counts = frame[names].to_numpy(np.int64).reshape(len(frame), classes, classes)
    if nodata:
        counts = counts.copy()
        counts[:, 0, 0] += frame["nodata"].to_numpy(np.int64)
    return counts
