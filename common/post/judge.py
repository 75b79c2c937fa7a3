"""Prediction sets against the truth: the blend, what it honestly scores, and whether it beats its best member."""

import numpy as np
import pandas as pd

from common.metrics.regression import score_by, target_table, weighted_r2
from common.outputs.predictions import align
from common.post.blend import combine, fit_blend
from common.post.honest import bootstrap_difference, honest_blend, honest_post, nested_post
from common.post.physics import apply_post, fit_post


def judge(rows: pd.DataFrame, sets: dict[str, pd.DataFrame], *, outputs, weights, kind: str, seed: int, physics: dict):
    """Everything an ensemble's report and log need, from out-of-fold sets of the same ids.

    rows: `id`, `group` (left out one at a time), outputs in grams; may have more rows than the sets. physics: the
    arguments of apply_post. Returns ids, rows (of these ids), scores (fitted, honest), members ({name: score}), best
    (name of the best member), blend (JSON, with its `post`), frames before, final and honest, gains per set and
    reconciliation, interval (None with one set).
    """
    ids, preds = align(sets, outputs)
    rows = rows.set_index(rows["id"].astype(str)).loc[ids].reset_index(drop=True)
    target, groups = rows[list(outputs)].to_numpy(np.float64), rows["group"].to_numpy(str)
    valid = np.isfinite(target)
    target = np.where(valid, target, 0.0)
    known = {"weights": weights, "valid": valid}
    scores = {name: weighted_r2(target, pred, **known) for name, pred in zip(sets, preds, strict=True)}
    best = max(scores, key=scores.get)
    honest = honest_blend(preds, target, groups, kind, seed, **known, **physics)
    blend = fit_blend(preds, target, groups, kind, seed, members=list(sets), **known)
    before = combine(preds, np.asarray(blend["weights"]))
    dead = {name: physics[name] for name in ("dead", "always_correct_dead")}
    blend["post"] = fit_post(target, before, valid=valid, **dead)
    blend |= {"fitted": honest["fitted"], "honest": honest["honest"]}
    interval = None
    if len(sets) > 1:
        single = nested_post(target, preds[list(sets).index(best)], groups, valid=valid, **physics)
        interval = bootstrap_difference(target, honest["honest_pred"], single, groups, **known) | {"against": best}
    gains = [
        {"set": name, **gain_row(honest_post(target, pred, groups, **known, **dead))}
        for name, pred in zip(sets, preds, strict=True)
    ]
    return {
        "ids": ids,
        "rows": rows,
        "scores": {"fitted": honest["fitted"], "honest": honest["honest"]},
        "members": scores,
        "best": best,
        "blend": blend,
        "before": frame_of(ids, before, outputs),
        "final": frame_of(ids, apply_post(before, blend["post"], **physics), outputs),
        "honest": frame_of(ids, honest["honest_pred"], outputs),
        "gains": pd.DataFrame(gains),
        "interval": interval,
        "tables": score_tables(rows, honest["honest_pred"], target, valid, outputs, weights),
    }


def gain_row(answer: dict) -> dict:
    """Nested (honest) gain of each reconciliation over none."""
    return {"none": answer["reconcile"]["none"]["nested"]} | {
        kind: scores["nested_gain"] for kind, scores in answer["reconcile"].items() if kind != "none"
    }


def frame_of(ids, values, outputs) -> pd.DataFrame:
    return pd.DataFrame(values, columns=list(outputs)).assign(id=list(ids))[["id", *outputs]]


def score_tables(rows, pred, target, valid, outputs, weights, columns=("state", "group")) -> dict[str, pd.DataFrame]:
    """Per target and, where the rows have the column, per state and per group."""
    tables = {"target": target_table(target, pred, outputs, valid=valid)}
    for column in columns:
        if column in rows:
            tables[column] = score_by(target, pred, rows[column].to_numpy(str), weights=weights, valid=valid)
    return tables


def compare(rows: pd.DataFrame, sets: dict[str, pd.DataFrame], *, outputs, weights) -> pd.DataFrame:
    """Sets side by side, a line each: score, R2 per target, and the difference to the first with its 95 % interval
    (paired bootstrap over the groups of the rows)."""
    ids, preds = align(sets, outputs)
    rows = rows.set_index(rows["id"].astype(str)).loc[ids].reset_index(drop=True)
    target, groups = rows[list(outputs)].to_numpy(np.float64), rows["group"].to_numpy(str)
    valid = np.isfinite(target)
    target = np.where(valid, target, 0.0)
    lines = []
    for name, pred in zip(sets, preds, strict=True):
        line = {"set": name, "score": weighted_r2(target, pred, weights=weights, valid=valid)}
        line |= dict(zip(outputs, target_table(target, pred, outputs, valid=valid)["r2"], strict=True))
        if lines:
            answer = bootstrap_difference(target, pred, preds[0], groups, weights=weights, valid=valid)
            line |= {"against first": answer["difference"], "low95": answer["low95"], "high95": answer["high95"]}
        lines.append(line)
    return pd.DataFrame(lines)
