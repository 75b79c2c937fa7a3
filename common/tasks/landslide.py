"""Landslide risk from terrain: three ordered classes (or two) of named bands, by Cohen's kappa.

Tiles are read by datasets/landslide_files.py and cut from rasters by datasets/cutting.py; what ordered classes ask of
scores, post-processing and maps is in tasks/ordered.py and tasks/ordered_maps.py.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets import demo_landslide, overlap_folds
from common.datasets import landslide_files as files
from common.datasets.band_tiles import available_bands
from common.datasets.cutting import check_cut, cut_tiles
from common.datasets.folds import ALWAYS, TEST
from common.datasets.locate import KAGGLE_INPUT
from common.datasets.stacking import check_output, keep_stack
from common.datasets.tiles import Source
from common.errors import InputError
from common.post.mask_blend import BLENDS, apply_blend
from common.tasks import ordered
from common.tasks.ordered_maps import add_map_options, map_scenes
from common.tasks.segmentation import make_segmentation_task, validate
from common.tasks.segmentation import write as write_tiles
from common.tasks.segmentation_data import study_tiles
from common.tasks.segmentation_options import parse_label_map
from common.tasks.segmentation_post import read_truth_folder
from common.tasks.success_rate import add_success, check_jobs

AUTO = "auto"  # the folders train and val where tiles came in such, else blocks
VALUES = {2: (0, 1), 3: (0, 1, 2)}  # of the classes in a mask
# V2.5 without its oversampling, which a recipe asks for: recipes/landslide-v2.5.yaml
DEFAULTS = {
    "encoder": "efficientnet-b4",
    "spatial_attention": "head",
    "head": "coral",
    "loss": ["focal=.7", "dice=.3"],
    "focal_gamma": 2.5,
    "focal_alpha": [0.4, 2.5, 2.0],
    "ordinal_smoothing": 0.2,
    "weights": "none",
    "thresholds": ["production"],
    "crop": 256,
    "batch_size": 8,
    "epochs": 60,
    "lr": 1e-3,
    "ema_decay": 0.98,
    "augment": ["hflip=.5", "vflip=.5", "rot90=.75"],
}
# For two cores and the drawn terrain: see LOG.md.
DEMO_DEFAULTS = {
    "encoder": "tu-test_byobnet",
    "decoder": [64, 48, 32, 24, 16],
    "spatial_attention": "none",
    "head": "softmax",
    "ordinal_smoothing": 0.0,
    "loss": ["cross-entropy=.5", "dice=.5"],
    "crop": 128,
    "crops_per_epoch": 120,
    "batch_size": 8,
    "epochs": 18,
    "lr": 5e-3,
    "ema_decay": 0.97,
    "workers": 0,
    "samples_every": 18,
}


def read_rows(data: Path, settings: dict) -> pd.DataFrame:
    known = parse_label_map(settings["label_map"])
    rows = files.read_rows(Path(data), bands=settings.get("bands") or None, label_map=known)
    if settings.get("shuffle_images"):
        order = np.random.default_rng(0).permutation(len(rows))
        of_label = ["label", *files.outputs_of(rows)]
        rows[of_label] = rows[of_label].to_numpy()[order]
        rows = rows.astype({name: float for name in files.outputs_of(rows)})
        print("SHUFFLED: labels were exchanged between tiles at random; the score must be a constant's")
    return rows.assign(bands="\n".join(settings["bands"])) if settings.get("bands") else rows


def check_rows(rows: pd.DataFrame) -> list[str]:
    """Findings on the bands that the rows were read with, else on all of the first tile."""
    return files.check_rows(rows, rows["bands"].iloc[0].split("\n") if "bands" in rows else None)


def read_test(data: Path) -> pd.DataFrame:
    """Tiles of a test folder, or of a folder without labels; where labels lie beside, the folds say which are test.

    Beside folders of train and val that use the same names, test is put before those of test.
    """
    data = Path(data)
    home = next((one for one in (data / "tiles", data) if (one / "train").is_dir()), data)
    split, test = (home / "train").is_dir(), home / "test"
    labelled = test if split else data
    own = any((labelled / name).is_dir() for name in files.LABELS) and (split or not test.is_dir())
    if own or (split and not (test / "images").is_dir()):
        return pd.DataFrame({"id": [], "path": []}, dtype=str)
    tiles = files.list_tiles(home)
    others = [home / name / "images" for name in ("train", "val") if split]
    if {path.stem for folder in others if folder.is_dir() for path in folder.iterdir()} & set(tiles["id"]):
        tiles["id"] = "test_" + tiles["id"]
    return tiles


def label_maps(rows: pd.DataFrame, settings: dict) -> dict[int, int]:
    return files.label_map_of(rows, parse_label_map(settings["label_map"]))


def make_folds(rows: pd.DataFrame, *, scheme: str, folds: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(fold, group) by contiguous blocks, or as the folders of a published split say."""
    scheme = None if scheme == AUTO else scheme
    return overlap_folds.make_folds(rows, scheme=scheme, folds=folds, seed=seed, outputs=files.outputs_of(rows))


