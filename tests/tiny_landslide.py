"""A small raster of hills, cut into overlapping tiles of four named bands with three ordered classes (or two).

The scripts are called on them in this process, as in tiny_tiles.py.
"""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tiny_tiles
from rasterio.transform import from_origin
from tiny_rts import write_raster

BANDS = ("elevation", "slope", "ndvi", "soil")
CLASSES = ["low", "medium", "high"]
TAG, SENTINEL, IGNORED = -9999.0, np.float32(-3.4028235e38), 255
SIDE, STRIDE, PIXEL = 32, 16, 10.0
CORNER, CRS = (500_000.0, 3_700_000.0), "EPSG:32643"
SPLITS = {"train": (0, 64), "val": (64, 112), "test": (112, 160)}  # columns of pixels
# a model and crops so small that an epoch takes a tenth of a second
SMALL = ("--task", "landslide", "--encoder", "tu-test_efficientnet", "--decoder", "32", "16", "16", "--crop", "32",
         "--crops-per-epoch", "12", "--batch-size", "4", "--workers", "0", "--device-type", "cpu", "--samples-every",
         "0", "--collapse-epochs", "0", "--augment", "hflip=.5", "--ema-decay", ".7")  # fmt: skip
QUICK = (*SMALL, "--epochs", "2")
LEARNING = ("--epochs", "8", "--lr", "1e-2", "--crops-per-epoch", "24")
call, log_of = tiny_tiles.call, tiny_tiles.log_of


def smooth(rng, shape: tuple[int, int], width: float) -> np.ndarray:
    field = cv2.GaussianBlur(rng.normal(size=shape), (0, 0), width)
    return (field - field.mean()) / field.std()


