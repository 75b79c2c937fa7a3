"""Wrong glacier data and options: exit code 2 and one line on stderr that names the file or option and the remedy."""

import shutil

import numpy as np
import pandas as pd
import pytest
import rasterio
import tiny_data
import tiny_tiles
from test_bad_input import fails

TASK = ("--task", "glacier")
FIRST = "Train/Band3/B4_B4_masked_02_07.tif"
LABEL = "Train/label/Y_output_resized_02_07.tif"


@pytest.fixture
def home(tiles_home, tmp_path):
    """A working folder whose data a test may spoil."""
    shutil.copytree(tiles_home / "data", tmp_path / "data")
    return tmp_path


def rewrite(path, edit) -> None:
    """The GeoTIFF with its pixels (H,W) replaced by edit(pixels), which may have another size."""
    with rasterio.open(path) as file:
        values, profile = edit(file.read(1)), file.profile
    profile |= {"height": values.shape[0], "width": values.shape[1], "dtype": values.dtype}
    with rasterio.open(path, "w", **profile) as file:
        file.write(values, 1)


def refused(capsys, home, *words, names=()) -> str:
    return fails(capsys, home, "train", *tiny_tiles.QUICK, "--fold", "0", *words, names=names)


def with_pixel(value):
    def edit(pixels):
        pixels[5, 40] = value
        return pixels

    return edit


def empty(data, pattern) -> None:
    for path in data.glob(f"Train/{pattern}"):
        rewrite(path, np.zeros_like)


def copy(data, name: str) -> None:
    shutil.copy(data / FIRST, data / "Train/Band3" / name)


