"""The segmentation family: a class for every pixel of a tile. A competition gives it readers, a recipe and a writer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.datasets.crops import IGNORED
from common.datasets.inputs import valid_pixels
from common.datasets.tiles import Source, collate, init_worker
from common.engine.checkpoint import initial_checkpoint, load_checkpoint, whole_state
from common.engine.schedule import Stage
from common.errors import InputError
from common.losses.reduce import all_sum
from common.losses.segmentation import build_loss
from common.metrics.segmentation import class_table, count_columns, counts_of, mcc, mean_iou
from common.models.encoder_weights import load_encoder
from common.models.ordinal import start_at_prior
from common.models.segmenter import Segmenter
from common.models.transfer import init_from
from common.ordinal import class_logits
from common.outputs.mask_sets import NAMES, keep_maps, mean_sets, read_run, read_set, write_set
from common.outputs.masks import mask_name, validate_masks, write_masks
from common.outputs.tile_pictures import draw_tile_samples, draw_tile_sheet
from common.tasks.base import Task
from common.tasks.segmentation_data import open_rows, open_training, prepare
from common.tasks.segmentation_options import add_options, add_post_options, parse_pair
from common.tasks.segmentation_spec import make_spec

# the model


def build_model(spec: dict) -> Segmenter:
    return Segmenter(**spec["model"])


def load_weights(model, spec: dict, settings: dict, *, search: list[Path]) -> str:
    """Fill the encoder as --weights says, then all that fits of --init; a line for the log."""
    if spec.get("prior"):
        start_at_prior(model, spec["prior"])
    said = load_encoder(model, settings["weights"], bands=spec["inputs"], search=search)
    if settings["init"]:
        path = initial_checkpoint(Path(settings["init"]))
        content = load_checkpoint(path)
        state, theirs = whole_state(path, content, "ema"), content["spec"]
        known = {"source_bands": theirs.get("inputs"), "source_outputs": theirs.get("outputs")}
        taken = init_from(model, state, bands=spec["inputs"], outputs=spec["outputs"], **known)
        said += f"; --init {path}: {taken}"
    return f"weights: {said}"


def plan(model, settings: dict) -> tuple[list[dict], list[Stage]]:
    rate = settings["lr"] if settings["backbone_lr"] is None else settings["backbone_lr"]
    groups = model.param_groups(lr=settings["lr"], backbone_lr=rate, weight_decay=settings["weight_decay"])
    return groups, [Stage(settings["epochs"], {}, settings["warmup_epochs"])]


class LossWithShares:
    """A loss that also tells which share of the pixels it saw belongs to each class, which is what the sampler showed,
    and which share the model itself gave to a class after the first."""

    def __init__(self, loss, outputs: list[str]):
        self.loss, self.outputs = loss, outputs

    def __call__(self, outputs, batch: dict) -> dict:
        parts, valid = self.loss(outputs, batch), batch["valid"]
        counts = [((batch["target"] == index) & valid).sum() for index in range(len(self.outputs))]
        crops = valid.flatten(1).any(1).sum()  # padding, of which nothing is valid, was not shown
        found = ((self.loss.class_logits(outputs.detach()).argmax(dim=1) > 0) & valid).sum()
        *shown, found, pixels = all_sum(torch.stack([*counts, found, crops * valid[0].numel()]).double())
        pixels = pixels.clamp_min(1)  # of all processes: one that was given padding alone showed none
        shares = {f"shown_{name}": count / pixels for name, count in zip(self.outputs, shown, strict=True)}
        return parts | shares | {"predicted": found / pixels}


def make_loss(spec: dict, settings: dict) -> LossWithShares:
    names = ("loss", "focal_alpha", "focal_gamma", "border_weight", "pair_weight", "border_width", "mcc_phi")
    head, weight = spec["model"].get("head", "softmax"), settings.get("ordinal_weight")
    if weight and head == "softmax":
        raise InputError(
            f"--ordinal-weight {weight:g}: --head softmax has no such loss; choose coral or corn, or say 0"
        )
    loss = build_loss(
        **{name: settings[name] for name in names},
        outputs=spec["outputs"],
        border_pairs=[parse_pair(pair, "--border-pairs") for pair in settings["border_pairs"]],
        tversky=tuple(settings["tversky"]),
        foreground=settings["foreground"],
        head=head,
        **({} if weight is None else {"ordinal_weight": weight}),
        ordinal_smoothing=settings.get("ordinal_smoothing", 0.0),
        ramp={"boundary": (0.05, settings["ramp_epochs"])},
    )
    return LossWithShares(loss, spec["outputs"])


# predictions


def to_pred(model, outputs: torch.Tensor) -> dict:
    return {"prob": torch.softmax(class_logits(outputs, model.head), dim=1)}


def make_frame(predicted: dict, spec: dict, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """A line per tile from engine.predict's answer: counts where rows know the truth, and where the maps lie."""
    frame = pd.DataFrame({"id": predicted["id"], "nodata": predicted["nodata"][0]})
    if rows is not None:
        names = count_columns(len(spec["outputs"]))
        counts = pd.DataFrame(predicted["counts"][0].reshape(len(frame), -1), columns=names)
        frame = pd.concat([frame, counts], axis=1)
    folder = predicted["keep"].folder if "keep" in predicted else predicted["folder"]  # none with --no-oof
    if folder is not None:
        frame["prob"] = [str(Path(folder) / f"{name}.npz") for name in frame["id"]]
    frame.attrs["shown"] = predicted["keep"].shown if "keep" in predicted else {}
    return frame


