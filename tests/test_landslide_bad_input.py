"""Wrong tiles of many bands and wrong options: exit code 2 and a line on stderr that names the file or option."""

import shutil

import numpy as np
import pandas as pd
import pytest
import rasterio
import tifffile
import tiny_landslide
from test_bad_input import fails
from test_landslide_options import edit
from tiny_landslide import TAG

TASK = ("--task", "landslide")
TILE, LABEL = "images/hills_y016_x032.tif", "labels/hills_y016_x032.tif"
EVERY = ("images/*.tif", "test/images/*.tif")


def in_band(number: int, value):
    """The value in every pixel with data of a band of all tiles."""

    def spoil(data):
        def change(pixels):
            pixels[number] = value

        for path in data.glob(EVERY[0]):
            edit(path, change)

    return spoil


def in_labels(*values):
    """Labels of these values alone, in turn."""

    def spoil(data):
        for path in data.glob("labels/*.tif"):
            edit(path, lambda pixels: np.copyto(pixels, np.resize(np.array(values, np.uint8), pixels.shape)))

    return spoil


def one_label(value):
    return lambda data: edit(data / LABEL, lambda pixels: pixels.__setitem__((0, 16, 16), value))


def rewrite(path, **profile) -> None:
    """The GeoTIFF with the first pixels and bands of another size."""
    with rasterio.open(path) as file:
        known, names = file.profile | profile, file.descriptions[: profile.get("count", file.count)]
        values = file.read()[: known["count"], : known["height"], : known["width"]]
    with rasterio.open(path, "w", **known) as file:
        file.write(values)
        file.descriptions = names


def cut_off(path) -> None:
    path.write_bytes(path.read_bytes()[:700])


# what is done to the data -> words of the line
SPOILT = {
    "no images": (lambda data: shutil.rmtree(data / "images"), ("--data",)),
    "no labels": (lambda data: shutil.rmtree(data / "labels"), ("labels",)),
    "a label is missing": (lambda data: (data / LABEL).unlink(), ("labels", "hills_y016_x032", "no label of tile")),
    "a tile is missing": (lambda data: (data / TILE).unlink(), ("images", "hills_y016_x032", "no tile of label")),
    "a label of another size": (lambda data: rewrite(data / LABEL, height=30), (LABEL, "30x32", "32x32")),
    "a tile of three bands": (lambda data: rewrite(data / TILE, count=3), (TILE, "soil")),
    "a corrupt tile": (lambda data: (data / TILE).write_bytes(b"II*\0"), (TILE, "cannot be read")),
    "half a tile": (lambda data: cut_off(data / TILE), (TILE, "cannot be read")),
    "a corrupt label": (lambda data: (data / LABEL).write_bytes(b"II*\0"), (LABEL, "cannot be read")),
    "a stray label": (one_label(7), (LABEL, "7", "--label-map")),
    "labels that are open": (in_labels(0, 1, 255), ("hold 0, 1, 255", "--label-map", "open")),
    "labels without risk": (in_labels(0, 0), ("hold 0 ", "--label-map")),
    "a band twice": (lambda data: rename(data / TILE, ("soil", "slope", "ndvi", "soil")), (TILE, "named soil")),
    "a table that is none": (lambda data: (data / "tiles.csv").write_text("id\nx\n"), ("tiles.csv", "raster")),
}  # fmt: skip


def rename(path, names) -> None:
    with rasterio.open(path, "r+") as file:
        file.descriptions = names


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_data(hills_empty, capsys, what):
    spoil, names = SPOILT[what]
    spoil(hills_empty / "data")
    fails(capsys, hills_empty, "make_folds", *TASK, "--force", names=names)
    fails(capsys, hills_empty, "train", *tiny_landslide.QUICK, "--fold", "0", names=names)
    assert not list(hills_empty.glob("runs/*/fold*/*.pt"))


# of one band of all tiles -> words of the line of train.py
BANDS = {
    "constant": (in_band(3, 5.0), ("band soil", "5", "every pixel", "--bands")),
    "without data by its tag": (in_band(0, TAG), ("band elevation", "no data", "--bands")),
    "without data by NaN": (in_band(2, np.nan), ("band ndvi", "no data", "--bands")),
    "of sentinels": (in_band(3, tiny_landslide.SENTINEL), ("band soil", "no data", "--bands")),
}


@pytest.mark.parametrize("what", BANDS)
def test_bands_that_say_nothing(hills_empty, capsys, what):
    spoil, names = BANDS[what]
    spoil(hills_empty / "data")
    fails(capsys, hills_empty, "train", *tiny_landslide.QUICK, "--fold", "0", names=names)


def test_a_band_that_says_nothing_is_left_out(hills_empty):
    """As the line says, in the folds and in training."""
    in_band(3, tiny_landslide.SENTINEL)(hills_empty / "data")
    without = ("--data", "data", "--bands", "slope")
    tiny_landslide.call(hills_empty, "make_folds", *TASK, *without, "--folds", "2", "--out", "slope.csv")
    words = ("--folds", "slope.csv", "--fold", "0", "--check", *tiny_landslide.QUICK)
    tiny_landslide.call(hills_empty, "train", *without, *words)


