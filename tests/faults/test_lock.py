"""A folder is written by one process: the second is refused by a line that names the first, whose death frees it."""

import errno
import fcntl
import json
import os
import random
import signal
import socket
import time
from pathlib import Path

import pandas as pd
import pytest
import tiny_data
from children import Child, children_of, end, error_line

import ensemble as ensemble_script
import infer as infer_script
from common.engine import holding, loop, runs, side_store
from common.engine.device import Machine
from common.errors import InputError

RUN = "biomass-1x1-s42"
HERE = Machine("cpu")


def call(script: str, home: Path, *words, **more):
    return lambda: tiny_data.call(script, *words, cwd=home, **more)


def train_words(*more) -> tuple:
    return ("--data", "data", *tiny_data.QUICK, *more)


def stopped_training(home: Path, said: Path, *more) -> Child:
    """A training that waits in its second epoch."""

    def work(say):
        original = loop.Trainer.train_epoch

        def train_epoch(trainer, epoch):
            if epoch == 1:
                say()
            return original(trainer, epoch)

        loop.Trainer.train_epoch = train_epoch
        return tiny_data.call("train", *train_words(*more), cwd=home)

    child = Child(work, said)
    child.reach()
    return child


def names_it(line: str, folder: str, pid: int) -> None:
    since = time.strftime("%Y-%m-%d ", time.gmtime())
    for word in (folder, f"process {pid} on {socket.gethostname()}, since {since}", "UTC", "wait until it ends"):
        assert word in line, line


def test_a_second_training_of_a_fold_is_refused_and_other_folds_are_not(tiny_empty, tmp_path, capsys):
    folder = tiny_empty / "runs" / RUN / "fold0"
    with stopped_training(tiny_empty, tmp_path / "said", "--fold", "0") as child:
        before = {path: path.read_bytes() for path in folder.parent.rglob("*.*") if path.is_file()}
        for more in (("--fold", "0"), ("--fold", "0", "--resume"), ("--fold", "0", "--force"), (), ("--epochs", "3")):
            assert tiny_data.call("train", *train_words(*more), cwd=tiny_empty) == 2
            names_it(error_line(capsys.readouterr().err), f"runs/{RUN}/fold0: ", child.pid)
        assert before == {path: path.read_bytes() for path in before} and not (folder.parent / "fold1").exists()
        assert tiny_data.call("train", *train_words("--fold", "1"), cwd=tiny_empty) == 0
        child.go_on()
        assert child.wait() == 0, child.said.read_text()
    assert not list(tiny_empty.rglob(".*.lock")) or {path.name for path in tiny_empty.rglob(".*.lock")} == {
        ".ledger.csv.lock"
    }
    assert len(pd.read_csv(tiny_empty / "runs" / "ledger.csv")) == 2
    assert tiny_data.call("train", *train_words(), cwd=tiny_empty) == 0
    assert (folder.parent / "post.json").is_file() and "finished before" in capsys.readouterr().out


def test_other_folds_are_refused_before_the_first_checkpoint(tiny_empty, tmp_path, capsys):
    """The run's folds.csv is that of the training which holds one of its folds, though nothing is saved yet."""
    made = ("make_folds", "--data", "data", "--folds", "3", "--out", "three.csv")
    assert tiny_data.call(*made, cwd=tiny_empty) == 0
    own = tiny_empty / "runs" / RUN / "folds.csv"
    with stopped_training(tiny_empty, tmp_path / "said", "--fold", "0", "--save-every", "2") as child:
        for path in own.parent.rglob("*.pt"):  # as if it were in its first epoch
            path.unlink()
        before = own.read_bytes()
        assert tiny_data.call("train", *train_words("--fold", "1", "--folds", "three.csv"), cwd=tiny_empty) == 2
        assert "begun with other folds" in error_line(capsys.readouterr().err)
        assert own.read_bytes() == before
        child.kill()
    assert tiny_data.call("train", *train_words("--fold", "1", "--folds", "three.csv"), cwd=tiny_empty) == 0


