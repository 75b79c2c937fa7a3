"""A raster of prior probability (susceptibility) of any grid and CRS, brought onto a scene's grid, to confine a map."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window, from_bounds

from common.datasets.rasters import open_checked
from common.datasets.scenes import cache_limit
from common.errors import InputError

ROWS = 512  # of the file, read at a time while its values are checked
SLACK = 1e-4  # what rounding may take a value out of 0 … 1
MOST = 0.999  # no prior says never or always: its odds are confined to 1:999 … 999:1


class Prior:
    """An open prior on the grid of a scene. One thread at a time may read; close it, or use it in a `with`."""

    def __init__(self, file: rasterio.DatasetReader, *, height: int, width: int, crs: CRS, transform: Affine):
        self.file, self.height, self.width = file, height, width
        self.vrt = WarpedVRT(file, crs=crs, transform=transform, height=height, width=width, dtype="float64",
                             resampling=Resampling.bilinear, nodata=np.nan)  # fmt: skip

    def __enter__(self) -> "Prior":
        return self

    def __exit__(self, *_failure) -> None:
        self.close()

    def close(self) -> None:
        self.vrt.close()
        self.file.close()

    def read(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """float32 (height, width) in 0 … 1 of an area in pixels of the scene; NaN where the prior says nothing."""
        if y < 0 or x < 0 or y + height > self.height or x + width > self.width:
            raise ValueError(f"area {height}x{width} at {y}, {x} leaves the scene of {self.height}x{self.width}")
        with cache_limit():
            values = self.vrt.read(1, window=Window(x, y, width, height))
        return np.clip(unscaled(self.file, values), 0, 1).astype(np.float32)


def unscaled(file: rasterio.DatasetReader, values: np.ndarray) -> np.ndarray:
    """Values with the file's scale and offset applied: bytes of 0 … 200 with a scale of .005 are 0 … 1."""
    return values * file.scales[0] + file.offsets[0]


def window_of(file: rasterio.DatasetReader, *, height: int, width: int, crs: CRS, transform: Affine) -> Window:
    """The part of a file that a scene covers, in whole pixels. InputError where there is none."""
    a, b, c, d, e, f = tuple(transform)[:6]
    x, y = np.array([0, width, 0, width]), np.array([0, 0, height, height])
    xs, ys = a * x + b * y + c, d * x + e * y + f
    try:
        bounds = transform_bounds(crs, file.crs, xs.min(), ys.min(), xs.max(), ys.max())
        if not np.isfinite(bounds).all():
            raise InputError(f"{file.name}: its CRS does not reach the scene; give a prior of its area")
        found = from_bounds(*bounds, transform=file.transform)
    except (CRSError, RasterioError, CPLE_BaseError) as error:
        raise InputError(f"{file.name}: its CRS cannot be brought onto the scene's ({error}); reproject it") from error
    top, left = max(int(np.floor(found.row_off)), 0), max(int(np.floor(found.col_off)), 0)
    bottom = min(int(np.ceil(found.row_off + found.height)), file.height)
    right = min(int(np.ceil(found.col_off + found.width)), file.width)
    if not (top < bottom and left < right):
        raise InputError(f"{file.name}: does not overlap the scene; give a prior of its area")
    return Window(left, top, right - left, bottom - top)


def check_values(file: rasterio.DatasetReader, window: Window) -> None:
    """InputError where that part of the file holds no value, or one outside 0 … 1."""
    some = False
    for top in range(window.row_off, window.row_off + window.height, ROWS):
        rows = min(ROWS, window.row_off + window.height - top)
        part = file.read(1, window=Window(window.col_off, top, window.width, rows), masked=True)
        known = unscaled(file, part.compressed().astype(np.float64))
        known = known[~np.isnan(known)]
        some = some or known.size > 0
        if known.size and not (known.min() >= -SLACK and known.max() <= 1 + SLACK):
            span = f"{known.min():.4g} to {known.max():.4g}"
            raise InputError(f"{file.name}: holds values of {span}; a prior is a probability in 0 to 1: rescale it")
    if not some:
        raise InputError(f"{file.name}: has no data where the scene is; give a prior of its area")


def open_prior(path: str | Path, *, height: int, width: int, crs: CRS | None, transform: Affine) -> Prior:
    """The first band of a raster on the grid of a scene (bilinear; coarser, finer or of another CRS).

    The file's nodata, mask and NaN are no prior. InputError: unreadable, no CRS (of either), not of the scene's
    area, values outside 0 … 1.
    """
    try:
        file = open_checked(path)
    except (RasterioError, OSError) as error:
        raise InputError(f"{path}: not a readable raster ({error}); give a GeoTIFF of the prior") from error
    grid = {"height": height, "width": width, "crs": crs, "transform": transform}
    try:
        if file.crs is None:
            raise InputError(f"{path}: has no CRS; write the one it is in (gdal_edit.py -a_srs EPSG:…)")
        if crs is None:
            raise InputError(f"{path}: the scene has no CRS to bring the prior onto; georeference the scene")
        with cache_limit():
            check_values(file, window_of(file, **grid))
            return Prior(file, **grid)
    except (RasterioError, CPLE_BaseError) as error:
        file.close()
        raise InputError(f"{path}: cannot be read ({error}); restore the file") from error
    except InputError:
        file.close()
        raise


def limit(prob: np.ndarray, prior: np.ndarray, below: float) -> np.ndarray:
    return np.where(prior < below, prob.dtype.type(0), prob)


def multiply_odds(prob: np.ndarray, prior: np.ndarray, _below: float) -> np.ndarray:
    prior = np.clip(prior, 1 - MOST, MOST).astype(prob.dtype)
    for_it, against = prob * prior, (1 - prob) * (1 - prior)
    return np.where(np.isnan(prior), prob, for_it / (for_it + against))


MODES = {"limit": limit, "odds": multiply_odds}


def apply_prior(prob: np.ndarray, prior: np.ndarray, *, mode: str = "limit", below: float = 0.05) -> np.ndarray:
    """Probabilities, in the type of `prob`, after a prior of the same shape; where the prior is NaN they stay.

    mode "limit": 0 where the prior is under `below`. "odds": odds(prob) * odds(prior), Bayes' rule for a model that
    learnt at even odds and evidence of its own: a prior of .5 changes nothing; odds beyond 999:1 count as 999:1.
    """
    return MODES[mode](np.asarray(prob), prior, below)
