"""Kernels as they are built, run offline by the stand-in for Kaggle, on a hidden test set that nothing of them saw."""

import json
from pathlib import Path

import kaggle_sets
import kaggle_stand_in
import numpy as np
import pandas as pd
import pytest
import tiny_data
from kaggle_kernels import attached, build, script_of
from kaggle_stand_in import ROOT, place

SLUG, WEIGHTS = "csiro-biomass", "landfold-biomass-weights"
HIDDEN = ["IDh5", "IDa1", "IDz9", "IDb2", "IDk7"]
VIEWS = ("--tta", "hflip", "vflip", "swap")

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
print(os.listdir(os.environ["HOME"]), [name for name in ("common", "infer.py") if Path(sys.argv[1], name).exists()])
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


@pytest.fixture(scope="module")
def pasture(tmp_path_factory) -> Path:
    """A working folder: data/ with photos, runs/biomass-2x2 trained on it, hidden/ with the test set nobody saw, the
    built kernel and weights in built/."""
    home = tmp_path_factory.mktemp("pasture")
    tiny_data.make_tiny(home / "data")
    assert tiny_data.call("make_folds", "--data", "data", "--folds", "2", cwd=home) == 0
    run = tiny_data.train(home, "--run", "biomass-2x2")
    kaggle_sets.hide_photos(home / "data", home / "hidden", names=HIDDEN)
    (home / "hidden" / "folds.csv").unlink()  # of ours, the competition's files have none
    build(home / "built", "biomass-infer")
    build(home / "built", "--dataset", "weights", run)
    return home


def weights_of(home: Path) -> Path:
    return home / "built" / WEIGHTS


def values_of(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path).set_index("sample_id")
    assert table.index.is_unique
    return table.sort_index()


@pytest.mark.soak
def test_a_hidden_test_set_gets_what_infer_gives(pasture, tmp_path):
    """The kernel, offline, from slimmed weights in a read-only mount: the values of infer.py on the run itself."""
    mounts = attached("typed", competitions={SLUG: pasture / "hidden"}, data_sets={WEIGHTS: weights_of(pasture)})
    done = kaggle_stand_in.run(script_of(pasture / "built" / "biomass-infer"), tmp_path / "home", mounts)
    assert done.code == 0, done.said
    words = ("--runs", "biomass-2x2", "--data", "hidden", *VIEWS, "--out", tmp_path / "own")
    assert tiny_data.call("infer", *words, cwd=pasture) == 0
    own, handed = values_of(tmp_path / "own" / "submission.csv"), values_of(done.working / "submission.csv")
    assert list(handed.index) == sorted(f"{name}__{target}" for name in HIDDEN for target in tiny_data.OUTPUTS)
    np.testing.assert_allclose(handed["target"], own["target"], rtol=1e-5)
    assert own["target"].nunique() > len(HIDDEN)
    first = done.said.splitlines()[:3]
    assert "biomass-infer" in first[0] and any("GPU" in line for line in first)
    assert sorted(path.name for path in done.working.iterdir()) == ["preds", "submission.csv"]


@pytest.mark.soak
@pytest.mark.parametrize(("competitions", "said"), [
    ((), ("no test.csv in any mount", SLUG)),
    (("one", "two"), ("/kaggle/input/one", "/kaggle/input/two", "both hold test.csv")),
], ids=["no competition", "two that match"])  # fmt: skip
def test_mounts_of_the_competition_that_do_not_do(pasture, tmp_path, competitions, said):
    mounts = attached("flat", competitions={slug: pasture / "hidden" for slug in competitions},
                      data_sets={WEIGHTS: weights_of(pasture)})  # fmt: skip
    done = kaggle_stand_in.run(script_of(pasture / "built" / "biomass-infer"), tmp_path / "home", mounts)
    refused(done, *said)


def refused(done: kaggle_stand_in.Ended, *said: str) -> None:
    """The kernel ended with 2 and one line that says all this; nothing is handed in."""
    errors = [line for line in done.said.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(errors) == 1 and "Traceback" not in done.said, done.said
    assert all(text in errors[0] for text in said), errors[0]
    assert not (done.working / "submission.csv").exists()


def test_weights_that_are_not_there_and_those_that_are_there_twice(pasture, tmp_path):
    """Said before any script is started: the run is looked for in the mounts."""
    script, found = script_of(pasture / "built" / "biomass-infer"), weights_of(pasture)
    none = attached("models", competitions={SLUG: pasture / "hidden"})
    refused(kaggle_stand_in.run(script, tmp_path / "none", none), "no run folder biomass-2x2", "attach the data set")
    both = attached("models", competitions={SLUG: pasture / "hidden"}, data_sets={"first": found, "second": found})
    refused(kaggle_stand_in.run(script, tmp_path / "both", both), "/first/", "/second/", "biomass-2x2", "detach")


def test_a_notebook_says_what_a_script_says_and_fails_as_notebooks_do(pasture, tmp_path):
    built = build(tmp_path / "built", "biomass-infer", "--notebook")
    done = kaggle_stand_in.run(script_of(built), tmp_path / "home", {})
    assert done.code == 1 and "error: /kaggle/input: no run folder biomass-2x2 in any mount" in done.said
    assert "RuntimeError: ended with code 2" in done.said and "biomass-infer: version" in done.said


def test_a_script_that_was_damaged_on_its_way(pasture, tmp_path):
    text = script_of(pasture / "built" / "biomass-infer").read_text()
    at = text.index('PAYLOAD = """') + 2000
    damaged = tmp_path / "damaged.py"
    damaged.write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])
    refused(kaggle_stand_in.run(damaged, tmp_path / "home", {}), "PAYLOAD", "damaged", "build it again")
