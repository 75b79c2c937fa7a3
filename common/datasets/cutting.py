"""Rasters of named bands cut into a folder of tiles that know their place, by window: no raster lies in memory."""

import json
import shutil
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from common.datasets.band_tiles import BAND_LIST, with_sidecars
from common.datasets.cache import content_hash
from common.datasets.label_grids import SHAPEFILE
from common.datasets.pixel_places import COLUMNS, TABLE
from common.datasets.raster_layers import Drawn, Layer, open_classes, values_in
from common.errors import InputError
from common.files import atomic_write, is_leftover, temporary_sibling
from common.table_files import read_csv
from common.text_files import content_of, read_json

VERSION = 2  # of what a cut holds
FACTS = "cut.json"  # what a cut was made from
AGAIN = "cut the tiles again"
IGNORED = 255
PLAIN = (0, 1, 2)  # values that are classes by themselves
LAYOUT = {"driver": "GTiff", "dtype": "float32", "nodata": np.nan, "bigtiff": "IF_SAFER", "interleave": "band"}


def cut_tiles(
    stacks: str | Path | Sequence,
    labels: str | Path | Sequence | None,
    out: str | Path,
    *,
    aoi: str | Path | Sequence | None = None,
    side: int = 256,
    stride: int = 128,
    least: float = 0.25,
    bands: Sequence[str] | None = None,
    label_map: dict | None = None,
) -> pd.DataFrame:
    """Cut rasters with named bands into the folder of tiles `out`; returns its tiles.csv (COLUMNS and share).

    stacks: one raster or several, with as many labels (rasters of classes or polygons; None: no labels) and areas of
    interest (rasters, inside where not 0, or polygons). Tiles are side x side pixels every `stride` pixels, the last
    shifted inside, so that all is covered; a raster smaller than that is padded with no data. Kept are tiles of which
    at least the share `least` has data in all bands (`bands`, None: all), lies in the area and is labelled (`share`).
    Written are images/*.tif (float32, NaN for no data), labels/*.tif (uint8 classes, IGNORED where unknown or outside
    the area), bands.txt, tiles.csv and cut.json. label_map: {raw value: class}; None: 0, 1, 2 as they are and 255
    ignored, but where the labels hold 0 and 255 alone 255 is class 1. What the labels' tag calls no data is a class
    where the map has it (`landslide_files.read_label`). cut.json tells readers of the tiles which classes there are.

    The folder gets its images last, so that a cut that was killed is none. A folder cut from the same files with the
    same settings is left as it is; InputError where it holds other images.
    """
    areas = make_areas(stacks, labels, aoi)
    check_tiling(side, stride, least)
    known = read_label_map([area["label"] for area in areas], [area["stack"] for area in areas], label_map)
    names = stack_names(areas, bands)
    settings = {"side": side, "stride": stride, "least": least, "bands": names, "label_map": sorted(known.items())}
    facts = json.dumps({"version": VERSION, **settings, "files": [hash_area(area) for area in areas]}, indent=1)
    out = Path(out)
    if (out / "images").exists():
        if not (out / FACTS).is_file() or (out / FACTS).read_text() != facts:
            raise InputError(f"{out}: holds tiles of other files or settings; remove its images, labels and {FACTS}, or"
                             " cut into another folder")  # fmt: skip
        print(f"{out}: cut before from the same files with the same settings; left as it is")
        return read_csv(out / TABLE, text=("id", "raster"), remedy=AGAIN)
    out.mkdir(parents=True, exist_ok=True)
    for other in out.glob(".tmp-*-cut"):
        if is_leftover(other):
            shutil.rmtree(other, ignore_errors=True)
    folder = temporary_sibling(out / "cut")
    try:
        table = pd.concat([cut_area(area, folder, names, known, side, stride, least) for area in areas])
        if not len(table):
            raise InputError(
                f"{areas[0]['stack']}: no tile of {side} px has data in all bands, lies in the area and is labelled in"
                f" {least:.0%} of its pixels; lower that share, or check --aoi and the bands"
            )
        atomic_write(folder / BAND_LIST, "\n".join(names) + "\n")
        atomic_write(folder / TABLE, lambda path: table.to_csv(path, index=False))
        atomic_write(folder / FACTS, facts)
        publish(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return table.reset_index(drop=True)


def check_tiling(side: int, stride: int, least: float = 0.25) -> None:
    if side < 1 or not 1 <= stride <= side or not 0 <= least <= 1:
        raise InputError(f"tiles of {side} px every {stride} px with {least:g} valid: --stride must be 1 to --side, and"
                         " the share 0 to 1")  # fmt: skip


def check_cut(label, aoi, grid, label_map: dict | None, *, side: int, stride: int) -> dict[int, int]:
    """The label map of a cut of a stack on the grid of a raster. InputError as of `cut_tiles`, before the stack, which
    may take long, is made."""
    check_tiling(side, stride)
    for path in filter(None, (label, aoi)):
        with open_classes(path, grid):
            pass
    return read_label_map([label], [grid], label_map)


def make_areas(stacks, labels, aoi) -> list[dict]:
    """A dict (stack, label, aoi: paths or None; name) for each raster. InputError: not as many, or two of one name."""
    lists = [[one] if isinstance(one, str | Path) else list(one or []) for one in (stacks, labels, aoi)]
    for given, option in zip(lists[1:], ("--labels", "--aoi"), strict=True):
        if given and len(given) != len(lists[0]):
            raise InputError(f"{option}: {len(given)} files for {len(lists[0])} rasters; give as many, in their order")
    areas = [{"stack": Path(stack), "label": label, "aoi": inside, "name": Path(stack).stem}
             for stack, label, inside in zip_longest(*lists)]  # fmt: skip
    names = [area["name"] for area in areas]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice or not names:
        raise InputError(
            f"--raster: two files are named {twice}; rename one" if twice else "--raster: no raster to cut"
        )
    return areas


def hash_area(area: dict) -> list[str]:
    """The name of an area and the content of all its files."""
    files = [Path(area[kind]) for kind in ("stack", "label", "aoi") if area[kind]]
    beside = [path.with_suffix(suffix) for path in files if path.suffix.lower() == ".shp" for suffix in SHAPEFILE]
    given = [kind for kind in ("label", "aoi") if area[kind]]
    every = [one for path in files for one in with_sidecars(path)] + beside
    return [area["name"], *given, *(content_hash(path) for path in every if path.is_file())]


def stack_names(areas: list[dict], bands: Sequence[str] | None) -> list[str]:
    """The bands of the tiles. InputError: one is missing, or the rasters have not the same."""
    chosen = list(bands or [])
    for area in areas:
        with Layer(area["stack"], area["stack"]) as layer:
            there = layer.names()
        chosen = chosen or there
        lacking = [name for name in chosen if name not in there] or ([] if bands else sorted(set(there) - set(chosen)))
        if lacking:
            where = area["stack"] if lacking[0] not in there else areas[0]["stack"]
            raise InputError(f"{where}: has no band {lacking[0]}; stack all rasters alike, or choose with --bands")
    return chosen


def read_label_map(labels: list, stacks: list, given: dict | None) -> dict[int, int]:
    """{raw value: class} of all label rasters together, see `cut_tiles`. InputError: values that leave it open."""
    if given:
        return {int(raw): int(k) for raw, k in given.items()}
    found: set[int] = set()
    for label, stack in zip(labels, stacks, strict=True):
        if label:
            with open_classes(label, stack, PLAIN) as layer:
                values = {0, 1} if isinstance(layer, Drawn) else set(values_in(layer, most=IGNORED + 1))
                tag = None if isinstance(layer, Drawn) else layer.file.nodata
            found |= values
            if tag in PLAIN and tag in values:
                print(f"{label}: its {tag:g} is tagged as no data, and taken for class {tag:g}; --label-map without it"
                      " leaves it out")  # fmt: skip
    stray = sorted(found - {*PLAIN, IGNORED})
    if stray:
        raise InputError(
            f"{next(filter(None, labels))}: the labels hold {', '.join(map(str, stray[:5]))}; known are 0, 1, 2 and"
            f" {IGNORED}: say with --label-map which class each value is"
        )
    if found == {0, IGNORED}:
        return {0: 0, IGNORED: 1}
    if found and not found & {1, 2}:
        raise InputError(
            f"{next(filter(None, labels))}: the labels hold {', '.join(map(str, sorted(found)))} and nothing else; say"
            " with --label-map which class that is, or correct the file"
        )
    return {k: k for k in (PLAIN if 2 in found else PLAIN[:2])} | {IGNORED: IGNORED}


def classes_of_cut(data: Path, label_map: dict | None) -> dict[int, int] | None:
    """{value: class} of the labels of a folder that `cut_tiles` wrote, which hold classes; None where it is no such
    folder, or where label_map is given and is not the one it was cut with."""
    if not (data / FACTS).is_file() or not (data / "labels").is_dir():
        return None
    facts = read_json(data / FACTS, remedy=AGAIN)
    with content_of(data / FACTS, AGAIN):
        cut_with = {raw: k for raw, k in facts["label_map"]}
        old = facts["version"] < 2
    if old or label_map and {int(raw): int(k) for raw, k in label_map.items()} != cut_with:
        return None
    return {k: k for k in range(max(k for k in cut_with.values() if k != IGNORED) + 1)} | {IGNORED: IGNORED}


def starts(length: int, side: int, stride: int) -> list[int]:
    """First pixels of windows of `side` that cover 0 … length, the last shifted inside."""
    last = max(length - side, 0)
    return [*range(0, last, stride), last]


def cut_area(
    area: dict, folder: Path, names: list[str], known: dict[int, int], side: int, stride: int, least: float
) -> pd.DataFrame:
    """Write the tiles of one raster below `folder`; its lines of tiles.csv."""
    stack, lines, inside = area["stack"], [], 0
    with ExitStack() as opened:
        layer = opened.enter_context(Layer(stack, stack))
        numbers = [layer.numbers[layer.names().index(name)] for name in names]
        label = opened.enter_context(open_classes(area["label"], stack, known)) if area["label"] else None
        aoi = opened.enter_context(open_classes(area["aoi"], stack)) if area["aoi"] else None
        places = [(y, x) for y in starts(layer.height, side, stride) for x in starts(layer.width, side, stride)]
        for y, x in places:
            window = (y, x, side, side)
            within = np.nan_to_num(aoi.read(*window)[0]) != 0 if aoi else np.ones((side, side), bool)
            inside += int(within.sum())
            if within.mean() < least:
                continue
            classes = (
                map_classes(label.read(*window)[0], known, label.path) if label else np.zeros((side, side), np.uint8)
            )
            classes[~within] = IGNORED
            if (classes != IGNORED).mean() < least:
                continue
            tile = layer.read(*window, numbers)
            share = float((~np.isnan(tile).any(axis=0) & (classes != IGNORED)).mean())
            if share < least or not share:
                continue
            name = f"{area['name']}_y{y:05d}_x{x:05d}"
            write_tile(folder / "images" / f"{name}.tif", tile, names, layer.grid, y, x)
            if label:
                write_tile(folder / "labels" / f"{name}.tif", classes[None], ["class"], layer.grid, y, x)
            lines.append((name, area["name"], y, x, side, side, round(share, 4)))
    if not inside:
        raise InputError(f"{area['aoi']}: no pixel of {stack} lies in it; check the georeference of both")
    print(f"{stack}: {len(lines)} of {len(places)} tiles of {side} px kept")
    return pd.DataFrame(lines, columns=[*COLUMNS, "share"])


def map_classes(raw: np.ndarray, known: dict[int, int], path: Path) -> np.ndarray:
    """uint8 (H,W) of classes, IGNORED where raw is NaN. InputError: a value that the map has not."""
    classes, strange = np.full(raw.shape, IGNORED, np.uint8), ~np.isnan(raw)
    for value, k in known.items():
        here = raw == value
        classes[here] = k
        strange &= ~here
    if strange.any():
        values = ", ".join(f"{value:g}" for value in np.unique(raw[strange])[:5].tolist())
        raise InputError(f"{path}: the label holds {values}, which --label-map leaves out; add it (=255: ignored)")
    return classes


def write_tile(path: Path, tile: np.ndarray, names: Sequence[str], grid: dict, y: int, x: int) -> None:
    """A GeoTIFF of an array (C,h,w) at its place in a raster; bytes have IGNORED as nodata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = (
        LAYOUT if tile.dtype == np.float32 else LAYOUT | {"dtype": "uint8", "nodata": IGNORED, "compress": "deflate"}
    )
    place = window_transform(Window(x, y, tile.shape[2], tile.shape[1]), grid["transform"])
    place = rasterio.Affine.identity() if grid["transform"].is_identity else place
    size = {"count": len(tile), "height": tile.shape[1], "width": tile.shape[2]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, "w", crs=grid["crs"], transform=place, **size, **layout) as file:
                file.write(tile)
                file.descriptions = tuple(names)
    except RasterioError as error:
        raise InputError(f"{path}: could not be written ({error}); is there room on the disk?") from error


def publish(folder: Path, out: Path) -> None:
    """Move what was cut into its place, the images last. InputError: other labels are there."""
    if (out / "labels").exists():
        if not (out / FACTS).is_file():
            raise InputError(f"{out}: holds labels but no images; cut into another folder")
        shutil.rmtree(out / "labels")  # of a cut that was killed between two moves
    for name in (FACTS, BAND_LIST, TABLE, "labels", "images"):
        if (folder / name).exists():
            (folder / name).replace(out / name)
