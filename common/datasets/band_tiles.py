"""Tiles of many named bands, GeoTIFF or npy (C,H,W): names of the bands, raw values, and where there is no data."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import MaskFlags

from common.datasets.arrays import load_array
from common.datasets.band_names import band_number
from common.datasets.label_grids import open_raster
from common.datasets.limits import within
from common.datasets.rasters import read_whole
from common.datasets.scenes import HUGE
from common.errors import InputError

BAND_LIST = "bands.txt"
SIDECARS = (".aux.xml", ".msk", ".msk.aux.xml")
TINY = np.finfo(np.float32).tiny  # what a pixel whose values are all 0 gets in its first band: 0 means no data


def stamp(path: str | Path) -> tuple[int, int]:
    """What changes when a file does: what was read of it is kept only so long."""
    try:
        state = Path(path).stat()
    except OSError as error:
        raise InputError(f"{path}: not found; make the folds again or complete the folder") from error
    return state.st_mtime_ns, state.st_size


def with_sidecars(path: str | Path) -> list[Path]:
    """A raster and what GDAL keeps beside it that decides its values: nodata tags and masks."""
    beside = (Path(f"{path}{suffix}") for suffix in SIDECARS)
    return [Path(path), *(file for file in beside if file.is_file())]


def band_list(path: str | Path) -> Path | None:
    """The bands.txt of a tile: beside it or in one of the four folders above, so that splits may share it."""
    return next((file for folder in list(Path(path).parents)[:5] if (file := folder / BAND_LIST).is_file()), None)


@lru_cache(maxsize=64)
def listed_bands(path: Path, _changed: tuple) -> tuple[str, ...]:
    return tuple(clean_name(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())


def clean_name(text: str | None) -> str:
    return (text or "").strip().lower().replace(" ", "_")


def name_bands(path: Path, descriptions) -> list[str]:
    """Names of a file's bands: their descriptions, else those of bands.txt, else band1, band2 … InputError: a name
    twice, or a bands.txt of another length.
    """
    names, table = [clean_name(text) for text in descriptions], band_list(path)
    if not any(names) and table is not None:
        listed = list(listed_bands(table, stamp(table)))
        if len(listed) != len(names):
            raise InputError(f"{table}: names {len(listed)} bands, but {path} has {len(names)}; correct the list")
        names = listed
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice:
        raise InputError(f"{path}: two of its bands are named {twice}; rename one")
    return [name or f"band{number}" for number, name in enumerate(names, 1)]


def is_array(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".npy"


def open_array(path: str | Path) -> np.ndarray:
    """An npy tile (C,H,W), not yet read. InputError: another shape."""
    array = load_array(path, mapped=True)
    if array.ndim != 3 or not array.size:
        raise InputError(f"{path}: a tile of shape {array.shape}; write (bands, height, width)")
    return array


def available_bands(path: str | Path) -> list[str]:
    """Names of a tile's bands, see `name_bands`."""
    return profile_of(path)["names"]


def bands_of(rows) -> list[str]:
    """Names of the bands that rows were read with (their column `bands`), which all have; else the first tile's."""
    return rows["bands"].iloc[0].split("\n") if "bands" in rows else available_bands(rows["path"].iloc[0])


def profile_of(path: str | Path) -> dict:
    """{"width", "height", "crs", "transform", "names"} of a tile; crs None where it has no georeference."""
    if is_array(path):
        return array_profile(path, open_array(path))
    with open_raster(path) as file:
        return raster_profile(path, file)


def array_profile(path: str | Path, array: np.ndarray) -> dict:
    count, height, width = array.shape
    return {"width": width, "height": height, "crs": None, "transform": rasterio.Affine.identity(),
            "names": name_bands(path, [""] * count)}  # fmt: skip


def raster_profile(path: str | Path, file: rasterio.DatasetReader) -> dict:
    return {"width": file.width, "height": file.height, "crs": file.crs, "transform": file.transform,
            "names": name_bands(path, file.descriptions)}  # fmt: skip


def band_numbers(path: str | Path, bands, names: list[str]) -> list[int]:
    """Numbers (from 1) of bands by name or as bandN. InputError: one that the tile has not; says which there are."""
    found = {name: band_number(name, names) for name in bands}
    lacking = [name for name, number in found.items() if number is None]
    if lacking:
        raise InputError(f"{path}: has no band {lacking[0]}; there are {', '.join(names)}: choose with --bands")
    return list(found.values())


def read_bands(path: str | Path, bands=None) -> tuple[np.ndarray, np.ndarray, dict]:
    """(raw values (C,H,W), missing bool (C,H,W), profile as of `profile_of`) of named bands, None: of all.

    Missing is what the nodata tag says, what is no number, infinite or beyond HUGE, and, in all bands, what the
    dataset's mask (no alpha band) leaves out. The file is opened once: an odd CRS alone takes 7 ms.
    """
    masked = None
    if is_array(path):
        array = open_array(path)
        profile = array_profile(path, array)
        numbers = band_numbers(path, bands or profile["names"], profile["names"])
        within(path, "tile", len(numbers) * array[0].size)
        tile, nodata = np.array(array[[k - 1 for k in numbers]]), []
    else:
        with open_raster(path) as file:
            profile = raster_profile(path, file)
            numbers = band_numbers(path, bands or profile["names"], profile["names"])
            tile, nodata = read_whole(file, numbers), [file.nodatavals[k - 1] for k in numbers]
            flags = file.mask_flag_enums[numbers[0] - 1]
            if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
                masked = file.read_masks(numbers[0]) == 0
    return tile, missing_pixels(tile, nodata, masked), profile


def missing_pixels(tile: np.ndarray, nodata, masked: np.ndarray | None = None) -> np.ndarray:
    """bool (C,H,W) of raw values (C,H,W): no data, see `read_bands`. nodata: value of each band's tag or None; masked:
    bool (H,W) or None."""
    missing = ~(np.abs(tile) <= HUGE) if tile.dtype.kind == "f" else np.zeros(tile.shape, bool)
    for band, value in enumerate(nodata):
        if value is not None and not np.isnan(value):
            missing[band] |= tile[band] == value
    if masked is not None:
        missing |= masked
    return missing


def fill(tile: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """float32 (C,H,W): 0 in all bands where any is missing, and nowhere else: all 0 becomes TINY in the first band."""
    empty = missing.any(axis=0)
    out = np.where(empty, 0, tile).astype(np.float32)
    out[0, ~empty & ~out.any(axis=0)] = TINY
    return out
