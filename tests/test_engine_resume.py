"""Killed anywhere and resumed, a fold ends with the same bytes as one that was never interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import tiny_data
import torch

import common.files
from common.engine import tracking
from common.engine.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
# everything that has a state: two stages, dropout, average, accumulation over batches, mixing, augmentation, swap
RECIPE = (*tiny_data.SMALL, "--epochs", "5", "--two-stage", "--freeze-epochs", "2", "--accumulate", "2", "--lr", "1e-3",
          "--backbone-lr", "1e-4", "--mixup-prob", ".5", "--dropout", ".2", "--ema-decay", ".9", "--fold", "0",
          "--use-aux-heads")  # fmt: skip
TIMES = {"sec", "images_s", "wait", "gb"}  # what two runs of the same thing may differ in


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a kill."""


def log_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def same(one, other) -> bool:
    """Equal to the byte, through dicts and lists; the times in a history do not count."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        keys = (set(one) | set(other)) - TIMES
        return all(key in one and key in other and same(one[key], other[key]) for key in keys)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def check_equal(folder: Path, whole: Path) -> None:
    for name in ("last.pt", "best.pt"):
        one, other = load_checkpoint(folder / name), load_checkpoint(whole / name)
        for key in sorted((set(one) | set(other)) - {"args", "git", "rng"}):
            assert same(one[key], other[key]), f"{name}: {key} differs"
    assert [line["epoch"] for line in log_of(folder)] == [1, 2, 3, 4, 5]
    assert log_of(folder) == log_of(whole)
    assert (folder / "oof.csv").read_bytes() == (whole / "oof.csv").read_bytes()
    assert not list(folder.glob(".tmp-*")), "a killed writer's file is still there"


@pytest.fixture(scope="module")
def whole(tiny_home, tmp_path_factory):
    """amp -> the fold folder of a run that nobody stopped."""
    made = {}

    def train(amp: str) -> Path:
        if amp not in made:
            home = tmp_path_factory.mktemp(f"whole-{amp}")
            (home / "data").symlink_to(tiny_home / "data")
            made[amp] = tiny_data.train(home, "--amp", amp, base=RECIPE) / "fold0"
        return made[amp]

    return train


def kill_at_write(monkeypatch, folder: Path, number: int, before: bool):
    """Raise Killed at the n-th file that gets its name in the folder, before or after it got it."""
    seen, replace = [], os.replace

    def counted(source, target):
        if Path(target).resolve().parent == folder.resolve():
            seen.append(Path(target).name)
            if len(seen) == number and before:
                raise Killed(f"before {seen[-1]}")
        replace(source, target)
        if len(seen) == number:
            raise Killed(f"after {seen[-1]}")

    monkeypatch.setattr(common.files.os, "replace", counted)


def ends_with_the_same_bytes(monkeypatch, train, home: Path, seed: int = 5) -> Path:
    """The fold folder of a run of maps that was killed at writes and resumed until it ended, which is checked against
    one that nobody stopped: weights, history, maps. train(*words, run=) -> the run's folder."""
    monkeypatch.setattr(tracking, "write_curves", lambda *_, **__: None)
    whole = train(run="whole") / "fold0"
    folder, deaths, more, draw = home / "runs" / "often" / "fold0", [], (), random.Random(seed)
    for _ in range(30):
        with monkeypatch.context() as patch:
            kill_at_write(patch, folder, draw.randint(4, 7), draw.random() < 0.5)
            try:
                train(*more, run="often")
                break
            except Killed as death:
                deaths.append(str(death))
        more = ("--resume",) if (folder / "args.yaml").exists() else ()
    assert len(deaths) >= 2, deaths
    one, other = load_checkpoint(folder / "last.pt"), load_checkpoint(whole / "last.pt")
    for key in sorted((set(one) | set(other)) - {"args", "git", "rng"}):
        assert same(one[key], other[key]), f"{key} differs"
    maps = sorted((whole / "oof").glob("*.npz"))
    assert maps and all((folder / "oof" / path.name).read_bytes() == path.read_bytes() for path in maps)
    return folder


