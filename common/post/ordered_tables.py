"""Tables of a judgement of ordered classes: calibration of the susceptibility, areas from a sample, thinned curves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from common.metrics.area_accuracy import olofsson
from common.metrics.ordered_scores import POWER, bin_values, ranked_histogram
from common.metrics.ordinal import BINS, RateCurve, rate_curve
from common.ordinal import susceptibility
from common.outputs.masks import read_beside
from common.post.mask_blend import Sample, member_prob
from common.post.susceptibility import WAYS, apply_isotonic, fit_isotonic, fit_temperature, tempered

DRAWN = 500  # pixels of every mapped class that the area sample holds
MOST_COLOURS = 10**9  # numpy draws without replacement from fewer; beyond, 500 with replacement are as good
PARTS = 15  # of equal width, of a reliability diagram
CURVE_POINTS = 400


def weighted_histogram(values, target, weight, classes: int) -> np.ndarray:
    """(classes, BINS) float64: as common.metrics.ordered_scores.ranked_histogram, each pixel with its weight; (n,)."""
    place = np.clip((np.asarray(values, np.float64) ** POWER * BINS).astype(np.int64), 0, BINS - 1)
    cell = np.asarray(target, np.int64) * BINS + place
    return np.bincount(cell, weight, classes * BINS).reshape(classes, BINS)


def order_of(prob: np.ndarray) -> np.ndarray:
    """(n,) susceptibility of probabilities (n, K)."""
    return np.clip(prob @ np.linspace(0, 1, prob.shape[1]), 0, 1)


def only_part(sample: Sample, part: int) -> Sample:
    """The pixels of one part."""
    keep = sample.part == part
    return replace(sample, prob=sample.prob[:, keep], target=sample.target[keep], weight=sample.weight[keep],
                   part=sample.part[keep])  # fmt: skip


def calibration_of(sample: Sample, weights) -> dict:
    """{"isotonic", "temperature"} of the blend with `weights` (m,), fitted on a sample of pixels."""
    prob = sample.blended(weights)
    hist = weighted_histogram(order_of(prob), sample.target, sample.weight, prob.shape[1])
    return {
        "isotonic": fit_isotonic(hist, bin_values()),
        "temperature": fit_temperature(prob, sample.target, sample.weight),
    }


def reliability_sums(hist: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(4, PARTS): weight, weight x value, weight x true place, weight x squared difference, by part of the value.

    hist: (K, bins) pixels by true class; values: (bins,) the susceptibility that each bin is given.
    """
    truth = np.linspace(0, 1, len(hist))
    weight = hist.sum(0)
    square = (hist * (truth[:, None] - values) ** 2).sum(0)
    part = np.minimum((values * PARTS).astype(np.int64), PARTS - 1)
    each = (weight, weight * values, truth @ hist, square)
    return np.stack([np.bincount(part, one, PARTS) for one in each])


def reliability_table(sums: np.ndarray) -> pd.DataFrame:
    """A line per part that holds anything: prob (mean susceptibility), share (mean true place), weight."""
    weight, said, true, _ = sums[:, sums[0] > 0]
    return pd.DataFrame({"prob": said / weight, "share": true / weight, "weight": weight})


def sums_scores(sums: np.ndarray) -> dict[str, float]:
    """ece (mean distance of said and true place, over the parts) and mse (mean squared distance of pixels)."""
    total = sums[0].sum()
    if not total > 0:
        return {"ece": float("nan"), "mse": float("nan")}
    return {"ece": float(np.abs(sums[1] - sums[2]).sum() / total), "mse": float(sums[3].sum() / total)}


def part_sums(hist: np.ndarray, sample: Sample, weights, post: Mapping) -> dict[str, np.ndarray]:
    """{way: reliability_sums} of one part with what was fitted without it.

    hist: (K, bins) of all its pixels; sample: its own, which the temperature is judged by, since it is no function of
    the susceptibility.
    """
    prob = tempered(sample.blended(weights), post["temperature"], axis=1)
    heated = weighted_histogram(order_of(prob), sample.target, sample.weight, len(hist))
    isotonic = apply_isotonic(bin_values(), post["isotonic"]).astype(np.float64)
    return {
        "raw": reliability_sums(hist, bin_values()),
        "isotonic": reliability_sums(hist, isotonic),
        "temperature": reliability_sums(heated, bin_values()),
    }


