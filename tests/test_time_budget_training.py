"""train.py --time-budget on a clock of the test's own: what is begun, what is said, and that --resume goes on."""

import json
from dataclasses import replace

import moon_task
import pytest
import tiny_data
import torch

from common.engine import budget
from common.engine.checkpoint import load_checkpoint
from common.tasks import TASKS

HOUR = 3600.0
# 40 tiles in 4 folds: 30 to train in 8 batches, 10 to validate in 3
BASE = ("--task", "moon", "--data", "data", "--batch-size", "4", "--workers", "0", "--device-type", "cpu",
        "--ema-decay", ".9", "--samples-every", "0", "--epochs", "6", "--run", "r")  # fmt: skip


class Ticking:
    """A clock that stands still but for the steps of training and the batches of validation."""

    def __init__(self, step: float, valid: float):
        self.time, self.step, self.valid, self.calls = 500.0, step, valid, 0

    def now(self) -> float:
        return self.time

    def task(self):
        def loss(outputs, batch):
            self.calls += 1
            self.time += self.step(self.calls) if callable(self.step) else self.step
            return moon_task.loss(outputs, batch)

        def to_pred(model, outputs):
            self.time += self.valid
            return {"pred": outputs["value"]}

        return replace(moon_task.TASK, build_loss=lambda spec, settings: loss, to_pred=to_pred)


@pytest.fixture
def ticking(monkeypatch, tmp_path):
    """begin(step, valid) -> the clock, in seconds a training step and a batch of validation; data in tmp_path."""
    moon_task.make_demo(tmp_path / "data")

    def begin(step=100.0, valid=10.0) -> Ticking:
        clock = Ticking(step, valid)
        monkeypatch.setattr(budget, "now", clock.now)
        monkeypatch.setitem(TASKS, "moon", clock.task())
        return clock

    return begin


def train(home, *words, code=0):
    assert tiny_data.call("train", *BASE, *words, cwd=home) == code


def test_folds_that_do_not_fit_are_named_and_resume_ends_with_the_same_bytes(ticking, tmp_path, capsys):
    """An epoch is 8 x 100 + 3 x 10 s, a fold 6 of them and 3 x 10 s: 5010 s; four are 5.6 h."""
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "data").symlink_to(tmp_path / "data")
    ticking()
    train(whole)
    capsys.readouterr()
    clock = ticking()
    began = clock.time
    train(tmp_path, "--time-budget", "3h", code=4)
    said = capsys.readouterr().out
    assert 2.5 * HOUR < clock.time - began <= 3 * HOUR
    forecast = [line for line in said.splitlines() if "time budget 3.0 h" in line]
    assert "estimate 5." in forecast[0] and "for 4 folds: fold 0 ends, fold 1 ends" in forecast[0]
    assert "fold 3 is not begun" in forecast[0]
    assert "stopped by --time-budget" in said and "--resume" in said.splitlines()[-1]
    for _ in range(4):
        ticking()
        if tiny_data.call("train", *BASE, "--time-budget", "3h", "--resume", cwd=tmp_path) == 0:
            break
    for fold in range(4):
        one, other = (load_checkpoint(home / "runs/r" / f"fold{fold}" / "last.pt") for home in (tmp_path, whole))
        for part in ("state_dict", "ema", "optimizer"):
            assert json.dumps(one[part], default=lambda t: t.tolist()) == json.dumps(
                other[part], default=lambda t: t.tolist()
            )
        for name in ("oof.csv",):
            assert (tmp_path / "runs/r" / f"fold{fold}" / name).read_bytes() == (
                whole / "runs/r" / f"fold{fold}" / name
            ).read_bytes()
    assert (tmp_path / "runs/r/post.json").read_bytes() == (whole / "runs/r/post.json").read_bytes()
    assert torch.is_tensor(one["state_dict"]["net.1.weight"])
