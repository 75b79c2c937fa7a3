"""Damage to tables, settings, facts and checkpoints: of any bytes, of words, lines and columns, and of pickles."""

import io
import os
import pickle
import random
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path

import torch
from raster_mutations import any_bytes

CANARY = Path(tempfile.gettempdir()) / f"landfold-executed-{os.getpid()}"  # made by a pickle that was executed
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
WORD = re.compile(r"[\w.+-]+|[^\w\s]")
PAIRS = list(zip("abcdefghi", "bcdefghij", strict=True))
LAUGHS = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]"] + [
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]" for before, name in PAIRS])  # fmt: skip
MERGES = "\n".join(["a: &a {x: 1}"] + [
    f"{name}: &{name} {{<<: [{', '.join(['*' + before] * 9)}]}}" for before, name in PAIRS])  # fmt: skip


def any_text(_name: str, data: bytes, draws: random.Random) -> bytes:
    """A text file of words and lines changed, most often one word, or of any bytes."""
    way = draws.random()
    if way < 0.2:
        return any_bytes(data, draws)
    if way < 0.3:
        return draws.choice(WHOLE)(data, draws)
    text = data.decode("utf-8", "surrogateescape")
    changed = change_word(text, draws) if way < 0.7 else draws.choice(LINES)(text, draws)
    return changed.encode("utf-8", "surrogatepass" if "\ud800" in changed else "surrogateescape")


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


# checkpoints


class Evil:
    """What is executed where a pickle is loaded without care."""

    def __reduce__(self):
        return os.mkdir, (str(CANARY),)


class Call:
    """A name that torch allows, asked for more memory than there is."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


VALUES = (
    None, -1, 0, 2**31, 2**62, 1e999, float("nan"), "", "tiny", "../../etc/passwd", "hf-hub:a/b", [], {}, [[]], True,
    b"x", {"a": {}}, list(range(50)), torch.zeros(0), torch.ones(3), torch.ones(1).expand(10**9, 10**6),
)  # fmt: skip


def any_checkpoint(_name: str, data: bytes, draws: random.Random) -> bytes:
    """A file of torch with bytes, records or values changed, or one that is evil."""
    way = draws.random()
    if way < 0.35:
        return any_bytes(data, draws)
    if way < 0.75:
        return changed_values(data, draws)
    if way < 0.9:
        return changed_records(data, draws)
    return draws.choice(EVIL)(data)


def loaded(data: bytes):
    """Its content, an empty dict where it is damaged already. (These bytes are our own: of the samples.)"""
    try:
        return torch.load(io.BytesIO(data), weights_only=True)
    except Exception:
        return {}


def saved(content, **how) -> bytes:
    kept = io.BytesIO()
    torch.save(content, kept, **how)
    return kept.getvalue()


def changed_values(data: bytes, draws: random.Random) -> bytes:
    """One value anywhere in it changed, taken out, or given another name."""
    content = loaded(data)
    home = content if isinstance(content, dict) else {}
    for _ in range(draws.randrange(4)):
        inner = [value for value in home.values() if isinstance(value, dict) and value]
        home = draws.choice(inner) if inner else home
    if not isinstance(home, dict) or not home:
        return saved(draws.choice(VALUES))
    name, way = draws.choice(list(home)), draws.randrange(3)
    if way == 0:
        home.pop(name)
    elif way == 1:
        home[draws.choice(("spec", "state_dict", "external", "use", 5))] = home.pop(name)
    else:
        home[name] = draws.choice(VALUES)
    return saved(content)


def changed_records(data: bytes, draws: random.Random) -> bytes:
    """A zip whose records are packed, lost, swapped, or changed inside, their checksums right."""
    kept, how = io.BytesIO(), draws.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(kept, "w", how) as new:
            records = {name: old.read(name) for name in old.namelist()}
            at = draws.choice(list(records))
            records[at] = draws.choice((any_bytes(records[at], draws), b"", draws.choice(list(records.values()))))
            for name, content in records.items():
                if draws.random() > 0.05:
                    new.writestr(name, content)
    except (zipfile.BadZipFile, IndexError, NotImplementedError, EOFError, OSError, ValueError):
        return any_bytes(data, draws)
    return kept.getvalue()


def old_tar(_data: bytes) -> bytes:
    """The first form that torch had: pickles in a .tar."""
    kept = io.BytesIO()
    with tarfile.open(fileobj=kept, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Evil() if name in ("pickle", "storages", "tensors") else {"little_endian": True})
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return kept.getvalue()


def bomb(data: bytes) -> bytes:
    """A packed record of a gigabyte of zeros beside the sound ones."""
    kept = io.BytesIO(data)
    with zipfile.ZipFile(kept, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/7", b"\0" * 2**24)
    return kept.getvalue()


EVIL = (
    lambda _: pickle.dumps(Evil()),
    lambda _: saved(Evil()),
    lambda _: saved({"format": 1, "spec": {}, "state_dict": Evil()}),
    lambda _: saved(Evil(), _use_new_zipfile_serialization=False),
    lambda _: saved(Call(bytearray, 2**36)),
    lambda _: saved({"a": Call(torch.Tensor, 2**20, 2**16)}),
    lambda _: saved({"a": torch.ones(1).expand(10**6, 10**6)}),
    old_tar,
    bomb,
    lambda data: pickle.dumps([[]] * 9) + data,
)  # fmt: skip


def any_tensors(_name: str, data: bytes, draws: random.Random) -> bytes:
    """A .safetensors file: any bytes, or the words of its header."""
    if draws.random() < 0.5 or len(data) < 9:
        return any_bytes(data, draws)
    size = int.from_bytes(data[:8], "little")
    header = change_word(data[8 : 8 + size].decode("utf-8", "replace"), draws).encode("utf-8", "replace")
    return (len(header) if draws.random() < 0.9 else 2**40).to_bytes(8, "little") + header + data[8 + size :]
