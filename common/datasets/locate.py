"""Where the data of a competition lies: named, mounted by Kaggle, in data/<slug>, or the built-in demo set."""

import fnmatch
import itertools
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError

KAGGLE_INPUT = Path("/kaggle/input")
# A walk through the mounts, which a network may lie behind, ends whatever is in them.
DEPTH = 7  # models/<owner>/<model>/<framework>/<variation>/<version> and one folder more inside
FILES = 50  # a folder with more of them is one of images: what lies below it is not looked at
ENTRIES = 1000  # that are read of one folder
FOLDERS = 5000  # that are read in all


@dataclass(frozen=True)
class Source:
    path: Path
    kind: str  # "given", "kaggle", "local" or "demo"


def on_kaggle() -> bool:
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ or KAGGLE_INPUT.is_dir()


def is_there(folder: Path, marker: str) -> bool:
    """Whether a folder holds a marker: a path inside it, a pattern of a name, or several of them with | between."""
    return any(any(folder.glob(pattern)) for pattern in marker.split("|"))


def has_markers(folder: Path, markers: tuple[str, ...]) -> bool:
    return all(is_there(folder, marker) for marker in markers)


def walk_for(root: Path, markers: tuple[str, ...]) -> list[Path]:
    """Folders below root that hold all markers, sorted. The walk goes level by level and is bounded; it looks no deeper
    into a folder that it found or that holds many files, nor into a hidden one."""
    found, waiting = [], deque([(root, 0)])
    for _ in range(FOLDERS):
        if not waiting:
            break
        folder, depth = waiting.popleft()
        folders, files = names_in(folder)
        if depth and all(holds(folder, folders + files, marker) for marker in markers):
            found.append(folder)
        elif depth < DEPTH and len(files) <= FILES:
            waiting.extend((folder / name, depth + 1) for name in sorted(folders))
    return sorted(found)


def names_in(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files among the first ENTRIES of a folder; none of one that cannot be read."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, ENTRIES):
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError:
        return [], []
    return folders, files


def holds(folder: Path, names: list[str], marker: str) -> bool:
    """is_there by a look at single paths, and for patterns at the names that were read of the folder."""
    patterns = marker.split("|")
    return any(fnmatch.filter(names, one) if "*" in one else os.path.exists(folder / one) for one in patterns)


def find_data(slug: str, markers: tuple[str, ...], data: Path | None, make_demo, *, root: Path | None = None) -> Source:
    """The data folder: `data` if given, else a Kaggle mount, data/<slug>, or off Kaggle the folder of make_demo().

    InputError: the named folder lacks the marker files; two mounts match; on Kaggle there is none.
    """
    if data is not None:
        missing = [marker.replace("|", " or ") for marker in markers if not is_there(data, marker)]
        if missing:
            raise InputError(f"--data {data}: {', '.join(missing)} not found there; name the competition's folder")
        return Source(data, "given")
    root = root or KAGGLE_INPUT
    if root.is_dir():
        found = walk_for(root, markers)
        named = [folder for folder in found if slug in str(folder.relative_to(root))] or found
        if len(named) > 1:
            raise InputError(f"{root}: {' and '.join(map(str, named[:3]))} both hold {markers[0]}; choose with --data")
        if named:
            return Source(named[0], "kaggle")
        raise InputError(f"{root}: no {', '.join(markers)} in any mount; attach the competition {slug} or give --data")
    if on_kaggle():
        raise InputError(f"{root}: no input is mounted; attach the competition {slug}")
    if has_markers(Path("data") / slug, markers):
        return Source(Path("data") / slug, "local")
    return Source(make_demo(), "demo")
