"""The glacier demo set: the competition's format, the real imbalance, honest facts, the same bytes for a seed."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import rasterio
import tifffile
from scipy import ndimage
from sklearn.metrics import matthews_corrcoef, recall_score

from common.datasets import demo_glacier, demo_terrain, glacier_files, hkh
from common.datasets.demo_glacier import BANDS, LABELS, OUTPUTS, draw_test, draw_train, make_demo
from common.errors import InputError
from common.metrics.pixel_baselines import logistic_score

SMALL = {"tile": 64, "train": (2, 3), "test": (1, 2), "hkh": (1, 2), "seed": 3}
PREFIX = {"Band1": "B2_B2", "Band2": "B3_B3", "Band3": "B4_B4", "Band4": "B6_B6", "Band5": "B10_B10"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, make_demo(folder, **SMALL)


@pytest.fixture(scope="module")
def full():
    """The two ranges in their real sizes, which nobody writes here."""
    return draw_train(0, (4, 6), 256)[0], draw_test(0, (2, 4), 256)[0]


def stack(folder, names) -> np.ndarray:
    return np.stack([tifffile.imread(folder / band / name) for band, name in names.items()])


def test_files_have_the_competitions_names(demo):
    folder, _ = demo
    ids = [f"{row:02d}_{col:02d}" for row in (2, 3) for col in (7, 8, 9)]
    for band, prefix in PREFIX.items():
        assert sorted(p.name for p in (folder / "Train" / band).iterdir()) == [f"{prefix}_masked_{k}.tif" for k in ids]
        assert sorted(p.name for p in (folder / "Test" / band).iterdir()) == ["img001.tif", "img002.tif"]
    assert sorted(p.name for p in (folder / "Train/label").iterdir()) == [f"Y_output_resized_{k}.tif" for k in ids]
    assert sorted(p.name for p in (folder / "hidden").iterdir()) == ["img001.tif", "img002.tif"]
    assert not (folder / "Test/label").exists(), "the test labels are hidden elsewhere"


def test_rasters_are_georeferenced_and_neighbours_touch(demo):
    folder, _ = demo
    bounds = {}
    for path in sorted((folder / "Train").rglob("*.tif")) + sorted((folder / "Test").rglob("*.tif")):
        with rasterio.open(path) as file:
            assert (file.count, file.shape, file.dtypes, file.nodata) == (1, (64, 64), ("float32",), 0), path
            assert file.crs.to_epsg() == 32643 and file.res == (30, 30), path
            bounds[path.parent.name, path.stem[-5:]] = file.bounds
    for band in (*BANDS, "label"):
        assert bounds[band, "02_07"].right == bounds[band, "02_08"].left
        assert bounds[band, "02_07"].bottom == bounds[band, "03_07"].top
    with rasterio.open(folder / "hidden/img001.tif") as file:
        assert file.dtypes == ("uint8",) and file.bounds == bounds["Band1", "mg001"]


def test_rasters_have_the_tags_of_the_real_ones(demo, glacier_data):
    folder, _ = demo
    name = "Band1/B2_B2_masked_02_07.tif"
    real, drawn = (tifffile.TiffFile(root / "Train" / name).pages[0].tags for root in (glacier_data, folder))
    for code in (258, 259, 262, 277, 339, 33550, 33922, 34735, 34737):
        assert np.array_equal(drawn[code].value, real[code].value), code
    assert float(drawn[42113].value) == float(real[42113].value) == 0


def test_bands_lie_in_the_range_of_the_real_ones(full, glacier_data):
    """Where real pixels have data: the middle of every drawn band within their 1st and 99th percentile."""
    paths = sorted((glacier_data / "Train/Band1").iterdir())[::5]
    real = np.concatenate([(x := glacier_files.read_tile(path))[:, (x != 0).any(0)] for path in paths], 1)
    drawn = full[0].bands[:, full[0].valid]
    low, high = np.percentile(real[:, real.all(0)], [1, 99], axis=1)
    inner = np.percentile(drawn, [10, 90], axis=1)
    assert (inner[0] > low).all() and (inner[1] < high).all()
    assert drawn.max() <= real.max() and (drawn == np.round(drawn)).all()


def test_shares_of_the_classes_are_the_real_ones(full):
    train, test = full
    share = np.bincount(train.drawn[train.valid], minlength=4) / train.valid.sum()
    assert np.allclose(share[:3], (0.70, 0.25, 0.049), atol=0.004) and abs(share[3] - 0.0005) < 1e-5
    assert abs((~train.valid).mean() - 0.26) < 0.005 and abs((~test.valid).mean() - 0.26) < 0.005
    assert not train.drawn[~train.valid].any() and not train.bands[:, ~train.valid].any()
    per_tile = [train.valid[a : a + 256, b : b + 256].mean() for a in range(0, 1024, 256) for b in range(0, 1536, 256)]
    assert min(per_tile) > 0.5 and max(per_tile) < 0.95


def test_some_pixels_lack_some_bands_only(full):
    train, _ = full
    zero = train.bands == 0
    some = zero.any(0) & ~zero.all(0)
    assert np.array_equal(zero.all(0), ~train.valid)
    assert abs(some.mean() - 0.01) < 0.001
    assert abs((train.classes[some] == demo_terrain.GLACIER).mean() - 1 / 3) < 0.02


def test_hidden_lakes_are_many_and_all_lakes_lie_beside_glaciers(full):
    for drawn, count in zip(full, (8, 22), strict=True):
        lake = drawn.drawn == demo_terrain.LAKE
        parts, number = ndimage.label(lake)
        assert number == count
        ice = np.isin(drawn.classes, (demo_terrain.GLACIER, demo_terrain.DEBRIS))
        away = ndimage.distance_transform_edt(~ice)
        assert ndimage.minimum(away, parts, range(1, number + 1)).max() < 10
    assert lake.sum() >= 2000


def test_facts_are_what_the_files_say(demo):
    folder, facts = demo
    assert json.loads((folder / "demo.json").read_text()) == facts
    train, lakes = draw_train(3, (2, 3), 64)
    rows = glacier_files.read_rows(folder)
    known = glacier_files.label_map(rows["label"])
    assert known == dict(zip(LABELS, range(4), strict=True))
    label = np.concatenate([glacier_files.read_label(path, known).ravel() for path in rows["label"]])
    truth = np.concatenate([train.classes[r * 64 - 128 :, c * 64 - 448 :][:64, :64].ravel()
                            for r, c in zip(rows["row"], rows["col"], strict=True)])  # fmt: skip
    tiles = [glacier_files.read_tile(path) for path in rows["path"]]
    valid = np.concatenate([(tile != 0).any(0).ravel() for tile in tiles])
    said = facts["train"]
    assert facts["best"] == said["best"] == pytest.approx(matthews_corrcoef(label, truth), abs=1e-9)
    assert said["best_valid"] == pytest.approx(matthews_corrcoef(label[valid], truth[valid]), abs=1e-9)
    assert said["pixels"] == dict(zip(OUTPUTS, np.bincount(label[valid], minlength=4).tolist(), strict=True))
    recall = recall_score(label[valid], truth[valid], labels=range(4), average=None)
    assert list(said["best_recall"].values()) == pytest.approx(recall.tolist())
    assert said["no_data"] == pytest.approx((~valid).mean()) and said["lakes"] == lakes


def test_hidden_labels_are_those_of_the_test_tiles(demo):
    folder, facts = demo
    test, _ = draw_test(3, (1, 2), 64)
    for k in (0, 1):
        window = np.s_[:, 64 * k : 64 * k + 64]
        values = tifffile.imread(folder / f"hidden/img00{k + 1}.tif")
        assert np.array_equal(values, np.array(LABELS)[test.drawn[window]])
        tile = stack(folder / "Test", dict.fromkeys(BANDS, f"img00{k + 1}.tif"))
        assert np.array_equal(tile, test.bands[:, *window])
    assert facts["test"]["pixels"]["lake"] == (test.drawn == 3).sum() >= 50


def test_best_map_is_hard_to_reach_and_not_perfect(full):
    """The classes as they are: the likeliest answer in every class, and better than a drawing by another hand."""
    train, _ = full
    label = train.drawn[train.valid]
    counts = np.zeros((4, 4))
    np.add.at(counts, (train.classes[train.valid], label), 1)
    assert (counts.argmax(1) == np.arange(4)).all() and (np.diag(counts) / counts.sum(1) > 0.9).all()
    best = matthews_corrcoef(label[::7], train.classes[train.valid][::7])
    other = demo_terrain.draw_by_hand(np.random.default_rng(99), train.classes)[train.valid]
    assert 0.93 < best < 0.97 and matthews_corrcoef(label[::7], other[::7]) < best - 0.01


def test_one_pixel_alone_does_not_tell_its_class(full):
    """A nearest-mean classifier of single pixels misses most debris: the bands of rock and of debris overlap."""
    train, _ = full
    whole = train.valid & train.bands.all(0)
    pixels = np.log(train.bands[:, whole])
    rock, debris = (pixels[:, train.classes[whole] == k] for k in (demo_terrain.BACKGROUND, demo_terrain.DEBRIS))
    gap = np.abs(rock.mean(1) - debris.mean(1)) / rock.std(1)
    assert gap.max() < 0.8


def test_logistic_regression_on_pixels_goes_half_the_way(full):
    """Out of fold over three strips; without its clipping, pixels that lack some bands would bring it below .5."""
    train, _ = full
    windows = [np.s_[a : a + 256, b : b + 256] for a in range(0, 1024, 256) for b in range(0, 1536, 256)]
    rows = pd.DataFrame({"path": range(24), "label": range(24), "fold": [k % 6 // 2 for k in range(24)]})
    score = logistic_score(rows, read_tile=lambda k: train.bands[:, *windows[k]],
                           read_target=lambda k: train.drawn[windows[k]], classes=4)  # fmt: skip
    assert 0.6 < score < 0.7


def test_hkh_slices_can_be_prepared(demo, tmp_path):
    folder, _ = demo
    names = sorted(path.name for path in (folder / "HKH").iterdir())
    assert all(re.fullmatch(r"slice_\d+_(img|mask)_\d+\.npy", name) for name in names) and len(names) == 6
    image, mask = (np.load(folder / "HKH" / f"slice_0_{kind}_1.npy") for kind in ("img", "mask"))
    assert image.shape == (64, 64, 15) and image.dtype == np.float32 and mask.shape == (64, 64, 3)
    assert np.array_equal(mask[..., 0], mask[..., 1] | mask[..., 2]) and mask[..., 1:].any((0, 1)).all()
    blue, green, red, near, swir = np.moveaxis(image[..., :5], -1, 0)
    known = image[..., :9].any(-1)
    for channel, (a, b) in {10: (near, red), 11: (green, swir), 12: (green, near)}.items():
        assert np.isnan(image[~known, channel]).all() and (~known).any()
        assert np.allclose(image[known, channel], (a[known] - b[known]) / (a[known] + b[known]), atol=1e-5)
    rows, facts = hkh.prepare(folder / "HKH", tmp_path / "out", progress=False)
    assert facts["slices"] == 3 and facts["left_out"]["too little glacier"] == 1 and set(rows["group"]) == {"0"}


def test_same_seed_same_bytes_other_seed_other_range(demo, tmp_path):
    folder, _ = demo
    make_demo(tmp_path / "again", **SMALL)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    assert [f for f in files if (folder / f).read_bytes() != (tmp_path / "again" / f).read_bytes()] == []
    assert (draw_train(4, (2, 3), 64)[0].classes != draw_train(3, (2, 3), 64)[0].classes).mean() > 0.1


def test_test_range_is_another_region(full):
    train, test = full
    rock = [np.median(drawn.bands[:3, (drawn.classes == 0) & drawn.valid], 1) for drawn in full]
    assert not np.array_equal(train.classes[:512, :1024], test.classes) and np.abs(rock[0] / rock[1] - 1).max() > 0.01
    assert demo_glacier.ORIGIN["train"] != demo_glacier.ORIGIN["test"]


@pytest.mark.parametrize("wrong", [{"tile": 32}, {"test": (0, 2)}, {"hkh": (1, 0)}])
def test_sizes_that_make_no_set_are_refused(wrong, tmp_path):
    with pytest.raises(InputError, match="demo set: tiles of 64 pixels"):
        make_demo(tmp_path / "demo", **(SMALL | wrong))
    assert not (tmp_path / "demo").exists()


def test_too_many_lakes_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="no room for a lake"):
        demo_terrain.draw_range(rng, (64, 64), tile=64, no_data=0.26, lake_areas=[4000], look=(1, 0))
