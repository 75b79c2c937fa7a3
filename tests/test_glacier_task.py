"""The four scripts on glacier tiles, from band folders to masks: phases, naming styles, HKH, resume, options."""

import importlib.util
import json
import re
import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import rasterio
import tiny_tiles
import torch
from sklearn.metrics import confusion_matrix, matthews_corrcoef
from test_engine_resume import ends_with_the_same_bytes
from tiny_tiles import call, log_of, train

import train as train_script
from common.engine import tracking
from common.engine.checkpoint import load_checkpoint, save_checkpoint
from common.outputs.masks import read_beside, read_probs
from common.tasks import TASKS

GLACIER = TASKS["glacier"]
CLASSES = ["background", "glacier", "debris", "lake"]
VALUES = np.array([0, 85, 170, 255])
GIVEN = ("--task", "glacier", "--data", "data")


def read_tif(path: Path):
    """(array, coordinate system, transform, type) of a GeoTIFF."""
    with rasterio.open(path) as file:
        return file.read(1), file.crs, file.transform, file.dtypes[0]


def check_masks(folder: Path, data: Path, values: set[int]) -> dict[str, np.ndarray]:
    """{file name: mask} of a folder of masks, each with the name and the place of its Band1 file, 0 without data."""
    bands = {path.name: path for path in (data / "Test" / "Band1").iterdir()}
    masks = {}
    assert {path.name for path in folder.iterdir()} == set(bands)
    for name, path in bands.items():
        mask, crs, transform, kind = read_tif(folder / name)
        _, wanted_crs, wanted_transform, _ = read_tif(path)
        assert (crs, transform, kind) == (wanted_crs, wanted_transform, "uint8") and crs is not None
        stack = [read_tif(data / "Test" / band / name.replace("B2_B2", f"{short}_{short}"))[0]
                 for band, short in tiny_tiles.BANDS.items()]  # fmt: skip
        assert set(np.unique(mask)) <= values and not mask[(np.array(stack) == 0).all(0)].any()
        masks[name] = mask
    return masks


def set_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder, dtype={"id": str}).sort_values("id", ignore_index=True)


# the way from files to masks


def test_what_a_run_leaves(tiles_home):
    """Two folds in one call; the score of a fold is that of the maps it kept, over all pixels."""
    run = tiles_home / "runs" / "one"
    post = json.loads((run / "post.json").read_text())
    assert len(post["thresholds"]) == 4
    ledger = pd.read_csv(tiles_home / "runs" / "ledger.csv")
    assert list(zip(ledger["run"], ledger["fold"], strict=True)) == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    rows = pd.read_csv(tiles_home / "data" / "folds.csv")
    assert set(CLASSES) <= set(rows) and (rows["fold"] < 0).sum() == 2
    for fold in (0, 1):
        folder = run / f"fold{fold}"
        for name in ("args.yaml", "log.jsonl", "best.pt", "last.pt", "oof_counts.csv", "curves.png", "finished.json"):
            assert (folder / name).is_file(), name
        frame = set_of(folder / "oof_counts.csv")
        assert sorted(frame["id"]) == sorted(rows.query("fold == @fold")["id"])
        truths, preds = [], []
        for _, line in frame.iterrows():
            prob, path = read_probs(folder / line["prob"]), folder / line["prob"]
            valid = read_beside(path, "valid")
            raw = read_tif(tiles_home / "data/Train/label" / f"Y_output_resized_{line['id']}.tif")[0]
            truth = np.searchsorted(VALUES, raw)
            counts = confusion_matrix(truth[valid], prob.argmax(0)[valid], labels=range(4))
            assert counts.ravel().tolist() == [line[f"n_{t}_{p}"] for t in range(4) for p in range(4)]
            assert line["nodata"] == (~valid).sum() > 0
            truths.append(truth.ravel())
            preds.append(np.where(valid, prob.argmax(0), 0).ravel())
        wanted = matthews_corrcoef(np.concatenate(truths), np.concatenate(preds))
        assert ledger.query("run == 'one' and fold == @fold")["score"].item() == pytest.approx(wanted, abs=1e-6)
        assert wanted > 0.2, "it learns"


