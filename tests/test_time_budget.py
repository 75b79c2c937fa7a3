"""infer.py --time-budget on a clock of the test's own: what is given up, in which order, and that all is written."""

import argparse
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny_data
from ticking import HOUR, tick

from common.datasets import stereo
from common.engine.checkpoint import load_checkpoint
from common.settings import duration
from common.tasks import TASKS

RUN = "biomass-1x1-s42"
VIEWS = ("identity", "hflip", "vflip", "hflip+vflip")
ROWS = 24
BIOMASS = TASKS["biomass"]
# 24 photos, one a batch, x 2 folds x 4 views of 225 s are 12 hours
PASS = 225


@pytest.fixture(scope="module")
def home(tiny_home, tmp_path_factory):
    """Two runs of two folds of the same rows, and 24 photos to be predicted."""
    home = tmp_path_factory.mktemp("budget")
    shutil.copytree(tiny_home / "runs", home / "runs")
    shutil.copytree(tiny_home / "data", home / "old")
    tiny_data.train(home, "--seed", "7", "--run", "other", "--folds", "old/folds.csv", data="old")
    tiny_data.make_tiny(home / "data", tests=ROWS, seed=3)
    return home


def infer(home, *words, out, runs=(RUN,), views=VIEWS[1:], code=0):
    """(pred.csv by id, "time_budget" in spec.json of every run); what is handed in is checked."""
    words = ("--runs", *runs, "--data", "data", "--workers", "0", "--device-type", "cpu", "--batch-size", "1",
             "--tta", *views, "--out", out, *words)  # fmt: skip
    assert tiny_data.call("infer", *words, cwd=home) == code
    handed = pd.read_csv(home / out / "submission.csv")
    assert len(handed) == ROWS * 5 and handed["target"].notna().all()
    facts = json.loads((home / out / "spec.json").read_text())["runs"]
    return pd.read_csv(home / out / "pred.csv").set_index("id"), [one.get("time_budget") for one in facts]


def given(facts: dict) -> dict:
    """{(views, folds): rows} of what a run got."""
    return {(len(one["views"]), len(one["folds"])): one["rows"] for one in facts["given"]}


@pytest.fixture(scope="module")
def alone(home):
    """(views, folds) -> the predictions of all rows by so many views and folds, without a budget."""
    made = {}

    def predict(views: int, folds: int, run=RUN) -> pd.DataFrame:
        if (views, folds, run) not in made:
            words = ("--fold", *range(folds))
            made[views, folds, run] = infer(home, *words, runs=(run,), views=VIEWS[1:views], out=f"{run}{views}{folds}")
        return made[views, folds, run][0]

    return predict


def test_twelve_hours_of_work_end_in_eight_and_a_half(home, alone, monkeypatch, capsys):
    clock = tick(monkeypatch, TASKS, "biomass", forward=PASS)
    found, (facts,) = infer(home, "--time-budget", "8.5h", out="views")
    said = capsys.readouterr().out
    assert 8 * HOUR < clock.time - 1000 < 8.5 * HOUR
    first = next(line for line in said.splitlines() if line.startswith("time budget"))
    assert "has 8.3 h and would take 12.0 h" in first and "2 of 2 folds x identity hflip" in first
    assert "dropped: hflip+vflip" in first and "nothing was dropped" not in said
    got = given(facts)
    assert sum(got.values()) == ROWS and set(got) <= {(4, 2), (3, 2), (2, 2)} and facts["left"] == 0
    assert all(f"{rows} rows by fold 0 1 x {' '.join(VIEWS[:views])}" in said for (views, _), rows in got.items())
    same = [views for views in (4, 3, 2) for name in found.index
            if np.allclose(found.loc[name], alone(views, 2).loc[name], rtol=1e-6)]  # fmt: skip
    assert sorted(same, reverse=True) == [views for (views, _), rows in sorted(got.items(), reverse=True)
                                          for _ in range(rows)]  # fmt: skip


def test_less_time_costs_folds_and_the_rest_are_those_of_one(home, alone, monkeypatch, capsys):
    """One batch of all, then one of identity x fold 0: 2.2 h hold .5 h + 23 x 225 s, but no second fold."""
    clock = tick(monkeypatch, TASKS, "biomass", forward=PASS)
    found, (facts,) = infer(home, "--time-budget", "2.2h", out="folds")
    assert clock.time - 1000 < 2.2 * HOUR
    got = given(facts)
    assert got[1, 1] > 10 and sum(got.values()) == ROWS and facts["left"] == 0
    assert "the last fold" in capsys.readouterr().out
    single = [name for name in found.index if np.allclose(found.loc[name], alone(1, 1).loc[name], rtol=1e-6)]
    assert len(single) == got[1, 1] and not np.allclose(alone(1, 2), alone(1, 1), rtol=1e-3)


