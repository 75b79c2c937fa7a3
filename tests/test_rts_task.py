"""The four scripts on thaw-slump tiles, from PLANET-RGB to masks: splits, ratios, calibration, the one final test."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import tiny_rts
import yaml
from rasterio.features import shapes
from rasterio.transform import Affine
from scipy import ndimage
from sklearn.metrics import confusion_matrix
from tiny_rts import call, log_of, train

from common.engine import tracking
from common.engine.checkpoint import load_checkpoint
from common.outputs.masks import logit_of, read_beside, read_logit
from common.tasks import TASKS, rare_class

RTS = TASKS["rts"]
GIVEN = ("--task", "rts", "--data", "data")
SIDE = {region: number for number, side in ((-2, "train"), (0, "val"), (-1, "test")) for region in
        tiny_rts.SPLITS[side]}  # fmt: skip


def read_tif(path: Path):
    with rasterio.open(path) as file:
        return file.read(1), file.crs, file.transform, file.dtypes[0]


def set_of(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"id": str}).sort_values("id", ignore_index=True)


def folds_of(home: Path, name="data/folds.csv") -> pd.DataFrame:
    return set_of(home / name)


def raw_label(home: Path, tile: str) -> np.ndarray:
    return read_tif(home / "data" / "labels" / f"{tile}.tif")[0]


def masks_of(home: Path, folder: str) -> dict[str, np.ndarray]:
    """{id: mask} of a prediction set, each on its image's grid, 0 and 1 and 0 without data."""
    masks = {}
    for path in sorted((home / folder / "masks").iterdir()):
        mask, crs, transform, kind = read_tif(path)
        red, wanted_crs, wanted_transform, _ = read_tif(home / "data" / "PLANET-RGB" / path.name)
        assert (crs, transform, kind) == (wanted_crs, wanted_transform, "uint8") and crs is not None
        assert set(np.unique(mask)) <= {0, 1} and not mask[red == 0].any()
        masks[path.stem] = mask
    return masks


