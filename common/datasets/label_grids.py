"""Labels that do not lie on their tile's grid: bands of the image, rasters of another grid, polygons.

A label is text, so that it fits into a table: a file, then what is to be done with it, as in `old.tif::band=4`,
`labels/a.tif::grid=PLANET-RGB/a.tif` or `slumps.gpkg::grid=PLANET-RGB/a.tif` (`make_label`, `split_label`).
"""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyproj
import shapely
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, RasterioError
from rasterio.features import rasterize
from rasterio.transform import array_bounds
from rasterio.warp import Resampling, reproject, transform_bounds

from common.datasets.limits import within
from common.datasets.rasters import open_checked, read_whole
from common.datasets.vectors import read_polygons
from common.errors import InputError
from common.metrics.objects import match_objects, object_scores

IGNORED = 255
LABEL_MAP = {0: 0, 1: 1, IGNORED: IGNORED}  # {raw value: class}
VECTORS = (".geojson", ".json", ".gpkg", ".shp")
SHAPEFILE = (".dbf", ".shx", ".prj", ".cpg")  # what belongs to a .shp
PART = "::"
SAME = 0.05  # pixels: less of a difference is the rounding of a georeference


def make_label(path: str | Path, **parts) -> str:
    """Text of a label: the file and, where given, `band` (a number from 1) and `grid` (the image it must lie on)."""
    return PART.join([str(path), *(f"{name}={value}" for name, value in parts.items() if value is not None)])


def split_label(label: str) -> tuple[Path, dict[str, str]]:
    """(file, parts) of `make_label`."""
    path, *parts = str(label).split(PART)
    return Path(path), dict(part.split("=", 1) for part in parts)


def label_files(label: str) -> list[Path]:
    """All files that a label's pixels depend on: its own, those of a Shapefile, and the image whose grid it takes."""
    path, parts = split_label(label)
    beside = [path.with_suffix(suffix) for suffix in SHAPEFILE] if path.suffix.lower() == ".shp" else []
    return [path, *(file for file in beside if file.is_file()), *([Path(parts["grid"])] if "grid" in parts else [])]


@contextmanager
def open_raster(path: str | Path):
    """An open rasterio file, without a warning about a missing georeference. InputError: missing or unreadable."""
    try:
        with open_checked(path) as file:
            yield file
    except (RasterioError, CPLE_BaseError, OSError) as error:
        said = "not found" if not Path(path).is_file() else f"cannot be read ({str(error).strip()})"
        raise InputError(f"{path}: {said}; download it again or correct its name") from error


def profile_of(path: str | Path) -> dict:
    """{"width", "height", "crs", "transform"} of a raster, for rasterio; crs None where it has no georeference."""
    with open_raster(path) as file:
        return {"width": file.width, "height": file.height, "crs": file.crs, "transform": file.transform}


def grid_difference(label: str | Path, tile: str | Path) -> str:
    """How the grid of a raster differs from its tile's, "" where it is the same.

    Without a CRS on either side the files are taken to cover the same ground, if they have as many pixels.
    InputError: they differ and one has no CRS; or they do not overlap.
    """
    own, grid = profile_of(label), profile_of(tile)
    same_size = (own["height"], own["width"]) == (grid["height"], grid["width"])
    if own["crs"] is None or grid["crs"] is None:
        if same_size:
            return ""
        raise InputError(
            f"{label}: {own['height']}x{own['width']} pixels where {tile} has {grid['height']}x{grid['width']}, and no"
            " georeference says how they lie; cut both alike"
        )
    try:
        apart = not shapely.box(*bounds_in(own, grid["crs"])).intersects(shapely.box(*bounds_in(grid, grid["crs"])))
    except InputError as error:
        raise InputError(f"{label}: {error}") from error
    if apart:
        raise InputError(f"{label}: does not overlap {tile}; check the georeference of both")
    if own["crs"] != grid["crs"]:
        return f"in {name_of(own['crs'])} where the tile is in {name_of(grid['crs'])}"
    width, height = (a / b for a, b in zip(pixel_size(own), pixel_size(grid), strict=True))
    x, y = shift_of(own, grid)
    said = []
    if abs(width - 1) * grid["width"] > SAME or abs(height - 1) * grid["height"] > SAME:
        said.append(f"pixels {width:.4g} times the tile's")
    if max(abs(x), abs(y)) > SAME:
        said.append(f"shifted by {x:.4g} px in x and {y:.4g} px in y")
    if not said and not same_size:
        said.append(f"{own['height']}x{own['width']} pixels where the tile has {grid['height']}x{grid['width']}")
    return ", ".join(said)


