"""Polygons of a vector file that somebody else may have written: GeoJSON, GeoPackage, Shapefile."""

import contextlib
import re
import sqlite3
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyogrio
import pyogrio.raw
import rasterio
import shapely

from common.errors import InputError

# How such a file begins. GDAL goes by the content, and among what it takes for a vector file are lists of other files
# and addresses, which may lie anywhere.
STARTS = {".geojson": rb"(\xef\xbb\xbf)?\s*\{", ".json": rb"(\xef\xbb\xbf)?\s*\{", ".gpkg": rb"SQLite format 3\x00",
          ".shp": rb"\x00\x00\x27\x0a"}  # fmt: skip
MOST = {".geojson": 2**28, ".json": 2**28, ".gpkg": 2**31, ".shp": 2**31}  # bytes; text takes many times its size
FEATURES, POINTS = 5_000_000, 100_000_000
REMEDY = "export it again, or only the part that is used"
FAULTS = (RuntimeError, ValueError, TypeError, OSError, KeyError, shapely.errors.GEOSException,
          rasterio.errors.RasterioError, rasterio.errors.CRSError)  # fmt: skip


def check_vector(path: Path) -> None:
    """InputError where a file is none of STARTS by its content, is larger than MOST, or makes its features up."""
    suffix = path.suffix.lower()
    if path.stat().st_size > MOST[suffix]:
        raise InputError(f"{path}: larger than {MOST[suffix] / 2**20:g} MB, the most a {suffix} may have; {REMEDY}")
    with open(path, "rb") as file:
        if not re.match(STARTS[suffix], file.read(4096)):
            raise InputError(f"{path}: is no {suffix} by its content; export it again")
    if suffix == ".gpkg":
        check_tables(path)


def check_tables(path: Path) -> None:
    """InputError where a layer of a GeoPackage is no table: a view is a program, which need not end."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as base:
            base.set_progress_handler(lambda: 1, 1_000_000)  # this look at it ends in any case
            listed = (
                "SELECT c.table_name FROM gpkg_contents c LEFT JOIN sqlite_master m ON lower(m.name) = "
                "lower(c.table_name) AND m.type = 'table' AND m.sql NOT LIKE '%VIRTUAL%' WHERE m.name IS NULL"
            )
            kind = "SELECT type FROM sqlite_master WHERE name = 'gpkg_contents'"
            whole = base.execute(kind).fetchone() == ("table",)
            strange = base.execute(listed).fetchone() if whole else ("gpkg_contents",)
    except (sqlite3.Error, ValueError, OverflowError) as error:
        raise InputError(f"{path}: cannot be read as polygons ({error}); {REMEDY}") from error
    if strange:
        raise InputError(f"{path}: {str(strange[0])[:60]!r} is no table in it; {REMEDY}")


@lru_cache(maxsize=8)
def read_polygons(path: Path, _changed: int) -> tuple[np.ndarray, shapely.STRtree, rasterio.crs.CRS]:
    """(polygons, their tree, CRS) of the first layer of a vector file that has polygons; kept until the file changes.

    InputError: missing, unreadable, no CRS, no polygon in it, other geometries than polygons, a corner without a place,
    or what `check_vector` finds.
    """
    if not path.is_file():
        raise InputError(f"{path}: not found; correct --labels")
    check_vector(path)
    try:
        shapes, named = read_layer(path)
        crs = rasterio.crs.CRS.from_user_input(named) if named else None
    except FAULTS as error:
        said = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: cannot be read as polygons ({said}); {REMEDY}") from error
    if not len(shapes):
        raise InputError(f"{path}: holds no polygon; give the file that has them, or raster labels")
    flat = np.isin(shapely.get_type_id(shapes), [3, 6])  # Polygon, MultiPolygon
    if not flat.all():
        kind = shapes[~flat][0].geom_type
        raise InputError(f"{path}: holds a {kind} among its polygons ({(~flat).sum()} of {len(flat)}); remove them")
    if not np.isfinite(shapely.bounds(shapes)).all():
        raise InputError(f"{path}: a corner of a polygon is not a finite number; correct it")
    if crs is None:
        raise InputError(f"{path}: has no CRS; add it (for a Shapefile the .prj file)")
    return shapes, shapely.STRtree(shapes), crs


def read_layer(path: Path) -> tuple[np.ndarray, str | None]:
    """(geometries that are there, text of the CRS) of the first layer that may have polygons."""
    layers = [name for name, kind in pyogrio.list_layers(path) if kind is None or kind in ("Unknown", "")
              or "Polygon" in kind or "Collection" in kind]  # fmt: skip
    layer = layers[0] if layers else None
    count = pyogrio.read_info(path, layer=layer)["features"]
    if count > FEATURES:
        raise ValueError(f"{count:,} features, more than {FEATURES:,}")
    meta, _, geometry, _ = pyogrio.raw.read(path, layer=layer, columns=[], force_2d=True)
    shapes = shapely.from_wkb(geometry) if geometry is not None else np.array([], object)
    shapes = shapes[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))]
    if shapely.get_num_coordinates(shapes).sum() > POINTS:
        raise ValueError(f"more than {POINTS:,} corners")
    return shapes, meta["crs"]