@pytest.mark.parametrize("amp", ["off", pytest.param("bf16", marks=pytest.mark.soak)])
def test_killed_at_any_write_and_resumed(tiny_empty, monkeypatch, whole, amp):
    """Every file of a fold is a place to die at: args, best, last, log, oof, finished; each time before and after."""
    expected = whole(amp)
    folder = tiny_empty / "runs" / "biomass-1x1-s42" / "fold0"
    draw, deaths, more = random.Random(7), [], ()
    for _ in range(40):
        with monkeypatch.context() as patch:
            # args.yaml and, resuming, the log come first: a fold that gets no further would never end
            kill_at_write(patch, folder, draw.randint(4, 9), draw.random() < 0.5)
            try:
                tiny_data.train(tiny_empty, "--amp", amp, *more, base=RECIPE)
                break
            except Killed as death:
                deaths.append(str(death))
        more = ("--resume",) if (folder / "args.yaml").exists() else ()
    else:
        pytest.fail("never finished")
    assert len(deaths) >= 2, deaths
    tiny_data.train(tiny_empty, "--amp", amp, "--resume", base=RECIPE)  # a finished fold is left alone
    check_equal(folder, expected)


def test_killed_between_the_last_checkpoint_and_its_log_line(tiny_empty, monkeypatch, whole):
    folder = tiny_empty / "runs" / "biomass-1x1-s42" / "fold0"
    from common.engine import loop

    def dies(trainer):
        if trainer.next_epoch == trainer.epochs:
            raise Killed
        original(trainer)

    original = loop.Trainer.write_log
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "write_log", dies)
        with pytest.raises(Killed):
            tiny_data.train(tiny_empty, "--amp", "off", base=RECIPE)
    assert len(log_of(folder)) == 4
    tiny_data.train(tiny_empty, "--amp", "off", "--resume", base=RECIPE)
    check_equal(folder, whole("off"))


