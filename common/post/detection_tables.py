"""Tables of what maps of a rare class score at a ratio of tiles without it to tiles with it.

At 1:r the tiles without the class weigh r * P / N; beside it stands, where the tiles suffice, a seeded sub-sample.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from common.metrics.curves import average_precision, precision_at_recall, recall_at_precision
from common.metrics.objects import Matches, object_curve, object_scores
from common.post.detection_fit import BLOB_IOU, key_of, ratio_counts
from common.post.prevalence import at_ratio, negative_weight, pixel_scores, subsample, tile_weights

RECALLS, PRECISIONS = (0.5, 0.7, 0.9), (0.5, 0.8, 0.9)


def sample_masks(positive: np.ndarray, ratios: Sequence[float], seed: int) -> tuple[dict, dict]:
    """({ratio: bool (n,)} of the sub-samples that there are, {ratio: a line that says what is in it or why not})."""
    masks, said = {}, {}
    for ratio in ratios:
        index, said[ratio] = subsample(positive, ratio, seed)
        if index is not None:
            masks[ratio] = np.isin(np.arange(len(positive)), index)
    return masks, said


def curve_scores(hist) -> dict[str, float]:
    """ap, precision at fixed recalls (p@r.5 …) and recall at fixed precisions (r@p.5 …) of a histogram (2, bins)."""
    if not np.sum(hist[1]) > 0:
        return {"ap": float("nan")}
    scores = {"ap": average_precision(hist)}
    scores |= {f"p@r{recall:g}".replace("0.", "."): precision_at_recall(hist, recall) for recall in RECALLS}
    return scores | {f"r@p{level:g}".replace("0.", "."): recall_at_precision(hist, level) for level in PRECISIONS}


def pixel_table(hist, counted: Mapping, inside: Mapping, positive: np.ndarray, ratios: Sequence[float]):
    """A line (of a DataFrame) per ratio (1 first) and cut: iou … f0.5 of the masks, ap and the like of the maps.

    hist: (2, 2, bins); counted: {"counts": {"raw", "both" (the balanced threshold), ratio, ("blobs", ratio) where
    limits were fitted: (n, 2, 2)}, "samples": {ratio: (2, bins)}}; inside: {ratio: bool (n,)}, the tiles of the
    sub-samples. Without a tile that lacks the class nothing is said of ratios above 1.
    """
    known = {"positives": int(positive.sum()), "negatives": int((~positive).sum())}
    lines = []
    for ratio in (1, *ratios):
        if ratio != 1 and not known["negatives"]:
            continue
        curves = curve_scores(at_ratio(hist, ratio, **known))
        cuts = {"raw .5": "raw", "threshold": "both" if ratio == 1 else ratio, "blobs": ("blobs", ratio)}
        for name, cut in cuts.items():
            if cut not in counted["counts"]:
                continue
            scores = pixel_scores(*ratio_counts(counted["counts"][cut], positive, ratio))
            lines.append({"ratio": ratio, "set": "weighted", "at": name} | scores | curves)
        if ratio in counted["samples"]:
            total = counted["counts"]["both" if ratio == 1 else ratio][inside[ratio]].sum(0)
            scores = pixel_scores(total[1, 1], total[0, 1], total[1, 0])
            curves = curve_scores(counted["samples"][ratio])
            lines.append({"ratio": ratio, "set": "sub-sampled", "at": "threshold"} | scores | curves)
    return pd.DataFrame(lines)


def object_table(matches: Mapping, positive: np.ndarray, ratios: Sequence[float]) -> pd.DataFrame:
    """A line per ratio, cut and IoU limit: precision, recall, f1 and ap of the blobs, and how many there are
    (unweighted): predicted, true. Cuts: raw .5, the calibrated threshold, and blobs (the balanced threshold, without
    blobs under the limit).

    matches: {"raw", ratio or ("blobs", ratio), the last where limits were fitted: [n Matches]}.
    """
    lines = []
    for ratio in ratios if (~positive).any() else ():
        weights = tile_weights(positive, ratio)
        for name, cut in (("raw .5", "raw"), ("threshold", ratio), ("blobs", ("blobs", ratio))):
            if cut not in matches:
                continue
            found = matches[cut]
            sizes = {"predicted": sum(one.n_pred for one in found), "true": sum(one.n_target for one in found)}
            for limit, scores in object_scores(found, weights).items():
                line = {"ratio": ratio, "at": name, "iou": limit}
                line |= {key: scores[key] for key in ("precision", "recall", "f1")}
                lines.append(line | {"ap": object_curve(found, weights, limit).average_precision} | sizes)
    return pd.DataFrame(lines, columns=["ratio", "at", "iou", "precision", "recall", "f1", "ap", "predicted", "true"])


def threshold_table(post: Mapping, nested: Sequence[Mapping], counted: Mapping, positive) -> pd.DataFrame:
    """A line per ratio: the threshold of all tiles with what it is fitted to reach, and what is reached honestly; then
    the same of the limit of blobs (blob, object …; IoU BLOB_IOU), false blobs: kept in tiles without the class.

    nested: post.json fitted without each part; reachable_parts: in how many of them the precision is reached. counted:
    {"counts": {ratio: (n, 2, 2)}, "matches": {("blobs", ratio): [n Matches]}}, honest.
    """
    lines = []
    for key, line in post["ratios"].items():
        ratio = line["ratio"]
        each = [one["ratios"][key] for one in nested]
        scores = pixel_scores(*ratio_counts(counted["counts"][ratio], positive, ratio)) if (~positive).any() else {}
        low, high = (pick(one["threshold"] for one in each) for pick in (min, max))
        reached = sum(one["reachable"] for one in each)
        lines.append(
            {"ratio": ratio, "prevalence": line["prevalence"], "target": post["target_precision"]}
            | {name: line[name] for name in ("reachable", "threshold", "precision", "recall")}
            | {"honest precision": scores.get("precision"), "honest recall": scores.get("recall")}
            | {"lowest": low, "highest": high, "reachable_parts": f"{reached} of {len(each)}"}
            | blob_columns(line, counted["matches"]["blobs", ratio], positive)
        )
    return pd.DataFrame(lines)


def blob_columns(line: Mapping, matches: Sequence[Matches], positive: np.ndarray) -> dict:
    """The limit of blobs of a ratio (its line in post.json): what it is fitted to reach and what its matches reach."""
    weights, scores = tile_weights(positive, line["ratio"]), {}
    if (~positive).any():
        scores = object_scores(matches, weights).get(BLOB_IOU, {})
    fitted = {name.replace("_", " "): line[name] for name in ("object_reachable", "object_precision", "object_recall")}
    honest = {f"honest object {name}": scores.get(name) for name in ("precision", "recall")}
    false = sum(one.n_pred for one, inside in zip(matches, positive, strict=True) if not inside)
    return {"blob": line["blob"]} | fitted | honest | {"false blobs": false}


def negatives_table(positive: np.ndarray, said: Mapping[float, str]) -> pd.DataFrame:
    """What stands behind each ratio: tiles with and without the class, the weight of the latter, the sub-sample."""
    count, others = int(positive.sum()), int((~positive).sum())
    known = {"positives": count, "negatives": others}
    lines = [
        {"ratio": ratio, **known, "weight": negative_weight(count, others, ratio), "sub-sample": line}
        for ratio, line in said.items()
    ]
    return pd.DataFrame(lines)


def gate_scores(tables: Mapping[str, pd.DataFrame], score: float | None = None) -> dict[str, float]:
    """What gates may name: balanced_iou, and per ratio <measure>_<ratio> of pixels at the calibrated threshold,
    object_<measure>_<ratio> (IoU .3) of the blobs kept, at the threshold where no limits of blobs were fitted; nll, ece
    and ece_mass after calibration."""
    found = {} if score is None else {"balanced_iou": score}
    pixels = tables["pixel"]
    for line in pixels[(pixels["set"] == "weighted") & (pixels["at"] == "threshold")].to_dict("records"):
        found |= {f"{name}_{key_of(line['ratio'])}": line[name] for name in ("iou", "precision", "recall", "f1", "ap")}
    objects = tables["object"]
    clean = "blobs" if (objects["at"] == "blobs").any() else "threshold"
    for line in objects[(objects["at"] == clean) & (objects["iou"] == BLOB_IOU)].to_dict("records"):
        names = ("precision", "recall", "f1", "ap")
        found |= {f"object_{name}_{key_of(line['ratio'])}": line[name] for name in names}
    after = tables["calibration"].iloc[-1]
    return found | {name: float(after[f"{name}_after"]) for name in ("nll", "ece", "ece_mass")}
