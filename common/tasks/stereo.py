"""The stereo family: regression from a photo's two halves. A competition gives it a reader, a recipe and a writer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.stereo import collate, init_worker
from common.engine.checkpoint import initial_checkpoint, load_checkpoint, whole_state
from common.engine.schedule import Stage
from common.errors import InputError
from common.losses.regression import build_loss
from common.metrics.regression import weighted_r2
from common.models.backbone import normalisation
from common.models.closed_form import ClosedFormRegressor
from common.models.stereo import StereoRegressor
from common.models.weights import load_backbone
from common.outputs.contact_sheet import draw_contact_sheet, draw_samples
from common.outputs.predictions import read_predictions, write_predictions
from common.post.blend import BLENDS
from common.tasks.base import Task
from common.tasks.stereo_data import open_rows, open_training, prepare
from common.tasks.stereo_options import add_options

VIEWS = ["identity", "hflip", "vflip", "swap"]


def make_spec(rows: pd.DataFrame, settings: dict, *, name: str, outputs: tuple, aux_classes: dict) -> dict:
    """Everything inference needs, as plain types; statistics come from the training rows given."""
    grid, cell = settings["grid"], settings["cell_size"]
    mean, std = normalisation(settings["backbone"])
    common = {"outputs": list(outputs), "grid": list(grid), "cell_size": cell, "backbone": settings["backbone"]}
    common |= {"pool": settings["pool"], "blocks": list(settings["blocks"])}
    if settings["head"] == "mlp":
        scale = rows[list(outputs)].mean().clip(lower=1.0)
        model = common | {
            "fusion": settings["fusion"],
            "hidden_ratio": settings["hidden_ratio"],
            "dropout": settings["dropout"],
            "drop_path": settings["drop_path"],
            "standardise": settings["standardise"],
            "scale": [float(value) for value in scale],
            "log_targets": list(settings["log_targets"]),
            "uncertainty": settings["uncertainty"],
            "two_part": list(settings["two_part"]),
            "aux": dict(aux_classes) if aux_classes and settings["use_aux_heads"] else None,
            "distill": bool(aux_classes) and settings["distill"],
        }
    else:
        model = common | {
            "kind": settings["head"],
            "statistics": settings["weights"] == "none",
            "seed": settings["seed"],
        }
        model |= {"mean": mean, "std": std}
    return {
        "task": name,
        "outputs": list(outputs),
        "bands": ["red", "green", "blue"],
        "head": settings["head"],
        "model": model,
        "grid": list(grid),
        "size": half_size(settings),
        "mean": mean,
        "std": std,
        "photo_size": list(settings["photo_size"]),
        "mask_stamp": settings["mask_stamp"],
        "views": VIEWS,
        "median": [float(value) for value in rows[list(outputs)].median()],
    }


def half_size(settings: dict) -> list[int]:
    """(H, W) of a half as the loader gives it: R x C cells, or the photo's own size where statistics are taken."""
    rows, cols, cell = *settings["grid"], settings["cell_size"]
    high, wide = settings["photo_size"]
    if settings["head"] != "mlp" and settings["weights"] == "none" and high:
        return [high, wide // 2]
    return [rows * cell, cols * cell]


def build_model(spec: dict):
    return StereoRegressor(**spec["model"]) if spec["head"] == "mlp" else ClosedFormRegressor(**spec["model"])


def load_weights(model, spec: dict, settings: dict, *, search: list[Path]) -> str:
    """Fill the backbone as --weights says, then all that fits of --init; a line for the log."""
    said = "image statistics, no backbone"
    if model.backbone is not None:
        said = load_backbone(model.backbone, settings["weights"], search=search)
    if settings["init"]:
        said += f"; {init_from(model, Path(settings['init']))}"
    return f"weights: {said}"


def init_from(model, path: Path) -> str:
    """Take what fits by name and shape from a checkpoint of ours, or from a run's first fold; names what was not."""
    path = initial_checkpoint(path)
    state, own = whole_state(path, load_checkpoint(path), "ema"), model.state_dict()
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not fits:
        raise InputError(f"--init {path}: nothing in it fits this model; it was made with another backbone")
    model.load_state_dict(fits, strict=False)
    left = sorted(key for key in own if key not in fits)
    named = f"not filled: {', '.join(left[:5])}{' …' if len(left) > 5 else ''}" if left else "nothing left unfilled"
    return f"--init {path}: took {len(fits)} of {len(own)} tensors, {named}"


def plan(model, settings: dict) -> tuple[list[dict], list[Stage]]:
    """Parameter groups and stages: heads alone first, everything from the start, or heads for good."""
    groups = model.param_groups(
        lr=settings["lr"],
        backbone_lr=settings["backbone_lr"],
        weight_decay=settings["weight_decay"],
        layer_decay=settings["layer_decay"],
        unfreeze_blocks=settings["unfreeze_blocks"],
    )
    epochs, warmup = settings["epochs"], settings["warmup_epochs"]
    if settings["freeze_backbone"]:
        return groups, [Stage(epochs, {"backbone": 0.0}, warmup)]
    if not settings["two_stage"]:
        return groups, [Stage(epochs, {}, warmup)]
    first = settings["freeze_epochs"]
    if not 0 < first < epochs:
        raise InputError(f"--freeze-epochs {first}: must lie between 0 and --epochs {epochs} with --two-stage")
    head = settings["head_lr_stage1"] / settings["lr"]
    return groups, [Stage(first, {"backbone": 0.0, "head": head}, warmup), Stage(epochs - first, {}, warmup)]


def make_loss(spec: dict, settings: dict, *, aux_classes: dict) -> Callable:
    aux = {name: settings[f"aux_{name}_weight"] for name in aux_classes} if spec["model"].get("aux") else {}
    distill = spec["model"].get("distill")
    return build_loss(
        kind=settings["loss"],
        outputs=spec["outputs"],
        target_weights=settings["target_weights"],
        scale=spec["model"]["scale"],
        constraint_weight=settings["constraint_weight"],
        log_targets=spec["model"]["log_targets"],
        uncertainty=spec["model"]["uncertainty"],
        two_part=spec["model"]["two_part"],
        aux_weights={name: weight for name, weight in aux.items() if weight},
        distill_weight=settings["distill_weight"] if distill else 0.0,
        distill_warmup=settings["distill_warmup"] if distill else 0,
    )


def to_pred(model, outputs: dict) -> dict:
    return model.to_grams(outputs)


def make_frame(predicted: dict, spec: dict, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """A line per id from engine.predict's answer, mean over its models. Rows marked bad get the training medians.

    With `rows` that know the truth, true_<output> columns are added.
    """
    outputs = spec["outputs"]
    bad = np.array(predicted["bad"], bool)
    frame = pd.DataFrame({"id": predicted["id"]})
    for key, suffix in (("pred", ""), ("lo", "_lo"), ("hi", "_hi")):
        if key in predicted:
            values = predicted[key].mean(axis=0, dtype=np.float64)
            values[bad] = spec["median"]
            frame[[name + suffix for name in outputs]] = values
    if rows is not None:
        truth = rows.set_index("id").loc[frame["id"], outputs].reset_index(drop=True)
        frame[[f"true_{name}" for name in outputs]] = truth
    return frame


def make_score(rows: pd.DataFrame, frame: pd.DataFrame, *, outputs: tuple, weights: tuple) -> dict:
    """{"score": global weighted R2 in grams} of a frame of predictions for these rows."""
    target = rows.set_index("id").loc[frame["id"], list(outputs)].to_numpy(float)
    pred = frame[list(outputs)].to_numpy(float)
    valid = np.isfinite(target)
    return {"score": weighted_r2(np.where(valid, target, 0.0), pred, weights=weights, valid=valid)}


def truth_of(frame: pd.DataFrame, *, outputs: tuple) -> pd.DataFrame:
    """Rows (id and outputs) from the true_ columns of an out-of-fold set."""
    truth = frame[["id", *(f"true_{name}" for name in outputs)]]
    return truth.rename(columns={f"true_{name}": name for name in outputs})


def write_set(folder: Path, kind: str, frame: pd.DataFrame, *, outputs: tuple) -> Path:
    return write_predictions(folder / f"{kind}.csv", frame, outputs)


def mean_sets(sets: dict[str, pd.DataFrame], folder: Path | None = None, *, outputs: tuple) -> pd.DataFrame:
    """The mean of sets over the same ids; bounds are averaged too where all sets have them. No maps for a folder."""
    frames = list(sets.values())
    mean = frames[0].copy()
    columns = [name + suffix for name in outputs for suffix in ("", "_lo", "_hi")]
    columns = [name for name in columns if all(name in frame for frame in frames)]
    others = [frame.set_index("id").loc[mean["id"], columns].to_numpy(float) for frame in frames]
    mean[columns] = np.mean(others, axis=0)
    return mean.drop(columns=[n for n in mean if n.endswith(("_lo", "_hi")) and n not in columns])


def sheet(batch: dict, spec: dict, path: Path) -> Path:
    """The contact sheet of a batch: augmented halves with their cells and targets."""
    return draw_contact_sheet(
        batch["image"].numpy(), batch["target"].numpy(), batch["id"], tuple(spec["grid"]), spec["mean"], spec["std"],
        spec["outputs"], path, valid=batch["valid"].numpy(),
    )  # fmt: skip


def samples(frame: pd.DataFrame, rows: pd.DataFrame, spec: dict, path: Path, *, count: int = 6) -> None:
    """The first rows with truth and prediction beside both halves."""
    outputs = spec["outputs"]
    shown = rows[rows["id"].isin(frame["id"])].head(count)
    settings = {"cache": None, "cache_images": False}
    images = np.stack([sample["image"].numpy() for sample in open_rows(shown, spec, settings)])
    pred = frame.set_index("id").loc[shown["id"], outputs].to_numpy(float)
    draw_samples(
        images, shown[outputs].to_numpy(float), pred, list(shown["id"]), tuple(spec["grid"]), spec["mean"], spec["std"],
        outputs, path,
    )  # fmt: skip


def make_stereo_task(
    *,
    name: str,
    slug: str,
    outputs: tuple[str, ...],
    weights: tuple[float, ...],
    aux_classes: dict[str, int] | None = None,
    aux_targets: Callable | None = None,
    add_arguments: Callable | None = None,
    search: Callable[[], list[Path]] = lambda: [Path("weights")],
    **own,
) -> Task:
    """A Task of the family; `own` are the fields that only the competition knows (readers, writer, defaults …)."""
    aux_classes = aux_classes or {}

    def options(parser, script):
        add_options(parser, script, outputs, aux_classes)
        if add_arguments:
            add_arguments(parser, script)

    family = {
        "add_arguments": options,
        "make_spec": partial(make_spec, name=name, outputs=outputs, aux_classes=aux_classes),
        "build_model": build_model,
        "load_weights": lambda model, spec, settings: load_weights(model, spec, settings, search=search()),
        "prepare": partial(prepare, aux_targets=aux_targets),
        "open_training": partial(open_training, aux_targets=aux_targets),
        "plan": plan,
        "build_loss": partial(make_loss, aux_classes=aux_classes),
        "open_rows": open_rows,
        "collate": collate,
        "init_worker": init_worker,
        "to_pred": to_pred,
        "make_frame": make_frame,
        "score": partial(make_score, outputs=outputs, weights=weights),
        "read_set": partial(read_predictions, outputs=outputs),
        "write_set": partial(write_set, outputs=outputs),
        "target_columns": lambda rows: outputs,
        "units": "grams",
        "bad_answer": "the training medians",
        "blends": ("greedy", *sorted(set(BLENDS) - {"greedy"})),
        "truth_of": partial(truth_of, outputs=outputs),
        "mean_sets": partial(mean_sets, outputs=outputs),
        "concat": partial(pd.concat, ignore_index=True),
        "draw": {"sheet": sheet, "samples": samples},
        "run_name": lambda settings: f"{name}-{settings['grid'][0]}x{settings['grid'][1]}-s{settings['seed']}",
    }
    return Task(name=name, slug=slug, family="stereo", outputs=outputs, bands=("red", "green", "blue"), **family | own)
