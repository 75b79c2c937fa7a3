"""Rasters to be mapped, read by window: bands by name, no data as 0 in all bands, damage confined to its blocks."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from common.datasets.band_names import RGB, band_number, colour_numbers, names_in
from common.datasets.rasters import open_checked
from common.errors import InputError

HUGE = 1e30  # such numbers stand for missing values where a file has no nodata tag (-3.4028e38)
CACHE_MB = 256  # GDAL's own default is a share of the machine's memory


def cache_limit() -> rasterio.Env:
    """Bounds GDAL's cache of blocks, if nothing was read in this process before; GDAL_CACHEMAX has the say."""
    return rasterio.Env() if "GDAL_CACHEMAX" in os.environ else rasterio.Env(GDAL_CACHEMAX=CACHE_MB)


def find_bands(file: rasterio.DatasetReader, bands: Sequence[str], numbers: Sequence[int] | None, names=None):
    """Numbers (from 1) of the bands in a file, by the names that tiles have. InputError: one that it has not.

    names: what its bands are called; None: `names_in`.
    """
    path = file.name
    if numbers is not None:
        if len(numbers) != len(bands):
            raise InputError(
                f"{path}: {len(numbers)} band numbers for {len(bands)} bands ({', '.join(bands)}); give as many with"
                " --scene-bands"
            )
        beyond = [number for number in numbers if not 1 <= number <= file.count]
        if beyond:
            raise InputError(f"{path}: no band {beyond[0]}; it has the bands 1 to {file.count}: --scene-bands")
        return list(numbers)
    names, nameless = names or names_in(file, image=True), not any(file.descriptions)
    found = [band_number(name, names) for name in bands]
    if None not in found:
        if nameless and not {color.name for color in file.colorinterp} & set(RGB) and set(RGB) & set(bands):
            print(f"{path}: its bands have no names; the first three are taken for {', '.join(RGB)}")
        return found
    if nameless and file.count == len(bands):
        print(f"{path}: its bands have no names; taken in this order: {', '.join(bands)}")
        return list(range(1, file.count + 1))
    missing = ", ".join(name for name, number in zip(bands, found, strict=True) if number is None)
    there = ", ".join(f"{number} {name or '(no name)'}" for number, name in enumerate(names, 1))
    raise InputError(f"{path}: no band {missing}; there are: {there}; give their numbers with --scene-bands")


def find_colours(file: rasterio.DatasetReader, bands: Sequence[str], numbers: Sequence[int]) -> list[int]:
    """Numbers of the bands that tell no data: what was taken for red, green and blue, else by the file's own names."""
    taken = dict(zip(bands, numbers, strict=True))
    return [taken[name] for name in RGB] if set(RGB) <= set(taken) else colour_numbers(names_in(file, image=True))


def clean(tile: np.ndarray, nodata: Sequence, masked: np.ndarray | None, colours: Sequence[int] | None = None):
    """float32 tile (C,h,w), raw values of a file, with 0 for what is missing; the rule for tiles and scenes alike.

    In its band: what is no number or beyond HUGE, and the file's nodata (one for each band, or None). In all bands:
    where it is masked and where the bands at the positions `colours` (red, green and blue; default: all) are 0 then.
    A nodata value of 8 bits (0, 255) is also a value: it counts where all these bands have it.
    """
    integers = tile.dtype.kind in "ui"
    out, deciding = tile.astype(np.float32), slice(None) if colours is None else list(colours)
    empty = np.zeros(tile.shape, bool)
    for band, value in enumerate(nodata):
        if value is None or np.isnan(value):
            continue
        if integers and not np.iinfo(tile.dtype).min <= value <= np.iinfo(tile.dtype).max:
            continue  # -9999 of a file of bytes would be taken for 241
        empty[band] = tile[band] == np.asarray(value).astype(tile.dtype)
    if integers and tile.dtype.itemsize == 1:
        empty[:] = empty[deciding].all(axis=0)
    if not integers:
        empty |= ~(np.abs(out) <= HUGE)
    out[empty] = 0
    nothing = ~out[deciding].any(axis=0)
    out[:, nothing if masked is None else nothing | masked] = 0
    return out


