"""Checkpoints for inference alone: the weights in use, the same predictions, nothing that training could go on from."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import tiny_data
import torch
import yaml

from common.engine.checkpoint import (
    TRAINING,
    build,
    checkpoint_file,
    load_checkpoint,
    load_training,
    save_external,
    slim_checkpoint,
)
from common.errors import InputError
from common.tasks import TASKS

RUN = "biomass-1x1-s42"


@pytest.fixture
def fold(tiny_home) -> Path:
    return tiny_home / "runs" / RUN / "fold0"


@pytest.mark.parametrize("use", ["ema", "last", "best"])
def test_it_keeps_the_weights_in_use_and_nothing_of_training(tmp_path, fold, use):
    path = checkpoint_file(fold, use)
    target = slim_checkpoint(path, tmp_path / path.name, use)
    content, whole = load_checkpoint(target), load_checkpoint(path)
    assert content["use"] == use and not set(content) & TRAINING
    assert set(content) == set(whole) - TRAINING | {"use"}, "the header is kept whole"
    for key in ("spec", "args", "folds_hash", "fold", "epoch", "score"):
        assert content[key] == whole[key]
    tensors = sum(value.numel() * value.element_size() for value in content["state_dict"].values())
    assert target.stat().st_size < tensors + 200_000, "one state dict and some text"
    ours, theirs = (build(one, TASKS, use=use)[0].state_dict() for one in (target, path))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_other_weights_than_those_kept_are_refused(tmp_path, fold):
    target = slim_checkpoint(fold / "last.pt", tmp_path / "last.pt", "ema")
    with pytest.raises(InputError, match="--use ema alone, not of --use last; give --use ema") as error:
        build(target, TASKS, use="last")
    assert str(target) in str(error.value)
    with pytest.raises(InputError, match="not of --use last"):
        slim_checkpoint(target, tmp_path / "again.pt", "last")
    with pytest.raises(InputError, match="holds the best epoch alone, not --use ema; give last.pt"):
        slim_checkpoint(fold / "best.pt", tmp_path / "again.pt", "ema")
    assert not (tmp_path / "again.pt").exists()


def test_a_slim_one_is_made_slim_again_to_the_same_content(tmp_path, fold):
    first = slim_checkpoint(fold / "last.pt", tmp_path / "a" / "last.pt", "ema")
    again = load_checkpoint(slim_checkpoint(first, tmp_path / "b" / "last.pt", "ema"))
    assert again.keys() == load_checkpoint(first).keys() and again["use"] == "ema"
    state = load_checkpoint(first)["state_dict"]
    assert all(torch.equal(again["state_dict"][key], state[key]) for key in state)


def test_training_does_not_go_on_from_it(tmp_path, fold):
    assert load_training(fold / "last.pt")["optimizer"]
    slim = slim_checkpoint(fold / "last.pt", tmp_path / "last.pt", "ema")
    for path in (slim, fold / "best.pt"):
        with pytest.raises(InputError, match="no training goes on; copy the run's own last.pt, or --force") as error:
            load_training(path)
        assert str(path) in str(error.value)


def test_without_an_average_the_weights_are_those_of_the_last_epoch(tmp_path, fold):
    content = load_checkpoint(fold / "last.pt")
    torch.save({**content, "ema": None}, tmp_path / "last.pt")
    slim = load_checkpoint(slim_checkpoint(tmp_path / "last.pt", tmp_path / "slim.pt", "ema"))
    key = next(iter(slim["state_dict"]))
    assert torch.equal(slim["state_dict"][key], content["state_dict"][key])


def test_a_frozen_backbone_still_lies_beside_the_folds(tmp_path, fold):
    whole = load_checkpoint(fold / "last.pt")
    prefix, run = "backbone.", tmp_path / "run"
    frozen = {key: value for key, value in whole["ema"].items() if key.startswith(prefix)}
    assert frozen
    rest = {key: value for key, value in whole["ema"].items() if not key.startswith(prefix)}
    run.joinpath("fold0").mkdir(parents=True)
    name = save_external(run, {key.removeprefix(prefix): value for key, value in frozen.items()}, "a" * 64)
    facts = {"prefix": prefix, "file": name, "sha256": "a" * 64}
    torch.save({**whole, "ema": rest, "state_dict": rest, "external": facts}, run / "fold0" / "last.pt")
    target = slim_checkpoint(run / "fold0" / "last.pt", tmp_path / "copy" / "fold0" / "last.pt", "ema")
    assert not any(key.startswith(prefix) for key in load_checkpoint(target)["state_dict"])
    with pytest.raises(InputError, match=name):
        build(target, TASKS, use="ema")
    shutil.copy(run / name, tmp_path / "copy" / name)
    state = build(target, TASKS, use="ema")[0].state_dict()
    assert all(torch.equal(state[key], whole["ema"][key]) for key in whole["ema"])


def test_a_run_of_slim_checkpoints_predicts_what_the_run_does(tmp_path, tiny_home, capsys):
    """By the script, at another place; --use best of a run that keeps the average ends with one line."""
    home = tmp_path / "home"
    shutil.copytree(tiny_home / "data", home / "data")
    for fold in ("fold0", "fold1"):
        source, target = tiny_home / "runs" / RUN / fold, home / "weights" / fold
        target.mkdir(parents=True)
        for name in ("args.yaml", "finished.json"):
            shutil.copy(source / name, target)
        use = yaml.safe_load((source / "args.yaml").read_text())["use"]
        slim_checkpoint(checkpoint_file(source, use), checkpoint_file(target, use), use)
    for name in ("folds.csv", "post.json"):
        shutil.copy(tiny_home / "runs" / RUN / name, home / "weights")
    machine = ("--data", "data", "--workers", "0", "--device-type", "cpu")
    call = tiny_data.call
    assert call("infer", "--runs", "weights", *machine, "--out", "slim", cwd=home) == 0
    assert call("infer", "--runs", tiny_home / "runs" / RUN, *machine, "--out", "whole", cwd=home) == 0
    for name in ("pred.csv", "submission.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(home / "slim" / name), pd.read_csv(home / "whole" / name))
    capsys.readouterr()
    assert call("infer", "--runs", "weights", *machine, "--use", "last", cwd=home) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "--use last; give --use ema" in said[0]


def test_a_run_of_slim_checkpoints_is_not_gone_on_with(tmp_path, tiny_home, capsys):
    """A run that came back from a data set of weights is no run that was stopped."""
    home, source = tmp_path / "home", tiny_home / "runs" / RUN
    shutil.copytree(tiny_home / "data", home / "data")
    shutil.copytree(source / "fold0", home / "runs" / RUN / "fold0")
    shutil.copy(source / "folds.csv", home / "runs" / RUN)
    folder = home / "runs" / RUN / "fold0"
    (folder / "finished.json").unlink()
    slim_checkpoint(source / "fold0" / "last.pt", folder / "last.pt", "ema")
    words = ("--data", "data", *tiny_data.QUICK, "--run", RUN, "--fold", "0", "--resume")
    assert tiny_data.call("train", *words, cwd=home) == 2
    assert "from which no training goes on" in capsys.readouterr().err


def test_a_run_is_gone_on_with_though_what_it_began_from_lies_elsewhere(tmp_path, tiny_home):
    """A mount of Kaggle may have another path in the next session. Without --resume it is another run."""
    home = tmp_path / "home"
    shutil.copytree(tiny_home / "data", home / "data")
    for name in ("a", "b"):
        shutil.copytree(tiny_home / "runs" / RUN / "fold0", home / name / "fold0")
    words = ("--data", "data", *tiny_data.QUICK, "--epochs", "1", "--run", "more")
    assert tiny_data.call("train", *words, "--fold", "0", "--init", "a", cwd=home) == 0
    shutil.rmtree(home / "a")
    assert tiny_data.call("train", *words, "--fold", "1", "--init", "b", cwd=home) == 0  # another fold may differ
    assert tiny_data.call("train", *words, "--fold", "0", "--init", "b", cwd=home) == 2
    assert tiny_data.call("train", *words, "--fold", "0", "--init", "b", "--resume", cwd=home) == 0
