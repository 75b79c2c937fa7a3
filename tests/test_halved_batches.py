"""A batch of --batch-size auto that is halved: what the run is resumed with, and that no file is of epochs given up."""

import dataclasses

import moon_task
import pytest
import tiny_data
import torch
import yaml
from test_engine_resume import Killed
from test_on_nan import fits, log_of, moon, settings_of, train  # noqa: F401

from common.engine.batch_size import Rehearsal
from common.engine.checkpoint import load_checkpoint
from common.engine.loop import Trainer
from common.tasks import TASKS


def test_best_is_not_of_an_epoch_that_smaller_batches_trained_again(moon, monkeypatch):  # noqa: F811
    """The third epoch, the best, was not in last.pt when memory ran out; trained again it is no better than others."""
    fits(monkeypatch, 4, since=3)
    scores = iter([0.1, 0.1, 0.9, *[0.1] * 4])  # of three epochs, of the last three, and of the fold
    monkeypatch.setitem(TASKS, "moon", dataclasses.replace(TASKS["moon"], score=lambda *_: {"score": next(scores)}))
    fold = train(moon, "--batch-size", "auto", "--save-every", "2", "--epochs", "5")
    best, last = load_checkpoint(fold / "best.pt"), load_checkpoint(fold / "last.pt")
    assert [line["score"] for line in log_of(fold)] == [0.1] * 5 and settings_of(fold) == (4, 2)
    assert (best["epoch"], best["score"]) == (0, 0.1) and last["best_score"] == 0.1


def test_best_is_kept_until_last_is_written(moon, monkeypatch):  # noqa: F811
    """Its weights are those of its own epoch, not of the one after it with which it is written."""
    scores = iter([0.1, 0.9, 0.2, 0.2])
    task = dataclasses.replace(moon_task.TASK, score=lambda *_: {"score": next(scores)})
    monkeypatch.setitem(TASKS, "moon", task)
    seldom = load_checkpoint(train(moon, "--save-every", "3", run="seldom") / "best.pt")
    scores = iter([0.1, 0.9, 0.2, 0.2])
    often = load_checkpoint(train(moon, run="often") / "best.pt")
    assert seldom["epoch"] == often["epoch"] == 1
    assert all(torch.equal(value, often["state_dict"][name]) for name, value in seldom["state_dict"].items())


def test_folds_of_different_batches_are_each_resumed_with_their_own(moon, monkeypatch):  # noqa: F811
    """--resume without the words that the run began with: the second fold's batch was halved, the first's not."""
    fits(monkeypatch, 8)
    words = ("--task", "moon", "--run", "one", "--device-type", "cpu")
    given = ("--data", "data", "--epochs", "3", "--batch-size", "auto", "--accumulate", "3")
    first = train(moon, "--batch-size", "auto", "--accumulate", "3")
    fits(monkeypatch, 4, since=1)
    train_step = Trainer.train_step

    def killing(trainer, batch, epoch, step, steps):
        if epoch == 2:
            raise Killed
        return train_step(trainer, batch, epoch, step, steps)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killing)
        with pytest.raises(Killed):
            tiny_data.call("train", *words, *given, "--fold", "1", cwd=moon)
    second = first.with_name("fold1")
    assert (settings_of(first), settings_of(second)) == ((8, 3), (4, 6))
    assert tiny_data.call("train", *words, "--resume", "--fold", "1", cwd=moon) == 0
    assert settings_of(second) == (4, 6) and load_checkpoint(second / "last.pt")["next_epoch"] == 3


def test_memory_that_runs_out_before_a_batch_was_measured(moon, monkeypatch, capsys):  # noqa: F811
    def full(rehearsal):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Rehearsal, "limit", full)
    train(moon, "--batch-size", "auto", code=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "before a batch was measured (CUDA out of memory." in error and "take a smaller --crop or model" in error


@pytest.mark.parametrize("name, value", [("batch_size", "many"), ("batch_size", 0), ("accumulate", "auto")])
def test_numbers_of_another_fold_that_are_none(moon, monkeypatch, capsys, name, value):  # noqa: F811
    """A fold takes its rows a step from one that was trained before: somebody may have changed what that says."""
    fits(monkeypatch, 8)
    (first := moon / "runs" / "one" / "fold1").mkdir(parents=True)
    (first / "best.pt").touch()
    (first / "args.yaml").write_text(yaml.safe_dump({"batch_size": 8, "accumulate": 1} | {name: value}))
    train(moon, "--batch-size", "auto", code=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"fold1/args.yaml: {name} is '{value}', no whole number of 1 or more; train" in error