def make_score(rows: pd.DataFrame, frame: pd.DataFrame, *, outputs_of: Callable) -> dict:
    """{"score": MCC over all pixels, "mcc_data": over those with data, IoU of every class, …} from a set's counts."""
    outputs = outputs_of(frame)
    counts = counts_of(frame, len(outputs), nodata=True).sum(axis=0)
    data = counts_of(frame, len(outputs)).sum(axis=0)
    table = class_table(data, outputs).set_index("class")
    scores = {"score": mcc(counts), "mcc_data": mcc(data), "mean_iou": mean_iou(data)}
    for name in outputs:
        scores |= {f"iou_{name}": table["iou"][name], f"recall_{name}": table["recall"][name]}
    return {key: None if np.isnan(value) else float(value) for key, value in scores.items()}


def say_epoch(record: dict) -> list[str]:
    """What is found of every class, and which shares of the pixels the crops of the epoch showed."""
    lines = []
    found = {key.removeprefix("iou_"): value for key, value in record.items() if key.startswith("iou_")}
    if found:
        said = [f"{name} {'-' if iou is None else f'{iou:.3f}'}" for name, iou in found.items()]
        lines.append(f"IoU {', '.join(said)}; MCC of pixels with data {record['mcc_data']:.4f}")
    shown = {key.removeprefix("train_shown_"): value for key, value in record.items() if "train_shown_" in key}
    total = sum(shown.values())
    if total:
        lines.append("shown " + ", ".join(f"{name} {value / total:.2%}" for name, value in shown.items()))
    return lines


def write(frame: pd.DataFrame, data: Path, folder: Path, *, read_test: Callable) -> Path:
    """masks/: one georeferenced uint8 GeoTIFF a tile, written and then validated."""
    rows, values = read_test(data), frame["values"].iloc[0]
    for name, mask, nodata in zip(frame["id"], frame["mask"], frame["nodata"], strict=True):
        if nodata == mask.size:
            print(f"{name}: no data in any pixel; its mask is background everywhere")
    paths = rows.set_index("id")["path"]
    masks = zip(frame["id"], frame["mask"], paths.loc[frame["id"]], strict=True)
    write_masks(folder / "masks", masks, values=values)
    validate_masks(folder / "masks", rows, values=values)
    return folder / "masks"


def validate(data: Path, folder: Path, *, read_test: Callable, values, list_tiles: Callable | None = None) -> None:
    """InputError where the folder's masks/ are not a mask for every tile to be predicted, as `write` leaves them.

    These tiles are what `read_test(data)` reads. list_tiles(data, ids): all tiles of a folder, for a task whose test
    rows are files among others, which folds.csv tells apart: then they are those of the table of predictions beside
    masks/ or, without one and where read_test reads none, those of the masks, of which there must be one.
    """
    masks, table, rows = folder / "masks", folder / NAMES["pred"], read_test(data)
    if list_tiles and table.is_file():
        rows = chosen(list_tiles, data, read_set(table)["id"])
    elif list_tiles and not len(rows):
        rows = list_tiles(data, rows["id"])
        there = [(masks / mask_name(path)).is_file() for path in rows["path"]]
        rows = rows[there] if any(there) else rows
    if not len(rows):
        raise InputError(f"{data}: holds no tile to be predicted; give --data with the folder that was predicted")
    validate_masks(masks, rows, values=values)


def chosen(list_tiles: Callable, data: Path, ids: pd.Series) -> pd.DataFrame:
    """The tiles of these ids; InputError for one that the folder has not."""
    tiles = list_tiles(data, ids)
    if lacking := sorted(set(ids) - set(tiles["id"])):
        raise InputError(f"{data}: has no tile {lacking[0]} ({len(lacking)} of {len(ids)}); give --data with the "
                         "folder that was predicted")  # fmt: skip
    return tiles[tiles["id"].isin(ids)]


# pictures