def test_a_crash_leaves_no_lock_even_where_a_fork_lives_on(tiny_empty, tmp_path):
    """A loader's worker sees seconds later that its training was killed."""

    def work(say):
        def train_epoch(trainer, epoch):
            if os.fork() == 0:
                signal.pause()
            say()

        loop.Trainer.train_epoch = train_epoch
        return tiny_data.call("train", *train_words("--fold", "0"), cwd=tiny_empty)

    with Child(work, tmp_path / "said") as child:
        child.reach()
        (fork,) = children_of(child.pid)
        child.kill()
        assert Path(f"/proc/{fork}/stat").read_text().rpartition(")")[2].split()[0] == "S"
        lock = side_store.lock_of(tiny_empty / "runs" / RUN / "fold0" / holding.WRITER)
        assert json.loads(lock.read_text())["pid"] == child.pid, "the dead one's lock file lies there"
        assert tiny_data.call("train", *train_words("--fold", "0"), cwd=tiny_empty) == 0
        assert not lock.exists()


def test_a_lock_whose_file_was_removed_before_it_was_ours_is_none(tmp_path, monkeypatch):
    """The holder before us removes it between our open and our lock: the next one would lock another file."""
    lock, original, calls = side_store.lock_of(tmp_path / holding.WRITER), side_store.lock_now, []

    def lock_now(file, shared=False):
        calls.append(file)
        if len(calls) == 1:
            lock.unlink()
        return original(file, shared)

    monkeypatch.setattr(side_store, "lock_now", lock_now)
    with holding.hold(tmp_path, "go"):
        assert len(calls) == 2 and holding.is_held(tmp_path)


PLACES = {
    "infer": (infer_script, "predict_sets", ("--runs", RUN, "--data", "data", "--workers", "0", "--out", "preds/x")),
    "ensemble": (ensemble_script, "do_asked", ("--runs", RUN, "--no-report", "--out", "out/x")),
}


@pytest.mark.parametrize("script", PLACES)
def test_a_second_call_with_the_same_out_is_refused(tiny_copy, tmp_path, capsys, script):
    module, name, words = PLACES[script]

    def work(say):
        original = getattr(module, name)
        setattr(module, name, lambda *given: (say(), original(*given))[1])
        return tiny_data.call(script, *words, cwd=tiny_copy)

    with Child(work, tmp_path / "said") as child:
        child.reach()
        assert tiny_data.call(script, *words, cwd=tiny_copy) == 2
        names_it(error_line(capsys.readouterr().err), f"{words[-1]}: ", child.pid)
        assert tiny_data.call(script, *words[:-1], "elsewhere", cwd=tiny_copy) == 0
        if script == "ensemble":  # writes post.json of the run alone
            assert tiny_data.call(script, "--runs", RUN, "--fit-post", cwd=tiny_copy) == 0
        child.kill()
    assert tiny_data.call(script, *words, cwd=tiny_copy) == 0
    assert not list((tiny_copy / words[-1]).glob(".*")) and (tiny_copy / words[-1]).is_dir()


