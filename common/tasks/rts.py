"""Retrogressive thaw slumps from PlanetScope: one rare class, calibrated maps of whole scenes, by the IoU of slumps.

Tiles are read by datasets/rts_files.py; what has to do with one rare class is in tasks/rare_class.py, scenes are mapped
by tasks/scene_maps.py.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets import demo_rts, regions
from common.datasets import rts_files as files
from common.datasets.band_names import NUMBERED, SUFFIXES, described, find_bands
from common.datasets.label_grids import compare_labels, label_files
from common.datasets.locate import KAGGLE_INPUT
from common.datasets.tile_folders import list_files
from common.datasets.tiles import Source
from common.errors import InputError
from common.files import atomic_write
from common.metrics.gates import check_gates
from common.outputs.detection_figures import draw_pr_curve
from common.outputs.detection_report import write_detection_report
from common.post.mask_blend import apply_blend
from common.tasks import rare_class as rare
from common.tasks.scene_maps import add_scene_options, map_scenes
from common.tasks.segmentation import make_segmentation_task, validate
from common.tasks.segmentation import write as write_tiles
from common.tasks.segmentation_data import study_tiles
from common.tasks.segmentation_options import parse_label_map
from common.tasks.segmentation_post import read_truth_folder

FLAG = argparse.BooleanOptionalAction
VALUES = {2: (0, 1)}
DISTANCE = 2500.0  # metres; more than the diagonal of a tile of 512 pixels of 3 m, so that none of two sides touch
TRACKED = {  # names of MLflow's metrics
    "score": "val_balanced_iou_rts",
    "precision": "val_balanced_precision",
    "recall": "val_balanced_recall",
}
# The baseline of the field: recipes/rts-baseline.yaml says what it needs.
DEFAULTS = {
    "arch": "unetplusplus",
    "encoder": "efficientnet-b7",
    "crop": 512,
    "sampler": "ratio",
    "loss": ["focal"],
    "focal_alpha": [0.25],
    "foreground": True,
    "lr": 1e-4,
    "weight_decay": 1e-2,
    "epochs": 300,
    "patience": 20,
    "batch_size": "auto",
    "use": "best",
    "augment": ["rot90=.75", "hflip=.5", "vflip=.5", "shift-scale-rotate=.5", "elastic-fine=.3", "colour-jitter=.5"],
}
# For two cores and the drawn tundra: see LOG.md.
DEMO_DEFAULTS = {
    "arch": "unet",
    "encoder": "tu-test_byobnet",
    "decoder": [64, 48, 32, 24, 16],
    "weights": "none",
    "bands": ["red", "green", "blue", "ndvi"],
    "loss": ["cross-entropy=1", "dice=1"],
    "crop": 192,
    "crops_per_epoch": 150,
    "ratio": [2.0],
    "batch_size": 8,
    "epochs": 14,
    "patience": 0,
    "lr": 3e-3,
    "use": "ema",
    "ema_decay": 0.97,
    "augment": ["rot90=.75", "hflip=.5", "vflip=.5", "colour-jitter=.5"],
    "workers": 0,
    "samples_every": 14,
}


def read_rows(data: Path, settings: dict) -> pd.DataFrame:
    options = {"bands": settings.get("bands") or files.RGB, "labels": settings.get("labels") or "labels"}
    rows = files.read_rows(Path(data), **options, label_map=parse_label_map(settings["label_map"]))
    if settings.get("shuffle_images"):
        order, of_label = np.random.default_rng(0).permutation(len(rows)), ["label", *files.CLASSES, "positive"]
        rows[of_label] = rows[of_label].to_numpy()[order]
        rows = rows.astype({name: float for name in files.CLASSES} | {"positive": bool})
        print("SHUFFLED: labels were exchanged between tiles at random; the score must be a constant's")
    return rows


def read_test(data: Path) -> pd.DataFrame:
    """Tiles of a folder without labels; in one with labels or splits.yaml the folds say which rows are test."""
    data = Path(data)
    if (data / regions.SPLITS).is_file() or any(data.glob("label*")):
        return pd.DataFrame({"id": [], "path": []}, dtype=str)
    return list_tiles(data)


def list_tiles(data: Path) -> pd.DataFrame:
    paths = list_files(files.image_folder(data), SUFFIXES)
    return pd.DataFrame({"id": list(paths), "path": [str(path) for path in paths.values()]})


def write(frame: pd.DataFrame, data: Path, folder: Path) -> Path:
    tiles = list_tiles(data)
    return write_tiles(frame, data, folder, read_test=lambda _: tiles[tiles["id"].isin(frame["id"])])


def make_spec(rows: pd.DataFrame, settings: dict, *, family) -> dict:
    """The family's, of bands by name: a number is the name that it has in all tiles, or stays a number."""
    tiles = list_tiles(Path(rows["path"].iloc[0]).parent.parent)["path"]  # those that are not trained on too
    named = {band: name_of(band, tiles) for band in {*settings["bands"], settings["texture_band"]}}
    bands = [named[band] for band in settings["bands"]]
    return family(rows, settings | {"bands": bands, "texture_band": named[settings["texture_band"]]})


