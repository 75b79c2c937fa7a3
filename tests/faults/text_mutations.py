"""Damage to tables, settings and facts: of any bytes, of values, words, lines and columns."""

import contextlib
import csv
import io
import json
import random
import re
import zipfile
from pathlib import Path

import yaml
from raster_mutations import any_bytes

from common.text_files import Bounded

WORDS = (
    "", " ", "0", "-1", "3", "1.5", "1e999", "-1e999", "inf", "-inf", "nan", "NaN", "Infinity", "1_000", "0x10",
    "1e308", "-1e-320", "99999999999999999999", "9" * 5000, "9007199254740993", "1,5", "true", "null", "~", "None",
    "[]", "{}", "[[1]]", "{a: 1}", '{"a": 1}', '"', "'", '""', ",", ";", "\t", "\n", "\r", "\r\n", ":", "- ", "#",
    "|", "%", "\\", "\\ud800", "..", "../../etc/passwd", "/etc/passwd", "..\\x", "C:\\x", "http://a.invalid/x",
    "/vsicurl/http://a.invalid/x",
    "a/../../b", ".hidden", "x" * 300, "é", "\U0001f600", "\ufeff", "\u202e", "2001-99-99", "2015/2/30",
    "0/0/0", "1:60:60", "!!python/object/apply:os.mkdir [executed]", "!!binary x", "!!int x", "&a [*a]", "*a", "<<: *a",
    "? [a]", "!!set {a}", '{"type": "Point"}', "1e", "+5", "０", "id", "fold", "__",
)  # fmt: skip
LARGE = 200_000  # bytes: what has grown so long is not taken apart again
WORD = re.compile(r"[\w.+-]+|[^\w\s]")
PAIRS = list(zip("abcdefghi", "bcdefghij", strict=True))
LAUGHS = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]"] + [
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]" for before, name in PAIRS])  # fmt: skip
MERGES = "\n".join(["a: &a {x: 1}"] + [
    f"{name}: &{name} {{<<: [{', '.join(['*' + before] * 9)}]}}" for before, name in PAIRS])  # fmt: skip


PLAIN = (None, -1, 0, 3, 0.5, 2**31, 2**63, 1e300, 1e999, float("nan"), "", "x", "../x", "1_000", "auto", True,
         False, [], {}, [[]], [None], ["x", 3], [1e999], {"a": 1}, {"a": {"b": []}}, list(range(40)),
         [[[0.5, 0.5]]])  # fmt: skip


def any_text(name: str, data: bytes, draws: random.Random) -> bytes:
    """A file of text changed: a value of it, most often, so that it can still be read; words, lines or bytes."""
    if len(data) > LARGE:
        return any_bytes(data, draws)
    form = Path(name).suffix
    if form in CHANGES and draws.random() < 0.6:
        with contextlib.suppress(Exception):  # what is damaged already has no values
            return CHANGES[form](data.decode(), draws).encode()
    way = draws.random()
    if way < 0.2:
        return any_bytes(data, draws)
    if way < 0.3:
        return draws.choice(WHOLE)(data, draws)
    text = data.decode("utf-8", "surrogateescape")
    changed = change_word(text, draws) if way < 0.7 else draws.choice(LINES)(text, draws)
    return changed.encode("utf-8", "surrogatepass" if "\ud800" in changed else "surrogateescape")


def change_cell(text: str, draws: random.Random) -> str:
    """A table with one or all cells of a column another word, or that of another cell."""
    rows = list(csv.reader(io.StringIO(text)))
    at, column, known = draws.randrange(1, len(rows)), draws.randrange(len(rows[0])), draws.choice(rows[1:])
    word = draws.choice(
        (draws.choice(WORDS), draws.choice(known), known[column], rows[at][column] + draws.choice("0 e-/"))
    )
    for row in [rows[at]] if draws.random() < 0.7 else rows[1:]:
        row[column] = word
    kept = io.StringIO()
    csv.writer(kept, lineterminator="\n").writerows(rows)
    return kept.getvalue()


def change_leaf(content, draws: random.Random):
    """The same with one value in it changed, taken out, or given another name."""
    home = content
    while True:
        places = list(home) if isinstance(home, dict) else list(range(len(home)))
        place = draws.choice(places)
        if isinstance(home[place], (dict, list)) and home[place] and draws.random() < 0.75:
            home = home[place]
            continue
        way = draws.random()
        value = home.pop(place) if way < 0.3 else home[place]
        if way > 0.15:
            new = draws.choice(PLAIN) if way > 0.3 else value
            if isinstance(home, list):
                home[place:place] = [new]
            else:
                home[draws.choice(WORDS) if way < 0.2 else place] = new
        return content