def test_folds_of_other_hands_that_overlap(hills_empty, capsys):
    """A tile that overlaps one of the other side is refused by train.py too, and named."""
    path = hills_empty / "data/folds.csv"
    table = pd.read_csv(path, dtype={"id": str})
    table["fold"] = np.where(table["fold"] == -1, -1, np.arange(len(table)) % 2)
    table.assign(group=table["id"].where(table["fold"] < 0, table["fold"])).to_csv(path, index=False)
    said = fails(capsys, hills_empty, "train", *tiny_landslide.QUICK, "--fold", "0", names=("share pixels", "blocks"))
    first, second = (word for word in said.split() if word.startswith("hills_"))
    side = table.set_index("id")["fold"]
    assert side[first] != side[second]
    fails(capsys, hills_empty, "make_folds", *TASK, "--hold", "hills_y016_x032", "--force", names=("share pixels",))


def test_wrong_folds(hills_empty, capsys):
    words = ("make_folds", *TASK, "--force")
    fails(capsys, hills_empty, *words, "--folds", "40", names=("--folds 40",))
    fails(capsys, hills_empty, *words, "--scheme", "split", names=("--scheme split", "blocks"))
    fails(capsys, hills_empty, *words, "--hold", "nobody", names=("--hold", "nobody"))


def test_tiles_without_a_place(tmp_path, capsys):
    tiny_landslide.make_hills(tmp_path / "data", kind="npy")
    (tmp_path / "data/tiles.csv").unlink()
    fails(capsys, tmp_path, "make_folds", *TASK, names=("where it lies", "--scheme random"))


# options of train.py -> words of the line
OPTIONS = {
    ("--bands", "slope", "aspect"): ("aspect", "elevation, slope, ndvi, soil", "--bands"),
    ("--oversample-target", ".2", "--oversample-class", "lake"): ("lake", "low, medium, high"),
    ("--oversample-target", "2"): ("--oversample-target 2",),
    ("--oversample-class", "high"): ("--oversample-class", "--oversample-target"),
    ("--smote",): ("--smote", "--oversample-target"),
    ("--oversample-target", ".3", "--smote", "--smote-k", "0"): ("--smote-k 0",),
    ("--oversample-target", ".3", "--smote", "--smote-mode", "rows"): ("--smote-mode", "windows"),
    ("--label-map", "0=0", "1=5"): ("--label-map", "5"),
    ("--label-map", "0=0", "1=1"): ("holds 2", "--label-map"),
    ("--head", "probit"): ("--head", "coral"),
    ("--ordinal-smoothing", "2"): ("--ordinal-smoothing 2",),
    ("--ordinal-weight", "-1"): ("--ordinal-weight -1",),
    ("--ordinal-weight", ".3", "--head", "softmax"): ("--ordinal-weight 0.3", "--head softmax"),
    ("--spatial-attention", "all"): ("--spatial-attention", "bottleneck"),
    ("--focal-alpha", "1", "2"): ("--focal-alpha", "3"),
    ("--texture", "contrast", "--texture-band", "red"): ("--texture-band red", "slope"),
    ("--fusion", "late"): ("red, green, blue", "--fusion late"),
    ("--fold", "7"): ("--fold 7", "0, 1"),
}  # fmt: skip


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_wrong_options_of_train(hills_empty, capsys, words):
    fails(capsys, hills_empty, "train", *tiny_landslide.QUICK, "--fold", "0", *words, names=OPTIONS[words])


# options of infer.py and ensemble.py -> words of the line
AFTER = {
    ("--thresholds", "1", "2"): ("--thresholds 1 2", "3 numbers"),
    ("--thresholds", "v9"): ("--thresholds v9", "production, v2.5, v3, fitted, argmax or 3 numbers"),
    ("--crf-bands", "slope"): ("--crf-bands", "--crf"),
    ("--crf-iterations", "3"): ("--crf-iterations", "add --crf"),
    ("--compat-spatial", "3"): ("--compat-spatial", "add --crf"),
    ("--spatial-weight", "3"): ("--spatial-weight", "add --crf"),
    ("--crf", "--crf-bands", "aspect"): ("--crf-bands aspect", "elevation, slope, ndvi, soil"),
    ("--crf", "--crf-iterations", "-1"): ("--crf-iterations -1",),
    ("--crf", "--bilateral-srgb", "0"): ("--bilateral-srgb 0",),
    ("--crf", "--compat-bilateral", "nan"): ("--compat-bilateral nan",),
    ("--crf", "--bilateral-sxy", "-2"): ("--bilateral-sxy -2",),
    ("--min-area", "1", "2", "3"): ("--min-area 1 2 3",),
}  # fmt: skip


