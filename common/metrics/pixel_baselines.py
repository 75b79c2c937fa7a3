"""What a map without looking, and a linear model that looks at one pixel at a time, would score out of fold."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from common.errors import InputError
from common.metrics.baselines import clip_outliers
from common.metrics.segmentation import confusion, mcc

PIXELS = 20_000  # the fit's; on the demo set three times as many add .01 at most


def held_folds(rows: pd.DataFrame) -> list[int]:
    """The folds to hold out, each with others to fit on. InputError where there are none, or test rows (-1)."""
    folds = sorted(set(rows["fold"].tolist()))
    held = [fold for fold in folds if fold >= 0]
    if len(folds) < 2 or not held or -1 in folds:
        raise InputError(f"baseline: needs rows of two folds or more from 0 on, got folds {folds}; see make_folds.py")
    return held


def constant_score(rows: pd.DataFrame, *, read_tile, read_target, classes: int) -> float:
    """Out-of-fold MCC over all pixels of one class wherever there is data: the class that is best on the other folds.

    Not 0: where there is no data it is background and right, which says where the data ends. Arguments as in
    `logistic_counts`.
    """
    fold, found = rows["fold"].to_numpy(), np.zeros((len(rows), classes), np.int64)
    none = np.zeros(len(rows), np.int64)
    for n, row in enumerate(rows.itertuples()):
        valid = (read_tile(row.path) != 0).any(0)
        found[n] = np.bincount(read_target(row.label)[valid], minlength=classes)
        none[n] = np.count_nonzero(~valid)

    def counts(part, chosen: int) -> np.ndarray:
        table = np.zeros((classes, classes), np.int64)
        table[:, chosen] = found[part].sum(0)
        table[0, 0] += none[part].sum()
        return table

    total = np.zeros((classes, classes), np.int64)
    for k in held_folds(rows):
        scores = [mcc(counts(fold != k, chosen)) for chosen in range(classes)]
        total += counts(fold == k, int(np.argmax(scores)))
    return mcc(total)


def with_logarithms(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.log1p(np.maximum(values, 0))], 1)


def logistic_model(values: np.ndarray, target: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """(n, C) -> (n,) classes: a multinomial logistic regression on standardised values and their logarithms.

    They are held within CLIP standard deviations: pixels that are 0 in some bands would else carry off the fit (MCC
    .48 in place of .64 on the demo set). With one class in `target` it answers that class.
    """
    if len(set(target.tolist())) == 1:
        return lambda pixels: np.full(len(pixels), target[0])
    columns = (FunctionTransformer(with_logarithms), StandardScaler(), FunctionTransformer(clip_outliers))
    return make_pipeline(*columns, LogisticRegression(max_iter=300)).fit(values, target).predict


def pixel_sample(rows: pd.DataFrame, read_tile, read_target, pixels: int, seed: int) -> list[tuple]:
    """For each row (values (n, C), target (n,)) of at most `pixels` of its pixels with data, drawn by (seed, index)."""
    found = []
    for index, row in enumerate(rows.itertuples()):
        tile, target = read_tile(row.path), read_target(row.label)
        known = np.flatnonzero((tile != 0).any(0))
        rng = np.random.default_rng([seed, index])
        chosen = rng.choice(known, min(pixels, len(known)), replace=False)
        found.append((tile.reshape(len(tile), -1)[:, chosen].T.astype(np.float64), target.ravel()[chosen]))
    return found


def logistic_counts(
    rows: pd.DataFrame,
    *,
    read_tile: Callable[[str], np.ndarray],
    read_target: Callable[[str], np.ndarray],
    classes: int,
    pixels: int = PIXELS,
    seed: int = 0,
) -> np.ndarray:
    """Out-of-fold counts int64 (rows, K, K) over all pixels: those without data count as class 0 predicted as 0.

    rows: path, label, fold; read_tile(path) -> (C, H, W), 0 in all bands where there is no data; read_target(label) ->
    (H, W) class indices. Each fold is predicted by a model fitted on about `pixels` pixels of all other folds.
    """
    held = held_folds(rows)
    sample = pixel_sample(rows, read_tile, read_target, -(-pixels // len(rows)), seed)
    fold = rows["fold"].to_numpy()
    counts = np.zeros((len(rows), classes, classes), np.int64)
    for k in held:
        values, target = (np.concatenate([sample[n][part] for n in np.flatnonzero(fold != k)]) for part in (0, 1))
        predict = logistic_model(values, target)
        for n in np.flatnonzero(fold == k):
            tile, truth = read_tile(rows["path"].iloc[n]), read_target(rows["label"].iloc[n])
            valid = (tile != 0).any(0)
            if valid.any():
                counts[n] = confusion(truth[valid], predict(tile[:, valid].T.astype(np.float64)), None, classes)
            counts[n, 0, 0] += int((~valid).sum())
    return counts


def logistic_score(rows: pd.DataFrame, *, read_tile, read_target, classes: int, **sampling) -> float:
    """MCC over all pixels of `logistic_counts`."""
    return mcc(logistic_counts(rows, read_tile=read_tile, read_target=read_target, classes=classes, **sampling).sum(0))
