"""Sets of maps of a rare class against the truth: the blend, what it honestly scores, thresholds per ratio, final test.

Honest is what was fitted (temperature, thresholds, weights) without the region that it is scored on; where there is one
region only, its tiles are halved instead, and `split` says so.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from common.metrics.objects import OBJECT_IOU
from common.metrics.segmentation import count_row
from common.post.blend import FORMAT
from common.post.calibration import calibration_table, reliability
from common.post.detection_fit import Aim, balanced_iou, cut_of, fit_all, post_of, with_blobs
from common.post.detection_maps import Cut, Maps, Plan, count_maps, cut_mask, histograms, mix_logits, open_maps
from common.post.detection_tables import (
    gate_scores,
    negatives_table,
    object_table,
    pixel_table,
    sample_masks,
    threshold_table,
)
from common.post.prevalence import at_ratio, pixel_scores

BLEND = "blend of all"  # beside the names of the members
RAW = Cut(0.5)


def score_cuts(post: Mapping) -> dict[str, Cut]:
    """Cuts of the score: none (probability .5), threshold (balanced) and both (small blobs dropped as well)."""
    return {"none": RAW, "threshold": cut_of(post, ratio=1, min_blob=0), "both": cut_of(post, ratio=1)}


def ratio_cuts(post: Mapping, aim: Aim) -> dict:
    """Cuts of the tables: "raw" (.5), and of every ratio the calibrated threshold (ratio) and the limit of blobs
    ("blobs", ratio); small blobs dropped in all."""
    ratios = sorted({*aim.ratios, aim.main})
    pixels = {"raw": Cut(0.5, 1.0, aim.min_blob)} | {ratio: cut_of(post, ratio=ratio) for ratio in ratios}
    return pixels | {("blobs", ratio): cut_of(post, ratio=ratio, by="blobs") for ratio in ratios}


def plans_of(maps: Maps, fits: Mapping, aim: Aim, samples: Mapping) -> dict[str, Plan]:
    """What is counted: every member and the blend with what was fitted without each tile's part, and "fitted"."""
    count, plans = len(maps.part), {}
    for index, name in enumerate(maps.frames):
        alone = np.tile(np.eye(len(maps.frames))[index], (count, 1))
        plans[name] = Plan(alone, [score_cuts(fits["single"][name][part]) for part in maps.part])
    nested = [fits["nested"][part] for part in maps.part]
    cuts = [score_cuts(one["post"]) | ratio_cuts(one["post"], aim) for one in nested]
    matched = tuple(ratio_cuts(fits["post"], aim))
    plans[BLEND] = Plan(np.array([one["weights"] for one in nested]), cuts, matched, samples)
    plans["fitted"] = Plan(np.tile(fits["weights"], (count, 1)), [{"both": cut_of(fits["post"], ratio=1)}] * count)
    return plans