@pytest.mark.parametrize("words", AFTER, ids=" ".join)
def test_wrong_options_after_training(hills_home, tmp_path, capsys, words):
    """Nothing is written of it."""
    out = ("--out", str(tmp_path / "wrong"))
    given = ("--runs", "one", "--workers", "0", *out, *words)
    fails(capsys, hills_home, "infer", *given, names=AFTER[words], data=False)
    given = ("--runs", "one", "--no-report", "--no-baselines", *out, *words)
    fails(capsys, hills_home, "ensemble", *given, names=AFTER[words], data=False)
    assert not (tmp_path / "wrong/masks").exists()


def test_wrong_jobs_after_training(hills_copy, capsys):
    def wrong(script, *words, names):
        fails(capsys, hills_copy, script, *words, names=names, data=False)

    one = ("--runs", "one")
    wrong("ensemble", *one, "--gates", "target", names=("--gates", "production"))
    wrong("ensemble", *one, "--kind", "middle", names=("--kind", "mean"))
    wrong("ensemble", *one, "--group", "valley", names=("--group valley",))
    wrong("infer", *one, "--tta", "swap", "--workers", "0", names=("swap",))
    (hills_copy / "runs/one/post.json").unlink()
    scene = ("--scene", "data/test/images/other_y000_x000.tif", "--susceptibility", "isotonic", "--window", "64")
    wrong("infer", *one, *scene, "--workers", "0", names=("--susceptibility isotonic", "raw"))
    wrong("infer", *one, *scene, "--susceptibility", "odds", names=("--susceptibility", "isotonic"))


def test_two_and_three_classes_are_not_mixed(hills_copy, capsys):
    """A blend of runs of other labels, in either form."""
    tiny_landslide.make_hills(hills_copy / "binary", values=(0, 1))
    tiny_landslide.call(hills_copy, "make_folds", *TASK, "--data", "binary", "--folds", "2")
    tiny_landslide.train(hills_copy, "--epochs", "1", data="binary", run="binary")
    fails(capsys, hills_copy, "ensemble", "--runs", "one", "binary", data=False, names=("folds", "one, binary"))
    gates = ("--runs", "binary", "--gates", "v3", "--no-baselines")
    fails(capsys, hills_copy, "ensemble", *gates, data=False, names=("--gates v3: two classes have no gates",))
    for run in ("one", "binary"):
        tiny_landslide.call(hills_copy, "infer", "--runs", run, "--data", "data", "--workers", "0", "--out", f"p/{run}")
    fails(capsys, hills_copy, "ensemble", "--preds", "p/one", "p/binary", names=("binary",))


RASTERS = ("--raster", "rasters/image.tif", "--labels", "rasters/labels.tif")


def test_wrong_rasters(tmp_path, capsys):
    tiny_landslide.write_rasters(tmp_path / "rasters")
    (tmp_path / "data").mkdir()
    (tmp_path / "rasters/broken.tif").write_bytes(b"II*\0")

    def wrong(*words, names, data=True):
        fails(capsys, tmp_path, "make_folds", *TASK, *words, names=names, data=data)
        assert not (tmp_path / "data/images").exists() and not list((tmp_path / "data").glob("stack/*"))

    wrong(*RASTERS, data=False, names=("--raster", "--data"))
    wrong(*RASTERS[:2], names=("--raster", "--labels"))
    wrong("--dem", "rasters/dem.tif", names=("--dem", "--labels"))
    wrong(*RASTERS[2:], names=("--labels", "--raster"))
    wrong("--aoi", "rasters/aoi.tif", names=("--aoi", "--raster"))
    wrong(*RASTERS, "--side", "32", "--stride", "64", names=("--stride", "--side"))
    wrong(*RASTERS, "--label-map", "0=0", "2=2", names=("--label-map", "class 1"))
    wrong(*RASTERS, "--aoi", "rasters/image.tif", names=("rasters/image.tif", "2 bands of classes"))
    words = ("--raster", "rasters/cover.tif", *RASTERS[2:], "--dem", "rasters/image.tif")
    wrong(*words, names=("image.tif", "2 bands", "--dem"))
    wrong("--raster", "rasters/none.tif", *RASTERS[2:], names=("rasters/none.tif",))
    wrong("--raster", "rasters/broken.tif", *RASTERS[2:], names=("rasters/broken.tif",))
    wrong(*RASTERS[:2], "--labels", "rasters/dem.tif", names=("rasters/dem.tif",))


def test_a_test_tile_that_cannot_be_read(hills_copy, capsys):
    """It is predicted as background and named, exit code 3; one that does not even tell its size is refused."""
    path = hills_copy / "data/test/images/other_y000_x000.tif"
    rewrite(path, compress="deflate")
    with tifffile.TiffFile(path) as file:
        first = file.pages[0].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[first : first + 40] = b"\xff" * 40
    path.write_bytes(content)
    words = ("infer", "--runs", "one", "--workers", "0", "--out", "preds")
    tiny_landslide.call(hills_copy, *words, code=3)
    assert "unreadable image: other_y000_x000 got background" in capsys.readouterr().err
    with rasterio.open(hills_copy / "preds/masks/other_y000_x000.tif") as file:
        assert not file.read().any()
    cut_off(path)
    fails(capsys, hills_copy, *words, data=False, names=("other_y000_x000.tif", "cannot be read"))
