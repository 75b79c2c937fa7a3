"""Out-of-fold maps of the segmentation family: thresholds, masks, blends, judgement."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.crops import IGNORED
from common.errors import InputError
from common.metrics.segmentation import class_table, mean_iou
from common.outputs.mask_sets import prob_paths
from common.outputs.masks import read_probs, read_target
from common.outputs.solution import write_solution
from common.post import mask_judge
from common.post.morphology import finish_mask
from common.post.thresholds import checked_thresholds


def target_reader(sets: dict[str, pd.DataFrame]) -> Callable:
    """read(row) -> (target uint8 (H,W), valid bool (H,W)): the truth that lies beside the first set's maps."""
    name, frame = next(iter(sets.items()))
    paths = dict(zip(frame["id"], prob_paths(name, frame), strict=True))

    def read(row) -> tuple[np.ndarray, np.ndarray]:
        target = read_target(paths[row["id"]])
        valid = target != IGNORED
        return np.where(valid, target, 0).astype(np.uint8), valid

    return read


def morphology_of(settings: dict, classes: int) -> dict:
    """min_area (one per class after the first) and fill_holes of finish_mask. InputError for wrong numbers."""
    areas = list(settings["min_area"])
    areas = areas * (classes - 1) if len(areas) == 1 else areas
    if len(areas) != classes - 1 or min(areas) < 0 or settings["fill_holes"] < 0:
        raise InputError(
            f"--min-area {' '.join(map(str, settings['min_area']))}: give one number of pixels, or {classes - 1}, "
            "one per class after the first; 0 switches it off (--fill-holes likewise)"
        )
    return {"min_area": areas, "fill_holes": settings["fill_holes"]}


def wants_fit(settings: dict) -> bool:
    return settings["thresholds"] == ["fitted"]


def chosen_thresholds(settings: dict, post: dict | None, classes: int) -> list[float]:
    """The thresholds of a call: numbers as given, none (argmax), or those of post.json."""
    words = settings["thresholds"]
    if words == ["argmax"] or (words == ["fitted"] and post is None):
        return [1 / classes] * classes
    if words == ["fitted"]:
        return checked_thresholds(post["thresholds"], classes)
    try:
        return checked_thresholds([float(word) for word in words], classes)
    except ValueError:
        raise InputError(f"--thresholds {' '.join(words)}: give fitted, argmax or {classes} numbers") from None


def fit_post(rows: pd.DataFrame, frame: pd.DataFrame, *, outputs_of: Callable) -> dict:
    """post.json: thresholds from out-of-fold maps; nothing where only counts were kept."""
    if "prob" not in frame:
        return {}
    outputs = outputs_of(frame)
    read = target_reader({"set": frame})
    return mask_judge.fit_post(rows, frame, outputs=outputs, read_target=read, seed=0, morphology={})


def apply_post(frame: pd.DataFrame, post: dict | None, settings: dict) -> pd.DataFrame:
    """The masks as they are handed in (column "mask", uint8 (H,W) of classes) and the raw value of every class.

    No data needs no mask of its own here: its probability is 1 for the first class, whatever the thresholds.
    """
    masks, classes = [], None
    for path in prob_paths("the set", frame):
        prob = read_probs(path)
        classes = len(prob)
        nodata = (prob[0] == 1) & (prob[1:] == 0).all(axis=0)
        thresholds = chosen_thresholds(settings, post or None, classes)
        masks.append(finish_mask(prob, ~nodata, thresholds=thresholds, **morphology_of(settings, classes)))
    return frame.assign(mask=masks)


def judge(rows: pd.DataFrame, sets: dict, settings: dict, *, outputs_of: Callable) -> dict:
    outputs = outputs_of(next(iter(sets.values())))
    judgement = mask_judge.judge(
        rows,
        sets,
        outputs=outputs,
        read_target=target_reader(sets),
        kind=settings["kind"],
        seed=settings["seed"],
        morphology=morphology_of(settings, len(outputs)),
        thresholds=wants_fit(settings),
    )
    counts = judgement["honest"]
    data = sum_counts(counts, len(outputs))
    table = class_table(data, outputs).set_index("class")
    metrics = {"mcc": judgement["scores"]["honest"], "mean_iou": mean_iou(data)}
    for name in outputs:
        metrics |= {f"iou_{name}": float(table["iou"][name]), f"recall_{name}": float(table["recall"][name])}
    return judgement | {"metrics": metrics}


def sum_counts(frame: pd.DataFrame, classes: int) -> np.ndarray:
    names = [f"n_{t}_{p}" for t in range(classes) for p in range(classes)]
    return frame[names].to_numpy(np.int64).sum(axis=0).reshape(classes, classes)


def compare(rows: pd.DataFrame, sets: dict, *, outputs_of: Callable) -> pd.DataFrame:
    return mask_judge.compare(rows, sets, outputs=outputs_of(next(iter(sets.values()))))


def read_truth_folder(read_rows: Callable) -> Callable:
    """read_truth of a task whose truth is a folder of labels."""
    return lambda folder: read_rows(Path(folder), {"label_map": [], "shuffle_images": False})


def export_solution(folder: Path, models: list, post: dict | None, views: list[str], settings: dict) -> Path:
    """solution.py and model.pth of [(model, spec)] in `folder`, post-processed as infer.py would."""
    classes = len(models[0][1]["outputs"])
    checkpoints = [(spec, model.state_dict()) for model, spec in models]
    thresholds = chosen_thresholds(settings, post or None, classes)
    morphology = morphology_of(settings, classes)
    facts = write_solution(folder, checkpoints, thresholds=thresholds, morphology=morphology, views=views)
    size = f"{facts['bytes'] / 1e6:.0f} MB, {'float16' if facts['half'] else 'float32'}"
    print(f"solution of {facts['folds']} models, {size}")
    return folder


def shown_shares(member: dict) -> dict | None:
    """{fold: {"target", "attainable", "shown"}} shares of every class, of a run with a balanced sampler; else None."""
    found = {}
    for fold, facts in member.get("facts", {}).items():
        last = member["logs"][fold][-1]
        shown = np.array([last.get(f"train_shown_{name}", np.nan) for name in facts["classes"]])
        if facts["sampler"] == "balanced" and np.isfinite(shown).all():
            shares = {name: facts[name] for name in ("target", "attainable")}
            found[f"fold {fold}"] = shares | {"shown": (shown / shown.sum()).tolist()}
    return found or None
