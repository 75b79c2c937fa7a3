"""Kernels as they are built, run offline by the stand-in for Kaggle, on a hidden test set that nothing of them saw."""

import json

import kaggle_stand_in
import pytest
from kaggle_stand_in import ROOT, place

LOOK = """
import os, socket, sys
from pathlib import Path
for path in ("/kaggle/input/a/x", "/kaggle/input/x", "/etc/x", "/kaggle/working/x", "/tmp/x"):
    try:
        Path(path).write_text("x")
        print("writes", path)
    except OSError:
        print("reads", path)
try:
    socket.create_connection(("1.1.1.1", 53), 2)
except OSError as error:
    print("no network")
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
print(os.getcwd(), Path("/kaggle/input/a/b.txt").read_text(), sorted(set(os.environ) - {"LC_CTYPE"}))
print(os.listdir(os.environ["HOME"]), os.listdir(sys.argv[1]))
sys.exit(5)
"""


@pytest.fixture(scope="module", autouse=True)
def offline():
    if why := kaggle_stand_in.why_not():
        pytest.skip(why)


def test_the_stand_in_is_like_kaggle(tmp_path):
    """Mounts are read-only, there is no network but the loopback, and neither variables nor repository are seen."""
    script, mount = tmp_path / "look.py", tmp_path / "mount"
    script.write_text(LOOK)
    mount.mkdir()
    (mount / "b.txt").write_text("text")
    done = kaggle_stand_in.run(script, tmp_path / "home", {"a": mount}, words=[ROOT], timeout=60)
    assert done.code == 5
    *paths, network, where, seen = done.said.splitlines()
    assert [line.split()[0] for line in paths] == ["reads", "reads", "reads", "writes", "writes"]
    assert network == "no network"
    assert where == "/kaggle/working text ['HOME', 'KAGGLE_KERNEL_RUN_TYPE', 'PATH']"
    assert seen == "[] []"
    assert (done.working / "x").read_text() == "x" and sorted(p.name for p in mount.iterdir()) == ["b.txt"]


def test_the_stand_in_runs_the_cells_of_a_notebook(tmp_path):
    cells = [{"cell_type": "markdown", "source": ["text"]}, {"cell_type": "code", "source": ["a = 1\n", "b = 2"]},
             {"cell_type": "code", "source": ["print(a + b, __name__)\n", "raise RuntimeError('over')"]}]  # fmt: skip
    (tmp_path / "book.ipynb").write_text(json.dumps({"cells": cells}))
    done = kaggle_stand_in.run(tmp_path / "book.ipynb", tmp_path / "home", {}, timeout=60)
    assert done.code == 1 and "3 __main__" in done.said.splitlines() and "RuntimeError: over" in done.said


def test_the_three_layouts():
    assert place("flat", "competition", "a") == "a" and place("flat", "data set", "b") == "b"
    assert place("typed", "competition", "a") == "competitions/a"
    assert place("typed", "data set", "b", "me") == "datasets/me/b"
    assert place("models", "data set", "b", "me") == "models/me/b/pytorch/default/1"
