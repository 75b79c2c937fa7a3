"""Loader processes that die, or find no shared memory: a line that says what happened and what goes on; no hang."""

import ctypes
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_data
import torch
from children import children_of, end, error_line
from torch.utils.data import Dataset, get_worker_info

from common.datasets import sampling, stereo, workers
from common.engine import checkpoint, loop, tracking
from common.engine.checkpoint import load_checkpoint
from common.errors import LOST_REMEDY, NO_SHARED_MEMORY, InputError, explained, is_lost_worker, run_script

RUN = "biomass-1x1-s42"
WORDS = ("--data", "data", *tiny_data.QUICK, "--fold", "0", "--no-cache-images", "--workers", "2", "--epochs", "3")
INFER = ("--runs", RUN, "--data", "data", "--workers", "2", "--batch-size", "2", "--rows", "oof", "--out", "preds/x")
NEW_NAMESPACE = 0x00020000  # CLONE_NEWNS


def kill_workers() -> None:
    for pid in children_of(os.getpid()):
        os.kill(pid, signal.SIGKILL)


def patched(place, name: str, wrapper) -> None:
    """In a child, which ends with what was done to it: place.name becomes wrapper(place.name)."""
    setattr(place, name, wrapper(getattr(place, name)))


def die_in_a_step(step_function):
    def train_step(trainer, batch, epoch, step, steps):
        if (epoch, step) == (1, 1):
            kill_workers()
        return step_function(trainer, batch, epoch, step, steps)

    return train_step


def die_in_validation(validate_function):
    def validate(tracker, model, epoch):
        if epoch == 1:
            kill_workers()
        return validate_function(tracker, model, epoch)

    return validate


def die_in_a_save(save_function):
    def save(content, path):
        if content.get("next_epoch") == 2:
            kill_workers()
        return save_function(content, path)

    return save


DEATHS = {
    "step": lambda: patched(loop.Trainer, "train_step", die_in_a_step),
    "validation": lambda: patched(tracking.Tracker, "validate", die_in_validation),
    "save": lambda: patched(checkpoint.torch, "save", die_in_a_save),
}


@pytest.fixture(scope="module")
def whole(tiny_home, tmp_path_factory) -> Path:
    """The fold folder of a training that lost no worker."""
    home = tmp_path_factory.mktemp("whole")
    (home / "data").symlink_to(tiny_home / "data")
    assert end(lambda: tiny_data.call("train", *WORDS, cwd=home), home / "said")[0] == 0
    return home / "runs" / RUN / "fold0"


@pytest.mark.parametrize("place", DEATHS)
def test_a_killed_worker_ends_a_training_that_goes_on(tiny_empty, tmp_path, whole, place):
    from test_engine_resume import log_of, same

    def work():
        DEATHS[place]()
        return tiny_data.call("train", *WORDS, cwd=tiny_empty)

    code, said = end(work, tmp_path / "said")
    line = error_line(said)
    assert code == 2 and re.match(r"error: loader process [\d, ]+ (is killed by signal: Killed|exited unexp)", line)
    assert "--resume" in line and "--workers" in line
    folder = tiny_empty / "runs" / RUN / "fold0"
    assert not (folder / "finished.json").exists()
    code, said = end(lambda: tiny_data.call("train", *WORDS, "--resume", cwd=tiny_empty), tmp_path / "said")
    assert code == 0 and "epoch   1/3" not in said
    one, other = (load_checkpoint(path / "last.pt") for path in (folder, whole))
    assert all(same(one[key], other[key]) for key in ("state_dict", "ema", "optimizer", "history", "next_epoch"))
    assert (folder / "oof.csv").read_bytes() == (whole / "oof.csv").read_bytes() and log_of(folder) == log_of(whole)
    assert not list(folder.glob(".tmp-*")), "what a save left that the signal cut short goes with the next save"


def test_a_killed_worker_ends_an_inference(tiny_copy, tmp_path):
    def getter(original):
        def getitem(dataset, key):
            if get_worker_info() is not None and key[1] % 5 == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(dataset, key)

        return getitem

    def work():
        patched(sampling.PaddedDataset, "__getitem__", getter)
        patched(stereo.StereoDataset, "__getitem__", getter)
        sampling.PaddedDataset.__getitems__ = lambda dataset, keys: [dataset[key] for key in keys]
        return tiny_data.call("infer", *INFER, cwd=tiny_copy)

    code, said = end(work, tmp_path / "said")
    assert code == 2 and "loader process" in error_line(said) and "the same call goes on" in said
    assert not (tiny_copy / "preds" / "x" / "oof.csv").exists()
    code, said = end(lambda: tiny_data.call("infer", *INFER, cwd=tiny_copy), tmp_path / "said")
    assert code == 0 and (tiny_copy / "preds" / "x" / "oof.csv").is_file(), said


