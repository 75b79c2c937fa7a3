"""Adversarial validation: can a classifier tell train from test, or one fold from the others, by image statistics?

An AUC near .5 says that the two look alike; near 1, that scores on one say little about the other.
"""

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from common.datasets.folds import TEST
from common.errors import InputError

LEAST = 5  # rows of the smaller side: below, an AUC says nothing
SPLITS = 5


def trees(seed):
    return ExtraTreesClassifier(100, min_samples_leaf=2, class_weight="balanced", random_state=seed, n_jobs=1)


def logistic(seed):
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000, random_state=seed)
    )


CLASSIFIERS = {"trees": trees, "logistic": logistic}


def adversarial_auc(statistics, label, names, *, seed=0, groups=None, classifier="trees", top=10) -> dict:
    """How well `statistics` tell label from not label, cross-validated.

    statistics: (n, D) finite numbers; label: (n,) bool; names: D names; groups: (n,) labels kept whole in the
    cross-validation, so that recognising a group does not count (None: rows are split singly).
    Gives {"auc": mean of the parts' AUCs, "sd": their standard deviation, "features": [(name, importance), ...], the
    `top` most telling, adding up to at most 1, "reason": None}; where there are too few rows or groups, auc and sd are
    None, features empty and reason says why. InputError: shapes that do not fit, numbers that are not finite.
    """
    statistics, label = np.asarray(statistics, np.float64), np.asarray(label, bool)
    _check(statistics, label, names)
    splits, reason = _splits(label, groups, seed)
    if reason:
        return {"auc": None, "sd": None, "features": [], "reason": reason}
    scores, importances = [], []
    for train, held in splits:
        model = CLASSIFIERS[classifier](seed).fit(statistics[train], label[train])
        scores.append(roc_auc_score(label[held], model.predict_proba(statistics[held])[:, 1]))
        importances.append(_importance(model))
    mean = np.mean(importances, axis=0)
    order = np.argsort(-mean, kind="stable")[:top]
    features = [(names[i], float(mean[i])) for i in order]
    return {"auc": float(np.mean(scores)), "sd": float(np.std(scores)), "features": features, "reason": None}


def fold_adversarial(statistics, fold, names, *, seed=0, groups=None, classifier="trees", top=3) -> list[dict]:
    """`adversarial_auc` of every fold against the other folds: [{"fold": k, "auc": ..., ...}]; fold -1 takes no part.

    Grouped folds differ by the looks of their groups, so give `groups`: then whole groups are held out and the AUC says
    whether the fold differs beyond them (below .5 is no information either, it happens where there are few groups).
    """
    statistics, fold = np.asarray(statistics, np.float64), np.asarray(fold)
    used = fold != TEST
    groups = None if groups is None else np.asarray(groups)[used]
    options = {"seed": seed, "groups": groups, "classifier": classifier, "top": top}
    labels = np.unique(fold[fold >= 0]).tolist()
    return [
        {"fold": k, **adversarial_auc(statistics[used], fold[used] == k, names, **options)}
        for k in tqdm(labels, desc="fold against fold", unit="fold", leave=False)
    ]


def adversarial_lines(title, answer) -> list[str]:
    """An answer of `adversarial_auc` in words, a line or two."""
    if answer["auc"] is None:
        return [f"{title}: not measured, {answer['reason']}"]
    told = ", ".join(f"{name} {share:.2f}" for name, share in answer["features"])
    return [f"{title}: AUC {answer['auc']:.3f} +- {answer['sd']:.3f} (.5: alike)", f"  most telling: {told}"]


def _splits(label, groups, seed):
    """([(train, held)], None), or (None, reason) where an AUC cannot be measured."""
    fewest = int(min(label.sum(), (~label).sum()))
    if fewest < LEAST:
        return None, f"one side has {fewest} rows, at least {LEAST} are needed"
    if groups is None:
        splitter = StratifiedKFold(min(SPLITS, fewest), shuffle=True, random_state=seed)
        return list(splitter.split(label, label)), None
    groups = np.asarray(groups).astype(str)
    whole = min(len(set(groups[label].tolist())), len(set(groups[~label].tolist())))
    if whole < 2:
        return None, f"one side has {whole} group, at least 2 are needed"
    splitter = StratifiedGroupKFold(min(SPLITS, whole), shuffle=True, random_state=seed)
    both = [
        (train, held)
        for train, held in splitter.split(label, label, groups)
        if len(set(label[train].tolist())) == 2 and len(set(label[held].tolist())) == 2
    ]
    if len(both) < 2:
        return None, "its groups cannot be dealt so that two parts or more hold both sides"
    return both, None


def _importance(model):
    """(D,) shares, adding up to 1 (or all 0): split gains of trees, sizes of the coefficients of a logistic model."""
    raw = model.feature_importances_ if hasattr(model, "feature_importances_") else np.abs(model[-1].coef_[0])
    return raw / max(raw.sum(), 1e-12)


def _check(statistics, label, names):
    if statistics.ndim != 2 or len(statistics) != len(label) or statistics.shape[1] != len(names):
        raise InputError(
            f"image statistics of shape {statistics.shape} do not fit {len(label)} rows and {len(names)} names; "
            "compute them again with --force"
        )
    bad = ~np.isfinite(statistics)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InputError(f"image statistic {names[column]} of row {row} is not finite; look at that image or drop it")
