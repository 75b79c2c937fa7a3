"""Every score of a map of ordered classes: from counts of its masks and histograms of what ranks its pixels."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from common.metrics.ordinal import BINS, auroc, average_precision, cohens_kappa, spearman, value_histogram
from common.metrics.segmentation import Metric, class_table, mean_iou

KAPPA = Metric("kappa", "Cohen's kappa", cohens_kappa, nodata=False)
POWER = 0.25  # of a value before it is binned: sure maps crowd at 0, and of a rank only the order counts
OF_CLASS = ("iou", "f1", "precision", "recall")


def ranked_histogram(values, target, valid, *, classes: int, bins: int = BINS) -> np.ndarray:
    """(classes, bins) int64 as common.metrics.ordinal.value_histogram of values ** POWER, cut to 0 and 1."""
    spread = np.clip(np.asarray(values, np.float64), 0, 1) ** POWER
    return value_histogram(spread, target, valid, classes=classes, bins=bins)


def bin_values(bins: int = BINS) -> np.ndarray:
    """(bins,) the value in the middle of each bin of `ranked_histogram`."""
    return ((np.arange(bins) + 0.5) / bins) ** (1 / POWER)


def gate_names(outputs: Sequence[str]) -> list[str]:
    """kappa, precision of the second class, recall of the last and rho: what gates of ordered classes name."""
    return ["kappa", f"precision_{outputs[1]}", f"recall_{outputs[-1]}", "rho"]


def count_scores(counts, outputs: Sequence[str]) -> dict[str, float]:
    """kappa, linear_kappa, quadratic_kappa, mean_iou and <measure>_<class> of OF_CLASS from counts (K, K); nan where
    undefined."""
    scores = {"kappa": cohens_kappa(counts)}
    scores |= {f"{weights}_kappa": cohens_kappa(counts, weights=weights) for weights in ("linear", "quadratic")}
    scores["mean_iou"] = mean_iou(counts)
    table = class_table(counts, outputs).set_index("class")
    return scores | {f"{what}_{name}": float(table.loc[name, what]) for what in OF_CLASS for name in outputs}


def rank_scores(hist, prob_hists, outputs: Sequence[str]) -> dict[str, float]:
    """rho, auroc_<class> (that class or a higher one, by the susceptibility) and ap_<class> (it against all others, by
    its own probability); nan where undefined.

    hist: (K, bins) pixels by true class and susceptibility; prob_hists: (K, K, bins), [k] by the probability of class
    k, or None for no ap. Histograms of `ranked_histogram`.
    """
    scores = {"rho": spearman(hist)}
    scores |= {f"auroc_{name}": auroc(hist, at_least=k) for k, name in enumerate(outputs) if k}
    if prob_hists is not None:
        each = zip(prob_hists, enumerate(outputs), strict=True)
        scores |= {f"ap_{name}": average_precision(one, of_class=k) for one, (k, name) in each}
    return scores


def ordinal_table(scores: Mapping[str, float], pixels, outputs: Sequence[str]) -> pd.DataFrame:
    """measure, class ("" for all), value and chance (what ignorance scores) of count_scores and rank_scores.

    pixels: (K,) pixels of every true class.
    """
    share = np.asarray(pixels, np.float64) / max(np.sum(pixels), 1)
    lines = [(name, "", scores[name], 0.0) for name in ("kappa", "linear_kappa", "quadratic_kappa", "rho")]
    lines += [("auroc", name, scores[f"auroc_{name}"], 0.5) for name in outputs[1:]]
    lines += [("ap", name, scores[f"ap_{name}"], chance) for name, chance in zip(outputs, share, strict=True)]
    return pd.DataFrame(lines, columns=["measure", "class", "value", "chance"])
