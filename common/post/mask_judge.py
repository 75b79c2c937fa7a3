"""Sets of class probabilities against the truth: the blend, what it honestly scores, what post-processing gains.

The score is the MCC over ALL pixels of all tiles pooled, no-data pixels being background in truth and output.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from common.errors import InputError
from common.metrics.segmentation import class_table, confusion, count_row, counts_of, mcc, mean_iou
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
from common.post.morphology import finish_mask

PARTS = 10  # groups are left out in at most so many parts
BLEND = "blend of all"  # beside the names of the members
VARIANTS = ("none", "thresholds", "morphology", "both")


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


def count_tiles(rows, frames, fits: Mapping, *, read_target, classes: int, morphology: Mapping) -> dict:
    """Counts of every tile, read once: {"fitted" (n, K, K), "nodata" (n,), "sets": {name: {variant: (n, K, K)}}}.

    fits: of fit_all; the sets are the members and BLEND, each tile post-processed by what was fitted without it.
    """
    full = {"weights": fits["blend"]["weights"], **fits["blend"]["post"]}
    found = {name: {variant: [] for variant in VARIANTS} for name in (*frames, BLEND)}
    fitted, nodata = [], []
    for index, (_, row) in enumerate(rows.iterrows()):
        target, valid = read_target(row)
        probs = [member_prob(frame, index, target.shape, classes, name) for name, frame in frames.items()]
        mask = finish_mask(used_mix(probs, full["weights"]), valid, thresholds=full["thresholds"], **morphology)
        fitted.append(confusion(target, mask, valid, classes))
        nodata.append(np.count_nonzero(~valid))
        honest = used_mix(probs, fits["nested"][index]["weights"])
        jobs = {BLEND: (honest, fits["nested"][index]["thresholds"])}
        jobs |= {name: (prob, fits["single"][name][index]) for name, prob in zip(frames, probs, strict=True)}
        for name, (prob, thresholds) in jobs.items():
            for variant, counts in variant_counts(prob, target, valid, thresholds, morphology).items():
                found[name][variant].append(counts)
    stacked = {name: {variant: np.stack(c) for variant, c in one.items()} for name, one in found.items()}
    return {"fitted": np.stack(fitted), "nodata": np.array(nodata), "sets": stacked}


def pooled(counts: np.ndarray, nodata: np.ndarray) -> np.ndarray:
    """(K, K) counts over all pixels of all tiles, from (n, K, K) of valid pixels and (n,) no-data pixels."""
    total = counts.sum(0)
    total[0, 0] += nodata.sum()
    return total


def fit_all(sample: Sample, kind: str, part, *, members: Sequence[str], seed: int, thresholds) -> dict:
    """The blend of all tiles, and what was fitted without each tile's part: {"blend", "nested", "single"}.

    nested: per tile {"weights", "thresholds"} of the blend; single: {member: per tile its thresholds}.
    """
    parts = part.max() + 1
    refits = refit(sample, kind, parts, thresholds)
    single = {}
    for index, name in enumerate(members):
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
) -> dict:
    """Everything an ensemble's report and log need, from out-of-fold sets of the same tiles.

    rows: `id`, `group` (left out, in at most PARTS parts); sets: {name: id, fold, nodata, n_<t>_<p>, prob};
    read_target(row) -> (target uint8 (H,W), valid bool (H,W)); morphology: min_area, fill_holes and connectivity of
    clean_mask, empty for none; thresholds: True fits them, False is the argmax, or K numbers. Returns ids, rows (of
    these ids), scores (fitted, honest), members ({name: MCC of its argmax}), best (name of the best member), blend
    (JSON, with its `post`), final and honest (id, fold, nodata, counts after post-processing), read_pred (row -> honest
    mask), nested (per tile what was fitted without its part), gains (honest, per set and for a blend), interval (None
    with one set), tables and tiles.
    """
    ids, frames = align_sets(sets)
    rows, classes = rows_of(rows, ids), len(outputs)
    part = parts_of(rows["group"])
    members = {name: mcc(counts_of(frame, classes, nodata=True).sum(0)) for name, frame in frames.items()}
    sample = sample_sets(rows, frames, classes=classes, read_target=read_target, part=part, seed=seed)
    fits = fit_all(sample, kind, part, members=list(members), seed=seed, thresholds=thresholds)
    counted = count_tiles(rows, frames, fits, read_target=read_target, classes=classes, morphology=morphology)
    honest, fitted, nodata = counted["sets"][BLEND]["both"], counted["fitted"], counted["nodata"]
    scores = {"fitted": mcc(pooled(fitted, nodata)), "honest": mcc(pooled(honest, nodata))}
    fits["blend"]["post"] |= morphology
    best, interval = max(members, key=members.get), None
    if len(sets) > 1:
        single = counted["sets"][best]["both"]
        interval = bootstrap_difference(honest, single, nodata, rows["group"]) | {"against": best}
    return {
        "ids": ids,
        "rows": rows,
        "scores": scores,
        "members": members,
        "best": best,
        "blend": fits["blend"] | scores,
        "nested": fits["nested"],
        "final": frame_of(frames[best], fitted, nodata),
        "honest": frame_of(frames[best], honest, nodata),
        "read_pred": pred_reader(ids, frames, fits["nested"], read_target, morphology, classes),
        "gains": gain_table(counted["sets"], nodata),
        "interval": interval,
        "tables": score_tables(rows, honest, nodata, outputs),
        "tiles": tile_table(rows, honest, nodata),
    }


def pred_reader(ids, frames, nested, read_target, morphology, classes) -> Callable:
    """read_pred(row) -> uint8 (H,W): the honest mask of a tile, made again from the files of the sets."""
    order = {one: index for index, one in enumerate(ids)}

    def read_pred(row) -> np.ndarray:
        index = order[str(row["id"])]
        _, valid = read_target(row)
        probs = [member_prob(frame, index, valid.shape, classes, name) for name, frame in frames.items()]
        prob = used_mix(probs, nested[index]["weights"])
        return finish_mask(prob, valid, thresholds=nested[index]["thresholds"], **morphology)

    return read_pred


def fit_post(rows, frame, *, outputs, read_target, seed: int, morphology: Mapping, thresholds=True) -> dict:
    """What finish_mask is given for one out-of-fold set: {"thresholds": [K numbers], and the morphology}, plain types.

    Arguments as `judge`; frame: the set; rows: `id` and what read_target wants.
    """
    ids, frames = align_sets({"set": frame})
    rows = rows_of(rows, ids)
    whole = np.zeros(len(rows), int)
    sample = sample_sets(rows, frames, classes=len(outputs), read_target=read_target, part=whole, seed=seed)
    return {"thresholds": fitted_thresholds(sample, [1.0], thresholds), **morphology}


def compare(rows: pd.DataFrame, sets: Mapping[str, pd.DataFrame], *, outputs: Sequence[str]) -> pd.DataFrame:
    """Sets side by side, a line each, from their counts: score (MCC over all pixels), mean IoU, IoU per class, and the
    difference to the first with its 95 % interval (paired bootstrap over the groups of the rows)."""
    first = next(iter(sets))
    ids = sets[first]["id"].astype(str).tolist()
    groups = rows_of(rows, ids)["group"]
    tables = {name: rows_of(frame, ids) for name, frame in sets.items()}
    counts = {name: counts_of(table, len(outputs)) for name, table in tables.items()}
    nodata = tables[first]["nodata"].to_numpy(np.int64)
    lines = []
    for name in sets:
        total = pooled(counts[name], nodata)
        line = {"set": name, "score": mcc(total), "mean_iou": mean_iou(total)}
        line |= dict(zip(outputs, class_table(total, outputs)["iou"], strict=True))
        if name != first:
            answer = bootstrap_difference(counts[name], counts[first], nodata, groups)
            line |= {"against first": answer["difference"], "low95": answer["low95"], "high95": answer["high95"]}
        lines.append(line)
    return pd.DataFrame(lines)


def gain_table(counts: Mapping[str, Mapping], nodata: np.ndarray) -> pd.DataFrame:
    """A line per set: its MCC without post-processing and what thresholds, morphology and both add (honest).

    The blend has a line where it is made of more than one set.
    """
    lines = []
    shown = {name: variants for name, variants in counts.items() if name != BLEND or len(counts) > 2}
    for name, variants in shown.items():
        scores = {variant: mcc(pooled(variants[variant], nodata)) for variant in VARIANTS}
        lines.append({"set": name, "none": scores["none"]} | {v: scores[v] - scores["none"] for v in VARIANTS[1:]})
    return pd.DataFrame(lines)


def frame_of(frame: pd.DataFrame, counts: np.ndarray, nodata: np.ndarray) -> pd.DataFrame:
    """The counts (n, K, K) as a set without probabilities: id, [fold], nodata, n_<t>_<p>."""
    kept = frame[[name for name in ("id", "fold") if name in frame]]
    lines = [count_row(one, none) for one, none in zip(counts, nodata, strict=True)]
    return pd.concat([kept, pd.DataFrame(lines)], axis=1)


def score_tables(rows, counts, nodata, outputs, columns=("fold", "group"), most: int = 20) -> dict[str, pd.DataFrame]:
    """Over all and over valid pixels, per class (of all pixels), and per fold and group where they are few."""
    every, known = pooled(counts, nodata), counts.sum(0)
    both = [("all", every), ("valid", known)]
    lines = [{"pixels": n, "count": int(c.sum()), "mcc": mcc(c), "mean_iou": mean_iou(c)} for n, c in both]
    tables = {"pixels": pd.DataFrame(lines), "class": class_table(every, outputs)}
    for column in columns:
        values = rows[column].astype(str).to_numpy() if column in rows else np.zeros(0)
        names = sorted(set(values))
        if 1 < len(names) <= most:
            lines = [{column: name} | part_line(counts[values == name], nodata[values == name]) for name in names]
            tables[column] = pd.DataFrame(lines)
    return tables


def part_line(counts: np.ndarray, nodata: np.ndarray) -> dict:
    total = pooled(counts, nodata)
    return {"tiles": len(counts), "mcc": mcc(total), "mean_iou": mean_iou(total)}


def tile_table(rows, counts, nodata) -> pd.DataFrame:
    """A line per tile: id, group, valid (pixels), wrong (share of them), mcc over all its pixels, error_share."""
    total = counts.sum((1, 2))
    wrong = total - np.trace(counts, axis1=1, axis2=2)
    every = counts.copy()
    every[:, 0, 0] += nodata
    table = {"id": rows["id"].astype(str), "group": rows["group"].astype(str), "valid": total}
    table |= {"wrong": wrong / np.maximum(total, 1), "mcc": mcc(every), "error_share": wrong / max(wrong.sum(), 1)}
    return pd.DataFrame(table)


def bootstrap_difference(counts_a, counts_b, nodata, groups, *, draws: int = 2000, seed: int = 0) -> dict:
    """MCC of a minus MCC of b over all pixels, with its paired bootstrap over groups drawn with replacement.

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
        scores.append(mcc(np.tensordot(drawn, per_group, 1)))
        whole.append(mcc(per_group.sum(0)))
    difference = scores[0] - scores[1]
    low95, low90, high90, high95 = np.percentile(difference, [2.5, 5, 95, 97.5]).tolist()
    bounds = {"low90": low90, "high90": high90, "low95": low95, "high95": high95}
    share = float((difference > 0).mean())
    return (
        {"difference": whole[0] - whole[1]} | bounds | {"share_positive": share, "draws": draws, "groups": int(count)}
    )
