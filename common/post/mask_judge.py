"""Sets of class probabilities against the truth: the blend, what it honestly scores, what post-processing gains.

The score is that of a Metric (common/metrics/segmentation.py), by default the MCC over ALL pixels of all tiles pooled,
no-data pixels being background in truth and output.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from common.errors import InputError
from common.metrics.segmentation import MCC, Metric, class_table, confusion, counts_of, mean_iou
from common.outputs.predictions import listed
from common.post.honest import group_codes
from common.post.mask_blend import (
    Sample,
    align_sets,
    fit_blend,
    fit_members,
    fitted_thresholds,
    member_prob,
    mix,
    sample_sets,
)
from common.post.mask_tables import BLEND, VARIANTS, frame_of, gain_table, pooled, score_tables, tile_table
from common.post.morphology import finish_mask

PARTS = 10  # groups are left out in at most so many parts


def parts_of(groups) -> np.ndarray:
    """(n,) int: the part in which each row is left out. Groups stay whole; neighbours by name share a part."""
    code = group_codes(groups)
    count = code.max() + 1
    return code * min(PARTS, count) // count


def rows_of(rows: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    """The rows of these ids in their order; InputError where one has no row."""
    table = rows.set_index(rows["id"].astype(str))
    missing = [one for one in ids if one not in table.index]
    if missing:
        raise InputError(f"the rows lack ids of the predictions: {listed(missing)}; give the data they belong to")
    return table.loc[list(ids)].reset_index(drop=True)


def refit(sample: Sample, kind: str, parts: int, thresholds) -> list[dict]:
    """For every part the {"weights", "thresholds"} fitted without it."""
    fits = []
    for part in range(parts):
        others = sample.without(part)
        weights = fit_members(others, kind)[0]
        fits.append({"weights": weights.tolist(), "thresholds": fitted_thresholds(others, weights, thresholds)})
    return fits


def variant_counts(prob, target, valid, thresholds, morphology: Mapping) -> dict[str, np.ndarray]:
    """{variant: (K, K) counts of valid pixels}: nothing, thresholds alone, morphology alone, both."""
    classes = len(prob)
    equal = [1 / classes] * classes
    settings = {
        "none": {"thresholds": equal},
        "thresholds": {"thresholds": thresholds},
        "morphology": {"thresholds": equal, **morphology},
        "both": {"thresholds": thresholds, **morphology},
    }
    return {name: confusion(target, finish_mask(prob, valid, **one), valid, classes) for name, one in settings.items()}


def used_mix(probs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The blend (K,H,W) of the members that have weight."""
    used = [(prob, weight) for prob, weight in zip(probs, weights, strict=True) if weight > 0]
    return mix(*zip(*used, strict=True))


def count_tiles(rows, frames, fits: Mapping, *, read_target, classes: int, morphology: Mapping, refine=None) -> dict:
    """Counts of every tile, read once: {"fitted" (n, K, K), "nodata" (n,), "sets": {name: {variant: (n, K, K)}}}.

    fits: of fit_all; the sets are the members and BLEND, each tile post-processed by what was fitted without it.
    refine: see judge; it is part of what VARIANTS call morphology.
    """
    full = {"weights": fits["blend"]["weights"], **fits["blend"]["post"]}
    found = {name: {variant: [] for variant in VARIANTS} for name in (*frames, BLEND)}
    fitted, nodata = [], []
    for index, (_, row) in enumerate(rows.iterrows()):
        target, valid = read_target(row)
        cleaning = cleaning_of(row, morphology, refine)
        probs = [member_prob(frame, index, target.shape, classes, name) for name, frame in frames.items()]
        mask = finish_mask(used_mix(probs, full["weights"]), valid, thresholds=full["thresholds"], **cleaning)
        fitted.append(confusion(target, mask, valid, classes))
        nodata.append(np.count_nonzero(~valid))
        honest = used_mix(probs, fits["nested"][index]["weights"])
        jobs = {BLEND: (honest, fits["nested"][index]["thresholds"])}
        if len(frames) > 1:
            jobs |= {name: (prob, fits["single"][name][index]) for name, prob in zip(frames, probs, strict=True)}
        for name, (prob, thresholds) in jobs.items():
            for variant, counts in variant_counts(prob, target, valid, thresholds, cleaning).items():
                found[name][variant].append(counts)
    if len(frames) == 1:  # a blend of one is that one
        found |= dict.fromkeys(frames, found[BLEND])
    stacked = {name: {variant: np.stack(c) for variant, c in one.items()} for name, one in found.items()}
    return {"fitted": np.stack(fitted), "nodata": np.array(nodata), "sets": stacked}