# what is done to the data -> words of the line
SPOILT = {
    "a band folder is missing": (lambda data: shutil.rmtree(data / "Train/Band4"), ("Band4", "missing")),
    "all band folders are missing": (lambda data: [shutil.rmtree(path) for path in (data / "Train").glob("Band*")],
                                     ("Band1", "--data")),
    "a tile is missing in one band": (lambda data: (data / FIRST).unlink(), ("Band3", "02_07", "complete")),
    "a label is missing": (lambda data: (data / LABEL).unlink(), ("label", "02_07")),
    "a band of another size": (lambda data: rewrite(data / FIRST, lambda band: band[:60]),
                               ("B4_B4_masked_02_07.tif", "60x64", "64x64")),
    "a label of another size": (lambda data: rewrite(data / LABEL, lambda label: label[:, :50]),
                                ("Y_output_resized_02_07.tif", "64x50")),
    "a stray label": (lambda data: rewrite(data / LABEL, with_pixel(77)), ("Y_output_resized_02_07.tif", "77")),
    "NaN": (lambda data: rewrite(data / FIRST, with_pixel(np.nan)), ("B4_B4_masked_02_07.tif", "NaN", "1 pixels")),
    "infinite": (lambda data: rewrite(data / FIRST, with_pixel(np.inf)), ("B4_B4_masked_02_07.tif", "infinite")),
    "a file that is none": (lambda data: (data / FIRST).write_bytes(b"II*\0"), ("B4_B4_masked_02_07.tif",)),
    "a tile without data": (lambda data: empty(data, "Band*/*_02_07.tif"),
                            ("02_07.tif", "remove the tile")),
    "labels of 0 alone": (lambda data: empty(data, "label/*.tif"),
                          ("--label-map",)),
    "a tile twice": (lambda data: copy(data, "again_02_07.tif"), ("02_07", "keep one")),
    "a name without number": (lambda data: copy(data, "mean.tif"), ("mean.tif",)),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_data(home, capsys, what):
    spoil, names = SPOILT[what]
    spoil(home / "data")
    fails(capsys, home, "make_folds", *TASK, "--folds", "2", "--force", names=names)
    refused(capsys, home, names=names)
    assert not list(home.glob("runs/*/fold*/*.pt"))


def test_a_class_in_too_few_tiles_for_the_folds(home, capsys):
    """One tile with debris; then two, which no three folds can share."""
    for count in (1, 2):
        for path in sorted(home.glob("data/Train/label/*.tif"))[count:]:
            rewrite(path, lambda label: np.where(label == 170, 85, label))
        more = ("--folds", str(count + 1), "--force", "--out", "new.csv")
        fails(capsys, home, "make_folds", *TASK, *more, names=("debris", "--folds"))
        rewrite(sorted(home.glob("data/Train/label/*.tif"))[1], with_pixel(170))


def test_folds_of_other_data(home, capsys):
    refused(capsys, home, "--folds", "nowhere.csv", names=("nowhere.csv",))
    table = pd.read_csv(home / "data/folds.csv", dtype=str)
    table[table["id"] != "02_07"].to_csv(home / "short.csv", index=False)
    refused(capsys, home, "--folds", "short.csv", names=("folds.csv", "02_07", "make_folds.py"))
    call = ("make_folds", *TASK, "--folds", "3")
    fails(capsys, home, *call, names=("folds.csv", "--force"))
    fails(capsys, home, "make_folds", *TASK, "--hold", "02_99", names=("--hold", "02_99"))
    fails(capsys, home, "make_folds", *TASK, "--scheme", "scenes", "--force", names=("--scheme", "blocks"))
    fails(capsys, home, "make_folds", *TASK, "--folds", "40", "--force", names=("--folds 40",))


# options -> words of the line
OPTIONS = {
    ("--targetshares", "1"): ("--targetshares", "did you mean --target-shares"),
    ("--indices", "ndvi"): ("ndvi",),
    ("--texture", "contrsat"): ("contrsat",),
    ("--texture", "contrast", "--texture-window", "8"): ("--texture-window", "8"),
    ("--texture", "contrast", "--texture-levels", "17"): ("--texture-levels", "17"),
    ("--texture", "contrast", "--texture-band", "swir2"): ("swir2",),
    ("--arch", "unett"): ("unett",),
    ("--encoder", "resnet35"): ("resnet35", "resnet34"),
    ("--attention", "se"): ("se",),
    ("--decoder", "16", "16"): ("--decoder",),
    ("--attention", "scse", "--decoder", "32", "16", "8"): ("--attention scse", "--decoder"),
    ("--stem", "full", "--arch", "fpn", "--decoder", "256", "128", "64", "32", "16"): ("--stem full", "fpn"),
    ("--drop-path", ".2", "--encoder", "resnet18"): ("--drop-path", "resnet18"),
    ("--loss", "dise"): ("--loss", "dise"),
    ("--loss", "dice=x"): ("--loss",),
    ("--loss", "focal", "--focal-alpha", "1", "2"): ("--focal-alpha",),
    ("--border-pairs", "glacier-sea", "--loss", "boundary"): ("--border-pairs", "sea"),
    ("--border-pairs", "glacier", "--loss", "boundary"): ("--border-pairs", "glacier"),
    ("--sampler", "balanced", "--target-shares", ".5", ".5"): ("--target-shares", "4"),
    ("--sampler", "balanced", "--target-shares", "0", "0", "0", "0"): ("target",),
    ("--crop", "100"): ("crop",),
    ("--boost", "lake"): ("--boost", "lake"),
    ("--boost", "lake=x"): ("--boost", "NAME=NUMBER"),
    ("--boost", "sea=2"): ("boost sea",),
    ("--boost", "glacier-debris-lake=2"): ("--boost", "two classes"),
    ("--augment", "hflop"): ("--augment", "hflop"),
    ("--augment", "hflip=often"): ("--augment", "hflip=often"),
    ("--label-map", "0=0", "255"): ("--label-map",),
    ("--label-map", "0=0", "255=a"): ("--label-map", "255=a"),
    ("--label-map", "0=0", "255=1"): ("85", "--label-map"),
    ("--init", "nowhere"): ("nowhere",),
    ("--weights", "nowhere.pt"): ("nowhere.pt",),
    ("--schedule", "plateaux"): ("--schedule", "plateau"),
    ("--plateau-factor", "2", "--schedule", "plateau"): ("--plateau-factor",),
    ("--fold", "7"): ("--fold 7", "0, 1"),
    ("--plateau-patience", "-1", "--schedule", "plateau"): ("--plateau-patience -1",),
    ("--batch-size", "0"): ("--batch-size", "1 or more"),
    ("--accumulate", "0"): ("--accumulate", "1 or more"),
    ("--epochs", "x"): ("--epochs", "1 or more"),
    ("--crops-per-epoch", "-1"): ("--crops-per-epoch",),
}  # fmt: skip


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_wrong_options_of_train(tiles_empty, capsys, words):
    refused(capsys, tiles_empty, *words, names=OPTIONS[words])


def test_wrong_options_after_training(tiles_copy, capsys):
    def wrong(script, *words, names):
        fails(capsys, tiles_copy, script, *words, names=names, data=False)

    one = ("--runs", "one")
    wrong("infer", *one, "--workers", "0", "--thresholds", "1", "2", names=("thresholds", "4"))
    wrong("infer", *one, "--workers", "0", "--thresholds", "a", "b", "c", "d", names=("--thresholds", "argmax"))
    wrong("infer", *one, "--workers", "0", "--min-area", "1", "2", names=("--min-area 1 2", "3"))
    wrong("infer", *one, "--workers", "0", "--fill-holes", "-1", names=("--fill-holes",))
    wrong("infer", *one, "--tta", "swap", names=("swap",))
    wrong("infer", *one, "--tta", "scale2", names=("scale2", "scale1.25"))
    wrong("infer", *one, "--solution", "hand-in", names=("--solution", "tu-test_efficientnet"))
    wrong("infer", "--runs", "three", names=("--runs three",))
    wrong("infer", *one, "--fold", "5", names=("fold 5",))
    wrong("ensemble", *one, "--gates", "tragets", names=("--gates", "target"))
    wrong("ensemble", *one, "--kind", "stack", names=("--kind", "greedy"))
    wrong("ensemble", *one, "--group", "valley", names=("--group valley",))
    assert not (tiles_copy / "hand-in").exists()


def test_maps_that_are_gone_or_broken(tiles_copy, capsys):
    path = sorted((tiles_copy / "runs/one/fold0/oof").glob("*.npz"))[0]
    path.write_bytes(path.read_bytes()[:100])
    fails(capsys, tiles_copy, "ensemble", "--runs", "one", data=False, names=(path.name, "predict"))
    path.unlink()
    fails(capsys, tiles_copy, "ensemble", "--runs", "one", data=False, names=(path.name, "predict"))


def test_bad_tiles_to_predict(tiles_copy, capsys):
    """A tile with NaN is background and said, exit code 3; one without any data is background and said, code 0."""
    bands = sorted((tiles_copy / "data/Test").glob("Band*/img001.tif"))
    words = ("infer", "--runs", "one", "--workers", "0", "--out", "preds")
    for path in bands:
        rewrite(path, np.zeros_like)
    tiny_tiles.call(tiles_copy, *words)
    assert "001: no data in any pixel" in capsys.readouterr().out
    rewrite(bands[2], with_pixel(np.nan))
    tiny_tiles.call(tiles_copy, *words, code=3)
    assert "unreadable image: 001 got background" in capsys.readouterr().err
    with rasterio.open(tiles_copy / "preds/masks/img001.tif") as file:
        mask = file.read(1)
    assert mask.shape == (48, 72) and not mask.any()
    tiny_tiles.call(tiles_copy, *words, "--allow-bad-images")
    shutil.rmtree(tiles_copy / "data/Test/Band2")
    fails(capsys, tiles_copy, *words, data=False, names=("Band2", "missing"))


def test_wrong_slices(tmp_path, capsys):
    data = tiny_tiles.make_slices(tmp_path / "data", scenes=2)
    image = np.load(data / "slice_S1_img_0.npy")
    np.save(data / "slice_S1_img_0.npy", image[..., :9])
    fails(capsys, tmp_path, "make_folds", *TASK, names=("slice_S1_img_0.npy", "15"))
    np.save(data / "slice_S1_img_0.npy", image)
    (data / "slice_S1_mask_1.npy").unlink()
    fails(capsys, tmp_path, "make_folds", *TASK, names=("slice_S1_mask_1.npy",))


def test_a_run_of_another_task(tiles_copy, capsys):
    tiny_data.make_tiny(tiles_copy / "photos", photos=2, groups=2, tests=2)
    words = ("infer", "--task", "biomass", "--data", "photos", "--runs", "one")
    fails(capsys, tiles_copy, *words, data=False, names=("give --task glacier",))
