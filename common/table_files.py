"""Tables that somebody else may have written: bounded, plain text, and refused in one line.

Every CSV file of the project is read here. What a table names stays inside the folder it is about.
"""

import csv
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from common.errors import InputError
from common.text_files import CHUNK, looked_at, unreadable

CELLS, COLUMNS, TITLE = 20_000_000, 4096, 1000  # of a table; letters of a column's name
NAME = 180  # bytes of an id that becomes a file's name, which may be 255 long with what is put around it
# a path that is absolute, here or under Windows, or has a part "..", or an address
OUTWARD = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|://")


def read_csv(path: str | Path, *, text: Sequence[str] | None = (), remedy: str = "write it again") -> pd.DataFrame:
    """A table with commas; columns named in `text` stay text, None: all of them, and empty cells are "".

    InputError: as `looked_at`, more than CELLS cells or COLUMNS columns, a column twice, lines that do not fit the
    header, no header at all.
    """
    path, found = Path(path), looked_at(path, "CSV", remedy)
    if found["commas"] + found["lines"] > CELLS:
        raise unreadable(path, "CSV", f"more than {CELLS:,} cells, which no table here needs", remedy)
    how = {"dtype": str, "keep_default_na": False} if text is None else {"dtype": dict.fromkeys(text, str)}
    try:
        check_header(*first_lines(path), path, remedy)
        return pd.read_csv(path, encoding="utf-8-sig", compression=None, low_memory=False, **how)
    except (ValueError, OverflowError, RecursionError, csv.Error) as error:  # pandas' parser errors are ValueErrors
        raise unreadable(path, "CSV", " ".join(str(error).split())[:120], remedy) from error


def first_lines(path: Path) -> tuple[list[str], list[str]]:
    """The fields of the first two lines that are not empty, none where there is none."""
    csv.field_size_limit(2 * CHUNK)  # it is csv's own, 128 kB, that the lists of ids in tables of ours exceed
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = (fields for fields in csv.reader(file) if fields)
        return next(lines, []), next(lines, [])


def check_header(header: list[str], first: list[str], path: Path, remedy: str) -> None:
    """InputError: no column, too many, a name of more than TITLE letters, one twice (pandas would rename the second in
    silence), or a first line of more fields (pandas would take the first column for names of rows, and shift all
    others)."""
    if not header:
        raise unreadable(path, "CSV", "it is empty", remedy)
    if len(header) > COLUMNS:
        raise unreadable(path, "CSV", f"{len(header):,} columns, more than {COLUMNS:,}", remedy)
    if max(map(len, header)) > TITLE:
        raise unreadable(path, "CSV", f"the name of a column has more than {TITLE:,} letters", remedy)
    if len(first) > len(header):
        raise unreadable(path, "CSV", "its lines have more fields than its header names", remedy)
    named = [name for name in header if name]
    twice = next((name for name in dict.fromkeys(named) if named.count(name) > 1), None) if (
        len(set(named)) < len(named)) else None  # fmt: skip
    if twice is not None:
        raise InputError(f"{path}: the column {twice[:60]} is there twice; keep one")


# what a table names


def paths_inside(folder: str | Path, names: Iterable, table: str | Path, root: str | Path | None = None) -> list[str]:
    """The paths that a table names, relative to `folder`, as text. They need not exist.

    None may leave `root` (the folder itself by default): InputError for one that is absolute, has a part "..", or leads
    out by a symlink. The folder itself may be a link, and a link inside it may point to another place inside it.
    """
    folder, root = Path(folder), Path(root or folder).resolve()
    homes: dict[str, bool] = {}
    made = []
    for name in names:
        if not isinstance(name, str) or not name.strip() or "\0" in name or len(name.encode()) > 4000:
            raise InputError(f"{table}: {str(name)[:60]!r} is no path of a file; correct it")
        if OUTWARD.search(name):
            raise InputError(f"{table}: {name[:120]!r} leads out of {folder}; write paths relative to it, without ..")
        path = folder / name
        parent = os.path.dirname(path)
        if parent not in homes:
            homes[parent] = Path(parent).resolve().is_relative_to(root)
        if not homes[parent] or (os.path.islink(path) and not path.resolve().is_relative_to(root)):
            raise InputError(f"{table}: {name[:120]!r} leads out of {root} by a link; copy the files, or"
                             " name the folder that holds them")  # fmt: skip
        made.append(str(path))
    return made


def check_names(names: Iterable, table: str | Path) -> None:
    """InputError for an id of a table that could not be a file's name of its own: files are named after ids."""
    for name in names:
        text = str(name)
        bad = not text.strip() or text.startswith(".") or any(letter in text for letter in "/\\\0\n\r")
        if bad or len(text.encode(errors="replace")) > NAME:
            raise InputError(f"{table}: the id {text[:60]!r} cannot name a file; use letters, digits, - and _")
