"""The four scripts on small tiles of ordered classes: folds of overlapping tiles, runs, predictions, judgement."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import tiny_landslide
import torch
from sklearn.metrics import cohen_kappa_score, confusion_matrix, roc_auc_score
from tiny_landslide import BANDS, CLASSES, IGNORED, call, has_data, train

import infer as infer_script
import train as train_script
from common.datasets.folds import join_folds, read_folds
from common.engine.checkpoint import load_checkpoint
from common.outputs.masks import read_beside, read_probs
from common.tasks import TASKS

LANDSLIDE = TASKS["landslide"]
GIVEN = ("--task", "landslide", "--data", "data")
FOLDS = ("make_folds", *GIVEN, "--folds", "2")
PLAIN = ("--no-report", "--no-baselines")


def read_tif(path: Path):
    """(pixels (C,H,W), coordinate system, transform, type) of a GeoTIFF."""
    with rasterio.open(path) as file:
        return file.read(), file.crs, file.transform, file.dtypes[0]


def set_of(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"id": str}).sort_values("id", ignore_index=True)


def tile_of(home: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(raw bands (4,H,W), label (H,W)) of a training tile."""
    return (read_tif(home / "data/images" / f"{name}.tif")[0], read_tif(home / "data/labels" / f"{name}.tif")[0][0])


def masks_of(home: Path, folder: str, *, images="data/test/images", values=(0, 1, 2)) -> dict[str, np.ndarray]:
    """{id: mask} of a prediction set, one for every image, each on its grid, of these values and 0 without data."""
    masks, wanted = {}, {path.name: path for path in (home / images).iterdir()}
    assert {path.name for path in (home / folder / "masks").iterdir()} == set(wanted)
    for name, path in wanted.items():
        mask, *grid = read_tif(home / folder / "masks" / name)
        bands, crs, transform, _ = read_tif(path)
        assert grid == [crs, transform, "uint8"] and crs is not None
        assert set(np.unique(mask)) <= set(values) and not mask[0][~has_data(bands)].any()
        masks[path.stem] = mask[0]
    return masks


