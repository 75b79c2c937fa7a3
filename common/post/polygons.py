"""Polygons of the 8-connected blobs of a mask that comes strip by strip; only open blobs are held, as runs of pixels.

A blob over many strips is one polygon, and strips of any height give the same table.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyogrio
import pyogrio.raw
import pyproj
import shapely

from common.errors import InputError
from common.files import atomic_write
from common.post.outlines import Rings, kernels, rings_to_shapes, trace_rings

COLUMNS = ("id", "geometry", "area_m2", "mean_prob", "max_prob", "pixels", "row", "column")
RUN_TYPES = {"row": np.int32, "start": np.int32, "end": np.int32, "total": np.float64, "peak": np.float32, "node": int}
# One-pixel steps of a slanted edge lie up to sqrt(1/2) = .71 px off a straight line; this takes them away.
SIMPLIFY = 0.75
MOST_CORNERS = 100_000  # the time that simplification takes grows with the square: minutes for a blob of noise
WRITTEN = "2000-01-01T00:00:00Z"  # the time that a GeoPackage is stamped with, so that equal polygons are equal bytes


class Tracer:
    """Blobs that reach the last row seen. `add` takes the next strip, `close` ends the scene; both give closed runs."""

    def __init__(self):
        self.held = {name: np.empty(0, kind) for name, kind in RUN_TYPES.items()}
        self.next_row = None
        self.width = None

    def add(self, y0: int, mask: np.ndarray, prob: np.ndarray) -> dict[str, np.ndarray]:
        """Runs (RUN_TYPES, sorted by node, row, start) of the blobs that cannot grow any more; node: 0, 1, …"""
        if self.next_row not in (None, y0) or self.width not in (None, mask.shape[1]) or mask.shape != prob.shape:
            what = f"strip {mask.shape} at row {y0} (prob {prob.shape})"
            raise ValueError(f"{what} does not follow row {self.next_row} of width {self.width}")
        self.next_row, self.width = y0 + len(mask), mask.shape[1]
        find_runs, join_runs, _, _ = kernels()
        found = dict(zip(RUN_TYPES, find_runs(mask.astype(bool, copy=False), prob, y0), strict=False))
        blobs = int(self.held["node"].max(initial=-1)) + 1
        found["node"] = np.arange(blobs, blobs + len(found["row"]))
        runs = {name: np.concatenate([self.held[name], found[name]]) for name in RUN_TYPES}
        near = runs["row"] >= y0 - 1
        parent = np.arange(blobs + len(found["row"]))
        touching = [runs[name][near] for name in ("row", "start", "end")]
        join_runs(*touching, np.zeros(int(near.sum()), int), runs["node"][near], parent, 1)
        runs["node"] = parent[runs["node"]]
        is_open = np.zeros(len(parent), bool)
        is_open[runs["node"][runs["row"] == self.next_row - 1]] = True
        return self._keep(runs, is_open[runs["node"]])

    def close(self) -> dict[str, np.ndarray]:
        return self._keep(self.held, np.zeros(len(self.held["row"]), bool))

    def _keep(self, runs: dict[str, np.ndarray], stays: np.ndarray) -> dict[str, np.ndarray]:
        """Holds the runs that stay and returns the others, each with nodes numbered from 0."""
        self.held = {name: column[stays] for name, column in runs.items()}
        self.held["node"] = np.unique(self.held["node"], return_inverse=True)[1]
        order = np.flatnonzero(~stays)
        order = order[np.argsort(runs["node"][order], kind="stable")]
        closed = {name: column[order] for name, column in runs.items()}
        closed["node"] = np.unique(closed["node"], return_inverse=True)[1]
        return closed


def crs_on_earth(crs) -> pyproj.CRS | None:
    """A CRS (rasterio's, pyproj's or text) for areas and degrees; None without one, or for a local one that does not
    say where on the Earth it lies."""
    crs = None if crs is None else pyproj.CRS.from_user_input(crs)
    return None if crs is None or crs.geodetic_crs is None else crs


def ring_areas(rings: Rings, transform, crs: pyproj.CRS) -> np.ndarray:
    """Signed geodesic area in m2 of every ring, on the ellipsoid of the CRS: shells one sign, holes the other."""
    x, y = apply_transform(rings.corners.astype(np.float64), transform).T
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    longitude, latitude = to_degrees.transform(x, y)
    geod = crs.get_geod()
    bounds = zip(rings.offsets[:-1].tolist(), rings.offsets[1:].tolist(), strict=True)
    return np.array([geod.polygon_area_perimeter(longitude[a : b - 1], latitude[a : b - 1])[0] for a, b in bounds])


def apply_transform(corners: np.ndarray, transform) -> np.ndarray:
    """(n, 2) coordinates of the scene's CRS from pixels x, y; transform: affine, its first six numbers a … f."""
    a, b, c, d, e, f = tuple(transform)[:6]
    x, y = corners[:, 0], corners[:, 1]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def place(shapes: np.ndarray, transform, simplify: float) -> np.ndarray:
    """Shapes in pixels, simplified (Douglas-Peucker that keeps topology; `simplify` px) and put on the map.

    A shape keeps its pixel corners where simplification would make it invalid or change its area by more than a fifth
    (blobs of a few pixels), and where it has more than MOST_CORNERS.
    """
    if simplify > 0:
        simple, few = shapes.copy(), shapely.get_num_coordinates(shapes) <= MOST_CORNERS
        simple[few] = shapely.simplify(shapes[few], simplify, preserve_topology=True)
        area = shapely.area(shapes)
        good = shapely.is_valid(simple) & (abs(shapely.area(simple) - area) <= 0.2 * area)
        shapes = np.where(good, simple, shapes)
    return shapely.transform(shapes, lambda corners: apply_transform(corners, transform))


