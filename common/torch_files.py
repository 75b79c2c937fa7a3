"""Checkpoints that somebody else may have written: looked at before torch opens them, and nothing in them executed.

torch's own `weights_only=True` refuses what is not on its list of names, but a name on that list may still be asked
for a terabyte, its zip reader unpacks whatever a record claims to hold, and before torch 2.6 its reader of the old .tar
form executed pickles all the same (CVE-2025-32434).
"""

import math
import pickle
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from common.engine.memory import free_memory
from common.errors import InputError, is_lost_worker

PICKLE = 64 * 2**20  # bytes of what a checkpoint says beside its tensors
OLD_PICKLES = 5  # an old file is as many of them, one after the other, and then the bytes of its tensors
NAMES = re.compile("|".join((
    "collections OrderedDict", "_codecs encode", "torch Size", "torch device", r"torch\.nn\.parameter Parameter",
    r"torch\._utils _rebuild_tensor(_v2)?", r"torch\._utils _rebuild_parameter(_with_state)?",
    r"torch\._tensor _rebuild_from_type_v2", r"torch (\w+Storage|bfloat16|float\d+|u?int\d+|bool|complex\d+)",
)))  # fmt: skip
FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
REFUSED = "refused, it is damaged or holds code beside its tensors"


def read_tensors(path: str | Path, *, remedy: str, where: str | None = None) -> dict:
    """Tensors by name of a .safetensors file; `where` names it in messages. InputError: not found or damaged."""
    where = where or str(path)
    if not Path(path).is_file():
        raise InputError(f"{where}: no such file; {remedy}")
    if said := too_large(Path(path)):
        raise InputError(f"{where}: {said}; {remedy}")
    try:
        return load_file(path)
    except (SafetensorError, RuntimeError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        said = " ".join(str(error).split())[:120]
        raise InputError(f"{where}: not readable as safetensors ({said}); {remedy}") from error


def read_torch(path: str | Path, *, remedy: str, where: str | None = None, device="cpu"):
    """What torch.save wrote: tensors and plain types; `where` names the file in messages. InputError: not found,
    damaged, names of anything else, a record or a tensor that claims more than the file holds, the old .tar form."""
    path, where = Path(path), where or str(path)
    if not path.is_file():
        raise InputError(f"{where}: no such file; {remedy}")
    if said := too_large(path):
        raise InputError(f"{where}: {said}; {remedy}")
    if said := suspect(path):
        raise InputError(f"{where}: {REFUSED} ({said}); {remedy}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch remarks on a foreign pickle; it is refused below
            content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{where}: {REFUSED}; {remedy}") from error
    except Exception as error:  # torch's readers raise whatever their libraries do
        if is_lost_worker(error):
            raise
        said = " ".join(str(error).split())[:80] or "empty file"
        raise InputError(f"{where}: not a readable checkpoint ({said}); {remedy}") from error
    if said := stretched(content):
        raise InputError(f"{where}: {REFUSED} ({said}); {remedy}")
    return content


def too_large(path: Path) -> str:
    """What is said of a file that memory has no room for; empty where it has. A few bytes on the disk may be enough for
    a file of terabytes, most of it a hole."""
    size, free = path.stat().st_size, free_memory(torch.device("cpu"))
    return f"its {size / 1e9:.1f} GB do not fit into the {free / 1e9:.1f} GB of memory that are free" * (size > free)


def stretched(content) -> str:
    """Which tensor shows more numbers than are stored (a copy of it would take any memory); empty where none does."""
    for value in tensors_in(content):
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            return f"a tensor of {'x'.join(map(str, value.shape))} claims more than is stored"
    return ""


def tensors_in(content) -> Iterator[torch.Tensor]:
    """The tensors of nested tables and lists, each container once: one may hold itself."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def suspect(path: Path) -> str:
    """Why a file is not to be opened by torch; empty where nothing speaks against it."""
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\3\4":
                return suspect_archive(path)
            file.seek(0)
            if path.stat().st_size > 512 and tarfile.is_tarfile(path):
                return "it is of the old .tar form, which is not read"
            for _ in range(OLD_PICKLES):
                if said := suspect_names(file):
                    return said
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        return " ".join(str(error).split())[:80] or type(error).__name__
    return ""


def suspect_archive(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            return "its records are packed; torch.save packs none"
        if sum(record.file_size for record in records) > path.stat().st_size:
            return "its records claim more than the file holds"
        named = [record for record in records if record.filename.endswith(("data.pkl", "constants.pkl"))]
        if any(record.file_size > PICKLE for record in named):
            return f"more than {PICKLE / 2**20:g} MB beside its tensors"
        for record in named:
            with archive.open(record) as file:
                if said := suspect_names(file):
                    return said
    return ""


def suspect_names(file) -> str:
    """The first name in a pickle that no tensor and no plain type needs; empty where there is none."""
    texts = []  # the last two, of which STACK_GLOBAL makes a name
    for opcode, argument, place in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST") and not NAMES.fullmatch(argument):
            return f"it names {argument[:60]}"
        if opcode.name == "STACK_GLOBAL" and not NAMES.fullmatch(" ".join(texts)):
            return f"it names {' '.join(texts)[:60] or 'something'}"
        if opcode.name.startswith(("EXT", "NEXT_BUFFER", "READONLY_BUFFER")):
            return f"it has a {opcode.name}"
        if place > PICKLE:
            return f"more than {PICKLE / 2**20:g} MB beside its tensors"
        if isinstance(argument, str):
            texts = [*texts[-1:], argument]
    return ""


class Metered(TorchFunctionMode):
    """While it is entered, new tensors of more than `most` numbers in all are an InputError, before they are made."""

    def __init__(self, most: int, message: str):
        super().__init__()
        self.left, self.message = most, message

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in FACTORIES:
            size = args[0] if args and isinstance(args[0], (tuple, list)) else [n for n in args if isinstance(n, int)]
            self.left -= math.prod(int(n) for n in (kwargs or {}).get("size", size))
            if self.left < 0:
                raise InputError(self.message)
        return function(*args, **(kwargs or {}))