def name_of(band: str, paths) -> str:
    """Name of a band given by number where every tile has just this one there, else the number as given."""
    if not NUMBERED.match(band):
        return band.lower()
    names = set()
    for path in map(Path, paths):
        try:
            ((file, number),) = find_bands(path, [band])
        except InputError:  # a tile that read_rows left out, or it would have been told there
            continue
        names.add(described(file, image=file == path)[0][number - 1])
    return names.pop() if len(names) == 1 and "" not in names else band


def outputs_of(rows: pd.DataFrame) -> tuple[str, ...]:
    return files.CLASSES


def label_maps(rows: pd.DataFrame, settings: dict) -> dict[int, int]:
    return parse_label_map(settings["label_map"]) or files.LABEL_MAP


def make_folds(rows: pd.DataFrame, **options) -> tuple[np.ndarray, np.ndarray]:
    """(fold, group) by whole regions; splits.yaml of the data folder is what the scheme split follows."""
    data = Path(rows["path"].iloc[0]).parent.parent
    return regions.make_folds(rows, **options, splits=regions.read_splits(data))


def limit_of(settings: dict) -> float:
    """Metres between centres that sides of a split keep; where folds are made without being asked for, DISTANCE."""
    limit = settings.get("distance", DISTANCE)
    if not 0 <= limit < np.inf:
        raise InputError(f"--distance {limit:g}: give a number of metres, 0 for none")
    return limit


def check_folds(rows: pd.DataFrame, fold: np.ndarray, path: Path, settings: dict) -> list[str]:
    """How near the sides of the split are, all of it in distances.csv beside the folds (path).

    InputError where a tile is too near to another side; a split by hand, or one that leaks and says so, is told only.
    """
    table, lines = regions.distance_report(rows, fold, limit_m=limit_of(settings))
    path = atomic_write(path.with_name("distances.csv"), table.to_csv(index=False))
    if settings["scheme"] != "random" and not settings.get("hold"):
        regions.check_distances(table, limit_of(settings), path)
    return [*lines, f"distances: {path}"]


def study_data(rows, test, fold, settings: dict, **studies) -> list[str]:
    """What two sets of labels differ by, and findings that need all pixels."""
    data, lines = Path(rows["path"].iloc[0]).parent.parent, []
    if settings["compare_labels"]:
        other, _ = files.label_column(data, rows["path"], settings["compare_labels"])
        lines.append(f"{settings['labels'] or 'labels'} against {settings['compare_labels']}, which counts as true:")
        known = parse_label_map(settings["label_map"])
        lines.append(compare_labels(rows, rows["label"], other, label_map=known).round(3).to_string(index=False))
    return lines + study_tiles(rows, fold, rows["region"], files.read_tile, files.RGB, **studies)


