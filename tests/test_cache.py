"""Cache folders and atomic writes: whole or absent, whatever happens while they are made."""

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import files
from common.datasets import cache
from common.datasets.cache import cached_folder, content_hash
from common.errors import InputError
from common.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent


def names(folder: Path) -> list[str]:
    """What a user would see, without the lock files."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def write_one(folder: Path) -> None:
    (folder / "a.txt").write_text("whole")


def test_content_hash_is_of_the_content(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"grass" * 10_000)
    two.write_bytes(b"grass" * 10_000)
    assert content_hash(one) == hashlib.blake2b(b"grass" * 10_000, digest_size=16).hexdigest() == content_hash(two)
    two.write_bytes(b"grass" * 9_999 + b"grasS")
    assert content_hash(one) != content_hash(two)
    with pytest.raises(InputError, match="absent"):
        content_hash(tmp_path / "absent")


def test_folder_is_built_once_per_inputs(tmp_path):
    calls = []

    def build(folder):
        calls.append(folder)
        write_one(folder)

    first = cached_folder(tmp_path, "photos", {"b": 2, "a": [1, "x"]}, build)
    assert cached_folder(tmp_path, "photos", {"a": [1, "x"], "b": 2}, build) == first
    assert len(calls) == 1 and (first / "a.txt").read_text() == "whole"
    assert json.loads((first / "inputs.json").read_text()) == {"a": [1, "x"], "b": 2}
    others = {
        cached_folder(tmp_path, "photos", {"a": [1, "y"], "b": 2}, build),
        cached_folder(tmp_path, "photos", {"a": [1, "x"], "b": 3}, build),
        cached_folder(tmp_path, "tiles", {"a": [1, "x"], "b": 2}, build),
    }
    assert len(others | {first}) == 4 and len(calls) == 4


def test_force_builds_anew_and_replaces(tmp_path):
    folder = cached_folder(tmp_path, "k", {}, lambda f: (f / "old").touch())
    assert cached_folder(tmp_path, "k", {}, lambda f: (f / "new").touch(), force=True) == folder
    assert names(folder) == ["inputs.json", "new"] and names(tmp_path) == [folder.name]


def test_failed_build_leaves_nothing_and_the_old_folder(tmp_path):
    def fail(folder):
        write_one(folder)
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        cached_folder(tmp_path, "k", {}, fail)
    assert names(tmp_path) == []
    folder = cached_folder(tmp_path, "k", {}, write_one)
    with pytest.raises(ValueError):
        cached_folder(tmp_path, "k", {}, fail, force=True)
    assert (folder / "a.txt").read_text() == "whole" and names(tmp_path) == [folder.name]


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def build(folder):
        write_one(folder)
        full()

    with pytest.raises(InputError, match="no space left") as caught:
        cached_folder(tmp_path / "c", "k", {}, build)
    assert "\n" not in str(caught.value) and "--cache" in str(caught.value)
    assert names(tmp_path / "c") == []
    target = atomic_write(tmp_path / "t.csv", "old")
    with pytest.raises(InputError, match=r"t\.csv: no space left"):
        atomic_write(target, lambda t: (t.write_text("ne"), full()))
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="no space left"):
        atomic_write(target, "new")
    assert target.read_text() == "old" and names(tmp_path) == ["c", "t.csv"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_that_is_full_says_so(tmp_path):
    with pytest.raises(InputError, match="no space left"):
        atomic_write(tmp_path / "x", lambda t: open("/dev/full", "wb", buffering=0).write(b"x"))


def build_slowly(root: str, log: str) -> None:
    def build(folder):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        (folder / "part").write_text("1")
        time.sleep(0.3)
        (folder / "rest").write_text("2")

    folder = cached_folder(root, "k", {"n": 1}, build)
    assert names(folder) == ["inputs.json", "part", "rest"]


@pytest.mark.skipif(cache.fcntl is None, reason="no file locks")
def test_two_processes_build_once(tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=build_slowly, args=(str(tmp_path / "c"), str(log))) for _ in range(3)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0, 0]
    assert len(log.read_text().split()) == 1 and len(names(tmp_path / "c")) == 1


@pytest.mark.parametrize("locks", [True, False])
def test_without_locks_the_second_builder_keeps_the_first_ones_folder(tmp_path, monkeypatch, locks):
    monkeypatch.setattr(cache, "fcntl", cache.fcntl if locks else None)

    def build(folder):
        if not locks:  # another process finishes while this one builds
            other = tmp_path / f"k-{cache.inputs_hash('k', {})}"
            other.mkdir()
            (other / "inputs.json").write_text("{}")
        write_one(folder)

    folder = cached_folder(tmp_path, "k", {}, build)
    assert names(tmp_path) == [folder.name] and (folder / "inputs.json").is_file()


def test_leftovers_of_killed_builds_and_writes_are_removed(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from common.datasets.cache import cached_folder; from common.files import atomic_write\n"
        "def die(t): (t / 'half' if t.is_dir() else t).write_text('ha'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "root = Path(sys.argv[1])\n"
        "cached_folder(root, 'k', {'n': 2}, die) if sys.argv[2] == 'folder' else atomic_write(root / 'f.csv', die)\n"
    )
    for what in ("folder", "file"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), what], cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
    assert len([n for n in names(tmp_path) if n.startswith(".tmp-")]) == 2
    mine = files.temporary_sibling(tmp_path / "f.csv")
    mine.write_text("being written by a process that lives")
    folder = cached_folder(tmp_path, "k", {"n": 1}, write_one)  # of the same kind, with other inputs
    atomic_write(tmp_path / "f.csv", "whole")
    assert names(tmp_path) == sorted([mine.name, "f.csv", folder.name])


def test_atomic_write_takes_bytes_text_and_functions(tmp_path):
    assert atomic_write(tmp_path / "new" / "a.bin", b"\x00\x01").read_bytes() == b"\x00\x01"
    assert atomic_write(str(tmp_path / "b.txt"), "grün").read_bytes() == "grün".encode()
    seen = []
    atomic_write(tmp_path / "c.npz", lambda t: (seen.append(t), t.write_bytes(b"z")))
    assert seen[0].suffix == ".npz" and seen[0].parent == tmp_path and not seen[0].exists()
    with pytest.raises(KeyError):
        atomic_write(tmp_path / "b.txt", lambda t: {}["absent"])
    assert names(tmp_path) == ["b.txt", "c.npz", "new"]


def test_inputs_must_be_plain(tmp_path):
    with pytest.raises(TypeError):
        cached_folder(tmp_path, "k", {"path": object()}, write_one)
