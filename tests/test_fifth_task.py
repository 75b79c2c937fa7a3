"""The test of the seams: a competition that nobody foresaw goes through the four scripts, which stay as they are."""

import json
from pathlib import Path

import moon_task
import pandas as pd
import pytest
import tiny_data

from common.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def moon(monkeypatch, tmp_path):
    """A working folder of the toy task, with its demo set as data."""
    monkeypatch.setitem(TASKS, "moon", moon_task.TASK)
    moon_task.make_demo(tmp_path / "data")
    return tmp_path


def call(home, script, *words, code=0):
    assert tiny_data.call(script, *words, cwd=home) == code


def test_it_goes_through_all_four_scripts(moon, capsys):
    given = ("--task", "moon", "--data", "data")
    call(moon, "make_folds", *given, "--folds", "2")
    assert "40 tiles in 8 visits" in capsys.readouterr().out
    call(moon, "train", *given, "--fold", "0", "--check")
    assert "one step: loss" in capsys.readouterr().out
    call(moon, "train", *given)
    call(moon, "train", *given, "--hidden", "16", "--seed", "3", "--ema-decay", "0", "--accumulate", "2")
    out = capsys.readouterr().out
    assert "epoch  12/12" in out and "all 2 folds: out-of-fold score 0.9" in out
    # the task of a run is known from the run
    for run in ("moon-8-s42", "moon-16-s3"):
        call(
            moon, "infer", "--runs", run, "--data", "data", "--tta", "hflip", "--out", f"preds/{run}", "--workers", "0"
        )
        call(moon, "infer", "--runs", run, "--data", "data", "--rows", "oof", "--out", f"back/{run}", "--workers", "0")
        oof = pd.concat([pd.read_csv(moon / "runs" / run / f"fold{k}" / "oof.csv") for k in (0, 1)], ignore_index=True)
        back = pd.read_csv(moon / "back" / run / "oof.csv")[oof.columns]
        pd.testing.assert_frame_equal(back, oof, rtol=1e-6, check_dtype=False)
    both = ("--runs", "moon-8-s42", "moon-16-s3")
    call(moon, "ensemble", *both, "--save-blend", "blend.json", "--out", "out")
    assert "HONEST     0.9" in capsys.readouterr().out and (moon / "out" / "report.html").is_file()
    call(moon, "ensemble", "--task", "moon", "--preds", "preds/moon-8-s42", "preds/moon-16-s3", "--blend", "blend.json",
         "--data", "data", "--out", "final")  # fmt: skip
    handed = pd.read_csv(moon / "final" / "moon.csv")
    assert list(handed["id"]) == [f"t{k}" for k in range(40, 45)] and handed.notna().all(axis=None)
    call(moon, "ensemble", *both, "--compare")
    assert list(pd.read_csv(moon / "out" / "compare.csv")["set"]) == ["moon-8-s42", "moon-16-s3"]
    (moon / "runs" / "moon-8-s42" / "post.json").unlink()
    call(moon, "ensemble", "--runs", "moon-8-s42", "--fit-post")
    assert json.loads((moon / "runs" / "moon-8-s42" / "post.json").read_text())["top"] > 3
    call(moon, "ensemble", "--task", "moon", "--oof", "back/moon-8-s42/oof.csv", "--truth", "data/train.csv")


def test_its_options_are_its_own(moon, capsys):
    call(moon, "train", "--task", "moon", "--data", "data", "--grid", "2", "2", code=2)
    assert "unknown option --grid" in capsys.readouterr().err
    call(moon, "train", "--task", "biomass", "--data", "data", "--hidden", "4", code=2)
    with pytest.raises(SystemExit):
        tiny_data.call("train", "--task", "moon", "--data", "data", "--help", cwd=moon)
    said = capsys.readouterr().out
    assert "--hidden" in said and "--grid" not in said and "--cell-size" not in said


def test_it_falls_back_on_its_own_demo_set(moon, capsys):
    call(moon, "train", "--task", "moon", "--fold", "0")
    assert "DEMO DATA" in capsys.readouterr().out
    assert (moon / "runs" / "moon-8-s42" / "fold0" / "finished.json").is_file()
    assert len(list((moon / "cache").glob("demo-moon-*"))) == 1


def test_it_resumes_and_is_refused_like_any_other(moon, capsys):
    given = ("--task", "moon", "--data", "data", "--fold", "0")
    call(moon, "train", *given)
    folder = moon / "runs" / "moon-8-s42" / "fold0"
    (folder / "finished.json").unlink()
    call(moon, "train", *given, "--resume")
    assert (folder / "finished.json").is_file()
    call(moon, "train", *given, "--lr", ".5", code=2)
    call(moon, "infer", "--task", "biomass", "--runs", "moon-8-s42", "--data", "data", code=2)
    (moon / "data" / "tiles" / "t3.npy").unlink()
    call(moon, "train", *given, "--run", "other", code=2)
    assert "t3.npy: tile is missing" in capsys.readouterr().err
