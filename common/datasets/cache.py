"""Cache folders named by what went into them: built once, whole or absent, never reused after an input changed."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from common.errors import InputError
from common.files import FULL_DISK, atomic_write, full_disk, glob_literal, is_leftover, temporary_sibling

try:
    import fcntl
except ImportError:  # Windows: two builders then do the same work, and the first to finish wins
    fcntl = None

MARKER = "inputs.json"
HASHES: dict[tuple[str, int, int], str] = {}  # content hashes of this process


def content_hash(path: str | Path) -> str:
    """32 hex digits of a file's content (blake2b). InputError if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and the data folder") from error


def remembered_hash(path: str | Path) -> str:
    """content_hash, computed once in a process while the file's size and time stay. InputError as there, or OSError."""
    stat = os.stat(path)
    known = (str(path), stat.st_size, stat.st_mtime_ns)
    if known not in HASHES:
        HASHES[known] = content_hash(path)
    return HASHES[known]


def inputs_hash(kind: str, inputs: dict) -> str:
    """20 hex digits of a JSON-able description; keys in any order. TypeError where it holds anything else."""
    text = json.dumps({"kind": kind, "inputs": inputs}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def cached_folder(
    root: str | Path, kind: str, inputs: dict, build: Callable[[Path], None], force: bool = False
) -> Path:
    """Folder `root/<kind>-<hash of kind and inputs>`, filled by `build(folder)` if it is not there yet.

    `inputs` is JSON-able and must name everything the content depends on: hashes of the input files (see
    `content_hash`), settings, and the version of the code that builds. `build` fills a temporary sibling, which is
    renamed when it returns; if it fails nothing remains. Of two processes that ask at once one builds and the other
    waits. Folders left by killed builds are removed by the next call. `force` builds anew.
    InputError: full disk, or a root that cannot be written.
    """
    root = Path(root)
    folder = root / f"{kind}-{inputs_hash(kind, inputs)}"
    if not force and (folder / MARKER).is_file():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with builder_lock(folder):
            remove_dead_builds(folder)
            if force or not (folder / MARKER).is_file():
                build_and_rename(folder, inputs, build)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise full_disk(error, root, "free some space or put the cache elsewhere (--cache)") from error
        if isinstance(error, PermissionError) and str(error.filename or "").startswith(str(root)):
            raise InputError(f"{root}: the cache cannot be written; choose another folder (--cache)") from error
        raise
    return folder


def build_and_rename(folder: Path, inputs: dict, build: Callable[[Path], None]) -> None:
    temporary = temporary_sibling(folder)
    temporary.mkdir()
    try:
        build(temporary)
        atomic_write(temporary / MARKER, json.dumps(inputs, indent=1, sort_keys=True))
        publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path) -> None:
    """Rename a finished folder into place; a folder that is there is moved aside first and then removed."""
    old = temporary_sibling(folder)
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(temporary, folder)
    except OSError:
        # Without locks another builder may have been first; its folder was made from the same inputs.
        if not (folder / MARKER).is_file():
            raise
    shutil.rmtree(old, ignore_errors=True)


def remove_dead_builds(folder: Path) -> None:
    """Remove what killed builds of this kind of folder, under any hash, left beside it."""
    kind = folder.name.rpartition("-")[0]
    for other in folder.parent.glob(f".tmp-*-{glob_literal(kind)}-*"):
        if is_leftover(other):
            shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def builder_lock(folder: Path):
    """Hold the lock of one cache folder; the system lets go of it when the process ends, however it ends."""
    if fcntl is None:
        yield
        return
    with open(folder.with_name(f".{folder.name}.lock"), "w") as file:
        with contextlib.suppress(OSError):  # some network file systems know no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
