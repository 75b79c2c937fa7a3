"""Tables, settings and facts that somebody else may have written: bounded, plain text, and refused in one line.

Every CSV, YAML and JSON file of the project is read here. A file is looked at before a library takes it into memory:
its size, its longest line, its encoding. What a table names stays inside the folder it is about.
"""

import codecs
import contextlib
import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import yaml

from common.errors import InputError

MB = 2**20
LIMITS = {"CSV": 256 * MB, "YAML": MB // 4, "JSON": 16 * MB, "text": 16 * MB}  # bytes of a file
CHUNK = 16 * MB  # a line that fills one of these is none of ours: the ids of a final test take one line of its table
CELLS, COLUMNS, TITLE = 20_000_000, 4096, 1000  # of a table; letters of a column's name
NODES = 50_000  # of a YAML file with its aliases written out
NAME = 180  # bytes of an id that becomes a file's name, which may be 255 long with what is put around it
# a path that is absolute, here or under Windows, or has a part "..", or an address
OUTWARD = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|://")
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def looked_at(path: str | Path, kind: str, remedy: str, where: str | None = None) -> dict[str, int]:
    """{"bytes", "lines", "commas"} of a text file, read in pieces. InputError: not there, no plain file, larger than
    LIMITS[kind], a line of more than CHUNK bytes, other text than UTF-8 (a byte order mark is fine), NUL bytes."""
    path, where = Path(path), where or str(path)
    if not path.is_file():
        raise InputError(f"{where}: not found, or no plain file; {remedy}")
    found, decoder = {"bytes": 0, "lines": 0, "commas": 0}, codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            said = wrong_chunk(chunk, found["bytes"] == 0) or undecoded(decoder, chunk)
            found["bytes"] += len(chunk)
            if found["bytes"] > LIMITS[kind]:
                said = f"larger than {LIMITS[kind] / MB:g} MB, which no {kind} file here needs"
            if said:
                raise unreadable(where, kind, said, remedy)
            found["lines"] += max(chunk.count(b"\n"), chunk.count(b"\r"))
            found["commas"] += chunk.count(b",")
        if said := undecoded(decoder, b""):
            raise unreadable(where, kind, said, remedy)
    return found


def wrong_chunk(chunk: bytes, first: bool) -> str:
    """What is wrong with a piece of a text file; empty where nothing is."""
    if first and chunk.startswith(WIDE):
        return "is UTF-16: save it as UTF-8"
    if b"\0" in chunk:
        return "holds NUL bytes: it is binary, compressed or damaged, not text"
    whole = len(chunk) == CHUNK and b"\n" not in chunk and b"\r" not in chunk
    return f"holds a line of more than {CHUNK / MB:g} MB" if whole else ""


def undecoded(decoder, chunk: bytes) -> str:
    """Why a piece is no UTF-8 text; empty where it is."""
    try:
        decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        return f"is no UTF-8 text: {error.reason}"
    return ""


def unreadable(where, kind: str, said: str, remedy: str) -> InputError:
    kind = {"CSV": "a table"}.get(kind, kind)
    return InputError(f"{where}: cannot be read as {kind} ({said}); {remedy}")


def read_text(path: str | Path, kind: str = "text", remedy: str = "correct it", where: str | None = None) -> str:
    """Text of a file, without a byte order mark. InputError as `looked_at`."""
    looked_at(path, kind, remedy, where)
    return Path(path).read_text(encoding="utf-8-sig")


# tables


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


# settings


class Bounded(yaml.SafeLoader):
    """Plain types only, as SafeLoader; a document whose aliases multiply it, or a key given twice, is an error."""

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None:
            written_out(node, {})
        return node


def written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes of a document with its aliases written out; yaml.YAMLError above NODES, for an alias inside itself and for
    a key given twice."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise yaml.YAMLError("an alias stands inside what it names")
        return known[id(node)]
    known[id(node)], parts = -1, []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise yaml.YAMLError(f"{next(key for key in keys if keys.count(key) > 1)[:60]} is given twice")
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    total = 1
    for part in parts:
        total += written_out(part, known)
        if total > NODES:
            raise yaml.YAMLError(f"more than {NODES:,} values with its aliases written out")
    known[id(node)] = total
    return total


def read_yaml(path: str | Path, *, where: str | None = None, remedy: str = "correct it"):
    """Plain values of a YAML file; `where` names it in messages. InputError: as `looked_at`, no YAML, tags of other
    types, aliases that multiply (see NODES), a key twice."""
    where = where or str(path)
    text = read_text(path, "YAML", remedy, where)
    try:
        return yaml.load(text, Bounded)  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        said = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:160]
        raise unreadable(where, "YAML", said, remedy) from error


# facts


def read_json(path: str | Path, *, wanted: type | None = dict, remedy: str = "write it again"):
    """Content of a JSON file. InputError: as `looked_at`, no JSON, a key twice, not of the type `wanted`."""
    return parse_json(read_text(path, "JSON", remedy), path, wanted=wanted, remedy=remedy)


def parse_json(text: str, path: str | Path, *, wanted: type | None = dict, remedy: str = "write it again"):
    """The same of a text that `path` holds."""
    try:
        content = json.loads(text, object_pairs_hook=once)
        json.dumps(content, ensure_ascii=False).encode()  # half a character cannot be printed or written later
    except (ValueError, RecursionError) as error:
        said = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not JSON ({said}); {remedy}") from error
    if wanted is not None and not isinstance(content, wanted):
        raise InputError(f"{path}: holds {type(content).__name__}, not {wanted.__name__}; {remedy}")
    return content


def once(pairs: list[tuple]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is given twice")
    return made


# what they hold


@contextlib.contextmanager
def content_of(path, remedy: str):
    """InputError naming the file where what it holds, which somebody may have changed, does not serve its user: a name
    is missing, a list stands for a number."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise InputError(f"{path}: does not hold what it should ({said}); {remedy} (--debug shows where)") from error


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