def test_killed_within_an_epoch(tiny_empty, monkeypatch, whole):
    from common.engine import loop

    def dies(trainer, batch, epoch, step, steps):
        if (epoch, step) == (3, 1):
            raise Killed
        return original(trainer, batch, epoch, step, steps)

    original = loop.Trainer.train_step
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "train_step", dies)
        with pytest.raises(Killed):
            tiny_data.train(tiny_empty, "--amp", "off", base=RECIPE)
    torch.manual_seed(12345)  # the process that goes on has drawn other numbers before
    tiny_data.train(tiny_empty, "--amp", "off", "--resume", base=RECIPE)
    check_equal(tiny_empty / "runs" / "biomass-1x1-s42" / "fold0", whole("off"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_killed_on_a_gpu(tiny_empty, monkeypatch, tmp_path, amp):
    """With --deterministic the bytes are the same there too, the scaler of fp16 included."""
    words = ("--device-type", "cuda", "--deterministic", "--amp", amp)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "data").symlink_to(tiny_empty / "data")
    folder = tiny_empty / "runs" / "biomass-1x1-s42" / "fold0"
    try:
        expected = tiny_data.train(tmp_path / "whole", *words, base=RECIPE) / "fold0"
        for number in (5, 7):
            with monkeypatch.context() as patch:
                kill_at_write(patch, folder, number, before=True)
                with pytest.raises(Killed):
                    tiny_data.train(tiny_empty, *words, *(["--resume"] if folder.exists() else []), base=RECIPE)
        tiny_data.train(tiny_empty, *words, "--resume", base=RECIPE)
    finally:
        torch.use_deterministic_algorithms(False)
    check_equal(folder, expected)


def test_best_score_and_patience_survive(tiny_empty, monkeypatch):
    """Scores of .1 .5 .3 .2 .4 with a patience of 2: best is the second epoch, the fourth is the last."""

    folder = tiny_empty / "runs" / "biomass-1x1-s42" / "fold0"
    scores = (0.1, 0.5, 0.3, 0.2, 0.4)
    monkeypatch.setattr(tracking.Tracker, "validate", lambda tracker, model, epoch: {"score": scores[epoch]})
    for epoch in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(tracking.Tracker, "epoch", dies_after(epoch + 1))
            with pytest.raises(Killed):
                tiny_data.train(tiny_empty, "--patience", "2", *(["--resume"] if epoch else []), base=RECIPE)
    tiny_data.train(tiny_empty, "--patience", "2", "--resume", base=RECIPE)
    assert [(line["epoch"], line["best"]) for line in log_of(folder)] == [(1, 0.1), (2, 0.5), (3, 0.5), (4, 0.5)]
    assert load_checkpoint(folder / "best.pt")["score"] == 0.5 and load_checkpoint(folder / "best.pt")["epoch"] == 1
    assert load_checkpoint(folder / "last.pt")["since_best"] == 2


def dies_after(epoch: int):
    def epoch_ends(tracker, trainer, record, improved):
        if record["epoch"] == epoch:
            raise Killed

    return epoch_ends


def start(home: Path, amp: str, *more) -> subprocess.Popen:
    words = [sys.executable, str(ROOT / "train.py"), "--data", "data", *RECIPE, "--amp", amp, *more]
    return subprocess.Popen(words, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def lines_of(folder: Path) -> int:
    return len((folder / "log.jsonl").read_text().splitlines()) if (folder / "log.jsonl").exists() else 0


def kill_during(process, folder: Path, lines: int, wait: float, writing: bool) -> None:
    """SIGKILL once the log has so many lines and `wait` s have passed; or as soon as a checkpoint is being written."""
    deadline = time.time() + 240
    while process.poll() is None and time.time() < deadline and lines_of(folder) < lines:
        time.sleep(0.002)
    time.sleep(wait)
    while writing and process.poll() is None and time.time() < deadline and not list(folder.glob(".tmp-*last.pt")):
        pass
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode in (0, -signal.SIGKILL), said.decode()[-500:]


def finish(home: Path, folder: Path, amp: str) -> None:
    process = start(home, amp, *(["--resume"] if (folder / "args.yaml").exists() else []))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()[-500:]


@pytest.mark.soak
@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("seed", range(5))
def test_kill_9_often(tiny_empty, whole, amp, seed):
    folder, draw = tiny_empty / "runs" / "biomass-1x1-s42" / "fold0", random.Random(seed)
    for _ in range(6):
        more = ["--resume"] if (folder / "args.yaml").exists() else []
        done = lines_of(folder)
        kill_during(start(tiny_empty, amp, *more), folder, min(done + draw.randint(0, 1), 5), draw.random() * 0.5,
                    draw.random() < 0.4)  # fmt: skip
    finish(tiny_empty, folder, amp)
    check_equal(folder, whole(amp))


def test_the_order_of_rows_differs_from_epoch_to_epoch_and_not_from_run_to_run(tiny_home):
    from common.datasets.sampling import EpochBatches

    def order(epoch, seed=42):
        batches = EpochBatches(9, 4, seed=seed)
        batches.epoch = epoch
        keys = [key for batch in batches for key in batch]
        assert {one for one, _ in keys} == {epoch}
        return [index for _, index in keys]

    assert order(1) == order(1) and order(1) != order(2) and order(1) != order(1, seed=43)
    assert all(sorted(order(epoch)) == list(range(9)) for epoch in range(3))


def test_each_step_draws_its_own_dropout(tiny_empty, monkeypatch):
    """The generator is set anew at every step from seed, epoch and step: no two steps may share a mask."""
    from common.engine import loop, tracking

    drawn, original = [], loop.to_device

    def to_device(batch, device):
        drawn.append(torch.rand(()).item())
        return original(batch, device)

    monkeypatch.setattr(loop, "to_device", to_device)
    tiny_data.train(tiny_empty, "--amp", "off", base=RECIPE)
    assert len(drawn) == len(set(drawn)) == 15
    first = list(drawn)
    drawn.clear()
    validate = tracking.Tracker.validate
    # what validation or drawing samples takes from the generators is nobody's business
    monkeypatch.setattr(tracking.Tracker, "validate", lambda *words: (torch.rand(7), validate(*words))[1])
    tiny_data.train(tiny_empty, "--amp", "off", "--force", base=RECIPE)
    assert drawn == first
    table = pd.read_csv(tiny_empty / "runs" / "ledger.csv")
    assert len(table) == 1, "a fold trained again replaces its line"
