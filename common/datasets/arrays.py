"""Arrays of numbers from npy and npz files of any origin: never pickles, never more than the file holds."""

import tokenize
import zipfile
import zlib
from collections.abc import Collection
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np

from common.datasets.limits import check_file, within
from common.errors import InputError

NUMBERS = "buif"  # kinds of dtype: bool, unsigned, integer, float; no complex, text, dates, records or objects
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# what numpy's parser of headers and the unpacking of a damaged zip end with
FAULTS = (OSError, ValueError, EOFError, TypeError, SyntaxError, LookupError, OverflowError, MemoryError, RuntimeError,
          zlib.error, zipfile.BadZipFile, tokenize.TokenError)  # fmt: skip


def read_header(stream) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether column by column, dtype) of the npy at the position of a stream, which is left at its numbers.

    ValueError for what is no array of numbers.
    """
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"npy of version {version[0]}.{version[1]}, which arrays of numbers do not need")
    shape, by_columns, dtype = HEADERS[version](stream)
    if dtype.kind not in NUMBERS:
        raise ValueError(f"holds {dtype}, is no array of numbers")
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"of the impossible shape {shape}")
    return shape, by_columns, dtype


def check_room(path, shape: tuple[int, ...], dtype: np.dtype, room: int, *, mapped: bool = False) -> None:
    """ValueError: the file is shorter; InputError: more than may be held, unless it is mapped."""
    wanted = prod(shape) * dtype.itemsize
    if wanted > room:
        raise ValueError(f"is cut off: {wanted:,} bytes of numbers are declared, {room:,} are there")
    if not mapped:
        within(path, "array", wanted)


def read_npy(path: str | Path, *, mapped: bool = False) -> np.ndarray:
    """Array of an npy file, read-only and not yet read where it is mapped. One of FAULTS where it is damaged;
    InputError where it is larger than LIMITS."""
    size = check_file(path)
    with open(path, "rb") as file:
        shape, _, dtype = read_header(file)
        check_room(path, shape, dtype, size - file.tell(), mapped=mapped)
    return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


def load_array(path: str | Path, *, mapped: bool = False, remedy: str = "write or download it again") -> np.ndarray:
    """`read_npy`, its faults as InputErrors: missing, damaged, or not an array of numbers."""
    try:
        return read_npy(path, mapped=mapped)
    except FAULTS as error:
        said = f"cannot be read ({short(error)})" if Path(path).is_file() else "not found"
        raise InputError(f"{path}: {said}; {remedy}") from error


def short(error: Exception) -> str:
    """What an error says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def array_names(path: str | Path) -> set[str]:
    """Names of the arrays in an npz. One of FAULTS where it is none."""
    check_file(path)
    with zipfile.ZipFile(path) as file:
        return {name.removesuffix(".npy") for name in file.namelist()}


def read_npz(path: str | Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """{name: array} of those names of an npz that it has. One of FAULTS where it is damaged, a member is no array of
    numbers, or is packed in a way that numpy does not write; InputError where it is larger than LIMITS."""
    check_file(path)
    found = {}
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            name = info.filename.removesuffix(".npy")
            if name in names:
                found[name] = read_member(path, file, info)
    return found


def read_member(path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is packed in a way that numpy does not write")
    within(path, "array", info.file_size)
    with file.open(info) as part:  # ends after the bytes that the directory of the zip declares
        shape, by_columns, dtype = read_header(head := BytesIO(part.read(2**16)))
        check_room(path, shape, dtype, info.file_size - head.tell())
        within(path, "map", prod(shape))  # its user makes float32 of them, several times the size of packed flags
        numbers = bytearray(head.read()) + part.read()  # to the end, where the check sum is
    return np.ndarray(shape, dtype, numbers, order="F" if by_columns else "C")