def cleaning_of(row, morphology: Mapping, refine: Callable | None) -> dict:
    """The options of finish_mask for a tile beside its thresholds."""
    return {**morphology, **({"refine": refine(row)} if refine else {})}


def fit_all(sample: Sample, kind: str, part, *, members: Sequence[str], seed: int, thresholds) -> dict:
    """The blend of all tiles, and what was fitted without each tile's part: {"blend", "nested", "single"}.

    nested: per tile {"weights", "thresholds"} of the blend; single: {member: per tile its thresholds}, empty where the
    one member is the blend.
    """
    parts = part.max() + 1
    refits = refit(sample, kind, parts, thresholds)
    single = {}
    for index, name in enumerate(members if len(members) > 1 else ()):
        alone = refit(sample.member(index), "mean", parts, thresholds)
        single[name] = [alone[p]["thresholds"] for p in part]
    blend = fit_blend(sample, kind, members=members, seed=seed, thresholds=thresholds)
    return {"blend": blend, "nested": [refits[p] for p in part], "single": single}


def judge(
    rows: pd.DataFrame,
    sets: Mapping[str, pd.DataFrame],
    *,
    outputs: Sequence[str],
    read_target: Callable,
    kind: str,
    seed: int,
    morphology: Mapping,
    thresholds: bool | Sequence[float] = True,
    metric: Metric = MCC,
    aim: Metric | None = None,
    refine: Callable | None = None,
) -> dict:
    """Everything an ensemble's report and log need, from out-of-fold sets of the same tiles.

    rows: `id`, `group` (left out, in at most PARTS parts); sets: {name: id, fold, nodata, n_<t>_<p>, prob};
    read_target(row) -> (target uint8 (H,W), valid bool (H,W)); morphology: min_area, fill_holes and connectivity of
    clean_mask, empty for none; thresholds: True fits them for the aim (None: the metric), False is the argmax, or K
    numbers; refine(row) -> what finish_mask takes by that name, None for nothing. Returns metric, ids, rows (of these
    ids), scores (fitted, honest), members ({name: score of its argmax}), best (name of the best member), blend (JSON,
    with its `post`), final and honest (id, fold, nodata, counts after post-processing), read_pred (row -> honest mask),
    nested (per tile what was fitted without its part), gains (honest, per set and for a blend), interval (None with one
    set), tables and tiles.
    """
    ids, frames = align_sets(sets)
    rows, classes = rows_of(rows, ids), len(outputs)
    part = parts_of(rows["group"])
    sample = sample_sets(rows, frames, classes=classes, read_target=read_target, part=part, seed=seed,
                         metric=metric, aim=aim)  # fmt: skip
    fits = fit_all(sample, kind, part, members=list(frames), seed=seed, thresholds=thresholds)
    counted = count_tiles(rows, frames, fits, read_target=read_target, classes=classes, morphology=morphology,
                          refine=refine)  # fmt: skip
    fits["blend"]["post"] |= morphology
    found = {"metric": metric, "ids": ids, "rows": rows, "nested": fits["nested"]}
    found["read_pred"] = pred_reader(ids, frames, fits["nested"], read_target, morphology, classes, refine)
    return found | judge_counts(rows, frames, counted, fits["blend"], outputs=outputs, metric=metric)


def judge_counts(rows, frames: Mapping, counted: Mapping, blend: dict, *, outputs, metric: Metric) -> dict:
    """What the counts of the tiles say, in the words of `judge`: scores, members, best, blend (with its scores), final,
    honest, gains, interval, tables and tiles."""
    honest, fitted, empty = counted["sets"][BLEND]["both"], counted["fitted"], counted["nodata"]
    nodata = empty if metric.nodata else np.zeros_like(empty)
    scores = {"fitted": metric.of(pooled(fitted, nodata)), "honest": metric.of(pooled(honest, nodata))}
    members = {
        name: metric.of(counts_of(frame, len(outputs), nodata=metric.nodata).sum(0)) for name, frame in frames.items()
    }
    best, interval = max(members, key=members.get), None
    if len(frames) > 1:
        single = counted["sets"][best]["both"]
        interval = bootstrap_difference(honest, single, nodata, rows["group"], metric=metric) | {"against": best}
    return {
        "scores": scores,
        "members": members,
        "best": best,
        "blend": blend | scores,
        "final": frame_of(frames[best], fitted, empty),
        "honest": frame_of(frames[best], honest, empty),
        "gains": gain_table(counted["sets"], nodata, metric),
        "interval": interval,
        "tables": score_tables(rows, honest, nodata, outputs, metric),
        "tiles": tile_table(rows, honest, nodata, metric),
    }


