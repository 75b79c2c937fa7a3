"""Work that survives a kill: finished parts of a job on disk beside its output, and jobs shared by processes."""

import contextlib
import errno
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import FULL_DISK, full_disk, temporary_sibling

VERSION = 1  # of what the parts hold and how they are computed
KEY = "key.json"
PART = ".part.npz"
LOCK = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # answers of file systems without locks


def hash_key(key: dict) -> str:
    """sha256 of a dict of plain values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps({**key, "version": VERSION}, sort_keys=True, default=str).encode()).hexdigest()


class SideStore:
    """Named parts (dicts of arrays) of one job in a folder. What was stored under another key is thrown away.

    A part is whole or absent: it is renamed into place and its checksums are looked at when it is read. Nothing is
    flushed to the disk on the way, so that a power cut may cost parts, but never gives wrong ones.
    """

    def __init__(self, folder: str | Path, key: dict):
        self.folder, self.hash = Path(folder), hash_key(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._stored_hash() != self.hash:
            self.clear()
            self._write(KEY, lambda file: file.write(json.dumps({"hash": self.hash}).encode()))

    def _stored_hash(self) -> str | None:
        try:
            return json.loads((self.folder / KEY).read_text()).get("hash")
        except (OSError, ValueError, AttributeError):
            return None

    def _write(self, name: str, fill) -> None:
        path = self.folder / name
        temporary = temporary_sibling(path)
        try:
            with open(temporary, "wb") as file:
                fill(file)
            os.replace(temporary, path)
        except OSError as error:
            if error.errno in FULL_DISK:
                raise full_disk(error, path, "free some space and start again: what is finished is kept") from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def write(self, name: str, **arrays: np.ndarray) -> None:
        """Store a part. InputError where the disk is full."""
        self._write(name + PART, lambda file: np.savez(file, **arrays))

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a part; None where it is absent or damaged."""
        try:
            with np.load(self.folder / (name + PART)) as file:
                return {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def remove(self, name: str) -> None:
        (self.folder / (name + PART)).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the key first (what is left by a kill here belongs to no job), the parts and what writers left."""
        (self.folder / KEY).unlink(missing_ok=True)
        for pattern in (f"*{PART}", f".tmp-*{PART}", f".tmp-*-{KEY}"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the store; a folder that holds other files stays with them."""
        self.clear()
        with contextlib.suppress(OSError):
            self.folder.rmdir()


class Claim:
    """An output that this process makes alone, until the `with` ends or the process does."""

    held: "set[Claim]" = set()  # those of this process

    def __init__(self, path: Path, file):
        self.path, self.file = path, file
        Claim.held.add(self)

    def note(self, text: str) -> None:
        """Write into the lock what others may read of its holder; a full disk has no room for it, and needs none."""
        self.file.truncate(0)
        try:
            self.file.write(text.encode())
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_failure) -> None:
        if self in Claim.held:
            # removed while it is held: who opened it before sees below that it is no longer the file of that name
            self.path.unlink(missing_ok=True)
            self.let_go()

    def let_go(self) -> None:
        Claim.held.discard(self)
        self.file.close()


def forget_claims() -> None:
    """In a fork: a lock is held for as long as any process has its file open, and a loader's worker may outlive a
    training that was killed by seconds."""
    for one in list(Claim.held):
        one.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_claims)


def lock_of(output: str | Path) -> Path:
    return Path(output).with_name(f".{Path(output).name}{LOCK}")


def claim(output: str | Path) -> Claim | None:
    """The right to make `output` (a path), or None while another process has it.

    It is the lock of a hidden file beside the output: the system frees it when its holder ends, however that happens.
    Several machines can share a folder whose file system carries locks (NFS 4 does).
    """
    path = lock_of(output)
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab", buffering=0)  # closed by the Claim
        except FileNotFoundError:  # the holder before us removed the folder it had made
            continue
        if not lock_now(file):
            file.close()
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return Claim(path, file)
        file.close()  # the holder before us removed it between our open and our lock


def lock_now(file, shared: bool = False, wait: bool = False) -> bool:
    """Whether the lock of an open file is ours, maybe after a wait; True as well where there are no locks: Windows has
    no flock, some network file systems carry none, and two jobs there must be given outputs of their own."""
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except ImportError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def is_claimed(output: str | Path) -> bool:
    """Whether a process, this one included, has the right to make `output` now."""
    try:
        with open(lock_of(output), "rb") as file:
            return not lock_now(file, shared=True)
    except FileNotFoundError:
        return False


def shared_jobs(outputs: list[Path]) -> Iterator[int]:
    """Positions of the outputs that this process is to make: those that do not exist and nobody else is making.

    Each is held while the caller works on it and freed when the next is asked for. InputError: two outputs are one.
    """
    twice = sorted({str(path) for path in outputs if outputs.count(path) > 1})
    if twice:
        raise InputError(f"{twice[0]}: two inputs would be written there; rename one of them")
    for index, output in enumerate(outputs):
        if output.exists():
            continue
        held = claim(output)
        if held is None:
            continue
        with held:
            if not output.exists():  # finished by another between the look and the lock
                yield index
