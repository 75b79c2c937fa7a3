"""The four scripts from raw files to what is handed in, and every option of train.py on the way."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tiny_data
import torch

import train as train_script
from common.datasets.statistics import STATISTICS
from common.engine.checkpoint import load_checkpoint
from common.models import closed_form
from common.outputs.submission import validate_submission
from common.tasks import TASKS

RUN = "biomass-1x1-s42"
TARGETS = list(tiny_data.OUTPUTS)


def call(home, script, *words, code=0):
    assert tiny_data.call(script, *words, cwd=home) == code


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_whole_way(tiny_empty, capsys):
    """Folds, two by name and the rest, views, a blend of two runs saved and applied, the comparison, post.json."""
    home, given = tiny_empty, ("--data", "data")
    (home / "data" / "folds.csv").unlink()
    call(home, "make_folds", *given, "--folds", "3")
    assert "imbalance" in capsys.readouterr().out
    call(home, "make_folds", *given, "--folds", "3")  # the same folds again: nothing to refuse
    words = (*given, *tiny_data.QUICK)
    call(home, "train", *words, "--train-folds", "0", "1")
    run = home / "runs" / RUN
    assert not (run / "post.json").exists() and "all 3 folds" not in capsys.readouterr().out
    call(home, "train", *words)
    assert "finished before" in (out := capsys.readouterr().out) and "all 3 folds" in out
    for fold in ("fold0", "fold1", "fold2"):
        for name in ("args.yaml", "log.jsonl", "best.pt", "last.pt", "oof.csv", "curves.png", "finished.json"):
            assert (run / fold / name).is_file(), f"{fold} lacks {name}"
    post = json.loads((run / "post.json").read_text())
    call(home, "train", *words, "--seed", "7")
    ledger = pd.read_csv(home / "runs" / "ledger.csv")
    assert list(ledger["run"]) == [RUN] * 3 + ["biomass-1x1-s7"] * 3 and ledger["score"].notna().all()

    tta = ("--tta", "hflip", "vflip", "swap", "--workers", "0")
    for name in (RUN, "biomass-1x1-s7"):
        call(home, "infer", "--runs", f"runs/{name}", *given, *tta, "--out", f"preds/{name}")
        assert validate_submission(home / "preds" / name / "submission.csv", home / "data" / "test.csv") == 15
    assert "3 folds x 4 views (identity hflip vflip swap)" in capsys.readouterr().out
    both = ("--runs", RUN, "runs/biomass-1x1-s7", *given)
    call(home, "ensemble", *both, "--save-blend", "blend.json", "--out", "out", "--kind", "weights")
    out = capsys.readouterr().out
    assert all(word in out for word in ("HONEST", "fitted", "constant", "ridge", "95 % interval", "report:"))
    page = (home / "out" / "report.html").read_text()
    assert RUN in page and "<html" in page and 'src="http' not in page
    call(
        home,
        "ensemble",
        "--preds",
        f"preds/{RUN}",
        "preds/biomass-1x1-s7",
        "--blend",
        "blend.json",
        *given,
        "--out",
        "fin",
    )
    blend = json.loads((home / "blend.json").read_text())
    preds = [pd.read_csv(home / "preds" / name / "pred.csv")[TARGETS].to_numpy() for name in blend["members"]]
    mixed = sum(weight * pred for weight, pred in zip(blend["weights"], preds, strict=True))
    np.testing.assert_allclose(pd.read_csv(home / "fin" / "pred.csv")[TARGETS], mixed, rtol=1e-9)
    handed = pd.read_csv(home / "fin" / "submission.csv").set_index("sample_id")["target"]
    table = handed.rename(index=lambda name: name.split("__")[1]).groupby(level=0).apply(list)
    assert np.allclose(np.array(table["GDM_g"]), np.add(table["Dry_Green_g"], table["Dry_Clover_g"]), atol=1e-6)
    call(home, "ensemble", "--preds", f"preds/{RUN}", "preds/biomass-1x1-s7", *given, "--out", "mean")
    assert "uncalibrated" in capsys.readouterr().out

    call(home, "ensemble", *both, "--compare")
    means = f"{RUN.removesuffix('-s42')}, mean of 2 seeds"
    assert list(pd.read_csv(home / "out" / "compare.csv")["set"]) == [RUN, "biomass-1x1-s7", means]
    (run / "post.json").unlink()
    call(home, "ensemble", "--runs", RUN, *given, "--fit-post")
    assert json.loads((run / "post.json").read_text()) == post
    call(home, "infer", "--runs", RUN, *given, "--rows", "oof", "--workers", "0", "--out", "back")
    call(home, "ensemble", "--oof", "back/oof.csv", "--truth", "data/train.csv", "--no-report")


def test_check_prints_all_and_writes_a_sheet(tiny_empty, capsys):
    words = ("--data", "data", *tiny_data.QUICK, "--fold", "1", "--cutmix-prob", ".5", "--use-aux-heads")
    call(tiny_empty, "train", *words, "--check", "--expect", "epochs=2", "lr=1e-3")
    out, run = capsys.readouterr().out, tiny_empty / "runs" / RUN
    settings = train_script.parser_of(TASKS["biomass"]).actions()
    assert all(f"\n{key}:" in f"\n{out}" for key in settings), "every setting is printed"
    assert re.search(r"one step: loss \d.*gradient norm \d", out)
    sheet = cv2.imread(str(run / "check.jpg"))
    assert sheet is not None and sheet.std() > 10
    assert not list(run.rglob("*.pt")) and not list(run.glob("fold[0-9]*"))
    call(tiny_empty, "train", "--data", "data", *tiny_data.QUICK, "--epochs", "1", "--fold", "1")  # it binds nobody


def test_tensorboard_and_samples(tiny_empty):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("--tensorboard", "--samples-every", "2", "--fold", "0", "--save-every", "2", "--epochs", "3")
    folder = tiny_data.train(tiny_empty, *words) / "fold0"
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("score")] == [1, 2, 3]
    np.testing.assert_allclose([event.value for event in events.Scalars("train_loss")],
                               [line["train_loss"] for line in log_of(folder)], rtol=1e-5)  # fmt: skip
    assert events.Tags()["images"] == ["samples"]
    assert [path.name for path in (folder / "samples").iterdir()] == ["epoch002.jpg"]
    assert cv2.imread(str(folder / "samples" / "epoch002.jpg")).std() > 10


def test_intervals_reach_the_predictions_and_the_report(tiny_empty):
    run = tiny_data.train(tiny_empty, "--uncertainty", "--run", "sure")
    bounds = [f"{name}_{side}" for name in TARGETS for side in ("lo", "hi")]
    assert set(bounds) <= set(pd.read_csv(run / "fold0" / "oof.csv"))
    call(
        tiny_empty,
        "infer",
        "--runs",
        "sure",
        "--data",
        "data",
        "--tta",
        "swap",
        "--workers",
        "0",
        "--out",
        "preds/sure",
    )
    pred = pd.read_csv(tiny_empty / "preds" / "sure" / "pred.csv")
    for name in TARGETS:
        assert (pred[f"{name}_lo"] < pred[name]).all() and (pred[name] < pred[f"{name}_hi"]).all()
        assert (pred[f"{name}_lo"] >= 0).all()
    call(tiny_empty, "ensemble", "--runs", "sure", "--data", "data")
    assert "90" in (tiny_empty / "out" / "report.html").read_text()


RECIPES = {
    "aux": ("--use-aux-heads", "--aux-state-weight", "1", "--aux-month-weight", "5", "--aux-species-weight", "2"),
    "distill": ("--use-aux-heads", "--distill", "--distill-weight", ".3", "--distill-warmup", "1"),
    "two-part": ("--two-part", "Dry_Clover_g", "Dry_Dead_g", "--uncertainty"),
    "log": ("--log-targets", "Dry_Dead_g", "Dry_Clover_g", "--constraint-weight", ".1", "--loss", "huber"),
    "log-all": ("--log-targets", *TARGETS, "--two-part", "Dry_Dead_g", "--loss", "r2"),
    "two-stage": ("--two-stage", "--freeze-epochs", "1", "--head-lr-stage1", "2e-3", "--unfreeze-blocks", "2"),
    "decay": ("--layer-decay", ".7", "--drop-path", ".1", "--weight-decay", ".05", "--warmup-epochs", ".5"),
    "stored": ("--freeze-backbone", "--store-views", "2", "--mixup-prob", ".5", "--mix-within", "state"),
    "frozen": ("--freeze-backbone", "--store-views", "0", "--cutmix-prob", ".3", "--cutmix-alpha", ".7"),
    "shape": ("--grid", "2", "1", "--fusion", "cross-attention", "--pool", "cls+mean", "--hidden-ratio", ".25"),
    "blocks": ("--blocks", "1", "3", "--fusion", "concat", "--dropout", ".1", "--patience", "1", "--use", "best"),
    "conv": ("--backbone", "test_resnet", "--standardise", "--mask-stamp", "--ema-decay", "0", "--grad-clip", ".5",
             "--use", "last"),
    "mixed": ("--mixup-prob", ".4", "--mixup-alpha", ".2", "--mix-within", "month", "state", "--loss", "mse",
              "--target-weights", "equal", "--swap-prob", ".3", "--photometric-independent",
              "--augment", "hflip", "crop=.5:.8", "green-jitter=.5"),
    "repeatable": ("--deterministic", "--amp", "bf16", "--no-cache-images", "--accumulate", "3", "--workers", "1"),
    "shuffled": ("--shuffle-images", "--target-weights", "1", "1", "1", "1", "1"),
    "ridge": ("--head", "ridge"),
    "extratrees": ("--head", "extratrees"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_predicts_and_is_found_again(tiny_empty, monkeypatch, name, capsys):
    monkeypatch.setattr(closed_form, "plant_statistics", STATISTICS["colour"][0])
    try:
        run = tiny_data.train(tiny_empty, *RECIPES[name], "--fold", "0", "--run", name)
    finally:
        torch.use_deterministic_algorithms(False)
    log, oof = log_of(run / "fold0"), pd.read_csv(run / "fold0" / "oof.csv")
    assert len(oof) == 9 and np.isfinite(oof[TARGETS]).all(axis=None) and (oof[TARGETS] >= 0).all(axis=None)
    used = load_checkpoint(run / "fold0" / "last.pt")["args"]["use"]
    ends = {"ema": log[-1]["score"], "best": max(line["score"] for line in log), "last": log[-1]["score"]}
    ledger = pd.read_csv(tiny_empty / "runs" / "ledger.csv")
    assert ledger["score"][0] == pytest.approx(ends[used], abs=2e-6), "the score of what was validated last"
    call(tiny_empty, "infer", "--runs", name, "--data", "data", "--fold", "0", "--tta", "hflip", "--workers", "0")
    assert validate_submission(tiny_empty / "preds" / name / "submission.csv", tiny_empty / "data" / "test.csv") == 15


def test_log_targets_are_inverted_before_the_physics(tiny_empty):
    """An out-of-fold file is in grams whatever the head learnt, and physics is applied to grams."""
    run = tiny_data.train(tiny_empty, "--log-targets", *TARGETS, "--run", "log", "--epochs", "1")
    truth = pd.read_csv(tiny_empty / "data" / "train.csv").query("target_name == 'Dry_Total_g'")["target"].mean()
    oof = pd.read_csv(run / "fold0" / "oof.csv")
    assert oof["Dry_Total_g"].mean() == pytest.approx(truth, rel=0.5), "grams, not log grams (about 4)"
    call(tiny_empty, "infer", "--runs", "log", "--data", "data", "--workers", "0", "--out", "preds/log")
    table = pd.read_csv(tiny_empty / "preds" / "log" / "submission.csv")
    parts = table["sample_id"].str.split("__", expand=True)
    wide = table.assign(id=parts[0], name=parts[1]).pivot(index="id", columns="name", values="target")
    np.testing.assert_allclose(wide["Dry_Total_g"], wide["GDM_g"] + wide["Dry_Dead_g"], rtol=1e-6)
    assert wide["Dry_Total_g"].mean() == pytest.approx(truth, rel=0.5)


def test_init_takes_what_fits_and_names_the_rest(tiny_copy, capsys):
    words = ("--data", "data", *tiny_data.QUICK, "--fold", "0", "--epochs", "1", "--lr", "0", "--backbone-lr", "0",
             "--weight-decay", "0", "--ema-decay", "0")  # fmt: skip
    call(tiny_copy, "train", *words, "--init", f"runs/{RUN}", "--run", "same", "--seed", "5")
    assert re.search(r"took (\d+) of \1 tensors, nothing left unfilled", capsys.readouterr().out)
    given = load_checkpoint(tiny_copy / f"runs/{RUN}/fold0/last.pt")["ema"]
    taken = load_checkpoint(tiny_copy / "runs/same/fold0/last.pt")["state_dict"]
    assert all(torch.equal(taken[key], given[key]) for key in given)
    call(tiny_copy, "train", *words, "--init", f"runs/{RUN}/fold0/last.pt", "--run", "wide", "--hidden-ratio", "1")
    assert "not filled: " in (out := capsys.readouterr().out) and "trunk" in out


def test_shuffled_photos_teach_nothing(tiny_empty, capsys):
    """Photos change rows, rows keep their targets: what was learnt of an image is not its own."""
    from common.tasks import biomass

    settings = {"allow_missing_targets": False, "drop_ids": None, "shuffle_images": False}
    plain = biomass.read_rows(tiny_empty / "data", settings)
    mixed = biomass.read_rows(tiny_empty / "data", settings | {"shuffle_images": True})
    assert sorted(plain["path"]) == sorted(mixed["path"]) and (plain["path"] != mixed["path"]).mean() > 0.8
    pd.testing.assert_frame_equal(plain.drop(columns="path"), mixed.drop(columns="path"))
    assert "SHUFFLED" in capsys.readouterr().out


def test_studies_of_the_folds(tiny_empty, capsys):
    call(
        tiny_empty,
        "make_folds",
        "--data",
        "data",
        "--folds",
        "2",
        "--adversarial",
        "--duplicates",
        "--out",
        "other.csv",
    )
    out = capsys.readouterr().out
    assert "train against test" in out and "near-duplicate" in out


def test_every_option_of_train_is_exercised():
    """An option that no test of the scripts names could do nothing and nobody would know."""
    words = {
        word for path in Path(__file__).parent.glob("*.py") for word in re.findall(r"--[a-z0-9-]+", path.read_text())
    }
    options = {
        name: action.option_strings for name, action in train_script.parser_of(TASKS["biomass"]).actions().items()
    }
    unused = [name for name, strings in options.items() if not set(strings) & words]
    assert not unused, unused