def check_folds(rows: pd.DataFrame, fold: np.ndarray, path: Path, settings: dict) -> list[str]:
    """InputError where tiles of two sides share pixels; of a split that is made to leak a line."""
    return overlap_folds.check_overlap(rows, fold, rows["id"] if settings["scheme"] == "random" else None)


def prepare_rows(model, train_rows, valid_rows, *rest, family: Callable):
    """The family's; InputError for folds of other hands by which the two sides share pixels."""
    said = []
    if valid_rows is not None:
        rows = pd.concat([train_rows, valid_rows], ignore_index=True)
        fold = np.repeat([ALWAYS, 0], [len(train_rows), len(valid_rows)])
        said = overlap_folds.check_overlap(rows, fold, rows["group"])
    prepared = family(model, train_rows, valid_rows, *rest)
    return replace(prepared, said=[*said, *prepared.said])


def make_spec(rows: pd.DataFrame, settings: dict, *, family) -> dict:
    """The family's, of the bands asked for or all that the tiles have; none of them may be constant or all no data."""
    bands = settings["bands"] or available_bands(rows["path"].iloc[0])
    files.check_bands(rows, bands)
    texture = settings["texture_band"]
    if texture == TASK.bands[0] and texture not in bands:  # the default, of tiles that have no such band
        texture = bands[0]
    return family(rows, settings | {"bands": bands, "texture_band": texture})


def build_loss(spec: dict, settings: dict, *, family: Callable) -> Callable:
    """The family's; two classes get the first and the last of the three weights that are the task's default."""
    if len(spec["outputs"]) == 2 and settings["focal_alpha"] == DEFAULTS["focal_alpha"]:
        settings = settings | {"focal_alpha": settings["focal_alpha"][::2]}
    return family(spec, settings)


def cut(settings: dict, inside: Callable) -> None:
    """make_folds.py --raster, --dem: the folder of tiles that --data names, cut from whole rasters.

    inside(path) -> the path, or what demo/… means. InputError for options that do not go together.
    """
    given = {name: inside(settings[name]) for name in ("dem", "land_cover") if settings[name]}
    rasters = [inside(path) for path in settings["raster"]]
    if not rasters and not given:
        if settings["labels"] or settings["aoi"]:
            raise InputError("--labels, --aoi: go with rasters to cut tiles from; give --raster or --dem")
        return
    if not settings["data"] or not settings["labels"]:
        raise InputError("--raster, --dem: the tiles need --data, the folder they go to, and --labels")
    out = Path(settings["data"])
    labels, aoi = (inside(settings[name]) if settings[name] else None for name in ("labels", "aoi"))
    grid = (rasters or list(given.values()))[0]
    stack = out / "stack" / f"{grid.stem}.tif"
    check_output(stack, [path for path in (labels, aoi) if path])
    tiling, known = {name: settings[name] for name in ("side", "stride")}, parse_label_map(settings["label_map"])
    known = check_cut(labels, aoi, grid, known and files.label_map_of(None, known), **tiling)
    keep_stack(stack, rasters=rasters, **given)
    rows = cut_tiles(stack, labels, out, aoi=aoi, label_map=known, **tiling)
    print(f"cut: {len(rows)} tiles of {settings['side']} px every {settings['stride']}, in {out}; bands in {stack}")


def study_data(rows, test, fold, settings: dict, **studies) -> list[str]:
    both = pd.concat([rows[["id", "path"]], test], ignore_index=True)
    side = np.concatenate([np.asarray(fold), np.full(len(test), TEST)])
    bands = settings["bands"] or available_bands(both["path"].iloc[0])
    return study_tiles(both, side, both["id"], partial(files.read_tile, bands=bands), bands, **studies)


