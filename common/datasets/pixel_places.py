"""Where tiles lie in pixels of their raster: by tiles.csv, by their georeference, or by grid cells in their names."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
from rasterio.transform import array_bounds

from common.errors import InputError
from common.table_files import read_csv

TABLE = "tiles.csv"
COLUMNS = ("id", "raster", "y", "x", "height", "width")
CELL = re.compile(r"col_?(\d+)[_-]?row_?(\d+)", re.IGNORECASE)
CELL_OF_ROWS = re.compile(r"row_?(\d+)[_-]?col_?(\d+)", re.IGNORECASE)


def cell_of(name: str) -> tuple[int, int, str]:
    """(row, col, the rest of the name) of a tile named by its grid cell, as col00019_row00012; (-1, -1, "") else."""
    for pattern, row, col in ((CELL, 2, 1), (CELL_OF_ROWS, 1, 2)):
        if found := pattern.search(name):
            return int(found[row]), int(found[col]), name[: found.start()] + name[found.end() :]
    return -1, -1, ""


def add_places(rows: pd.DataFrame, profiles: list[dict], tables: list[Path]) -> pd.DataFrame:
    """rows with row, col (grid cells by name; -1 unknown), raster ("" unknown), y, x, height, width.

    height and width are the tile's own size, y and x its upper left pixel in the raster (they may be negative where a
    georeference tells them), all four in pixels of the raster; of tiles whose place is unknown raster is "" and y, x,
    height, width are -1. profiles: {"width", "height", "crs", "transform"} of each tile; tables: tiles.csv files, of
    which the first that names a tile counts; rasters of a table whose tiles share ground by their georeference are
    placed by that. Says so, and how many rasters names alone make. InputError: a table that lacks a column or holds no
    numbers.
    """
    cells = [cell_of(name) for name in rows["stem"]]
    ground, named = by_georeference(profiles), by_cell(cells, profiles)
    places = merge_rasters(by_table(rows, tables), ground)
    say_named([name for name, *others in zip(named, places, ground, strict=True) if name and not any(others)])
    for source in (ground, named):
        places = [place or other for place, other in zip(places, source, strict=True)]
    places = [place or ("", -1, -1, -1, -1) for place in places]
    rows = rows.assign(row=[row for row, _, _ in cells], col=[col for _, col, _ in cells])
    columns = zip(*places, strict=True) if places else [[]] * 5
    return rows.assign(**dict(zip(COLUMNS[1:], map(list, columns), strict=True)))


def by_table(rows: pd.DataFrame, tables: list[Path]) -> list[tuple | None]:
    """(raster, y, x, height, width) of each tile that a table names."""
    known = {}
    for path in tables:
        table = read_csv(path, text=None, remedy="cut the tiles again")
        lacking = [name for name in COLUMNS if name not in table]
        if lacking:
            raise InputError(f"{path}: no column {', '.join(lacking)}; it needs {', '.join(COLUMNS)}: cut again")
        numbers = table[list(COLUMNS[2:])].apply(pd.to_numeric, errors="coerce")
        wrong = numbers.isna().any(axis=1) | (numbers[["height", "width"]] <= 0).any(axis=1)
        if wrong.any():
            raise InputError(
                f"{path}: tile {table['id'][wrong].iloc[0]} has no place in whole pixels; cut the tiles again"
            )
        folder = path.parent
        for name, raster, place in zip(table["id"], table["raster"], numbers.to_numpy(int).tolist(), strict=True):
            known.setdefault((folder, name), (raster or "raster", *place))
    homes = list(dict.fromkeys(path.parent for path in tables))
    return [
        next((known[home, stem] for home in homes if (home, stem) in known and home in Path(path).parents), None)
        for stem, path in zip(rows["stem"], rows["path"], strict=True)
    ]


def by_georeference(profiles: list[dict]) -> list[tuple | None]:
    """(CRS, y, x, height, width) of georeferenced tiles, in pixels of the finest tile of the same CRS."""
    systems: dict[str, list[int]] = {}
    for index, profile in enumerate(profiles):
        if profile["crs"] is not None and not profile["transform"].is_identity:
            systems.setdefault(profile["crs"].to_wkt(), []).append(index)
    places: list[tuple | None] = [None] * len(profiles)
    for number, members in enumerate(systems.values()):
        some = [profiles[k] for k in members]
        bounds = np.array([array_bounds(p["height"], p["width"], p["transform"]) for p in some])
        sizes = np.array([(p["width"], p["height"]) for p in some])
        pixel = ((bounds[:, 2:] - bounds[:, :2]) / sizes).min(axis=0)
        left, top = np.round(bounds[:, 0] / pixel[0]), np.round(-bounds[:, 3] / pixel[1])
        width, height = (np.round((bounds[:, 2:] - bounds[:, :2]) / pixel)).T
        for k, *place in zip(members, *(part.astype(int).tolist() for part in (top, left, height, width)), strict=True):
            places[k] = (f"crs{number}", *place)
    return places


def merge_rasters(places: list[tuple | None], ground: list[tuple | None]) -> list[tuple | None]:
    """Places of a table, those of rasters that share ground with another instead by the georeference of their tiles.

    Rasters of which some tile has none stay as the table says.
    """
    names = np.array([place[0] if place else "" for place in places], object)
    unplaced = {name for name, other in zip(names, ground, strict=True) if not other}
    known = np.array([name not in unplaced | {""} for name in names], bool)
    shared: set[str] = set()
    for system in sorted({ground[k][0] for k in np.flatnonzero(known)}):
        members = np.array([k for k in np.flatnonzero(known) if ground[k][0] == system])
        top, left, height, width = np.array([ground[k][1:] for k in members], float).T
        boxes = shapely.box(left + 0.5, top + 0.5, left + width - 0.5, top + height - 0.5)  # edges may touch
        first, second = names[members[shapely.STRtree(boxes).query(boxes, predicate="intersects")]]
        shared |= {*first[first != second], *second[first != second]}
    if shared:
        print(f"{TABLE}: rasters {some_of(shared)} share ground by the georeference of their tiles, which places them")
    return [other if name in shared else place for name, place, other in zip(names, places, ground, strict=True)]


def say_named(places: list[tuple]) -> None:
    """A line where names alone place tiles in several rasters, which are taken for as many places."""
    rasters = {place[0] for place in places}
    if len(rasters) > 1:
        print(f"{len(places)} tiles are placed by names alone, in {len(rasters)} rasters ({some_of(rasters)}) that"
              f" are taken for separate ground; if they show the same, say so in a {TABLE}")  # fmt: skip


def some_of(names) -> str:
    return ", ".join(sorted(names)[:4]) + (" …" if len(names) > 4 else "")


def by_cell(cells: list[tuple], profiles: list[dict]) -> list[tuple | None]:
    """(raster, y, x, height, width) of tiles named by grid cells, which are as large as the largest tile."""
    height, width = (max((p[key] for p in profiles), default=0) for key in ("height", "width"))
    return [(rest.strip("_- ") or "grid", row * height, col * width, height, width) if row >= 0 else None
            for row, col, rest in cells]  # fmt: skip
