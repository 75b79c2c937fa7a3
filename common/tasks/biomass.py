"""Kaggle `csiro-biomass`: five dry masses of a pasture quadrat from one photo, by globally weighted R2.

The competition's tables are read by datasets/biomass_table.py, its physics is post/physics.py.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.datasets import biomass_table as table
from common.datasets import demo_biomass
from common.datasets.adversarial import adversarial_auc, adversarial_lines, fold_adversarial
from common.datasets.cache import cached_folder
from common.datasets.duplicates import duplicate_lines, hash_photos, near_duplicates
from common.datasets.folds import SCHEMES, fold_table, imbalance, make_folds
from common.datasets.locate import KAGGLE_INPUT
from common.datasets.readers import read_photo
from common.datasets.statistics import statistics_table
from common.datasets.stereo import photo_key
from common.datasets.table_checks import check_table, finding_lines
from common.errors import InputError
from common.metrics.baselines import constant_score, ridge_score
from common.metrics.regression import WEIGHTS
from common.outputs.predictions import read_run
from common.outputs.stereo_report import write_stereo_report
from common.outputs.submission import validate_submission, write_submission
from common.post.blend import apply_blend
from common.post.judge import compare, frame_of, judge
from common.post.physics import RECONCILES, apply_post, fit_post
from common.tasks import stereo

OUTPUTS = table.OUTPUTS
ZEROS = ("Dry_Dead_g", "Dry_Clover_g")
SUMS = {"GDM_g": ("Dry_Green_g", "Dry_Clover_g"), "Dry_Total_g": ("GDM_g", "Dry_Dead_g")}
RANGES = {"ndvi": (0.0, 1.0), "height": (0.0, 100.0)}
# The recipe for Kaggle: pretrained DINOv2, two stages. Winners disagree on log targets, so none by default.
DEFAULTS = {"epochs": 30, "batch_size": 8, "two_stage": True, "freeze_epochs": 10, "lr": 2e-4, "backbone_lr": 1e-5}
# For two cores and a hundred drawn photos, from random weights: about 15 s a fold.
DEMO_DEFAULTS = {
    "backbone": "test_byobnet",
    "weights": "none",
    "cell_size": 48,
    "standardise": True,
    "dropout": 0.0,
    "epochs": 22,
    "batch_size": 10,
    "two_stage": False,
    "lr": 5e-3,
    "backbone_lr": 5e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 5.0,
    "ema_decay": 0.97,
    "augment": ["hflip=.5", "vflip=.5"],
    "loss": "r2",
    "workers": 0,
    "save_every": 10,
    "samples_every": 0,
}


def add_arguments(parser, script: str) -> None:
    flag = argparse.BooleanOptionalAction
    if script in ("infer", "ensemble"):
        physics = parser.add_argument_group("physics, in grams")
        physics.add_argument("--dead", choices=("none", "derive"), default="none",
                             help="derive: Dead = Total - GDM where the parts miss it by over 15 %%")  # fmt: skip
        physics.add_argument("--always-correct-dead", action=flag, default=False, help="derive Dead in every row")
        physics.add_argument("--reconcile", choices=sorted(RECONCILES), default="ols",
                             help="how the five masses are made to add up")  # fmt: skip
        physics.add_argument("--apply-context-adjustment", action=flag, default=False,
                             help="Dead = 0 where the state is or looks like WA (to compare)")  # fmt: skip


def read_rows(data: Path, settings: dict) -> pd.DataFrame:
    allow = settings["allow_missing_targets"]
    rows = table.read_rows(data, allow_missing=allow, drop_ids=table.dropped_ids(settings))
    if settings["shuffle_images"]:
        # whole photos change rows, so that nothing of a row's image belongs to its targets
        rows["path"] = np.random.default_rng(0).permutation(rows["path"].to_numpy())
        print("SHUFFLED: photos were exchanged between rows at random; the score must be a constant's")
    return rows


def describe_folds(rows: pd.DataFrame, fold: np.ndarray, group: np.ndarray) -> str:
    text = fold_table(rows, fold, group, outputs=OUTPUTS, zeros=ZEROS)
    return f"{text}\nimbalance {imbalance(rows, fold, outputs=OUTPUTS, zeros=ZEROS):.3f} (0 = all folds alike)"


def check_data(rows: pd.DataFrame) -> list[str]:
    known = [("state", "WA", "Dry_Dead_g")]
    return finding_lines(check_table(rows, outputs=OUTPUTS, sums=SUMS, zero_where=known, ranges=RANGES))


def statistics(rows: pd.DataFrame, cache: Path, kind: str = "colour") -> tuple[np.ndarray, tuple[str, ...]]:
    """Statistics of every photo, computed once per content."""
    inputs = {"kind": kind, "photos": [photo_key(path, "error") for path in rows["path"]], "version": 2}

    def build(folder: Path) -> None:
        values, names = statistics_table(list(rows["path"]), kind, lambda path: read_photo(path, None))
        np.savez(folder / "statistics.npz", values=values, names=np.array(names))

    with np.load(cached_folder(cache, "statistics", inputs, build) / "statistics.npz") as stored:
        return stored["values"], tuple(stored["names"].tolist())


def study_data(rows, test, fold, settings: dict, *, adversarial: bool, duplicates: bool) -> list[str]:
    """Findings that need the photos: train against test, fold against fold, near-duplicates across a split."""
    both = pd.concat([rows[["id", "path"]], test], ignore_index=True)
    is_test = np.arange(len(both)) >= len(rows)
    lines = []
    if adversarial:
        values, names = statistics(both, Path(settings["cache"]), "colour+texture")
        lines += adversarial_lines("train against test", adversarial_auc(values, is_test, names))
        groups = rows["date_state"].to_numpy(str)
        for answer in fold_adversarial(values[: len(rows)], fold, names, groups=groups):
            lines += adversarial_lines(f"fold {answer['fold']} against the others", answer)
    if duplicates:
        hashes = hash_photos(list(both["path"]), lambda path: read_photo(path, None))
        pairs = near_duplicates(hashes, both["id"], np.where(is_test, -1, np.concatenate([fold, -np.ones(len(test))])))
        lines += duplicate_lines(pairs, "photos")
    return lines


def to_pred(model, outputs: dict) -> dict:
    """Grams; beside them the state that an auxiliary head sees, which nothing uses unless it is asked for."""
    pred = stereo.to_pred(model, outputs)
    if "aux" in outputs and "state" in outputs["aux"]:
        pred["state"] = torch.softmax(outputs["aux"]["state"].float(), dim=-1)
    return pred


def make_frame(predicted: dict, spec: dict, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    frame = stereo.make_frame(predicted, spec, rows)
    if "state" in predicted:
        states = pd.Series(np.array(table.STATES)[predicted["state"].mean(axis=0).argmax(axis=1)], predicted["id"])
        frame["state"] = states[~states.index.duplicated()].loc[frame["id"]].to_numpy()
    return frame


def physics_of(settings: dict) -> dict:
    return {name: settings[name] for name in ("dead", "always_correct_dead", "reconcile")}


def adjust_context(frame: pd.DataFrame) -> pd.DataFrame:
    """Dead = 0 in WA. InputError where no state is known or predicted."""
    if "state" not in frame:
        raise InputError("--apply-context-adjustment: needs a model trained with --use-aux-heads, or rows with a state")
    return frame.assign(Dry_Dead_g=frame["Dry_Dead_g"].where(frame["state"] != "WA", 0.0))


def post_process(frame: pd.DataFrame, post: dict | None, settings: dict) -> pd.DataFrame:
    """The predictions as they are handed in: Dead, the identities, clamps; intervals are clamped at zero."""
    if settings["apply_context_adjustment"]:
        frame = adjust_context(frame)
    done = frame.copy()
    done[list(OUTPUTS)] = apply_post(frame[list(OUTPUTS)].to_numpy(), post, **physics_of(settings))
    return done


def learn_post(rows: pd.DataFrame, frame: pd.DataFrame, settings: dict | None = None) -> dict:
    """post.json: clamps, medians and residual covariance from out-of-fold predictions."""
    target = rows.set_index("id").loc[frame["id"], list(OUTPUTS)].to_numpy(float)
    settings = settings or {"dead": "none", "always_correct_dead": False}
    names = ("dead", "always_correct_dead")
    return fit_post(target, frame[list(OUTPUTS)].to_numpy(), valid=np.isfinite(target),
                    **{name: settings[name] for name in names})  # fmt: skip


def write(frame: pd.DataFrame, data: Path, folder: Path) -> Path:
    """submission.csv, written and then validated against test.csv."""
    path = write_submission(folder / "submission.csv", frame, data / "test.csv")
    validate(data, folder)
    return path


def validate(data: Path, folder: Path) -> None:
    """InputError where the folder's submission.csv is not one for the data's test.csv."""
    validate_submission(folder / "submission.csv", data / "test.csv")


def judge_sets(rows: pd.DataFrame, sets: dict, settings: dict) -> dict:
    if settings["apply_context_adjustment"]:
        states = rows.set_index("id")["state"]
        sets = {name: adjust_context(f.assign(state=f["id"].map(states))) for name, f in sets.items()}
    return judge(
        rows,
        sets,
        outputs=OUTPUTS,
        weights=WEIGHTS,
        kind=settings["kind"],
        seed=settings["seed"],
        physics=physics_of(settings),
    )


def baselines(rows: pd.DataFrame, facts: dict, settings: dict) -> tuple[dict[str, float], dict]:
    """What stands beside a score: a constant, ridge on colour statistics and, for a demo set, the best reachable.

    rows need the columns path, fold (0, 1, …) and the outputs.
    """
    known = rows[(rows["fold"] >= 0) & rows[list(OUTPUTS)].notna().all(axis=1)]
    target, fold = known[list(OUTPUTS)].to_numpy(float), known["fold"].to_numpy()
    scores = {"constant": constant_score(target, fold)}
    scores["ridge"] = ridge_score(statistics(known, Path(settings["cache"]))[0], target, fold)
    return scores | ({"reachable": facts["best"]} if "best" in facts else {}), {}


def blend_sets(blend: dict, sets: dict[str, pd.DataFrame], folder: Path | None = None) -> pd.DataFrame:
    """The blend of test prediction sets; ids in the order of the first. No maps for a folder."""
    first = next(iter(sets.values()))
    preds = {name: frame.set_index("id").loc[first["id"], list(OUTPUTS)].to_numpy() for name, frame in sets.items()}
    return frame_of(first["id"], apply_blend(blend, preds), OUTPUTS)


def report(path: Path, judgement: dict, members: list[dict], beside: dict, settings: dict) -> Path:
    """report.html of an ensemble: the tables of the judgement, the members' curves, the photos where they are."""
    rows = judgement["rows"]
    photos = "path" in rows and all(Path(name).is_file() for name in rows["path"])
    return write_stereo_report(
        path,
        title="Pasture biomass, out of fold",
        outputs=OUTPUTS,
        rows=rows,
        members=members,
        final=judgement["final"],
        honest=judgement["honest"],
        before_physics=judgement["before"],
        scores=judgement["scores"] | beside,
        blend=judgement["blend"],
        gains=judgement["gains"],
        interval=judgement["interval"],
        coverage=interval_coverage(rows, members),
        findings=check_data(rows),
        read_photo=(lambda name: read_photo(name, None)) if photos else None,
        settings=settings,
    )  # fmt: skip


