"""Folders of tiles and labels: images/ beside labels/ or masks/, in one set or in train, val and test."""

from pathlib import Path

import pandas as pd

from common.errors import InputError

SUFFIXES = (".tif", ".tiff", ".npy")
LABELS = ("labels", "masks")  # the folder of the labels: the first that is there
LABEL_SUFFIXES = (*SUFFIXES, ".png")
SPLITS = ("train", "val", "test")


def find_parts(data: str | Path) -> dict[str, Path]:
    """{split: folder with images/}: of a plain set {"": data}, else of tiles/{train,val,test} or {train,val,test}.

    InputError: no such folder, or none of these.
    """
    data = Path(data)
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; name the folder of the tiles with --data")
    if (data / "images").is_dir():
        return {"": data}
    for home in (data / "tiles", data):
        parts = {name: home / name for name in SPLITS if (home / name / "images").is_dir()}
        if parts:
            return parts
    raise InputError(
        f"{data}: holds no images/, tiles/train/images/ or train/images/; name another with --data, or cut the tiles"
    )


def list_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, Path]:
    """{stem: file} of the tiles or labels of a folder, sorted. InputError: none, or two of the same name."""
    found = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")):
        if path.stem in found:
            raise InputError(f"{folder}: {found[path.stem].name} and {path.name} are both tile {path.stem}; keep one")
        found[path.stem] = path
    if not found:
        raise InputError(f"{folder}: holds no {', '.join(suffixes)} file; name another with --data")
    return found


def pair_labels(part: Path, images: dict[str, Path]) -> dict[str, Path]:
    """{stem: label file} of a folder's images. InputError: no folder of labels, one without its tile or the reverse."""
    folder = next((part / name for name in LABELS if (part / name).is_dir()), None)
    if folder is None:
        raise InputError(f"{part}: has no {' or '.join(LABELS)} folder beside images; add it or name another --data")
    labels = list_files(folder, LABEL_SUFFIXES)
    for lone, home, what in ((sorted(set(images) - set(labels)), folder, "no label of tile"),
                             (sorted(set(labels) - set(images)), part / "images", "no tile of label")):  # fmt: skip
        if lone:
            raise InputError(f"{home}: {what} {lone[0]} ({len(lone)} such); complete it or remove the other file")
    return labels


def unique_ids(rows: pd.DataFrame) -> list[str]:
    """The file stems; with the split before them where two splits use the same."""
    if not rows["stem"].duplicated().any():
        return list(rows["stem"])
    print("tiles of two splits have the same name: the split is put before the names of all")
    return [f"{split}_{stem}" for split, stem in zip(rows["split"], rows["stem"], strict=True)]