def pixel_size(profile: dict) -> tuple[float, float]:
    """Width and height of a pixel in the units of the CRS."""
    t = profile["transform"]
    return float(np.hypot(t.a, t.d)), float(np.hypot(t.b, t.e))


def shift_of(own: dict, grid: dict) -> tuple[float, float]:
    """(x, y) of the upper left corner of one profile in the pixels of another."""
    back, t = ~grid["transform"], own["transform"]
    return back.a * t.c + back.b * t.f + back.c, back.d * t.c + back.e * t.f + back.f


def bounds_in(profile: dict, crs) -> tuple[float, float, float, float]:
    """left, bottom, right, top of a raster in a CRS."""
    bounds = array_bounds(profile["height"], profile["width"], profile["transform"])
    return bounds if profile["crs"] == crs else bounds_to(profile["crs"], crs, bounds)


def bounds_to(own, crs, bounds) -> tuple[float, float, float, float]:
    """Bounds in another CRS. InputError: PROJ knows no way from one to the other, or it does not reach there."""
    try:
        found = transform_bounds(own, crs, *bounds)
    except (RasterioError, CRSError, CPLE_BaseError) as error:
        raise InputError(
            f"{name_of(own)} cannot be brought to {name_of(crs)} ({str(error)[:200]}); reproject"
        ) from error
    if not np.isfinite(found).all():
        raise InputError(f"{name_of(own)} and {name_of(crs)} do not reach each other there; check the georeference")
    return found


def name_of(crs) -> str:
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs)[:60]


def read_label(label: str, label_map: dict | None = None) -> np.ndarray:
    """uint8 (H,W) of classes on the tile's grid, 255 where ignored; label: of a row (`make_label`).

    label_map: {raw value: class}, keys may be text; None: LABEL_MAP. 255 is ignored unless the map has it.
    InputError: a value that is not in the map.
    """
    path, parts = split_label(label)
    grid = profile_of(parts["grid"]) if "grid" in parts else None
    if grid is not None:
        within(parts["grid"], "label", grid["height"] * grid["width"])
    if path.suffix.lower() in VECTORS:
        return rasterise(path, grid)
    known = {IGNORED: IGNORED} | {int(value): int(k) for value, k in (label_map or LABEL_MAP).items()}
    classes = load_classes(path, int(parts.get("band", 1)), known)
    return classes if grid is None else resample(classes, profile_of(path), grid)


def load_classes(path: Path, band: int, known: dict[int, int]) -> np.ndarray:
    """uint8 (H,W): a band's values by the map {raw value: class}; 255 where the nodata tag's value is no key of it.

    InputError: no such band, or a value that is not in the map.
    """
    with open_raster(path) as file:
        if band > file.count:
            raise InputError(f"{path}: has {file.count} bands, no band {band}; choose another with --labels")
        raw, nodata = read_whole(file, band), file.nodata
    classes, strange = np.full(raw.shape, IGNORED, np.uint8), np.ones(raw.shape, bool)
    if nodata is not None and nodata not in known:
        strange &= ~(np.isnan(raw) if np.isnan(nodata) else raw == nodata)
    for value, k in known.items():
        here = raw == value
        classes[here] = k
        strange &= ~here
    if strange.any():
        values = ", ".join(f"{value:g}" for value in np.unique(raw[strange])[:5].tolist())
        raise InputError(
            f"{path}: the label holds {values}; known are {', '.join(map(str, known))}: correct the file or give"
            " --label-map"
        )
    return classes