def test_folds_by_name_then_the_rest(tiles_empty, capsys):
    run = train(tiles_empty, "--train-folds", "1", run="one")
    assert not (run / "post.json").exists()
    call(tiles_empty, "infer", "--runs", "one", "--fold", "1", "--workers", "0")
    assert "uncalibrated" in capsys.readouterr().out
    train(tiles_empty, run="one")
    assert "finished before" in (out := capsys.readouterr().out) and "all 2 folds: out-of-fold score" in out
    assert (run / "post.json").is_file()


def test_every_fold_reads_the_tiles_with_its_own_statistics(tiles_copy):
    """The mean of a run is the mean of its folds' own predictions, each by the statistics of its training rows."""
    for name, words in {"f0": ("--fold", "0"), "f1": ("--fold", "1"), "both": ()}.items():
        call(tiles_copy, "infer", "--runs", "one", *words, "--workers", "0", "--out", f"preds/{name}")
    stored = {name: read_probs(tiles_copy / "preds" / name / "prob" / "001.npz") for name in ("f0", "f1", "both")}
    np.testing.assert_allclose(stored["both"], (stored["f0"] + stored["f1"]) / 2, atol=6e-4)
    assert np.abs(stored["f0"] - stored["f1"]).max() > 0.01
    assert not (tiles_copy / "preds" / "both" / "prob-folds").exists()


def test_masks_and_blends(tiles_copy, capsys):
    """Two runs predicted with views, a blend fitted, saved and applied: the masks are what its numbers say."""
    home = tiles_copy
    for run in ("one", "two"):
        call(home, "infer", "--runs", run, "--tta", "hflip", "rot90", "scale0.75", "--workers", "0",
             "--out", f"preds/{run}")  # fmt: skip
        check_masks(home / "preds" / run / "masks", home / "data", {0, 85, 170, 255})
    assert "2 folds x 4 views (identity hflip rot90 scale0.75)" in capsys.readouterr().out
    call(home, "ensemble", "--runs", "one", "two", "--kind", "weights", "--save-blend", "blend.json")
    out = capsys.readouterr().out
    assert all(word in out for word in ("HONEST", "fitted", "constant", "logistic", "95 % interval", "report:"))
    page = (home / "out" / "report.html").read_text()
    assert "one" in page and 'src="http' not in page
    call(home, "ensemble", "--preds", "preds/one", "preds/two", "--blend", "blend.json", *GIVEN, "--out", "final")
    masks = check_masks(home / "final" / "masks", home / "data", {0, 85, 170, 255})
    blend = json.loads((home / "blend.json").read_text())
    names = {"09_08": "B2_B2_masked_09_08.tif", "001": "img001.tif"}
    for tile, name in names.items():
        maps = [read_probs(home / "preds" / member / "prob" / f"{tile}.npz") for member in blend["members"]]
        mixed = sum(weight * prob for weight, prob in zip(blend["weights"], maps, strict=True))
        stored = read_probs(home / "final" / "prob" / f"{tile}.npz")
        np.testing.assert_allclose(stored, mixed, atol=1e-3)
        valid = read_beside(home / "preds" / "one" / "prob" / f"{tile}.npz", "valid")
        pred = (stored / np.array(blend["post"]["thresholds"])[:, None, None]).argmax(0)
        np.testing.assert_array_equal(masks[name], np.where(valid, VALUES[pred], 0))
    call(home, "ensemble", "--preds", "preds/one", "preds/two", "--data", "data", "--out", "mean")
    assert "uncalibrated" in capsys.readouterr().out
    call(home, "infer", "--runs", "one", "two", "--workers", "0", "--out", "both")
    one = [read_probs(home / folder / "001.npz") for folder in ("both/one/prob", "both/two/prob", "both/prob")]
    np.testing.assert_allclose(one[2], (one[0] + one[1]) / 2, atol=1e-3)