def judge(
    rows: pd.DataFrame,
    sets: Mapping[str, pd.DataFrame],
    *,
    read_map: Callable,
    kind: str = "mean",
    seed: int = 42,
    ratios: Sequence[float] = (200, 500, 1000),
    main_ratio: float = 200,
    target_precision: float = 0.8,
    min_blob: int = 0,
    object_iou: Sequence[float] = OBJECT_IOU,
) -> dict:
    """Everything an ensemble's report and log need, from out-of-fold sets of the same tiles.

    rows: `id`, `group` (regions, left out in turn); sets: {name: id, [fold], nodata, n_<t>_<p>, prob (path)};
    read_map(path) -> (logit float32 (H,W), valid bool (H,W), target uint8 (H,W), 1 the class). Scores are the balanced
    IoU (`balanced_iou`), honest ones with all that is fitted fitted without the tile's part.

    Returns ids, rows (of these ids), split (what a part is), scores (fitted, honest), members ({name: honest score}),
    best (name of the best), blend (JSON with its `post`), final and honest (id, [fold], nodata, counts at the balanced
    threshold), read_pred (row -> honest mask), nested (per tile {"weights", "post"}), gains, interval (None with one
    set), tables (pixel, object, thresholds, calibration, negatives: honest), tiles, hist (int64 (2, 2, bins), honest),
    reliability ({"before", "after"}), metrics (for gates).
    """
    aim = Aim(tuple(ratios), main_ratio, target_precision, min_blob)
    ids, rows, maps, split = open_maps(rows, sets, read_map)
    fits = fit_all(maps, kind, seed, aim)
    samples, said = sample_masks(maps.positive, sorted({1, *aim.ratios, aim.main}), seed)
    counted = count_maps(maps, plans_of(maps, fits, aim, samples), object_iou=object_iou)
    honest, fitted = counted[BLEND]["counts"], counted["fitted"]["counts"]["both"]
    members = {name: balanced_iou(counted[name]["counts"]["both"], maps.positive) for name in maps.frames}
    best = max(members, key=lambda name: np.nan_to_num(members[name], nan=-1.0))
    scores = {"fitted": balanced_iou(fitted, maps.positive), "honest": balanced_iou(honest["both"], maps.positive)}
    interval = None
    if len(sets) > 1:
        single = counted[best]["counts"]["both"]
        interval = bootstrap_difference(honest["both"], single, maps.positive, interval_units(rows)) | {"against": best}
    tables = honest_tables(rows, maps, fits, counted[BLEND], aim, samples, said)
    nested = [fits["nested"][part] for part in maps.part]
    pooled, each = calibration_stack(maps, fits, aim)
    return {
        "ids": ids,
        "rows": rows,
        "split": split,
        "scores": scores,
        "members": members,
        "best": best,
        "blend": blend_of(maps, fits, members, kind, seed) | scores,
        "nested": nested,
        "final": frame_of(maps.frames[best], fitted),
        "honest": frame_of(maps.frames[best], honest["both"]),
        "read_pred": pred_reader(ids, maps, nested),
        "gains": gain_table(counted, list(maps.frames), maps.positive),
        "interval": interval,
        "tables": tables,
        "tiles": tile_table(rows, honest["both"], maps.positive),
        "hist": fits["honest_hist"].sum(0),
        "reliability": dict(zip(("before", "after"), (reliability(pooled), reliability(pooled, each)), strict=True)),
        "metrics": gate_scores(tables, scores["honest"]),
    }


def fit_post(
    rows: pd.DataFrame,
    frame: pd.DataFrame,
    *,
    read_map: Callable,
    ratios: Sequence[float] = (200, 500, 1000),
    main_ratio: float = 200,
    target_precision: float = 0.8,
    min_blob: int = 0,
) -> dict:
    """post.json of one out-of-fold set (`post_of`, `with_blobs`), fitted on all its tiles; arguments as `judge`."""
    aim = Aim(tuple(ratios), main_ratio, target_precision, min_blob)
    maps = open_maps(rows, {"set": frame}, read_map)[2]
    hist = histograms(maps, np.eye(1))[0].sum(0)
    return with_blobs(maps, [(np.ones(1), post_of(hist, maps.tiles(), aim), None)], aim)[0]


