"""Scores that pay for what was fitted: everything is refitted without a group before that group is predicted."""

from collections.abc import Callable

import numpy as np

from common.errors import InputError
from common.metrics.regression import WEIGHTS, checked, weighted_r2
from common.post.blend import combine, fit_members, group_moments
from common.post.physics import FITTED, LEAST_ROWS, RECONCILES, apply_post, fit_post


def group_codes(groups) -> np.ndarray:
    """(n,) int code of every row's group; InputError below two groups, since one must be left out."""
    names, code = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    if len(names) < 2:
        raise InputError(f"honest score: needs at least 2 groups, got {len(names)}; name another column (--group)")
    return code


def nested_post(target, pred, groups, *, valid=None, **settings) -> np.ndarray:
    """pred (n, 5) post-processed with clamps and covariance learnt from the other groups' rows only.

    settings: reconcile, dead, always_correct_dead of apply_post.
    """
    target, pred = np.asarray(target, np.float64), np.asarray(pred, np.float64)
    return leave_one_out(target, valid, group_codes(groups), lambda group: pred, settings)


def leave_one_out(target, valid, code, predict: Callable, settings: dict) -> np.ndarray:
    """(n, 5) joined over groups: predict(group) is (n, 5) of a fit without it, and so is its post-processing."""
    valid = np.ones(target.shape, bool) if valid is None else np.asarray(valid, bool)
    dead = {name: settings[name] for name in ("dead", "always_correct_dead") if name in settings}
    out = np.empty_like(target)
    for group in range(code.max() + 1):
        inside = code == group
        pred = predict(group)
        post = fit_post(target[~inside], pred[~inside], valid=valid[~inside], **dead)
        out[inside] = apply_post(pred[inside], post, **settings)
    return out


def honest_post(
    target, pred, groups, *, weights=WEIGHTS, valid=None, dead: str = "none", always_correct_dead: bool = False
) -> dict:
    """What each reconciliation is worth on one set: {"raw": score, "reconcile": {kind: {...}}}.

    Per kind `fitted` and `nested` (refitted without each group in turn) scores and their gains over "none" of the same
    sort, which derives Dead and clamps alike; nan where too few rows are left to fit a covariance on. Choose by the
    nested gain: the fitted one flatters mint.
    """
    target, pred = np.asarray(target, np.float64), np.asarray(pred, np.float64)
    settings = {"dead": dead, "always_correct_dead": always_correct_dead}
    post = fit_post(target, pred, valid=valid, **settings)
    table = {}
    code = group_codes(groups)
    fewest = len(target) - np.bincount(code).max()  # rows that the refits have at least
    for kind in RECONCILES:
        if kind in FITTED and fewest < LEAST_ROWS:
            table[kind] = {"fitted": float("nan"), "nested": float("nan")}
            continue
        fitted = apply_post(pred, post, reconcile=kind, **settings)
        nested = nested_post(target, pred, groups, valid=valid, reconcile=kind, **settings)
        table[kind] = {
            "fitted": weighted_r2(target, fitted, weights=weights, valid=valid),
            "nested": weighted_r2(target, nested, weights=weights, valid=valid),
        }
    for scores in table.values():
        scores["fitted_gain"] = scores["fitted"] - table["none"]["fitted"]
        scores["nested_gain"] = scores["nested"] - table["none"]["nested"]
    return {"raw": weighted_r2(target, pred, weights=weights, valid=valid), "reconcile": table}


def honest_blend(
    preds,
    target,
    groups,
    kind: str,
    seed: int = 0,
    *,
    weights=WEIGHTS,
    valid=None,
    reconcile: str = "ols",
    dead: str = "none",
    always_correct_dead: bool = False,
) -> dict:
    """A blend scored as fitted and as honest: screening, weights and post-processing refitted without each group.

    preds: (m, n, 5), target: (n, 5) grams, groups: (n,), one refit per group. Returns fitted and honest (scores),
    fitted_pred and honest_pred (n, 5) post-processed, weights (m,) or (m, 5) of the full fit and weights_spread, their
    standard deviation over the refits.
    """
    preds, target = np.asarray(preds, np.float64), np.asarray(target, np.float64)
    code = group_codes(groups)
    moments = group_moments(preds, target, groups, weights=weights, valid=valid)
    settings = {"reconcile": reconcile, "dead": dead, "always_correct_dead": always_correct_dead}
    refits = []

    def without(group):
        others = {name: np.delete(values, group, axis=0) for name, values in moments.items()}
        refits.append(fit_members(others, kind, seed)[0])
        return combine(preds, refits[-1])

    honest = leave_one_out(target, valid, code, without, settings)
    full = fit_members(moments, kind, seed)[0]
    pred = combine(preds, full)
    post = fit_post(target, pred, valid=valid, dead=dead, always_correct_dead=always_correct_dead)
    fitted = apply_post(pred, post, **settings)
    return {
        "fitted": weighted_r2(target, fitted, weights=weights, valid=valid),
        "honest": weighted_r2(target, honest, weights=weights, valid=valid),
        "fitted_pred": fitted,
        "honest_pred": honest,
        "weights": full,
        "weights_spread": np.std(refits, axis=0),
    }


def bootstrap_difference(
    target, pred_a, pred_b, groups, *, draws: int = 2000, seed: int = 0, weights=WEIGHTS, valid=None
) -> dict:
    """Score of a minus score of b, with its paired bootstrap over groups drawn with replacement.

    target, pred_a, pred_b: (n, k) grams; groups: (n,). Returns difference, low90, high90, low95, high95 (percentiles),
    share_positive (of draws in which a is ahead), draws and groups.
    """
    code = group_codes(groups)
    count = code.max() + 1
    y, a, weight = checked(target, pred_a, weights, valid)
    b = checked(target, pred_b, weights, valid)[1]
    terms = [weight, weight * y, weight * y**2, weight * (y - a) ** 2, weight * (y - b) ** 2]
    sums = np.stack([np.bincount(code, term.sum(1), count) for term in terms], 1)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    n, first, second, error_a, error_b = (drawn @ sums).T
    spread = second - first**2 / np.maximum(n, 1e-12)
    usable = spread > 0
    difference = (error_b - error_a)[usable] / spread[usable]
    if not len(difference):
        raise InputError("bootstrap: the target does not vary in any draw of groups; use larger groups")
    low95, low90, high90, high95 = np.percentile(difference, [2.5, 5, 95, 97.5]).tolist()
    return {
        "difference": weighted_r2(target, pred_a, weights=weights, valid=valid)
        - weighted_r2(target, pred_b, weights=weights, valid=valid),
        "low90": low90,
        "high90": high90,
        "low95": low95,
        "high95": high95,
        "share_positive": float((difference > 0).mean()),
        "draws": len(difference),
        "groups": int(count),
    }
