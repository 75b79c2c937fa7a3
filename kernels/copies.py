"""Folders copied from a mount or a folder of results: whole or not at all, and such that they may be written."""

import os
import shutil
from pathlib import Path

from common.errors import InputError
from common.files import temporary_sibling


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_folder(source: Path, target: Path, *, keep_free: float = 0.0) -> Path:
    """Put a copy of `source` in the place of `target`, in one rename; hidden files are left out.

    InputError where it does not fit beside `keep_free` bytes; what was there then stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    size, free = size_of(source), shutil.disk_usage(target.parent).free
    if size + keep_free > free:
        raise InputError(
            f"{source}: {size / 1e6:.0f} MB, and {target.parent} has {free / 1e6:.0f} MB free; attach less"
        )
    new, old = temporary_sibling(target), temporary_sibling(target)
    try:
        # without the rights of the files, which are read-only in a mount
        shutil.copytree(source, new, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(".*"))
        for folder in (new, *(path for path in new.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    except shutil.Error as error:  # of several files at once
        raise InputError(f"{source}: not copied to {target} ({error.args[0][0][2]}); attach it again") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target