def logits_of(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{id: (logit, valid)} of the maps of a set."""
    return {path.stem: (read_logit(path), read_beside(path, "valid")) for path in sorted(folder.glob("*.npz"))}


# folds


def test_splits_yaml_decides_the_folds(slumps_home):
    """Regions of train are trained on in every fold (-2), of val validated (0), of test neither (-1)."""
    folds, meta = folds_of(slumps_home), pd.read_csv(slumps_home / "data" / "metadata.csv")
    region = folds["id"].map(meta.set_index("Tile_id")["RegionName"])
    assert folds["fold"].tolist() == region.map(SIDE).tolist() and len(folds) == 24
    assert {"background", "slump"} <= set(folds)
    shares = [np.mean(label[(label < 255) & (red > 0)]) for label, red in
              ((raw_label(slumps_home, n), read_tif(slumps_home / f"data/PLANET-RGB/{n}.tif")[0]) for n in folds["id"])
              ]  # fmt: skip
    np.testing.assert_allclose(folds["slump"], shares, atol=1e-6)


def test_other_schemes_keep_the_test_regions(slumps_empty, capsys):
    """Folds of regions, one region at a time, at random (says that it leaks), held by name; test stays test."""
    meta, found = pd.read_csv(slumps_empty / "data/metadata.csv").set_index("Tile_id")["RegionName"], {}
    words = ("--out", "other.csv", "--force")
    for name, more in {"regions": ("--folds", "2"), "region": (), "random": ("--folds", "3")}.items():
        call(slumps_empty, "make_folds", *GIVEN, "--scheme", name, *more, *words)
        assert ("leaks" in capsys.readouterr().out) == (name == "random")
        found[name] = folds_of(slumps_empty, "other.csv").assign(region=lambda t: t["id"].map(meta))
        assert set(found[name].query("fold == -1")["region"]) == {"Firth"}
    assert found["regions"].groupby("region")["fold"].nunique().eq(1).all()
    assert sorted(found["regions"]["fold"].unique()) == [-1, 0, 1]
    assert sorted(found["region"]["fold"].unique()) == [-1, 0, 1, 2, 3, 4]
    assert found["random"].groupby("region")["fold"].nunique().max() > 1
    call(slumps_empty, "make_folds", *GIVEN, "--hold", "akl00", "akl03", *words)
    held = folds_of(slumps_empty, "other.csv")
    assert set(held.query("fold == 0")["id"]) == {"akl00", "akl03"}


def test_without_splits_the_regions_are_searched(slumps_empty):
    (slumps_empty / "data/splits.yaml").unlink()
    call(slumps_empty, "make_folds", *GIVEN, "--out", "searched.csv")
    folds = folds_of(slumps_empty, "searched.csv")
    sides = folds.groupby(folds["id"].str[:3])["fold"].agg(["nunique", "first"])
    assert sides["nunique"].eq(1).all() and sorted(sides["first"]) == [-2, -2, -2, -2, -1, 0]


def test_studies_of_the_folds(slumps_empty, capsys):
    """Distances, a classifier between the sides, copies of a tile, and two sets of labels side by side."""
    data = slumps_empty / "data"
    for kind in ("PLANET-RGB", "EXTRA", "labels"):  # a tile of the other side once more
        shutil.copy(data / kind / "akl00.tif", data / kind / "dem00.tif")
    shutil.copytree(data / "labels", data / "older")
    label, _, transform, _ = read_tif(data / "labels/ban00.tif")
    tiny_rts.write_raster(data / "older/ban00.tif", np.where(label == 1, 0, label), transform)
    words = ("--adversarial", "--duplicates", "--compare-labels", "older", "--out", "o.csv")
    call(slumps_empty, "make_folds", *GIVEN, *words)
    out = capsys.readouterr().out
    assert "; 0 tiles nearer than 2,500 m" in out
    near = pd.read_csv(slumps_empty / "distances.csv")
    assert near["side"].tolist() == ["fold 0", "test"] and near["distance_m"].between(10_000, 150_000).all()
    assert "train against test" in out and "fold 0 against the others" in out
    assert re.search(r"akl00.*dem00|dem00.*akl00", out.split("near-duplicate")[1])
    table = out.split("which counts as true:")[1]
    assert re.search(r"\n *akl00 +1\.0", table) and re.search(r"\n *ban00 +0\.0", table)
    call(slumps_empty, "make_folds", *GIVEN, "--distance", "150000", "--out", "far.csv", code=2)
    assert "nearer than 150,000 m" in capsys.readouterr().err and not (slumps_empty / "far.csv").exists()
    assert pd.read_csv(slumps_empty / "distances.csv")["below"].gt(0).all(), "kept although refused"


def move_regions(home: Path, *, apart: float, splits: dict | None = None) -> pd.Series:
    """Regions come to lie 50 km apart, Banks and Eureka `apart` metres from Aklavik and Firth; {id: region}."""
    meta = pd.read_csv(home / "data/metadata.csv")
    number = meta["RegionName"].map({name: k for k, name in enumerate(tiny_rts.REGIONS)})
    near = {"Banks": (0, apart), "Eureka": (5, apart)}
    place = [near.get(name, (k, 0.0)) for name, k in zip(meta["RegionName"], number, strict=True)]
    meta["centroid_lat"] = [67 - (k * 50_000 + metres) / 111_500 for k, metres in place]
    meta.to_csv(home / "data/metadata.csv", index=False)
    (home / "data/splits.yaml").unlink()
    (home / "data/folds.csv").unlink()
    if splits:
        (home / "data/splits.yaml").write_text(yaml.safe_dump(splits))
    return meta.set_index("Tile_id")["RegionName"]


def test_a_searched_split_keeps_the_distance_asked_for(slumps_empty):
    """--distance is what the search itself keeps; without it the default, which is more than a tile's diagonal."""
    region = move_regions(slumps_empty, apart=6000)
    for scheme in (("split",), ("regions", "--folds", "3"), ("region",)):
        words = ("--scheme", *scheme, "--distance", "8000", "--out", "kept.csv", "--force")
        for seed in ("1", "2", "3"):
            call(slumps_empty, "make_folds", *GIVEN, *words, "--seed", seed)
            side = folds_of(slumps_empty, "kept.csv").set_index("id")["fold"].groupby(region).first()
            assert side["Aklavik"] == side["Banks"] and side["Eureka"] == side["Firth"]
    call(slumps_empty, "make_folds", *GIVEN, "--scheme", "region", "--out", "free.csv")
    assert folds_of(slumps_empty, "free.csv")["fold"].nunique() == 6
    call(slumps_empty, "make_folds", *GIVEN, "--distance", "-1", "--out", "free.csv", code=2)


def test_folds_made_by_train_keep_the_distance(slumps_empty, capsys):
    """Tiles of 512 pixels of 3 m whose centres are 1536 m apart touch: train.py refuses such a split, as said."""
    sides = {"train": ["Aklavik", "Colville"], "val": ["Banks", "Dempster"], "test": ["Eureka", "Firth"]}
    move_regions(slumps_empty, apart=1536, splits=sides)
    words = ("train", *tiny_rts.QUICK, "--data", "data", "--epochs", "1", "--run", "made")
    call(slumps_empty, *words, code=2)
    said = capsys.readouterr().err
    assert "fold 0" in said and "nearer than 2,500 m" in said and "make_folds.py --distance" in said
    assert pd.read_csv(slumps_empty / "runs/made/distances.csv")["below"].tolist() == [16, 0]
    (slumps_empty / "data/splits.yaml").unlink()
    call(slumps_empty, *words)
    assert pd.read_csv(slumps_empty / "runs/made/distances.csv")["distance_m"].min() > 40_000


# what a run leaves, and what becomes of it


def test_what_a_run_leaves(slumps_home):
    """The score of a fold is the balanced IoU of the maps it kept; nobody of fold -1 was trained on."""
    folder = slumps_home / "runs/one/fold0"
    for name in ("args.yaml", "log.jsonl", "best.pt", "last.pt", "oof_counts.csv", "curves.png", "finished.json"):
        assert (folder / name).is_file(), name
    frame, folds = set_of(folder / "oof_counts.csv"), folds_of(slumps_home)
    assert sorted(frame["id"]) == sorted(folds.query("fold == 0")["id"])
    total = np.zeros((2, 2, 2))
    for _, line in frame.iterrows():
        logit, valid = read_logit(folder / line["prob"]), read_beside(folder / line["prob"], "valid")
        truth, red = raw_label(slumps_home, line["id"]), read_tif(slumps_home / f"data/PLANET-RGB/{line['id']}.tif")[0]
        np.testing.assert_array_equal(valid, (truth != 255) & (red != 0))
        counts = confusion_matrix(truth[valid], logit[valid] > 0, labels=range(2))
        assert counts.ravel().tolist() == [line[f"n_{t}_{p}"] for t in range(2) for p in range(2)]
        assert line["nodata"] == (red == 0).sum()
        total[int((truth[valid] == 1).any())] += counts
    (_, missed), (false, hit) = (total[0] + total[1]).T  # as many tiles with slumps as without
    missed, false = total.sum(0)[1, 0], total.sum(0)[0, 1]
    score = json.loads((folder / "finished.json").read_text())["score"]
    assert score == pytest.approx(hit / (hit + false + missed), abs=1e-6) and score > 0.5, "it learns"
    last = log_of(folder)[-1]
    assert {"precision", "recall", "predicted", "train_predicted"} <= set(last)


def test_statistics_are_of_the_training_regions_alone(slumps_home):
    """Mean and deviation of the spec are those of the pixels of fold -2: validated and tested rows add nothing."""
    spec = load_checkpoint(slumps_home / "runs/one/fold0/last.pt")["spec"]
    tiles = []
    for name in folds_of(slumps_home).query("fold == -2")["id"]:
        with rasterio.open(slumps_home / f"data/PLANET-RGB/{name}.tif") as file:
            rgb = file.read().astype(float)
        ndvi = read_tif(slumps_home / f"data/EXTRA/{name}.tif")[0][None]
        tiles.append(np.concatenate([rgb, ndvi])[:, (rgb != 0).any(0)])
    pixels = np.concatenate(tiles, axis=1)
    np.testing.assert_allclose(spec["mean"], pixels.mean(1), rtol=1e-5)
    np.testing.assert_allclose(spec["std"], pixels.std(1), rtol=1e-5)
    assert spec["bands"] == ["red", "green", "blue", "ndvi"] and spec["maps"] == "logit"


def test_every_fold_trains_on_rows_of_fold_minus_2_and_never_on_minus_1(slumps_empty, monkeypatch):
    """Tiles that a fold's plan knows: two folds beside rows that are always trained on, and test rows."""
    folds = folds_of(slumps_empty)
    number = {"akl": -2, "ban": 0, "col": 1, "dem": 0, "eur": 1, "fir": -1}
    folds.assign(fold=folds["id"].str[:3].map(number)).to_csv(slumps_empty / "mixed.csv", index=False)
    seen = {}

    def note(rows, spec, settings, **more):
        seen[len(seen)] = set(rows["id"].str[:3])
        return open_training(rows, spec, settings, **more)

    from common.tasks import segmentation

    open_training = segmentation.open_training
    monkeypatch.setattr(segmentation, "open_training", note)
    prepare = segmentation.prepare.__globals__
    monkeypatch.setitem(prepare, "open_training", note)
    train(slumps_empty, "--folds", "mixed.csv", "--epochs", "1", run="two")
    assert seen == {0: {"akl", "col", "eur"}, 1: {"akl", "ban", "dem"}}


def test_out_of_fold_predictions_are_given_back(slumps_copy, capsys):
    home, run = slumps_copy, slumps_copy / "runs/one"
    call(home, "infer", "--runs", "one", "--rows", "oof", "--workers", "0", "--out", "back")
    kept, back = set_of(run / "fold0/oof_counts.csv"), set_of(home / "back/oof_counts.csv")
    pd.testing.assert_frame_equal(back.drop(columns="prob"), kept.drop(columns="prob")[list(back.drop(columns="prob"))])
    one, other = logits_of(home / "back/oof"), logits_of(run / "fold0/oof")
    assert list(one) == list(other) and len(one) == 8
    for name, (logit, valid) in one.items():
        np.testing.assert_allclose(logit, other[name][0], rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(valid, other[name][1])
    score = re.search(r"out-of-fold score ([\d.]+)", capsys.readouterr().out).group(1)
    assert float(score) == pytest.approx(json.loads((run / "fold0/finished.json").read_text())["score"], abs=1e-4)
    shutil.move(home / "back", home / "moved")
    words = ("--oof", "moved/oof_counts.csv", "--truth", "data", "--task", "rts", "--no-report")
    call(home, "ensemble", *words)
    assert "HONEST" in capsys.readouterr().out
    call(home, "ensemble", *words, "--group", "id")


def test_masks_of_the_test_rows_by_every_threshold(slumps_copy):
    """--threshold, --at-ratio, --min-blob and --fill-holes: the mask is what post.json and the numbers say."""
    home, run = slumps_copy, slumps_copy / "runs/one"
    post = json.loads((run / "post.json").read_text())
    for key, wanted in (("200", 0.3), ("500", 0.7), ("1000", 0.95)):  # so few negatives give one threshold
        post["ratios"][key]["threshold"] = wanted
    post |= {"threshold": 0.3, "balanced": 0.1, "blob": 0.5}
    (run / "post.json").write_text(json.dumps(post))
    pixels = ("--clean", "pixels")
    given = {"fitted": (pixels, 0.3), "wide": (("--at-ratio", "500", *pixels), 0.7),
             "even": (("--at-ratio", "1"), 0.1), "given": (("--threshold", ".02"), 0.02),
             "both": (("--threshold", ".4", "--at-ratio", "500"), 0.4)}  # fmt: skip
    for name, (words, threshold) in given.items():
        call(home, "infer", "--runs", "one", "--workers", "0", "--out", name, *words)
        masks, maps = masks_of(home, name), logits_of(home / name / "prob")
        assert set(masks) == set(maps) == set(folds_of(home).query("fold == -1")["id"])
        cut = post["temperature"] * np.log(threshold / (1 - threshold))
        for tile, (logit, valid) in maps.items():
            np.testing.assert_array_equal(masks[tile], (logit > cut) & valid, err_msg=name)
    low = ("--threshold", ".001")
    for name, words in {"low": (), "blobs": ("--min-blob", "30")}.items():
        call(home, "infer", "--runs", "one", "--workers", "0", "--out", name, *low, *words)
    plain, blobs = masks_of(home, "low"), masks_of(home, "blobs")
    for tile, mask in plain.items():
        labels, _ = ndimage.label(mask, np.ones((3, 3)))
        np.testing.assert_array_equal(blobs[tile], mask * (np.bincount(labels.ravel())[labels] >= 30))
    assert any((blobs[tile] != mask).any() for tile, mask in plain.items())


def test_holes_are_filled(slumps_copy):
    """--fill-holes of a set of predictions: a hole of 9 pixels is a hole under 10, and stays under 9."""
    home, holes = slumps_copy, {}
    call(home, "infer", "--runs", "one", "--workers", "0", "--out", "low", "--threshold", ".1")
    for tile, mask in masks_of(home, "low").items():
        path = home / f"low/prob/{tile}.npz"
        inside = np.argwhere(ndimage.binary_erosion(mask, np.ones((5, 5))))
        stored = dict(np.load(path))
        if len(inside):
            row, col = inside[len(inside) // 2]
            stored["logit"][row - 1 : row + 2, col - 1 : col + 2] = -30
            holes[tile] = (row, col)
        np.savez_compressed(path, **stored)
    assert len(holes) >= 2
    for size, name in enumerate(("none", "nine", "ten"), 8):
        words = ("--fill-holes", str(size)) if name != "none" else ()
        call(home, "ensemble", "--preds", "low", *GIVEN, "--threshold", ".1", "--out", name, *words)
        masks = masks_of(home, name)
        assert all(masks[tile][place] == (name == "ten") for tile, place in holes.items()), name


def test_min_blob_is_kept_with_the_thresholds(slumps_copy):
    """What --calibrate was told about small blobs holds in infer.py without its being said again."""
    home = slumps_copy
    call(home, "ensemble", "--runs", "one", "--calibrate", "--min-blob", "30")
    assert json.loads((home / "runs/one/post.json").read_text())["min_blob"] == 30
    for name, words in {"kept": (), "said": ("--min-blob", "30"), "all": ("--min-blob", "0")}.items():
        call(home, "infer", "--runs", "one", "--workers", "0", "--threshold", ".001", "--out", name, *words)
    kept, said, everything = (masks_of(home, name) for name in ("kept", "said", "all"))
    assert all((kept[tile] == said[tile]).all() for tile in kept)
    assert any((kept[tile] != everything[tile]).any() for tile in kept)


def test_without_post_json(slumps_copy, capsys):
    """Nothing was fitted: probability .5, said so; a ratio cannot be asked for."""
    home = slumps_copy
    (home / "runs/one/post.json").unlink()
    call(home, "infer", "--runs", "one", "--workers", "0", "--out", "plain")
    assert "uncalibrated" in capsys.readouterr().out
    for tile, (logit, valid) in logits_of(home / "plain/prob").items():
        np.testing.assert_array_equal(masks_of(home, "plain")[tile], (logit > 0) & valid)
    for ratio in ("1", "200"):
        call(home, "infer", "--runs", "one", "--workers", "0", "--at-ratio", ratio, code=2)
        assert "--calibrate" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_two_runs_blended_saved_and_applied(slumps_copy, capsys):
    home = slumps_copy
    for run in ("one", "two"):
        call(home, "infer", "--runs", run, "--tta", "hflip", "rot90", "--workers", "0", "--out", f"preds/{run}")
    assert "1 folds x 3 views (identity hflip rot90)" in capsys.readouterr().out
    call(home, "ensemble", "--runs", "one", "two", "--kind", "mean", "--save-blend", "blend.json")
    out = capsys.readouterr().out
    assert all(word in out for word in ("HONEST", "fitted", "constant", "logistic", "95 % interval"))
    call(home, "ensemble", "--preds", "preds/one", "preds/two", "--blend", "blend.json", *GIVEN, "--out", "final",
         "--at-ratio", "1")  # fmt: skip
    blend, masks = json.loads((home / "blend.json").read_text()), masks_of(home, "final")
    assert blend["weights"] == [0.5, 0.5]
    cut = blend["post"]["temperature"] * np.log(blend["post"]["balanced"] / (1 - blend["post"]["balanced"]))
    parts = [logits_of(home / f"preds/{run}/prob") for run in ("one", "two")]
    for tile, (logit, valid) in logits_of(home / "final/prob").items():
        prob = np.mean([1 / (1 + np.exp(-part[tile][0].astype(float))) for part in parts], axis=0)
        mixed = logit_of(np.stack([1 - prob, prob]).astype(np.float32))
        np.testing.assert_allclose(logit[valid], mixed[valid].astype(float), rtol=4e-3, atol=4e-3)
        np.testing.assert_array_equal(masks[tile], (logit > cut) & valid)
    call(home, "ensemble", "--preds", "preds/one", "preds/two", "--data", "data", "--out", "mean")
    assert "uncalibrated" in capsys.readouterr().out
    call(home, "ensemble", "--runs", "one", "two", "--kind", "greedy", "--no-report", "--no-baselines")
    call(home, "infer", "--runs", "one", "two", "--workers", "0", "--out", "both")
    assert "uncalibrated" not in capsys.readouterr().out and set(masks_of(home, "both")) == set(masks)


def test_calibration_thresholds_and_the_final_test(slumps_copy, capsys):
    """--calibrate keeps what --ratios and --target-precision ask for; the final test is scored once."""
    home = slumps_copy
    words = ("ensemble", "--runs", "one")
    call(home, *words, "--calibrate", "--ratios", "50", "300", "--target-precision", ".9")
    out, post = capsys.readouterr().out, json.loads((home / "runs/one/post.json").read_text())
    assert all(word in out for word in ("calibration:", "thresholds:", "negatives:", "temperature"))
    assert set(post["ratios"]) == {"50", "300"} and post["target_precision"] == 0.9 and post["ratio"] == 50
    assert all(line["precision"] >= 0.9 for line in post["ratios"].values() if line["reachable"])
    call(home, *words, "--final-test", code=2)
    assert "--rows test" in capsys.readouterr().err
    call(home, "infer", "--runs", "one", "--workers", "0")
    call(home, *words, "--calibrate")
    before = (home / "runs/one/post.json").read_bytes()
    capsys.readouterr()
    call(home, *words, "--final-test")
    out = capsys.readouterr().out
    assert "pixel:" in out and "object:" in out and "AGAIN" not in out
    assert (home / "runs/one/post.json").read_bytes() == before, "nothing is fitted on the test set"
    result = json.loads((home / "runs/one/final-test.json").read_text())
    assert result["pixel"] and len(pd.read_csv(home / "runs/final-tests.csv")) == 1
    call(home, *words, "--final-test", "preds/one", code=2)
    assert "scored before (run one" in (said := capsys.readouterr().err) and "--again" in said
    call(home, "infer", "--runs", "two", "--workers", "0")
    call(home, "ensemble", "--runs", "two", "--final-test", code=2)
    assert "run one" in capsys.readouterr().err, "another run has seen the same test set"
    call(home, "ensemble", "--runs", "two", "--final-test", "--again")
    assert "AGAIN: this test set was scored before, 1 times" in capsys.readouterr().out
    assert list(pd.read_csv(home / "runs/final-tests.csv")["run"]) == ["one", "two"]


def test_the_final_test_is_of_the_runs_own_predictions(slumps_copy, capsys):
    """Those of another run, of other folds, or of nobody knows whom are refused, and nothing is kept."""
    home, run = slumps_copy, slumps_copy / "runs/one"
    words = ("ensemble", "--runs", "one", "--final-test", "given")
    call(home, "infer", "--runs", "one", "--workers", "0", "--out", "given")
    facts = json.loads((home / "given/spec.json").read_text())["runs"][0]
    for said, runs in {"made by two": [facts | {"run": "two"}], "made by one two": [facts, facts | {"run": "two"}],
                       "with other folds": [facts | {"folds_hash": "0"}], "made by unknown": [{}]}.items():  # fmt: skip
        (home / "given/spec.json").write_text(json.dumps({"runs": runs}))
        capsys.readouterr()
        call(home, *words, code=2)
        assert said in (line := capsys.readouterr().err) and "infer.py --runs one" in line
    (home / "given/spec.json").unlink()
    call(home, *words, code=2)
    assert not (home / "runs/final-tests.csv").exists() and not (run / "final-test.json").exists()


def test_a_final_test_that_was_killed_before_anybody_saw_a_number_is_made_again(slumps_copy, monkeypatch, capsys):
    home, words = slumps_copy, ("ensemble", "--runs", "one", "--final-test")
    call(home, "infer", "--runs", "one", "--workers", "0")

    def killed(_tables):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("common.tasks.rare_class.final_json", killed)
        call(home, *words, code=130)
    assert len(pd.read_csv(home / "runs/final-tests.csv")) == 1 and not (home / "runs/one/final-test.json").exists()
    call(home, *words)
    assert len(pd.read_csv(home / "runs/final-tests.csv")) == 1 and "AGAIN" not in capsys.readouterr().out
    call(home, *words, code=2)
    assert "final-test.json" in capsys.readouterr().err


def test_a_final_test_counts_from_its_first_number(slumps_copy, monkeypatch, capsys):
    """One that is killed while it prints was made; other labels of the same tiles, or some of them, are no new set."""
    home, kept = slumps_copy, []
    call(home, "infer", "--runs", "one", "--workers", "0")
    with monkeypatch.context() as patch:
        patch.setattr(
            "common.tasks.rare_class.say_tables", lambda _: kept.append((home / "runs/final-tests.csv").is_file())
        )
        call(home, "ensemble", "--runs", "one", "--final-test")
    assert kept == [True]
    label, _, transform, _ = read_tif(home / "data/labels/fir00.tif")
    tiny_rts.write_raster(home / "data/labels/fir00.tif", np.where(label == 1, 0, label), transform)
    call(home, "infer", "--runs", "one", "--workers", "0")
    capsys.readouterr()
    call(home, "ensemble", "--runs", "one", "--final-test", code=2)
    assert "scored before (run one" in capsys.readouterr().err
    monkeypatch.chdir(home)
    for ids, before in {("fir03", "new"): ["one"], ("new", "ban00"): []}.items():
        assert rare_class.tests_before(pd.DataFrame({"id": ids}), Path("runs/one"))[1] == before


def test_options_that_a_job_does_not_read_are_refused(slumps_copy, capsys):
    """What makes masks where none are made, what is fitted where nothing is; the others reach what they are for."""
    home = slumps_copy
    masks = ("--threshold .3", "--at-ratio 500", "--clean pixels", "--fill-holes 5")
    aims = ("--ratios 50", "--target-precision .7")
    jobs = {("--compare",): masks, ("--fit-post",): masks, ("--calibrate",): masks, (): masks,
            ("--final-test",): (*masks, *aims, "--min-blob 3")}  # fmt: skip
    wrong = [(("--runs", "one", *job), option) for job, options in jobs.items() for option in options]
    for job, option in [*wrong, *((("--preds", "none", *GIVEN), option) for option in aims)]:
        call(home, "ensemble", *job, *option.split(), code=2)
        said = capsys.readouterr().err
        assert f"{option.split()[0]}: does nothing" in said and said.count("\n") == 1, (job, option)
    call(home, "ensemble", "--runs", "one", "--fit-post", "--ratios", "50", "300", "--min-blob", "7")
    post = json.loads((home / "runs/one/post.json").read_text())
    assert set(post["ratios"]) == {"50", "300"} and post["min_blob"] == 7
    call(home, "ensemble", "--runs", "one", "--compare", "--ratios", "50")
    assert "object_precision_50" in pd.read_csv(home / "out/compare.csv")


def test_comparison_gates_and_post_again(slumps_copy, monkeypatch, capsys):
    home, run = slumps_copy, slumps_copy / "runs/one"
    call(home, "ensemble", "--runs", "one", "two", "--compare")
    table = pd.read_csv(home / "out/compare.csv")
    assert list(table["run"]) == ["one", "two", "one, mean of 2 seeds"] and table["balanced_iou"].between(0.3, 1).all()
    post = json.loads((run / "post.json").read_text())
    (run / "post.json").unlink()
    call(home, "ensemble", "--runs", "one", "--fit-post")
    assert json.loads((run / "post.json").read_text()) == post
    words = ("ensemble", "--runs", "one", "--no-report", "--no-baselines", "--gates")
    monkeypatch.setitem(RTS.gates, "production", RTS.gates["production"] | {"balanced_iou": 0.999})
    call(home, *words, "production", code=1)
    said = capsys.readouterr().out
    assert re.search(r"FAIL  balanced_iou .*needed 1\.00\)", said) and re.search(r"production: \d of 4 not met", said)
    monkeypatch.setitem(RTS.gates, "minimum", {"balanced_iou": 0.3})
    call(home, *words, "minimum")
    known = set(RTS.gates["production"]) | {"object_precision_500"}
    assert known <= set(table), "every gate is measured"


# labels of other kinds


def test_a_band_of_the_image_as_label(slumps_empty, capsys):
    """Band 4, tagged as alpha, holds the label, by number and by name, and is no input; there is no labels folder."""
    data = slumps_empty / "data"
    for path in sorted((data / "PLANET-RGB").iterdir()):
        with rasterio.open(path) as file:
            rgb, profile = file.read(), file.profile
        label = raw_label(slumps_empty, path.stem)
        with rasterio.open(path, "w", **profile | {"count": 4, "nodata": None}) as file:
            file.write(np.concatenate([rgb, label[None]]))
            file.colorinterp = [*(rasterio.enums.ColorInterp[n] for n in ("red", "green", "blue", "alpha"))]
    wanted = folds_of(slumps_empty)
    shutil.rmtree(data / "labels")
    for name in ("band4", "band:band4"):
        call(slumps_empty, "make_folds", *GIVEN, "--labels", name, "--out", "f.csv", "--force")
        pd.testing.assert_frame_equal(folds_of(slumps_empty, "f.csv"), wanted)
    run = train(slumps_empty, "--labels", "band4", "--folds", "f.csv", "--epochs", "1", run="four")
    assert load_checkpoint(run / "fold0/last.pt")["spec"]["bands"] == ["red", "green", "blue"]
    call(slumps_empty, "ensemble", "--runs", "four", "--no-report")
    assert "HONEST" in capsys.readouterr().out
    infer = ("infer", "--runs", "four", "--workers", "0", "--out")
    call(slumps_empty, *infer, "preds")
    assert len(masks_of(slumps_empty, "preds")) == 4
    (data / "splits.yaml").unlink()  # now nothing but the run says which of the tiles were trained on
    call(slumps_empty, *infer, "again")
    assert set(masks_of(slumps_empty, "again")) == {f"fir0{k}" for k in range(4)}
    words = ("--labels", "band4", "--scheme", "region", "--out", "searched.csv")
    call(slumps_empty, "make_folds", *GIVEN, *words)
    assert "not listed" not in capsys.readouterr().out and len(folds_of(slumps_empty, "searched.csv")) == 24
    train(slumps_empty, "--labels", "band4", "--folds", "searched.csv", "--fold", "0", "--epochs", "1", run="untested")
    call(slumps_empty, "infer", "--runs", "untested", "--fold", "0", "--workers", "0", "--out", "none", code=2)
    assert "keeps no test rows" in capsys.readouterr().err


def test_bands_by_number(slumps_empty):
    """band3 band2 band1 are blue, green and red, and called so in what is kept: scenes are then found by name."""
    spec, maps = {}, {}
    for run, bands in {"names": ("blue", "green", "red"), "numbers": ("band3", "band2", "band1")}.items():
        folder = train(slumps_empty, "--epochs", "1", "--bands", *bands, run=run) / "fold0"
        spec[run], maps[run] = load_checkpoint(folder / "last.pt")["spec"], logits_of(folder / "oof")
    assert spec["numbers"] == spec["names"] and spec["names"]["bands"] == ["blue", "green", "red"]
    assert all((maps["numbers"][tile][0] == logit).all() for tile, (logit, _) in maps["names"].items())


def test_a_number_stays_where_not_all_tiles_have_its_name(slumps_empty):
    """Band 4 of the images, named in some tiles (of training regions, or all of these) and at last in all of them."""
    shutil.rmtree(slumps_empty / "data/EXTRA")
    words = ("--epochs", "1", "--bands", "red", "green", "blue", "band4", "--texture", "contrast", "--texture-band")
    found = {}
    for named in ("akl00", "akl ban col", ""):
        for path in sorted((slumps_empty / "data/PLANET-RGB").iterdir()):
            rgb, (_, _, transform, _) = rasterio.open(path).read([1, 2, 3]), read_tif(path)
            names = ("red", "green", "blue", "nir") if not named or path.stem.startswith(tuple(named.split())) else ()
            tiny_rts.write_raster(path, np.concatenate([rgb, rgb[:1] // 2]), transform, names, nodata=0)
        folder = train(slumps_empty, *words, "band4", run=f"run-{len(found)}") / "fold0"
        spec = load_checkpoint(folder / "last.pt")["spec"]
        found[named] = [spec["bands"][3], spec["scaling"]["texture"]["band"]]
    assert list(found.values()) == [["band4"] * 2, ["band4"] * 2, ["nir"] * 2]


def test_a_model_without_colours(slumps_empty):
    run = train(slumps_empty, "--epochs", "1", "--bands", "ndvi", "relative_elevation", run="bare")
    assert load_checkpoint(run / "fold0/last.pt")["spec"]["inputs"] == ["ndvi", "relative_elevation"]


def polygons_of(home: Path, name: str) -> Path:
    """The labels of all tiles as polygons in EPSG:4326, where ignored pixels are ground."""
    import geopandas

    parts = []
    for path in sorted((home / "data/labels").iterdir()):
        label, crs, transform, _ = read_tif(path)
        found = [shapely.geometry.shape(one) for one, value in shapes(label, transform=transform) if value == 1]
        parts += [shapely.geometry.shape(one) for one in found]
    frame = geopandas.GeoDataFrame(geometry=parts, crs=tiny_rts.CRS).to_crs(4326)
    frame.to_file(home / "data" / name)
    return home / "data" / name


@pytest.mark.parametrize("name", ["slumps.geojson", "slumps.gpkg", "slumps.shp"])
def test_polygons_as_labels(slumps_empty, name):
    pytest.importorskip("geopandas")
    wanted = folds_of(slumps_empty)
    polygons_of(slumps_empty, name)
    call(slumps_empty, "make_folds", *GIVEN, "--labels", name, "--out", "polygons.csv")
    found = folds_of(slumps_empty, "polygons.csv")
    assert found["fold"].tolist() == wanted["fold"].tolist()
    np.testing.assert_allclose(found["slump"], wanted["slump"], atol=2e-3)
    if name == "slumps.gpkg":
        train(slumps_empty, "--labels", name, "--folds", "polygons.csv", "--epochs", "1", run="polygons")
        call(slumps_empty, "ensemble", "--runs", "polygons", "--no-report")


def test_labels_on_another_grid(slumps_empty, capsys):
    """Labels of 1.5 m, cut two pixels off, are brought onto the tiles' grid, and told."""
    wanted = folds_of(slumps_empty)
    for path in sorted((slumps_empty / "data/labels").iterdir()):
        label, _, transform, _ = read_tif(path)
        fine = np.kron(label, np.ones((2, 2), np.uint8))[4:]
        tiny_rts.write_raster(path, fine, transform @ Affine.translation(0, 2) @ Affine.scale(0.5))
    call(slumps_empty, "make_folds", *GIVEN, "--out", "grid.csv")
    assert re.search(r"pixels 0\.5 times the tile's.*24 tiles", capsys.readouterr().out)
    found = folds_of(slumps_empty, "grid.csv")
    np.testing.assert_allclose(found["slump"], wanted["slump"], rtol=0.08)  # two rows of 64 are ignored now
    run = train(slumps_empty, "--folds", "grid.csv", "--epochs", "1", run="grid")
    valid = [read_beside(path, "valid") for path in sorted((run / "fold0/oof").glob("*.npz"))]
    assert len(valid) == 8 and not any(v[:2].any() for v in valid), "rows that no label covers are not scored"


def test_label_map_is_as_given(slumps_empty):
    for path in sorted((slumps_empty / "data/labels").iterdir()):
        label, _, transform, _ = read_tif(path)
        tiny_rts.write_raster(path, np.where(label == 1, 7, label), transform)
    wanted = folds_of(slumps_empty)
    words = ("--label-map", "0=0", "7=1")
    call(slumps_empty, "make_folds", *GIVEN, *words, "--out", "map.csv")
    pd.testing.assert_frame_equal(folds_of(slumps_empty, "map.csv"), wanted)
    run = train(slumps_empty, *words, "--folds", "map.csv", "--epochs", "1", run="mapped")
    assert load_checkpoint(run / "fold0/last.pt")["spec"]["label_map"] == {"0": 0, "7": 1}
    call(slumps_empty, "ensemble", "--runs", "mapped", "--no-report")
    call(slumps_empty, "infer", "--runs", "mapped", "--rows", "oof", "--workers", "0", "--out", "back")


def test_tiles_without_labels_are_predicted(slumps_copy, tmp_path):
    """A folder of other tiles, with no labels and no table: every one gets a mask."""
    fresh = tiny_rts.make_rts(tmp_path / "fresh", regions=("Gjoa",), splits=None, seed=5)
    shutil.rmtree(fresh / "labels")
    (fresh / "metadata.csv").unlink()
    call(slumps_copy, "infer", "--runs", "one", "--data", str(fresh), "--workers", "0", "--out", "fresh-masks")
    names = [path.name for path in sorted((slumps_copy / "fresh-masks/masks").iterdir())]
    assert names == [f"gjo0{k}.tif" for k in range(4)]
    masks = [read_tif(slumps_copy / "fresh-masks/masks" / name)[0] for name in names]
    assert masks[0].any() and masks[1].any()


def test_a_full_fit(slumps_empty, capsys):
    """--fold all trains on fold 0 and -2, validates nothing, and predicts the test rows uncalibrated."""
    train(slumps_empty, "--fold", "all", run="full")
    assert "train: 20 rows in 5 groups" in capsys.readouterr().out
    call(slumps_empty, "infer", "--runs", "full", "--workers", "0", "--out", "preds")
    assert "uncalibrated" in capsys.readouterr().out and len(masks_of(slumps_empty, "preds")) == 4


def test_collapse_ends_a_run(slumps_empty, capsys, monkeypatch):
    """A model that predicts nothing for three epochs says so and stops; without the guard it goes on."""
    monkeypatch.setattr(tracking, "write_curves", lambda *_, **__: None)
    blind = ("--focal-alpha", "0", "--lr", "1e-2", "--epochs", "8")  # slumps cost nothing
    words = (*GIVEN, *tiny_rts.QUICK, *blind)
    call(slumps_empty, "train", *words, "--run", "none", "--collapse-epochs", "3", code=2)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1 and "collapsed: for 3 epochs" in said[0]
    log = log_of(slumps_empty / "runs/none/fold0")
    assert 3 <= len(log) < 8 and [line["train_predicted"] for line in log[-3:]] == [0, 0, 0]
    assert not (slumps_empty / "runs/none/fold0/finished.json").exists()
    train(slumps_empty, *blind, run="on")
    assert len(log_of(slumps_empty / "runs/on/fold0")) == 8


def test_check_prints_all_and_draws_a_batch(slumps_empty, capsys):
    import cv2

    import train as train_script

    words = (*GIVEN, *tiny_rts.QUICK, "--fold", "0", "--run", "checked", "--bands", "red", "green", "blue", "ndvi")
    call(slumps_empty, "train", *words, "--check", "--expect", "sampler=ratio", "epochs=2")
    out = capsys.readouterr().out
    assert all(f"\n{key}:" in f"\n{out}" for key in train_script.parser_of(RTS).actions()), "every setting is printed"
    assert re.search(r"one step: loss \d.*gradient norm \d", out)
    assert cv2.imread(str(slumps_empty / "runs/checked/check.jpg")).std() > 10
    assert not list((slumps_empty / "runs").rglob("*.pt"))


def test_samples_are_drawn(slumps_empty):
    import cv2

    folder = train(slumps_empty, "--samples-every", "2", run="drawn") / "fold0"
    assert [path.name for path in (folder / "samples").iterdir()] == ["epoch002.jpg"]
    assert cv2.imread(str(folder / "samples" / "epoch002.jpg")).std() > 10


def test_counts_alone(slumps_empty, capsys):
    """--no-oof keeps counts; what needs maps says so in one line."""
    run = train(slumps_empty, "--no-oof", "--epochs", "1", run="bare")
    assert "all 1 folds: out-of-fold score" in capsys.readouterr().out
    assert not list(run.rglob("*.npz")) and "prob" not in set_of(run / "fold0/oof_counts.csv")
    for words in (("--no-baselines",), ("--calibrate",), ("--compare",)):
        call(slumps_empty, "ensemble", "--runs", "bare", *words, code=2)
        assert "without --no-oof" in (said := capsys.readouterr().err) and said.count("\n") == 1
    call(slumps_empty, "infer", "--runs", "bare", "--workers", "0", "--out", "preds")
    assert "uncalibrated" in capsys.readouterr().out


def test_shuffled_labels(slumps_empty, capsys):
    settings = {"label_map": [], "shuffle_images": False}
    plain = RTS.read_rows(slumps_empty / "data", settings)
    mixed = RTS.read_rows(slumps_empty / "data", settings | {"shuffle_images": True})
    assert list(plain["path"]) == list(mixed["path"]) and sorted(plain["label"]) == sorted(mixed["label"])
    assert (plain["label"] != mixed["label"]).mean() > 0.5 and "SHUFFLED" in capsys.readouterr().out
    share = dict(zip(plain["label"], plain["slump"], strict=True))
    assert mixed["slump"].tolist() == [share[label] for label in mixed["label"]]
    assert mixed["positive"].tolist() == [share[label] > 0 for label in mixed["label"]]


def test_settings_of_the_recipe():
    """The defaults are the baseline of the field."""
    import train as train_script

    wanted = {"arch": "unetplusplus", "encoder": "efficientnet-b7", "crop": 512, "focal_alpha": [0.25], "lr": 1e-4,
              "epochs": 300, "patience": 20, "batch_size": "auto", "bands": ["red", "green", "blue"]}  # fmt: skip
    defaults = {key: action.default for key, action in train_script.parser_of(RTS).actions().items()} | RTS.defaults
    assert {key: defaults[key] for key in wanted} == wanted
    assert yaml.safe_dump(RTS.defaults)
