"""Thaw-slump tiles: PLANET-RGB, EXTRA, labels and metadata.csv to rows and arrays."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.band_names import (
    NUMBERED,
    RGB,
    SUFFIXES,
    band_number,
    bands_of,
    colour_numbers,
    described,
    extra_of,
    find_bands,
    names_in,
)
from common.datasets.label_grids import (
    IGNORED,
    LABEL_MAP,
    VECTORS,
    grid_difference,
    make_label,
    open_raster,
    polygons_on,
    profile_of,
    read_label,
)
from common.datasets.places import place_of, region_names
from common.datasets.rasters import read_whole
from common.datasets.scenes import HUGE, clean
from common.datasets.tile_folders import list_files
from common.errors import InputError
from common.table_files import read_csv

CLASSES = ("background", "slump")
IMAGES = ("PLANET-RGB", "tiles", "images")  # the folder of the images: the first that is there
METADATA = "metadata.csv"
COLUMNS = {"Tile_id": "id", "RegionName": "region", "TrainClass": "train_class", "centroid_lat": "lat",
           "centroid_lon": "lon", "UIDs": "uids"}  # fmt: skip
NEAR = 5000.0  # metres between the centres of tiles of one region, where no table names the regions


def image_folder(data: str | Path) -> Path:
    """The folder of the images. InputError: none of IMAGES is there."""
    data = Path(data)
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; name the folder of the tiles with --data")
    found = [data / name for name in IMAGES if (data / name).is_dir()]
    if not found:
        raise InputError(f"{data}: holds none of the folders {', '.join(IMAGES)}; name another with --data")
    return found[0]


def read_rows(data: str | Path, *, bands=RGB, labels: str = "labels", require_labels: bool = True, label_map=None,
              near: float = NEAR) -> pd.DataFrame:  # fmt: skip
    """Rows sorted by id: id, path (of the image), group and region, lat, lon (degrees), train_class, uids ("" unknown).

    With labels also label and label_grid (how its grid differs, "" if it does not), background and slump (shares of
    the labelled pixels that have data) and positive (bool). Every tile and label is read once.
    labels: a folder of rasters, bandN or band:NAME of the images, or a vector file; near: see NEAR.
    InputError: a tile without the bands, without a label (require_labels), without data or without a place; a tile of
    metadata.csv without a file; and what `read_tile` and `read_label` find.
    """
    data = Path(data)
    files = list_files(image_folder(data), SUFFIXES)
    rows = read_metadata(data / METADATA, files) if (data / METADATA).is_file() else pd.DataFrame({"id": list(files)})
    rows["path"] = [str(files[name]) for name in rows["id"]]
    for path in rows["path"]:
        find_bands(path, bands)
    rows = add_places(rows, near)
    if require_labels or (data / labels).exists():
        rows["label"], rows["label_grid"] = label_column(data, rows["path"], labels, bands=bands)
        rows = add_shares(rows, bands, label_map)
    return rows.reset_index(drop=True)


def read_metadata(path: Path, files: dict[str, Path]) -> pd.DataFrame:
    """Rows of metadata.csv by the names of `read_rows`, sorted by id; tiles it does not name are left out, said so.

    InputError: no table, a column missing, an id twice, a region missing, a tile without a file.
    """
    table = read_csv(path, text=None, remedy="export it again")
    lacking = [name for name in ("Tile_id", "RegionName") if name not in table]
    if lacking:
        raise InputError(f"{path}: no column {', '.join(lacking)}; it has {', '.join(table)}: add it")
    rows = pd.DataFrame({new: table[old].str.strip() if old in table else "" for old, new in COLUMNS.items()})
    rows["id"] = [
        name.removesuffix(Path(name).suffix) if Path(name).suffix in SUFFIXES else name for name in rows["id"]
    ]
    for wrong, what in ((rows["id"].duplicated(), "is there twice; keep one line"),
                        (rows["region"] == "", "has no RegionName; fill it in"),
                        (~rows["id"].isin(list(files)), "has no image file; add it or remove the line")):  # fmt: skip
        if wrong.any():
            raise InputError(f"{path}: tile {rows['id'][wrong].iloc[0]} {what} ({wrong.sum()} of {len(rows)} lines)")
    unnamed = sorted(set(files) - set(rows["id"]))
    if unnamed:
        print(f"{path}: {len(unnamed)} tiles are not in it and are left out, {unnamed[0]} for one")
    return rows.sort_values("id", ignore_index=True)


def add_places(rows: pd.DataFrame, near: float) -> pd.DataFrame:
    """rows with lat and lon as numbers, from the georeference where the table has none, and region and group."""
    rows = rows.copy()
    for name in ("train_class", "uids", "lat", "lon"):
        rows[name] = rows[name] if name in rows else ""
    for name, limit in (("lat", 90), ("lon", 360)):
        values = pd.to_numeric(rows[name], errors="coerce")
        wrong = (values.isna() & (rows[name] != "")) | (values.abs() > limit)
        if wrong.any():
            raise InputError(
                f"{METADATA}: tile {rows['id'][wrong].iloc[0]} has the centroid_{name} {rows[name][wrong].iloc[0]},"
                " which are no degrees; correct it"
            )
        rows[name] = values.astype(float)
    unknown = rows["lat"].isna() | rows["lon"].isna()
    if unknown.any():
        rows.loc[unknown, ["lat", "lon"]] = np.array([place_of(path) for path in rows["path"][unknown]])
    if "region" not in rows:
        rows["region"] = region_names(rows["lat"], rows["lon"], near)
    return rows.assign(group=rows["region"])


def label_column(data: Path, paths, labels: str, *, bands=RGB) -> tuple[list[str], list[str]]:
    """(label, how its grid differs from the tile's) of images by a source of labels (see `read_rows`).

    bands: the inputs; InputError where the label would be one of them, where a label is missing, or where no polygon
    lies on any tile.
    """
    paths, source = (
        [Path(path) for path in paths],
        next((p for p in (Path(data) / labels, Path(labels)) if p.exists()), None),
    )
    if source is not None and source.suffix.lower() in VECTORS:
        if not any(len(polygons_on(source, profile_of(path))) for path in paths):
            raise InputError(f"{source}: none of its polygons lies on any of the {len(paths)} tiles; check its CRS")
        return [make_label(source, grid=path) for path in paths], ["polygons"] * len(paths)
    if source is None and labels.lower().startswith("band"):
        return [band_label(path, labels, bands) for path in paths], [""] * len(paths)
    if source is None or not source.is_dir():
        there = sorted(p.name for p in Path(data).iterdir() if p.name.lower().startswith("label"))
        raise InputError(
            f"{Path(data) / labels}: no such labels (there are {', '.join(there) or 'no label folders'}); choose a"
            " folder, bandN, band:NAME or a vector file with --labels"
        )
    files = list_files(source, SUFFIXES)
    lacking = [path.stem for path in paths if path.stem not in files]
    if lacking:
        raise InputError(f"{source}: no label of tile {lacking[0]} ({len(lacking)} of {len(paths)} lack); complete it")
    found = [(files[path.stem], grid_difference(files[path.stem], path), path) for path in paths]
    return [make_label(file, grid=path if said else None) for file, said, path in found], [said for _, said, _ in found]


def band_label(path: Path, labels: str, bands) -> str:
    """Label of an image whose label is one of its own bands. InputError: no such band, or it is an input."""
    name = labels if NUMBERED.match(labels) else labels.split(":", 1)[-1]
    number = band_number(name, described(path, image=True)[0])
    if number is None:
        raise InputError(f"{path}: has no band {name} to be the label; there are {', '.join(bands_of(path))}: --labels")
    if (path, number) in find_bands(path, bands):
        raise InputError(f"{path}: band {number} is the label and an input; leave it out of --bands")
    return make_label(path, band=number)


def add_shares(rows: pd.DataFrame, bands, label_map) -> pd.DataFrame:
    """rows with background, slump (0..1 of the labelled pixels with data; 0 where there are none) and positive."""
    shares = []
    for path, label in zip(rows["path"], rows["label"], strict=True):
        valid, classes = (read_tile(path, bands) != 0).any(0), read_label(label, label_map or LABEL_MAP)
        if classes.shape != valid.shape:
            raise InputError(f"{label}: {classes.shape} pixels where its tile has {valid.shape}; cut both alike")
        if not valid.any():
            raise InputError(f"{path}: no data in all pixels, nothing to learn from; remove the tile")
        counts = np.bincount(classes[valid & (classes != IGNORED)], minlength=len(CLASSES))
        shares.append(counts / max(counts.sum(), 1))
    rows = rows.assign(**dict(zip(CLASSES, np.array(shares).T, strict=True)))
    return rows.assign(positive=rows[CLASSES[1]] > 0)


def read_tile(path: str | Path, bands=RGB) -> np.ndarray:
    """float32 (C,H,W) of the named bands in raw units; 0 in all bands where the image has no data.

    The image has no data where its mask or nodata tag says so and where red, green and blue are 0 (`scenes.clean`); a
    band tagged as alpha is no mask. A missing value (NaN, nodata tag) of an EXTRA band is 0 in that band alone.
    InputError: a band is missing, EXTRA is of another size or grid, a file cannot be read.
    """
    path = Path(path)
    wanted = find_bands(path, bands)
    with open_raster(path) as file:
        colours = colour_numbers(names_in(file, image=True))
        numbers = list(dict.fromkeys([*colours, *(k for source, k in wanted if source == path)]))
        flags = {flag.name for flag in file.mask_flag_enums[0]}
        masked = file.read_masks(1) == 0 if "per_dataset" in flags and "alpha" not in flags else None
        nodata = [file.nodatavals[k - 1] for k in numbers]
        image = clean(read_whole(file, numbers), nodata, masked, range(len(colours)))
    empty = ~image[: len(colours)].any(0)
    tile = np.stack(
        [image[numbers.index(k)] if source == path else read_extra(source, k, path) for source, k in wanted]
    )
    tile[:, empty] = 0
    return tile


def read_extra(extra: Path, number: int, image: Path) -> np.ndarray:
    """float32 (H,W) of a band of an EXTRA file, missing values 0. InputError: it does not lie on its image's grid."""
    difference = grid_difference(extra, image)
    if difference:
        raise InputError(f"{extra}: its grid is not that of {image}: {difference}; bring both onto one grid")
    with open_raster(extra) as file:
        values, nodata = read_whole(file, number).astype(np.float32), file.nodata
    missing = ~np.isfinite(values) | (np.abs(values) > HUGE)
    if nodata is not None:
        missing |= values == np.float32(nodata)
    return np.where(missing, np.float32(0), values)


def files_of(path: str | Path) -> list[Path]:
    """The files that a tile is read from: the image and, if there is one, its EXTRA file."""
    extra = extra_of(path)
    return [Path(path), *([extra] if extra else [])]


def size_of(path: str | Path) -> tuple[int, int]:
    """(H, W) of a tile."""
    profile = profile_of(path)
    return profile["height"], profile["width"]


def check_rows(rows: pd.DataFrame) -> list[str]:
    """Findings: TrainClass against labels, labels off their grid, tiles by region, a slump in two regions."""
    return [*class_findings(rows), *grid_findings(rows), *region_findings(rows), *twice_findings(rows)]


def class_findings(rows: pd.DataFrame) -> list[str]:
    lines = []
    for said, holds in (("positive", True), ("negative", False)):
        wrong = rows["id"][(rows["train_class"].str.lower() == said) & (rows["positive"] != holds)]
        if len(wrong):
            what = "holds no slump" if holds else "holds one"
            lines.append(f"TrainClass {said}, but the label {what}: {len(wrong)} tiles, {wrong.iloc[0]} for one")
    strange = rows[~rows["train_class"].str.lower().isin(["positive", "negative", ""])]
    if len(strange):
        lines.append(f"TrainClass {strange['train_class'].iloc[0]} of {strange['id'].iloc[0]}: neither class is known")
    empty = rows["id"][(rows["background"] == 0) & (rows["slump"] == 0)]
    if len(empty):
        lines.append(f"labels that are ignored in every pixel: {len(empty)} tiles, {empty.iloc[0]} for one")
    return lines


def grid_findings(rows: pd.DataFrame) -> list[str]:
    """A line per way in which labels do not lie on their tile's grid."""
    off = rows[(rows["label_grid"] != "") & (rows["label_grid"] != "polygons")]
    return [
        f"labels brought onto the tile's grid (nearest pixel), {said}: {len(part)} tiles, {part['id'].iloc[0]} for one"
        for said, part in off.groupby("label_grid")
    ]


def region_findings(rows: pd.DataFrame) -> list[str]:
    counts = rows.groupby("region")["positive"].agg(["sum", "size"])
    lines = [f"region {name}: {p} positive and {n - p} negative tiles" for name, (p, n) in counts.iterrows()]
    share, positives = rows["slump"].mean(), int(rows["positive"].sum())
    return [*lines, f"slumps: in {positives} of {len(rows)} tiles, {share:.4%} of the labelled pixels on average"]


def twice_findings(rows: pd.DataFrame) -> list[str]:
    """Slumps (their UIDs) that are in tiles of more than one region, so that a split by region still shares them."""
    uids = rows.assign(uid=rows["uids"].str.findall(r"[^\s,;\[\]'\"]+")).explode("uid").dropna(subset=["uid"])
    spread = uids.groupby("uid")["region"].nunique()
    both = spread[spread > 1]
    return [f"UID {both.index[0]} is in tiles of {both.iloc[0]} regions ({len(both)} such UIDs)"] if len(both) else []