def interval_coverage(rows: pd.DataFrame, members: list[dict]) -> dict | None:
    """How often the 90 % intervals of the first member that has them hold the truth, per output."""
    for member in members:
        frame = member["oof"]
        if f"{OUTPUTS[0]}_lo" in frame:
            truth = rows.set_index("id").loc[frame["id"]].reset_index()
            inside = {
                name: float(truth[name].between(frame[f"{name}_lo"], frame[f"{name}_hi"]).mean()) for name in OUTPUTS
            }
            width = {name: float((frame[f"{name}_hi"] - frame[f"{name}_lo"]).mean()) for name in OUTPUTS}
            return {"level": 0.9, "coverage": inside, "width": width}
    return None


def search_folders() -> list[Path]:
    return [Path("weights"), KAGGLE_INPUT]


TASK = stereo.make_stereo_task(
    name="biomass",
    slug="csiro-biomass",
    outputs=OUTPUTS,
    weights=WEIGHTS,
    aux_classes=table.AUX_CLASSES,
    aux_targets=table.aux_targets,
    search=search_folders,
    markers={"train": ("train.csv",), "test": ("test.csv",)},
    defaults=DEFAULTS,
    demo_defaults=DEMO_DEFAULTS,
    demo_version=demo_biomass.DEMO_VERSION,
    schemes=tuple(SCHEMES),
    add_arguments=add_arguments,
    make_demo=demo_biomass.make_demo,
    read_rows=read_rows,
    read_test=table.read_test,
    read_truth=partial(table.read_rows, photos=False),
    make_folds=partial(make_folds, outputs=OUTPUTS, zeros=ZEROS),
    describe_folds=describe_folds,
    check_data=check_data,
    study_data=study_data,
    dropped_ids=table.dropped_ids,
    to_pred=to_pred,
    make_frame=make_frame,
    read_run=partial(read_run, outputs=OUTPUTS),
    fit_post=learn_post,
    apply_post=post_process,
    write=write,
    validate=validate,
    judge=judge_sets,
    blend=blend_sets,
    baselines=baselines,
    report=report,
    compare=lambda rows, sets, settings: compare(rows, sets, outputs=OUTPUTS, weights=WEIGHTS),
    group_column="date_state",
)
