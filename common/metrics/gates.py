"""Gates: what a model must reach before it is handed in, and whether it does."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from common.errors import InputError
from common.metrics.segmentation import Metric, class_table, mcc, mean_iou, one_against_rest

SPARE = 0.02
MEASURES = ("iou", "precision", "recall", "f1", "mcc")  # of every class


def mask_scores(counts, outputs: Sequence[str]) -> dict[str, float]:
    """What gates may name, from counts (K, K): mcc, mean_iou, least_iou and <measure>_<class> of every class.

    Measures are iou, precision, recall, f1 and mcc; nan where a class is absent. least_iou is nan if any IoU is.
    """
    table = class_table(counts, outputs).set_index("class")
    scores = {"mcc": mcc(counts), "mean_iou": mean_iou(counts), "least_iou": float(table["iou"].min(skipna=False))}
    for measure in MEASURES:
        scores |= {f"{measure}_{name}": float(table.loc[name, measure]) for name in outputs}
    return scores


def check_gates(scores: Mapping[str, float], gates: Mapping[str, float]) -> pd.DataFrame:
    """A line per gate: gate, needed, reached, passed. A score that is nan passes nothing.

    InputError where a gate names no score, since a gate that is never looked at would pass in silence.
    """
    unknown = [name for name in gates if name not in scores]
    if unknown:
        raise InputError(f"--gates: no score {unknown[0]}; there are {', '.join(sorted(scores))}")
    lines = []
    for name, needed in gates.items():
        reached = float(scores[name])
        passed = not math.isnan(reached) and reached >= needed
        lines.append({"gate": name, "needed": float(needed), "reached": reached, "passed": passed})
    return pd.DataFrame(lines, columns=["gate", "needed", "reached", "passed"])


def meeting(gates: Mapping[str, float], metric: Metric, outputs: Sequence[str], *, spare: float = SPARE) -> Metric:
    """The metric, less ten times what counts fall short of the gates: thresholds fitted for it meet them if any do.

    Of the gates those that counts can tell have a say: the metric's key, precision_<class> and recall_<class>. spare:
    by how much they must be passed on the data that thresholds are fitted to, since elsewhere a little is lost.
    """

    def of(counts):
        score, parts = metric.of(counts), one_against_rest(np.asarray(counts, np.float64))
        hit, missed, false = parts[..., 1, 1], parts[..., 1, 0], parts[..., 0, 1]
        reached = {metric.key: score}
        for k, name in enumerate(outputs):
            reached[f"precision_{name}"] = hit[..., k] / np.maximum(hit[..., k] + false[..., k], 1)
            reached[f"recall_{name}"] = hit[..., k] / np.maximum(hit[..., k] + missed[..., k], 1)
        short = sum(np.maximum(needed + spare - reached[gate], 0) for gate, needed in gates.items() if gate in reached)
        return score - 10 * short

    return Metric(metric.key, f"{metric.name} within the gates", of, metric.nodata)


def say_gates(table: pd.DataFrame, level: str) -> list[str]:
    """A line for each gate of `check_gates`, PASS or FAIL, and the verdict."""
    width = max(map(len, table["gate"]))
    lines = [f"{'PASS' if passed else 'FAIL'}  {gate:{width}}  {reached:.4f}  (needed {needed:.2f})"
             for gate, needed, reached, passed in table.itertuples(index=False)]  # fmt: skip
    missed = int((~table["passed"]).sum())
    return [*lines, f"gates, {level}: {f'{missed} of {len(table)} not met' if missed else 'all met'}"]