LOW = ("1", "1", ".2", ".1")  # thresholds that let specks of rare classes through


def test_post_processing_of_a_call(tiles_copy):
    """--thresholds, --min-area and --fill-holes of infer.py and ensemble.py: as given, as fitted, none."""
    masks, home, low = {}, tiles_copy, ("--thresholds", *LOW)
    for name, words in {"argmax": ("--thresholds", "argmax"), "fitted": (), "low": low,
                        "large": (*low, "--min-area", "60"),
                        "filled": (*low, "--fill-holes", "40")}.items():  # fmt: skip
        call(home, "infer", "--runs", "one", "--workers", "0", "--out", f"preds/{name}", *words)
        masks[name] = check_masks(home / "preds" / name / "masks", home / "data", {0, 85, 170, 255})["img001.tif"]
    prob = read_probs(home / "preds/argmax/prob/001.npz")
    valid = read_beside(home / "preds/argmax/prob/001.npz", "valid")
    post = json.loads((home / "runs/one/post.json").read_text())
    for name, thresholds in {"argmax": [1] * 4, "fitted": post["thresholds"], "low": [float(t) for t in LOW]}.items():
        pred = (prob / np.array(thresholds)[:, None, None]).argmax(0)
        np.testing.assert_array_equal(masks[name], np.where(valid, VALUES[pred], 0), err_msg=name)
    for value in (85, 170, 255):
        held = (masks["large"] == value).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(held, connectivity=8)
        assert (stats[1:count, cv2.CC_STAT_AREA] >= 60).all(), f"a component of {value} under 60 px"
    assert (masks["large"] != masks["low"]).any() and (masks["filled"] != masks["low"]).any()
    scores = {}
    for name, words in {"argmax": ("--thresholds", "argmax"), "low": low, "large": (*low, "--min-area", "60", "9", "9"),
                        "filled": (*low, "--fill-holes", "40")}.items():  # fmt: skip
        call(home, "ensemble", "--runs", "one", "--no-report", "--no-baselines", "--out", name, *words)
        scores[name] = set_of(home / name / "oof_counts.csv").filter(like="n_").to_numpy().tolist()
    assert len({str(counts) for counts in scores.values()}) == 4


def test_out_of_fold_predictions_are_given_back(tiles_copy, capsys):
    home, run = tiles_copy, tiles_copy / "runs" / "one"
    call(home, "infer", "--runs", "one", "--rows", "oof", "--workers", "0", "--out", "back")
    kept = pd.concat([set_of(run / f"fold{fold}" / "oof_counts.csv") for fold in (0, 1)])
    kept, back = kept.sort_values("id", ignore_index=True), set_of(home / "back" / "oof_counts.csv")
    pd.testing.assert_frame_equal(back.drop(columns="prob"), kept.drop(columns="prob")[list(back.drop(columns="prob"))])
    for _, line in back.iterrows():
        paths = home / "back" / line["prob"], run / f"fold{line['fold']}" / "oof" / f"{line['id']}.npz"
        one, other = (np.load(path)["prob"] for path in paths)
        assert np.abs(one.view(np.int16).astype(int) - other.view(np.int16)).max() <= 1, "one unit of float16 at most"
    shutil.move(home / "back", home / "moved")
    call(home, "ensemble", "--oof", "moved/oof_counts.csv", "--truth", "data", "--task", "glacier", "--no-report")
    strange = capsys.readouterr().out
    assert "HONEST" in strange
    call(home, "ensemble", "--oof", "moved/oof_counts.csv", "--truth", "data", "--task", "glacier", "--group", "row",
         "--no-report")  # fmt: skip


