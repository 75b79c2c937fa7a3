"""The built-in glacier set in the competition's own format: drawn mountain ranges whose outlines a surveyor drew.

    label = the class as it is, its outlines shifted by a wandering hand of SHIFT pixels (demo_terrain.draw_by_hand)

so the classes as they are make the best map there is, and their score the best reachable one. The test range lies
elsewhere, has other light and many more lakes than the training range (where they cover .05 %), so that the recall of
lakes can be measured on it.
"""

import json
from pathlib import Path

import numpy as np
import tifffile

from common.datasets.demo_terrain import DEBRIS, GLACIER, LAKE, SHARES, SHIFT, Range, draw_range
from common.errors import InputError
from common.files import atomic_write
from common.metrics.segmentation import confusion, mcc

DEMO_VERSION = 2
OUTPUTS = ("background", "glacier", "debris", "lake")
LABELS = (0, 85, 170, 255)
BANDS = {"Band1": "B2", "Band2": "B3", "Band3": "B4", "Band4": "B6", "Band5": "B10"}
NO_DATA = 0.26
ORIGIN = {"train": (567945.0, 3771855.0), "test": (706185.0, 3648975.0)}  # metres, UTM zone 43 north
FIRST = (2, 7)  # row and column of the training mosaic's first tile
TRAIN_LOOK, TEST_LOOK, HKH_LOOK = (1.0, 0.0), (0.95, 0.12), (0.9, 0.3)
LAKE_AREA = 75  # pixels, about
TEST_LAKE_PIXELS = 24_000  # pixels of the test range for each of its lakes, 22 in all
TEST_LAKE_AREA = 100
BARE = 0.2  # of the usual ice, in the slice that the preparation of HKH leaves out
GEO_KEYS = (1, 1, 0, 7, 1024, 0, 1, 1, 1025, 0, 1, 1, 1026, 34737, 22, 0, 2049, 34737, 7, 22, 2054, 0, 1, 9102)
GEO_KEYS += (3072, 0, 1, 32643, 3076, 0, 1, 9001)
GEO_NAMES = "WGS 84 / UTM zone 43N|WGS 84|"


def lake_areas(rng: np.random.Generator, count: int, total: int) -> list[int]:
    """Areas of `count` lakes in pixels, that of the largest about twice that of the smallest, `total` together."""
    parts = rng.permutation(np.linspace(0.67, 1.33, count)) if count > 1 else np.ones(1)
    areas = np.floor(parts / parts.sum() * total).astype(int)
    areas[0] += total - areas.sum()
    return areas.tolist()


def write_tile(path: Path, values: np.ndarray, corner: tuple[float, float]) -> None:
    """A GeoTIFF as the competition's: (H, W), deflated, EPSG:32643, 30 m, nodata 0, upper left corner in metres."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = [(33550, 12, 3, (30.0, 30.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, *corner, 0.0), True)]
    tags += [(34735, 3, len(GEO_KEYS), GEO_KEYS, True), (34737, 2, 0, GEO_NAMES, True), (42113, 2, 0, "0", True)]
    tifffile.imwrite(path, values, compression="zlib", rowsperstrip=64, extratags=tags, metadata=None, software=False)


def cut_tiles(drawn: Range, tile: int, origin: tuple[float, float]):
    """Yields (row, column, window, upper left corner in metres) of the tiles of a range, row by row."""
    for row in range(drawn.classes.shape[0] // tile):
        for col in range(drawn.classes.shape[1] // tile):
            window = np.s_[row * tile : (row + 1) * tile, col * tile : (col + 1) * tile]
            yield row, col, window, (origin[0] + 30.0 * tile * col, origin[1] - 30.0 * tile * row)


def write_train(folder: Path, drawn: Range, tile: int) -> None:
    """Band1 to Band5 and label, named by row and column of the mosaic."""
    values = np.array(LABELS, np.float32)
    for row, col, window, corner in cut_tiles(drawn, tile, ORIGIN["train"]):
        name = f"{FIRST[0] + row:02d}_{FIRST[1] + col:02d}.tif"
        for k, (band, short) in enumerate(BANDS.items()):
            write_tile(folder / band / f"{short}_{short}_masked_{name}", drawn.bands[k][window], corner)
        write_tile(folder / "label" / f"Y_output_resized_{name}", values[drawn.drawn[window]], corner)


def write_test(folder: Path, hidden: Path, drawn: Range, tile: int) -> None:
    """Band1 to Band5 under `folder` and the labels (uint8) under `hidden`, all named imgNNN.tif."""
    values = np.array(LABELS, np.uint8)
    for k, (_, _, window, corner) in enumerate(cut_tiles(drawn, tile, ORIGIN["test"]), 1):
        for channel, band in enumerate(BANDS):
            write_tile(folder / band / f"img{k:03d}.tif", drawn.bands[channel][window], corner)
        write_tile(hidden / f"img{k:03d}.tif", values[drawn.drawn[window]], corner)


def hkh_channels(drawn: Range) -> np.ndarray:
    """The 15 channels of the HKH slices, float32 (H, W, 15), from the five bands and the height of a range.

    blue, green, red, near infrared, SWIR1, two thermals, SWIR2, panchromatic (all 8 bit), quality, NDVI, NDSI, NDWI
    (not a number where there is no data), elevation in metres, slope in degrees.
    """
    blue, green, red, swir, thermal = (band / 257 for band in drawn.bands)
    near = 0.8 * red + 0.25 * swir
    slope = np.degrees(np.arctan(np.hypot(*np.gradient(drawn.height, 30.0))))
    with np.errstate(invalid="ignore", divide="ignore"):
        ndvi, ndsi = (near - red) / (near + red), (green - swir) / (green + swir)
        ndwi = (green - near) / (green + near)
    quality = np.where(drawn.valid, 672, 1)
    channels = [blue, green, red, near, swir, thermal, 1.1 * thermal, 0.8 * swir, (green + red + near) / 3]
    return np.stack([*channels, quality, ndvi, ndsi, ndwi, drawn.height, slope], -1).astype(np.float32)


def write_hkh(folder: Path, seed: int, scenes: int, slices: int, tile: int) -> None:
    """`slices` slices of each scene with their masks: all glacier, clean ice, debris, uint8 (H, W, 3).

    A last scene has one slice with too little glacier (some 6 %) to be learnt from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for scene in range(scenes + 1):
        bare = scene == scenes
        rng = np.random.default_rng([seed, 2, scene])
        shape, ice = (tile, tile * (1 if bare else slices)), BARE if bare else 1.0
        drawn = draw_range(rng, shape, tile=tile, no_data=0.1, lake_areas=[], look=HKH_LOOK, ice=ice)
        image = hkh_channels(drawn)
        clean, debris = drawn.drawn == GLACIER, drawn.drawn == DEBRIS
        masks = np.stack([clean | debris, clean, debris], -1).astype(np.uint8)
        for k, (_, _, window, _) in enumerate(cut_tiles(drawn, tile, ORIGIN["train"])):
            np.save(folder / f"slice_{scene}_img_{k}.npy", image[window])
            np.save(folder / f"slice_{scene}_mask_{k}.npy", masks[window])