def resample(classes: np.ndarray, source: dict, tile: dict) -> np.ndarray:
    """uint8 (H,W) on the tile's grid, by the nearest pixel; 255 where the label does not reach.

    classes: uint8 (h,w) on the grid of the profile `source`.
    """
    target = np.full((tile["height"], tile["width"]), IGNORED, np.uint8)
    reproject(
        classes,
        target,
        src_transform=source["transform"],
        src_crs=source["crs"],
        src_nodata=IGNORED,
        dst_transform=tile["transform"],
        dst_crs=tile["crs"],
        dst_nodata=IGNORED,
        resampling=Resampling.nearest,
    )
    return target


def rasterise(path: str | Path, profile: dict) -> np.ndarray:
    """uint8 (H,W): 1 where a pixel's centre lies in a polygon of the vector file, on the grid of `profile`, else 0.

    The polygons are brought into the profile's CRS. InputError: see `read_polygons`; a profile without a CRS.
    """
    if profile["crs"] is None:
        raise InputError(f"{path}: polygons need a tile with a georeference; add one to the tile or give raster labels")
    shapes = polygons_on(path, profile)
    size = (profile["height"], profile["width"])
    if not len(shapes):
        return np.zeros(size, np.uint8)
    return rasterize(
        list(shapes), out_shape=size, transform=profile["transform"], fill=0, default_value=1, dtype="uint8"
    )


def polygons_on(path: str | Path, profile: dict) -> np.ndarray:
    """The polygons (shapely, in the profile's CRS) of a vector file whose bounds touch those of a raster."""
    path = Path(path)
    shapes, tree, crs = read_polygons(path, path.stat().st_mtime_ns if path.is_file() else 0)
    if crs == profile["crs"]:
        near = tree.query(shapely.box(*bounds_in(profile, crs)))
        return shapes[np.sort(near)]
    near = tree.query(shapely.box(*bounds_to(profile["crs"], crs, bounds_in(profile, profile["crs"]))))
    change = pyproj.Transformer.from_crs(crs.to_wkt(), profile["crs"].to_wkt(), always_xy=True)
    moved = shapely.transform(shapes[np.sort(near)], lambda xy: np.column_stack(change.transform(*xy.T)))
    inside = shapely.intersects(shapely.envelope(moved), shapely.box(*bounds_in(profile, profile["crs"])))
    return moved[inside]


def compare_labels(rows, first, second, *, label_map=None, iou: float = 0.3, min_blob: int = 0) -> pd.DataFrame:
    """How two labels of the same tiles agree, a line per tile and a last one ("all") over all of them.

    rows: with id; first, second: (n,) text of labels, the first judged by the second, which counts as true; classes
    above 0 are the class, 255 on either side is left out. Columns: id, iou (of pixels), first_share and second_share
    (of the pixels known to both), blobs_first, blobs_second, precision, recall, f1 (of blobs, at that IoU; nan where
    undefined).
    """
    lines, matches, counts = [], [], np.zeros(4, np.int64)
    for name, a, b in zip(rows["id"], first, second, strict=True):
        one, two = read_label(a, label_map), read_label(b, label_map)
        if one.shape != two.shape:
            raise InputError(f"{a} and {b}: {one.shape} and {two.shape} pixels; bring both onto one grid")
        valid = (one != IGNORED) & (two != IGNORED)
        one, two = (one > 0) & valid, (two > 0) & valid
        matches.append(match_objects(one, two, np.ones(one.shape, np.float32), iou=(iou,), min_blob=min_blob))
        part = np.array([(one & two).sum(), one.sum(), two.sum(), valid.sum()])
        counts += part
        lines.append({"id": name} | agreement(part, matches[-1:], iou))
    return pd.DataFrame([*lines, {"id": "all"} | agreement(counts, matches, iou)])


def agreement(counts: np.ndarray, matches: list, iou: float) -> dict:
    """A line of `compare_labels`; counts: pixels of both, of the first, of the second, known."""
    both, first, second, known = (int(n) for n in counts)
    either, scores = first + second - both, object_scores(matches)[iou]
    return {
        "iou": both / either if either else float("nan"),
        "first_share": first / max(known, 1),
        "second_share": second / max(known, 1),
        "blobs_first": sum(m.n_pred for m in matches),
        "blobs_second": sum(m.n_target for m in matches),
        **{name: scores[name] for name in ("precision", "recall", "f1")},
    }
