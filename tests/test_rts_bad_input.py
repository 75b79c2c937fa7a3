"""Wrong thaw-slump data and options: exit code 2 and a line on stderr that names the file or option and the remedy."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import rasterio
import tiny_rts
import yaml
from test_bad_input import fails

TASK = ("--task", "rts")
TILE, LABEL = "PLANET-RGB/akl00.tif", "labels/akl00.tif"


@pytest.fixture
def home(slumps_home, tmp_path):
    """A working folder whose data a test may spoil."""
    shutil.copytree(slumps_home / "data", tmp_path / "data")
    return tmp_path


def refused(capsys, home, *words, names=()) -> str:
    return fails(capsys, home, "train", *tiny_rts.QUICK, "--fold", "0", *words, names=names)


def rewrite(path, edit, **profile) -> None:
    """The GeoTIFF with its pixels (C,H,W) replaced by edit(pixels)."""
    with rasterio.open(path) as file:
        values, known = edit(file.read()), file.profile
    known |= {"count": len(values), "height": values.shape[1], "width": values.shape[2], **profile}
    with rasterio.open(path, "w", **known) as file:
        file.write(values)


def with_value(value):
    def edit(pixels):
        pixels[:, 5, 40] = value
        return pixels

    return edit


def moved(data) -> None:
    """The label of the tile somewhere else."""
    with rasterio.open(data / LABEL) as file:
        label, transform = file.read(), file.transform
    tiny_rts.write_raster(data / LABEL, label, transform @ rasterio.Affine.translation(5000, 0))


def no_polygon(data) -> None:
    empty = {"type": "FeatureCollection", "features": []}
    (data / "none.geojson").write_text(json.dumps(empty))


def edit_table(change):
    def edit(data):
        table = pd.read_csv(data / "metadata.csv", dtype=str)
        change(table).to_csv(data / "metadata.csv", index=False)

    return edit


def edit_splits(**sides):
    return lambda data: (data / "splits.yaml").write_text(yaml.safe_dump(tiny_rts.SPLITS | sides))


def without_slumps(data, pattern: str) -> None:
    for path in data.glob(f"labels/{pattern}.tif"):
        rewrite(path, np.zeros_like)


# what is done to the data -> words of the line
SPOILT = {
    "no images": (lambda data: shutil.rmtree(data / "PLANET-RGB"), ("PLANET-RGB", "--data")),
    "a label is missing": (lambda data: (data / LABEL).unlink(), ("labels", "akl00", "complete")),
    "no labels": (lambda data: shutil.rmtree(data / "labels"), ("labels", "--labels")),
    "a row without file": (lambda data: (data / TILE).unlink(), ("metadata.csv", "akl00", "remove the line")),
    "a row twice": (edit_table(lambda table: pd.concat([table, table[:1]])), ("metadata.csv", "akl00", "twice")),
    "no region": (edit_table(lambda table: table.drop(columns="RegionName")), ("metadata.csv", "RegionName")),
    "a place that is none": (edit_table(lambda table: table.assign(centroid_lat="north")), ("centroid_lat", "north")),
    "a stray label": (lambda data: rewrite(data / LABEL, with_value(7)), ("akl00.tif", "7", "--label-map")),
    "a label without overlap": (moved, ("labels/akl00.tif", "does not overlap")),
    "a corrupt tile": (lambda data: (data / TILE).write_bytes(b"II*\0"), ("akl00.tif", "cannot be read")),
    "half a tile": (lambda data: (data / TILE).write_bytes((data / TILE).read_bytes()[:900]), ("akl00.tif",)),
    "a corrupt label": (lambda data: (data / LABEL).write_bytes(b"II*\0"), ("akl00.tif", "cannot be read")),
    "a tile without data": (lambda data: rewrite(data / TILE, np.zeros_like), ("akl00.tif", "remove the tile")),
    "a tile of two bands": (lambda data: rewrite(data / TILE, lambda bands: bands[:2]), ("akl00.tif", "blue")),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_data(home, capsys, what):
    spoil, names = SPOILT[what]
    spoil(home / "data")
    fails(capsys, home, "make_folds", *TASK, "--force", names=names)
    refused(capsys, home, names=names)
    assert not list(home.glob("runs/*/fold*/*.pt"))


# what is done to the regions -> words of the line of make_folds.py
REGIONS = {
    "a region on no side": (edit_splits(val=["Dempster"]), ("splits.yaml", "Eureka", "no side")),
    "an unknown region": (edit_splits(test=["Atlantis"], val=["Dempster", "Eureka", "Firth"]),
                          ("splits.yaml", "Atlantis", "test")),
    "a region on two sides": (edit_splits(test=["Banks"]), ("splits.yaml", "Banks", "train", "test")),
    "nobody to validate": (edit_splits(val=[]), ("splits.yaml", "val")),
    "no yaml": (lambda data: (data / "splits.yaml").write_text("train: [a"), ("splits.yaml", "cannot be read")),
    "no slump to validate": (lambda data: [without_slumps(data, f"{name}*") for name in ("dem", "eur")],
                             ("fold 0", "no positive tile to validate")),
    "no slump to train on": (lambda data: [without_slumps(data, f"{name}*") for name in ("akl", "ban", "col")],
                             ("fold 0", "no positive tile to train on")),
}  # fmt: skip


@pytest.mark.parametrize("what", REGIONS)
def test_wrong_regions(home, capsys, what):
    spoil, names = REGIONS[what]
    spoil(home / "data")
    fails(capsys, home, "make_folds", *TASK, "--force", names=names)


def test_one_region_only(tmp_path, capsys):
    tiny_rts.make_rts(tmp_path / "data", regions=("Aklavik",), splits=None)
    fails(capsys, tmp_path, "make_folds", *TASK, names=("--scheme split", "1 regions", "splits.yaml"))
    for scheme in ("regions", "region"):
        fails(capsys, tmp_path, "make_folds", *TASK, "--scheme", scheme, names=("1 regions",))
    refused(capsys, tmp_path, names=("--scheme split", "splits.yaml"))


def test_labels_that_are_none(home, capsys):
    no_polygon(home / "data")
    call = ("make_folds", *TASK, "--force", "--labels")
    fails(capsys, home, *call, "none.geojson", names=("none.geojson", "no polygon"))
    fails(capsys, home, *call, "band4", names=("no band band4", "red, green, blue", "--labels"))
    fails(capsys, home, *call, "labels_refined", names=("labels_refined", "labels", "--labels"))
    rewrite(home / "data" / TILE, lambda bands: bands[[0, 1, 2, 0]])
    fails(capsys, home, *call, "band3", names=("band 3", "label and an input"))
    fails(capsys, home, "make_folds", *TASK, "--compare-labels", "older", "--force", names=("older", "--labels"))


def test_folds_of_other_data(home, capsys):
    fails(capsys, home, "make_folds", *TASK, "--hold", "akl99", names=("--hold", "akl99"))
    fails(capsys, home, "make_folds", *TASK, "--scheme", "regions", "--folds", "2", names=("folds.csv", "--force"))
    fails(capsys, home, "make_folds", *TASK, "--scheme", "blocks", names=("--scheme", "regions"))
    fails(capsys, home, "make_folds", *TASK, "--folds", "3", names=("--folds 3", "--scheme split"))
    table = pd.read_csv(home / "data/folds.csv", dtype=str)
    table[table["id"] != "akl00"].to_csv(home / "short.csv", index=False)
    refused(capsys, home, "--folds", "short.csv", names=("akl00", "make_folds.py"))


# options -> words of the line
OPTIONS = {
    ("--bands", "red", "green", "nir"): ("nir", "relative_elevation", "--bands"),
    ("--bands", "ndvi", "--fusion", "late"): ("red, green, blue", "--fusion late"),
    ("--bands", "red", "green", "blue", "--fusion", "late"): ("late",),
    ("--bands", "ndvi", "--augment", "colour-jitter=1"): ("colour-jitter",),
    ("--bands", "ndvi", "--texture", "contrast"): ("--texture-band red", "ndvi"),
    ("--ratio", "1", "2", "3"): ("--ratio", "first and a last"),
    ("--ratio", "-1"): ("--ratio -1",),
    ("--ratio", "1", "90", "--ratio-epochs", "2"): ("--crops-per-epoch 16", "--ratio 90"),
    ("--ratio-epochs", "-1"): ("--ratio-epochs -1",),
    ("--scales-train", "0"): ("--scales-train 0",),
    ("--soft-labels", "fuzzy"): ("--soft-labels", "distance"),
    ("--crop", "100"): ("--crop 100", ".tif is 64x64"),
    ("--labels", "elsewhere"): ("elsewhere", "--labels"),
    ("--label-map", "0=0"): ("holds 1", "--label-map"),
    ("--tversky", ".5", "--loss", "tversky"): ("--tversky",),
    ("--fold", "1"): ("--fold 1", "0"),
    ("--batch-size", "many"): ("--batch-size", "many"),
    ("--collapse-epochs", "x"): ("--collapse-epochs",),
}  # fmt: skip


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_wrong_options_of_train(slumps_empty, capsys, words):
    refused(capsys, slumps_empty, *words, names=OPTIONS[words])


def test_wrong_options_after_training(slumps_copy, capsys):
    def wrong(script, *words, names):
        fails(capsys, slumps_copy, script, "--runs", "one", *words, names=names, data=False)

    infer = ("infer", "--workers", "0", "--out", "wrong")
    wrong(*infer, "--threshold", "2", names=("--threshold 2", "between 0 and 1"))
    wrong(*infer, "--at-ratio", "77", names=("1:77", "200"))
    wrong(*infer, "--min-blob", "-1", names=("--min-blob -1",))
    wrong(*infer, "--fill-holes", "-1", names=("--fill-holes -1",))
    wrong(*infer, "--clean", "soap", names=("--clean", "blobs"))
    wrong(*infer, "--tta", "swap", names=("swap",))
    wrong("ensemble", "--final-test", names=("--final-test", "infer.py"))
    wrong("ensemble", "--final-test", "nowhere", names=("nowhere", "infer.py"))
    wrong("ensemble", "--gates", "target", names=("--gates", "production"))
    wrong("ensemble", "--kind", "weights", names=("--kind", "greedy"))
    wrong("ensemble", "--group", "valley", names=("--group valley",))
    wrong("ensemble", "--calibrate", "--target-precision", "1.5", names=("--target-precision",))
    wrong("ensemble", "--calibrate", "--ratios", "0", names=("--ratios",))
    assert not (slumps_copy / "wrong/masks").exists()


def test_final_test_of_other_predictions(slumps_copy, capsys):
    """Of the out-of-fold rows, or of two runs at once."""
    tiny_rts.call(slumps_copy, "infer", "--runs", "one", "--rows", "oof", "--workers", "0", "--out", "back")
    (slumps_copy / "back/oof_counts.csv").rename(slumps_copy / "back/pred.csv")
    words = ("ensemble", "--runs", "one", "--final-test", "back")
    fails(capsys, slumps_copy, *words, data=False, names=("back", "4 test rows"))
    words = ("ensemble", "--runs", "one", "two", "--final-test")
    fails(capsys, slumps_copy, *words, data=False, names=("--final-test", "one run"))
    assert not (slumps_copy / "runs/final-tests.csv").exists()


def test_other_data_than_the_test_rows(slumps_copy, tmp_path, capsys):
    """A folder with labels that holds some of the test rows, or none: the folds' rows are all there or refused."""
    for name, regions, lacking in (("none", ("Gjoa",), "4 of the 4"), ("some", tiny_rts.REGIONS, "1 of the 4")):
        other = tiny_rts.make_rts(tmp_path / name, regions=regions, splits=None)
        if name == "some":
            edit_table(lambda table: table[table["Tile_id"] != "fir02"])(other)
        words = ("infer", "--runs", "one", "--workers", "0", "--data", str(other), "--out", "wrong")
        fails(capsys, slumps_copy, *words, data=False, names=(str(other), "fir0", lacking, "--data", "without labels"))
    assert not (slumps_copy / "wrong").exists()


def test_folds_without_test_rows(slumps_copy, capsys):
    """Nothing is left to be predicted or tested."""
    table = pd.read_csv(slumps_copy / "runs/one/folds.csv")
    table["fold"] = table["fold"].where(table["fold"] >= 0, -2)
    table.to_csv(slumps_copy / "runs/one/folds.csv", index=False)
    fails(capsys, slumps_copy, "ensemble", "--runs", "one", "--final-test", data=False, names=("no test rows",))
    fails(capsys, slumps_copy, "infer", "--runs", "one", "--workers", "0", data=False, names=("test rows",))
