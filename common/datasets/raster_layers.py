"""Rasters and polygons read by window on the grid of one raster: float32, NaN where they know nothing."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyproj
import shapely
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.transform import array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import Resampling, transform
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from common.datasets.band_names import MASKS
from common.datasets.band_tiles import BAND_LIST, name_bands
from common.datasets.label_grids import VECTORS, grid_difference, polygons_on, profile_of
from common.datasets.scenes import HUGE, cache_limit, open_raster
from common.errors import InputError

ROWS = 256  # read at a time
GEOD = pyproj.Geod(ellps="WGS84")


class Layer:
    """An open raster on the grid of another; close it, or use it in a `with`. One thread at a time may read."""

    def __init__(
        self, path: str | Path, grid: str | Path, resampling: Resampling = Resampling.bilinear, data: Collection = ()
    ):
        """grid: the raster whose pixels are read; data: values that are data even where the file's tag has them for no
        data. InputError: unreadable, no CRS to warp by, not of the same area."""
        self.path, self.grid = Path(path), profile_of(grid)
        self.height, self.width = self.grid["height"], self.grid["width"]
        said = "" if Path(path) == Path(grid) else grid_difference(path, grid).replace("the tile", Path(grid).name)
        self.file = self.source = open_raster(self.path)
        kinds = zip(self.file.colorinterp, self.file.descriptions, strict=True)
        self.numbers = [k for k, (kind, name) in enumerate(kinds, 1)
                        if kind.name != "alpha" or (name or "").strip().lower() not in MASKS]  # fmt: skip
        flags = self.file.mask_flag_enums[0]
        self.masked = MaskFlags.per_dataset in flags and not said  # warping has left out what is masked
        if said:
            print(f"{path}: {said}; brought onto its grid ({resampling.name})")
            tag = {"src_nodata": None} if self.file.nodata in data else {}
            self.source = WarpedVRT(
                self.file, **self.grid, resampling=resampling, dtype="float32", nodata=np.nan, **tag
            )
        self.nodata = [None if value in data else value for value in self.source.nodatavals]

    def __enter__(self) -> "Layer":
        return self

    def __exit__(self, *_failure) -> None:
        if self.source is not self.file:
            self.source.close()
        self.file.close()

    def names(self) -> list[str]:
        """Names of the bands that are read, as tiles have them (`band_tiles.name_bands`).

        A bands.txt counts beside the file only: one further up may be that of tiles cut before.
        """
        own = any(self.file.descriptions) or (self.path.parent / BAND_LIST).is_file()
        every = name_bands(self.path, self.file.descriptions) if own else [f"band{k}" for k in self.file.indexes]
        return [every[number - 1] for number in self.numbers]

    def read(self, y: int, x: int, height: int, width: int, numbers: list[int] | None = None) -> np.ndarray:
        """float32 (C,h,w) of an area in pixels of the grid, NaN where there is no data and beyond the edges.

        numbers: of the bands, from 1; None: all. What is no number, infinite, beyond HUGE, masked or the file's
        nodata is no data; the file's scales and offsets are applied.
        """
        numbers = self.numbers if numbers is None else numbers
        out = np.full((len(numbers), height, width), np.nan, np.float32)
        top, left, bottom, right = max(y, 0), max(x, 0), min(y + height, self.height), min(x + width, self.width)
        if top < bottom and left < right:
            part = self._read_inside(Window(left, top, right - left, bottom - top), numbers)
            out[:, top - y : bottom - y, left - x : right - x] = part
        return out

    def _read_inside(self, window: Window, numbers: list[int]) -> np.ndarray:
        try:
            with cache_limit():
                raw = self.source.read(numbers, window=window)
                masked = self.source.read_masks(numbers[0], window=window) == 0 if self.masked else None
        except (RasterioError, OSError) as error:
            raise InputError(f"{self.path}: cannot be read ({str(error).strip()}); restore the file") from error
        values = raw.astype(np.float32)
        values[~(np.abs(values) <= HUGE)] = np.nan
        for band, number in enumerate(numbers):
            nodata = self.nodata[number - 1]
            if nodata is not None and not np.isnan(nodata):
                values[band, raw[band] == nodata] = np.nan
            values[band] = values[band] * self.file.scales[number - 1] + self.file.offsets[number - 1]
        if masked is not None:
            values[:, masked] = np.nan
        return values


class Drawn:
    """Polygons on the grid of a raster, read as `Layer` is: 1 where a pixel's centre lies in one, else 0."""

    def __init__(self, path: str | Path, grid: str | Path):
        """InputError: no polygons of the raster's area, or a raster without a CRS."""
        self.path, self.grid = Path(path), profile_of(grid)
        if self.grid["crs"] is None:
            raise InputError(f"{grid}: has no CRS to place the polygons of {path} by; georeference it")
        self.shapes = polygons_on(path, self.grid)
        if not len(self.shapes):
            raise InputError(f"{path}: none of its polygons overlaps {grid}; check the georeference of both")
        self.tree = shapely.STRtree(self.shapes)

    def __enter__(self) -> "Drawn":
        return self

    def __exit__(self, *_failure) -> None:
        pass

    def read(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """float32 (1,h,w) of 0 and 1; NaN beyond the edges of the grid."""
        place = window_transform(Window(x, y, width, height), self.grid["transform"])
        near = self.shapes[self.tree.query(shapely.box(*array_bounds(height, width, place)))]
        out = np.zeros((1, height, width), np.float32)
        if len(near):
            out[0] = rasterize(list(near), out_shape=(height, width), transform=place, fill=0, dtype="uint8")
        rows, columns = np.arange(y, y + height), np.arange(x, x + width)
        out[:, (rows < 0) | (rows >= self.grid["height"])] = np.nan
        out[:, :, (columns < 0) | (columns >= self.grid["width"])] = np.nan
        return out


def open_classes(path: str | Path, grid: str | Path, data: Collection = ()) -> Layer | Drawn:
    """A raster of classes, by the nearest pixel where its grid differs, or the polygons of a vector file.

    data: values that are classes even where the file's tag has them for no data.
    """
    if Path(path).suffix.lower() in VECTORS:
        return Drawn(path, grid)
    layer = Layer(path, grid, Resampling.nearest, data)
    if len(layer.numbers) != 1:
        layer.__exit__()
        raise InputError(f"{path}: {len(layer.numbers)} bands of classes; write one value a pixel in one band")
    return layer


def read_strips(layer: Layer | Drawn, rows: int = ROWS) -> Iterator[np.ndarray]:
    """float32 (C,h,W) of that many rows each, from top to bottom."""
    height, width = layer.grid["height"], layer.grid["width"]
    for y in range(0, height, rows):
        yield layer.read(y, 0, min(rows, height - y), width)


def values_in(layer: Layer | Drawn, *, most: int) -> list[int]:
    """The values of a raster of classes, sorted. InputError: none, more than `most`, or no whole numbers."""
    found: set[float] = set()
    for strip in read_strips(layer):
        found |= set(np.unique(strip[~np.isnan(strip)]).tolist())
        broken = next((value for value in found if value != int(value)), None)
        if broken is not None or len(found) > most:
            said = f"holds {broken:g}" if broken is not None else f"holds more than {most} values"
            raise InputError(f"{layer.path}: {said}; a raster of classes holds a few whole numbers: check the file")
    if not found:
        raise InputError(f"{layer.path}: has no data in the area of the first raster; check the georeference of both")
    return sorted(int(value) for value in found)


def pixel_metres(path: str | Path) -> tuple[float, float]:
    """(height, width) of a raster's pixel in metres, in the middle of it where the CRS is geographic.

    The height is negative where rows run from south to north. Without a CRS the units are taken for metres.
    """
    profile = profile_of(path)
    crs, t = profile["crs"], profile["transform"]
    if crs is None or t.is_identity:
        print(f"{path}: has no CRS; its pixels are taken for {abs(t.e):g} x {abs(t.a):g} m")
        return (abs(t.e), abs(t.a))
    wide, high = float(np.hypot(t.a, t.d)), float(np.copysign(np.hypot(t.b, t.e), -t.e))
    if not crs.is_geographic:
        factor = crs.linear_units_factor[1]
        return high * factor, wide * factor
    column, row = profile["width"] / 2, profile["height"] / 2
    x, y = t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f
    (longitude,), (latitude,) = transform(crs, "EPSG:4326", [x], [y])
    factor = crs.units_factor[1] * 180 / np.pi  # degrees of a unit
    east = GEOD.inv(longitude, latitude, longitude + wide * factor, latitude)[2]
    south = latitude - np.sign(latitude or 1) * abs(high) * factor  # towards the equator: never across a pole
    return float(np.copysign(GEOD.inv(longitude, latitude, longitude, south)[2], high)), float(east)
