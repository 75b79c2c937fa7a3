"""What a map without looking, and a linear model that looks at one pixel at a time, would score out of fold."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from common.errors import InputError
from common.metrics.baselines import clip_outliers
from common.metrics.ordered_scores import count_scores, gate_names, rank_scores, ranked_histogram
from common.metrics.segmentation import MCC, Metric, confusion

IGNORED = 255  # a label pixel of no class: it counts nowhere
PIXELS = 20_000  # the fit's; on the demo set three times as many add .01 at most


def held_folds(rows: pd.DataFrame) -> list[int]:
    """The folds to hold out, each with others to fit on. InputError where there are none, or test rows (-1)."""
    folds = sorted(set(rows["fold"].tolist()))
    held = [fold for fold in folds if fold >= 0]
    if len(folds) < 2 or not held or -1 in folds:
        raise InputError(f"baseline: needs rows of two folds or more from 0 on, got folds {folds}; see make_folds.py")
    return held


class HeldTile(NamedTuple):
    """A tile of a held fold: its place in the rows, the model of the other folds, values (n, C) and truth (n,) of its
    pixels with data and label, and how many pixels have no data (those with an ignored label left out)."""

    place: int
    model: object
    values: np.ndarray
    truth: np.ndarray
    nodata: int


def known_pixels(tile: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, int]:
    """(bool (H,W) pixels with data and a label that counts, number of those without data)."""
    valid, labelled = (tile != 0).any(0), target != IGNORED
    return valid & labelled, int(np.count_nonzero(~valid & labelled))


def constant_score(rows: pd.DataFrame, *, read_tile, read_target, classes: int, metric: Metric = MCC) -> float:
    """Out-of-fold score of one class wherever there is data: the class that is best on the other folds.

    Not 0 for a metric of all pixels: where there is no data it is background and right, which says where the data
    ends. Arguments as in `logistic_counts`.
    """
    fold, found = rows["fold"].to_numpy(), np.zeros((len(rows), classes), np.int64)
    none = np.zeros(len(rows), np.int64)
    for n, row in enumerate(rows.itertuples()):
        target = read_target(row.label)
        known, none[n] = known_pixels(read_tile(row.path), target)
        found[n] = np.bincount(target[known], minlength=classes)

    def counts(part, chosen: int) -> np.ndarray:
        table = np.zeros((classes, classes), np.int64)
        table[:, chosen] = found[part].sum(0)
        table[0, 0] += none[part].sum() * metric.nodata
        return table

    total = np.zeros((classes, classes), np.int64)
    for k in held_folds(rows):
        scores = [metric.of(counts(fold != k, chosen)) for chosen in range(classes)]
        total += counts(fold == k, int(np.argmax(scores)))
    return metric.of(total)


def with_logarithms(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.log1p(np.maximum(values, 0))], 1)


def logistic_model(values: np.ndarray, target: np.ndarray):
    """A multinomial logistic regression of classes (n,) on standardised values (n, C) and their logarithms, fitted.

    They are held within CLIP standard deviations: pixels that are 0 in some bands would else carry off the fit (MCC
    .48 in place of .64 on the demo set). With one class in `target` it answers that class.
    """
    if len(set(target.tolist())) == 1:
        return DummyClassifier(strategy="most_frequent").fit(values, target)
    columns = (FunctionTransformer(with_logarithms), StandardScaler(), FunctionTransformer(clip_outliers))
    return make_pipeline(*columns, LogisticRegression(max_iter=300)).fit(values, target)


def pixel_sample(rows: pd.DataFrame, read_tile, read_target, pixels: int, seed: int) -> list[tuple]:
    """For each row (values (n, C), target (n,)) of at most `pixels` of its pixels with data and label, drawn by (seed,
    index)."""
    found = []
    for index, row in enumerate(rows.itertuples()):
        tile, target = read_tile(row.path), read_target(row.label)
        known = np.flatnonzero(known_pixels(tile, target)[0])
        rng = np.random.default_rng([seed, index])
        chosen = rng.choice(known, min(pixels, len(known)), replace=False)
        found.append((tile.reshape(len(tile), -1)[:, chosen].T.astype(np.float64), target.ravel()[chosen]))
    return found


def held_tiles(rows: pd.DataFrame, *, read_tile, read_target, pixels: int, seed: int) -> Iterator[HeldTile]:
    """Every tile of every held fold, beside the model that was fitted on about `pixels` pixels of all other folds."""
    held = held_folds(rows)
    sample = pixel_sample(rows, read_tile, read_target, -(-pixels // len(rows)), seed)
    fold = rows["fold"].to_numpy()
    for k in held:
        values, target = (np.concatenate([sample[n][part] for n in np.flatnonzero(fold != k)]) for part in (0, 1))
        if not len(target):
            raise InputError(f"baseline: no labelled pixel with data outside fold {k}; see make_folds.py")
        model = logistic_model(values, target)
        for n in np.flatnonzero(fold == k):
            tile, truth = read_tile(rows["path"].iloc[n]), read_target(rows["label"].iloc[n])
            known, nodata = known_pixels(tile, truth)
            yield HeldTile(int(n), model, tile[:, known].T.astype(np.float64), truth[known], nodata)


def logistic_counts(
    rows: pd.DataFrame,
    *,
    read_tile: Callable[[str], np.ndarray],
    read_target: Callable[[str], np.ndarray],
    classes: int,
    pixels: int = PIXELS,
    seed: int = 0,
    nodata: bool = True,
) -> np.ndarray:
    """Out-of-fold counts int64 (rows, K, K): of all pixels, those without data as class 0 predicted as 0; or, without
    `nodata`, of the pixels with data alone.

    rows: path, label, fold; read_tile(path) -> (C, H, W), 0 in all bands where there is no data; read_target(label) ->
    (H, W) class indices, IGNORED where a pixel counts nowhere. Each fold is predicted by a model fitted on about
    `pixels` pixels of all other folds.
    """
    counts = np.zeros((len(rows), classes, classes), np.int64)
    for tile in held_tiles(rows, read_tile=read_tile, read_target=read_target, pixels=pixels, seed=seed):
        if len(tile.truth):
            counts[tile.place] = confusion(tile.truth, tile.model.predict(tile.values), None, classes)
        counts[tile.place, 0, 0] += tile.nodata * nodata
    return counts


def logistic_score(
    rows: pd.DataFrame, *, read_tile, read_target, classes: int, metric: Metric = MCC, **sampling
) -> float:
    """The score of `logistic_counts`."""
    reads = {"read_tile": read_tile, "read_target": read_target, "classes": classes, "nodata": metric.nodata}
    return metric.of(logistic_counts(rows, **reads, **sampling).sum(0))


def class_probabilities(model, values: np.ndarray, classes: int) -> np.ndarray:
    """(n, K) probabilities of a model that may not know all K classes; 0 for those."""
    prob = np.zeros((len(values), classes))
    prob[:, model.classes_] = model.predict_proba(values)
    return prob


def logistic_judgement(
    rows: pd.DataFrame,
    *,
    read_tile: Callable,
    read_target: Callable,
    classes: int,
    outputs: Sequence[str],
    pixels: int = PIXELS,
    seed: int = 0,
) -> dict:
    """What the regression scores as a map of ordered classes, out of fold, over pixels with data and label.

    Arguments as `logistic_counts`. Returns counts int64 (rows, K, K) of its likeliest class, hist int64 (K, bins) of
    its susceptibility (mean class as a share of the highest, `ranked_histogram`), metrics: those that gates name.
    """
    place, counts, hist = np.linspace(0, 1, classes), np.zeros((len(rows), classes, classes), np.int64), 0
    for tile in held_tiles(rows, read_tile=read_tile, read_target=read_target, pixels=pixels, seed=seed):
        prob = np.zeros((0, classes)) if not len(tile.truth) else class_probabilities(tile.model, tile.values, classes)
        counts[tile.place] = confusion(tile.truth, prob.argmax(1), None, classes)
        hist = hist + ranked_histogram(prob @ place, tile.truth, None, classes=classes)
    scores = count_scores(counts.sum(0), outputs) | rank_scores(hist, None, outputs)
    return {"counts": counts, "hist": hist, "metrics": {name: scores[name] for name in gate_names(outputs)}}
