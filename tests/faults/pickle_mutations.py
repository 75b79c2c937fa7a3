"""Damage to checkpoints: of any bytes, of values, of records of their zip, and what is evil from the start."""

import contextlib
import io
import os
import pickle
import random
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path

import torch
from raster_mutations import any_bytes
from text_mutations import change_word

CANARY = Path(tempfile.gettempdir()) / f"landfold-executed-{os.getpid()}"  # made by a pickle that was executed


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
    with contextlib.suppress(struct.error), zipfile.ZipFile(kept, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/7", b"\0" * 2**24)  # whose directory may claim more than a directory can
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