def list_tiles(data: Path, ids: pd.Series) -> pd.DataFrame:
    """id and path of the tiles of a folder, these ids among them; InputError for one that it has not.

    Tiles with labels may be named after their split, see read_rows.
    """
    tiles, ids = files.list_tiles(data), set(ids)
    if not ids <= set(tiles["id"]):
        tiles = files.read_rows(data, require_labels=False)[["id", "path"]]
    if lacking := sorted(ids - set(tiles["id"])):
        raise InputError(f"{data}: has no tile {lacking[0]} ({len(lacking)} of {len(ids)}); give --data with the "
                         "folder that was predicted")  # fmt: skip
    return tiles


def write(frame: pd.DataFrame, data: Path, folder: Path) -> Path:
    tiles = list_tiles(data, frame["id"])
    return write_tiles(frame, data, folder, read_test=lambda _: tiles[tiles["id"].isin(frame["id"])])


def add_arguments(parser, script: str) -> None:
    if script in ("folds", "train"):
        own = parser.add_argument_group("bands")
        own.add_argument("--bands", nargs="+", default=[], metavar="BAND", help="by name (default: all of the tiles)")
    if script == "folds":
        cutter = parser.add_argument_group("tiles from whole rasters, cut into --data")
        cutter.add_argument("--raster", nargs="+", type=Path, default=[], metavar="TIF", help="rasters of bands")
        cutter.add_argument("--dem", type=Path, metavar="TIF", help="elevation: terrain bands are derived of it")
        cutter.add_argument("--land-cover", type=Path, metavar="TIF", help="classes that become a band each")
        cutter.add_argument("--labels", type=Path, metavar="FILE", help="raster of the classes")
        cutter.add_argument("--aoi", type=Path, metavar="FILE", help="area of interest, a raster or polygons")
        cutter.add_argument("--side", type=int, default=256, help="of a tile in pixels")
        cutter.add_argument("--stride", type=int, default=128, help="from tile to tile in pixels")
    if script == "infer":
        add_map_options(parser)
    if script == "ensemble":
        add_success(parser)


SOURCE = Source(
    read_tile=files.read_tile,
    read_label=files.read_label,
    files_of=files.files_of,
    size_of=files.size_of,
    label_files=files.label_files,
)
TASK = make_segmentation_task(
    name="landslide",
    slug="landslide",
    outputs=files.CLASSES,
    bands=("slope",),
    source=SOURCE,
    ordered=True,
    outputs_of=files.outputs_of,
    label_maps=label_maps,
    read_test=read_test,
    one_folder=True,
    add_arguments=add_arguments,
    add_post=ordered.add_post,
    search=lambda: [Path("weights"), KAGGLE_INPUT],
    markers={"train": ("images|tiles/train/images|train/images",), "test": ("images|test/images|tiles/test/images",)},
    defaults=DEFAULTS,
    demo_defaults=DEMO_DEFAULTS,
    demo_version=demo_landslide.DEMO_VERSION,
    schemes=(AUTO, *overlap_folds.SCHEMES),
    make_demo=demo_landslide.make_demo,
    cut=cut,
    read_rows=read_rows,
    read_truth=read_truth_folder(read_rows),
    make_folds=make_folds,
    check_folds=check_folds,
    describe_folds=lambda rows, fold, group: overlap_folds.describe_folds(
        rows, fold, group, outputs=files.outputs_of(rows)
    ),
    check_data=check_rows,
    study_data=study_data,
    score=partial(ordered.score, outputs_of=files.outputs_of),
    say_epoch=ordered.say_epoch,
    fit_post=partial(ordered.fit_post, source=SOURCE, outputs_of=files.outputs_of),
    apply_post=partial(ordered.apply_post, source=SOURCE, values=VALUES, list_tiles=list_tiles),
    write=write,
    validate=partial(validate, read_test=read_test, values=VALUES[3], list_tiles=list_tiles),
    blends=("mean", *sorted(set(BLENDS) - {"mean"})),
    judge=partial(ordered.judge, source=SOURCE, outputs_of=files.outputs_of),
    blend=apply_blend,
    check_jobs=check_jobs,
    compare=partial(ordered.compare, source=SOURCE, outputs_of=files.outputs_of),
    published=ordered.PUBLISHED,
    score_hidden=partial(ordered.score_hidden, source=SOURCE, outputs=files.CLASSES),
    gates=ordered.GATES,
    baselines=partial(ordered.baselines, source=SOURCE, outputs_of=files.outputs_of, label_maps=label_maps),
    map_scenes=map_scenes,
    report=partial(ordered.report, source=SOURCE, outputs_of=files.outputs_of, check_rows=check_rows),
)
own = {"make_spec": make_spec, "prepare": prepare_rows, "build_loss": build_loss}
TASK = replace(TASK, **{name: partial(one, family=getattr(TASK, name)) for name, one in own.items()})
