"""What ordered classes ask of a segmentation task: scores and gates, dense CRF, susceptibility, judgement and report.

Susceptibility is the mean class as a share of the highest (common/ordinal.py): of three classes .5 P1 + P2.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.band_tiles import bands_of
from common.datasets.crops import IGNORED
from common.datasets.folds import TEST, UNUSED
from common.datasets.tiles import Source
from common.errors import InputError
from common.metrics.gates import check_gates, meeting, say_gates
from common.metrics.ordered_scores import ranked_histogram
from common.metrics.ordinal import cohens_kappa, spearman
from common.metrics.pixel_baselines import constant_score, logistic_judgement
from common.metrics.segmentation import Metric, class_table, confusion, counts_of
from common.ordinal import susceptibility
from common.outputs.mask_sets import prob_paths
from common.outputs.masks import read_beside, read_probs
from common.outputs.segmentation_report import write_segmentation_report
from common.post import ordered_judge
from common.post.morphology import finish_mask
from common.post.ordered_judge import KAPPA
from common.tasks import crf_options
from common.tasks.crf_options import add_crf_options, crf_of, judged_with, refiner, row_refiner, training_bands
from common.tasks.segmentation_options import add_post_options
from common.tasks.segmentation_post import (
    MORPHOLOGY,
    as_judged,
    chosen_thresholds,
    morphology_of,
    target_reader,
    wanted_thresholds,
)
from common.tasks.success_rate import read_trained

FLAG = argparse.BooleanOptionalAction
# kappa, precision of the middle class, recall of the highest, Spearman's rho of class and susceptibility
NAMES = ("kappa", "precision_medium", "recall_high", "rho")
NEEDED = {
    "production": (0.38, 0.22, 0.92, 0.50),
    "v2.5": (0.48, 0.22, 0.93, 0.58),
    "v3": (0.50, 0.25, 0.93, 0.60),
}
GATES = {level: dict(zip(NAMES, needed, strict=True)) for level, needed in NEEDED.items()}
PUBLISHED = {
    "V1 (published)": dict(zip(NAMES, (0.3108, 0.1461, 0.9412, 0.4355), strict=True)),
    "V2 (published)": dict(zip(NAMES, (0.4534, 0.1785, 0.9386, 0.5666), strict=True)),
}


def score(rows: pd.DataFrame, frame: pd.DataFrame, *, outputs_of: Callable) -> dict:
    """{"score": Cohen's kappa over the valid pixels, "quadratic_kappa", "mean_iou", iou_<c>, f1_<c>, precision_<c>,
    recall_<c> of every class} from a set's counts; None where undefined."""
    outputs = outputs_of(frame)
    counts = counts_of(frame, len(outputs)).sum(axis=0)
    table = class_table(counts, outputs).set_index("class")
    scores = {"score": cohens_kappa(counts), "quadratic_kappa": cohens_kappa(counts, weights="quadratic")}
    scores["mean_iou"] = float(table["iou"].mean())
    for measure in ("iou", "f1", "precision", "recall"):
        scores |= {f"{measure}_{name}": float(table[measure][name]) for name in outputs}
    return {key: None if np.isnan(value) else value for key, value in scores.items()}


def say_epoch(record: dict) -> list[str]:
    """What is found of every class."""
    names, lines = [key.removeprefix("iou_") for key in record if key.startswith("iou_")], []
    for name in names:
        values = (record[f"{measure}_{name}"] for measure in ("iou", "f1", "precision", "recall"))
        said = ("-" if value is None else f"{value:.3f}" for value in values)
        lines.append(f"{name} " + " ".join(said))
    return [f"IoU F1 precision recall: {', '.join(lines)}"] if lines else []


def add_post(parser) -> None:
    """Options of infer.py and ensemble.py: how probabilities become classes."""
    add_post_options(parser, tuple(GATES))
    add_crf_options(parser)


def settled(settings: dict, post: dict | None) -> dict:
    """The settings in which CRF and morphology, where the call leaves them open, are as a blend was judged (its post),
    else the usual ones."""
    post = post or {}
    saved = post.get("crf", {})
    if settings["crf"] is False and saved:
        saved = {"crf": saved["crf"]}  # its numbers say nothing any more
    saved = {name: post[name] for name in MORPHOLOGY if name in post} | saved
    return as_judged(settings, saved, MORPHOLOGY | crf_options.USUAL)