def final_report(
    rows: pd.DataFrame,
    frame: pd.DataFrame,
    post: Mapping,
    *,
    read_map: Callable,
    ratio: float = 500,
    seed: int = 42,
    object_iou: Sequence[float] = OBJECT_IOU,
) -> dict:
    """What a test set scores at 1:ratio with post.json as it is; nothing is fitted.

    rows: `id`, `group`; frame: id, n_<t>_<p>, prob of labelled tiles. Returns score (balanced IoU at post.json's
    balanced threshold), tables (pixel, object, calibration, negatives), metrics (for gates). InputError where post.json
    has no threshold for the ratio.
    """
    cuts = {"raw": Cut(0.5, 1.0, post["min_blob"]), "both": cut_of(post, ratio=1), ratio: cut_of(post, ratio=ratio)}
    if "blob" in post:  # what was fitted before there were limits of blobs has none
        cuts["blobs", ratio] = cut_of(post, ratio=ratio, by="blobs")
    maps = open_maps(rows, {"set": frame}, read_map)[2]
    count = len(maps.part)
    samples, said = sample_masks(maps.positive, (1, ratio), seed)
    plan = Plan(np.ones((count, 1)), [cuts] * count, [name for name in cuts if name != "both"], samples)
    counted = count_maps(maps, {"set": plan}, object_iou=object_iou)["set"]
    hist = histograms(maps, np.eye(1))[0].sum(0)
    positives, negatives = maps.tiles()
    known, temperature = at_ratio(hist, ratio, positives=positives, negatives=negatives), post["temperature"]
    tables = {
        "pixel": pixel_table(hist, counted, samples, maps.positive, (ratio,)),
        "object": object_table(counted["matches"], maps.positive, (ratio,)),
        "calibration": calibration_table({"all": (known, temperature)}),
        "negatives": negatives_table(maps.positive, said),
    }
    score = balanced_iou(counted["counts"]["both"], maps.positive)
    return {"score": score, "tables": tables, "metrics": gate_scores(tables, score)}


def honest_tables(rows, maps: Maps, fits: Mapping, counted: Mapping, aim: Aim, samples: Mapping, said: Mapping):
    """{name: DataFrame} of the blend, each tile judged with what was fitted without its part."""
    hist, ratios = fits["honest_hist"], sorted({*aim.ratios, aim.main})
    posts = [one["post"] for one in fits["nested"]]
    pooled, temperature = calibration_stack(maps, fits, aim)
    each = zip(calibration_stack(maps, fits, aim, own=True)[0], temperature, strict=True)
    left_out = dict(zip(part_names(rows, maps), each, strict=True))
    return {
        "pixel": pixel_table(hist.sum(0), counted, samples, maps.positive, ratios),
        "object": object_table(counted["matches"], maps.positive, ratios),
        "thresholds": threshold_table(fits["post"], posts, counted, maps.positive),
        "calibration": calibration_table(left_out | {"all": (pooled, temperature)}),
        "negatives": negatives_table(maps.positive, said),
    }


def part_names(rows: pd.DataFrame, maps: Maps) -> list[str]:
    """What each part is called: its regions, or which half it is of one region."""
    names = [sorted(set(rows["group"].astype(str)[maps.part == part])) for part in range(maps.part.max() + 1)]
    halves = len({tuple(one) for one in names}) < len(names)
    return [f"half {part + 1}" if halves else " ".join(one) for part, one in enumerate(names)]


