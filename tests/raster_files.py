"""Small rasters for the tests of stacking and cutting."""

import numpy as np
import rasterio
from rasterio.transform import from_origin

UTM = "EPSG:32643"
ORIGIN = (500_000.0, 3_700_000.0)


def write(path, values, *, pixel=10.0, origin=ORIGIN, crs=UTM, names=None, nodata=None):
    """A GeoTIFF of (C,H,W) or (H,W)."""
    values = values[None] if values.ndim == 2 else values
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": crs, "transform": from_origin(*origin, pixel, pixel)} if crs else {}
    size = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", nodata=nodata, **size, **place) as file:
        file.write(values)
        if names:
            file.descriptions = tuple(names)
    return path


def read(path):
    with rasterio.open(path) as file:
        return file.read(), file.descriptions, file.transform


def image(height=70, width=90, bands=2, seed=0):
    return np.random.default_rng(seed).normal(5, 1, (bands, height, width)).astype(np.float32)


def classes(height=70, width=90, seed=1):
    return np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8)