def test_comparison_gates_and_post_again(tiles_copy, monkeypatch, capsys):
    home, run = tiles_copy, tiles_copy / "runs" / "one"
    call(home, "ensemble", "--runs", "one", "two", "--compare")
    assert list(pd.read_csv(home / "out" / "compare.csv")["set"]) == ["one", "two", "one, mean of 2 seeds"]
    post = (run / "post.json").read_text()
    (run / "post.json").unlink()
    call(home, "ensemble", "--runs", "one", "--fit-post")
    assert (run / "post.json").read_text() == post
    words = ("ensemble", "--runs", "one", "--no-report", "--no-baselines", "--gates", "target")
    call(home, *words, code=1)
    said = capsys.readouterr().out
    assert re.search(r"FAIL  recall_lake .*needed 0\.50\)", said) and re.search(r"target: \d of 5 not met", said)
    monkeypatch.setitem(GLACIER.gates, "target", {"mcc": -1.0})
    call(home, *words)


def test_phase_1_labels_and_tiles_without_row_and_column(tmp_path):
    """255 alone is glacier; img001 … are folded by their georeference, and masks hold 0 and 255."""
    tiny_tiles.make_tiles(tmp_path / "data", tiles=6, phase=1, naming="img")
    call(tmp_path, "make_folds", *GIVEN, "--folds", "2")
    rows = pd.read_csv(tmp_path / "data" / "folds.csv", dtype={"id": str}).query("fold >= 0")
    assert {"background", "glacier"} <= set(rows) and "lake" not in rows and rows["glacier"].mean() > 0.2
    assert list(rows["id"]) == [f"{k:03d}" for k in range(1, 7)]
    run = train(tmp_path, "--fold", "0", run="one")
    assert load_checkpoint(run / "fold0" / "last.pt")["spec"]["outputs"] == ["background", "glacier"]
    call(tmp_path, "infer", "--runs", "one", "--fold", "0", "--workers", "0", "--out", "preds")
    masks = check_masks(tmp_path / "preds" / "masks", tmp_path / "data", {0, 255})
    assert any(mask.any() for mask in masks.values())


def test_label_map_is_as_given(tiles_empty, capsys):
    """Debris and lakes as one more name for glacier: two classes of four values, in the baselines too."""
    words = ("--label-map", "0=0", "85=1", "170=1", "255=1")
    call(tiles_empty, "make_folds", *GIVEN, "--folds", "2", "--out", "two.csv", *words)
    assert "lake" not in (rows := pd.read_csv(tiles_empty / "two.csv")) and rows["glacier"].max() > 0
    run = train(tiles_empty, "--folds", "two.csv", *words, run="two")
    spec = load_checkpoint(run / "fold0" / "last.pt")["spec"]
    assert spec["outputs"] == ["background", "glacier"]
    assert spec["label_map"] == {"0": 0, "85": 1, "170": 1, "255": 1}
    call(tiles_empty, "ensemble", "--runs", "two", "--no-report")
    assert "logistic" in capsys.readouterr().out


def test_a_full_fit_and_its_solution(tiles_empty):
    """solution.py, loaded from its folder, gives the masks of infer.py."""
    words = (*tiny_tiles.QUICK, "--encoder", "resnet18", "--decoder", "32", "16", "16", "--epochs", "1")
    train(tiles_empty, "--fold", "all", run="full", base=words)
    call(tiles_empty, "infer", "--runs", "full", "--workers", "0", "--out", "preds")
    call(tiles_empty, "infer", "--runs", "full", "--solution", "hand-in")
    where = importlib.util.spec_from_file_location("handed_in", tiles_empty / "hand-in" / "solution.py")
    module = importlib.util.module_from_spec(where)
    where.loader.exec_module(module)
    made = module.maskgeration(str(tiles_empty / "data" / "Test"), str(tiles_empty / "made"))
    masks = check_masks(tiles_empty / "preds" / "masks", tiles_empty / "data", {0, 85, 170, 255})
    np.testing.assert_array_equal(made["001"], masks["img001.tif"])
    np.testing.assert_array_equal(made["09_08"], masks["B2_B2_masked_09_08.tif"])