def change_yaml(text: str, draws: random.Random) -> str:
    return yaml.safe_dump(change_leaf(yaml.load(text, Bounded), draws))  # of one that multiplies, none


def change_json(text: str, draws: random.Random) -> str:
    return json.dumps(change_leaf(json.loads(text), draws))


def change_lines_of_json(text: str, draws: random.Random) -> str:
    lines = text.splitlines()
    at = draws.randrange(len(lines))
    return "\n".join([*lines[:at], change_json(lines[at], draws), *lines[at + 1 :]])


CHANGES = {".csv": change_cell, ".yaml": change_yaml, ".json": change_json, ".geojson": change_json,
           ".jsonl": change_lines_of_json}  # fmt: skip


def change_word(text: str, draws: random.Random) -> str:
    """One word or sign of the text in the place of another, or a word of WORDS."""
    found = list(WORD.finditer(text))
    if not found:
        return draws.choice(WORDS)
    at = draws.choice(found)
    other = draws.choice(WORDS) if draws.random() < 0.8 else draws.choice(found)[0]
    keep = at[0] if draws.random() < 0.2 else ""
    return text[: at.start()] + keep + other + text[at.end() :]


def change_lines(text: str, draws: random.Random) -> str:
    lines = text.split("\n")
    at, way = draws.randrange(len(lines)), draws.randrange(5)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(draws.randrange(len(lines) + 1), lines[at])
    elif way == 2:
        lines[at:at] = [lines[at]] * draws.choice((2, 5, 50))
    elif way == 3:
        lines = lines[: draws.randrange(3)]
    else:
        lines[at] = lines[at] * draws.choice((2, 9)) + draws.choice(WORDS)
    return "\n".join(lines)


def change_columns(text: str, draws: random.Random) -> str:
    """A column taken out, given twice, filled with one word, or a comma more at the end of every line."""
    rows = [line.split(",") for line in text.split("\n")]
    at, way, word = draws.randrange(max(len(rows[0]), 1)), draws.randrange(5), draws.choice(WORDS)
    if way == 0:
        rows = [row[:at] + row[at + 1 :] for row in rows]
    elif way == 1:
        rows = [[*row, *row[at : at + 1]] for row in rows]
    elif way == 2:
        rows = [rows[0], *(row[:at] + [word] + row[at + 1 :] for row in rows[1:])]
    elif way == 3:
        rows = [rows[0], *([*row, ""] for row in rows[1:])]
    else:
        rows = [rows[0] * draws.choice((2, 60)), *rows[1:]]
    return "\n".join(",".join(row) for row in rows)


def nest(text: str, draws: random.Random) -> str:
    opening, closing = draws.choice((("[", "]"), ('{"a":', "}"), ("{a: ", "}"), ("- ", ""), ("(", ")")))
    deep = draws.choice((5, 90, 2000, 2000))
    at = draws.choice((0, text.find(":") + 1, len(text)))
    return text[:at] + opening * deep + closing * draws.choice((0, deep)) + draws.choice(("", text[at:]))


def long_line(text: str, draws: random.Random) -> str:
    return text + draws.choice(("x", ",", "1,", "[", '"', " ")) * draws.choice((300, 70_000, 70_000, 2_200_000))


def laugh(text: str, draws: random.Random) -> str:
    return draws.choice((LAUGHS, MERGES, text + "\n" + LAUGHS, "&a [*a]", "? &a [*a]\n: 1"))


LINES = (*[change_lines, change_columns] * 3, nest, nest, long_line, laugh)
WHOLE = (
    lambda data, _: b"\xef\xbb\xbf" + data,
    lambda data, _: data.replace(b"\n", b"\r\n"),
    lambda data, _: data.replace(b"\n", b"\r"),
    lambda data, _: data.decode("utf-8", "replace").encode("utf-16"),
    lambda data, _: data.decode("utf-8", "replace").encode("latin-1", "replace") + b"\xe9",
    lambda data, draws: data[: draws.randrange(len(data) + 1)] + b"\0" + data,
    lambda data, _: packed(data),
    lambda data, _: b"",
    lambda data, _: b"PK\3\4" + data,
)  # fmt: skip


def packed(data: bytes) -> bytes:
    kept = io.BytesIO()
    with zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", data)
    return kept.getvalue()
