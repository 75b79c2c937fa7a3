"""Rasters to be mapped, read by window: bands by name, no data as 0 in all bands, damage confined to its blocks."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from common.errors import InputError

CACHE_MB = 256  # GDAL's own default is a share of the machine's memory


def cache_limit() -> rasterio.Env:
    """Bounds GDAL's cache of blocks, if nothing was read in this process before; GDAL_CACHEMAX has the say."""
    return rasterio.Env() if "GDAL_CACHEMAX" in os.environ else rasterio.Env(GDAL_CACHEMAX=CACHE_MB)


def band_names(file: rasterio.DatasetReader) -> tuple[str, ...]:
    """Names of a file's bands, lower case: their descriptions, else their colours (never alpha); "" where none."""
    if any(file.descriptions):
        return tuple((name or "").strip().lower() for name in file.descriptions)
    colours = {ColorInterp.red: "red", ColorInterp.green: "green", ColorInterp.blue: "blue"}
    return tuple(colours.get(colour, "") for colour in file.colorinterp)


def find_bands(file: rasterio.DatasetReader, bands: Sequence[str], numbers: Sequence[int] | None) -> list[int]:
    """Numbers (from 1) of the bands in a file. InputError: names or numbers that it has not."""
    path, wanted = file.name, [name.lower() for name in bands]
    if numbers is not None:
        if len(numbers) != len(bands):
            raise InputError(f"{path}: {len(numbers)} band numbers for {len(bands)} bands ({', '.join(bands)})")
        beyond = [number for number in numbers if not 1 <= number <= file.count]
        if beyond:
            raise InputError(f"{path}: no band {beyond[0]}; it has the bands 1 to {file.count}")
        return list(numbers)
    names = band_names(file)
    if set(wanted) <= set(names):
        return [names.index(name) + 1 for name in wanted]
    if not any(file.descriptions) and file.count == len(bands):
        print(f"{path}: its bands have no names; taken in this order: {', '.join(bands)}")
        return list(range(1, file.count + 1))
    missing = ", ".join(name for name in wanted if name not in names)
    there = ", ".join(f"{number} {name or '(no name)'}" for number, name in enumerate(names, 1))
    raise InputError(f"{path}: no band {missing}; there are: {there}; name its bands or give their numbers")


def clean(tile: np.ndarray, nodata: Sequence, masked: np.ndarray | None) -> np.ndarray:
    """float32 tile (C,h,w) with 0 for what is no number, for the files' nodata and in all bands where it is masked.

    A nodata value of 8 bits (0, 255) is also a value: it counts where all bands have it.
    """
    integers = tile.dtype.kind in "ui"
    out = tile.astype(np.float32)
    empty = np.zeros(tile.shape, bool)
    for band, value in enumerate(nodata):
        if value is None or np.isnan(value):
            continue
        if integers and not np.iinfo(tile.dtype).min <= value <= np.iinfo(tile.dtype).max:
            continue  # -9999 of a file of bytes would be taken for 241
        empty[band] = tile[band] == np.asarray(value).astype(tile.dtype)
    if integers and tile.dtype.itemsize == 1:
        empty[:] = empty.all(axis=0)
    out[empty] = 0
    if not integers:
        out[~np.isfinite(out)] = 0
    if masked is not None:
        out[:, masked] = 0
    return out


def resample(tile: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A tile (C,h,w) at another size: mean of the valid pixels of an area, bilinear where it grows.

    A pixel is valid where at least half of what it covers is.
    """
    if tile.shape[1:] == tuple(size):
        return tile
    smaller = size[0] <= tile.shape[1] and size[1] <= tile.shape[2]
    kind = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    share = cv2.resize((tile != 0).any(axis=0).astype(np.float32), size[::-1], interpolation=kind)
    out = np.stack([cv2.resize(band, size[::-1], interpolation=kind) for band in tile])
    return np.where(share >= 0.5, out / np.maximum(share, 0.5), 0).astype(np.float32)


class Scene:
    """An open raster. One thread at a time may read; use it in a `with`, or close it."""

    def __init__(self, path: str | Path, bands: Sequence[str], numbers: Sequence[int] | None):
        self.path, self.bands = Path(path), tuple(bands)
        self.file = open_raster(self.path)
        try:
            self.numbers = find_bands(self.file, bands, numbers)
        except InputError:
            self.file.close()
            raise
        self.height, self.width = self.file.shape
        self.crs, self.transform, self.profile = self.file.crs, self.file.transform, dict(self.file.profile)
        self.nodata = tuple(self.file.nodatavals[number - 1] for number in self.numbers)
        flags = self.file.mask_flag_enums[self.numbers[0] - 1]
        # a fourth band that calls itself alpha may be an old label: only a mask that is no band counts
        self.masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
        self.damaged: dict[tuple[int, int], tuple[int, int, int, int]] = {}

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
        return out if size is None else resample(out, tuple(size))

    def _read_or_repair(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        try:
            return self._read_raw(y, x, height, width)
        except (RasterioError, OSError):
            return self._read_blocks(y, x, height, width)

    def _read_raw(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        window = Window(x, y, width, height)
        tile = self.file.read(self.numbers, window=window)
        masked = self.file.read_masks(self.numbers[0], window=window) == 0 if self.masked else None
        return clean(tile, self.nodata, masked)

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
        with warnings.catch_warnings(), cache_limit():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path)
    except (RasterioError, OSError) as error:
        said = f"cannot be read ({str(error).strip()})" if path.exists() else "not found"
        raise InputError(f"{path}: {said}; give GeoTIFFs with --scene") from error


def open_scene(path: str | Path, bands: Sequence[str], *, numbers: Sequence[int] | None = None) -> Scene:
    """A raster with the bands that a model wants, by their descriptions or colours in any case of letters.

    numbers: their numbers in the file, from 1, instead. A file without names that has just as many bands is taken in
    its order, and says so. InputError: a band is missing (names those there are), the file cannot be read.
    """
    return Scene(path, bands, numbers)