def test_check_prints_all_and_draws_a_batch(tiles_empty, capsys):
    words = (*GIVEN, *tiny_tiles.QUICK, "--fold", "1", "--loss", "B", "--sampler", "balanced", "--run", "checked")
    call(tiles_empty, "train", *words, "--check", "--expect", "epochs=2", "sampler=balanced")
    out = capsys.readouterr().out
    settings = train_script.parser_of(GLACIER).actions()
    assert all(f"\n{key}:" in f"\n{out}" for key in settings), "every setting is printed"
    assert re.search(r"one step: loss \d.*boundary \d.*gradient norm \d", out)
    assert cv2.imread(str(tiles_empty / "runs" / "checked" / "check.jpg")).std() > 10
    assert not list((tiles_empty / "runs").rglob("*.pt"))


def test_samples_are_drawn(tiles_empty):
    folder = train(tiles_empty, "--fold", "0", "--samples-every", "2", run="drawn") / "fold0"
    assert [path.name for path in (folder / "samples").iterdir()] == ["epoch002.jpg"]
    assert cv2.imread(str(folder / "samples" / "epoch002.jpg")).std() > 10


def test_counts_alone(tiles_empty, capsys):
    """--no-oof keeps counts: a run can be scored and compared, what needs its maps says so."""
    words = ("--no-oof", "--epochs", "1")
    run = train(tiles_empty, *words, run="bare")
    assert "all 2 folds: out-of-fold score" in capsys.readouterr().out
    assert not list(run.rglob("*.npz")) and "prob" not in set_of(run / "fold0" / "oof_counts.csv")
    call(tiles_empty, "ensemble", "--runs", "bare", "--compare")
    capsys.readouterr()
    call(tiles_empty, "ensemble", "--runs", "bare", "--no-baselines", code=2)
    assert "without --no-oof" in capsys.readouterr().err
    call(tiles_empty, "infer", "--runs", "bare", "--workers", "0", "--out", "preds")
    assert "uncalibrated" in capsys.readouterr().out
    train(tiles_empty, *words, "--seed", "3", run="other")
    call(tiles_empty, "infer", "--runs", "bare", "other", "--workers", "0", "--out", "both")
    assert "uncalibrated" in capsys.readouterr().out


def test_shuffled_labels(tiles_empty, capsys):
    settings = {"label_map": [], "shuffle_images": False}
    plain = GLACIER.read_rows(tiles_empty / "data", settings)
    mixed = GLACIER.read_rows(tiles_empty / "data", settings | {"shuffle_images": True})
    assert list(plain["path"]) == list(mixed["path"]) and sorted(plain["label"]) == sorted(mixed["label"])
    assert (plain["label"] != mixed["label"]).mean() > 0.5 and "SHUFFLED" in capsys.readouterr().out


def test_studies_and_schemes_of_the_folds(tiles_empty, capsys):
    words = (*GIVEN, "--folds", "2", "--out", "other.csv", "--force")
    call(tiles_empty, "make_folds", *words, "--adversarial", "--duplicates")
    out = capsys.readouterr().out
    assert "train against test" in out and "near-duplicate" in out and "pairs of touching tiles" in out
    found = {}
    for name, more in {"blocks": (), "random": ("--scheme", "random"), "rows": ("--scheme", "rows"),
                       "held": ("--hold", "02_07", "03_08")}.items():  # fmt: skip
        call(tiles_empty, "make_folds", *words, *more)
        found[name] = pd.read_csv(tiles_empty / "other.csv", dtype={"id": str}).query("fold >= 0")
    assert "leaks" in capsys.readouterr().out
    assert set(found["held"].query("fold == 0")["id"]) == {"02_07", "03_08"}
    assert found["rows"].groupby(found["rows"]["id"].str[:2])["fold"].nunique().eq(1).all()


