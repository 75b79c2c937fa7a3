"""train.py --time-budget on a clock of the test's own: what is begun, what is said, and that --resume goes on."""

import re

import moon_task
import pytest
import tiny_data
import torch
from test_engine_resume import log_of, same
from ticking import HOUR, tick

from common.engine.checkpoint import load_checkpoint
from common.engine.clock import STOPPED, Clock
from common.engine.device import Machine
from common.tasks import TASKS

# 40 tiles in 4 folds: 30 to train in 8 batches of 100 s, 10 to validate in 3 batches of 10 s: 830 s an epoch
BASE = ("--task", "moon", "--data", "data", "--batch-size", "4", "--workers", "0", "--device-type", "cpu",
        "--ema-decay", ".9", "--samples-every", "0", "--epochs", "6", "--run", "r")  # fmt: skip
STEP, VALID, EPOCH = 100, 10, 830


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run folder of all folds that nobody stopped."""
    home = tmp_path_factory.mktemp("whole")
    moon_task.make_demo(home / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "moon", moon_task.TASK)
        assert tiny_data.call("train", *BASE, cwd=home) == 0
    return home / "runs" / "r"


@pytest.fixture
def home(whole, tmp_path):
    (tmp_path / "data").symlink_to(whole.parents[1] / "data")
    return tmp_path


@pytest.fixture
def ticking(monkeypatch):
    """begin(step) -> a clock for one call."""
    return lambda step=STEP: tick(monkeypatch, TASKS, "moon", task=moon_task.TASK, step=step, forward=VALID)


def train(home, *words, code=0):
    assert tiny_data.call("train", *BASE, *words, cwd=home) == code


def check_equal(run, whole, folds) -> None:
    """Weights, state, logs and out-of-fold predictions are those of the run that nobody stopped."""
    for fold in folds:
        one, other = (load_checkpoint(folder / f"fold{fold}" / "last.pt") for folder in (run, whole))
        for key in sorted((set(one) | set(other)) - {"args", "git", "rng"}):
            assert same(one[key], other[key]), f"fold {fold}: {key} differs"
        assert log_of(run / f"fold{fold}") == log_of(whole / f"fold{fold}")
        names = [f"fold{fold}/oof.csv", *(["post.json"] if len(folds) == 4 else [])]
        assert all((run / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_what_will_fit_is_said_and_resume_ends_with_the_same_bytes(home, whole, ticking, capsys):
    """Four folds of 6 x 830 + 30 s are 5.6 h, of which 2.9 h hold two folds and a first epoch."""
    clock = ticking()
    train(home, "--time-budget", "3h", code=4)
    said = capsys.readouterr().out.splitlines()
    assert 2.9 * HOUR - EPOCH < clock.time - 1000 < 2.9 * HOUR + 0.1 * HOUR
    first = next(line for line in said if line.startswith("time budget"))
    assert re.match(
        r"time budget 3.0 h \(2.9 h without its reserve\), estimate 5\.3 h for 4 folds: fold 0 ends, fold 1 ends, ",
        first,
    )
    assert first.endswith("fold 3 is not begun") and said.index(first) < said.index(next(
        line for line in said if line.startswith("epoch   1/6")))  # fmt: skip
    stopped = home / "runs" / "r"
    done = len(log_of(stopped / "fold2")) if (stopped / "fold2" / "log.jsonl").exists() else 0
    state = f"fold 2 stopped after epoch {done} of 6, fold 3 was not begun" if done else "fold 2 was not begun"
    assert said[-1].startswith(f"stopped by --time-budget: {state}")
    assert said[-1].endswith("--time-budget 3h --resume") and not (stopped / "post.json").exists()
    clock = ticking()
    train(home, "--time-budget", "3h", "--resume")
    assert clock.time - 1000 < 3 * HOUR and "stopped" not in capsys.readouterr().out
    check_equal(stopped, whole, range(4))


@pytest.mark.parametrize("seconds", [2000, 2570, 2572, 5000])
def test_what_was_trained_is_on_the_disk_whatever_save_every_says(home, whole, ticking, seconds):
    """No epoch ends after the budget, less its reserve and the predictions that a fold ends with."""
    clock = ticking()
    train(home, "--fold", "1", "--save-every", "4", "--time-budget", f"{seconds}s", code=4)
    fold, left = home / "runs" / "r" / "fold1", seconds - max(30, 0.02 * seconds)
    done = len(log_of(fold))
    assert done == (left - 3 * VALID) // EPOCH >= 2 and clock.time - 1000 == done * EPOCH
    assert load_checkpoint(fold / "last.pt")["next_epoch"] == done and not (fold / "finished.json").exists()
    assert not (fold / "oof.csv").exists()
    ticking()
    train(home, "--fold", "1", "--save-every", "4", "--resume")
    check_equal(home / "runs" / "r", whole, [1])


def test_an_epoch_that_turns_out_slow_is_given_up_and_trained_again(home, whole, ticking, capsys):
    """Two epochs as thought, then ten times as slow: the third would end too late, and what it began is not kept."""
    clock = ticking(step=lambda done: STEP if done < 16 else 10 * STEP)
    train(home, "--fold", "0", "--save-every", "3", "--time-budget", "5000s", code=4)
    fold = home / "runs" / "r" / "fold0"
    assert clock.time - 1000 < 5000 and len(log_of(fold)) == 2 and 16 < clock.steps < 24
    assert "fold 0 stopped after epoch 2 of 6" in capsys.readouterr().out
    assert load_checkpoint(fold / "last.pt")["next_epoch"] == 2
    ticking()
    train(home, "--fold", "0", "--save-every", "3", "--resume", "--time-budget", "2h")
    check_equal(home / "runs" / "r", whole, [0])


def test_too_short_for_one_epoch_says_that_more_time_is_needed(home, whole, ticking, capsys):
    clock = ticking()
    train(home, "--fold", "2", "--time-budget", "600s", code=4)
    said = capsys.readouterr().out
    assert clock.steps <= 5 and clock.time - 1000 < 600 and "fold 2 stops at about epoch 0 of 6" in said
    assert "fold 2 stopped after epoch 0 of 6; go on with more time than 10.0 min, no epoch ends in that: " in said
    assert not list((home / "runs" / "r" / "fold2").glob("*.pt"))
    ticking()
    train(home, "--fold", "2", "--time-budget", "3h", "--resume")
    check_equal(home / "runs" / "r", whole, [2])


def test_a_budget_that_suffices_changes_nothing(home, whole, ticking, capsys):
    clock = ticking()
    train(home, "--time-budget", "8h")
    said = capsys.readouterr().out
    ends = "h for 4 folds: fold 0 ends, fold 1 ends, fold 2 ends, fold 3 ends\n"
    assert f"estimate 5.3 {ends}" in said and f"estimate 5.6 {ends}" in said  # without validation, and with it
    assert clock.time - 1000 == 4 * (6 * EPOCH + 3 * VALID) and "stopped" not in said
    check_equal(home / "runs" / "r", whole, range(4))
    assert "time_budget" not in (home / "runs" / "r" / "fold0" / "args.yaml").read_text()


def test_folds_that_were_finished_before_take_no_time(home, ticking, capsys):
    ticking()
    train(home, "--train-folds", "0", "1")
    clock = ticking()
    capsys.readouterr()
    train(home, "--time-budget", "1h", "--resume", code=4)
    assert "for 2 folds: fold 2 stops at about epoch 4 of 6, fold 3 is not begun" in capsys.readouterr().out
    assert len(log_of(home / "runs" / "r" / "fold2")) == 4 and clock.time - 1000 < HOUR
    clock = ticking()
    train(home, "--train-folds", "0", "1", "--time-budget", "60s", "--resume")
    assert clock.time == 1000


def test_folds_without_epochs_are_counted_by_the_whole(monkeypatch, capsys):
    """Those of a model that is fitted in closed form: 400 s each, of 970."""
    clock = tick(monkeypatch, TASKS, "moon", task=moon_task.TASK)
    trained, limit = [], Clock(1000.0, began=clock.time, machine=Machine(torch.device("cpu")))
    for fold in limit.through([0, 1, 2, 3], [1, 2, 3]):
        trained.append(fold)
        clock.time += 400 * (fold > 0)
    assert trained == [0, 1, 2] and limit.say_stopped(["--force", "--fold", "0"]) == STOPPED
    assert capsys.readouterr().out == (
        "stopped by --time-budget: fold 3 was not begun; go on: python train.py --fold 0 --resume\n"
    )


def test_the_fold_that_follows_is_not_begun_where_no_epoch_of_it_would_end(home, ticking, capsys):
    clock = ticking()
    train(home, "--train-folds", "3", "1", "--time-budget", "5700s", code=4)
    assert "stopped by --time-budget: fold 1 was not begun; " in capsys.readouterr().out
    assert clock.time - 1000 == 6 * EPOCH + 3 * VALID and (home / "runs" / "r" / "fold3" / "finished.json").exists()
    assert not (home / "runs" / "r" / "fold1").exists()
