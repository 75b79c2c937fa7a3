"""Prediction sets: one csv form for out-of-fold and test predictions, one reader for both and for strangers' files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import InputError
from common.files import atomic_write
from common.table_files import read_csv

SHOWN = 5  # names an error lists before "..."


def listed(names) -> str:
    """The first few of `names` for a one-line error."""
    names = [str(name) for name in names]
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def prediction_columns(columns, outputs: Sequence[str]) -> list[str]:
    """Those of `columns` that belong to a prediction set, in the order in which they are written."""
    bounds = [f"{name}_{side}" for name in outputs for side in ("lo", "hi")]
    order = ["id", "fold", *outputs, *bounds, *(f"true_{name}" for name in outputs)]
    return [name for name in order if name in set(columns)]


def read_table(path: str | Path, *, text: Sequence[str] = ()) -> pd.DataFrame:
    """A csv whose columns named in `text` stay text; InputError naming the file where it is absent or not a csv."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a csv")
    return read_csv(path, text=text)


def checked_predictions(frame: pd.DataFrame, outputs: Sequence[str], path: str | Path) -> pd.DataFrame:
    """The columns of a prediction set in order: id text, fold int, the rest float64; InputError naming `path` else."""
    missing = [name for name in ("id", *outputs) if name not in frame.columns]
    if missing:
        raise InputError(f"{path}: no column {listed(missing)}; predictions need id and {', '.join(outputs)}")
    if not len(frame):
        raise InputError(f"{path}: holds no rows; predict again")
    frame = frame[prediction_columns(frame.columns, outputs)].reset_index(drop=True)
    blank = frame["id"].isna() | (frame["id"].astype(str).str.strip() == "")
    if blank.any():
        raise InputError(f"{path}: {blank.sum()} rows have no id; every row needs one")
    frame["id"] = frame["id"].astype(str)
    twice = frame["id"][frame["id"].duplicated()].unique()
    if len(twice):
        raise InputError(f"{path}: ids occur more than once: {listed(twice)}; keep one row per id")
    for name in frame.columns[1:]:
        values = pd.to_numeric(frame[name], errors="coerce").astype(np.float64)
        # An unknown truth may be empty; a prediction, a bound or a fold may not.
        bad = ~np.isfinite(values) & (frame[name].notna() if name.startswith("true_") else True)
        if name == "fold":
            bad |= values.round() != values
        if bad.any():
            remedy = "a fold is a whole number" if name == "fold" else "predict these ids again"
            raise InputError(f"{path}: {name} is not a finite number for {listed(frame['id'][bad])}; {remedy}")
        frame[name] = values.astype(int) if name == "fold" else values
    return frame


def write_predictions(path: str | Path, frame: pd.DataFrame, outputs: Sequence[str]) -> Path:
    """Write `id[, fold], <outputs>[, <output>_lo, <output>_hi][, true_<output>]` in grams, before post-processing.

    Atomic, after the checks of the reader; columns of other names are not written. Returns the path.
    """
    frame = checked_predictions(frame, outputs, path)
    return atomic_write(path, lambda temporary: frame.to_csv(temporary, index=False))


def read_predictions(path: str | Path, outputs: Sequence[str]) -> pd.DataFrame:
    """A set of out-of-fold or test predictions, ours or a stranger's (`true_` columns, fold and bounds may be absent).

    path: a csv, or a folder that holds `pred.csv`. Returns id, [fold], outputs, [bounds], [true_...]; other columns
    are left out. InputError naming the file on missing columns, no rows, duplicate or empty ids, non-finite values.
    """
    path = Path(path)
    path = path / "pred.csv" if path.is_dir() else path
    return checked_predictions(read_table(path, text=["id"]), outputs, path)


def read_run(run: str | Path, outputs: Sequence[str]) -> pd.DataFrame:
    """The out-of-fold predictions of every finished fold of a run folder, `fold<k>/oof.csv`, in one frame."""
    paths = sorted(Path(run).glob("fold*/oof.csv"))
    if not paths:
        raise InputError(f"{run}: no fold*/oof.csv; train a fold of this run first")
    frame = pd.concat([read_predictions(path, outputs) for path in paths], ignore_index=True)
    return checked_predictions(frame, outputs, run)


def truth_for(frame: pd.DataFrame, outputs: Sequence[str], rows: pd.DataFrame | None = None) -> np.ndarray:
    """(n, k) grams, the truth of every row of `frame`: from `rows` (id, outputs) where given, else its true_ columns.

    nan where unknown. InputError where `rows` lacks an id, or neither is there.
    """
    if rows is None:
        missing = [f"true_{name}" for name in outputs if f"true_{name}" not in frame.columns]
        if missing:
            raise InputError(f"predictions without {listed(missing)}: give the truth (--truth train.csv)")
        return frame[[f"true_{name}" for name in outputs]].to_numpy(np.float64)
    table = rows.set_index(rows["id"].astype(str))
    missing = frame["id"][~frame["id"].isin(table.index)]
    if len(missing):
        raise InputError(f"the truth lacks ids of the predictions: {listed(missing)}; give the table they belong to")
    return table.loc[frame["id"], list(outputs)].to_numpy(np.float64)


def align(
    sets: Mapping[str, pd.DataFrame], outputs: Sequence[str], ids: Sequence[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """Sets of predictions in one order: the ids and an array (sets, n, k) in grams.

    sets: {name: frame of read_predictions}; ids: the order wanted, of which every set must have all (more is allowed);
    without it the first set's, and then all sets must have the same ids. InputError naming set and ids otherwise.
    """
    if not sets:
        raise InputError("no prediction sets to align: name at least one")
    first = next(iter(sets))
    wanted = list(sets[first]["id"] if ids is None else map(str, ids))
    aligned = []
    for name, frame in sets.items():
        have = set(frame["id"])
        missing = [one for one in wanted if one not in have]
        if missing:
            whose = f"that {first} has" if ids is None else "that are wanted"
            raise InputError(f"{name}: lacks {len(missing)} ids {whose}: {listed(missing)}; predict the same rows")
        if ids is None and len(frame) != len(wanted):
            extra = frame["id"][~frame["id"].isin(wanted)]
            raise InputError(f"{name}: has ids that {first} lacks: {listed(extra)}; predict the same rows")
        aligned.append(frame.set_index("id").loc[wanted, list(outputs)].to_numpy(np.float64))
    return wanted, np.stack(aligned)
