"""Sets of maps: counts of every tile in a table, its class probabilities in a file beside it."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.errors import InputError
from common.files import atomic_write
from common.metrics.segmentation import confusion, count_columns
from common.outputs.masks import holds_logit, logit_of, read_beside, read_probs, write_probs
from common.outputs.predictions import listed
from common.table_files import check_names, read_csv

NAMES = {"oof": "oof_counts.csv", "pred": "pred.csv"}
TRAINED = "train_counts.csv"  # of rows that a model was trained on: no set to blend or to judge by
SHOWN = 6  # tiles whose masks stay in memory, for pictures


class MapKeeper:
    """engine.predict's `keep`: probabilities of a batch -> counts per tile, maps in files, a few masks for pictures.

    Without data a pixel is background. What is counted is what is stored: the largest of the float16 probabilities, or
    the sign of the float16 logit where maps are kept as_logit.
    """

    def __init__(self, classes: int, folder: Path | None, *, as_logit: bool = False):
        self.classes, self.folder, self.as_logit = classes, folder, as_logit
        self.shown: dict[str, np.ndarray] = {}

    def __call__(self, batch: dict, seen: dict) -> dict:
        prob = seen["prob"].mean(dim=0).float().cpu().numpy()
        counts, nodata = [], []
        for index, name in enumerate(batch["id"]):
            height, width = batch["size"][index]
            valid = batch["valid"][index, :height, :width].numpy()
            data = batch["data"][index, :height, :width].numpy()
            target = batch["target"][index, :height, :width].numpy()
            known = with_background(prob[index, :, :height, :width], data)
            pred = (logit_of(known) > 0 if self.as_logit else known.astype(np.float16).argmax(axis=0)).astype(np.uint8)
            counts.append(confusion(target, pred, valid, self.classes))
            nodata.append(int((~data).sum()))
            if self.folder is not None:
                truth = target.astype(np.uint8) if batch["labelled"] else None
                path = Path(self.folder) / f"{name}.npz"
                write_probs(path, known, valid=valid, target=truth, as_logit=self.as_logit)
            elif len(self.shown) < SHOWN:
                self.shown[name] = pred
        return {"counts": torch.from_numpy(np.stack(counts))[None], "nodata": torch.tensor(nodata)[None]}


def with_background(prob: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """prob (K,H,W) with certain background where there is no data."""
    known = np.where(valid, prob, np.float32(0))
    known[0, ~valid] = 1
    return known


def keep_maps(spec: dict, settings: dict, folder: Path | None) -> MapKeeper:
    as_logit = spec.get("maps") == "logit"
    return MapKeeper(len(spec["outputs"]), folder if settings.get("oof", True) else None, as_logit=as_logit)


def write_set(folder: Path, kind: str, frame: pd.DataFrame) -> Path:
    """The table of a set; paths of maps are written relative to it, so that the folder can be moved."""
    table = frame.drop(columns=[name for name in ("mask", "values") if name in frame])
    if "prob" in table:
        table = table.assign(prob=[os.path.relpath(path, folder) for path in table["prob"]])
    return atomic_write(Path(folder) / {**NAMES, "train": TRAINED}[kind], table.to_csv(index=False))


def read_set(path: Path) -> pd.DataFrame:
    """A set by its table or folder. InputError where there is none, ids repeat or columns are missing."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in NAMES.values() if (path / name).is_file()]
        if not found:
            raise InputError(f"{path}: neither {' nor '.join(NAMES.values())} in it; predict again (infer.py --out)")
        path = found[0]
    frame = read_csv(path, text=("id", "prob"), remedy="write the set again")
    if not {"id", "nodata"} <= set(frame) or frame["id"].duplicated().any() or not len(frame):
        raise InputError(f"{path}: not the table of a set of maps (id, nodata, …, each id once); write it again")
    check_names(frame["id"], path)
    counts = [name for name in frame if name.startswith("n_")]
    if counts != count_columns(round(len(counts) ** 0.5)):
        raise InputError(f"{path}: {listed(counts)} are not the counts of all pairs of classes; write the set again")
    for name in (*counts, *(name for name in ("fold", "nodata") if name in frame)):
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if not (numbers.abs() < 2**53).all() or (numbers % 1 != 0).any() or (name != "fold" and (numbers < 0).any()):
            raise InputError(f"{path}: {name} is not a whole number for every id; write the set again")
        frame[name] = numbers.astype(np.int64)
    if "prob" in frame:
        frame["prob"] = map_paths(path, frame["prob"])
    return frame


