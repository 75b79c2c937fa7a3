"""What a reader would take for whole: every file of a folder opened by its reader, and folders compared by content."""

import io
import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyogrio
import rasterio
import torch
import yaml
from safetensors.torch import load_file
from test_engine_resume import same

from common.datasets.cache import MARKER
from common.engine.checkpoint import load_checkpoint
from common.engine.runs import read_makers
from common.errors import InputError

# in lines of JSON: what two runs of the same may differ in; the code's commit is that of the moment
MAY_DIFFER = re.compile(r'"(sec|seconds|images_s|wait|gb|git|dirty)": [^,}\n]+')


def read_csv(path: Path) -> None:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if not len(table.columns) or not path.read_bytes().endswith(b"\n"):
        raise ValueError("cut off")


def read_picture(path: Path) -> None:
    content = path.read_bytes()
    ends = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9"}
    if cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) is None or not content.endswith(
        ends[path.suffix]
    ):
        raise ValueError("not a whole picture")


def read_raster(path: Path) -> None:
    with rasterio.open(path) as file:
        file.read()


def read_npz(path: Path) -> None:
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            file[name]


def read_page(path: Path) -> None:
    if not path.read_text().rstrip().endswith("</html>"):
        raise ValueError("cut off")


def read_lines(path: Path) -> None:
    text = path.read_text()
    for line in text.splitlines():
        json.loads(line)
    if not text.endswith("\n"):
        raise ValueError("cut off")


READERS = {
    ".pt": load_checkpoint, ".pth": lambda path: torch.load(path, weights_only=True), ".safetensors": load_file,
    ".npz": read_npz, ".npy": lambda path: np.load(path, allow_pickle=False), ".csv": read_csv, ".tif": read_raster,
    ".json": lambda path: json.loads(path.read_text()), ".jsonl": read_lines, ".html": read_page,
    ".yaml": lambda path: yaml.safe_load(path.read_text()), ".gpkg": pyogrio.read_dataframe,
    ".geojson": pyogrio.read_dataframe, ".png": read_picture, ".jpg": read_picture, ".txt": Path.read_text,
    ".py": lambda path: compile(path.read_text(), str(path), "exec"),
}  # fmt: skip


def is_temporary(path: Path) -> bool:
    """Whether no reader would look at it: it, or the folder it lies in, has the name of unfinished work."""
    return any(part.startswith(".tmp-") for part in path.parts)


def is_lock(path: Path) -> bool:
    return path.name.endswith(".lock")


def files_of(home: Path) -> list[Path]:
    """Relative paths of all files, but locks."""
    found = [Path(folder, name).relative_to(home) for folder, _, names in os.walk(home) for name in names]
    return sorted(path for path in found if not is_lock(path))


def broken_files(home: Path, *, skip: tuple[str, ...] = ()) -> list[str]:
    """Files that a reader would take for whole and that its reader refuses, with the reason; `skip`: folders that no
    call writes to."""
    broken = []
    for path in files_of(home):
        if is_temporary(path) or path.parts[0] in skip:
            continue
        try:
            READERS[path.suffix](home / path)
        except Exception as error:
            broken.append(f"{path}: {type(error).__name__} {' '.join(str(error).split())[:120]}")
    return broken


def temporary_of(home: Path, pid: int) -> list[Path]:
    """Unfinished work that a process left."""
    return [path for path in files_of(home) if any(re.match(rf"\.tmp-\w+-{pid}-", part) for part in path.parts)]


def finished(home: Path) -> dict[Path, tuple]:
    """{relative path: (inode, time of change in ns, bytes)} of what a call must not make again: the files of finished
    folds and of finished cache folders, finished maps of scenes, stored windows of those in work."""
    folders = {path.parent for path in files_of(home) if path.name in ("finished.json", MARKER)}
    done = {}
    for path in files_of(home):
        kept = any(folder in path.parents for folder in folders) or path.name.endswith(".part.npz")
        kept |= path.parent.name == "scenes" and path.suffix == ".tif" and path.parts[0] != "data"
        if kept and not is_temporary(path):
            stat = (home / path).stat()
            done[path] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
    return done


def made_again(before: dict[Path, tuple], after: dict[Path, tuple]) -> list[str]:
    """What was finished before and is gone or other now; windows may go when their map is there."""
    gone = [path for path in before if path not in after and not path.name.endswith(".part.npz")]
    other = [path for path in before if path in after and after[path] != before[path]]
    return sorted(map(str, gone + other))


def mixed_set(folder: Path, known: list[Path]) -> list[str]:
    """Files of a set of predictions that are not those of the set of `known` that its spec.json says it is; none
    where its reader refuses it."""
    try:
        made = read_makers(folder)
    except InputError:
        return []
    own = next(one for one in known if read_makers(one) == made)
    paths = [path for path in files_of(own) if path.suffix in (".csv", ".npz") and path.name != "submission.csv"]
    return [f"{path} in {folder.name} is of another run" for path in paths
            if (folder / path).read_bytes() != (own / path).read_bytes()]  # fmt: skip


def content_of(path: Path, home: Path):
    """What must be equal in two files: all bytes, but the seconds that something took, the call's own --resume, and of
    a stack where it was made of what, and when."""
    if path.suffix == ".pt":
        content = load_checkpoint(path)
        content["args"] = {key: value for key, value in content["args"].items() if key != "resume"}
        return {key: value for key, value in content.items() if key != "git"}
    if path.name in ("log.jsonl", "finished.json"):
        return MAY_DIFFER.sub("", path.read_text())
    if path.name == "ledger.csv":
        table = pd.read_csv(io.StringIO(path.read_text()), dtype=str).drop(columns=["seconds", "git", "dirty"])
        return table.sort_values(["run", "fold"]).to_csv(index=False)
    if path.name.endswith(".tif.json"):
        facts = json.loads(path.read_text().replace(str(home), ""))
        return {key: value for key, value in facts.items() if key != "stack"}
    return path.read_bytes()


def differences(home: Path, other: Path) -> list[str]:
    """Files that are in one of two folders only, or differ."""
    ours, theirs = files_of(home), files_of(other)
    found = [f"{path}: only {'here' if path in ours else 'in the run that nobody stopped'}"
             for path in sorted(set(ours) ^ set(theirs))]  # fmt: skip
    return found + [f"{path}: differs" for path in sorted(set(ours) & set(theirs))
                    if not same(content_of(home / path, home), content_of(other / path, other))]  # fmt: skip