# HKH and --init


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A working folder: hkh/ with slices, folds by scene and runs/pre, one epoch on its fold 0."""
    home = tmp_path_factory.mktemp("hkh")
    tiny_tiles.make_slices(home / "hkh")
    call(home, "make_folds", "--task", "glacier", "--data", "hkh", "--folds", "3")
    train(home, "--fold", "0", "--loss", "A", "--epochs", "1", data="hkh", run="pre")
    return home


def test_slices_are_prepared_and_folded_by_scene(pretrained):
    rows = pd.read_csv(pretrained / "hkh" / "folds.csv")
    assert len(rows) == 6 and {"background", "glacier", "debris"} <= set(rows) and "lake" not in rows
    assert rows.groupby("group")["fold"].nunique().eq(1).all() and rows["fold"].nunique() == 3
    spec = load_checkpoint(pretrained / "runs/pre/fold0/last.pt")["spec"]
    assert spec["outputs"] == CLASSES[:3] and spec["bands"] == ["blue", "green", "red", "swir1", "thermal"]
    kept = [np.load(path) for path in sorted((pretrained / "cache").glob("hkh-*/tiles/*.npy"))]
    image = np.load(pretrained / "hkh" / "slice_S0_img_0.npy")
    np.testing.assert_array_equal(kept[0], image[..., [0, 1, 2, 4, 5]].transpose(2, 0, 1))
    train_rows = rows.query("fold != 0")
    pixels = [np.load(pretrained / "hkh" / f"slice_{n.split('_')[0]}_img_{n.split('_')[1]}.npy")
              [..., [0, 1, 2, 4, 5]] for n in train_rows["id"]]  # fmt: skip
    pixels = np.concatenate([p[(p != 0).any(-1)] for p in pixels])
    np.testing.assert_allclose(spec["mean"], pixels.mean(0, dtype=float), rtol=1e-5)
    np.testing.assert_allclose(spec["std"], pixels.std(0, dtype=float), rtol=1e-5)


UNCHANGED = ("--epochs", "1", "--lr", "0", "--weight-decay", "0", "--ema-decay", "0")


def test_fine_tuning_takes_what_fits_and_names_the_rest(tiles_empty, pretrained, capsys):
    """All of three classes but the new head row; the statistics are those of the new data."""
    run = train(tiles_empty, "--fold", "0", "--init", str(pretrained / "runs" / "pre"), *UNCHANGED, run="tuned")
    out = capsys.readouterr().out
    assert "head: background glacier debris by name, lake new" in out
    assert "stem: blue green red swir1 thermal by name" in out
    given = load_checkpoint(pretrained / "runs/pre/fold0/last.pt")
    taken = load_checkpoint(run / "fold0" / "last.pt")
    assert taken["spec"]["mean"] != given["spec"]["mean"]
    for key, value in given["ema"].items():
        mine = taken["state_dict"][key]
        if key.startswith("net.segmentation_head"):
            assert mine.shape[0] == 4 and torch.equal(mine[:3], value)
        elif "running" not in key and "num_batches" not in key:
            assert torch.equal(mine, value), key


def test_a_stem_of_15_bands(tiles_empty, pretrained, tmp_path, capsys):
    """The kernels of the five bands are found by name among fifteen; the other ten are named as not taken."""
    from common.datasets.hkh import CHANNELS

    content = load_checkpoint(pretrained / "runs/pre/fold0/last.pt")
    stem = next(key for key, value in content["ema"].items() if value.ndim == 4 and value.shape[1] == 5)
    wide = torch.randn(content["ema"][stem].shape[0], 15, *content["ema"][stem].shape[2:])
    content["ema"] = content["ema"] | {stem: wide}
    content["spec"] = content["spec"] | {"inputs": list(CHANNELS)}
    save_checkpoint(tmp_path / "wide.pt", content)
    run = train(tiles_empty, "--fold", "0", "--init", str(tmp_path / "wide.pt"), *UNCHANGED, run="tuned")
    out = capsys.readouterr().out
    left = [name for name in CHANNELS if name not in ("blue", "green", "red", "swir1", "thermal")]
    assert f"{' '.join(left)} of the checkpoint not taken" in out
    taken = load_checkpoint(run / "fold0" / "last.pt")["state_dict"][stem]
    torch.testing.assert_close(taken, wide[:, [0, 1, 2, 4, 5]])


# interrupted and resumed

RECIPE = (*tiny_tiles.SMALL, "--epochs", "4", "--schedule", "plateau", "--plateau-patience", "0", "--plateau-factor",
          ".3", "--warmup-epochs", "1", "--dropout", ".2", "--drop-path", ".2", "--accumulate", "2", "--ema-decay",
          ".9", "--sampler", "balanced", "--loss", "B", "--ramp-epochs", "3", "--lr", "1e-2", "--fold",
          "0")  # fmt: skip


@pytest.mark.parametrize("kind", ["pretraining", "fine-tuning"])
def test_killed_anywhere_and_resumed(tiles_empty, pretrained, monkeypatch, kind):
    """The same bytes of weights, plateau, history and maps as a run that nobody stopped."""
    home, words, data = tiles_empty, RECIPE, "data"
    if kind == "pretraining":
        (home / "hkh").symlink_to(pretrained / "hkh")
        data = "hkh"
    else:
        words = (*words, "--init", str(pretrained / "runs" / "pre"))
    folder = ends_with_the_same_bytes(monkeypatch, partial(train, home, data=data, base=words), home, seed=3)
    rates = [line["lr"] for line in log_of(folder)]
    factor = load_checkpoint(folder / "last.pt")["plateau"]["factor"]
    assert factor < 1 and rates[-1] < max(rates), "the rate fell on the way"


# every option does something

MODEL = ("--encoder", "resnet18", "--decoder", "16", "16", "16")
TEXTURE = ("--texture", "contrast")
BALANCED = ("--sampler", "balanced")
# what is changed -> what it is changed in; seen in the first step of --check
STEP = {
    ("--scale", "log"): (),
    ("--indices", "ndsi"): (),
    ("--relative", "red"): (),
    TEXTURE: (),
    ("--texture", "energy"): TEXTURE,
    (*TEXTURE, "--texture-band", "red"): TEXTURE,
    (*TEXTURE, "--texture-levels", "16"): TEXTURE,
    (*TEXTURE, "--texture-window", "5"): TEXTURE,
    ("--arch", "manet"): (),
    ("--encoder", "tu-test_resnet"): (),
    ("--decoder", "32", "16", "8"): (),
    ("--attention", "scse"): (),
    ("--attention", "cse"): ("--attention", "scse"),
    ("--stem", "full"): (),
    ("--spatial-attention", "head"): (),
    ("--spatial-attention", "bottleneck"): (),
    ("--dropout", ".5"): (),
    ("--loss", "focal"): (),
    ("--loss", "dice=.5", "mcc=.5"): (),
    ("--loss", "B"): ("--loss", "A"),
    ("--focal-alpha", "4", "3", "2", "1", "--loss", "focal"): ("--loss", "focal"),
    ("--focal-gamma", "3", "--loss", "focal"): ("--loss", "focal"),
    ("--border-weight", "6", "--loss", "boundary"): ("--loss", "boundary"),
    ("--border-width", "2", "--loss", "boundary"): ("--loss", "boundary"),
    ("--border-pairs", "glacier-debris", "--loss", "boundary"): ("--loss", "boundary"),
    ("--pair-weight", "9", "--border-pairs", "glacier-debris", "--loss", "boundary"):
        ("--border-pairs", "glacier-debris", "--loss", "boundary"),
    ("--mcc-phi", "0", "--loss", "mcc"): ("--loss", "mcc"),
    ("--tversky", ".5", ".5", "--loss", "tversky"): ("--loss", "tversky"),
    ("--loss", "dice", "--foreground"): ("--loss", "dice"),
    ("--ignore-rim", "1"): (),
    ("--fusion", "late"): (),
    ("--crop", "48"): (),
    BALANCED: (),
    ("--target-shares", ".1", ".2", ".1", ".6", *BALANCED): BALANCED,
    ("--boost", "lake=1.6"): (),
    ("--boost", "glacier-debris=1.4"): (),
    ("--augment", "hflip=1"): ("--augment",),
    ("--augment", "noise=1:3"): ("--augment", "noise=1:1"),
    ("--batch-size", "2"): (),
    ("--seed", "1"): (),
    ("--shuffle-images",): (),
}  # fmt: skip


@pytest.fixture(scope="module")
def first_step(tiles_home, tmp_path_factory):
    return tiny_tiles.first_steps(tmp_path_factory.mktemp("steps"), tiles_home / "data", tiny_tiles.QUICK)


@pytest.mark.parametrize("change", STEP, ids=" ".join)
def test_the_option_changes_the_step(first_step, monkeypatch, capsys, change):
    monkeypatch.delitem(GLACIER.draw, "sheet")
    assert first_step(change, capsys) != first_step(STEP[change], capsys)


def test_the_same_call_twice_takes_the_same_step(first_step, monkeypatch, capsys):
    """Else every comparison above would prove nothing."""
    monkeypatch.delitem(GLACIER.draw, "sheet")
    assert first_step((), capsys) == first_step(("--workers", "0"), capsys)


RUN = ("--epochs", "3", "--lr", "1e-2", "--no-oof", "--warmup-epochs", "0")
PLATEAU = ("--schedule", "plateau", "--plateau-patience", "0")
# seen in the weights at the end
TRAINED = {
    ("--backbone-lr", "1e-4"): (),
    # not in the first step: timm begins with branches that are zero
    ("--drop-path", ".5", "--encoder", "tu-test_resnet"): ("--encoder", "tu-test_resnet"),
    ("--crops-per-epoch", "12"): (),
    ("--ramp-epochs", "2", "--loss", "boundary"): ("--loss", "boundary"),
    PLATEAU: (),
    (*PLATEAU, "--plateau-factor", ".1"): PLATEAU,
    (*PLATEAU, "--plateau-patience", "9"): PLATEAU,
}


@pytest.fixture(scope="module")
def weights(tiles_home, tmp_path_factory):
    """words -> the weights that a fold trained with them ends with."""
    home, made = tmp_path_factory.mktemp("weights"), {}
    (home / "data").symlink_to(tiles_home / "data")

    def learn(words: tuple) -> dict:
        if words not in made:
            run = train(home, *RUN, "--fold", "0", *words, run=f"run{len(made)}")
            made[words] = load_checkpoint(run / "fold0" / "last.pt")["state_dict"]
        return made[words]

    return learn


@pytest.mark.parametrize("change", TRAINED, ids=" ".join)
def test_the_option_changes_what_is_learnt(weights, monkeypatch, change):
    """Every epoch scores worse than the one before, so that a plateau without patience falls."""
    monkeypatch.setattr(tracking.Tracker, "validate", lambda tracker, model, epoch: {"score": -float(epoch)})
    monkeypatch.setattr(tracking, "write_curves", lambda *_, **__: None)
    one, other = weights(TRAINED[change]), weights(change)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("script", ["make_folds", "train", "infer", "ensemble"])
def test_every_option_of_the_task_is_exercised(script):
    """An option that no test names could do nothing and nobody would know."""
    module = importlib.import_module(script)
    options = {name: set(action.option_strings) for name, action in module.parser_of(GLACIER).actions().items()}
    elsewhere = module.parser_of(TASKS["biomass"]).actions()
    here = [*Path(__file__).parent.glob("*glacier*.py"), Path(tiny_tiles.__file__)]
    words = {word for path in here for word in re.findall(r"--[a-z0-9-]+", path.read_text())}
    unused = [name for name, strings in options.items() if name not in elsewhere and not strings & words]
    assert not unused, unused
