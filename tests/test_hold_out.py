"""make_folds.py --hold: a split that someone else has published."""

import moon_task
import pandas as pd
import pytest
import tiny_data

from common.datasets.folds import read_folds
from common.tasks import TASKS


@pytest.fixture
def moon(monkeypatch, tmp_path):
    monkeypatch.setitem(TASKS, "moon", moon_task.TASK)
    moon_task.make_demo(tmp_path / "data", count=12, tests=2)
    return tmp_path


def hold(home, *ids, more=()):
    return tiny_data.call("make_folds", "--task", "moon", "--data", "data", "--hold", *ids, *more, cwd=home)


def test_the_rows_named_are_fold_0_and_all_others_are_always_trained_on(moon, capsys):
    assert hold(moon, "t3", "t11", "t4") == 0
    assert "12 tiles in 2 visits" in capsys.readouterr().out
    table = read_folds(moon / "data" / "folds.csv").set_index("id")["fold"]
    assert set(table.index[table == 0]) == {"t3", "t4", "t11"} and (table == -2).sum() == 9
    assert set(table.index[table == -1]) == {"t12", "t13"}, "test rows stay test rows"
    groups = pd.read_csv(moon / "data" / "folds.csv", dtype=str).query("fold != '-1'").groupby("fold")["group"]
    assert {fold: set(group) for fold, group in groups} == {"0": {"held"}, "-2": {"rest"}}
    assert hold(moon, "t4", "t3", "t11") == 0, "the same split again is no change"
    assert hold(moon, "t4") == 2 and "holds other folds" in capsys.readouterr().err
    assert hold(moon, "t4", more=("--force",)) == 0
    assert (read_folds(moon / "data" / "folds.csv")["fold"] == 0).sum() == 1


@pytest.mark.parametrize("ids, said", [
    (["t3", "t99"], "--hold t99"), (["t12"], "--hold t12"), ([f"t{k}" for k in range(12)], "not others or all"),
])  # fmt: skip
def test_ids_that_make_no_split_are_refused(moon, capsys, ids, said):
    assert hold(moon, *ids) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (moon / "data" / "folds.csv").exists()


def test_rows_between_the_two_are_neither(moon, capsys):
    assert hold(moon, "t3", more=("--leave-out", "t4", "t5")) == 0
    table = read_folds(moon / "data" / "folds.csv").set_index("id")["fold"]
    assert set(table.index[table == -3]) == {"t4", "t5"} and (table == -2).sum() == 9
    assert tiny_data.call("make_folds", "--task", "moon", "--data", "data", "--leave-out", "t4", cwd=moon) == 2
    assert "--leave-out: goes with --hold" in capsys.readouterr().err
