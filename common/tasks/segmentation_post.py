"""Out-of-fold maps of the segmentation family: thresholds, masks, blends, judgement."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.folds import join_folds, read_folds
from common.errors import InputError
from common.metrics.gates import MEASURES, mask_scores
from common.metrics.segmentation import counts_of
from common.outputs.mask_sets import prob_paths
from common.outputs.masks import read_beside, read_probs
from common.outputs.solution import write_solution
from common.post import mask_judge
from common.post.morphology import finish_mask
from common.post.thresholds import checked_thresholds

MORPHOLOGY = {"min_area": [0], "fill_holes": 0}  # where neither the call nor a blend says anything


def target_reader(sets: dict[str, pd.DataFrame]) -> Callable:
    """read(row) -> (target uint8 (H,W), valid bool (H,W)): the truth that lies beside the first set's maps."""
    name, frame = next(iter(sets.items()))
    paths = dict(zip(frame["id"], prob_paths(name, frame), strict=True))

    def read(row) -> tuple[np.ndarray, np.ndarray]:
        path = paths[row["id"]]
        return read_beside(path, "target"), read_beside(path, "valid")

    return read


def morphology_of(settings: dict, classes: int) -> dict:
    """min_area (one per class after the first) and fill_holes of finish_mask. InputError for wrong numbers."""
    asked = {name: usual if settings[name] is None else settings[name] for name, usual in MORPHOLOGY.items()}
    areas = list(asked["min_area"])
    areas = areas * (classes - 1) if len(areas) == 1 else areas
    if len(areas) != classes - 1 or min(areas) < 0 or asked["fill_holes"] < 0:
        raise InputError(
            f"--min-area {' '.join(map(str, asked['min_area']))}: give one number of pixels, or {classes - 1}, "
            "one per class after the first; 0 switches it off (--fill-holes likewise)"
        )
    return {"min_area": areas, "fill_holes": asked["fill_holes"]}


def as_judged(settings: dict, saved: dict, usual: dict) -> dict:
    """The settings in which what the call leaves open (None, no words) is as a blend was judged, else as usual.

    saved: {option: value} of the judgement; usual: {option: default}. A line says what is taken over, and where the
    call goes another way.
    """
    left = [name for name in usual if settings[name] is None or settings[name] == []]
    done = settings | {name: saved.get(name, usual[name]) for name in left}
    alike = [name for name in left if name in saved and saved[name] != usual[name] and any_of(saved[name])]
    other = [name for name in saved if name not in left and spread(done[name], saved[name]) != saved[name]]
    option = {name: name.replace("_", "-") for name in usual}
    parts = [f"as the blend was judged: {', '.join(f'{option[n]} {said(saved[n])}' for n in alike)}"] if alike else []
    if other:
        then = (f"{option[n]} {said(done[n])} (then: {said(saved[n])})" for n in other)
        parts += [f"not as it was judged: {', '.join(then)}; its score is not that of these masks"]
    if parts:
        print("; ".join(parts))
    return done


def any_of(value) -> bool:
    return any(value) if isinstance(value, list) else bool(value)


def spread(value, like):
    """One number for all classes as a number for each."""
    return value * len(like) if isinstance(value, list) and len(value) == 1 else value


def said(value) -> str:
    if isinstance(value, bool):
        value = "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def wanted_thresholds(settings: dict, classes: int, levels: tuple[str, ...] = ()) -> bool | list[float]:
    """For the judge: True to fit them, False for the plain argmax, or the numbers as given."""
    words = settings["thresholds"]
    return (
        words == ["fitted"] if words in (["fitted"], ["argmax"]) else chosen_thresholds(settings, None, classes, levels)
    )


def chosen_thresholds(settings: dict, post: dict | None, classes: int, levels: tuple[str, ...] = ()) -> list[float]:
    """The thresholds of a call: numbers as given, none (argmax), or those of post.json.

    levels: words that the task takes too, for the InputError.
    """
    words = settings["thresholds"]
    if words == ["argmax"] or (words == ["fitted"] and post is None):
        return [1 / classes] * classes
    if words == ["fitted"]:
        return checked_thresholds(post["thresholds"], classes)
    try:
        return checked_thresholds([float(word) for word in words], classes)
    except (ValueError, InputError):
        known = ", ".join([*levels, "fitted", "argmax"])
        raise InputError(f"--thresholds {' '.join(words)}: give {known} or {classes} numbers above 0") from None


