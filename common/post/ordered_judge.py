"""Sets of maps of ordered classes against the truth: kappa, ranking and calibration of the susceptibility, areas.

Honest is what was fitted (weights, thresholds, calibration) without the tile's part of the groups. Rho, AUROC, average
precision and the curves are of the honest blend BEFORE thresholds and CRF: the mean field is far too sure of itself,
and probabilities over thresholds are none, so that neither says how likely a class is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from common.errors import InputError
from common.metrics.ordered_scores import (
    KAPPA,
    bin_values,
    count_scores,
    gate_names,
    ordinal_table,
    rank_scores,
    ranked_histogram,
)
from common.metrics.ordinal import BINS
from common.metrics.segmentation import Metric, confusion, counts_of
from common.ordinal import susceptibility
from common.post import mask_judge
from common.post.mask_blend import (
    PIXELS,
    Sample,
    align_sets,
    fitted_thresholds,
    member_prob,
    sample_sets,
)
from common.post.mask_judge import against_first, parts_of, refit, rows_of, used_mix
from common.post.morphology import finish_mask
from common.post.ordered_tables import area_table, calibration_judgement, rate_curves, rate_table, set_histogram
from common.post.pixels_once import counts_once
from common.post.susceptibility import fit_isotonic, fit_temperature
from common.post.thresholds import sample_pixels

COMPARED = ("quadratic_kappa", "mean_iou")  # of a comparison, after what gates name
WITH_CRF = " + CRF"


@dataclass(frozen=True)
class Gathered:
    """What one reading of the maps leaves: honest (P, K, bins) susceptibility of the parts, full (K, bins) that of the
    blend of all tiles, probs (K, K, bins) honest probabilities, [k] of class k, and a sample of all members' pixels."""

    honest: np.ndarray
    full: np.ndarray
    probs: np.ndarray
    sample: Sample


def gather(rows, frames: Mapping, weights: Sequence, full: Sequence, *, read_target, classes: int, part, seed: int):
    """Gathered of sets in the order of `rows`. weights: per tile, those fitted without its part; full: of the blend."""
    parts, each = part.max() + 1, max(PIXELS // max(len(rows), 1), 20)
    honest, whole = np.zeros((parts, classes, BINS), np.int64), np.zeros((classes, BINS), np.int64)
    by_class = np.zeros((classes, classes, BINS), np.int64)
    prob, target, weight, whose = [], [], [], []
    for index, (_, row) in enumerate(rows.iterrows()):
        truth, valid = read_target(row)
        probs = [member_prob(frame, index, truth.shape, classes, name) for name, frame in frames.items()]
        mixed = used_mix(probs, weights[index])
        honest[part[index]] += ranked_histogram(susceptibility(mixed, 0), truth, valid, classes=classes)
        whole += ranked_histogram(susceptibility(used_mix(probs, full), 0), truth, valid, classes=classes)
        for k in range(classes):
            by_class[k] += ranked_histogram(mixed[k], truth, valid, classes=classes)
        taken, stands = sample_pixels(truth, valid, per_class=each, seed=(seed, index))
        prob.append(np.stack([one.reshape(classes, -1)[:, taken].T for one in probs]))
        target.append(truth.ravel()[taken].astype(np.int64))
        weight.append(stands)
        whose.append(np.full(len(taken), part[index]))
    joined = (np.concatenate(values) for values in (target, weight, whose))
    sample = Sample(np.concatenate(prob, axis=1), *joined, np.zeros(parts), KAPPA)
    return Gathered(honest, whole, by_class, sample)


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
    aim: Metric | None = None,
    refine: Callable | None = None,
    success: pd.DataFrame | None = None,
) -> dict:
    """What common.post.mask_judge.judge gives with Cohen's kappa as the score, and what ordered classes add.

    Arguments as there; outputs: names in rising order, the positive one second where there are two; success: a set of
    predictions of tiles by models that were trained on them, with their truth beside the maps, for curves["success
    rate"] beside the prediction rate and the areas under both in tables["rates"]. Added, all honest:
    metrics (kappa, linear_kappa, quadratic_kappa, mean_iou, <measure>_<class> of the masks; rho, auroc_<class> of it
    or a higher one, ap_<class>, ece_<way> of the susceptibility, before thresholds and CRF), hist (K, bins) of the
    susceptibility, refined (whether there was a refine), curves {"prediction rate": {class: RateCurve}}, reliability
    {way: table}, tables ordinal, area (`area_table` of every pixel once, however many tiles hold it) and susceptibility
    (calibrated by what was fitted without each part). The blend's post also has isotonic and temperature (`fit_post`),
    fitted on all tiles. Maps are read once more, those that overlap twice.
    """
    judgement = mask_judge.judge(rows, sets, outputs=outputs, read_target=read_target, kind=kind, seed=seed,
                                 morphology=morphology, thresholds=thresholds, metric=KAPPA, aim=aim,
                                 refine=refine)  # fmt: skip
    rows, frames = judgement["rows"], align_sets(sets)[1]
    part = parts_of(rows["group"])
    weights, full = [one["weights"] for one in judgement["nested"]], judgement["blend"]["weights"]
    found = gather(rows, frames, weights, full, read_target=read_target, classes=len(outputs), part=part, seed=seed)
    of_part = [weights[np.flatnonzero(part == p)[0]] for p in range(part.max() + 1)]
    calibration, reliability = calibration_judgement(found.honest, found.sample, of_part, part_names(rows, part))
    counts = counts_of(judgement["honest"], len(outputs)).sum(0)
    hist = found.honest.sum(0)
    metrics = count_scores(counts, outputs) | rank_scores(hist, found.probs, outputs)
    said = calibration.iloc[-1]
    metrics |= {name: float(said[name]) for name in calibration if name.startswith("ece_")}
    judgement["blend"]["post"] |= calibration_post(found, full)
    area = area_table(honest_once(judgement, read_target, len(outputs)), outputs, seed)
    tables = {"ordinal": ordinal_table(metrics, counts.sum(1), outputs), "area": area}
    judgement["tables"] |= tables | {"susceptibility": calibration}
    curves = {"prediction rate": rate_curves(hist, outputs)}
    if success is not None:
        curves["success rate"] = rate_curves(set_histogram(success, len(outputs)), outputs)
        judgement["tables"]["rates"] = rate_table(curves)
    found = {"metrics": metrics, "hist": hist, "curves": curves, "reliability": reliability}
    return judgement | found | {"refined": refine is not None}


