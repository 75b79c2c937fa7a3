"""What stands beside the score of a rare class: the class everywhere, and a logistic regression on single pixels."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.metrics.pixel_baselines import held_folds

PIXELS = 60  # of each class that are fitted on, of a tile


def balanced_iou(counts: np.ndarray, positive: np.ndarray) -> float:
    """IoU of the class from counts (n, 3) of hits, false and missed pixels of tiles, those without the class weighted
    to be as many as those with it; positive: (n,) bool. 0 where nothing is there."""
    weight = np.where(positive, 1.0, positive.sum() / max((~positive).sum(), 1))
    total = (counts * weight[:, None]).sum(0)
    return float(total[0] / total.sum()) if total.sum() else 0.0


def everywhere_score(rows: pd.DataFrame, *, read_tile: Callable, read_target: Callable) -> float:
    """Balanced IoU of the class predicted wherever there is data, over the rows of the folds from 0 on.

    rows: path, label, fold; read_tile(path) -> (C, H, W), 0 in all bands without data; read_target(label) -> (H, W) 0,
    1 or 255 where not known.
    """
    counts = []
    for row in rows[rows["fold"] >= 0].itertuples():
        target = read_target(row.label)[(read_tile(row.path) != 0).any(0)]
        counts.append([(target == 1).sum(), (target == 0).sum(), 0])
    counts = np.array(counts)
    return balanced_iou(counts, counts[:, 0] > 0)


def sample_tile(tile: np.ndarray, target: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values (n, C), class (n,), pixels each stands for (n,)) of at most PIXELS of either class."""
    data, values, classes, stands = (tile != 0).any(0), [], [], []
    for k in (0, 1):
        known = np.flatnonzero(data & (target == k))
        chosen = rng.choice(known, min(PIXELS, len(known)), replace=False)
        values.append(tile.reshape(len(tile), -1)[:, chosen].T)
        classes.append(np.full(len(chosen), k))
        stands.append(np.full(len(chosen), len(known) / max(len(chosen), 1)))
    return tuple(map(np.concatenate, (values, classes, stands)))


def best_cut(score: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """The score from which on calling pixels positive gives the largest weighted IoU."""
    order = np.argsort(-score, kind="stable")
    hit = np.cumsum(weight[order] * target[order])
    false = np.cumsum(weight[order] * (1 - target[order]))
    return float(score[order][np.argmax(hit / (hit[-1] + false))])


def pixel_score(rows: pd.DataFrame, *, read_tile: Callable, read_target: Callable, seed: int = 0) -> float:
    """Balanced IoU, out of fold, of a logistic regression on the bands of single pixels, cut where that is largest.

    Arguments as in `everywhere_score`. Classes are fitted in equal parts: at one in a thousand the fit would
    answer background everywhere. Fit and cut know the rows of other folds alone.
    """
    fold, samples, counts, held_rows = rows["fold"].to_numpy(), [], [], []
    for n, row in enumerate(rows.itertuples()):
        samples.append(sample_tile(read_tile(row.path), read_target(row.label), np.random.default_rng((seed, n))))
    positive = np.array([(target == 1).any() for _, target, _ in samples])
    for k in held_folds(rows):
        fitted = np.flatnonzero(fold != k)
        values, target, stands = (np.concatenate([samples[n][part] for n in fitted]) for part in range(3))
        ratio = positive[fitted].sum() / max((~positive[fitted]).sum(), 1)
        weight = stands * np.concatenate([np.full(len(samples[n][1]), 1 if positive[n] else ratio) for n in fitted])
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, class_weight="balanced"))
        model.fit(values, target)
        cut = best_cut(model.decision_function(values), target, weight)
        for n in np.flatnonzero(fold == k):
            tile, truth = read_tile(rows["path"].iloc[n]), read_target(rows["label"].iloc[n])
            known = (tile != 0).any(0) & (truth <= 1)
            pred = model.decision_function(tile[:, known].T) >= cut if known.any() else np.zeros(0, bool)
            truth = truth[known] == 1
            counts.append([(pred & truth).sum(), (pred & ~truth).sum(), (~pred & truth).sum()])
            held_rows.append(n)
    return balanced_iou(np.array(counts), positive[held_rows])
