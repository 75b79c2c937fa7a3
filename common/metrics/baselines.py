"""What a prediction without looking, and a linear one from plain statistics, would score out of fold."""

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from common.errors import InputError
from common.metrics.regression import weighted_r2

ALPHAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)

CLIP = 4.0  # standard deviations: a column that hardly varies in training must not carry off a photo of another group


def clip_outliers(scaled: np.ndarray) -> np.ndarray:
    return np.clip(scaled, -CLIP, CLIP)


def ridge_model(alpha: float):
    """Ridge regression on standardised columns, each held within CLIP standard deviations of the training rows."""
    return make_pipeline(StandardScaler(), FunctionTransformer(clip_outliers), Ridge(alpha))


def training_folds(target: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """float64 target, int fold and the folds to hold out (0, 1, ...); fold -1 (test) is refused: it has no target."""
    target, fold = np.asarray(target, np.float64), np.asarray(fold)
    held = sorted(set(fold.tolist()))
    if len(fold) != len(target) or len(held) < 2 or held[0] < 0:
        raise InputError(f"baseline: needs a fold of 0, 1, ... for each of {len(target)} rows and two folds or more")
    return target, fold, held


def constant_oof(target: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Out-of-fold mean of each target over the other folds: target (n, k) grams, fold (n,) int -> (n, k)."""
    target, fold, held = training_folds(target, fold)
    pred = np.empty_like(target)
    for k in held:
        pred[fold == k] = target[fold != k].mean(0)
    return pred


def best_alpha(statistics: np.ndarray, target: np.ndarray, fold: np.ndarray) -> float:
    """The ridge penalty of ALPHAS with the best weighted R2 over the folds given, each held out in turn."""
    scores = []
    for alpha in ALPHAS:
        pred = np.empty_like(target)
        for k in np.unique(fold):
            model = ridge_model(alpha).fit(statistics[fold != k], target[fold != k])
            pred[fold == k] = model.predict(statistics[fold == k])
        scores.append(weighted_r2(target, np.maximum(pred, 0)))
    return ALPHAS[int(np.argmax(scores))]


def ridge_oof(statistics: np.ndarray, target: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Out-of-fold ridge regression: statistics (n, d), target (n, k) grams, fold (n,) int -> (n, k), at or above 0.

    The penalty of each fold is chosen by cross-validation over the other folds alone (with only two folds, over
    two halves of the training rows).
    """
    target, fold, held = training_folds(target, fold)
    statistics = np.asarray(statistics, np.float64)
    pred = np.empty_like(target)
    for k in held:
        inside = fold != k
        parts = fold[inside] if len(held) > 2 else np.arange(inside.sum()) % 2
        alpha = best_alpha(statistics[inside], target[inside], parts)
        model = ridge_model(alpha).fit(statistics[inside], target[inside])
        pred[fold == k] = np.maximum(model.predict(statistics[fold == k]), 0)
    return pred


def constant_score(target: np.ndarray, fold: np.ndarray) -> float:
    """Weighted R2 of `constant_oof`."""
    return weighted_r2(target, constant_oof(target, fold))


def ridge_score(statistics: np.ndarray, target: np.ndarray, fold: np.ndarray) -> float:
    """Weighted R2 of `ridge_oof`."""
    return weighted_r2(target, ridge_oof(statistics, target, fold))