def pred_reader(ids, frames, nested, read_target, morphology, classes, refine=None) -> Callable:
    """read_pred(row) -> uint8 (H,W): the honest mask of a tile, made again from the files of the sets."""
    order = {one: index for index, one in enumerate(ids)}

    def read_pred(row) -> np.ndarray:
        index = order[str(row["id"])]
        _, valid = read_target(row)
        probs = [member_prob(frame, index, valid.shape, classes, name) for name, frame in frames.items()]
        prob = used_mix(probs, nested[index]["weights"])
        cleaning = cleaning_of(row, morphology, refine)
        return finish_mask(prob, valid, thresholds=nested[index]["thresholds"], **cleaning)

    return read_pred


def fit_post(rows, frame, *, outputs, read_target, seed: int, morphology: Mapping, thresholds=True, metric=MCC) -> dict:
    """What finish_mask is given for one out-of-fold set: {"thresholds": [K numbers], and the morphology}, plain types.

    Arguments as `judge`; frame: the set; rows: `id` and what read_target wants.
    """
    ids, frames = align_sets({"set": frame})
    rows = rows_of(rows, ids)
    whole = np.zeros(len(rows), int)
    sample = sample_sets(rows, frames, classes=len(outputs), read_target=read_target, part=whole, seed=seed,
                         metric=metric)  # fmt: skip
    return {"thresholds": fitted_thresholds(sample, [1.0], thresholds), **morphology}


def compare(rows: pd.DataFrame, sets: Mapping[str, pd.DataFrame], *, outputs, metric: Metric = MCC) -> pd.DataFrame:
    """Sets side by side, a line each, from their counts: score, mean IoU, IoU per class, and the
    difference to the first with its 95 % interval (paired bootstrap over the groups of the rows)."""
    first = next(iter(sets))
    ids = sets[first]["id"].astype(str).tolist()
    groups = rows_of(rows, ids)["group"]
    tables = {name: rows_of(frame, ids) for name, frame in sets.items()}
    counts = {name: counts_of(table, len(outputs)) for name, table in tables.items()}
    nodata = tables[first]["nodata"].to_numpy(np.int64) * metric.nodata
    lines = []
    for name in sets:
        total = pooled(counts[name], nodata)
        line = {"set": name, "score": metric.of(total), "mean_iou": mean_iou(total)}
        line |= dict(zip(outputs, class_table(total, outputs)["iou"], strict=True))
        if name != first:
            line |= against_first(counts[name], counts[first], nodata, groups, metric)
        lines.append(line)
    return pd.DataFrame(lines)


def against_first(counts, first, nodata, groups, metric: Metric) -> dict:
    """What a line of a comparison says of the first: the difference of the scores, and its interval of groups."""
    if len(set(groups)) == 1:
        return {"against first": metric.of(pooled(counts, nodata)) - metric.of(pooled(first, nodata))}
    answer = bootstrap_difference(counts, first, nodata, groups, metric=metric)
    return {"against first": answer["difference"], "low95": answer["low95"], "high95": answer["high95"]}


def bootstrap_difference(counts_a, counts_b, nodata, groups, *, draws: int = 2000, seed: int = 0, metric=MCC) -> dict:
    """Score of a minus score of b, with its paired bootstrap over groups drawn with replacement.

    counts_a, counts_b: (n, K, K) of the tiles; nodata, groups: (n,). Keys as common.post.honest.bootstrap_difference.
    """
    code, classes = group_codes(groups), counts_a.shape[1]
    count = code.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    scores, whole = [], []
    for counts in (counts_a, counts_b):
        per_group = np.zeros((count, classes, classes))
        np.add.at(per_group, code, counts)
        np.add.at(per_group[:, 0, 0], code, nodata)
        scores.append(metric.of(np.tensordot(drawn, per_group, 1)))
        whole.append(metric.of(per_group.sum(0)))
    difference = scores[0] - scores[1]
    low95, low90, high90, high95 = np.percentile(difference, [2.5, 5, 95, 97.5]).tolist()
    bounds = {"low90": low90, "high90": high90, "low95": low95, "high95": high95}
    share = float((difference > 0).mean())
    return (
        {"difference": whole[0] - whole[1]} | bounds | {"share_positive": share, "draws": draws, "groups": int(count)}
    )