def calibration_judgement(hists, sample: Sample, weights: Sequence, names: Sequence[str]) -> tuple[pd.DataFrame, dict]:
    """(table, {way: reliability_table of all parts}), each part calibrated by what was fitted without it.

    hists: (P, K, bins) honest susceptibility; sample: pixels of all members; weights: P times those fitted without the
    part. The table has a line per part and one of all: left out, pixels, temperature, <score>_<way>.
    """
    lines, total = [], dict.fromkeys(WAYS, 0)
    for part, (hist, used) in enumerate(zip(hists, weights, strict=True)):
        fitted = calibration_of(sample.without(part), used)
        sums = part_sums(hist, only_part(sample, part), used, fitted)
        total = {way: total[way] + sums[way] for way in WAYS}
        lines.append(calibration_line(names[part], hist.sum(), fitted["temperature"], sums))
    mean = float(np.mean([line["temperature"] for line in lines]))
    table = pd.DataFrame([*lines, calibration_line("all", hists.sum(), mean, total)])
    return table, {way: reliability_table(total[way]) for way in WAYS}


def calibration_line(name: str, pixels: int, temperature: float, sums: Mapping[str, np.ndarray]) -> dict:
    scores = {way: sums_scores(sums[way]) for way in WAYS}
    line = {"left out": name, "pixels": int(pixels), "temperature": temperature}
    return line | {f"{score}_{way}": scores[way][score] for score in ("ece", "mse") for way in WAYS}


def area_table(counts: np.ndarray, outputs: Sequence[str], seed: int, *, mapped=None, drawn=DRAWN) -> pd.DataFrame:
    """What a survey of `drawn` pixels of every mapped class would tell of the map and of the classes' areas.

    counts: (K, K) [true, pred] of all labelled pixels, each once; mapped: (K,) pixels of each class of the whole map
    (None: the labelled ones). Drawn at random without replacement, so that the sample of a
    mapped class is a multivariate hypergeometric draw from its column; estimates by Olofsson et al. 2014. A line each:
    estimate (overall, users, producers, share), class, mapped (share of the map, for `share`), value, low95, high95,
    and all pixels, the same of every labelled pixel. The intervals take pixels for independent: neighbours resemble
    each other, so they are too narrow for another area.
    """
    counts = np.asarray(counts, np.int64)
    rng = np.random.default_rng(seed)
    mapped = counts.sum(0) if mapped is None else np.asarray(mapped, np.int64)
    sample = np.stack([draw(rng, column, drawn) for column in counts.T], 1)
    found, whole = olofsson(sample, mapped), olofsson(counts, mapped)
    lines = [area_line("overall", "", np.nan, found.overall, whole.overall, ())]
    for name in ("users", "producers", "share"):
        for k, output in enumerate(outputs):
            area = float(found.mapped[k]) if name == "share" else np.nan
            lines.append(area_line(name, output, area, getattr(found, name), getattr(whole, name), k))
    return pd.DataFrame(lines)


def draw(rng, column: np.ndarray, drawn: int) -> np.ndarray:
    """(K,) truths of `drawn` pixels of one mapped class, all where it has fewer."""
    if column.sum() <= drawn:
        return column
    if column.sum() >= MOST_COLOURS:
        return rng.multinomial(drawn, column / column.sum())
    return rng.multivariate_hypergeometric(column, drawn)


def area_line(name: str, output: str, mapped: float, found, whole, k) -> dict:
    line = {"estimate": name, "class": output, "mapped": mapped, "value": float(found.value[k])}
    return line | {"low95": float(found.low[k]), "high95": float(found.high[k]), "all pixels": float(whole.value[k])}


def rate_curves(hist, outputs: Sequence[str]) -> dict[str, RateCurve]:
    """{class: prediction rate of it and all higher ones by the susceptibility}, of CURVE_POINTS points at most."""
    return {name: thinned_curve(rate_curve(hist, at_least=k)) for k, name in enumerate(outputs) if k}


def set_histogram(frame: pd.DataFrame, classes: int) -> np.ndarray:
    """(classes, BINS) pixels of a set by the true class that lies beside its maps and their susceptibility."""
    hist = np.zeros((classes, BINS), np.int64)
    for index, path in enumerate(frame["prob"]):
        target, valid = read_beside(path, "target"), read_beside(path, "valid")
        prob = member_prob(frame, index, target.shape, classes, "the set")
        hist += ranked_histogram(susceptibility(prob, 0), target, valid, classes=classes)
    return hist


def rate_table(curves: Mapping[str, Mapping[str, RateCurve]]) -> pd.DataFrame:
    """class, and the area under each kind of its curves."""
    lines = [{"class": name, **{kind: one[name].auc for kind, one in curves.items()}}
             for name in next(iter(curves.values()))]  # fmt: skip
    return pd.DataFrame(lines)


def thinned_curve(curve: RateCurve, most: int = CURVE_POINTS) -> RateCurve:
    """The curve with at most `most` of its points, evenly along it, its ends kept; the area under it is the whole's."""
    if len(curve.area) <= most:
        return curve
    along = curve.area + np.nan_to_num(curve.found)
    chosen = np.unique(np.searchsorted(along, np.linspace(along[0], along[-1], most)).clip(0, len(along) - 1))
    return RateCurve(curve.area[chosen], curve.found[chosen], curve.auc)