def honest_once(judgement: Mapping, read_target: Callable, classes: int) -> np.ndarray:
    """(K, K) counts of the honest masks, of each pixel of a raster once where tiles overlap and rows know how."""
    rows = judgement["rows"]

    def recount(index: int, own: np.ndarray) -> np.ndarray:
        row = rows.iloc[index]
        target, valid = read_target(row)
        y, x = (np.arange(n) * m // n for n, m in zip(valid.shape, own.shape, strict=True))  # tiles of coarser pixels
        return confusion(target, judgement["read_pred"](row), valid & own[np.ix_(y, x)], classes)

    return counts_once(rows, counts_of(judgement["honest"], classes), recount)


def part_names(rows: pd.DataFrame, part: np.ndarray) -> list[str]:
    """What each part is called: its groups, of many the first and the last."""
    names = [sorted(set(rows["group"].astype(str)[part == p])) for p in range(part.max() + 1)]
    return [" ".join(one) if len(one) < 4 else f"{one[0]} to {one[-1]} ({len(one)})" for one in names]


def calibration_post(found: Gathered, weights: Sequence[float]) -> dict:
    """{"isotonic", "temperature"} of the blend with `weights`: the curve by every pixel, the temperature by some."""
    sample = found.sample
    temperature = fit_temperature(sample.blended(weights), sample.target, sample.weight)
    return {"isotonic": fit_isotonic(found.full, bin_values()), "temperature": temperature}


def fit_post(rows, frame: pd.DataFrame, *, outputs: Sequence[str], read_target: Callable, aims: Mapping | None = None):
    """post.json of one out-of-fold set, plain types: thresholds (K numbers, for kappa), isotonic {"x", "y"} and
    temperature (common/post/susceptibility.py), fitted on all its tiles; arguments as `judge`.

    aims: {name: Metric}; then there is "aims" too, {name: K numbers fitted for it}.
    """
    ids, frames = align_sets({"set": frame})
    rows, one = rows_of(rows, ids), [1.0]
    found = gather(rows, frames, [one] * len(rows), one, read_target=read_target, classes=len(outputs),
                   part=np.zeros(len(rows), int), seed=0)  # fmt: skip
    fitted = {name: fitted_thresholds(replace(found.sample, aim=aim), one, True) for name, aim in (aims or {}).items()}
    return {"thresholds": fitted_thresholds(found.sample, one, True), **calibration_post(found, one)} | (
        {"aims": fitted} if fitted else {}
    )


def compare(
    rows: pd.DataFrame,
    sets: Mapping[str, pd.DataFrame],
    *,
    outputs: Sequence[str],
    read_target: Callable,
    refine: Callable | None = None,
    thresholds: bool | Sequence[float] = False,
    aim: Metric | None = None,
    morphology: Mapping | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Sets side by side, a line each, `run`: first what gates name (`gate_names`), then quadratic kappa, mean IoU, IoU
    and F1 of every class, AUROC, and the difference of kappa to the first line with its 95 % interval (paired bootstrap
    over the `groups` of the rows).

    Masks are the argmax, by fitted thresholds (True) honest, or by the K numbers given, and cleaned as `morphology`
    says. A line has the scores that `judge` gives that set alone with this seed. With `refine` (of `judge`) each
    set has a second line, its masks refined; rho and AUROC are those before it, as in `judge`.
    """
    ids, frames = align_sets(sets)
    rows, classes = rows_of(rows, ids), len(outputs)
    chosen = compared_thresholds(rows, frames, classes, read_target, thresholds, aim, seed)
    counts, hists = count_sets(rows, frames, chosen, read_target=read_target, classes=classes, refine=refine,
                               morphology=morphology or {})  # fmt: skip
    nothing, first, lines = np.zeros(len(rows), np.int64), next(iter(counts.values())), []
    groups = rows["group"].nunique()
    for name, table in counts.items():
        scores = count_scores(table.sum(0), outputs)
        scores |= rank_scores(hists[name], None, outputs)
        names = [*gate_names(outputs), *COMPARED, *(f"{what}_{one}" for what in ("iou", "f1") for one in outputs)]
        line = {"run": name} | {key: scores[key] for key in [*names, *(f"auroc_{one}" for one in outputs[1:])]}
        if lines:
            line |= against_first(table, first, nothing, rows["group"], KAPPA)
            line |= {"groups": groups} if groups > 1 else {}
        lines.append(line)
    return pd.DataFrame(lines)


def compared_thresholds(rows, frames: Mapping, classes: int, read_target, wanted, aim, seed: int) -> dict[str, list]:
    """{set: per tile its K thresholds}: equal, given, or fitted without the tile's part."""
    if wanted is not True:
        given = [1 / classes] * classes if wanted is False else list(wanted)
        return {name: [given] * len(rows) for name in frames}
    if rows["group"].nunique() == 1:
        raise InputError("--compare: thresholds cannot be fitted without a group where there is one alone "
                         f"({rows['group'].iloc[0]}); say --thresholds argmax, or make more groups with make_folds.py"
                         )  # fmt: skip
    part = parts_of(rows["group"])
    sample = sample_sets(rows, frames, classes=classes, read_target=read_target, part=part, seed=seed, metric=KAPPA,
                         aim=aim)  # fmt: skip
    found = {}
    for index, name in enumerate(frames):
        fits = refit(sample.member(index), "mean", part.max() + 1, True)
        found[name] = [fits[p]["thresholds"] for p in part]
    return found


def count_sets(rows, frames: Mapping, chosen: Mapping, *, read_target, classes: int, refine, morphology) -> tuple:
    """({line of the comparison: (n, K, K) counts}, {the same: (K, bins) susceptibility}), each map read once."""
    counts, hists = {}, {name: np.zeros((classes, BINS), np.int64) for name in frames}
    suffixes = ("", WITH_CRF) if refine else ("",)
    for index, (_, row) in enumerate(rows.iterrows()):
        target, valid = read_target(row)
        refined = refine(row) if refine else None
        for name, frame in frames.items():
            prob = member_prob(frame, index, target.shape, classes, name)
            hists[name] += ranked_histogram(susceptibility(prob, 0), target, valid, classes=classes)
            for suffix in suffixes:
                mask = finish_mask(prob, valid, thresholds=chosen[name][index], refine=refined if suffix else None,
                                   **morphology)  # fmt: skip
                counts.setdefault(name + suffix, []).append(confusion(target, mask, valid, classes))
    hists = {name + suffix: hist for name, hist in hists.items() for suffix in suffixes}
    return {name: np.stack(tables) for name, tables in counts.items()}, hists