def sheet(batch: dict, spec: dict, path: Path) -> Path:
    """Picture of a batch as it is trained on: image (B,C,H,W), target (B,H,W), valid (B,H,W) and id of `collate`."""
    arrays = (batch[name].numpy() for name in ("image", "target", "valid"))
    return draw_tile_sheet(*arrays, batch["id"], bands=spec["inputs"], outputs=spec["outputs"], path=path)


def samples(frame: pd.DataFrame, rows: pd.DataFrame, spec: dict, path: Path, *, source: Source) -> None:
    """Picture of some validation tiles: image, truth, prediction and error where the tile has data and its label says
    what is there. frame.attrs["shown"]: {id: predicted classes (H,W)}; rows: id, path and label of these at least."""
    shown = frame.attrs["shown"]
    some = rows[rows["id"].isin(shown)]
    tiles = [source.read_tile(name, spec["bands"]) for name in some["path"]]
    labels = [source.read_label(name, spec["label_map"]) for name in some["label"]]
    valid = [valid_pixels(tile) & (label != IGNORED) for tile, label in zip(tiles, labels, strict=True)]
    targets = [np.where(known, label, 0) for known, label in zip(valid, labels, strict=True)]
    preds = [shown[name] for name in some["id"]]
    draw_tile_samples(tiles, targets, preds, valid, list(some["id"]), bands=spec["bands"], outputs=spec["outputs"],
                      path=path)  # fmt: skip


# sets and the task


def concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    for frame in frames:
        frame.attrs = {}
    return pd.concat(frames, ignore_index=True)


def run_name(settings: dict, name: str) -> str:
    return f"{name}-{settings['arch']}-{settings['encoder']}-s{settings['seed']}"


# fields of a Task that are the same for every competition of the family
FIELDS = {
    "build_model": build_model,
    "plan": plan,
    "build_loss": make_loss,
    "collate": collate,
    "init_worker": init_worker,
    "units": "probabilities",
    "bad_answer": "background everywhere",
    "to_pred": to_pred,
    "reads": lambda spec: {name: spec[name] for name in ("bands", "scaling", "mean", "std")},
    "keep": keep_maps,
    "make_frame": make_frame,
    "say_epoch": say_epoch,
    "read_set": read_set,
    "read_run": read_run,
    "write_set": write_set,
    "truth_of": lambda frame: frame,
    "mean_sets": mean_sets,
    "concat": concat,
}


def fields_of_source(source: Source, curve: Callable | None) -> dict:
    """Fields of a Task that read tiles. curve: see make_segmentation_task."""
    draw = {"sheet": sheet, "samples": partial(samples, source=source)}
    return {
        "prepare": partial(prepare, source=source),
        "open_training": lambda rows, spec, settings: open_training(rows, spec, settings, source=source)[0],
        "open_rows": partial(open_rows, source=source),
        "draw": draw | ({"curve": curve} if curve else {}),
    }


def make_segmentation_task(
    *,
    name: str,
    slug: str,
    outputs: tuple[str, ...],
    bands: tuple[str, ...],
    source: Source,
    outputs_of: Callable,
    label_maps: Callable,
    read_test: Callable,
    add_arguments: Callable | None = None,
    search: Callable[[], list[Path]] = lambda: [Path("weights")],
    add_post: Callable = add_post_options,
    ordered: bool = False,
    spec: dict | None = None,
    curve: Callable | None = None,
    **own,
) -> Task:
    """A Task of the family; `own` are the fields that only the competition knows (readers, defaults, gates …).

    outputs_of(rows or set) -> classes of these labels, which may be fewer than `outputs`; label_maps(rows, settings)
    -> {raw value: class index}; read_test(data) -> rows without labels; add_post(parser): options of what is made of
    maps; ordered: the outputs have an order, which heads, losses and oversampling may use; spec: what make_spec adds;
    curve(set, path) -> path: a picture of a fold's predictions beside the family's.
    """

    def options(parser, script):
        add_options(parser, script, bands, binary=len(outputs) == 2, ordered=ordered, post=add_post)
        if add_arguments:
            add_arguments(parser, script)

    facts = {"outputs_of": outputs_of, "label_maps": label_maps, "source": source}
    family = FIELDS | fields_of_source(source, curve)
    family |= {
        "add_arguments": options,
        "make_spec": partial(make_spec, name=name, bands=bands, own=spec or {}, **facts),
        "target_columns": outputs_of,
        "load_weights": lambda model, spec, settings: load_weights(model, spec, settings, search=search()),
        "score": partial(make_score, outputs_of=outputs_of),
        "read_test": read_test,
        "write": partial(write, read_test=read_test),
        "run_name": partial(run_name, name=name),
    }
    return Task(name=name, slug=slug, family="segmentation", outputs=outputs, bands=bands, **family | own)