def aims_of(outputs: tuple[str, ...]) -> dict[str, Metric]:
    """{level of GATES: what thresholds are fitted for}; two classes have no gates."""
    return {level: meeting(gates, KAPPA, outputs) for level, gates in GATES.items()} if len(outputs) > 2 else {}


def level_of(settings: dict) -> str | None:
    """The level of GATES that --thresholds names."""
    words = settings["thresholds"]
    return words[0] if len(words) == 1 and words[0] in GATES else None


def thresholds_wanted(settings: dict, outputs: tuple[str, ...]) -> dict:
    """What the judge takes as thresholds and aim."""
    if level := level_of(settings):
        return {"thresholds": True, "aim": aims_of(outputs).get(level)}
    return {"thresholds": wanted_thresholds(settings, len(outputs), tuple(GATES))}


def thresholds_of(settings: dict, post: dict | None, classes: int) -> list[float]:
    """The thresholds of a call, as chosen_thresholds or as fitted for a level of gates, which two classes do not have.

    InputError where post knows other levels alone.
    """
    if level := level_of(settings):
        settings = settings | {"thresholds": ["fitted"]}
        if post and classes > 2:
            if level not in post.get("aims", {}):
                known = ", ".join(post.get("aims", {})) or "none"
                raise InputError(f"--thresholds {level}: what was fitted knows the levels {known}; fit it again with "
                                 f"ensemble.py --thresholds {level}, or say --thresholds fitted")  # fmt: skip
            post = {"thresholds": post["aims"][level]}
    return chosen_thresholds(settings, post or None, classes, tuple(GATES))


def fit_post(rows, frame, settings: dict | None = None, *, source: Source, outputs_of: Callable) -> dict:
    """post.json: thresholds, calibration of the susceptibility, and the bands' statistics; nothing of counts alone."""
    if "prob" not in frame:
        return {}
    outputs = outputs_of(frame)
    read = target_reader({"set": frame})
    post = ordered_judge.fit_post(rows, frame, outputs=outputs, read_target=read, aims=aims_of(outputs))
    bands = training_bands(rows, source)
    return post | ({"bands": bands} if bands else {})


def apply_post(frame, post: dict | None, settings: dict, *, source, values: dict, list_tiles: Callable) -> pd.DataFrame:
    """The masks as they are handed in: columns "mask", uint8 (H,W) of classes, and "values", the raw value of each."""
    settings = settled(settings, post)
    masks, raw, of_tile = [], [], None
    if crf_of(settings):
        tiles = list_tiles(settings["data"], frame["id"])
        of_tile = refiner(dict(zip(tiles["id"], tiles["path"], strict=True)), post, settings, source)
    for name, path in zip(frame["id"], prob_paths("the set", frame), strict=True):
        prob, valid = read_probs(path), read_beside(path, "valid")
        thresholds = thresholds_of(settings, post, len(prob))
        masks.append(finish_mask(prob, valid, thresholds=thresholds, refine=of_tile and of_tile(name),
                                 **morphology_of(settings, len(prob))))  # fmt: skip
        raw.append(values[len(prob)])
    return frame.assign(mask=masks, values=raw)


def judge(rows: pd.DataFrame, sets: dict, settings: dict, *, source: Source, outputs_of: Callable) -> dict:
    """The judgement, and its "metrics" for gates: nan for what two classes do not have."""
    outputs = outputs_of(next(iter(sets.values())))
    if settings.get("gates") and len(outputs) == 2:
        raise InputError(f"--gates {settings['gates']}: two classes have no gates, {', '.join(NAMES)} are of three; "
                         "leave it out")  # fmt: skip
    bands = training_bands(rows, source) if crf_of(settings) or settings.get("save_blend") else {}
    judgement = ordered_judge.judge(
        rows,
        sets,
        outputs=outputs,
        read_target=target_reader(sets),
        kind=settings["kind"],
        seed=settings["seed"],
        morphology=morphology_of(settings, len(outputs)),
        **thresholds_wanted(settings, outputs),
        refine=row_refiner(rows, bands, settings, source),
        success=read_trained(settings.get("success"), rows, outputs),
    )
    learnt = judgement["blend"]["post"]  # applied to test sets by --blend, as post.json is by infer.py
    if level_of(settings) and len(outputs) > 2:
        learnt["aims"] = {level_of(settings): learnt["thresholds"]}
    learnt["crf"] = judged_with(settings, list(bands))
    if bands:
        learnt["bands"] = bands
    return judgement | {"metrics": dict.fromkeys(NAMES, np.nan) | judgement["metrics"]}


