"""Where the data of a competition lies: named, mounted by Kaggle, in data/<slug>, or the built-in demo set."""

import os
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError

KAGGLE_INPUT = Path("/kaggle/input")
DEPTH = 5  # /kaggle/input/competitions/<slug>/… and one folder more inside


@dataclass(frozen=True)
class Source:
    path: Path
    kind: str  # "given", "kaggle", "local" or "demo"


def on_kaggle() -> bool:
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ or KAGGLE_INPUT.is_dir()


def is_there(folder: Path, marker: str) -> bool:
    """Whether a folder holds a marker: a path inside it, a pattern, or several of them with | between."""
    return any(any(folder.glob(pattern)) for pattern in marker.split("|"))


def has_markers(folder: Path, markers: tuple[str, ...]) -> bool:
    return all(is_there(folder, marker) for marker in markers)


def walk_for(root: Path, markers: tuple[str, ...], depth: int = DEPTH) -> list[Path]:
    """Folders below root that hold all markers; a bounded walk that does not enter folders of images."""
    if has_markers(root, markers):
        return [root]
    if depth == 0 or not root.is_dir():
        return []
    below = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [found for folder in below for found in walk_for(folder, markers, depth - 1)]


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
        named = [folder for folder in found if slug in str(folder)] or found
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
