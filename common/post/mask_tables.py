"""Tables of a judgement of class masks, from counts of tiles: gains of post-processing, parts, classes, tiles."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from common.metrics.segmentation import MCC, Metric, class_table, count_row, mean_iou

BLEND = "blend of all"  # beside the names of the members
VARIANTS = ("none", "thresholds", "morphology", "both")


def pooled(counts: np.ndarray, nodata: np.ndarray) -> np.ndarray:
    """(K, K) counts over all pixels of all tiles, from (n, K, K) of valid pixels and (n,) no-data pixels."""
    total = counts.sum(0)
    total[0, 0] += nodata.sum()
    return total


def gain_table(counts: Mapping[str, Mapping], nodata: np.ndarray, metric: Metric = MCC) -> pd.DataFrame:
    """A line per set: its score without post-processing and what thresholds, morphology and both add (honest).

    The blend has a line where it is made of more than one set.
    """
    lines = []
    shown = {name: variants for name, variants in counts.items() if name != BLEND or len(counts) > 2}
    for name, variants in shown.items():
        scores = {variant: metric.of(pooled(variants[variant], nodata)) for variant in VARIANTS}
        lines.append({"set": name, "none": scores["none"]} | {v: scores[v] - scores["none"] for v in VARIANTS[1:]})
    return pd.DataFrame(lines)


def frame_of(frame: pd.DataFrame, counts: np.ndarray, nodata: np.ndarray) -> pd.DataFrame:
    """The counts (n, K, K) as a set without probabilities: id, [fold], nodata, n_<t>_<p>."""
    kept = frame[[name for name in ("id", "fold") if name in frame]]
    lines = [count_row(one, none) for one, none in zip(counts, nodata, strict=True)]
    return pd.concat([kept, pd.DataFrame(lines)], axis=1)


def score_tables(rows, counts, nodata, outputs, metric=MCC, columns=("fold", "group"), most: int = 20) -> dict:
    """Over all and over valid pixels, per class (of all pixels), and per fold and group where they are few."""
    every, known = pooled(counts, nodata), counts.sum(0)
    both = [*([("all", every)] if metric.nodata else []), ("valid", known)]
    lines = [{"pixels": n, "count": int(c.sum()), metric.key: metric.of(c), "mean_iou": mean_iou(c)} for n, c in both]
    tables = {"pixels": pd.DataFrame(lines), "class": class_table(every, outputs)}
    for column in columns:
        values = rows[column].astype(str).to_numpy() if column in rows else np.zeros(0)
        names = sorted(set(values))
        if 1 < len(names) <= most:
            lines = [
                {column: name} | part_line(counts[values == name], nodata[values == name], metric) for name in names
            ]
            tables[column] = pd.DataFrame(lines)
    return tables


def part_line(counts: np.ndarray, nodata: np.ndarray, metric: Metric) -> dict:
    total = pooled(counts, nodata)
    return {"tiles": len(counts), metric.key: metric.of(total), "mean_iou": mean_iou(total)}


def tile_table(rows, counts, nodata, metric: Metric = MCC) -> pd.DataFrame:
    """A line per tile: id, group, valid (pixels), wrong (share of them), the score of its pixels, error_share."""
    total = counts.sum((1, 2))
    wrong = total - np.trace(counts, axis1=1, axis2=2)
    every = counts.copy()
    every[:, 0, 0] += nodata
    table = {"id": rows["id"].astype(str), "group": rows["group"].astype(str), "valid": total}
    table |= {
        "wrong": wrong / np.maximum(total, 1),
        metric.key: metric.of(every),
        "error_share": wrong / max(wrong.sum(), 1),
    }
    return pd.DataFrame(table)
