"""Two processes end with what one ends with on tiles: sums of Dice and MCC, the sampler's shares, validation, maps."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_rts
import tiny_tiles
import torch
from children import together
from test_sampler_processes import of_run, same_training
from tiny_tiles import log_of

from common.engine.checkpoint import load_checkpoint
from common.engine.device import seed_everything
from common.tasks import TASKS

# 9 crops and 5 validation tiles in batches of 4: the last of either has one, so that the second process gets padding
PLAIN = (*tiny_tiles.SMALL, "--data", "data", "--fold", "1", "--amp", "off", "--augment", "--crops-per-epoch", "9",
         "--epochs", "2", "--warmup-epochs", "0")  # fmt: skip
SHARES = ("--sampler", "balanced", "--target-shares", ".3", ".3", ".3", ".1")
RUNS = {
    "B": ("--loss", "B", "--ramp-epochs", "2", "--schedule", "plateau", "--plateau-patience", "0"),
    "shares": (*SHARES, "--loss", "A", "--crops-per-epoch", "73", "--accumulate", "2", "--grad-clip", ".5"),
    "others": ("--loss", "tversky=.5", "dice=.5", "--augment", "hflip=.5", "rot90=.5", "noise=.5"),
}
OTHER_TASKS = (("rts", "ramp"),)  # a sampler that this task has not; all of them are soaked


def arguments(name: str, run: str) -> list[str]:
    return [*PLAIN, *RUNS[name], "--run", run]


@pytest.fixture(scope="module")
def home(tiles_home, tmp_path_factory) -> Path:
    """A working folder with <name>-one and <name>-two, trained by one process and by two, without batch norm."""
    home = tmp_path_factory.mktemp("processes")
    (home / "data").symlink_to(tiles_home / "data")
    tiny_rts.make_rts(home / "rts")
    with pytest.MonkeyPatch.context() as patch:
        tiny_tiles.patch_models(patch.setattr)
        for name in RUNS:
            tiny_tiles.call(home, "train", *arguments(name, f"{name}-one"))
        for task, name in OTHER_TASKS:
            tiny_tiles.call(home, "make_folds", "--task", task, "--data", task)
            tiny_tiles.call(home, "train", *of_run(task, name, "one"))
    others = [of_run(task, name, "two") for task, name in OTHER_TASKS]
    runs = [*(arguments(name, f"{name}-two") for name in RUNS), *others]
    said = together(lambda: tiny_tiles.train_all(home, runs), home)
    assert "2 processes" in said and "batch norm: statistics per process" not in said
    return home


def both(home: Path, name: str) -> list[Path]:
    return [home / "runs" / f"{name}-{count}" / "fold1" for count in ("one", "two")]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(home, monkeypatch, name):
    tiny_tiles.patch_models(monkeypatch.setattr)
    one, two = (load_checkpoint(folder / "last.pt") for folder in both(home, name))
    assert one["global_step"] == two["global_step"] > 0
    seed_everything(42)
    start = TASKS["glacier"].build_model(one["spec"]).state_dict()
    assert not any("running" in key for key in start)
    for part in ("state_dict", "ema"):
        assert one[part].keys() == two[part].keys() == start.keys()
        for key, value in one[part].items():
            moved = (value.double() - start[key].double()).norm()
            apart = (value.double() - two[part][key].double()).norm()
            assert apart <= 2e-3 * moved + 1e-6, f"{part} {key}: {apart} of {moved}"
    assert any(not torch.equal(one["state_dict"][key], start[key]) for key in start)


@pytest.mark.parametrize("name", RUNS)
def test_losses_scores_and_shares_are_of_all_crops(home, name):
    one, two = (log_of(folder) for folder in both(home, name))
    keys = [key for key in one[0] if key.startswith("train_") or key in ("score", "mcc_data", "mean_iou")]
    assert "train_shown_lake" in keys and len(keys) >= 9
    for key in keys:
        np.testing.assert_allclose([line[key] for line in two], [line[key] for line in one], rtol=1e-3, atol=1e-5)


def test_the_samplers_shares_hold_over_both(home):
    """What two processes showed comes within 3 points of the best attainable, for every class."""
    for folder in both(home, "shares"):
        facts = json.loads((folder / "finished.json").read_text())["facts"]
        assert facts["sampler"] == "balanced" and facts["target"] == pytest.approx([0.3, 0.3, 0.3, 0.1])
        for line in log_of(folder):
            shown = np.array([line[f"train_shown_{name}"] for name in facts["classes"]])
            np.testing.assert_allclose(shown / shown.sum(), facts["attainable"], atol=0.03)


@pytest.mark.parametrize("name", RUNS)
def test_every_tile_is_counted_and_kept_once(home, name):
    one, two = (pd.read_csv(folder / "oof_counts.csv", dtype={"id": str}) for folder in both(home, name))
    assert list(one["id"]) == list(two["id"]) and len(one) == 5 and one["id"].is_unique
    assert (one["nodata"] == two["nodata"]).all() and (one["nodata"] < 64 * 64).all()
    counts = one.filter(like="n_")
    assert (counts.sum(axis=1) + one["nodata"] == 64 * 64).all()
    np.testing.assert_allclose(two.filter(like="n_"), counts, atol=8)
    for tile in one["id"]:
        maps = [np.load(folder / "oof" / f"{tile}.npz") for folder in both(home, name)]
        np.testing.assert_allclose(maps[1]["prob"], maps[0]["prob"].astype(float), atol=4e-3)
        for key in ("valid", "target"):
            np.testing.assert_array_equal(maps[0][key], maps[1][key])


@pytest.mark.parametrize(("task", "name"), OTHER_TASKS)
def test_two_processes_equal_one_with_the_samplers_of_other_tasks(home, monkeypatch, task, name):
    """A ratio of rare tiles that rises from epoch to epoch."""
    tiny_tiles.patch_models(monkeypatch.setattr)
    same_training(task, [home / "runs" / f"{task}-{name}-{count}" / "fold0" for count in ("one", "two")])


def test_one_line_in_the_ledger(home):
    ledger = pd.read_csv(home / "runs" / "ledger.csv")
    names = [*RUNS, *(f"{task}-{name}" for task, name in OTHER_TASKS)]
    assert sorted(ledger["run"]) == sorted(f"{name}-{count}" for name in names for count in ("one", "two"))
