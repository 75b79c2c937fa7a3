"""What lies in the read-only input folders of a kernel: a bounded walk, run folders, {run:NAME} and {find:NAME}."""

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from common.datasets.locate import FILES, names_in
from common.errors import InputError

DEPTH = 8  # /kaggle/input/models/<owner>/<model>/<framework>/<variation>/<version> is six
# layouts in which a mount is not a child of the root: name -> folders from there to the mount
LAYOUTS = {"competitions": 1, "datasets": 2, "models": 5, "notebooks": 2}
PLACEHOLDER = re.compile(r"\{(run|find):([^{}]+)\}")


@dataclass(frozen=True)
class Folder:
    path: Path
    folders: tuple[str, ...]  # names, sorted
    files: tuple[str, ...]


def walk(root: Path, *, depth: int = DEPTH) -> list[Folder]:
    """All folders below root and root itself, parents first; hidden ones and those below many files are left out."""
    if not os.access(root, os.R_OK):  # not there, or a mount that must not be read: nothing is found in it
        return []
    folders, files = names_in(root)
    here = Folder(root, tuple(sorted(folders)), tuple(sorted(files)))
    if depth == 0 or len(files) > FILES:
        return [here]
    return [here, *itertools.chain.from_iterable(walk(root / name, depth=depth - 1) for name in here.folders)]


def mounts_of(root: Path) -> list[Path]:
    """The mounts below root, whichever of the layouts they lie in."""
    found = []
    for name in sorted(os.listdir(root)) if root.is_dir() else []:
        pattern = "/".join(["*"] * LAYOUTS.get(name, 0))
        found += sorted((root / name).glob(pattern)) if pattern else [root / name]
    return [path for path in found if path.is_dir()]


def describe(root: Path, found: list[Folder]) -> list[str]:
    """A line per mount: where, and the first names in it."""
    listed = {folder.path: folder for folder in found}
    lines = []
    for mount in mounts_of(root):
        folder = listed.get(mount, Folder(mount, (), ()))
        names = [*(f"{name}/" for name in folder.folders), *folder.files]
        lines.append(f"mount {mount}: {', '.join(names[:6])}{f' … ({len(names)})' if len(names) > 6 else ''}")
    return lines or [f"no mounts below {root}"]


def is_run(folder: Path) -> bool:
    return any(folder.glob("fold*/args.yaml"))


def run_folders(found: list[Folder]) -> list[Path]:
    """Folders that hold fold*/args.yaml, as a run of train.py does."""
    folds = [one.path for one in found if one.path.name.startswith("fold") and "args.yaml" in one.files]
    return sorted({path.parent for path in folds})


def runs_named(found: list[Folder], name: str) -> list[Path]:
    return [path for path in run_folders(found) if path.name == name]


def things_named(found: list[Folder], pattern: str) -> list[Path]:
    """Files and folders whose path ends as the pattern says, but for those inside a run folder, begun or not."""
    begun = [one.path for one in found if one.path.parent.name == "runs" and "folds.csv" in one.files]
    inside = {*run_folders(found), *begun}
    outside = [folder for folder in found if not inside & {folder.path, *folder.path.parents}]
    paths = [folder.path / name for folder in outside for name in (*folder.folders, *folder.files)]
    return [path for path in paths if path.match(pattern)]


def find(kind: str, name: str, found: list[Folder], root: Path) -> Path:
    """The one run or thing of that name. InputError where there is none, or several."""
    paths = runs_named(found, name) if kind == "run" else things_named(found, name)
    what = f"run folder {name}" if kind == "run" else name
    if not paths:
        names = [path.name for path in run_folders(found)] if kind == "run" else []
        there = f" (there are {', '.join(names)})" if names else ""
        raise InputError(f"{root}: no {what} in any mount{there}; attach the data set that holds it")
    if len(paths) > 1:
        raise InputError(f"{root}: {' and '.join(map(str, paths[:3]))} are all {what}; detach all but one")
    return paths[0]


def resolve(words: list[str], found: list[Folder], root: Path) -> list[str]:
    """The words of a call with the paths that their {run:NAME} and {find:NAME} mean."""
    return [PLACEHOLDER.sub(lambda match: str(find(match[1], match[2], found, root)), word) for word in words]
