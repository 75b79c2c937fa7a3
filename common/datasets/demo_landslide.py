"""The built-in landslide set in the real folder format: tiles cut from a drawn country whose risk no pixel shows alone.

The generator knows the risk of every place and the noise its classes were drawn with (demo_relief.class_probs), so the
likeliest class at each risk gives the best reachable scores (Bayes' rule; what held the ground back where the
risk was high, and where a boundary wandered, no map can know).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio

from common.datasets.cutting import cut_tiles
from common.datasets.demo_relief import (
    CELL,
    COVERS,
    Ground,
    Rule,
    class_probs,
    draw_classes,
    draw_ground,
    factors_of,
    learn_rule,
    risk_of,
)
from common.datasets.demo_terrain import blobs
from common.datasets.stacking import stack_bands
from common.datasets.terrain import terrain_bands
from common.errors import InputError
from common.files import atomic_write
from common.metrics.ordinal import cohens_kappa, spearman, value_histogram
from common.metrics.segmentation import confusion

DEMO_VERSION = 4
CLASSES = ("low", "medium", "high")
IGNORED = 255
TAG, SENTINEL = -9999.0, np.float32(-3.4028235e38)
EPSG = 32633
CORNER = {"train": (500000.0, 5280000.0), "test": (560000.0, 5240000.0)}  # metres
LINES = 3  # lines of the soil band that hold the sentinel


@dataclass(frozen=True)
class Area:
    """An area as files show it, and what is known of it; arrays (H, W)."""

    dem: np.ndarray  # float32 metres, TAG for no data
    image: np.ndarray  # float32 (2, H, W) ndvi, soil; NaN and SENTINEL for no data
    cover: np.ndarray  # uint8 of COVERS
    label: np.ndarray  # uint8 class, IGNORED where nobody looked
    inside: np.ndarray  # bool, of the area of interest
    probs: np.ndarray  # float32 (3, H, W): what is left to chance once the risk is known


def lose_data(rng: np.random.Generator, ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """(dem, image) of a ground with gaps of all kinds: a hole by tag, a swath's edge of NaN, lines of the sentinel."""
    shape = ground.dem.shape
    hole = blobs(rng, shape, 60)
    dem = np.where(hole > np.quantile(hole, 0.985), np.float32(TAG), ground.dem)
    image = np.stack([ground.ndvi, ground.soil])
    rows, cols = np.arange(shape[0])[:, None], np.arange(shape[1])
    image[:, rows + 0.5 * cols + 4 * blobs(rng, shape, 12) < 0.16 * shape[0]] = np.nan
    for row in rng.choice(shape[0] - 40, LINES, replace=False):
        left = rng.integers(shape[1] // 2)
        image[1, row + 20, left : left + shape[1] // 3] = SENTINEL
    return dem, image


def draw_area(seed: int, name: str, shape: tuple[int, int], rule: Rule | None = None) -> tuple[Area, Rule]:
    """An area and the rule of its classes: the given one, else the one that gives it the SHARES of demo_relief."""
    rng = np.random.default_rng([seed, *name.encode()])
    ground = draw_ground(rng, shape)
    dem, image = lose_data(rng, ground)
    factors = factors_of(np.where(dem == TAG, np.nan, dem), np.where(image[1] == SENTINEL, np.nan, image[1]))
    rule = rule or learn_rule(factors)
    risk = risk_of(factors, rule.mean, rule.std)
    label = draw_classes(rng, risk, rule)
    unseen, away = blobs(rng, shape, 25), blobs(rng, shape, 150)
    label[unseen > np.quantile(unseen, 0.99)] = IGNORED
    inside = away < np.quantile(away, 0.95)
    return Area(dem, image, ground.cover, label, inside, class_probs(risk, rule).astype(np.float32)), rule


def write_raster(path: Path, values: np.ndarray, name: str, *, names: tuple = (), nodata=None) -> Path:
    """(bands, H, W) of an area as a GeoTIFF of CELL metres a pixel at the place of `name`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    profile |= {"dtype": values.dtype, "crs": f"EPSG:{EPSG}", "nodata": nodata, "compress": "deflate", "zlevel": 1}
    profile["transform"] = rasterio.transform.from_origin(*CORNER[name], CELL, CELL)
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        file.descriptions = names or (None,) * len(values)
    return path


def write_rasters(folder: Path, name: str, area: Area) -> None:
    """dem.tif, image.tif, landcover.tif, labels.tif, aoi.tif: all that tiles and maps are made from."""
    write_raster(folder / "dem.tif", area.dem[None], name, nodata=TAG)
    write_raster(folder / "image.tif", area.image, name, names=("ndvi", "soil"))
    write_raster(folder / "landcover.tif", area.cover[None], name)
    write_raster(folder / "labels.tif", area.label[None], name, nodata=IGNORED)
    write_raster(folder / "aoi.tif", area.inside[None].astype(np.uint8), name)


def stack_rasters(folder: Path, out: Path) -> Path:
    """One raster of all bands from those of write_rasters."""
    return stack_bands(out, rasters=[folder / "image.tif"], dem=folder / "dem.tif", land_cover=folder / "landcover.tif",
                       land_cover_values=COVERS)  # fmt: skip


def vary_nodata(images: Path) -> None:
    """Rewrite tiles that lack data, as several hands would have cut them: NaN stays NaN in a third, a third has TAG and
    says so, a third has the bare SENTINEL and says nothing."""
    lacking = 0
    for path in sorted(images.iterdir()):
        with rasterio.open(path) as file:
            values, profile, names = file.read(), file.profile, file.descriptions
        gaps = np.isnan(values)
        if not gaps.any():
            continue
        lacking += 1
        kind = {0: None, 1: (TAG, TAG), 2: (SENTINEL, None)}[lacking % 3]
        if kind:
            values[gaps], profile["nodata"] = kind
            path.unlink()
            with rasterio.open(path, "w", **profile) as file:
                file.write(values)
                file.descriptions = names


def write_train(folder: Path, area: Area, tile: int, stride: int) -> int:
    """rasters/ and the tiles cut from them; how many."""
    rasters, work = folder / "rasters", folder / ".work"
    write_rasters(rasters, "train", area)
    stack = stack_rasters(rasters, work / "train.tif")
    rows = cut_tiles(stack, rasters / "labels.tif", folder, aoi=rasters / "aoi.tif", side=tile, stride=stride)
    vary_nodata(folder / "images")
    return len(rows)


def write_test(folder: Path, area: Area, tile: int) -> int:
    """scenes/area.tif, test/images of it side by side, and the classes of both under hidden/; how many tiles."""
    work = folder / ".work" / "test"
    write_rasters(work, "test", area)
    (folder / "scenes").mkdir(exist_ok=True)
    scene = stack_rasters(work, folder / "scenes/area.tif")
    rows = cut_tiles(scene, None, folder / "test", side=tile, stride=tile)
    vary_nodata(folder / "test/images")
    write_raster(folder / "hidden/area.tif", area.label[None], "test", names=("class",), nodata=IGNORED)
    (folder / "hidden/labels").mkdir()
    for row in rows.itertuples():
        with rasterio.open(folder / f"test/images/{row.id}.tif") as file:
            place = {"crs": file.crs, "transform": file.transform, "height": file.height, "width": file.width}
        label = area.label[row.y : row.y + tile, row.x : row.x + tile]
        layout = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": IGNORED, "compress": "deflate"}
        with rasterio.open(folder / f"hidden/labels/{row.id}.tif", "w", **layout, **place) as file:
            file.write(label, 1)
    return len(rows)


def facts_of(area: Area, *, whole: bool) -> dict:
    """What the generator knows of an area, over its labelled pixels with data, in the area of interest unless `whole`.

    best: kappa of the likeliest class; best_gates: kappa, precision of medium, recall of high, rho of the same; shares
    of the classes; nodata: share of all pixels.
    """
    dem, soil = (np.where(np.abs(x) > 1e30, np.nan, x) for x in (area.dem, area.image[1]))
    bands = terrain_bands(np.where(dem == TAG, np.nan, dem), pixel=(CELL, CELL))
    known = np.isfinite(bands["slope"]) & np.isfinite(soil)
    valid = known & (area.label != IGNORED) & (area.inside | whole)
    target = np.where(valid, area.label, 0)
    counts = confusion(target, area.probs.argmax(0), valid, len(CLASSES))
    hist = value_histogram(0.5 * area.probs[1] + area.probs[2], target, valid, classes=len(CLASSES))
    gates = {"kappa": cohens_kappa(counts), "precision_medium": float(counts[1, 1] / counts[:, 1].sum()),
             "recall_high": float(counts[2, 2] / counts[2].sum()), "rho": spearman(hist)}  # fmt: skip
    shares = dict(zip(CLASSES, (counts.sum(1) / counts.sum()).tolist(), strict=True))
    return {"best": gates["kappa"], "best_gates": gates, "shares": shares, "nodata": float(1 - known.mean())}


def make_demo(
    folder: Path, *, tile: int = 128, stride: int = 64, train: tuple = (896, 896), test: tuple = (640, 640), seed=0
) -> dict:
    """Write the set into `folder`: images/, labels/, tiles.csv and bands.txt (overlapping tiles of an area), rasters/
    (what they were cut from), test/images/ and scenes/area.tif (another area), hidden/ (its classes), demo.json.

    tile, stride: pixels of the training tiles, those of the test lie side by side; train, test: height and width of
    the areas. Returns what demo.json holds: version, seed, `best` and `best_gates` of the training area, and `train`
    and `test` with what facts_of() gives and the number of tiles. The same seed gives the same bytes. InputError: an
    area too small to draw.
    """
    if min(*train, *test) < max(tile, 192) or tile < 64 or not 1 <= stride <= tile:
        raise InputError(f"demo set: areas of 192 pixels and a tile of 64 at least, got {train}, {test}, tile {tile}")
    folder = Path(folder)
    learnt, rule = draw_area(seed, "train", train)
    held, _ = draw_area(seed, "test", test, rule)
    try:
        tiles = {"train": write_train(folder, learnt, tile, stride), "test": write_test(folder, held, tile)}
    finally:
        shutil.rmtree(folder / ".work", ignore_errors=True)
    facts = {"version": DEMO_VERSION, "seed": seed}
    facts |= {"train": facts_of(learnt, whole=False) | {"tiles": tiles["train"]}}
    facts |= {"test": facts_of(held, whole=True) | {"tiles": tiles["test"]}}
    facts |= {key: facts["train"][key] for key in ("best", "best_gates")}
    atomic_write(folder / "demo.json", json.dumps(facts, indent=1))
    return facts
