"""infer.py --time-budget on a clock of the test's own: what is given up, in which order, and that all is written."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import tiny_data

from common.engine import budget
from common.tasks import TASKS

HOUR = 3600.0
VIEWS = ("hflip", "vflip", "hflip+vflip")


class Ticking:
    """A clock that stands still but for what the test lets take time."""

    def __init__(self):
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def task(self, task, seconds):
        """The task, each forward pass of which takes so many seconds (a number, or what a function says)."""

        def slow(model, outputs):
            self.time += seconds() if callable(seconds) else seconds
            return task.to_pred(model, outputs)

        return replace(task, to_pred=slow)


@pytest.fixture
def ticking(monkeypatch) -> Ticking:
    clock = Ticking()
    monkeypatch.setattr(budget, "now", clock.now)
    return clock


@pytest.fixture(scope="module")
def home(tiny_home, tmp_path_factory):
    """The run of two folds, and 24 photos to be predicted."""
    home = tmp_path_factory.mktemp("budget")
    (home / "runs").symlink_to(tiny_home / "runs")
    tiny_data.make_tiny(home / "data", tests=24, seed=3)
    return home


def infer(home, *words, code=0, runs=("biomass-1x1-s42",), batch="1"):
    words = ("--runs", *runs, "--data", "data", "--workers", "0", "--device-type", "cpu", "--batch-size", batch,
             "--tta", *VIEWS, *words)  # fmt: skip
    assert tiny_data.call("infer", *words, cwd=home) == code
    out = home / words[words.index("--out") + 1]
    handed = pd.read_csv(out / "submission.csv")
    assert len(handed) == 24 * 5 and handed["target"].notna().all()
    return pd.read_csv(out / "pred.csv"), json.loads((out / "spec.json").read_text())["runs"]


def test_twelve_hours_of_work_end_in_eight_and_a_half(home, ticking, monkeypatch, capsys):
    """24 batches x 2 folds x 4 views of 225 s are 12 hours."""
    monkeypatch.setitem(TASKS, "biomass", ticking.task(TASKS["biomass"], 225))
    began = ticking.time
    _, (facts,) = infer(home, "--time-budget", "8.5h", "--out", "some")
    said = capsys.readouterr().out
    assert 7.5 * HOUR < ticking.time - began < 8.5 * HOUR
    assert "would take 12.0 h" in said and "dropped: hflip+vflip" in said and "nothing was dropped" not in said
    given = {tuple(one["views"]): one["rows"] for one in facts["time_budget"]["given"]}
    assert sum(given.values()) == 24 and facts["time_budget"]["left"] == 0
    assert {len(views) for views in given} == {4, 3, 2} and all(one["folds"] == ["0", "1"]
                                                                for one in facts["time_budget"]["given"])  # fmt: skip
