"""What is handed in for biomass: `sample_id,target`, every id of test.csv once, in its order, finite."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import InputError
from common.files import atomic_write
from common.outputs.predictions import listed, read_table

COLUMNS = ["sample_id", "target"]


def read_test_table(test_csv: str | Path) -> pd.DataFrame:
    """`sample_id, id, target_name` of a long test.csv, in its order; InputError naming the file where it is wrong.

    A sample_id is `<id>__<target_name>`; a target_name column, where there is one, must agree.
    """
    table = read_table(test_csv, text=["sample_id", "target_name"])
    if "sample_id" not in table:
        raise InputError(f"{test_csv}: no column sample_id; give the competition's test.csv")
    if not len(table):
        raise InputError(f"{test_csv}: holds no rows; give the competition's test.csv")
    sample = table["sample_id"].fillna("")
    odd = sample[~sample.str.contains(r".__.", regex=True)]
    if len(odd):
        raise InputError(f"{test_csv}: sample_id is not <id>__<target>: {listed(odd)}; correct these rows")
    twice = sample[sample.duplicated()].unique()
    if len(twice):
        raise InputError(f"{test_csv}: sample_ids occur more than once: {listed(twice)}; keep each once")
    parts = sample.str.rsplit("__", n=1)
    table = pd.DataFrame({"sample_id": sample, "id": parts.str[0], "target_name": parts.str[1]}).assign(
        said=table.get("target_name", parts.str[1])
    )
    differs = table["sample_id"][table["said"] != table["target_name"]]
    if len(differs):
        raise InputError(f"{test_csv}: target_name disagrees with sample_id: {listed(differs)}; correct these rows")
    return table.drop(columns="said")


def write_submission(path: str | Path, pred: pd.DataFrame, test_csv: str | Path) -> Path:
    """Write submission.csv for `test_csv` from post-processed predictions, atomically; returns the path.

    pred: id and one column per target, in grams; rows that test.csv does not ask for are left out. InputError where an
    id or a target is missing or a value is not finite, and then nothing is written.
    """
    table = read_test_table(test_csv)
    pred = pred.set_index(pred["id"].astype(str))
    if pred.index.has_duplicates:
        raise InputError(f"{path}: predictions hold an id twice: {listed(pred.index[pred.index.duplicated()])}")
    unknown = sorted(set(table["target_name"]) - set(pred.columns))
    if unknown:
        raise InputError(f"{test_csv}: asks for targets that were not predicted: {listed(unknown)}; check target_name")
    missing = table["id"][~table["id"].isin(pred.index)].unique()
    if len(missing):
        raise InputError(f"{path}: no prediction for {listed(missing)} of {test_csv}; predict every test image")
    row = pred.index.get_indexer(table["id"])
    column = pred.columns.get_indexer(table["target_name"])
    target = pred.to_numpy(object)[row, column].astype(np.float64)
    if not np.isfinite(target).all():
        bad = table["sample_id"][~np.isfinite(target)]
        raise InputError(f"{path}: predictions are not finite for {listed(bad)}; predict these images again")
    frame = pd.DataFrame({"sample_id": table["sample_id"], "target": target})
    return atomic_write(path, lambda temporary: frame.to_csv(temporary, index=False))


def validate_submission(path: str | Path, test_csv: str | Path) -> int:
    """Number of rows of a submission that is right; InputError naming what is wrong with it otherwise.

    Right: columns exactly sample_id, target; every sample_id of test.csv once, in its order; every target finite.
    """
    table = read_test_table(test_csv)
    frame = read_table(path, text=["sample_id"])
    if list(frame.columns) != COLUMNS:
        raise InputError(f"{path}: columns are {listed(frame.columns)}; a submission has exactly sample_id,target")
    if not len(frame):
        raise InputError(f"{path}: holds no rows; {test_csv} asks for {len(table)}")
    have, wanted = frame["sample_id"].fillna(""), table["sample_id"]
    faults = {
        "occur more than once": have[have.duplicated()].unique(),
        "are missing": wanted[~wanted.isin(have)],
        f"are not in {test_csv}": have[~have.isin(wanted)],
    }
    for fault, names in faults.items():
        if len(names):
            raise InputError(f"{path}: sample_ids {fault}: {listed(names)}; write the submission again")
    if (have.to_numpy() != wanted.to_numpy()).any():
        row = int((have.to_numpy() != wanted.to_numpy()).argmax())
        raise InputError(f"{path}: line {row + 2} is {have[row]}, {test_csv} has {wanted[row]}; keep its order")
    target = pd.to_numeric(frame["target"], errors="coerce").to_numpy(np.float64)
    if not np.isfinite(target).all():
        raise InputError(f"{path}: target is not a finite number for {listed(have[~np.isfinite(target)])}")
    return len(frame)