def fit_post(rows: pd.DataFrame, frame: pd.DataFrame, settings: dict | None = None, *, outputs_of: Callable) -> dict:
    """post.json: thresholds from out-of-fold maps; nothing where only counts were kept."""
    if "prob" not in frame:
        return {}
    outputs = outputs_of(frame)
    read = target_reader({"set": frame})
    return mask_judge.fit_post(rows, frame, outputs=outputs, read_target=read, seed=0, morphology={})


def apply_post(frame: pd.DataFrame, post: dict | None, settings: dict, *, values: dict) -> pd.DataFrame:
    """The masks as they are handed in: columns "mask", uint8 (H,W) of classes, and "values", the raw value of each.

    values: {number of classes: their raw values}.
    """
    saved = {name: post[name] for name in MORPHOLOGY if name in (post or {})}
    settings = as_judged(settings, saved, MORPHOLOGY)
    masks, raw = [], []
    for path in prob_paths("the set", frame):
        prob, valid = read_probs(path), read_beside(path, "valid")
        thresholds = chosen_thresholds(settings, post or None, len(prob))
        masks.append(finish_mask(prob, valid, thresholds=thresholds, **morphology_of(settings, len(prob))))
        raw.append(values[len(prob)])
    return frame.assign(mask=masks, values=raw)


def judge(rows: pd.DataFrame, sets: dict, settings: dict, *, outputs_of: Callable, classes: tuple[str, ...]) -> dict:
    """The judgement, and its "metrics" for gates: nan for those of `classes` that the labels do not have."""
    outputs = outputs_of(next(iter(sets.values())))
    judgement = mask_judge.judge(
        rows,
        sets,
        outputs=outputs,
        read_target=target_reader(sets),
        kind=settings["kind"],
        seed=settings["seed"],
        morphology=morphology_of(settings, len(outputs)),
        thresholds=wanted_thresholds(settings, len(outputs)),
    )
    data = counts_of(judgement["honest"], len(outputs)).sum(axis=0)
    absent = {f"{what}_{name}": np.nan for name in set(classes) - set(outputs) for what in MEASURES}
    return judgement | {"metrics": absent | mask_scores(data, outputs) | {"mcc": judgement["scores"]["honest"]}}


def compare(rows: pd.DataFrame, sets: dict, settings: dict, *, outputs_of: Callable) -> pd.DataFrame:
    """Of the argmax, by the counts that were kept. InputError for morphology, which they know nothing of."""
    for name in MORPHOLOGY:
        if any_of(settings[name]):
            raise InputError(f"--{name.replace('_', '-')}: --compare is of counts that training kept; leave it out, or "
                             "judge a run by itself (without --compare)")  # fmt: skip
    return mask_judge.compare(rows, sets, outputs=outputs_of(next(iter(sets.values()))))


def read_truth_folder(read_rows: Callable) -> Callable:
    """read_truth of a task whose truth is a folder of labels: groups of its folds.csv, else each tile its own."""

    def read(folder: Path) -> pd.DataFrame:
        rows = read_rows(Path(folder), {"label_map": []})
        path = Path(folder) / "folds.csv"
        return join_folds(rows, read_folds(path), path) if path.is_file() else rows.assign(group=rows["id"])

    return read


def export_solution(folder: Path, models: list, post, views: list[str], settings: dict, *, values: dict) -> Path:
    """solution.py and model.pth of [(model, spec)] in `folder`, post-processed as infer.py would.

    values: as in `apply_post`.
    """
    classes = len(models[0][1]["outputs"])
    facts = write_solution(
        folder,
        [(spec, model.state_dict()) for model, spec in models],
        thresholds=chosen_thresholds(settings, post or None, classes),
        morphology=morphology_of(settings, classes),
        views=views,
        values=values[classes],
    )
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
