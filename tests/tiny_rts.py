"""A few small tiles in the form of the thaw-slump set: six regions far apart, few tiles with slumps, splits.yaml.

The scripts are called on them in this process. As a script, started by torchrun: as tiny_tiles.py.
"""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import rasterio
import tiny_tiles
import yaml
from rasterio.transform import from_origin

SPLITS = {"train": ["Aklavik", "Banks", "Colville"], "val": ["Dempster", "Eureka"], "test": ["Firth"]}
REGIONS = [name for names in SPLITS.values() for name in names]
GROUND, SLUMP = (70, 90, 60, 0.6), (150, 110, 90, 0.1)  # red, green, blue, NDVI
EXTRA = ("ndvi", "relative_elevation")
COLUMNS = ("Tile_id", "centroid_lat", "centroid_lon", "TrainClass", "RegionName", "UIDs")
CELL, CRS = 3.0, "EPSG:32608"
# a model and crops so small that an epoch takes a tenth of a second
SMALL = ("--task", "rts", "--arch", "unet", "--encoder", "tu-test_efficientnet", "--decoder", "32", "16", "16",
         "--weights", "none", "--crop", "32", "--crops-per-epoch", "16", "--batch-size", "4", "--ratio", "1",
         "--workers", "0", "--device-type", "cpu", "--samples-every", "0", "--patience", "0", "--collapse-epochs",
         "0", "--focal-alpha", ".75", "--augment", "hflip=.5")  # fmt: skip
QUICK = (*SMALL, "--epochs", "2", "--use", "ema")
LEARNING = ("--bands", "red", "green", "blue", "ndvi", "--epochs", "8", "--lr", "5e-3", "--ema-decay", ".7",
            "--crops-per-epoch", "40", "--ratio", "3", "--focal-alpha", ".25")  # fmt: skip
call, log_of = tiny_tiles.call, tiny_tiles.log_of


def tile_transform(region: int, tile: int, size: int):
    """Regions lie 100 km apart, the tiles of one side by side."""
    return from_origin(4e5 + CELL * size * (tile % 2), 7.5e6 - 1e5 * region - CELL * size * (tile // 2), CELL, CELL)


def draw_tile(rng, size: int, positive: bool) -> tuple[np.ndarray, np.ndarray]:
    """(bands float32 (5,H,W): red, green, blue, NDVI, relative elevation; label uint8 (H,W)).

    Without data on the left; one or two slumps, or a bare bank that is a slump but for its NDVI; some pixels ignored.
    """
    label, bare = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(1, 3)):
        centre = [int(v) for v in rng.integers(14, size - 10, 2)]
        axes = [int(v) for v in rng.integers(4, 9, 2)]
        cv2.ellipse(label if positive else bare, centre, axes, int(rng.integers(180)), 0, 360, 1, -1)
    looks = np.where((label + bare)[..., None] > 0, SLUMP, GROUND).astype(np.float32)
    looks[..., 3] = np.where(label > 0, SLUMP[3], GROUND[3])
    looks += rng.normal(size=looks.shape) * (8, 8, 8, 0.05)
    height = cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), 6) * 10
    tile = np.concatenate([np.clip(looks[..., :3], 1, 255).round(), looks[..., 3:], height[..., None]], axis=2)
    tile = tile.transpose(2, 0, 1).astype(np.float32)
    label[-3:, -3:] = 255
    tile[:, :, : int(rng.integers(2, 6))] = 0
    return tile, label


def write_raster(path: Path, values: np.ndarray, transform, names=(), crs=CRS, **more) -> Path:
    """GeoTIFF of (C,H,W) or (H,W), its bands described by `names`."""
    values = values if values.ndim == 3 else values[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    profile |= {"dtype": values.dtype, "crs": crs, "transform": transform, **more}
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
    return path


def make_rts(folder: Path, *, size=64, regions=tuple(REGIONS), positive=2, negative=2, splits=SPLITS, seed=0) -> Path:
    """PLANET-RGB/, EXTRA/, labels/, metadata.csv and splits.yaml (None: without one)."""
    rng, lines = np.random.default_rng(seed), []
    for k, region in enumerate(regions):
        for tile in range(positive + negative):
            name, transform = f"{region[:3].lower()}{tile:02d}", tile_transform(k, tile, size)
            bands, label = draw_tile(rng, size, tile < positive)
            write_raster(folder / "PLANET-RGB" / f"{name}.tif", bands[:3].astype(np.uint8), transform, nodata=0)
            write_raster(folder / "EXTRA" / f"{name}.tif", bands[3:], transform, EXTRA)
            write_raster(folder / "labels" / f"{name}.tif", label, transform)
            lat, lon = 67.6 - 0.897 * k + 1e-3 * tile, -137.4
            kind = "positive" if tile < positive else "negative"
            lines.append((name, lat, lon, kind, region, f"u{k}{tile}" if tile < positive else ""))
    pd.DataFrame(lines, columns=COLUMNS).to_csv(folder / "metadata.csv", index=False)
    if splits:
        (folder / "splits.yaml").write_text(yaml.safe_dump(splits))
    return folder


def train(home: Path, *words, run: str, data="data", base=QUICK) -> Path:
    return tiny_tiles.train(home, *words, run=run, data=data, base=base)


if __name__ == "__main__":
    tiny_tiles.main()
