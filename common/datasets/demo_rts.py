"""The built-in rts set in the real folder format: drawn tundra whose thaw slumps an analyst outlined by hand.

    label = the slumps as they are, outlines shifted by a wandering hand of SHIFT pixels; of all hollows drawn as slumps
            are a part (OVERLOOKED) carries no label, a part (UNSURE) is ignored

No map can know what was overlooked or how the hand shook, so the hollows as they are, with the best margin around them,
give the best reachable score. Burn scars are slumps in red, green and blue and differ in NDVI alone: a map from RGB
takes them for slumps or finds none, which gives the best score without NDVI. Stabilised scars, bare banks, shores and
gravel bars abound; they can be told from slumps, but no single pixel tells it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyogrio
import pyogrio.raw
import rasterio
import rasterio.features
import rasterio.warp
import shapely
import shapely.geometry
import yaml

from common.datasets.demo_terrain import fractal
from common.datasets.demo_tundra import Hollow, Look, Tundra, draw_tundra, look_at, place
from common.errors import InputError
from common.files import atomic_write

DEMO_VERSION = 4
CELL = 3.0  # metres a pixel
SHIFT, SHIFT_STEP = 1.1, 9  # pixels: standard deviation of the hand along each axis, and over which it wanders
SLUMP, OVERLOOKED, UNSURE, BURN, SCAR = "slump", "overlooked", "unsure", "burn", "scar"
ALIKE = (SLUMP, OVERLOOKED, UNSURE)
SHARES = {SLUMP: 0.82, OVERLOOKED: 0.12, UNSURE: 0.06}  # of the hollows drawn as slumps are, save a tile's first
STRENGTH = {BURN: (0.75, 1.25), SCAR: (0.05, 0.45)} | dict.fromkeys(ALIKE, (0.75, 1.25))
PER_TILE = {BURN: 0.45, SCAR: 0.8}  # in tiles with slumps and without
MORE = 1.6  # hollows like slumps in a tile with slumps, beside the first
IGNORED = 255
LOOKS = {"best": ALIKE, "best_rgb": (*ALIKE, BURN)}  # what cannot be told apart with NDVI, and without
MARGINS = np.arange(-1, 2.6, 0.5)  # pixels around the hollows as they are


@dataclass(frozen=True)
class Region:
    """A region's place (upper left corner in metres of an EPSG), tiles (rows, columns; with slumps) and look."""

    split: str
    epsg: int
    corner: tuple[float, float]
    tiles: tuple[int, int] = (5, 8)
    positive: int = 7
    look: Look = field(default_factory=Look)


REGIONS = {
    "Peel": Region("train", 32608, (500000.0, 7470000.0), (4, 9), 8, Look()),
    "Banks": Region("train", 32610, (450000.0, 8050000.0), (4, 9), 8, Look(0.6, 1.1, 6, -0.08, 0.1)),
    "Noatak": Region("train", 32603, (560000.0, 7560000.0), (5, 7), 7, Look(0.25, 0.9, 0, 0.05, 0.04)),
    "Yamal": Region("train", 32642, (520000.0, 7780000.0), (5, 7), 7, Look(0.5, 1.0, 12, -0.04, 0.12)),
    "Herschel": Region("val", 32607, (580000.0, 7715000.0), (5, 6), 7, Look(0.45, 1.05, 4, -0.03, 0.07)),
    "Gydan": Region("val", 32644, (470000.0, 7850000.0), (5, 6), 7, Look(0.35, 0.95, 8, 0.02, 0.08)),
    "Brooks": Region("test", 32605, (430000.0, 7590000.0), (5, 6), 7, Look(0.3, 1.0, 3, 0.0, 0.04)),
    "Taymyr": Region("test", 32647, (510000.0, 8210000.0), (5, 6), 7, Look(0.55, 0.95, 10, -0.06, 0.09)),
}
SCENE = Region("scene", 32608, (420000.0, 7560000.0), (8, 8), 14, Look(0.4, 1.0, 2, 0.0, 0.07))


def draw_size(rng: np.random.Generator) -> tuple[float, float]:
    """Length and width in pixels of a common slump: some 50 to 140 m."""
    length = np.exp(rng.uniform(np.log(16), np.log(46)))
    return length, length * rng.uniform(0.45, 0.85)