def with_shared_memory(size: str, work, said: Path) -> tuple[int, str]:
    """`work()` in a child whose /dev/shm is so small; skipped where none can be mounted for it alone."""

    def inside() -> int:
        if ctypes.CDLL(None, use_errno=True).unshare(NEW_NAMESPACE):
            return 98
        commands = (["mount", "--make-rprivate", "/"],
                    ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"])  # fmt: skip
        for command in commands:
            if subprocess.run(command, capture_output=True).returncode:
                return 98
        return work()

    code, printed = end(inside, said)
    if code == 98:
        pytest.skip("no shared memory of another size can be mounted here")
    return code, printed


@pytest.mark.parametrize("size, says", [("4k", "folds: "), ("160k", "valid: ")])
def test_full_shared_memory_ends_a_training(tiny_empty, tmp_path, size, says):
    """At the first lock, and in the thread that sends batches, where torch alone would wait for ever."""
    call = lambda *more: tiny_data.call("train", *WORDS, *more, cwd=tiny_empty)  # noqa: E731
    code, said = with_shared_memory(size, call, tmp_path / "said")
    line = error_line(said)
    assert code == 2 and "/dev/shm" in line and "--workers 0" in line and "--shm-size" in line and says in said
    code, said = with_shared_memory(size, lambda: call("--workers", "0"), tmp_path / "said")
    assert code == 0, said


def test_full_shared_memory_ends_an_inference(tiny_copy, tmp_path):
    call = lambda: tiny_data.call("infer", *INFER, cwd=tiny_copy)  # noqa: E731
    code, said = with_shared_memory("160k", call, tmp_path / "said")
    assert code == 2 and "/dev/shm" in error_line(said) and not (tiny_copy / "preds" / "x" / "oof.csv").exists()


@pytest.mark.soak
@pytest.mark.parametrize("size", ["4k", "160k", "400k"])
@pytest.mark.parametrize("home, module", [("tiles_empty", "tiny_tiles"), ("slumps_empty", "tiny_rts"),
                                          ("hills_empty", "tiny_landslide")])  # fmt: skip
def test_full_shared_memory_ends_the_training_of_maps(request, tmp_path, home, module, size):
    folder, small = request.getfixturevalue(home), __import__(module).QUICK
    words = ("--data", "data", *small, "--fold", "0", "--workers", "2", "--run", "new")
    code, said = with_shared_memory(size, lambda: tiny_data.call("train", *words, cwd=folder), tmp_path / "said")
    assert code == 0 or (code == 2 and "/dev/shm" in error_line(said)), said[-3000:]
    assert code == 2 or size != "4k"


class Numbers(Dataset):
    """Rows of which some cannot be sent: they hold a function."""

    def __init__(self, unsendable: int):
        self.unsendable = unsendable

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index):
        return {"value": torch.full((3,), index), "extra": (lambda: index) if index == self.unsendable else index}


def test_what_cannot_be_sent_is_named_in_its_place(tmp_path):
    """Any trouble of the sending thread arrives, in the order of the batches, and after those before it."""
    arrived = []

    def work():
        loader = workers.Loader(Numbers(3), num_workers=1, batch_size=1, collate_fn=lambda rows: rows[0])  # fmt: skip

        def main(argv):
            for batch in loader:
                arrived.append(int(batch["value"][0]))
                print("arrived", arrived)

        return run_script(main, [])

    code, said = end(work, tmp_path / "said")
    line = error_line(said)
    assert code == 2 and "could not send a batch" in line and "pickle" in line.lower() and "--workers 0" in line
    assert "arrived [0, 1, 2]\n" in said and "3]" not in said


def test_lines_of_the_machine():
    killed = RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")
    gone = RuntimeError("DataLoader worker (pid(s) 4711, 4712) exited unexpectedly")
    assert explained(killed) == f"loader process 4711 is killed by signal: Killed; {LOST_REMEDY}"
    assert explained(gone) == f"loader process 4711, 4712 exited unexpectedly; {LOST_REMEDY}"
    bus = RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that dataloader's "
                       "workers are out of shared memory. Please try to raise your shared memory limit.")  # fmt: skip
    taken = RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")
    assert explained(bus) == explained(taken) == NO_SHARED_MEMORY and is_lost_worker(bus)
    assert explained(OSError(24, "Too many open files", "x.tif")) == (
        "x.tif: Too many open files; raise ulimit -n, or give --workers 0"
    )
    assert explained(OSError(12, "Cannot allocate memory")) == (
        "this machine: Cannot allocate memory; free some memory, or give fewer --workers"
    )
    assert explained(RuntimeError("the size of tensor a (3) must match")) is None
    assert explained(ValueError("DataLoader worker (pid 1) is killed by signal: Killed")) is None


def test_a_checkpoint_is_not_called_broken_where_a_worker_died(tmp_path, monkeypatch):
    def dies(*_, **__):
        raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")

    checkpoint.save_checkpoint(tmp_path / "last.pt", {"spec": {}})
    monkeypatch.setattr(checkpoint.torch, "save", dies)
    monkeypatch.setattr(checkpoint.torch, "load", dies)
    for call in (lambda: checkpoint.save_checkpoint(tmp_path / "last.pt", {"spec": {}}),
                 lambda: load_checkpoint(tmp_path / "last.pt")):  # fmt: skip
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            call()


def test_the_line_of_a_worker_comes_without_its_traceback(capsys):
    said = ("Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x, "
            "line 3\ncommon.errors.InputError: data/a.jpg: truncated JPEG; copy it again\n")  # fmt: skip

    def main(argv):
        raise InputError(said)

    assert run_script(main, []) == 2
    assert capsys.readouterr().err == "error: data/a.jpg: truncated JPEG; copy it again\n"


def test_a_main_process_that_went_away_is_no_worker_to_tell_of(tmp_path):
    def work():
        workers.begin_worker(0, init_worker=None)
        for error in (ConnectionResetError("gone"), EOFError(), ValueError("a fault")):
            sys.excepthook(type(error), error, None)
        return 0

    assert end(work, tmp_path / "said") == (0, "ValueError: a fault\n")