def blob_table(runs: dict[str, np.ndarray], *, transform, crs, min_area_m2, min_pixels, simplify) -> pd.DataFrame:
    """COLUMNS of closed blobs (see `trace`), without those too small."""
    blob = runs["node"]
    count = int(blob.max(initial=-1)) + 1
    pixels = np.bincount(blob, runs["end"] - runs["start"], count).astype(np.int64)
    if min_pixels > 1 and count:
        large = (pixels >= min_pixels)[blob]
        runs = {name: column[large] for name, column in runs.items()}
        blob = np.unique(runs["node"], return_inverse=True)[1]
        pixels = pixels[pixels >= min_pixels]
        count = len(pixels)
    if not count:
        return pd.DataFrame(columns=COLUMNS)
    rings = trace_rings(runs["row"], runs["start"], runs["end"], blob)
    area = np.full(count, np.nan)
    if crs is not None:
        area = abs(np.bincount(blob[rings.part], ring_areas(rings, transform, crs), count))
    keep = ~(area < min_area_m2)
    first = np.searchsorted(blob, np.arange(count))
    peak = np.maximum.reduceat(runs["peak"], first).astype(np.float64)
    return pd.DataFrame(
        {
            "id": 0,
            "geometry": place(rings_to_shapes(rings, blob)[keep], transform, simplify),
            "area_m2": area[keep],
            "mean_prob": (np.bincount(blob, runs["total"], count) / pixels)[keep],
            "max_prob": peak[keep],
            "pixels": pixels[keep],
            "row": runs["row"][first][keep],
            "column": runs["start"][first][keep],
        }
    )


def trace(
    strips: Iterable[tuple[int, np.ndarray, np.ndarray]],
    *,
    transform,
    crs,
    min_area_m2: float = 0.0,
    min_pixels: int = 0,
    simplify: float = SIMPLIFY,
) -> pd.DataFrame:
    """A row per 8-connected blob of the mask, in raster order of the blobs' first pixels.

    strips: (y0, mask bool (h,W), prob float32 (h,W)) from top to bottom without gaps, of any heights. transform: the
    scene's affine transform; crs: its CRS (rasterio's, pyproj's or text), None where it has none; a local one
    counts as none.
    Columns: id 1, 2, …; geometry, shapely Polygon (MultiPolygon where pixels touch diagonally only) in the scene's
    CRS, holes kept, valid; area_m2, geodesic, of all pixels (NaN without a CRS); mean_prob, max_prob; pixels; row,
    column of the first pixel. Blobs under min_area_m2 or min_pixels are left out. simplify: tolerance in px, 0 keeps
    every pixel corner.
    """
    crs = crs_on_earth(crs)
    if crs is None and min_area_m2 > 0:
        raise InputError(
            "a smallest area in m2 needs a scene with a CRS, one of the Earth and not a local one; "
            "assign it with gdal_edit.py -a_srs EPSG:…, or leave the area out"
        )
    settings = {"min_area_m2": min_area_m2, "min_pixels": min_pixels, "simplify": simplify}
    tracer, tables = Tracer(), []
    for y0, mask, prob in strips:
        tables.append(blob_table(tracer.add(y0, mask, prob), transform=transform, crs=crs, **settings))
    tables.append(blob_table(tracer.close(), transform=transform, crs=crs, **settings))
    filled = [table for table in tables if len(table)] or tables[:1]
    table = pd.concat(filled, ignore_index=True).sort_values(["row", "column"], ignore_index=True)
    return table.assign(id=np.arange(1, len(table) + 1))


def write_layer(path: Path, table: pd.DataFrame, crs, layer: str, driver: str, options: dict) -> None:
    """One vector file of the polygons, all as MultiPolygon: some drivers refuse a layer of both kinds."""
    names = [name for name in COLUMNS if name != "geometry"]
    kinds = {"area_m2": np.float64, "mean_prob": np.float64, "max_prob": np.float64}
    shapes = table["geometry"].to_numpy()
    parts = [shapely.multipolygons(shapely.get_parts(shape)) for shape in shapes]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        pyogrio.raw.write(
            str(path),
            geometry=np.array(shapely.to_wkb(parts), dtype=object).reshape(len(parts)),
            field_data=[table[name].to_numpy().astype(kinds.get(name, np.int64)) for name in names],
            fields=names,
            layer=layer,
            driver=driver,
            geometry_type="MultiPolygon",
            crs=None if crs is None else pyproj.CRS.from_user_input(crs).to_wkt(),
            **options,
        )


def write_polygons(path: str | Path, table: pd.DataFrame, crs) -> list[Path]:
    """Write `path`.gpkg in the scene's CRS and `path`.geojson in EPSG:4326 (RFC 7946: cut at the antimeridian).

    table: from `trace`, may be empty; crs as there; without one (None), or with a local one, there
    is no GeoJSON. Each file is written
    atomically, equal tables give equal bytes; returns the paths.
    """
    path = Path(path)
    written = [path.with_name(f"{path.name}.gpkg")]
    stamp = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": WRITTEN})
    try:
        atomic_write(written[0], lambda temporary: write_layer(temporary, table, crs, path.name, "GPKG", {}))
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": stamp})
    if crs_on_earth(crs) is not None:
        written.append(path.with_name(f"{path.name}.geojson"))
        options = {"RFC7946": "YES"}
        atomic_write(written[1], lambda temporary: write_layer(temporary, table, crs, path.name, "GeoJSON", options))
    return written