def probs_of(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{id: (prob (K,H,W), valid)} of the maps of a set."""
    return {path.stem: (read_probs(path), read_beside(path, "valid")) for path in sorted(folder.glob("*.npz"))}


def by_thresholds(maps: dict, thresholds) -> dict[str, np.ndarray]:
    scale = np.array(thresholds, float)[:, None, None]
    return {name: np.where(valid, (prob / scale).argmax(0), 0) for name, (prob, valid) in maps.items()}


def same_masks(one: dict, other: dict) -> bool:
    return set(one) == set(other) and all((one[name] == other[name]).all() for name in one)


# what a run leaves


def test_what_a_run_leaves(hills_home):
    """The score of a fold is Cohen's kappa of the maps it kept, over labelled pixels with data; post.json is whole."""
    run, rows = hills_home / "runs/one", pd.read_csv(hills_home / "data/folds.csv")
    ledger = pd.read_csv(hills_home / "runs/ledger.csv")
    assert list(zip(ledger["run"], ledger["fold"], strict=True)) == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    assert set(CLASSES) <= set(rows) and (rows["fold"] == -1).sum() == 2
    for fold in (0, 1):
        frame = set_of(run / f"fold{fold}/oof_counts.csv")
        assert sorted(frame["id"]) == sorted(rows.query("fold == @fold")["id"])
        truths, preds = [], []
        for line in frame.to_dict("records"):
            path = run / f"fold{fold}" / line["prob"]
            bands, label = tile_of(hills_home, line["id"])
            valid = has_data(bands) & (label != IGNORED)
            np.testing.assert_array_equal(read_beside(path, "valid"), valid)
            pred = read_probs(path).argmax(0)
            counts = confusion_matrix(label[valid], pred[valid], labels=range(3))
            assert counts.ravel().tolist() == [line[f"n_{t}_{p}"] for t in range(3) for p in range(3)]
            assert line["nodata"] == (~has_data(bands)).sum()
            truths.append(label[valid])
            preds.append(pred[valid])
        wanted = cohen_kappa_score(np.concatenate(truths), np.concatenate(preds))
        assert ledger.query("run == 'one' and fold == @fold")["score"].item() == pytest.approx(wanted, abs=1e-9)
        assert wanted > 0.4, "it learns"
    post = json.loads((run / "post.json").read_text())
    assert len(post["thresholds"]) == 3 and {"isotonic", "temperature"} <= set(post)
    assert set(post["aims"]) == {"production", "v2.5", "v3"}
    used = [tile_of(hills_home, name)[0] for name in rows.query("fold >= 0")["id"]]
    pixels = np.concatenate([bands[:, has_data(bands)] for bands in used], axis=1).astype(float)
    np.testing.assert_allclose([post["bands"][name][0] for name in BANDS], pixels.mean(1), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose([post["bands"][name][1] for name in BANDS], pixels.std(1), rtol=1e-4)


def test_the_sentinel_reaches_no_statistic(hills_home):
    """Mean and deviation of the spec are those of the training tiles' pixels with data, by numpy."""
    folds = pd.read_csv(hills_home / "data/folds.csv")
    for fold in (0, 1):
        spec = load_checkpoint(hills_home / f"runs/one/fold{fold}/last.pt")["spec"]
        names = folds["id"][(folds["fold"] >= 0) & (folds["fold"] != fold)]
        tiles = [tile_of(hills_home, name)[0] for name in names]
        pixels = np.concatenate([bands[:, has_data(bands)] for bands in tiles], axis=1).astype(float)
        assert spec["bands"] == spec["inputs"] == list(BANDS) and spec["outputs"] == CLASSES
        np.testing.assert_allclose(spec["mean"], pixels.mean(1), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(spec["std"], pixels.std(1), rtol=1e-4)
    assert any(not has_data(tile_of(hills_home, name)[0]).all() for name in folds["id"][folds["fold"] >= 0])


def test_batches_are_finite_and_empty_where_there_is_no_data(hills_home):
    settings = vars(train_script.parser_of(LANDSLIDE).parse_args([*tiny_landslide.QUICK, "--focal-alpha", "1"]))
    settings |= {"cache_images": False, "augment": ["hflip=0"]}
    rows = LANDSLIDE.read_rows(hills_home / "data", settings)
    spec = LANDSLIDE.make_spec(rows, settings)
    tiles = [tile_of(hills_home, name)[0] for name in rows["id"]]
    pixels = np.concatenate([bands[:, has_data(bands)] for bands in tiles], axis=1).astype(float)
    np.testing.assert_allclose(spec["mean"], pixels.mean(1), rtol=1e-5, atol=1e-4)
    data, without = LANDSLIDE.open_training(rows, spec, settings), 0
    for sample in (data[0, k] for k in range(len(data))):
        image, there, valid = sample["image"].numpy(), sample["data"].numpy(), sample["valid"].numpy()
        assert np.isfinite(image).all() and np.abs(image).max() < 12 and not image[:, ~there].any()
        assert not valid[~there].any()
        without += (~there).sum()
    assert without > 50


def test_out_of_fold_predictions_are_given_back(hills_copy, capsys):
    """--rows oof; they can be moved and judged as a stranger's."""
    home, run = hills_copy, hills_copy / "runs/one"
    call(home, "infer", "--runs", "one", "--rows", "oof", "--workers", "0", "--out", "back")
    kept = pd.concat([set_of(run / f"fold{fold}/oof_counts.csv") for fold in (0, 1)])
    kept, back = kept.sort_values("id", ignore_index=True), set_of(home / "back/oof_counts.csv")
    pd.testing.assert_frame_equal(back.drop(columns="prob"), kept.drop(columns="prob")[list(back.drop(columns="prob"))])
    for line in back.to_dict("records"):
        paths = home / "back" / line["prob"], run / f"fold{line['fold']}/oof/{line['id']}.npz"
        one, other = (np.load(path)["prob"] for path in paths)
        assert np.abs(one.view(np.int16).astype(int) - other.view(np.int16)).max() <= 1, "one unit of float16 at most"
    shutil.move(home / "back", home / "moved")
    capsys.readouterr()
    call(home, "ensemble", "--oof", "moved/oof_counts.csv", "--truth", "data", "--task", "landslide", "--no-report")
    assert "HONEST" in capsys.readouterr().out


@pytest.mark.parametrize("always", [False, True])
def test_training_rows_are_predicted_once_by_a_fold_that_was_trained_on_them(hills_home, always):
    rows = pd.read_csv(hills_home / "data/folds.csv")
    used = rows["fold"].isin([0, 1])
    if always:
        rows.loc[rows["fold"] == 1, "fold"] = -2
    folds = ["0"] if always else ["0", "1"]
    parts = {fold: infer_script.rows_of_fold(rows, fold, "train") for fold in folds}
    assert sorted(pd.concat(parts.values())["id"]) == sorted(rows["id"][used & (not always or rows["fold"] == -2)])
    assert not any((part["fold"] == int(fold)).any() for fold, part in parts.items())
    whole = infer_script.rows_of_fold(rows, "all", "train")
    assert sorted(whole["id"]) == sorted(rows["id"][used]), "neither test nor unused"
    three = pd.DataFrame({"id": list("abcdef"), "fold": [0, 1, 2, -1, -2, -3]})
    said = ["".join(infer_script.rows_of_fold(three, fold, "train")["id"]) for fold in "012"]
    assert said == ["ce", "a", "b"]


def test_success_rate_beside_the_prediction_rate(hills_copy, capsys):
    """Of predictions by the other fold's model, by scikit-learn; drawn, and refused where it says nothing."""
    home = hills_copy
    call(home, "infer", "--runs", "one", "--rows", "train", "--workers", "0", "--out", "fit")
    kept, fit = set_of(home / "runs/one/fold0/oof_counts.csv"), set_of(home / "fit/train_counts.csv")
    folds = pd.read_csv(home / "data/folds.csv").set_index("id")["fold"]
    assert fit["id"].tolist() == sorted(folds.index[folds >= 0])
    assert fit["fold"].tolist() == folds[fit["id"]].tolist()
    same = fit.set_index("id").loc[kept["id"], "n_0_0"].to_numpy() == kept["n_0_0"]
    assert not same.all(), "not its validation again"
    capsys.readouterr()
    call(home, "ensemble", "--runs", "one", "--success", "fit", "--no-baselines")
    words = capsys.readouterr().out.splitlines()
    at = next(k for k, line in enumerate(words) if line.split()[:3] == ["class", "prediction", "rate"])
    _, prediction, success = words[at + 2].split()
    truth, values = [], []
    for path in (home / "fit/train").glob("*.npz"):
        valid, prob = read_beside(path, "valid"), read_probs(path)
        truth.append(read_beside(path, "target")[valid] == 2)
        values.append((0.5 * prob[1] + prob[2])[valid])
    truth = np.concatenate(truth)
    auroc, share = roc_auc_score(truth, np.concatenate(values)), truth.mean()
    assert float(success) == pytest.approx(auroc * (1 - share) + share / 2, abs=2e-4)
    assert float(prediction) != float(success)
    page = (home / "out/report.html").read_text()
    assert page.count("of the success rate") == 2 and "success rate: tiles trained on" in page
    for words, why in ((("--success", "fit", "--compare"), "--compare makes none"),
                       (("--success", "runs/one"), "holds no train_counts.csv")):  # fmt: skip
        call(home, "ensemble", "--runs", "one", *words, *PLAIN, code=2)
        assert why in capsys.readouterr().err


# folds


def sharing(table: pd.DataFrame, side: dict) -> list[tuple]:
    """Pairs of tiles on two sides that share pixels, the slow way."""
    used = [row for row in table.itertuples() if side.get(row.id, -3) != -3]
    return [(a.id, b.id) for a in used for b in used if side[a.id] != side[b.id] and a.raster == b.raster
            and abs(a.y - b.y) < a.height and abs(a.x - b.x) < a.width]  # fmt: skip


def test_blocks_leave_no_overlap(hills_empty, capsys):
    """Few tiles are unused, in no fold; of the random scheme the same is said to leak."""
    table = pd.read_csv(hills_empty / "data/tiles.csv")
    folds = set_of(hills_empty / "data/folds.csv")
    side = dict(zip(folds["id"], folds["fold"], strict=True))
    assert not sharing(table, side) and sharing(table, {name: k % 2 for k, name in enumerate(table["id"])})
    unused = folds.query("fold == -3")
    assert 0 < len(unused) < 12 and set(unused["group"]) == {"unused"}
    assert (folds.query("fold >= 0").groupby("fold").size() > 10).all()
    rows = LANDSLIDE.read_rows(hills_empty / "data", {"label_map": []})
    joined = join_folds(rows, read_folds(hills_empty / "data/folds.csv"), "folds.csv")
    for fold in (0, 1, "all"):
        sides = [part for part in train_script.split_rows(joined, fold) if part is not None]
        assert not set(pd.concat(sides)["id"]) & set(unused["id"]) and len(pd.concat(sides)) == 45 - len(unused)
    call(hills_empty, *FOLDS, "--scheme", "random", "--out", "random.csv")
    assert "leaks" in capsys.readouterr().out and (set_of(hills_empty / "random.csv")["fold"] == -3).sum() == 0
    call(hills_empty, *FOLDS, "--scheme", "blocks", "--out", "again.csv")
    assert set_of(hills_empty / "again.csv").equals(folds)


def test_folders_of_a_published_split_are_the_folds(tmp_path, capsys):
    """Without a word, train is trained on, val validated and test predicted; --scheme blocks leaves test alone."""
    tiny_landslide.make_hills(tmp_path / "data", splits=True)
    call(tmp_path, "make_folds", *GIVEN)
    folds = set_of(tmp_path / "data/folds.csv").set_index("id")["fold"]
    column = folds.index.str[-3:].astype(int)
    wanted = np.select([column < 64, column < 112], [-2, 0], -1)
    assert folds.tolist() == wanted.tolist() and {-2, -1, 0} == set(wanted)
    call(tmp_path, *FOLDS, "--scheme", "blocks", "--out", "blocks.csv")
    blocks = set_of(tmp_path / "blocks.csv").set_index("id")["fold"]
    assert (blocks[column >= 112] == -1).all() and set(blocks[column < 112]) - {-3} == {0, 1}
    train(tmp_path, "--epochs", "1", run="split")
    call(tmp_path, "infer", "--runs", "split", "--workers", "0", "--out", "preds")
    masks = masks_of(tmp_path, "preds", images="data/tiles/test/images")
    assert set(masks) == set(folds.index[folds == -1])
    call(tmp_path, "infer", "--runs", "split", "--workers", "0", "--out", "refined", "--crf")
    assert set(masks_of(tmp_path, "refined", images="data/tiles/test/images")) == set(masks)


def test_tiles_of_two_splits_with_the_same_names(tmp_path):
    """Their ids carry the split, their masks the names of the tiles."""
    tiny_landslide.make_hills(tmp_path / "data", splits=True)
    for split in ("train", "val", "test"):
        home = tmp_path / "data/tiles" / split
        (home / "tiles.csv").unlink()
        for inner in ("images", "labels"):
            for number, path in enumerate(sorted((home / inner).iterdir())):
                path.rename(path.with_name(f"t{number}.tif"))
    call(tmp_path, "make_folds", *GIVEN)
    folds = set_of(tmp_path / "data/folds.csv")
    assert folds["id"].str.split("_").str[0].map({"train": -2, "val": 0, "test": -1}).tolist() == folds["fold"].tolist()
    train(tmp_path, "--epochs", "1", run="split")
    call(tmp_path, "infer", "--runs", "split", "--workers", "0", "--out", "preds", "--crf")
    assert len(masks_of(tmp_path, "preds", images="data/tiles/test/images")) == 10


def test_rows_held_by_name_and_left_out(hills_empty):
    """--hold and --leave-out; rows of fold -1 are what infer.py predicts once no other test tiles are there."""
    shutil.rmtree(hills_empty / "data/test")
    held, left = ["hills_y000_x000"], ["hills_y064_x128", "hills_y064_x096"]
    for row in set_of(hills_empty / "data/tiles.csv").itertuples():
        if row.y % 32 or row.x % 32:  # it overlaps another
            for inner in ("images", "labels"):
                (hills_empty / f"data/{inner}/{row.id}.tif").unlink()
    call(hills_empty, "make_folds", *GIVEN, "--hold", *held, "--leave-out", *left, "--force")
    table = set_of(hills_empty / "data/folds.csv")
    assert set(table.query("fold == 0")["id"]) == set(held) and set(table.query("fold < -2")["id"]) == set(left)
    table.assign(fold=table["fold"].replace(-3, -1)).to_csv(hills_empty / "data/folds.csv", index=False)
    train(hills_empty, "--epochs", "1", "--no-oof", run="held")
    call(hills_empty, "infer", "--runs", "held", "--workers", "0", "--out", "preds")
    assert {path.stem for path in (hills_empty / "preds/masks").iterdir()} == set(left)


def test_studies_of_the_folds(hills_empty, capsys):
    """A classifier between the sides, copies of a tile, and unused tiles in neither."""
    folds = set_of(hills_empty / "data/folds.csv")
    first, second = (folds.query("fold == @k")["id"].iloc[3] for k in (0, 1))
    unused = folds.query("fold == -3")["id"].iloc[0]
    for name in (second, unused):
        bands, crs, transform, _ = read_tif(hills_empty / f"data/images/{name}.tif")
        copy = read_tif(hills_empty / f"data/images/{first}.tif")[0]
        tiny_landslide.write_raster(hills_empty / f"data/images/{name}.tif", copy, transform, BANDS, crs, nodata=-9999)
    call(hills_empty, *FOLDS, "--adversarial", "--duplicates", "--out", "studied.csv")
    out = capsys.readouterr().out
    assert "train against test" in out and "fold 0 against the others" in out
    near = out.split("near-duplicate")[1]
    assert re.search(f"{first}.*{second}|{second}.*{first}", near) and unused not in near


# other sets


@pytest.mark.parametrize("values", [(0, 1), (0, 255)])
def test_binary_sets(tmp_path, values):
    """Two classes by the values of the masks; the weights of the loss that are the default are those of two."""
    tiny_landslide.make_hills(tmp_path / "data", values=values)
    call(tmp_path, *FOLDS)
    rows = set_of(tmp_path / "data/folds.csv")
    assert {"background", "landslide"} <= set(rows) and "high" not in rows
    assert rows.query("fold != -1")["landslide"].mean() == pytest.approx(0.28, abs=0.05)
    run = train(tmp_path, run="two")
    spec = load_checkpoint(run / "fold0/last.pt")["spec"]
    assert spec["outputs"] == ["background", "landslide"]
    assert spec["label_map"] == {str(values[0]): 0, str(values[1]): 1} and spec["model"]["head"] == "coral"
    call(tmp_path, "infer", "--runs", "two", "--workers", "0", "--out", "preds")
    masks_of(tmp_path, "preds", values=(0, 1))
    call(tmp_path, "ensemble", "--runs", "two", *PLAIN, "--gates", "production", code=2)


def test_focal_weights_of_two_classes(hills_home):
    """The first and the last of the default three; numbers that are given stay."""
    settings = vars(train_script.parser_of(LANDSLIDE).parse_args([])) | LANDSLIDE.defaults
    spec = {"outputs": ["background", "landslide"], "model": {"head": "softmax"}}
    torch.manual_seed(0)
    outputs = torch.randn(2, 2, 8, 8)
    batch = {"target": torch.randint(0, 2, (2, 8, 8)), "valid": torch.ones(2, 8, 8, dtype=torch.bool)}
    given, losses = {"default": {}, "given": {"focal_alpha": [0.4, 2.0]}, "other": {"focal_alpha": [1.0, 1.0]}}, {}
    for name, more in given.items():
        losses[name] = float(LANDSLIDE.build_loss(spec, settings | more)(outputs, batch)["loss"])
    assert losses["default"] == losses["given"] != losses["other"]


def test_numpy_tiles_with_a_list_of_bands(tmp_path):
    """bands.txt names them; --bands chooses by name, in the order given; masks are GeoTIFFs without a place."""
    tiny_landslide.make_hills(tmp_path / "data", kind="npy")
    call(tmp_path, *FOLDS)
    run = train(tmp_path, "--bands", "slope", "elevation", "--epochs", "1", "--fold", "0", run="some")
    spec = load_checkpoint(run / "fold0/last.pt")["spec"]
    assert spec["bands"] == ["slope", "elevation"] and 15 < spec["mean"][0] < 25 and spec["mean"][1] > 1400
    call(tmp_path, "infer", "--runs", "some", "--fold", "0", "--workers", "0", "--out", "preds")
    names = {path.stem for path in (tmp_path / "data/test/images").iterdir()}
    masks = {path.stem: read_tif(path)[0][0] for path in (tmp_path / "preds/masks").iterdir()}
    assert set(masks) == names and not any(mask[3:6].any() for mask in masks.values())


# the judgement


def test_gates_and_their_exit_codes(hills_copy, monkeypatch, capsys):
    words = ("ensemble", "--runs", "one", *PLAIN, "--gates")
    call(hills_copy, *words, "v3", code=1)
    said = capsys.readouterr().out
    assert re.search(r"FAIL  precision_medium .*needed 0\.25\)|FAIL  recall_high .*needed 0\.93\)", said)
    assert re.search(r"(PASS|FAIL)  kappa .*needed 0\.50\)", said) and re.search(r"(PASS|FAIL)  rho", said)
    assert re.search(r"v3: \d of 4 not met", said)
    low = dict.fromkeys(LANDSLIDE.gates["production"], -1.0)
    monkeypatch.setitem(LANDSLIDE.gates, "production", low)
    call(hills_copy, *words, "production")
    said = capsys.readouterr().out
    assert said.count("PASS") == 4 and "FAIL" not in said
    monkeypatch.setitem(LANDSLIDE.gates, "v2.5", low | {"rho": 0.999})
    call(hills_copy, *words, "v2.5", code=1)


def test_runs_side_by_side(hills_copy, capsys):
    """compare.csv and compare.html: the seeds, their mean and the published rows."""
    home = hills_copy
    call(home, "ensemble", "--runs", "one", "two", "--compare", "--thresholds", "argmax")
    table = pd.read_csv(home / "out/compare.csv")
    assert list(table["run"]) == ["one", "two", "one, mean of 2 seeds"] and {"kappa", "rho"} <= set(table)
    frame = pd.concat([set_of(home / f"runs/one/fold{fold}/oof_counts.csv") for fold in (0, 1)])
    counts = frame[[f"n_{t}_{p}" for t in range(3) for p in range(3)]].sum().to_numpy().reshape(3, 3)
    total = counts.sum()
    chance = (counts.sum(0) * counts.sum(1)).sum() / total**2
    assert table["kappa"][0] == pytest.approx((np.trace(counts) / total - chance) / (1 - chance), abs=1e-9)
    page = (home / "out/compare.html").read_text()
    assert "V1 (published)" in page and "0.3108" in page and "mean of 2 seeds" in page and 'src="http' not in page
    call(home, "ensemble", "--runs", "one", "two", "--compare", "--crf", "--no-report", "--out", "refined")
    refined = pd.read_csv(home / "refined/compare.csv").set_index("run")
    assert (refined["kappa"]["one + CRF"] != refined["kappa"]["one"]) and not (home / "refined/compare.html").exists()
    assert refined["rho"]["one + CRF"] == refined["rho"]["one"]
    capsys.readouterr()


def test_two_runs_blended_saved_and_applied(hills_copy, capsys):
    home = hills_copy
    for run in ("one", "two"):
        call(home, "infer", "--runs", run, "--tta", "hflip", "rot90", "--workers", "0", "--out", f"preds/{run}")
    assert "2 folds x 3 views (identity hflip rot90)" in capsys.readouterr().out
    call(home, "ensemble", "--runs", "one", "two", "--kind", "weights", "--save-blend", "blend.json")
    out = capsys.readouterr().out
    assert all(word in out for word in ("HONEST", "fitted", "constant", "logistic", "95 % interval", "report:"))
    page = (home / "out/report.html").read_text()
    assert "one" in page and 'src="http' not in page
    assert "A logistic regression on the bands of single pixels" in page and "it was not asked for" not in page
    call(home, "ensemble", "--preds", "preds/one", "preds/two", "--blend", "blend.json", *GIVEN, "--out", "final",
         "--thresholds", "fitted")  # fmt: skip
    blend, masks = json.loads((home / "blend.json").read_text()), masks_of(home, "final")
    parts = [probs_of(home / f"preds/{name}/prob") for name in blend["members"]]
    maps = probs_of(home / "final/prob")
    for name, (prob, _) in maps.items():
        mixed = sum(weight * part[name][0] for weight, part in zip(blend["weights"], parts, strict=True))
        np.testing.assert_allclose(prob, mixed, atol=1e-3)
    assert same_masks(masks, by_thresholds(maps, blend["post"]["thresholds"]))
    call(home, "ensemble", "--preds", "preds/one", "preds/two", "--data", "data", "--out", "mean")
    assert "uncalibrated" in capsys.readouterr().out
    call(home, "infer", "--runs", "one", "two", "--workers", "0", "--out", "both")
    assert "uncalibrated" not in capsys.readouterr().out and set(masks_of(home, "both")) == set(masks)


def test_post_again_and_a_full_fit(hills_copy, capsys):
    home, post = hills_copy, (hills_copy / "runs/one/post.json").read_text()
    (home / "runs/one/post.json").unlink()
    call(home, "ensemble", "--runs", "one", "--fit-post")
    assert (home / "runs/one/post.json").read_text() == post
    train(home, "--fold", "all", "--epochs", "1", run="full")
    capsys.readouterr()
    call(home, "infer", "--runs", "full", "--workers", "0", "--out", "full")
    assert "uncalibrated" in capsys.readouterr().out and len(masks_of(home, "full")) == 2
