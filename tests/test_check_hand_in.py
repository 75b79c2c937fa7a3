"""The last look at what a kernel hands in: right, wrong or absent, and where its data are found."""

import subprocess
import sys

import pandas as pd
import pytest
import tiny_data
import tiny_tiles
from conftest import ROOT

from common.datasets import locate
from common.errors import run_script
from kernels import check_hand_in


@pytest.fixture
def home(tmp_path):
    """data/ with three test photos, and out/ with a right submission."""
    data = tiny_data.make_tiny(tmp_path / "data", photos=2, groups=2)
    (tmp_path / "out").mkdir()
    asked = pd.read_csv(data / "test.csv")[["sample_id"]]
    asked.assign(target=1.5).to_csv(tmp_path / "out" / "submission.csv", index=False)
    return tmp_path


def check(*words) -> int:
    return run_script(check_hand_in.main, [str(word) for word in words])


def test_a_right_one_is_valid(home, capsys):
    assert check("biomass", home / "out", "--data", home / "data") == 0
    assert capsys.readouterr().out.endswith(f"holds for biomass, checked against {home / 'data'}\n")


SPOILS = {
    "short": lambda table: table.iloc[1:],
    "empty": lambda table: table.assign(target=float("nan")),
    "order": lambda table: table.iloc[::-1],
    "column": lambda table: table.rename(columns={"target": "y"}),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_wrong_one_is_not(home, spoil, capsys):
    path = home / "out" / "submission.csv"
    SPOILS[spoil](pd.read_csv(path)).to_csv(path, index=False)
    assert check("biomass", home / "out", "--data", home / "data") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error


def test_an_absent_one_is_not(home, capsys):
    (home / "out" / "submission.csv").unlink()
    assert check("biomass", home / "out", "--data", home / "data") == 2
    assert "submission.csv" in capsys.readouterr().err
    assert check("biomass", home / "nowhere", "--data", home / "data") == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_masks_are_asked_for_where_the_task_hands_in_masks(home, capsys):
    tiny_tiles.make_tiles(home / "tiles", tiles=2)
    assert check("glacier", home / "out", "--data", home / "tiles") == 2
    assert "masks" in capsys.readouterr().err


def test_the_data_are_found_in_the_mounts(home, monkeypatch, capsys):
    mount = home / "input" / "competitions" / "csiro-biomass"
    mount.parent.mkdir(parents=True)
    (home / "data").rename(mount)
    monkeypatch.setattr(locate, "KAGGLE_INPUT", home / "input")
    assert check("biomass", home / "out") == 0
    assert f"checked against {mount}" in capsys.readouterr().out


@pytest.mark.soak
def test_it_is_called_by_its_path_from_anywhere(home):
    """As a kernel calls it: neither the folder nor the path of Python knows of the code."""
    command = [sys.executable, ROOT / "kernels" / "check_hand_in.py", "biomass", "out", "--data", "data"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("valid: ")