def compare(rows: pd.DataFrame, sets: dict, settings: dict, *, source: Source, outputs_of: Callable) -> pd.DataFrame:
    outputs = outputs_of(next(iter(sets.values())))
    bands = training_bands(rows, source) if crf_of(settings) else {}
    return ordered_judge.compare(
        rows,
        sets,
        outputs=outputs,
        read_target=target_reader(sets),
        refine=row_refiner(rows, bands, settings, source),
        morphology=morphology_of(settings, len(outputs)),
        seed=settings["seed"],
        **thresholds_wanted(settings, outputs),
    )


def pixel_readers(rows: pd.DataFrame, settings: dict, source: Source, label_map: dict) -> dict:
    bands = settings.get("bands") or bands_of(rows)
    return {
        "read_tile": lambda path: source.read_tile(path, bands),
        "read_target": lambda path: source.read_label(path, label_map),
    }


def baselines(rows, facts: dict, settings: dict, *, source: Source, outputs_of: Callable, label_maps: Callable):
    """What stands beside a score: a constant, a logistic regression on pixels, and what a demo set lets one reach; and
    all that the regression reached, for the report."""
    known = rows[~rows["fold"].isin((TEST, UNUSED))].reset_index(drop=True)
    readers = pixel_readers(known, settings, source, label_maps(known, settings))
    classes = len(outputs_of(known))
    scores = {"constant": constant_score(known, **readers, classes=classes, metric=KAPPA)}
    found = logistic_judgement(known, **readers, classes=classes, outputs=outputs_of(known))
    scores["logistic"] = found["metrics"]["kappa"]
    if classes > 2:
        table = check_gates(found["metrics"], GATES["production"])
        missed = ", ".join(f"{gate} {reached:.3f}" for gate, _, reached, passed in table.to_numpy() if not passed)
        print(f"logistic regression on pixels, production gates: {f'misses {missed}' if missed else 'meets all'}")
    return scores | ({"reachable": facts["best"]} if "best" in facts else {}), {"logistic": found}


def report(path: Path, judgement: dict, members: list[dict], beside: dict, settings: dict, *, source: Source,
           outputs_of: Callable, check_rows: Callable) -> Path:  # fmt: skip
    rows = judgement["rows"]
    there = "path" in rows and all(Path(name).is_file() for name in rows["path"])
    bands = bands_of(rows) if there else ()
    return write_segmentation_report(
        path,
        title="Ordered risk classes, out of fold",
        outputs=outputs_of(judgement["honest"]),
        rows=rows,
        members=members,
        judgement=judgement,
        beside=beside,
        read_picture=(lambda row: source.read_tile(row["path"], bands)) if there else None,
        read_target=target_reader({member["name"]: member["oof"] for member in members}),
        bands=bands,
        settings=settings,
        gates=check_gates(judgement["metrics"], GATES[settings.get("gates") or "production"]),
        logistic=judgement.get("logistic"),  # not there without --baselines
        findings=check_rows(rows) if there and "label" in rows else None,
    )


def score_hidden(frame: pd.DataFrame, data: Path, *, source: Source, outputs: tuple[str, ...]) -> list[str]:
    """How the masks and the susceptibility of a demo set's test tiles compare with its hidden labels, and the gates of
    production, for whichever level the thresholds are; tiles without such a label are left out."""
    hidden = {path.stem: path for path in (Path(data) / "hidden" / "labels").glob("*.tif")}
    paths = dict(zip(frame["id"], prob_paths("the set", frame), strict=True))
    frame = frame[frame["id"].isin(hidden)]
    if not len(frame):
        return []
    known, classes = {str(k): k for k in range(len(outputs))}, len(outputs)
    counts, hist = 0, 0
    for name, mask in zip(frame["id"], frame["mask"], strict=True):
        path, target = paths[name], source.read_label(str(hidden[name]), known)
        valid = read_beside(path, "valid") & (target != IGNORED)
        counts = counts + confusion(target, mask, valid, classes)
        hist = hist + ranked_histogram(susceptibility(read_probs(path), axis=0), target, valid, classes=classes)
    table = class_table(counts, outputs).set_index("class")
    reached = (cohens_kappa(counts), table["precision"]["medium"], table["recall"]["high"], spearman(hist))
    scores = dict(zip(NAMES, reached, strict=True))
    lines = say_gates(check_gates(scores, GATES["production"]), "production")
    return [f"hidden truth of {len(frame)} test tiles:", *lines]
