"""The clock set back, or far ahead: no negative seconds, no other bytes, no wrong word of a cache or a lock."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_data

from common.datasets import band_tiles
from common.datasets.cache import cached_folder, remembered_hash
from common.engine import holding
from common.errors import InputError
from common.tasks import scene_jobs

RUN = "biomass-1x1-s42"
HOUR = 3600.0


class Clock:
    """time.time of a machine whose clock is moved by so many seconds at every look."""

    def __init__(self, step: float):
        self.now, self.step, self.looks = time.time(), step, 0

    def __call__(self) -> float:
        self.now += self.step
        self.looks += 1
        return self.now


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_a_training_does_not_look_at_the_clock(tiny_home, tiny_empty, monkeypatch, step):
    """Seconds are those that went by, and of a budget of time none are lost or won."""
    monkeypatch.setattr(time, "time", Clock(step))
    started = time.monotonic()
    tiny_data.train(tiny_empty, "--fold", "0", "--time-budget", "30m")
    went_by = time.monotonic() - started
    folder = tiny_empty / "runs" / RUN / "fold0"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    facts = json.loads((folder / "finished.json").read_text())
    ledger = pd.read_csv(tiny_empty / "runs" / "ledger.csv")
    seconds = [facts["seconds"], *ledger["seconds"], *(line["sec"] for line in lines)]
    assert len(seconds) == 4 and all(0 <= one <= went_by + 0.1 for one in seconds), seconds
    whole = tiny_home / "runs" / RUN / "fold0"
    assert (folder / "oof.csv").read_bytes() == (whole / "oof.csv").read_bytes()


def older(path: Path, by: float = HOUR) -> None:
    """The file's time of change as of a machine whose clock was set back."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - int(by * 1e9)))


def test_a_file_changed_under_a_clock_that_was_set_back_is_read_again(tmp_path):
    """Times are compared for being equal: an older one means a change as much as a newer one."""
    path = tmp_path / "data.bin"
    path.write_bytes(b"before")
    first = remembered_hash(path)
    path.write_bytes(b"beyond")  # as long
    older(path)
    assert remembered_hash(path) != first
    np.save(tmp_path / "tile.npy", np.zeros(4))
    state = band_tiles.stamp(tmp_path / "tile.npy")
    facts = scene_jobs.files_of(path)
    older(tmp_path / "tile.npy")
    older(path)
    assert band_tiles.stamp(tmp_path / "tile.npy") != state and scene_jobs.files_of(path) != facts


def test_a_cache_is_no_older_for_a_clock_that_was_set_back(tmp_path, monkeypatch):
    """What a cache holds is named by content: neither its age nor that of its parts counts."""
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "part").write_text(str(len(built)))

    first = cached_folder(tmp_path, "kind", {"of": "inputs"}, build)
    for path in (first, *first.iterdir()):
        older(path, 1e9)
    monkeypatch.setattr(time, "time", Clock(-HOUR))
    assert cached_folder(tmp_path, "kind", {"of": "inputs"}, build) == first and len(built) == 1
    assert cached_folder(tmp_path, "kind", {"of": "others"}, build) != first and len(built) == 2


@pytest.mark.parametrize("step", [-1e8, 1e8])
def test_a_lock_is_neither_too_old_nor_of_the_future(tmp_path, monkeypatch, step):
    monkeypatch.setattr(time, "time", Clock(step))
    with holding.hold(tmp_path, "go"):
        older(tmp_path / ".writer.lock", -step)
        with pytest.raises(InputError, match=f"process {os.getpid()}"), holding.hold(tmp_path, "wait"):
            pytest.fail("held twice")
    with holding.hold(tmp_path, "go"):
        assert holding.is_held(tmp_path)
