"""Competition folders as Kaggle mounts them: small public ones, and the same with the hidden test set in place."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tiny_data
import tiny_landslide
import tiny_rts
import tiny_tiles


def hide_photos(public: Path, target: Path, *, names: list[str], size=(64, 128), seed=77) -> Path:
    """The biomass folder `public` with other test photos, under these ids; size of each: (H, W)."""
    shutil.copytree(public, target, ignore=shutil.ignore_patterns("test", "test.csv", "sample_submission.csv"))
    rng = np.random.default_rng(seed)
    (target / "test").mkdir()
    for name in names:
        picture = tiny_data.photo(rng, rng.uniform(2, 60), rng.uniform(0, 40), size)
        cv2.imwrite(str(target / "test" / f"{name}.jpg"), picture)
    write_asked(target, names)
    return target


def write_asked(folder: Path, names: list[str]) -> None:
    """test.csv and sample_submission.csv that ask for these ids."""
    asked = [(f"{name}__{output}", f"test/{name}.jpg", output) for name in names for output in tiny_data.OUTPUTS]
    table = pd.DataFrame(asked, columns=["sample_id", "image_path", "target_name"])
    table.to_csv(folder / "test.csv", index=False)
    table[["sample_id"]].assign(target=0.0).to_csv(folder / "sample_submission.csv", index=False)


def hide_tiles(public: Path, target: Path, *, names: list[str], size=64, seed=77) -> Path:
    """The glacier folder `public` with other tiles in Test/, of names RR_CC or imgNNN."""
    shutil.copytree(public, target, ignore=shutil.ignore_patterns("Test"))
    rng = np.random.default_rng(seed)
    for k, name in enumerate(names):
        tiny_tiles.write_tile(target / "Test", name, *tiny_tiles.draw_tile(rng, size, size), (9e5 + 3e3 * k, 3e6), None)
    return target


def hide_slumps(public: Path, target: Path, *, names: list[str], size=64, seed=77) -> Path:
    """A folder of thaw-slump tiles without labels and splits, with the bands of the tiles of `public`."""
    rng = np.random.default_rng(seed)
    for k, name in enumerate(names):
        bands, place = tiny_rts.draw_tile(rng, size, k % 2 == 0)[0], tiny_rts.tile_transform(9, k, size)
        tiny_rts.write_raster(target / "PLANET-RGB" / f"{name}.tif", bands[:3].astype(np.uint8), place, nodata=0)
        tiny_rts.write_raster(target / "EXTRA" / f"{name}.tif", bands[3:], place, tiny_rts.EXTRA)
    return target


def hide_hills(public: Path, target: Path, *, names: list[str], seed=77) -> Path:
    """The landslide folder `public` with other tiles in test/images; a name is the raster of two tiles."""
    shutil.copytree(public, target, ignore=shutil.ignore_patterns("test"))
    rng = np.random.default_rng(seed)
    for name in names:
        bands = tiny_landslide.draw_hills(rng, 32, 48, gaps=False)
        tiny_landslide.write_tiles(target / "test", *bands, name, labels=False)
    return target