def choose_tiles(rng: np.random.Generator, region: Region) -> np.ndarray:
    """bool (rows, columns): `positive` tiles of the region, two of them side by side."""
    chosen = np.zeros(region.tiles, bool)
    row, col = rng.integers(region.tiles[0]), rng.integers(region.tiles[1] - 1)
    chosen[row, col : col + 2] = True
    rest = np.flatnonzero(~chosen)
    chosen.flat[rng.choice(rest, max(region.positive - 2, 0), replace=False)] = True
    return chosen


def place_all(rng, tundra: Tundra, region: Region, tile: int, long: tuple) -> list[Hollow]:
    """All hollows of a region. long: sizes of slumps that cross the edge of the two tiles that lie side by side, or
    lie anywhere if they are longer than a tile."""
    chosen = choose_tiles(rng, region)
    row, col = np.argwhere(chosen[:, :-1] & chosen[:, 1:])[0]
    beside, anywhere = (row * tile, col * tile + tile // 2, tile, tile), (0, 0, *tundra.taken.shape)
    wanted = [(SLUMP, size, anywhere if size[0] > tile else beside) for size in long]
    for row, col in np.ndindex(chosen.shape):
        box = (row * tile, col * tile, tile, tile)
        kinds = [kind for kind, number in PER_TILE.items() for _ in range(rng.poisson(number))]
        if chosen[row, col]:
            kinds = [SLUMP, *rng.choice(list(SHARES), rng.poisson(MORE), p=list(SHARES.values())), *kinds]
        wanted += [(str(kind), draw_size(rng), box) for kind in kinds]
    found = [
        place(rng, tundra, box, size, kind, rng.uniform(*STRENGTH[kind]), kind == BURN) for kind, size, box in wanted
    ]
    return [hollow for hollow in found if hollow is not None]


def draw_by_hand(rng: np.random.Generator, body: np.ndarray) -> np.ndarray:
    """The body (bool) as an analyst outlines it: displaced by a field of SHIFT pixels along each axis."""
    rows, cols = np.indices(body.shape, np.float32)
    down, right = (SHIFT * fractal(rng, body.shape, (SHIFT_STEP, 60), (1, 0.5)) for _ in range(2))
    return cv2.remap(body.astype(np.uint8), cols + right, rows + down, cv2.INTER_NEAREST) > 0


def draw_label(rng: np.random.Generator, shape: tuple[int, int], hollows: list[Hollow]) -> np.ndarray:
    """uint8 (H, W): 1 for slumps as drawn by hand, 255 for unsure ones, for some rims and for some patches beside."""
    label = np.zeros(shape, np.uint8)
    for hollow in hollows:
        part = label[hollow.window]
        if hollow.kind == SLUMP:
            drawn = draw_by_hand(rng, hollow.body).astype(np.uint8)
            part[drawn > 0] = 1
            if rng.random() < 0.25:
                wide = np.ones((3, 3), np.uint8)
                part[(cv2.dilate(drawn, wide) > cv2.erode(drawn, wide)) & (part != IGNORED)] = IGNORED
        elif hollow.kind == UNSURE:
            part[cv2.dilate(hollow.body.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0] = IGNORED
        elif hollow.kind == SCAR and rng.random() < 0.1:
            part[hollow.body] = IGNORED
    return label


@dataclass(frozen=True)
class Drawn:
    """A region as files show it, and what is known of it."""

    rgb: np.ndarray  # uint8 (3, H, W), 0 where there is no data
    extra: np.ndarray  # float32 (2, H, W): NDVI, relative elevation in metres; 0 where there is no data
    label: np.ndarray  # uint8 (H, W)
    valid: np.ndarray  # bool (H, W)
    hollows: list[Hollow]


def draw_region(seed: int, name: str, region: Region, tile: int, long: tuple) -> Drawn:
    rng = np.random.default_rng([seed, *name.encode()])
    shape = (region.tiles[0] * tile, region.tiles[1] * tile)
    tundra = draw_tundra(rng, shape, region.look)
    rows, cols = np.arange(shape[0])[:, None], np.arange(shape[1])
    valid = rows + 0.35 * cols > 0.5 * tile  # the edge of a satellite's swath
    tundra.taken[~valid] = True
    hollows = place_all(rng, tundra, region, tile, long)
    rgb, extra = look_at(rng, tundra, region.look)
    rgb[:, ~valid], extra[:, ~valid] = 0, 0
    return Drawn(rgb, extra, draw_label(rng, shape, hollows), valid, hollows)


def write_raster(path: Path, values: np.ndarray, corner, epsg: int, names: tuple = (), **options) -> None:
    """(bands, H, W) as a GeoTIFF of CELL metres a pixel; `corner` upper left in metres, `names` of the bands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    profile |= {"dtype": values.dtype, "crs": f"EPSG:{epsg}", "compress": "deflate", "zlevel": 1} | options
    profile["transform"] = rasterio.transform.from_origin(*corner, CELL, CELL)
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        for k, name in enumerate(names, 1):
            file.set_band_description(k, name)


def write_tiles(folder: Path, name: str, region: Region, drawn: Drawn, tile: int) -> pd.DataFrame:
    """The tiles of a region: image, EXTRA and label files, and its rows of metadata.csv (returned)."""
    rows = []
    owner = np.zeros(drawn.label.shape, np.int32)
    for k, hollow in enumerate(drawn.hollows, 1):
        owner[hollow.window][hollow.body & (hollow.kind == SLUMP)] = k
    for row, col in np.ndindex(region.tiles):
        window = np.s_[row * tile : (row + 1) * tile, col * tile : (col + 1) * tile]
        corner = (region.corner[0] + CELL * tile * col, region.corner[1] - CELL * tile * row)
        label, place = drawn.label[window], (corner, region.epsg)
        tile_id = f"{name.lower()}_r{row}_c{col}"
        write_raster(folder / f"PLANET-RGB/{tile_id}.tif", drawn.rgb[:, *window], *place, nodata=0)
        names = ("ndvi", "relative_elevation")
        write_raster(folder / f"EXTRA/{tile_id}.tif", drawn.extra[:, *window], *place, names, nodata=0)
        write_raster(folder / f"labels/{tile_id}.tif", label[None], *place)
        middle = [[corner[0] + CELL * tile / 2], [corner[1] - CELL * tile / 2]]
        (lon,), (lat,) = rasterio.warp.transform(f"EPSG:{region.epsg}", "EPSG:4326", *middle)
        uids = [f"{name}-{k}" for k in np.unique(owner[window]) if k]
        rows.append({"Tile_id": tile_id, "centroid_lat": round(lat, 6), "centroid_lon": round(lon, 6),
                     "TrainClass": "positive" if (label == 1).any() else "negative", "RegionName": name,
                     "UIDs": ";".join(uids) if (label == 1).any() else ""})  # fmt: skip
    return pd.DataFrame(rows)


def write_scene(folder: Path, region: Region, drawn: Drawn) -> dict:
    """scenes/<name>.tif of four bands, and the truth under hidden/: raster and polygons of its slumps as they are."""
    bands = np.concatenate([drawn.rgb.astype(np.float32), drawn.extra[:1]])
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "nodata": 0}
    names = ("red", "green", "blue", "ndvi")
    write_raster(folder / "scenes/scene.tif", bands, region.corner, region.epsg, names, **options)
    truth = np.zeros(drawn.label.shape, np.uint8)
    for hollow in drawn.hollows:
        truth[hollow.window][hollow.body & (hollow.kind in ALIKE)] = 1
    write_raster(folder / "hidden/scene_truth.tif", truth[None], region.corner, region.epsg)
    place = rasterio.transform.from_origin(*region.corner, CELL, CELL)
    found = rasterio.features.shapes(truth, mask=truth > 0, connectivity=8, transform=place)
    shapes = [shapely.make_valid(shapely.geometry.shape(shape)) for shape, _ in found]
    shapes = [shapely.geometry.MultiPolygon([s]) if s.geom_type == "Polygon" else s for s in shapes]
    area = np.array([shape.area for shape in shapes])
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2025-01-01T00:00:00Z"})  # the same bytes every time
    pyogrio.raw.write(folder / "hidden/scene_truth.gpkg", shapely.to_wkb(np.array(shapes, object)), [area],
                      ["area_m2"], geometry_type="MultiPolygon", crs=f"EPSG:{region.epsg}")  # fmt: skip
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
    longest = max(max(np.ptp(np.nonzero(h.body), axis=1)) for h in drawn.hollows if h.kind in ALIKE)
    return {"slumps": len(shapes), "pixels": int(truth.sum()), "longest": int(longest), "shape": list(truth.shape)}


def margin_counts(drawn: Drawn, kinds: tuple, positive: np.ndarray, tile: int) -> np.ndarray:
    """Pixels hit, falsely mapped and missed if all hollows of `kinds` were mapped: int64 (2, margins, 3).

    First axis: tiles without and with slumps (`positive`, bool (rows, columns)).
    """
    body = np.zeros(drawn.label.shape, np.uint8)
    for hollow in drawn.hollows:
        body[hollow.window][hollow.body & (hollow.kind in kinds)] = 1
    near = cv2.dilate(body, np.ones((11, 11), np.uint8)) > 0
    known = (near | (drawn.label == 1)) & drawn.valid & (drawn.label != IGNORED)
    away = cv2.distanceTransform(1 - body, cv2.DIST_L2, 5)[known] - cv2.distanceTransform(body, cv2.DIST_L2, 5)[known]
    slump, (rows, cols) = drawn.label[known] == 1, np.nonzero(known)
    where = positive[rows // tile, cols // tile]
    cell = np.array([[3, 1], [2, 0]])  # [slump, mapped]: missed 2, false 1, hit 0, neither 3
    found = [cell[slump.astype(int), (away <= margin + 0.5).astype(int)] + 4 * where for margin in MARGINS]
    return np.stack([np.bincount(k, minlength=8).reshape(2, 4)[:, :3] for k in found], 1)


def facts_of(name: str, drawn: Drawn, positive: np.ndarray, tile: int) -> dict:
    """What of a region goes into the facts of its split: numbers that add up."""
    counts = {key: margin_counts(drawn, kinds, positive, tile) for key, kinds in LOOKS.items()}
    kinds = [hollow.kind for hollow in drawn.hollows]
    numbers = {kind: kinds.count(kind) for kind in STRENGTH}
    return {"tiles": positive.size, "positive": int(positive.sum()), "label": int((drawn.label == 1).sum()),
            "valid": int(drawn.valid.sum()), "hollows": pd.Series(numbers), **counts}  # fmt: skip


def best_scores(regions: list[dict]) -> dict:
    """Facts of a split from those of its regions: best IoU with tiles weighted 1:1, with NDVI and by RGB alone."""
    total = {key: sum(region[key] for region in regions) for key in regions[0]}
    weight = np.array([total["positive"] / max(total["tiles"] - total["positive"], 1), 1.0])
    best = {}
    for key in LOOKS:
        hit, false, missed = np.einsum("t,tmk->km", weight, total[key])
        best[key] = float((hit / (hit + false + missed)).max())
    counted = {key: total[key] for key in ("tiles", "positive")} | {"share": total["label"] / total["valid"]}
    return best | counted | {"hollows": total["hollows"].to_dict()}


def make_demo(folder: Path, *, tile: int = 512, regions: dict | None = None, scene: Region = SCENE, seed: int = 0):
    """Write the set into `folder`: PLANET-RGB/, EXTRA/, labels/, metadata.csv, splits.yaml, scenes/, hidden/, and
    demo.json.

    tile: pixels a side; regions: name -> Region. Returns what demo.json holds: version, seed, shift (pixels), for each
    split what best_scores() gives, `best` and `best_rgb` of the validation regions, and the scene's slumps. The same
    seed gives the same bytes. InputError: tiles or regions too small to hold a slump.
    """
    folder, regions = Path(folder), regions or REGIONS
    if tile < 128 or any(min(r.tiles) < 2 or r.positive < 2 for r in (*regions.values(), scene)):
        raise InputError("demo set: tiles of 128 pixels, 2 x 2 of them and 2 with slumps a region at least")
    tables, parts = [], {}
    for name, region in regions.items():
        drawn = draw_region(seed, name, region, tile, ((0.5 * tile, 0.04 * tile),))
        tables.append(write_tiles(folder, name, region, drawn, tile))
        positive = (tables[-1]["TrainClass"] == "positive").to_numpy().reshape(region.tiles)
        parts.setdefault(region.split, []).append(facts_of(name, drawn, positive, tile))
    side = scene.tiles[1] * tile
    drawn = draw_region(seed, "scene", scene, tile, ((0.3 * side, 0.02 * side), (0.12 * side, 0.012 * side)))
    facts = {"version": DEMO_VERSION, "seed": seed, "shift": SHIFT}
    facts |= {split: best_scores(found) for split, found in parts.items()}
    facts |= {key: facts["val"][key] for key in LOOKS} | {"scene": write_scene(folder, scene, drawn)}
    atomic_write(folder / "metadata.csv", pd.concat(tables).to_csv(index=False))
    splits = {split: [n for n, r in regions.items() if r.split == split] for split in ("train", "val", "test")}
    atomic_write(folder / "splits.yaml", yaml.safe_dump(splits, sort_keys=False))
    atomic_write(folder / "demo.json", json.dumps(facts, indent=1))
    return facts