def rank(number: int, port: int, home: Path, words: tuple, say) -> int:
    """One of two processes that share the batches, as torchrun starts them."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    original = loop.Trainer.train_epoch

    def train_epoch(trainer, epoch):
        if epoch == 1 and number == 0:
            say()
        return original(trainer, epoch)

    loop.Trainer.train_epoch = train_epoch
    return tiny_data.call("train", *words, cwd=home)


def test_of_two_processes_that_share_the_batches_the_first_holds_the_fold(tiny_empty, tmp_path, capsys):
    from children import free_port

    port, words = free_port(), train_words("--fold", "0")
    with (
        Child(lambda say: rank(0, port, tiny_empty, words, say), tmp_path / "first") as first,
        Child(lambda say: rank(1, port, tiny_empty, words, say), tmp_path / "second") as second,
    ):
        first.reach()
        assert tiny_data.call("train", *words, cwd=tiny_empty) == 2
        names_it(error_line(capsys.readouterr().err), f"runs/{RUN}/fold0: ", first.pid)
        first.go_on()
        assert (first.wait(), second.wait()) == (0, 0), first.said.read_text() + second.said.read_text()
    assert "2 processes" in first.said.read_text() and (tiny_empty / "runs" / RUN / "fold0" / "finished.json").is_file()


def test_a_folder_is_held_once_and_given_back(tmp_path):
    folder = tmp_path / "deep" / "folder"
    with holding.hold(folder, "go"):
        assert holding.is_held(folder)
        with pytest.raises(InputError, match=f"process {os.getpid()} on .*; stop"), holding.hold(folder, "stop"):
            pytest.fail("held twice")
        assert holding.is_held(folder), "a refusal frees nothing"
    assert not holding.is_held(folder) and not folder.exists(), "made for the lock alone"
    with pytest.raises(ZeroDivisionError), holding.hold(folder, "go"):
        (folder / "file").write_text("written")
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["file"] and not holding.is_held(folder)
    with pytest.raises(InputError), holding.hold(folder, "go"), holding.hold_all([tmp_path / "a", folder], "no", HERE):
        pytest.fail("held twice")
    assert not (tmp_path / "a").exists(), "of several folders all are held or none"


def test_only_the_first_process_holds(tmp_path):
    with holding.hold_all([tmp_path / "a"], "no", Machine("cpu", rank=1, world=2)):
        assert not holding.is_held(tmp_path / "a")
    with holding.hold_all([tmp_path / "a"], "no", HERE):
        assert holding.is_held(tmp_path / "a")


@pytest.mark.parametrize("note", ["", "no JSON", "[1]", '{"pid": "4711", "host": "h", "since": "s"}'])
def test_a_holder_whose_note_says_nothing(tmp_path, monkeypatch, note):
    monkeypatch.setattr(holding, "PAUSE", 0.0)
    with holding.hold(tmp_path, "go"):
        side_store.lock_of(tmp_path / holding.WRITER).write_text(note)
        with pytest.raises(InputError, match="by another process; wait"), holding.hold(tmp_path, "wait"):
            pytest.fail("held twice")


def test_a_note_of_the_dead_is_not_believed(tmp_path, monkeypatch):
    """Between its lock and its note a holder has that of the process before: it is looked at again."""
    dead, _ = end(lambda: 0, tmp_path / "said"), None
    lock, looks = side_store.lock_of(tmp_path / holding.WRITER), []
    old = {"pid": 2**22 + 1, "host": socket.gethostname(), "since": "long ago"}
    with holding.hold(tmp_path, "go"):
        own = lock.read_text()
        lock.write_text(json.dumps(old))
        monkeypatch.setattr(holding.time, "sleep", lambda seconds: (looks.append(seconds), lock.write_text(own)))
        with pytest.raises(InputError, match=f"process {os.getpid()} on"), holding.hold(tmp_path, "wait"):
            pytest.fail("held twice")
    assert len(looks) == 1 and dead[0] == 0


def test_a_file_system_without_locks_refuses_nobody(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with holding.hold(tmp_path, "go"), holding.hold(tmp_path, "go"):
        assert not holding.is_held(tmp_path)
    with runs.locked(tmp_path / "ledger.csv"), runs.locked(tmp_path / "ledger.csv"):
        pass


def test_a_full_disk_has_no_room_for_a_name_and_needs_none(tmp_path, small_disk):
    """The work may yet fit: a map that is finished is only looked at."""
    (small_disk / "filled").write_bytes(bytes(200_000))
    with open(small_disk / "filled", "ab", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    with holding.hold(small_disk, "go"):
        assert holding.is_held(small_disk)


def count_up(folder: Path, times: int, seed: int) -> int:
    """Add to a number in a file by reading it, waiting and writing it: numbers are lost where two do it at once."""
    draw, path = random.Random(seed), folder / "number"
    while times:
        try:
            with holding.hold(folder, "again"):
                value = int(path.read_text())
                time.sleep(draw.random() * 2e-4)
                path.write_text(str(value + 1))
            times -= 1
        except InputError:
            time.sleep(draw.random() * 2e-3)
    return 0


@pytest.mark.parametrize("processes, times", [(3, 20), pytest.param(6, 300, marks=pytest.mark.soak)])
def test_of_many_processes_one_writes_at_a_time(tmp_path, monkeypatch, processes, times):
    monkeypatch.setattr(holding, "PAUSE", 1e-3)
    (tmp_path / "number").write_text("0")
    children = [
        Child(lambda _, seed=seed: count_up(tmp_path, times, seed), tmp_path / f"said{seed}")
        for seed in range(processes)
    ]
    for child in children:
        with child:
            assert child.wait() == 0, child.said.read_text()
    assert int((tmp_path / "number").read_text()) == processes * times
