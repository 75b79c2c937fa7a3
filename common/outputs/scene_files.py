"""Maps of whole scenes: tiled, compressed GeoTIFFs with overviews, valid as Cloud-Optimized GeoTIFF, strip by strip.

Values of a scale stay float32: the probabilities of a rare class crowd near 0, where integer steps are coarse; deflate
after the floating-point predictor takes a tenth to a half off, higher levels and other codecs hardly more.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.shutil import copy
from rasterio.windows import Window

from common.datasets.scenes import cache_limit
from common.errors import InputError
from common.files import atomic_write, temporary_sibling

BLOCK = 512
COG = {"driver": "COG", "compress": "DEFLATE", "level": 6, "predictor": "YES", "blocksize": BLOCK,
       "bigtiff": "IF_SAFER", "overviews": "AUTO"}  # fmt: skip
Strip = tuple[int, np.ndarray, np.ndarray]


def rows_of_blocks(strips: Iterable[Strip], shape: tuple[int, int, int], nodata, dtype="float32") -> Iterator[tuple]:
    """(y0, (n,h,W) of that type) in whole rows of blocks from strips of any heights, nodata where not valid.

    shape: (n, height, width) of the raster. ValueError for strips that do not fill it from top to bottom.
    """
    n, height, width = shape
    held, begin, row = np.empty((n, BLOCK, width), dtype), 0, 0
    for y0, values, valid in strips:
        if y0 != row or values.shape != (n, *valid.shape) or valid.shape[1] != width or y0 + len(valid) > height:
            raise ValueError(f"strip {values.shape} at row {y0} does not follow row {row} of a raster {shape}")
        for top in range(y0, y0 + len(valid)):
            held[:, row - begin] = np.where(valid[top - y0], values[:, top - y0], np.dtype(dtype).type(nodata))
            row += 1
            if row - begin == BLOCK or row == height:
                yield begin, held[:, : row - begin]
                begin = row
    if row != height:
        raise ValueError(f"strips end at row {row} of {height}")


def write_plain(path: Path, strips: Iterable[Strip], *, shape, crs, transform, names, tags, nodata, colours) -> None:
    """Uncompressed tiled GeoTIFF with overviews: each is half the one before, by means that leave out no data, or by
    the commonest class."""
    dtype = "uint8" if colours else "float32"
    n, height, width = shape
    layout = {"driver": "GTiff", "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "bigtiff": "IF_SAFER",
              "interleave": "band"}  # fmt: skip
    with rasterio.open(path, "w", height=height, width=width, count=n, dtype=dtype, crs=crs, transform=transform,
                       nodata=nodata, **layout) as file:  # fmt: skip
        if colours:
            file.write_colormap(1, colours)
        for y, values in rows_of_blocks(strips, shape, nodata, dtype):
            file.write(values, window=Window(0, y, width, values.shape[1]))
        file.descriptions = tuple(names)
        file.update_tags(**tags)
    factors = [2**k for k in range(1, 31) if max(height, width) > BLOCK * 2 ** (k - 1)]
    if factors:
        with rasterio.open(path, "r+") as file:
            file.build_overviews(factors, Resampling.mode if colours else Resampling.average)


def write_raster(
    path: str | Path,
    strips: Callable[[], Iterable[Strip]],
    *,
    height: int,
    width: int,
    crs: CRS | None,
    transform: Affine,
    names: Sequence[str],
    tags: dict[str, str] | None = None,
    nodata: float = np.nan,
    colours: dict[int, tuple] | None = None,
) -> Path:
    """Write a float32 Cloud-Optimized GeoTIFF atomically, in memory for a row of blocks; returns the path.

    strips(): fresh (y0, values float32 (n,h,W), valid bool (h,W)) from top to bottom without gaps, of any heights;
    what is not valid becomes nodata. names: descriptions of the n bands; tags: text. colours: {class: (red, green,
    blue, alpha) of 255} of a map of classes: it is uint8, of one band, and its nodata a number. The same strips give
    the same bytes. An uncompressed copy lies beside the file while it is written (4 bytes a pixel and band, and a third
    more). InputError where GDAL cannot write, as on a full disk.
    """
    path = Path(path)
    shape = (len(names), height, width)
    facts = {"crs": crs, "transform": transform, "names": names, "tags": tags or {}}
    facts |= {"nodata": nodata, "colours": colours}

    def write(temporary: Path) -> None:
        # A sibling's name, so that what a killed process leaves is removed at the next write of the same file.
        plain = temporary_sibling(path)
        try:
            write_plain(plain, strips(), shape=shape, **facts)
            copy(plain, temporary, **COG)
        except RasterioError as error:
            raise InputError(f"{path}: could not be written ({error}); is there room on the disk?") from error
        finally:
            plain.unlink(missing_ok=True)

    with cache_limit(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return atomic_write(path, write)
