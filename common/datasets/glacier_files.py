"""GlacierHack tiles: five band folders of GeoTIFFs and their labels, or prepared npy tiles, to rows and arrays."""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from rasterio.errors import RasterioError

from common.datasets.arrays import FAULTS, read_npy, short
from common.datasets.limits import within
from common.datasets.rasters import open_checked, read_whole
from common.errors import InputError
from common.table_files import check_names, paths_inside, read_csv

CLASSES = ("background", "glacier", "debris", "lake")
BANDS = {"blue": "Band1", "green": "Band2", "red": "Band3", "swir1": "Band4", "thermal": "Band5"}
LABEL = "label"
# 255 alone means glacier, beside 85 or 170 it means lake; npy labels (of HKH) hold the classes themselves
LABEL_MAPS = {1: {0: 0, 255: 1}, 2: {0: 0, 85: 1, 170: 2, 255: 3}, "hkh": {0: 0, 1: 1, 2: 2}}
PREPARED = "tiles.csv"  # the table of a folder of npy tiles
SUFFIXES = (".tif", ".tiff")
POSITION = re.compile(r"(?<![A-Za-z0-9])(\d{2,3})_(\d{2,3})$")
UNKNOWN = 255  # no class: what read_label has not mapped yet


def tile_id(path: str | Path) -> str:
    """Id of a tile from any of its file names: the trailing `RR_CC`, else the trailing digits (`img001` -> `001`)."""
    stem = Path(path).stem
    found = POSITION.search(stem) or re.search(r"\d+$", stem)
    if not found:
        raise InputError(f"{path}: no RR_CC and no number at the end of the name; rename it, as in img001.tif")
    return found.group()


def read_rows(data: str | Path, *, require_labels: bool = True) -> pd.DataFrame:
    """Rows sorted by id: id, path (of the Band1 file), label (path), row and col (of RR_CC, else -1).

    data: a folder of band folders or the one that holds it as `Train/` (require_labels) or `Test/`; or a folder made
    by `hkh.prepare`, whose rows bring their group and class shares. Without require_labels the column `label` is there
    only if every tile has one. InputError: a band folder, or a tile in one of them, is missing.
    """
    folder = find_tiles(Path(data), ("Train",) if require_labels else ("Test",))
    if (folder / PREPARED).is_file():
        return read_prepared(folder)
    files = {name: list_tiles(folder, name) for name in BANDS.values()}
    labels = list_tiles(folder, LABEL) if require_labels or child(folder, LABEL) else {}
    every = sorted(set().union(*files.values()))
    if not every:
        raise InputError(f"{folder}: its band folders hold no {' or '.join(SUFFIXES)} file; name another with --data")
    for name, found in [*files.items(), *([(LABEL, labels)] if require_labels else [])]:
        lacking = [key for key in every if key not in found]
        if lacking:
            raise InputError(
                f"{folder / name}: no file of tile {lacking[0]} ({len(lacking)} of {len(every)} tiles are missing"
                " there); complete the folder or remove the tile from the others"
            )
    rows = pd.DataFrame({"id": every, "path": [str(files["Band1"][key]) for key in every]})
    if all(key in labels for key in every):
        rows["label"] = [str(labels[key]) for key in every]
    place = [(int(found[1]), int(found[2])) if (found := POSITION.search(key)) else (-1, -1) for key in every]
    rows[["row", "col"]] = np.array(place, int)
    return rows


def find_tiles(data: Path, inner: tuple[str, ...]) -> Path:
    """The folder of tiles: data itself or its folder of that name. InputError where neither holds tiles."""
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; name the folder of the tiles with --data")
    for folder in [found for name in inner if (found := child(data, name))] + [data]:
        if (folder / PREPARED).is_file() or any(child(folder, name) for name in BANDS.values()):
            return folder
    raise InputError(f"{data}: holds neither {' nor '.join(inner)} nor the band folder Band1; name another with --data")


def child(folder: Path, name: str) -> Path | None:
    """The folder of that name in a folder, in any case of letters; None if there is none."""
    if (folder / name).is_dir():
        return folder / name
    return next((p for p in sorted(folder.iterdir()) if p.name.lower() == name.lower() and p.is_dir()), None)