def facts_of(drawn: Range) -> dict:
    """What the generator knows of a range: its best score over all pixels, and over those with data, and its classes.

    best: MCC of the classes as they are against the labels. shares, pixels: of the labels, over pixels with data.
    """
    counts = confusion(drawn.drawn, drawn.classes, drawn.valid, len(OUTPUTS))
    whole = counts.copy()
    whole[0, 0] += int((~drawn.valid).sum())
    pixels = counts.sum(1)
    return {
        "best": float(mcc(whole)),
        "best_valid": float(mcc(counts)),
        "best_recall": dict(zip(OUTPUTS, (np.diag(counts) / np.maximum(pixels, 1)).tolist(), strict=True)),
        "shares": dict(zip(OUTPUTS, (pixels / pixels.sum()).tolist(), strict=True)),
        "pixels": dict(zip(OUTPUTS, pixels.tolist(), strict=True)),
        "no_data": float((~drawn.valid).mean()),
    }


def draw_train(seed: int, mosaic: tuple[int, int], tile: int) -> tuple[Range, int]:
    """The training range and the number of its lakes, which cover their share of SHARES."""
    rng = np.random.default_rng([seed, 0])
    total = max(20, round(SHARES[LAKE] * mosaic[0] * mosaic[1] * tile**2 * (1 - NO_DATA)))
    areas = lake_areas(rng, max(1, round(total / LAKE_AREA)), total)
    shape = (mosaic[0] * tile, mosaic[1] * tile)
    return draw_range(rng, shape, tile=tile, no_data=NO_DATA, lake_areas=areas, look=TRAIN_LOOK), len(areas)


def draw_test(seed: int, mosaic: tuple[int, int], tile: int) -> tuple[Range, int]:
    """The test range and the number of its lakes, a lake of TEST_LAKE_AREA for each TEST_LAKE_PIXELS pixels."""
    rng = np.random.default_rng([seed, 1])
    shape = (mosaic[0] * tile, mosaic[1] * tile)
    lakes = max(1, round(shape[0] * shape[1] / TEST_LAKE_PIXELS))
    areas = lake_areas(rng, lakes, lakes * TEST_LAKE_AREA)
    return draw_range(rng, shape, tile=tile, no_data=NO_DATA, lake_areas=areas, look=TEST_LOOK), lakes


def make_demo(
    folder: Path, *, tile: int = 256, train: tuple = (4, 6), test: tuple = (2, 4), hkh: tuple = (3, 3), seed: int = 0
) -> dict:
    """Write the demo set into `folder`: Train/ and Test/ (Band1 to Band5, label), hidden/, HKH/ and demo.json.

    tile: pixels a side; train, test: rows and columns of tiles of the two mosaics; hkh: scenes and slices of each.
    Returns what demo.json holds: version, seed, shift (pixels), `best` (MCC over all training pixels of the classes
    as they are against the labels as drawn), `train` and `test` with what facts_of() gives and the number of lakes.
    The labels of Test lie in hidden/, under the names of its tiles. The same seed gives the same bytes.
    """
    if tile < 64 or min(*train, *test, *hkh) < 1:
        raise InputError(f"demo set: tiles of 64 pixels and one of each at least, got {tile}, {train}, {test}, {hkh}")
    folder = Path(folder)
    learnt, lakes = draw_train(seed, train, tile)
    write_train(folder / "Train", learnt, tile)
    facts = {"version": DEMO_VERSION, "seed": seed, "shift": SHIFT, "best": facts_of(learnt)["best"]}
    facts["train"] = facts_of(learnt) | {"lakes": lakes}
    held, lakes = draw_test(seed, test, tile)
    write_test(folder / "Test", folder / "hidden", held, tile)
    facts["test"] = facts_of(held) | {"lakes": lakes}
    write_hkh(folder / "HKH", seed, *hkh, tile)
    atomic_write(folder / "demo.json", json.dumps(facts, indent=1))
    return facts
