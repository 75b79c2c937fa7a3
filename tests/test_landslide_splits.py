"""Folders of a published split, and bands by name: what the scripts make of data that is not all alike."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import rasterio
import tiny_landslide
from rasterio.transform import from_origin
from tiny_landslide import call, train

import ensemble
from common.outputs.masks import write_probs
from common.tasks import TASKS

GIVEN = ("--task", "landslide", "--data", "data")


def splits(home, *, same_names=False):
    """data/tiles/{train,val,test}, the last without labels."""
    tiny_landslide.make_hills(home / "data", splits=True)
    shutil.rmtree(home / "data/tiles/test/labels")
    for split in ("train", "val", "test") if same_names else ():
        (home / f"data/tiles/{split}/tiles.csv").unlink()
        for path in sorted((home / f"data/tiles/{split}").glob("*/*.tif")):
            column = int(path.stem[-3:])
            path.rename(path.with_name(f"{path.stem[:-3]}{(column - 64) % 48 if column > 63 else column:03d}.tif"))


@pytest.mark.parametrize("same_names", [False, True])
def test_unlabelled_test_tiles_beside_a_split_are_predicted(tmp_path, same_names):
    """They are listed in folds.csv, predicted by every way, and their masks have the names of the tiles."""
    splits(tmp_path, same_names=same_names)
    call(tmp_path, "make_folds", *GIVEN)
    folds = pd.read_csv(tmp_path / "data/folds.csv")
    tiles = {path.name for path in (tmp_path / "data/tiles/test/images").iterdir()}
    assert (folds["fold"] == -1).sum() == len(tiles) == 10
    train(tmp_path, "--epochs", "1", run="split")
    call(tmp_path, "infer", "--runs", "split", "--workers", "0", "--out", "preds", "--crf")
    assert {path.name for path in (tmp_path / "preds/masks").iterdir()} == tiles


def test_a_split_is_judged(tmp_path, capsys):
    """By groups of its validation tiles: honest scores, gates, a comparison."""
    splits(tmp_path)
    call(tmp_path, "make_folds", *GIVEN)
    assert "in one fold but two groups" in capsys.readouterr().out
    train(tmp_path, run="split")
    call(tmp_path, "ensemble", "--runs", "split", "--gates", "production", "--no-baselines", code=1)
    out = capsys.readouterr().out
    assert "HONEST" in out and "of 4 not met" in out and "val0001" in out
    call(tmp_path, "ensemble", "--runs", "split", "--compare", "--no-report", "--out", "side")
    assert len(pd.read_csv(tmp_path / "side/compare.csv")) == 1


def test_bands_by_name_of_tiles_that_have_others(tmp_path, capsys):
    """What all have is chosen: findings are about these, and a run is trained and reported."""
    tiny_landslide.make_hills(tmp_path / "data")
    names = tiny_landslide.BANDS
    for number, path in enumerate(sorted((tmp_path / "data/images").iterdir())):
        kept = slice(number % 2, 3 + number % 2)  # every other one lacks elevation, those between lack soil
        with rasterio.open(path) as file:
            bands, place = file.read(), file.transform
        tiny_landslide.write_raster(
            path, bands[kept], place, names[kept], tiny_landslide.CRS, nodata=tiny_landslide.TAG
        )
    call(tmp_path, "make_folds", *GIVEN, "--folds", "2", code=2)
    assert "choose with --bands" in capsys.readouterr().err
    call(tmp_path, "make_folds", *GIVEN, "--folds", "2", "--bands", "ndvi", "slope")
    out = capsys.readouterr().out
    assert "band slope: no data" in out and "elevation" not in out and "soil" not in out
    run = train(tmp_path, "--bands", "ndvi", "slope", "--epochs", "1", run="some")
    assert list(json.loads((run / "post.json").read_text())["bands"]) == ["ndvi", "slope"]
    call(tmp_path, "ensemble", "--runs", "some", "--crf", "--no-baselines")
    assert "report:" in capsys.readouterr().out
    assert "tile cannot be shown" not in (tmp_path / "out/report.html").read_text()
    call(tmp_path, "ensemble", "--runs", "some", "--crf", "--crf-bands", "soil", "--no-report", code=2)
    assert "--crf-bands soil: no such band; there are ndvi, slope" in capsys.readouterr().err
    call(tmp_path, "infer", "--runs", "some", "--crf", "--workers", "0", "--out", "preds")


def test_thresholds_are_said_with_their_levels():
    said = " ".join(ensemble.parser_of(TASKS["landslide"]).format_help().split())
    assert "--thresholds production|v2.5|v3|fitted|argmax|T" in said and "(for gates: production, v2.5, v3)" in said
    assert "--thresholds fitted|argmax|T" in ensemble.parser_of(TASKS["glacier"]).format_help()


def test_test_tiles_without_a_hidden_label_are_left_out(tmp_path):
    """Those that have one are scored; where none has, nothing is said."""
    target = np.random.default_rng(0).integers(0, 3, (16, 16)).astype(np.uint8)
    prob, valid = np.eye(3, dtype=np.float32)[target].transpose(2, 0, 1), np.ones((16, 16), bool)
    paths = [str(write_probs(tmp_path / f"{name}.npz", prob, valid=valid)) for name in "ab"]
    frame = pd.DataFrame({"id": ["a", "b"], "prob": paths, "mask": [target, 0 * target]})
    score = TASKS["landslide"].score_hidden
    (tmp_path / "hidden/labels").mkdir(parents=True)
    assert score(frame, tmp_path) == []
    tiny_landslide.write_raster(tmp_path / "hidden/labels/a.tif", target, from_origin(0, 0, 1, 1))
    said = score(frame, tmp_path)
    assert "1 test tiles" in said[0] and any("kappa" in line and "1.0000" in line for line in said)