def list_tiles(folder: Path, name: str) -> dict[str, Path]:
    """{id: file} of a band or label folder. InputError: it is missing, or two files have the same id."""
    inner = child(folder, name)
    if inner is None:
        raise InputError(f"{folder}: the folder {name} is missing; complete the data or name another with --data")
    return index_tiles(inner, inner.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def index_tiles(folder: Path, _changed: int) -> dict[str, Path]:
    """`list_tiles`, kept until the folder changes: every read of a tile asks five times."""
    found = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")):
        key = tile_id(path)
        if key in found:
            raise InputError(f"{folder}: {found[key].name} and {path.name} are both tile {key}; keep one")
        found[key] = path
    return found


def read_prepared(folder: Path) -> pd.DataFrame:
    """Rows of a folder of npy tiles: paths as in `read_rows`, the columns of its table kept."""
    table = folder / PREPARED
    rows = read_csv(table, text=("id", "path", "label", "group"), remedy="prepare the folder again")
    lacking = [name for name in ("id", "path", "label", "group") if name not in rows]
    if lacking or rows["id"].duplicated().any():
        said = f"no column {', '.join(lacking)}" if lacking else "an id is there twice"
        raise InputError(f"{table}: {said}; prepare the folder again")
    check_names(rows["id"], table)
    for name in ("path", "label"):
        rows[name] = paths_inside(folder, rows[name], table)
    gone = [path for path in rows["path"] if not Path(path).is_file()]
    if gone:
        raise InputError(f"{gone[0]}: not found ({len(gone)} of {len(rows)} tiles); prepare the folder again")
    return rows.assign(row=-1, col=-1)


def read_tile(path: str | Path) -> np.ndarray:
    """float32 (5,H,W): raw digital numbers of a tile in the order of BANDS, by its Band1 file or npy file.

    No data is 0 in all bands. InputError: a band is missing or of another size, or a pixel is NaN or infinite.
    """
    path = Path(path)
    if path.suffix == ".npy":
        raw = load_array(path)
        if raw.ndim != 3 or not raw.size:
            raise InputError(f"{path}: a tile of shape {raw.shape}; prepare the folder again: (bands, height, width)")
        within(path, "tile", raw.size)
        tile = raw.astype(np.float32)
        check_finite(tile, path)
        return tile
    key, bands = tile_id(path), []
    for name in BANDS.values():
        file = list_tiles(path.parent.parent, name).get(key)
        if file is None:
            raise InputError(f"{path.parent.parent / name}: no file of tile {key}; complete the folder")
        band = load_array(file).astype(np.float32)
        check_finite(band, file)
        if bands and band.shape != bands[0].shape:
            raise InputError(f"{file}: {size(band)} pixels where {path.name} has {size(bands[0])}; cut both alike")
        bands.append(band)
    return np.stack(bands)


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Array of an npy file (mapped: not yet read), or (H,W) of a GeoTIFF with one band. InputError: anything else, or
    an array of fewer than two axes."""
    try:
        if path.suffix == ".npy":
            array = read_npy(path, mapped=mapped)
            if array.ndim < 2:
                raise ValueError(f"it is of the shape {array.shape}")
            return array
        with open_checked(path) as file:
            if file.count != 1:
                raise InputError(f"{path}: {file.count} bands in one file; a file of a band folder holds one")
            return read_whole(file, 1)
    except (RasterioError, *FAULTS) as error:
        said = "not found" if not path.is_file() else f"cannot be read ({short(error)})"
        raise InputError(f"{path}: {said}; download it again") from error


def check_finite(tile: np.ndarray, path: Path) -> None:
    wrong = tile.size - int(np.isfinite(tile).sum())
    if wrong:
        raise InputError(f"{path}: {wrong} pixels are NaN or infinite; no data is written as 0: correct the file")


def size(array: np.ndarray) -> str:
    return "x".join(str(n) for n in array.shape)


def valid_pixels(tile: np.ndarray) -> np.ndarray:
    """bool (H,W): where a tile (C,H,W) has data, that is, is not zero in all bands."""
    return (tile != 0).any(0)


def label_map(paths, phase: int | str | dict | None = None) -> dict[int, int]:
    """{raw value: class} of a whole set of label files, decided once: 255 alone is glacier, beside 85 or 170 lake.

    phase: 1, 2 or "hkh" (a key of LABEL_MAPS) or a map, to say it instead. InputError: a value that is not in the map
    (names file and values), or a set whose values leave it open (nothing but 0).
    """
    paths = [Path(path) for path in paths]
    values = {path: np.unique(load_array(path)) for path in paths}
    every = {float(value) for found in values.values() for value in found}
    if phase is None:
        phase = "hkh" if all(path.suffix == ".npy" for path in paths) else 2 if every & {85.0, 170.0} else 1
        if phase != "hkh" and every <= {0.0}:
            where = f"{paths[0]} and {len(paths) - 1} more" if paths else "the set"
            raise InputError(f"{where}: no label but 0, so what 255 means is open; say it with --label-map")
    known = phase if isinstance(phase, dict) else LABEL_MAPS[phase]
    known = {int(value): int(k) for value, k in known.items()}
    for path, found in values.items():
        check_values(path, found, known)
    return known


def check_values(path: Path, values: np.ndarray, known: dict[int, int]) -> None:
    stray = [f"{value:g}" for value in values.tolist() if value not in known]
    if stray:
        named = ", ".join(stray[:5]) + (f" and {len(stray) - 5} more" if len(stray) > 5 else "")
        raise InputError(
            f"{path}: the label holds {named}; known are {', '.join(map(str, known))}: correct the file or give"
            " --label-map"
        )


def outputs_of(known: dict[int, int]) -> tuple[str, ...]:
    """Names of the classes that a label map gives: the first 2, 3 or 4 of CLASSES."""
    return CLASSES[: max(known.values()) + 1]


def read_label(path: str | Path, known: dict) -> np.ndarray:
    """uint8 (H,W) of class indices by a label map, whose keys may be text. InputError: a value that is not in it."""
    raw = load_array(Path(path))
    known = {int(value): int(k) for value, k in known.items()}
    classes = np.full(raw.shape, UNKNOWN, np.uint8)
    for value, k in known.items():
        classes[raw == value] = k
    if (classes == UNKNOWN).any():
        check_values(Path(path), np.unique(raw[classes == UNKNOWN]), known)
    return classes


def class_shares(rows: pd.DataFrame, known: dict, outputs: tuple[str, ...]) -> pd.DataFrame:
    """A copy of rows with a column per output: its share of the tile's pixels that have data (0..1).

    Reads every tile once (a table that has the columns is given back as it is). InputError: a tile without any data, a
    label of another size, and all that `read_tile` and `read_label` find.
    """
    if set(outputs) <= set(rows.columns):
        return rows.copy()
    shares = []
    for path, label in zip(rows["path"], rows["label"], strict=True):
        valid, classes = valid_pixels(read_tile(path)), read_label(label, known)
        if classes.shape != valid.shape:
            raise InputError(f"{label}: {size(classes)} pixels where its bands have {size(valid)}; cut both alike")
        if not valid.any():
            raise InputError(f"{path}: 0 in all pixels of all bands, nothing to learn from; remove the tile")
        shares.append(np.bincount(classes[valid], minlength=len(outputs)) / valid.sum())
    return rows.assign(**dict(zip(outputs, np.array(shares).T, strict=True)))


def profile_of(path: str | Path) -> dict:
    """{"width", "height", "crs", "transform"} of a tile, for rasterio; crs None where the file has no georeference."""
    path = Path(path)
    if path.suffix == ".npy":
        height, width = load_array(path, mapped=True).shape[-2:]
        return {"width": width, "height": height, "crs": None, "transform": rasterio.Affine.identity()}
    try:
        with open_checked(path) as file:
            return {"width": file.width, "height": file.height, "crs": file.crs, "transform": file.transform}
    except (RasterioError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); download it again") from error