def test_rows_that_are_left_get_the_bad_answer_and_are_not_read(home, alone, monkeypatch, capsys):
    clock = tick(monkeypatch, TASKS, "biomass", forward=PASS)
    read, original = [], stereo.read_halves
    monkeypatch.setattr(stereo, "read_halves", lambda path, *words, **more: read.append(path) or original(
        path, *words, **more))  # fmt: skip
    found, (facts,) = infer(home, "--time-budget", "1.2h", out="rows", code=3)
    said = capsys.readouterr()
    done = sum(given(facts).values())
    assert clock.time - 1000 < 1.2 * HOUR and facts["left"] == ROWS - done > 5 and len(set(read)) == done
    assert f"time budget: {RUN}: {ROWS - done} rows were not predicted" in said.out
    assert "of the rows are not predicted" in said.out
    assert said.err.strip().endswith(f"{ROWS - done} rows of {ROWS} got {BIOMASS.bad_answer}")
    median = load_checkpoint(home / "runs" / RUN / "fold0" / "last.pt")["spec"]["median"]
    outputs = list(tiny_data.OUTPUTS)
    lost = [name for name in found.index if np.allclose(found.loc[name, outputs], median, rtol=1e-6)]
    assert lost == list(alone(1, 1).index[done:])
    infer(home, "--time-budget", "1.2h", "--allow-bad-images", out="rows-allowed")


def test_what_takes_longer_than_thought_gets_less_and_what_is_faster_more(home, monkeypatch):
    clock = tick(monkeypatch, TASKS, "biomass", forward=lambda done: PASS if done < 100 else 3 * PASS)
    _, (facts,) = infer(home, "--time-budget", "8.5h", out="slower")
    slower = given(facts)
    assert clock.time - 1000 < 8.5 * HOUR and facts["left"] == 0 and min(slower) < (2, 2)
    clock = tick(monkeypatch, TASKS, "biomass", task=BIOMASS, forward=lambda done: PASS if done < 50 else 1)
    _, (facts,) = infer(home, "--time-budget", "8.5h", out="faster")
    assert given(facts)[4, 2] > 5 and facts["left"] == 0 and clock.time - 1000 < 8.5 * HOUR


def test_time_that_suffices_changes_no_byte(home, monkeypatch, capsys):
    infer(home, out="free")
    capsys.readouterr()
    _, (facts,) = infer(home, "--time-budget", "90000s", out="enough")
    for name in ("pred.csv", "submission.csv"):
        assert (home / "free" / name).read_bytes() == (home / "enough" / name).read_bytes()
    assert f"time budget: {RUN}: nothing was dropped" in capsys.readouterr().out
    assert given(facts) == {(4, 2): ROWS} and "time_budget" not in (home / "free" / "spec.json").read_text()


def test_several_runs_share_the_time_and_each_row_is_of_those_that_predicted_it(home, alone, monkeypatch, capsys):
    """Of 10.4 h each run may take the half; the second finds everything six times as slow, and leaves rows."""
    clock = tick(monkeypatch, TASKS, "biomass", forward=lambda done: PASS if done < 90 else 6 * PASS)
    found, facts = infer(home, "--time-budget", "10.4h", out="both", runs=(RUN, "other"))
    assert clock.time - 1000 < 10.4 * HOUR and facts[0]["seconds"] < 5.2 * HOUR
    assert facts[0]["left"] == 0 < facts[1]["left"] < ROWS and "got the training" not in capsys.readouterr().err
    done = [sum(given(one).values()) for one in facts]
    assert done[0] == ROWS
    monkeypatch.setitem(TASKS, "biomass", BIOMASS)

    def likely(name: str, run: str, facts: dict) -> list:
        return [alone(views, folds, run).loc[name].to_numpy(float) for views, folds in given(facts)]

    for number, name in enumerate(found.index):
        one, two = (likely(name, *pair) for pair in zip((RUN, "other"), facts, strict=True))
        wanted = one if number >= done[1] else [(a + b) / 2 for a in one for b in two]
        assert any(np.allclose(found.loc[name].to_numpy(float), values, rtol=1e-6) for values in wanted), name


def test_rows_come_before_a_second_run(home, monkeypatch):
    """Half of 2.2 h is too short for one opinion of every row: the first run takes what it needs."""
    clock = tick(monkeypatch, TASKS, "biomass", forward=PASS)
    _, facts = infer(home, "--time-budget", "2.2h", out="first", runs=(RUN, "other"))
    assert facts[0]["left"] == 0 < facts[1]["left"] and clock.time - 1000 < 2.2 * HOUR + 8 * PASS


def test_one_batch_is_predicted_whatever_the_time(home, alone, monkeypatch):
    tick(monkeypatch, TASKS, "biomass", forward=HOUR)
    found, (facts,) = infer(home, "--time-budget", "1s", "--batch-size", "64", out="one")
    assert given(facts) == {(1, 1): ROWS} and facts["left"] == 0
    monkeypatch.setitem(TASKS, "biomass", BIOMASS)
    np.testing.assert_allclose(found.to_numpy(float), alone(1, 1).to_numpy(float), rtol=1e-5)


def test_what_a_budget_is_not_for_is_refused(home, capsys):
    for words in (("--rows", "oof"), ("--rows", "train")):
        assert tiny_data.call("infer", "--runs", RUN, "--data", "old", "--time-budget", "1h", *words, cwd=home) == 2
        assert capsys.readouterr().err.startswith("error: --time-budget: is for test rows alone")
    assert tiny_data.call("infer", "--runs", RUN, "--data", "data", "--time-budget", "9d", cwd=home) == 2
    assert "give a time as 8.5h" in capsys.readouterr().err


def test_times_are_read_as_they_are_written():
    assert [duration(text) for text in ("8.5h", "30m", "90s", "3600", "1.5")] == [30600, 1800, 90, 3600, 1.5]
    for wrong in ("", "8h30", "-1h", "0", "inf", "nan", "h", "9d"):
        with pytest.raises(argparse.ArgumentTypeError, match="give a time as 8.5h"):
            duration(wrong)