def add_arguments(parser, script: str) -> None:
    if script in ("folds", "train"):
        data = parser.add_argument_group("rts data")
        data.add_argument(
            "--labels", help="folder, bandN or band:NAME of the images, or a vector file (default: labels)"
        )
    if script == "train":
        data.add_argument("--bands", nargs="+", default=list(files.RGB), metavar="BAND",
                          help="red, green, blue and bands of EXTRA by name")  # fmt: skip
    if script == "folds":
        data.add_argument("--distance", type=float, default=DISTANCE, metavar="M", help="between the centres of tiles "
                          "of two sides of the split, at least (default %(default)g; 0: any)")  # fmt: skip
        data.add_argument("--compare-labels", metavar="WHAT", help="other labels, as --labels, that count as true")
    if script == "infer":
        add_scene_options(parser, FLAG)
    if script == "ensemble":
        rare.add_jobs(parser)


def report(path: Path, judgement: dict, members: list[dict], beside: dict, settings: dict) -> Path:
    rows = judgement["rows"]
    there = "path" in rows and all(Path(name).is_file() for name in rows["path"])
    return write_detection_report(
        path,
        title="Thaw slumps, out of fold",
        outputs=files.CLASSES,
        rows=rows,
        members=members,
        judgement=judgement,
        read_map=rare.read_map,
        beside=beside,
        bands=files.RGB,
        read_picture=(lambda row: files.read_tile(row["path"])) if there else None,
        gates=check_gates(judgement["metrics"], rare.GATES[settings.get("gates") or "minimum"]),
        findings=files.check_rows(rows) if "label" in rows else None,
        settings=settings,
    )


def read_tile(path: str, bands) -> np.ndarray:
    return files.read_tile(path, bands)


def map_with_blobs(paths, models, post, views, settings: dict, machine, folder: Path) -> bool:
    """scene_maps.map_scenes, where blobs are dropped as the call says or else as the thresholds were fitted."""
    settings = settings | {"min_blob": rare.blob_of(post, settings)}
    return map_scenes(paths, models, post, views, settings, machine, folder, cut_of=rare.cut_of_settings)


SOURCE = Source(read_tile=read_tile, read_label=files.read_label, files_of=files.files_of, size_of=files.size_of,
                label_files=label_files)  # fmt: skip
TASK = make_segmentation_task(
    name="rts",
    slug="rts",
    outputs=files.CLASSES,
    bands=files.RGB,
    source=SOURCE,
    outputs_of=outputs_of,
    label_maps=label_maps,
    read_test=read_test,
    one_folder=True,
    add_arguments=add_arguments,
    add_post=rare.add_post,
    spec={"maps": "logit", "colour": True, "prior": True},
    search=lambda: [Path("weights"), KAGGLE_INPUT],
    markers={"train": ("PLANET-RGB|tiles|images",), "test": ("PLANET-RGB|tiles|images",)},
    defaults=DEFAULTS,
    demo_defaults=DEMO_DEFAULTS,
    demo_version=demo_rts.DEMO_VERSION,
    schemes=tuple(regions.SCHEMES),
    make_demo=demo_rts.make_demo,
    read_rows=read_rows,
    read_truth=read_truth_folder(read_rows),
    make_folds=make_folds,
    fold_options=lambda settings: {"limit_m": limit_of(settings)},
    check_folds=check_folds,
    describe_folds=regions.describe_folds,
    check_data=files.check_rows,
    study_data=study_data,
    score=rare.score,
    say_epoch=rare.say_epoch,
    tracked=TRACKED,
    experiment="rts-segmentation-v2",
    fit_post=rare.fit_post,
    apply_post=partial(rare.apply_post, values=VALUES[2]),
    write=write,
    validate=partial(validate, read_test=read_test, values=VALUES[2], list_tiles=lambda data, ids: list_tiles(data)),
    blends=rare.BLENDS,
    judge=rare.judge,
    blend=apply_blend,
    compare=rare.compare,
    check_jobs=rare.check_jobs,
    gates=rare.GATES,
    baselines=partial(rare.baselines, files=files),
    jobs={"calibrate": rare.calibrate, "final_test": rare.final_test},
    map_scenes=map_with_blobs,
    report=report,
    curve=draw_pr_curve,
)
TASK = replace(TASK, make_spec=partial(make_spec, family=TASK.make_spec))
