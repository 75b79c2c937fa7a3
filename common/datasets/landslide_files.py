"""Tiles of many bands and labels of ordered (or two) classes: folders of GeoTIFFs or npy files to rows and arrays."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.arrays import load_array
from common.datasets.band_names import NUMBERED
from common.datasets.band_tiles import (
    available_bands,
    band_list,
    band_numbers,
    fill,
    profile_of,
    read_bands,
    stamp,
    with_sidecars,
)
from common.datasets.cutting import PLAIN, classes_of_cut
from common.datasets.label_grids import open_raster
from common.datasets.pixel_places import TABLE, add_places
from common.datasets.rasters import read_whole
from common.datasets.tile_folders import LABELS, SUFFIXES, find_parts, list_files, pair_labels, unique_ids
from common.errors import InputError

CLASSES = ("low", "medium", "high")
BINARY = ("background", "landslide")
IGNORED = 255
LABEL_MAPS = {3: {0: 0, 1: 1, 2: 2}, "01": {0: 0, 1: 1}, "0255": {0: 0, 255: 1}}  # {raw value: class}


def read_rows(data: str | Path, *, bands=None, label_map=None, require_labels: bool = True) -> pd.DataFrame:
    """Rows 0..n-1 sorted by split and id: id, path, split ("" or train, val, test), row, col, raster, y, x, height,
    width (see `add_places`); with labels also label, label_map (text, see `label_map_of`) and, per class, its share of
    the labelled pixels that have data (0 where there are none).

    bands: names, any of which decides where there is no data (None: all); label_map: {raw value: class}, None: as the
    tiles were cut (`classes_of_cut`), else by the raw values of the whole set. A test split without labels is left out
    where labels are required. Every tile and label is read once. InputError: a tile without its label or the reverse, a
    band that is missing or not the same in all tiles, sizes that differ, a file that cannot be read, label values that
    are not in the map or leave it open.
    """
    parts = find_parts(data)
    if require_labels and "test" in parts and not any((parts["test"] / name).is_dir() for name in LABELS):
        parts.pop("test")
    lines = []
    for split, part in parts.items():
        images = list_files(part / "images")
        labels = pair_labels(part, images) if require_labels else {}
        lines += [(stem, str(path), split, str(labels.get(stem, ""))) for stem, path in images.items()]
    if not lines:
        raise InputError(f"{data}: holds no labelled tile; name another folder with --data")
    rows = pd.DataFrame(lines, columns=["stem", "path", "split", "label"])
    rows.insert(0, "id", unique_ids(rows))
    homes = [*parts.values(), next(iter(parts.values())).parent, Path(data)]
    tables = [home / TABLE for home in dict.fromkeys(homes) if (home / TABLE).is_file()]
    if not require_labels:
        profiles = [profile_of(path) for path in rows["path"]]
        check_names(rows["path"], profiles, bands)
        return add_places(rows, profiles, tables).drop(columns=["stem", "label"])
    chosen = list(bands or available_bands(rows["path"].iloc[0]))
    found = {label: scan(path, label, chosen) for path, label in zip(rows["path"], rows["label"], strict=True)}
    profiles = [facts["profile"] for facts in found.values()]
    check_names(rows["path"], profiles, bands)
    rows = add_places(rows, profiles, tables).drop(columns="stem")
    known = label_map_of(rows, classes_of_cut(Path(data), label_map) or label_map,
                         {label: facts["meant"] for label, facts in found.items()})  # fmt: skip
    return add_shares(rows.assign(label_map=map_text(known)), chosen, known)


def list_tiles(folder: str | Path) -> pd.DataFrame:
    """Rows (id, path) of tiles to be predicted: of test/, tiles/test/ or the folder's own images/, or of a folder of
    tiles; none where there is nothing of the kind."""
    folder = Path(folder)
    homes = [folder / "test" / "images", folder / "tiles" / "test" / "images", folder / "images", folder]
    for home in homes:
        if home.is_dir() and any(p.suffix.lower() in SUFFIXES for p in home.iterdir()):
            files = list_files(home)
            return pd.DataFrame({"id": list(files), "path": [str(path) for path in files.values()]})
    return pd.DataFrame({"id": [], "path": []}, dtype=str)


def add_shares(rows: pd.DataFrame, bands: list[str], known: dict[int, int]) -> pd.DataFrame:
    """rows with the share of each class of a label map. InputError: a value that is not in it, nothing labelled."""
    counts = np.array([class_counts(path, label, bands, known)
                       for path, label in zip(rows["path"], rows["label"], strict=True)])  # fmt: skip
    if not counts.any():
        check_bands(rows, bands)
        raise InputError(
            f"{rows['label'].iloc[0]} and the other labels: no labelled pixel has data in all of {', '.join(bands[:4])}"
            f"{' …' if len(bands) > 4 else ''}; leave out bands without data, or correct the files"
        )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return rows.assign(**dict(zip(outputs_of(known), shares.T, strict=True)))


def class_counts(path: str, label: str, bands, known: dict[int, int]) -> np.ndarray:
    """(K,) int: labelled pixels of a tile that have data, by class."""
    found, counts = scan(path, label, bands), np.zeros(len(outputs_of(known)), np.int64)
    check_values(label, [v for v in found["values"] if v != found["tag"]], {IGNORED: 0} | known)
    for value, pixels in found["values"].items():
        if (k := known.get(value, IGNORED)) != IGNORED:
            counts[k] += pixels
    return counts


# label maps


def outputs_of(known) -> tuple[str, ...]:
    """Names of the classes: of a label map, of rows (their share columns) or of a set of predictions (its counts)."""
    if isinstance(known, dict):
        return CLASSES if max(k for k in known.values() if k != IGNORED) > 1 else BINARY
    counts = sum(name.startswith("n_") for name in known)
    three = counts == len(CLASSES) ** 2 if counts else set(CLASSES) <= set(known)
    return CLASSES if three else BINARY


def map_text(known: dict[int, int]) -> str:
    return " ".join(f"{raw}={k}" for raw, k in known.items())


def label_map_of(rows: pd.DataFrame, given: dict | None = None, values: dict | None = None) -> dict[int, int]:
    """{raw value: class} of rows: as `read_rows` has noted, as given, else by the values of all labels.

    values: {label file: `values_of`}, None: they are read. rows may be None where the map is given.
    0 and 1 alone: two classes; 0 and 255 alone: two classes, 255 the second; with a 2: three classes, 255 ignored.
    InputError: a class that does not exist (0..2; 255 for ignored) or has no value, values that are open.
    """
    if rows is not None and "label_map" in rows:
        return dict(tuple(map(int, item.split("="))) for item in rows["label_map"].iloc[0].split())
    if given:
        known = {int(raw): int(k) for raw, k in given.items()}
        wrong = [f"{raw}={k} is no class" for raw, k in known.items() if k not in (*PLAIN, IGNORED)]
        classes = range(3 if 2 in known.values() else 2)
        wrong += [f"no value belongs to class {k}" for k in classes if k not in known.values()]
        if wrong:
            raise InputError(f"--label-map: {wrong[0]}; classes are 0, 1 and (of three) 2, and 255 for what is ignored")
        return known
    values = {label: values_of(*load_label(label)) for label in rows["label"]} if values is None else values
    for path, found in values.items():
        check_values(path, found, (0, 1, 2, IGNORED))
    every = {int(value) for found in values.values() for value in found}
    if 2 in every:
        return dict(LABEL_MAPS[3])
    if 1 in every and IGNORED not in every:
        return dict(LABEL_MAPS["01"])
    if every == {0, IGNORED}:
        return dict(LABEL_MAPS["0255"])
    said = ", ".join(map(str, sorted(every)))
    raise InputError(
        f"{rows['label'].iloc[0]} and {len(rows) - 1} more labels hold {said or 'no value'} and nothing else, which"
        " leaves their meaning open; say it with --label-map, like 0=0 1=1 255=255"
    )


def check_values(path: str, values, known) -> None:
    stray = [f"{value:g}" for value in values if value not in known]
    if stray:
        named = ", ".join(stray[:5]) + (f" and {len(stray) - 5} more" if len(stray) > 5 else "")
        raise InputError(f"{path}: the label holds {named}; known are {', '.join(map(str, known))}: correct the file or"
                         " give --label-map")  # fmt: skip


def values_of(raw: np.ndarray, nodata: float | None) -> list[float]:
    """The values of a label, without NaN and what its tag calls no data, unless that is a class by itself."""
    return [v for v in np.unique(raw).tolist() if v == v and (v != nodata or v in PLAIN)]


# files


def read_tile(path: str | Path, bands) -> np.ndarray:
    """float32 (C,H,W) of named bands in raw units; 0 in all bands where any of them has no data, and nowhere else.

    See `read_bands` for what has no data. InputError: a band is missing, the file cannot be read.
    """
    return fill(*read_bands(path, bands)[:2])


def load_label(path: str | Path) -> tuple[np.ndarray, float | None]:
    """(raw values (H,W), value of the nodata tag or None)."""
    if Path(path).suffix.lower() == ".npy":
        raw, nodata = load_array(path), None
        raw = raw[0] if raw.ndim == 3 and len(raw) == 1 else raw
        if raw.ndim != 2:
            raise InputError(f"{path}: a label of shape {raw.shape}; write one value a pixel, (H, W)")
        return raw, nodata
    with open_raster(path) as file:
        if file.count != 1:
            raise InputError(f"{path}: a label of {file.count} bands; write one value a pixel in one band")
        return read_whole(file, 1), file.nodata


def read_label(path: str | Path, label_map: dict) -> np.ndarray:
    """uint8 (H,W) of classes, 255 where ignored: by the map (its keys may be text), or where the file's nodata tag or
    NaN says so and the map does not. InputError: a value that is not in the map.
    """
    raw, nodata = load_label(path)
    known = {IGNORED: IGNORED} | {int(value): int(k) for value, k in label_map.items()}
    classes, strange = np.full(raw.shape, IGNORED, np.uint8), np.ones(raw.shape, bool)
    for value, k in known.items():
        here = raw == value
        classes[here] = k
        strange &= ~here
    if strange.any():
        check_values(path, [v for v in np.unique(raw[strange]).tolist() if v == v and v != nodata], known)
    return classes


def label_files(path: str) -> list[Path]:
    return with_sidecars(path)


def files_of(path: str) -> list[Path]:
    """The files that a tile is read from: its own, those beside it and, if there is one, its bands.txt."""
    return [*with_sidecars(path), *filter(None, [band_list(path)])]


def size_of(path: str) -> tuple[int, int]:
    """(H, W) of a tile."""
    profile = profile_of(path)
    return profile["height"], profile["width"]


# what a set holds


def scan(path: str, label: str, bands) -> dict:
    """What a tile and its label hold, kept until the files change: {"profile", "values" {raw label value: pixels with
    data}, "meant" (`values_of`), "tag" (no data of the label), "low", "high" (C,) least and largest value of each band
    where it has data (inf, -inf where it has none), "missing" (C,) pixels, "empty" pixels without data, "pixels"}.
    InputError: the label is of another size."""
    return scanned(path, label, tuple(bands), stamp(path), stamp(label))


@lru_cache(maxsize=65536)
def scanned(path: str, label: str, bands: tuple, _tile: tuple, _label: tuple) -> dict:
    tile, missing, profile = read_bands(path, bands)
    (raw, nodata), empty = load_label(label), missing.any(axis=0)
    if raw.shape != empty.shape:
        sizes = ["x".join(map(str, part.shape)) for part in (raw, empty)]
        raise InputError(f"{label}: {sizes[0]} pixels where its tile has {sizes[1]}; cut both alike")
    there = [part[~gone] for part, gone in zip(tile, missing, strict=True)]
    return {
        "profile": profile,
        "values": {value: int(((raw == value) & ~empty).sum()) for value in values_of(raw, None)},
        "meant": values_of(raw, nodata),
        "tag": nodata,
        "low": np.array([part.min() if part.size else np.inf for part in there]),
        "high": np.array([part.max() if part.size else -np.inf for part in there]),
        "missing": missing.sum(axis=(1, 2)),
        "empty": int(empty.sum()),
        "pixels": empty.size,
    }


def check_names(paths, profiles: list[dict], bands=None) -> None:
    """InputError: tiles whose bands differ from the first tile's, where all or numbered ones are used, or one without
    a band of those given."""
    first = profiles[0]["names"]
    numbered = bands is None or any(NUMBERED.match(name) for name in bands)
    for path, profile in zip(paths, profiles, strict=True):
        band_numbers(path, bands or [], profile["names"])
        other = sorted(set(profile["names"]) ^ set(first))
        if other and numbered:
            raise InputError(
                f"{path}: its bands are not those of {Path(paths.iloc[0]).name}: {', '.join(other[:4])} is in one of"
                " them only; choose with --bands what all have, by name"
            )


def check_bands(rows: pd.DataFrame, bands) -> None:
    """InputError where a band is without data or the same value in every pixel of all tiles: nothing could be learnt
    from it, and its deviation is 0.
    """
    facts = facts_of(rows, bands)
    for name, low, high in zip(bands, facts["low"], facts["high"], strict=True):
        if low >= high:
            said = f"is {low:g} in every pixel with data" if low == high else "has no data in any pixel"
            raise InputError(f"{rows['path'].iloc[0]} and {len(rows) - 1} more tiles: band {name} {said}; leave it out"
                             " with --bands or correct the files")  # fmt: skip


def facts_of(rows: pd.DataFrame, bands) -> dict:
    """`scan` over all rows: missing, empty and pixels summed, low and high over all."""
    found = [scan(path, label, bands) for path, label in zip(rows["path"], rows["label"], strict=True)]
    ways = {"missing": np.sum, "empty": np.sum, "pixels": np.sum, "low": np.min, "high": np.max}
    return {name: way([facts[name] for facts in found], axis=0) for name, way in ways.items()}


def check_rows(rows: pd.DataFrame, bands=None) -> list[str]:
    """Findings on bands (None: all that the first tile has): tiles and pixels of each class, pixels without data by
    band, bands that are constant."""
    bands = list(bands or available_bands(rows["path"].iloc[0]))
    facts, known, lines = facts_of(rows, bands), label_map_of(rows), []
    counts = sum(class_counts(path, label, bands, known) for path, label in rows[["path", "label"]].to_numpy().tolist())
    total = max(counts.sum(), 1)
    for name, count in zip(outputs_of(known), counts, strict=True):
        tiles = int((rows[name] > 0).sum())
        lines.append(f"{name}: in {tiles} of {len(rows)} tiles, {count / total:.2%} of {total:,} labelled pixels")
    lines.append(f"no data: {facts['empty'] / facts['pixels']:.2%} of the pixels (a band or more is missing)")
    for name, low, high, missing in zip(bands, facts["low"], facts["high"], facts["missing"], strict=True):
        if missing:
            lines.append(f"band {name}: no data in {missing:,} of {facts['pixels']:,} pixels")
        if low == high:
            lines.append(f"band {name}: {low:g} in every pixel with data; leave it out with --bands")
    return lines
