"""Files that are whole or absent: every result that another script reads is written through `atomic_write`."""

import errno
import os
import re
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

from common.errors import InputError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"
OWNER = re.compile(r"\.tmp-(?P<host>[A-Za-z0-9]+)-(?P<pid>\d+)-[0-9a-f]{8}-")


def temporary_sibling(path: Path) -> Path:
    """Unused name beside `path` that carries host and process, so that `remove_leftovers` can tell a dead writer's."""
    return path.with_name(f".tmp-{HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}")


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has that id (one that we may not signal is alive too)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_leftover(temporary: Path) -> bool:
    """Whether that temporary sibling was made by a process of this machine that is dead."""
    owner = OWNER.match(temporary.name)
    return bool(owner) and owner["host"] == HOST and not is_alive(int(owner["pid"]))


def glob_literal(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def full_disk(error: OSError, path: Path, remedy: str = "free some space or write elsewhere") -> InputError:
    """The one-line InputError of a full disk or an exhausted quota while writing `path`."""
    return InputError(f"{path}: no space left on the device ({os.strerror(error.errno)}); {remedy}")


def atomic_write(path: str | Path, content: bytes | str | Callable[[Path], object]) -> Path:
    """Write `path` so that a reader sees the old file or the whole new one, never a part; returns the path.

    `content` is bytes, text (UTF-8), or a function that is given a temporary path with the same suffix and writes it:
    `atomic_write(p, lambda t: frame.to_csv(t, index=False))`, `atomic_write(p, lambda t: torch.save(state, t))`.
    Missing folders are made. A full disk becomes an InputError and leaves the old file as it was; any other error
    is passed on, and the temporary file is removed in every case. Files of killed writers are removed at the next
    write of the same name.
    """
    path = Path(path)
    temporary = temporary_sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f".tmp-*-{glob_literal(path.name)}"):
            if is_leftover(other) and other.is_file():
                other.unlink(missing_ok=True)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        # Without the flush to the disk a power cut can leave the new name with no content.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise full_disk(error, path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path