def draw_hills(rng, height: int, width: int, *, gaps: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(bands float32 (4,H,W) of BANDS, classes uint8 (H,W)): risk follows the slope, less of it where it is green.

    gaps: no data of three kinds, each in one band (TAG in elevation, NaN in ndvi, SENTINEL in slope), and some pixels
    IGNORED; what lies under the gaps is of all classes.
    """
    steep, green = smooth(rng, (height, width), 6), smooth(rng, (height, width), 8)
    risk = steep - 0.3 * green
    classes = np.digitize(risk, np.quantile(risk, (0.6, 0.72))).astype(np.uint8)
    noise = rng.normal(size=(4, height, width))
    looks = (1500 + 80 * green, 20 + 8 * steep, 0.5 + 0.1 * green, 0.0 * green)
    bands = (np.stack(looks) + noise * np.array([5, 1, 0.02, 1])[:, None, None]).astype(np.float32)
    if gaps:
        classes[-4:, -6:] = IGNORED
        bands[0, 4:9, 6:16], bands[2, 20:25, 50:60], bands[1, 40:44, 20:60] = TAG, np.nan, SENTINEL
    return bands, classes


def has_data(bands: np.ndarray) -> np.ndarray:
    """bool (H,W) of raw bands (C,H,W)."""
    return (np.isfinite(bands) & (bands != TAG) & (np.abs(bands) < 1e30)).all(axis=0)


def starts(length: int, side: int, stride: int) -> range:
    return range(0, length - side + 1, stride)


def write_tiles(folder: Path, bands, classes, name: str, *, columns=None, kind="tif", values=(0, 1, 2), side=SIDE,
                stride=STRIDE, labels=True) -> list[tuple]:  # fmt: skip
    """images/ and labels/ of the tiles of a raster that lie in these columns; their lines of tiles.csv.

    kind: tif (band names in the file, no data by tag) or npy (names for bands.txt, the tag's pixels NaN); values: the
    raw value of each class.
    """
    raw = np.array([*values, *[IGNORED] * (256 - len(values))], np.uint8)[classes]
    first, last = columns or (0, bands.shape[2])
    lines = []
    for y in starts(bands.shape[1], side, stride):
        for x in (first + x for x in starts(last - first, side, stride)):
            tile, label = bands[:, y : y + side, x : x + side], raw[y : y + side, x : x + side]
            stem = f"{name}_y{y:03d}_x{x:03d}"
            place = from_origin(CORNER[0] + PIXEL * x, CORNER[1] - PIXEL * y, PIXEL, PIXEL)
            for inner, array in (("images", tile), ("labels", label)):
                path = folder / inner / f"{stem}.{kind}"
                path.parent.mkdir(parents=True, exist_ok=True)
                if inner == "labels" and not labels:
                    continue
                if kind == "npy":
                    np.save(path, np.where(array == TAG, np.nan, array) if inner == "images" else array)
                else:
                    tags = {"nodata": TAG} if inner == "images" else {}
                    write_raster(path, array, place, BANDS if inner == "images" else (), CRS, **tags)
            lines.append((stem, name, y, x, side, side))
    return lines


def write_table(folder: Path, lines: list[tuple]) -> None:
    names = ["id", "raster", "y", "x", "height", "width"]
    pd.DataFrame(lines, columns=names).to_csv(folder / "tiles.csv", index=False)


def make_hills(folder: Path, *, kind="tif", values=(0, 1, 2), splits=False, gaps=True, seed=0) -> Path:
    """images/, labels/ and tiles.csv of 45 tiles, and test/images of two from elsewhere without labels; with `splits`
    tiles/train, val and test instead. values: of two, the second is that of the highest class."""
    rng = np.random.default_rng(seed)
    bands, classes = draw_hills(rng, 96, 160, gaps=gaps)
    if len(values) == 2:
        classes = np.where(classes == IGNORED, 0, classes == 2).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    if splits:
        for name, columns in SPLITS.items():
            home = folder / "tiles" / name
            write_table(home, write_tiles(home, bands, classes, "hills", columns=columns, kind=kind, values=values))
    else:
        write_table(folder, write_tiles(folder, bands, classes, "hills", kind=kind, values=values))
        other = draw_hills(rng, 32, 48, gaps=False)
        other[0][1, 3:6] = SENTINEL
        write_tiles(folder / "test", *other, "other", kind=kind, labels=False)
    if kind == "npy":
        (folder / "bands.txt").write_text("\n".join(BANDS) + "\n")
    return folder


def write_rasters(folder: Path, *, height=80, width=112, seed=3) -> Path:
    """dem.tif, image.tif (two bands), cover.tif (classes 3 and 7), labels.tif and aoi.tif of one place."""
    rng, place = np.random.default_rng(seed), from_origin(*CORNER, PIXEL, PIXEL)
    bands, classes = draw_hills(rng, height, width)
    dem = (cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 7) * 900 + 1500).astype(np.float32)
    area = np.ones((height, width), np.uint8)
    area[:, :16] = 0
    write_raster(folder / "dem.tif", dem, place, crs=CRS)
    write_raster(folder / "image.tif", bands[2:], place, BANDS[2:], CRS)
    write_raster(folder / "cover.tif", np.where(bands[3] > 0, 3, 7).astype(np.uint8), place, crs=CRS)
    write_raster(folder / "labels.tif", classes, place, crs=CRS)
    write_raster(folder / "aoi.tif", area, place, crs=CRS)
    return folder


def make_scenes(folder: Path, count: int, *, height=70, width=90) -> Path:
    """`count` rasters of BANDS, each a place of its own."""
    for seed in range(count):
        bands, _ = draw_hills(np.random.default_rng(100 + seed), height, width)
        write_raster(folder / f"{seed}.tif", bands, from_origin(*CORNER, PIXEL, PIXEL), BANDS, CRS, nodata=TAG)
    return folder


def train(home: Path, *words, run: str, data="data", base=QUICK) -> Path:
    return tiny_tiles.train(home, *words, run=run, data=data, base=base)