def calibration_stack(maps: Maps, fits: Mapping, aim: Aim, *, own: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """((P, 2, bins) honest histograms, (P,) temperatures fitted without each part).

    All of them together are at the main ratio; own: each by itself, all 0 where it lacks tiles of one kind.
    """
    weighted = []
    for part, one in enumerate(fits["honest_hist"]):
        positives, negatives = maps.tiles(part if own else None)
        known = at_ratio(one, aim.main, positives=positives, negatives=negatives)
        weighted.append(known if not own or (positives and negatives) else np.zeros_like(known))
    return np.stack(weighted), np.array([one["post"]["temperature"] for one in fits["nested"]])


def blend_of(maps: Maps, fits: Mapping, scores: Mapping[str, float], kind: str, seed: int) -> dict:
    """The blend as plain JSON, as common.post.mask_blend.fit_blend writes it."""
    members = list(maps.frames)
    lost = [index for index in range(len(members)) if not fits["sound"][index] and fits["weights"][index] == 0]
    return {
        "format": FORMAT,
        "kind": kind,
        "members": members,
        "weights": [float(weight) for weight in fits["weights"]],
        "dropped": {members[index]: scores[members[index]] for index in lost},
        "post": fits["post"],
        "tiles": len(maps.part),
        "parts": int(maps.part.max()) + 1,
        "seed": int(seed),
    }


def frame_of(frame: pd.DataFrame, counts: np.ndarray) -> pd.DataFrame:
    """The counts (n, 2, 2) as a set without maps: id, [fold], nodata, n_<t>_<p>."""
    kept = frame[[name for name in ("id", "fold") if name in frame]]
    lines = [count_row(one, none) for one, none in zip(counts, frame["nodata"], strict=True)]
    return pd.concat([kept, pd.DataFrame(lines)], axis=1)


def pred_reader(ids: Sequence[str], maps: Maps, nested: Sequence[Mapping]) -> Callable:
    """read_pred(row) -> uint8 (H,W): the honest mask of a tile at the balanced threshold, made again from the maps."""
    order = {one: index for index, one in enumerate(ids)}

    def read_pred(row) -> np.ndarray:
        index = order[str(row["id"])]
        logits, valid, _ = maps.read(index)
        cut = cut_of(nested[index]["post"], ratio=1)
        return cut_mask(mix_logits(logits, nested[index]["weights"]), valid, cut).astype(np.uint8)

    return read_pred


def gain_table(counted: Mapping, members: Sequence[str], positive: np.ndarray) -> pd.DataFrame:
    """A line per set, and for a blend of several: balanced IoU at probability .5 and what the threshold, and dropping
    small blobs as well, add (honest)."""
    lines = []
    for name in (*members, *([BLEND] if len(members) > 1 else [])):
        scores = {cut: balanced_iou(counted[name]["counts"][cut], positive) for cut in ("none", "threshold", "both")}
        lines.append({"set": name} | scores | {cut: scores[cut] - scores["none"] for cut in ("threshold", "both")})
    return pd.DataFrame(lines)


def tile_table(rows: pd.DataFrame, counts: np.ndarray, positive: np.ndarray) -> pd.DataFrame:
    """A line per tile: id, group, positive, iou (nan where nothing is there), false and missed pixels."""
    scores = [pixel_scores(one[1, 1], one[0, 1], one[1, 0])["iou"] for one in counts]
    table = {"id": rows["id"].astype(str), "group": rows["group"].astype(str), "positive": positive, "iou": scores}
    return pd.DataFrame(table | {"false": counts[:, 0, 1], "missed": counts[:, 1, 0]})


def interval_units(rows: pd.DataFrame) -> np.ndarray:
    """(n,) what the bootstrap draws: regions, or tiles where there is one region only."""
    groups = rows["group"].astype(str).to_numpy()
    return groups if len(set(groups)) > 1 else rows["id"].astype(str).to_numpy()


def bootstrap_difference(counts_a, counts_b, positive, groups, *, draws: int = 2000, seed: int = 0) -> dict:
    """Balanced IoU of a minus that of b, with its paired bootstrap over groups drawn with replacement.

    counts_a, counts_b: (n, 2, 2) of tiles; positive, groups: (n,). Negatives weigh in each draw what its own tiles ask
    for; draws without a tile of the class are left out. Keys as common.post.honest.bootstrap_difference.
    """
    names, code = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    tiles = np.stack([np.bincount(code, side, len(names)) for side in (positive, ~positive)])
    count, others = (drawn @ tiles.T).T
    weight = np.where(others > 0, count / np.maximum(others, 1), 0)
    scores = []
    for counts in (counts_a, counts_b):
        hit, false, missed = counts[:, 1, 1], counts[:, 0, 1], counts[:, 1, 0]
        sums = [np.bincount(code, one, len(names)) for one in (hit, false * positive, false * ~positive, missed)]
        hit, near, far, missed = (drawn @ one for one in sums)
        scores.append(hit / np.maximum(hit + near + weight * far + missed, 1))
    difference = (scores[0] - scores[1])[count > 0]
    low95, low90, high90, high95 = np.percentile(difference, [2.5, 5, 95, 97.5]).tolist()
    bounds = {"low90": low90, "high90": high90, "low95": low95, "high95": high95}
    answer = {"difference": balanced_iou(counts_a, positive) - balanced_iou(counts_b, positive), **bounds}
    return answer | {"share_positive": float((difference > 0).mean()), "draws": len(difference), "groups": len(names)}
