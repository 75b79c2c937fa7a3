"""More of a rare class in training: the tiles richest in it are repeated, then synthetic tiles follow.

Only what it is given is ever read: hand in training rows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.folds import ALWAYS
from common.datasets.synthetic_tiles import MODES, TABLE, Read, scan_tiles, synthetic_folder
from common.errors import InputError
from common.table_files import read_csv

MOST = 4  # times that a tile is shown


def oversample(
    rows: pd.DataFrame,
    read: Read,
    *,
    outputs: Sequence[str],
    bands: Sequence[str],
    raw_values: Mapping[int, int] | Sequence[int],
    side: int,
    folder: str | Path,
    rare: str | None = None,
    target: float = 0.05,
    most: int = MOST,
    smote: bool = False,
    k: int = 5,
    mode: str = "windows",
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str], dict]:
    """(rows with repeated and synthetic ones after them, lines for the log, facts) of training rows.

    read(i) -> (tile float32 (C,H,W), raw bands, 0 in all where there is no data; label uint8 (H,W), 255 where it is
    not known) of rows.iloc[i]; raw_values[class index]: its value in label files; rare: one of the outputs, the second
    without it; target: its share of labelled pixels; most: times that a tile is shown; side: of synthetic tiles,
    pixels; folder: root of the cache. Repeated rows have the ids id~2, id~3 …; with smote, synthetic tiles follow until
    the target is met within one window, or until there are as many synthetic pixels as real ones. One-hot bands become
    fractions where the two sources differ, as of a mixture of the classes. Where no window can raise the share, the
    repeated rows alone are given, and facts["no_smote"] says why: of some folds only this may be so. InputError: share
    out of range, class unknown or absent, or fewer than k + 1 samples of it.
    """
    rows, rare = rows.reset_index(drop=True), outputs[1] if rare is None else rare
    check_settings(outputs, rare, target, most, mode)
    index = list(outputs).index(rare)
    scan = scan_tiles(rows, read, classes=len(outputs), rare=index, side=side, windows=smote and mode == "windows")
    if not scan.counts[:, index].sum():
        raise InputError(
            f"--oversample-target {target}: no training tile holds a pixel of {rare}; leave it out, or make folds "
            "in which every side has some"
        )
    times = repetitions(scan.counts, index, target, most)
    repeated = scan.counts.T @ times
    facts = {"class": rare, "target": target, "share_before": share_of(scan.counts.sum(axis=0), index),
             "share_repeated": share_of(repeated, index), "repeated": int((times > 1).sum()),
             "added": int(times.sum() - len(rows)), "most_times": int(times.max()), "synthetic": 0}  # fmt: skip
    parts, lines, total = [rows, *repeated_rows(rows, times)], [say_repeated(facts, len(rows), most)], repeated
    if smote and facts["share_repeated"] < target:
        raw = [int(raw_values[c]) for c in range(len(outputs))]
        settings = {"outputs": list(outputs), "bands": list(bands), "raw": raw, "rare": index, "target": target,
                    "k": k, "mode": mode, "side": side, "seed": seed}  # fmt: skip
        made = synthetic_folder(rows, read, scan, repeated, settings, Path(folder))
        table = read_csv(made / TABLE, text=("id",), remedy="remove its folder, the tiles are then made again")
        counts = table[[f"n_{name}" for name in outputs]].to_numpy()
        parts.append(synthetic_rows(rows, table, counts, made, outputs, side))
        total = repeated + counts.sum(axis=0)
        facts |= {"synthetic": len(table), "folder": str(made)} if len(table) else {"no_smote": why_none(facts, side)}
        lines.append(say_synthetic(facts, share_of(total, index), target, mode, side, k))
    return pd.concat(parts, ignore_index=True), lines, facts | {"share": share_of(total, index)}


def check_settings(outputs, rare: str, target: float, most: int, mode: str) -> None:
    if rare not in outputs:
        raise InputError(f"oversampling: there is no class {rare}; the classes are {', '.join(outputs)}")
    if not 0 < target < 1:
        raise InputError(f"--oversample-target {target}: is a share of the labelled pixels; give one between 0 and 1")
    if most < 1:
        raise InputError(f"oversampling: a tile shown at most {most} times; give 1 or more")
    if mode not in MODES:
        raise InputError(f"--smote-mode {mode}: is none of {', '.join(sorted(MODES))}")


def share_of(counts: np.ndarray, index: int) -> float:
    return float(counts[index] / counts.sum())


# repetition


def repetitions(counts: np.ndarray, rare: int, target: float, most: int) -> np.ndarray:
    """How often each tile is shown, (n,), 1 to most: the richest first, all once more before any twice more.

    counts: labelled pixels (n, K). Ends with the tile that brings the share to the target; a tile that would lower the
    share is not repeated.
    """
    labelled = counts.sum(axis=1)
    share = counts[:, rare] / np.maximum(labelled, 1)
    times, own, total = np.ones(len(counts), np.int64), counts[:, rare].sum(), labelled.sum()
    for index in np.tile(np.argsort(-share, kind="stable"), most - 1):
        if own >= target * total:
            break
        if share[index] * total > own:
            times[index] += 1
            own, total = own + counts[index, rare], total + labelled[index]
    return times


def repeated_rows(rows: pd.DataFrame, times: np.ndarray) -> list[pd.DataFrame]:
    again = [rows[times >= time] for time in range(2, int(times.max()) + 1)]
    return [part.assign(id=part["id"] + f"~{time}") for time, part in enumerate(again, start=2)]


def say_repeated(facts: dict, tiles: int, most: int) -> str:
    name, before, after = facts["class"], facts["share_before"], facts["share_repeated"]
    if not facts["added"]:
        return f"oversampling: {name} {before:.2%} of the labelled pixels; no tile is repeated (up to {most} times)"
    return (
        f"oversampling: {name} {before:.2%} -> {after:.2%} of the labelled pixels: {facts['repeated']} of {tiles} "
        f"tiles are shown up to {facts['most_times']} times (target {facts['target']:.2%})"
    )


def synthetic_rows(rows, table: pd.DataFrame, counts: np.ndarray, folder: Path, outputs, side: int) -> pd.DataFrame:
    """Rows of the synthetic tiles: the columns of `rows`, those of one value in all rows with that value."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    known = {
        "id": table["id"],
        "path": [str(folder / "images" / f"{name}.npy") for name in table["id"]],
        "label": [str(folder / "labels" / f"{name}.npy") for name in table["id"]],
        "split": rows["split"].iloc[0] if "split" in rows else "",
        "raster": "", "row": -1, "col": -1, "y": -1, "x": -1, "height": side, "width": side,
        "fold": ALWAYS, "group": "synthetic",
    } | {name: shares[:, index] for index, name in enumerate(outputs)}  # fmt: skip
    same = {name: rows[name].iloc[0] for name in rows if rows[name].nunique(dropna=False) == 1}
    values = same | known
    return pd.DataFrame({name: values[name] for name in rows if name in values}, index=table.index)


def why_none(facts: dict, side: int) -> str:
    return (
        f"no window of {side} px that has another to be mixed with holds more than {facts['target']:.2%} of "
        f"{facts['class']}, so that none can raise its share"
    )


def say_synthetic(facts: dict, share: float, target: float, mode: str, side: int, k: int) -> str:
    if not facts["synthetic"]:
        return (
            f"SMOTE ({mode}, k {k}): NO SYNTHETIC TILES: {facts['no_smote']}; repetition alone reaches {share:.2%}. A "
            "smaller --crop or a lower --oversample-target may give some"
        )
    line = (
        f"SMOTE ({mode}, k {k}): {facts['synthetic']} synthetic tiles of {side} px bring {facts['class']} from "
        f"{facts['share_repeated']:.2%} to {share:.2%}; {facts['folder']}"
    )
    if share < target - 1e-9:
        line += f"; short of {target:.2%}: no more synthetic than real pixels are made"
    return line