def map_paths(table: Path, names) -> list[str]:
    """Where the maps that a table names lie. A set may borrow the maps of another, so that a path may begin with `..`;
    InputError where it is no .npz or leads out of both the folder that holds the set's and the working folder."""
    homes, made = (table.resolve().parent.parent, Path.cwd()), []
    for name in names:
        if not isinstance(name, str) or not name.endswith(".npz") or "\0" in name or Path(name).is_absolute():
            raise InputError(f"{table}: {str(name)[:60]!r} is no path of a map (.npz, relative); write the set again")
        path = table.parent / name
        if not any(path.resolve().is_relative_to(home) for home in homes):
            raise InputError(f"{table}: {name[:120]!r} leads out of {homes[0]}; start the script in a folder above "
                             "both, or predict again")  # fmt: skip
        made.append(str(path))
    return made


def read_run(run: Path) -> pd.DataFrame:
    """The out-of-fold set of every finished fold of a run folder."""
    paths = sorted(Path(run).glob(f"fold*/{NAMES['oof']}"))
    if not paths:
        raise InputError(f"{run}: no fold*/{NAMES['oof']}; train a fold of this run first")
    return pd.concat([read_set(path) for path in paths], ignore_index=True)


def recounted(frame: pd.DataFrame, classes: int) -> pd.DataFrame:
    """A set with the counts of its maps as they are now."""
    counts = []
    for path in frame["prob"]:
        target, valid = read_beside(path, "target"), read_beside(path, "valid")
        counts.append(confusion(target, read_probs(path).argmax(axis=0), valid, classes).ravel())
    return frame.assign(**dict(zip(count_columns(classes), np.array(counts).T, strict=True)))


def mean_sets(sets: dict[str, pd.DataFrame], folder: Path) -> pd.DataFrame:
    """The mean of sets over the same ids, its maps written to `folder`; one set alone is given back as it is.

    InputError where the ids differ or a set has no maps.
    """
    frames = list(sets.values())
    if len(frames) == 1:
        return frames[0]
    paths = {name: dict(zip(frame["id"], prob_paths(name, frame), strict=True)) for name, frame in sets.items()}
    first = next(iter(paths))
    for name, by_id in paths.items():
        if unlike := sorted(set(by_id) ^ set(paths[first])):
            raise InputError(f"{name}: {first} and it do not both have {listed(unlike)}; predict the same rows")
    mean, counted = frames[0].copy(), "n_0_0" in frames[0]
    for row, name in zip(range(len(mean)), mean["id"], strict=True):
        maps = [read_probs(by_id[name]) for by_id in paths.values()]
        if len({one.shape for one in maps}) > 1:
            shapes = ", ".join(f"{run} {'x'.join(map(str, one.shape))}" for run, one in zip(paths, maps, strict=True))
            raise InputError(f"{name}: its maps are of other classes or sizes ({shapes}); average runs of one data set")
        beside = {key: read_beside(paths[first][name], key) for key in ("valid", *(["target"] if counted else []))}
        as_logit = holds_logit(paths[first][name])
        write_probs(Path(folder) / f"{name}.npz", np.mean(maps, axis=0), as_logit=as_logit, **beside)
        mean.loc[mean.index[row], "prob"] = str(Path(folder) / f"{name}.npz")
    return recounted(mean, round(sum(name.startswith("n_") for name in mean) ** 0.5)) if counted else mean


def prob_paths(name: str, frame: pd.DataFrame) -> list[str]:
    """Where the maps of a set lie. InputError where it has counts only."""
    if "prob" not in frame:
        raise InputError(f"{name}: holds counts only, its maps are needed; train it without --no-oof")
    return list(frame["prob"])