def resample(tile: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A tile (C,h,w) at another size: mean of the valid pixels of an area, bilinear where it grows.

    A pixel is valid where at least half of what it covers is.
    """
    if tile.shape[1:] == tuple(size):
        return tile
    return resampled(tile, size)[0]


def resampled(tile: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(means float32 (C,h,w), valid bool (h,w)) of `resample`."""
    smaller = size[0] <= tile.shape[1] and size[1] <= tile.shape[2]
    kind = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    share = cv2.resize((tile != 0).any(axis=0).astype(np.float32), size[::-1], interpolation=kind)
    out = np.stack([cv2.resize(band, size[::-1], interpolation=kind) for band in tile])
    valid = share >= 0.5
    return np.where(valid, out / np.maximum(share, 0.5), 0).astype(np.float32), valid


class Scene:
    """An open raster. One thread at a time may read; use it in a `with`, or close it."""

    def __init__(self, path: str | Path, bands: Sequence[str], numbers: Sequence[int] | None):
        self.path, self.bands = Path(path), tuple(bands)
        self.file = open_raster(self.path)
        try:
            self.numbers = self._find_bands(numbers)
        except InputError:
            self.file.close()
            raise
        self.height, self.width = self.file.shape
        self.crs, self.transform, self.profile = self.file.crs, self.file.transform, dict(self.file.profile)
        colours = self._find_colours()
        self._all = list(dict.fromkeys([*self.numbers, *colours]))  # those of the model, then what else tells no data
        self._colours = [self._all.index(number) for number in colours]
        self._places = [self._all.index(number) for number in self.numbers]
        self.nodata = tuple(self.file.nodatavals[number - 1] for number in self._all)
        flags = self.file.mask_flag_enums[self.numbers[0] - 1]
        # a fourth band that calls itself alpha may be an old label: only a mask that is no band counts
        self.masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
        self.damaged: dict[tuple[int, int], tuple[int, int, int, int]] = {}

    def _find_bands(self, numbers: Sequence[int] | None) -> list[int]:
        return find_bands(self.file, self.bands, numbers)

    def _find_colours(self) -> list[int]:
        return find_colours(self.file, self.bands, self.numbers)

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *_failure) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()

    def read(self, y: int, x: int, height: int, width: int, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """float32 (C,h,w): raw bands of an area in pixels of the scene, at `size` (h,w) where it is given.

        No data is 0 in all bands, as is what lies beyond the edges. What cannot be read is no data and noted in
        `damaged`: {(block row, block column): (y, x, height, width)}.
        """
        out = np.zeros((len(self.bands), height, width), np.float32)
        top, left = max(y, 0), max(x, 0)
        bottom, right = min(y + height, self.height), min(x + width, self.width)
        if top < bottom and left < right:
            with cache_limit():
                part = self._read_or_repair(top, left, bottom - top, right - left)
            out[:, top - y : bottom - y, left - x : right - x] = part
        return out if size is None else self._resample(out, tuple(size))

    def _resample(self, tile: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return resample(tile, size)

    def _clean(self, tile: np.ndarray, masked: np.ndarray | None) -> np.ndarray:
        """float32 (C,h,w) of the bands that were read: 0 where there is no data."""
        out = clean(tile, self.nodata, masked, self._colours)
        return out if self._places == list(range(len(out))) else out[self._places]

    def _read_or_repair(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        try:
            return self._read_raw(y, x, height, width)
        except (RasterioError, OSError):
            return self._read_blocks(y, x, height, width)

    def _read_raw(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        window = Window(x, y, width, height)
        tile = self.file.read(self._all, window=window)
        masked = self.file.read_masks(self.numbers[0], window=window) == 0 if self.masked else None
        return self._clean(tile, masked)

    def _read_blocks(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """The area block by block, a block that cannot be read as no data."""
        rows, columns = self.file.block_shapes[self.numbers[0] - 1]
        out = np.zeros((len(self.bands), height, width), np.float32)
        for row in range(y // rows, (y + height - 1) // rows + 1):
            for column in range(x // columns, (x + width - 1) // columns + 1):
                top, left = max(row * rows, y), max(column * columns, x)
                bottom, right = min((row + 1) * rows, y + height), min((column + 1) * columns, x + width)
                try:
                    part = self._read_raw(top, left, bottom - top, right - left)
                except (RasterioError, OSError):
                    self._note(row, column, rows, columns)
                    continue
                out[:, top - y : bottom - y, left - x : right - x] = part
        return out

    def _note(self, row: int, column: int, rows: int, columns: int) -> None:
        if (row, column) not in self.damaged:
            y, x = row * rows, column * columns
            extent = (y, x, min(rows, self.height - y), min(columns, self.width - x))
            self.damaged[row, column] = extent
            print(f"{self.path}: rows {y} to {y + extent[2] - 1}, columns {x} to {x + extent[3] - 1} cannot be read;"
                  " they stay no data")  # fmt: skip


def open_raster(path: Path) -> rasterio.DatasetReader:
    try:
        with cache_limit():
            return open_checked(path)
    except (RasterioError, OSError) as error:
        said = f"cannot be read ({str(error).strip()})" if path.exists() else "not found"
        raise InputError(f"{path}: {said}; give GeoTIFFs with --scene") from error


def open_scene(path: str | Path, bands: Sequence[str], *, numbers: Sequence[int] | None = None) -> Scene:
    """A raster with the bands that a model wants, by the names that bands of tiles have (`band_names`).

    numbers: their numbers in the file, from 1, instead. A file without names whose first three bands are not all that
    is wanted, and that has just as many bands, is taken in its order; what was presumed is said.
    InputError: a band is missing (names those there are), the file cannot be read.
    """
    return Scene(path, bands, numbers)
