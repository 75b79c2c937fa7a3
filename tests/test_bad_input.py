"""Wrong input: exit code 2 and one line on stderr that names the file or option and the remedy; never a traceback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tiny_data
import torch
import yaml

import train as train_script
from common.engine.checkpoint import load_checkpoint, save_checkpoint
from common.errors import CRASHED, run_script

ROOT = Path(__file__).resolve().parent.parent
RUN = "biomass-1x1-s42"


def fails(capsys, home, script, *words, names=(), data=True) -> str:
    """The one line of a call that must be refused; it holds every one of `names`."""
    capsys.readouterr()
    given = ("--data", "data") if data else ()
    code = tiny_data.call(script, *given, *words, cwd=home)
    err = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "photo/s" not in line]
    assert code == 2 and len(err) == 1 and err[0].startswith("error: "), (code, err)
    for name in names:
        assert name in err[0], err[0]
    return err[0]


def refused(capsys, home, *words, names=()) -> str:
    return fails(capsys, home, "train", *tiny_data.QUICK, "--fold", "0", *words, names=names)


def change(home: Path, edit, name="train.csv") -> None:
    path = home / "data" / name
    table = pd.read_csv(path, dtype=str)
    edit(table).to_csv(path, index=False)


@pytest.mark.parametrize("column", ["sample_id", "image_path", "Sampling_Date", "State", "target_name", "target"])
def test_missing_column(tiny_empty, capsys, column):
    change(tiny_empty, lambda table: table.drop(columns=column))
    refused(capsys, tiny_empty, names=("data/train.csv", f"column {column} is missing"))


def test_missing_column_of_the_test_table(tiny_copy, capsys):
    change(tiny_copy, lambda table: table.drop(columns="image_path"), "test.csv")
    fails(capsys, tiny_copy, "infer", "--runs", RUN, names=("data/test.csv", "image_path"))


def test_unknown_target_name(tiny_empty, capsys):
    change(tiny_empty, lambda table: table.assign(target_name=table["target_name"].replace("GDM_g", "GMD_g")))
    refused(capsys, tiny_empty, names=("data/train.csv", "unknown target name GMD_g", "known are"))


def test_no_number_and_no_date(tiny_empty, capsys):
    table = pd.read_csv(tiny_empty / "data" / "train.csv", dtype=str)
    change(tiny_empty, lambda old: old.assign(target=["many", *old["target"][1:]]))
    refused(capsys, tiny_empty, names=("data/train.csv", "'many'", table["sample_id"][0]))
    change(tiny_empty, lambda _: table.assign(Sampling_Date="Tuesday"))
    refused(capsys, tiny_empty, names=("data/train.csv", "'Tuesday'", "2015/9/4"))


def test_a_table_that_is_none(tiny_empty, capsys):
    path = tiny_empty / "data" / "train.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3] + ",one,two,three", *lines[4:]]))
    refused(capsys, tiny_empty, names=("data/train.csv", "cannot be read as a table"))
    path.write_bytes(b"")
    refused(capsys, tiny_empty, names=("data/train.csv",))
    path.write_text(lines[0] + "\n")
    refused(capsys, tiny_empty, names=("data/train.csv", "no rows"))
    path.unlink()
    refused(capsys, tiny_empty, names=("--data data", "train.csv"))


def test_duplicate_ids(tiny_empty, capsys):
    change(tiny_empty, lambda table: pd.concat([table, table.iloc[[7, 8, 8]]]))
    name = pd.read_csv(tiny_empty / "data" / "train.csv")["sample_id"][7]
    refused(capsys, tiny_empty, names=("data/train.csv", name, "2 times"))


@pytest.mark.parametrize("how", ["empty", "absent"])
def test_missing_target(tiny_empty, capsys, how):
    name = pd.read_csv(tiny_empty / "data" / "train.csv")["sample_id"][7].split("__")
    if how == "empty":
        change(tiny_empty, lambda table: table.assign(target=table["target"].mask(table.index == 7)))
    else:
        change(tiny_empty, lambda table: table.drop(index=7))
    refused(capsys, tiny_empty, names=("data/train.csv", *name, "--allow-missing-targets"))
    code = tiny_data.call("train", "--data", "data", *tiny_data.QUICK, "--allow-missing-targets", cwd=tiny_empty)
    assert code == 0 and "1 missing targets are masked" in capsys.readouterr().out
    whole = pd.concat([pd.read_csv(path) for path in sorted((tiny_empty / "runs" / RUN).glob("fold*/oof.csv"))])
    truth = whole[[name for name in whole if name.startswith("true_")]]
    assert truth.isna().to_numpy().sum() == 1 and whole[list(tiny_data.OUTPUTS)].notna().all(axis=None)
    assert tiny_data.call("ensemble", "--runs", RUN, "--no-report", cwd=tiny_empty) == 0


def photo_of(home: Path, name="ID100", kind="train") -> Path:
    return home / "data" / kind / f"{name}.jpg"


def spoil_missing(path):
    path.unlink()
    return "photo not found", "--drop-ids"


def spoil_truncated(path):
    path.write_bytes(path.read_bytes()[:-200])
    return "truncated JPEG", "again"


def spoil_empty(path):
    path.write_bytes(b"")
    return "empty", "again"


def spoil_text(path):
    path.write_text("not a picture at all")
    return "cannot be decoded", "again"


@pytest.mark.parametrize("spoil", [spoil_missing, spoil_truncated, spoil_empty, spoil_text])
def test_a_photo_that_cannot_be_read(tiny_empty, capsys, spoil):
    path = photo_of(tiny_empty)
    said = spoil(path)
    refused(capsys, tiny_empty, names=("data/train/ID100.jpg", *said))
    refused(capsys, tiny_empty, "--no-cache-images", "--augment", names=("data/train/ID100.jpg", *said))


def test_a_photo_of_another_size(tiny_empty, capsys):
    refused(capsys, tiny_empty, "--photo-size", "1000", "2000", names=(".jpg", "128x64", "2000x1000"))
    cv2.imwrite(str(photo_of(tiny_empty)), np.zeros((64, 130, 3), np.uint8))
    refused(capsys, tiny_empty, "--photo-size", "64", "128", names=("ID100.jpg", "130x64", "128x64"))


def test_a_photo_that_breaks_in_a_worker(tiny_empty, capsys):
    spoil_truncated(photo_of(tiny_empty))
    words = ("--no-cache-images", "--workers", "1", "--epochs", "1")
    refused(capsys, tiny_empty, *words, names=("data/train/ID100.jpg", "truncated JPEG"))


def test_folds_of_other_data(tiny_empty, capsys):
    path = tiny_empty / "data" / "folds.csv"
    folds = pd.read_csv(path)
    folds.assign(id="X" + folds["id"]).to_csv(path, index=False)
    refused(capsys, tiny_empty, names=("folds.csv", "belongs to other data", "make_folds.py"))
    folds[folds["id"] != "ID103"].to_csv(path, index=False)
    shutil.rmtree(tiny_empty / "runs", ignore_errors=True)
    refused(capsys, tiny_empty, names=("folds.csv", "ID103"))


def test_folds_that_straddle_or_are_none(tiny_empty, capsys):
    path = tiny_empty / "data" / "folds.csv"
    folds = pd.read_csv(path)
    folds.assign(fold=[k // 6 % 2 if fold >= 0 else -1 for k, fold in enumerate(folds["fold"])]).to_csv(
        path, index=False
    )
    refused(capsys, tiny_empty, names=("folds.csv", "straddles"))
    folds.drop(columns="group").to_csv(path, index=False)
    refused(capsys, tiny_empty, names=("data/folds.csv", "group"))
    refused(capsys, tiny_empty, "--folds", "absent.csv", names=("absent.csv", "make_folds.py"))


def test_a_begun_run_does_not_change_its_folds(tiny_copy, capsys):
    assert tiny_data.call("make_folds", "--data", "data", "--folds", "3", "--out", "three.csv", cwd=tiny_copy) == 0
    refused(capsys, tiny_copy, "--folds", "three.csv", names=("three.csv", "begun with other folds", "--run"))
    fails(capsys, tiny_copy, "make_folds", "--folds", "3", names=("folds.csv", "--force", "--out"))


def test_a_fold_that_is_none(tiny_empty, capsys):
    for words in (("--fold", "7"), ("--fold", "-1"), ("--fold", "first"), ("--train-folds", "0", "9")):
        code = tiny_data.call("train", "--data", "data", *tiny_data.QUICK, *words, cwd=tiny_empty)
        assert code == 2 and "--fold" in capsys.readouterr().err
    refused(capsys, tiny_empty, "--train-folds", "1", names=("--fold", "--train-folds"))
    refused(capsys, tiny_empty, "--fold", "all", "--use", "best", names=("--use best", "full fit"))


def test_a_run_with_other_settings(tiny_copy, capsys):
    refused(capsys, tiny_copy, "--loss", "r2", names=(f"runs/{RUN}/fold0", "loss: smooth-l1 -> r2", "--force"))


def test_a_checkpoint_of_another_task(tiny_copy, capsys):
    path = tiny_copy / "runs" / RUN / "fold0" / "last.pt"
    content = load_checkpoint(path)
    save_checkpoint(path, content | {"spec": content["spec"] | {"task": "moon"}})
    fails(capsys, tiny_copy, "infer", "--runs", RUN, names=(str(path.relative_to(tiny_copy)), "moon"))


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("how", ["infer", "init", "weights", "resume"])
def test_a_malicious_checkpoint_does_not_run(tiny_copy, tmp_path, capsys, how):
    path, mark = tiny_copy / "runs" / RUN / "fold0" / "last.pt", tmp_path / "executed"
    torch.save({"format": 1, "spec": {"task": "biomass"}, "state_dict": Evil(mark)}, path)
    relative = str(path.relative_to(tiny_copy))
    if how == "infer":
        fails(capsys, tiny_copy, "infer", "--runs", RUN, "--workers", "0", names=(relative, "refused"))
    elif how == "resume":
        (path.parent / "finished.json").unlink()
        refused(capsys, tiny_copy, "--resume", names=(relative, "refused"))
    else:
        refused(capsys, tiny_copy, "--run", "other", f"--{how}", relative, names=(relative, "refused"))
    assert not mark.exists()


def test_a_truncated_checkpoint(tiny_copy, capsys):
    path = tiny_copy / "runs" / RUN / "fold1" / "last.pt"
    path.write_bytes(path.read_bytes()[:5000])
    fails(capsys, tiny_copy, "infer", "--runs", RUN, names=(f"runs/{RUN}/fold1/last.pt", "copy it again"))


def test_a_full_disk(tiny_home, small_disk, capsys):
    """The run folder lies on a disk that is too small for a checkpoint: nothing half-written is left there."""
    (small_disk / "data").symlink_to(tiny_home / "data")
    words = ("--cache", str(tiny_home / "cache"), "--fold", "0")
    said = fails(capsys, small_disk, "train", *tiny_data.QUICK, *words, names=("runs/",))
    assert "free" in said
    assert not [path for path in small_disk.rglob("*.pt")] and not [path for path in small_disk.rglob(".tmp-*")]


def test_a_full_disk_wherever_it_is_met(tiny_empty, monkeypatch, capsys):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/somewhere")

    monkeypatch.setattr(train_script, "Tracker", full)
    refused(capsys, tiny_empty, names=("runs/somewhere", "free some space"))


def test_misspelt_options(tiny_home, tmp_path, capsys):
    refused(capsys, tiny_home, "--learning-rat", "1", names=("--learning-rat", "--help"))
    refused(capsys, tiny_home, "--epoch", "1", names=("--epoch", "did you mean --epochs?"))
    for script, wrong, meant in (("make_folds", "--schem", "--scheme"), ("infer", "--run", "--runs"),
                                 ("ensemble", "--save-blends", "--save-blend")):  # fmt: skip
        runs = () if script == "make_folds" else ("--runs", RUN)
        fails(capsys, tiny_home, script, *runs, wrong, "x", names=(wrong, f"did you mean {meant}?"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"learning_rate": 1e-3, "epochs": 2}))
    refused(capsys, tiny_home, "--config", tmp_path / "recipe.yaml", names=("recipe.yaml", "learning_rate"))
    refused(capsys, tiny_home, "--task", "biomas", names=("--task biomas", "biomass"))


def test_expectations_that_do_not_hold(tiny_home, capsys):
    refused(capsys, tiny_home, "--expect", "epochs=30", "lr=1e-3", names=("epochs is 2, not 30",))
    refused(capsys, tiny_home, "--expect", "epoch=2", names=("--expect epoch=2", "did you mean epochs"))


@pytest.mark.parametrize("words, names", [
    (("--backbone", "vit_bases_patch14"), ("--backbone", "did you mean")),
    (("--cell-size", "33"), ("--cell-size 33", "multiple")),
    (("--weights", "absent.pth"), ("--weights absent.pth",)),
    (("--init", "absent"), ("absent",)),
    (("--augment", "sepia"), ("sepia", "choose from")),
    (("--mix-within", "colour", "--mixup-prob", ".5"), ("colour",)),
    (("--drop-ids", "absent.txt"), ("--drop-ids absent.txt",)),
    (("--two-stage", "--freeze-epochs", "9"), ("--freeze-epochs 9", "--epochs 2")),
    (("--distill",), ("--distill", "--use-aux-heads")),
    (("--target-weights", "1", "2"), ("--target-weights",)),
    (("--freeze-backbone", "--cutmix-prob", ".5"), ("--cutmix-prob",)),
    (("--amp", "fp16"), ("--amp fp16",)),
    (("--resume",), ("--resume",)),
])  # fmt: skip
def test_settings_that_cannot_be(tiny_empty, capsys, words, names):
    refused(capsys, tiny_empty, *words, names=names)


def test_scripts_that_miss_what_they_need(tiny_copy, capsys):
    fails(capsys, tiny_copy, "infer", "--runs", "runs/none", names=("--runs runs/none", "train it"))
    fails(capsys, tiny_copy, "infer", names=("--runs",))
    fails(capsys, tiny_copy, "infer", "--runs", RUN, "--tta", "rot90", names=("--tta rot90", "hflip"))
    fails(capsys, tiny_copy, "ensemble", names=("--runs",))
    fails(capsys, tiny_copy, "ensemble", "--oof", "a.csv", names=("--truth",))
    fails(capsys, tiny_copy, "ensemble", "--preds", "nowhere", names=("nowhere",))
    fails(capsys, tiny_copy, "ensemble", "--runs", RUN, "--group", "moon", names=("--group moon",))
    fails(capsys, tiny_copy, "ensemble", "--preds", "x", "--blend", "b.json", names=("x",))
    (tiny_copy / "runs" / RUN / "fold1" / "finished.json").unlink()
    fails(capsys, tiny_copy, "ensemble", "--runs", RUN, names=("fold 1", "train.py"))


@pytest.mark.parametrize(("name", "value"), [("honest", "much"), ("post", [1]), ("post", None)])
def test_a_blend_or_post_json_that_somebody_changed(tiny_copy, capsys, name, value):
    run, out = "biomass-1x1-s42", ("--out", "out")
    assert (
        tiny_data.call("infer", "--runs", run, "--data", "data", "--workers", "0", "--out", "preds", cwd=tiny_copy) == 0
    )
    words = ("--runs", run, "--data", "data", "--save-blend", "b.json", "--no-report", *out)
    assert tiny_data.call("ensemble", *words, cwd=tiny_copy) == 0
    blend = json.loads((tiny_copy / "b.json").read_text())
    changed = {key: of for key, of in blend.items() if key != name} | ({} if value is None else {name: value})
    (tiny_copy / "b.json").write_text(json.dumps(changed))
    fails(capsys, tiny_copy, "ensemble", "--preds", "preds", "--blend", "b.json", *out, names=(".json", "fit it again"))
    if name == "post":
        (tiny_copy / "runs" / RUN / "post.json").write_text(json.dumps({"maximum": "all"} if value else {"x": 1}))
        fails(capsys, tiny_copy, "infer", "--runs", RUN, "--out", "preds", names=("post.json", "fit it again"))


def test_an_unreadable_test_photo(tiny_copy, capsys):
    """Named, given the training medians, and the exit code says so unless it is allowed."""
    photo_of(tiny_copy, "ID1101", "test").write_bytes(b"\xff\xd8 cut")
    words = ("infer", "--runs", RUN, "--data", "data", "--workers", "0", "--tta", "hflip", "--out", "preds/x")
    assert tiny_data.call(*words, cwd=tiny_copy) == 3
    err = capsys.readouterr().err.strip()
    assert "unreadable image: ID1101" in err and err.count("unreadable") == 1
    pred = pd.read_csv(tiny_copy / "preds/x/pred.csv").set_index("id")
    folds = pd.read_csv(tiny_copy / "data" / "folds.csv").query("fold >= 0")
    medians = [folds[folds["fold"] != k][list(tiny_data.OUTPUTS)].median() for k in (0, 1)]
    assert load_checkpoint(tiny_copy / f"runs/{RUN}/fold0/last.pt")["spec"]["median"] == pytest.approx(list(medians[0]))
    assert pred.loc["ID1101", list(tiny_data.OUTPUTS)].to_numpy(float) == pytest.approx(medians[0].to_numpy())
    assert pred.loc["ID1100", "GDM_g"] != pytest.approx(pred.loc["ID1101", "GDM_g"])
    submission = pd.read_csv(tiny_copy / "preds/x/submission.csv")
    assert len(submission) == 15 and np.isfinite(submission["target"]).all()
    assert tiny_data.call(*words, "--allow-bad-images", cwd=tiny_copy) == 0
    photo_of(tiny_copy, "ID1100", "test").unlink()
    assert tiny_data.call(*words, "--cache-images", cwd=tiny_copy) == 3
    assert "ID1100" in capsys.readouterr().err


def test_in_a_shell_there_is_one_line_and_exit_code_2(tiny_empty):
    """The same through the interpreter; --debug shows the traceback."""
    words = [sys.executable, str(ROOT / "make_folds.py"), "--data", "data", "--scheme", "group_date_state",
             "--folds", "99"]  # fmt: skip
    done = subprocess.run(words, cwd=tiny_empty, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and "99" in done.stderr


def test_debug_shows_the_traceback(tiny_home):
    from common.errors import InputError

    with pytest.raises(InputError):
        tiny_data.call("train", "--data", "data", "--epoch", "1", "--debug", cwd=tiny_home)


def test_a_crash_is_no_missed_gate(capsys):
    """1 says that gates were missed, and recipes go on after it."""

    def crash(argv):
        raise ZeroDivisionError("ours")

    assert run_script(crash, []) == CRASHED != 1
    assert "Traceback" in capsys.readouterr().err
