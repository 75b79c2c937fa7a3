"""The landslide demo set: the real folder format, a risk that no pixel shows alone, honest facts."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import rasterio
from scipy import ndimage
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, precision_score, recall_score

from common.datasets import demo_landslide, demo_relief
from common.datasets.cutting import cut_tiles
from common.datasets.demo_landslide import IGNORED, SENTINEL, TAG, draw_area, facts_of, make_demo, stack_rasters
from common.datasets.demo_relief import COVERS, HELD, SHARES, class_probs, draw_classes, draw_ground, spectral
from common.datasets.landslide_files import list_tiles, outputs_of, read_label, read_rows, read_tile
from common.datasets.terrain import TERRAIN, terrain_bands
from common.errors import InputError

SMALL = {"train": (400, 448), "test": (256, 256), "seed": 3}
BANDS = ["ndvi", "soil", "elevation", *TERRAIN, *(f"landcover_{value}" for value in COVERS)]
GATES = {"kappa": 0.38, "precision_medium": 0.22, "recall_high": 0.92, "rho": 0.50}  # of production


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, make_demo(folder, **SMALL)


@pytest.fixture(scope="module")
def large():
    """Areas of about their real size, written nowhere: (bands (C,H,W) NaN for no data, area) of training and test."""
    learnt, rule = draw_area(0, "train", (640, 640))
    held, _ = draw_area(0, "test", (512, 512), rule)
    return [(bands_of(area), area) for area in (learnt, held)]


def bands_of(area) -> np.ndarray:
    image = np.where(np.abs(area.image) > 1e30, np.nan, area.image)
    dem = np.where(area.dem == TAG, np.nan, area.dem)
    cover = [(area.cover == value).astype(np.float32) for value in COVERS]
    return np.stack([*image, dem, *terrain_bands(dem, pixel=(10, 10)).values(), *cover])


def read(path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def test_tiles_have_the_real_format_and_know_their_place(demo):
    folder, facts = demo
    table = pd.read_csv(folder / "tiles.csv")
    assert facts["train"]["tiles"] == len(table) > 20 and table["id"].is_unique
    assert sorted(p.stem for p in (folder / "images").iterdir()) == sorted(table["id"])
    assert sorted(p.stem for p in (folder / "labels").iterdir()) == sorted(table["id"])
    assert (folder / "bands.txt").read_text().split() == BANDS
    assert set(np.diff(sorted(table["y"].unique()))) <= {64, (400 - 128) % 64} and (table["raster"] == "train").all()
    for row in table.itertuples():
        with rasterio.open(folder / f"images/{row.id}.tif") as file:
            assert (file.count, file.shape, file.dtypes[0], file.res) == (17, (128, 128), "float32", (10, 10))
            assert list(file.descriptions) == BANDS and file.crs.to_epsg() == 32633
            assert file.transform * (0, 0) == (500000 + 10 * row.x, 5280000 - 10 * row.y)
        label = read(folder / f"labels/{row.id}.tif")
        assert label.dtype == np.uint8 and set(np.unique(label)) <= {0, 1, 2, IGNORED}
    assert json.loads((folder / "demo.json").read_text()) == facts
    assert not list(folder.glob(".*")), "nothing of the work is left"


def test_reader_takes_the_set_and_counts_the_shares_of_the_facts(demo):
    folder, facts = demo
    rows = read_rows(folder)
    assert tuple(outputs_of(rows)) == demo_landslide.CLASSES and len(rows) == facts["train"]["tiles"]
    label = read(folder / "rasters/labels.tif")[0]
    seen = np.zeros(label.shape, bool)
    for row in rows.itertuples():
        valid = (read_tile(row.path, BANDS) != 0).any(0) & (read_label(row.label, {0: 0, 1: 1, 2: 2}) != IGNORED)
        seen[row.y : row.y + 128, row.x : row.x + 128] |= valid
    counts = np.bincount(label[seen], minlength=3)
    assert counts / counts.sum() == pytest.approx(list(facts["train"]["shares"].values()), abs=0.005)


def test_tiles_can_be_cut_again_from_the_rasters(demo, tmp_path):
    folder, _ = demo
    rasters = folder / "rasters"
    stack = stack_rasters(rasters, tmp_path / "train.tif")
    cut_tiles(stack, rasters / "labels.tif", tmp_path / "again", aoi=rasters / "aoi.tif", side=128, stride=64)
    for name in ("tiles.csv", "bands.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    for path in (folder / "images").iterdir():
        assert np.array_equal(read_tile(path, BANDS), read_tile(tmp_path / "again/images" / path.name, BANDS))
        name = path.name
        assert np.array_equal(read(folder / "labels" / name), read(tmp_path / "again/labels" / name))


def test_nodata_comes_in_three_kinds(demo):
    folder, facts = demo
    kinds = {"nan": 0, "tag": 0, "sentinel": 0}
    for path in [*(folder / "images").iterdir(), *(folder / "test/images").iterdir()]:
        with rasterio.open(path) as file:
            values, nodata = file.read(), file.nodata
        kinds["nan"] += np.isnan(values).any()
        kinds["tag"] += nodata == TAG and (values == TAG).any()
        kinds["sentinel"] += nodata is None and (values == SENTINEL).any()
        assert np.isnan(values).any() + (values == TAG).any() + (values == SENTINEL).any() <= 1, path.name
    assert min(kinds.values()) >= 2, kinds
    for split in ("train", "test"):
        assert 0.02 < facts[split]["nodata"] < 0.09


def test_raw_rasters_hold_what_was_measured(demo):
    rasters = demo[0] / "rasters"
    with rasterio.open(rasters / "dem.tif") as file:
        assert file.nodata == TAG and 0 < (file.read() == TAG).mean() < 0.03
    with rasterio.open(rasters / "image.tif") as file:
        assert file.nodata is None and file.descriptions == ("ndvi", "soil")
        ndvi, soil = file.read()
    assert np.isnan(ndvi).any() and not (ndvi == SENTINEL).any() and (soil == SENTINEL).sum() > 100
    assert set(np.unique(read(rasters / "landcover.tif"))) == set(COVERS)
    assert set(np.unique(read(rasters / "labels.tif"))) == {0, 1, 2, IGNORED}
    assert set(np.unique(read(rasters / "aoi.tif"))) == {0, 1}


def test_test_area_lies_elsewhere_and_its_classes_are_hidden(demo):
    folder, facts = demo
    with rasterio.open(folder / "scenes/area.tif") as file:
        assert list(file.descriptions) == BANDS and file.shape == SMALL["test"]
        scene = file.bounds
    with rasterio.open(folder / "rasters/dem.tif") as file:
        assert rasterio.coords.disjoint_bounds(scene, file.bounds)
    assert sorted(p.name for p in (folder / "test").iterdir() if p.is_dir()) == ["images"]
    tiles = list_tiles(folder)
    assert len(tiles) == facts["test"]["tiles"] == 4
    with rasterio.open(folder / "hidden/area.tif") as truth:
        for path in tiles["path"]:
            with rasterio.open(path) as tile, rasterio.open(folder / f"hidden/labels/{tiles.id[0]}.tif") as first:
                window = truth.window(*tile.bounds)
                assert first.crs == truth.crs
            label = folder / "hidden/labels" / path.rsplit("/", 1)[1]
            assert np.array_equal(read(label)[0], truth.read(1, window=window))


def test_same_seed_same_bytes(tmp_path):
    def digest(folder, seed):
        make_demo(folder, train=(192, 192), test=(192, 192), seed=seed)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return [(str(p.relative_to(folder)), hashlib.md5(p.read_bytes()).hexdigest()) for p in files]

    first = digest(tmp_path / "a", 1)
    assert first == digest(tmp_path / "b", 1) and first != digest(tmp_path / "c", 2)


def test_shares_are_those_asked_for_and_medium_is_a_narrow_band_between(large):
    label = large[0][1].label
    found = np.bincount(label[label != IGNORED], minlength=3) / (label != IGNORED).sum()
    assert found == pytest.approx(SHARES, abs=0.02) and abs(found[1] - SHARES[1]) < 0.004
    probs = large[0][1].probs
    middle = probs.argmax(0) == 1
    for k in (0, 2):
        away = ndimage.distance_transform_edt(probs.argmax(0) != k)[middle]
        assert np.median(away) < 4, k


def test_probabilities_are_the_frequencies_of_many_draws():
    rng = np.random.default_rng(0)
    ground = draw_ground(rng, (256, 256))
    factors = demo_relief.factors_of(ground.dem, ground.soil)
    rule = demo_relief.learn_rule(factors)
    risk = demo_relief.risk_of(factors, rule.mean, rule.std)
    draws = np.stack([draw_classes(rng, risk, rule) for _ in range(150)])
    probs = class_probs(risk, rule)
    assert probs.sum(0) == pytest.approx(1) and probs.min() >= 0
    bins = np.digitize(risk, np.array(rule.levels) + rule.noise * np.array([-1.5, 1.5]))
    fine = np.digitize(risk, np.linspace(rule.levels[0] - 2 * rule.noise, rule.levels[1] + 2 * rule.noise, 8))
    for part in (bins, fine):
        for k in range(part.max() + 1):
            for name in range(3):
                seen = (draws[:, part == k] == name).mean()
                assert seen == pytest.approx(probs[name][part == k].mean(), abs=0.03), (k, name)
    assert probs[0].min() == pytest.approx(HELD, abs=1e-6)


def scores(target, probs) -> dict:
    """The gates' measures by scikit-learn and scipy, of classes (n,) and probabilities (3, n)."""
    pred, risk = probs.argmax(0), np.floor((0.5 * probs[1] + probs[2]).astype(np.float64) * 65536).clip(max=65535)
    return {
        "kappa": cohen_kappa_score(target, pred),
        "precision_medium": precision_score(target, pred, labels=[1], average=None, zero_division=0)[0],
        "recall_high": recall_score(target, pred, labels=[2], average=None)[0],
        "rho": spearmanr(target, risk).statistic,
    }


def known_pixels(bands, area):
    """(values (n,C), classes (n,), best probabilities (3,n)) of the labelled pixels with data."""
    valid = np.isfinite(bands).all(0) & (area.label != IGNORED)
    return bands[:, valid].T, area.label[valid], area.probs[:, valid]


def test_best_gates_are_those_of_scikit_learn_and_scipy_and_pass_with_a_margin(large):
    bands, area = large[1]
    _, target, probs = known_pixels(bands, area)
    facts = facts_of(area, whole=True)
    assert facts["best_gates"] == pytest.approx(scores(target, probs), abs=1e-6)
    assert facts["best"] == facts["best_gates"]["kappa"]
    for gate, needed in GATES.items():
        assert facts["best_gates"][gate] > needed + 0.025, gate


def test_no_two_levels_of_the_risk_beat_the_best(large):
    _, target, probs = known_pixels(*large[1])
    order = np.argsort(probs[2], kind="stable")
    ranked = target[order]
    cuts = np.searchsorted(probs[2][order], np.linspace(0.02, 1 - HELD, 25))
    best = facts_of(large[1][1], whole=True)["best"]
    found = 0.0
    for k, low in enumerate(cuts):
        for high in cuts[k:]:
            pred = np.repeat([0, 1, 2], [low, high - low, len(ranked) - high])
            table = np.bincount(ranked * 3 + pred, minlength=9).reshape(3, 3) / len(ranked)
            chance = table.sum(0) @ table.sum(1)
            found = max(found, (np.trace(table) - chance) / (1 - chance))
    assert best - 0.01 < found < best + 0.01


def test_pixel_values_alone_miss_the_gates(large):
    """Neither a line nor trees through the values of a pixel pass, weighted by class or not; constant maps have 0."""
    (values, target, _), (test_values, truth, _) = (known_pixels(*part) for part in large)
    mean, std = values.mean(0), values.std(0) + 1e-6
    some = np.random.default_rng(0).permutation(len(target))[:20000]
    for weights in (None, "balanced"):
        for model in (LogisticRegression(max_iter=100, class_weight=weights),
                      HistGradientBoostingClassifier(max_iter=30, class_weight=weights, random_state=0)):  # fmt: skip
            model.fit((values[some] - mean) / std, target[some])
            found = scores(truth, model.predict_proba((test_values - mean) / std).T)
            missed = [gate for gate, needed in GATES.items() if found[gate] < needed]
            assert {"precision_medium", "recall_high"} <= set(missed), (model, found)
    assert cohen_kappa_score(truth, np.zeros_like(truth)) == 0


def test_spectral_noise_falls_with_its_power():
    drawn = spectral(np.random.default_rng(0), (512, 512), 3.0, 400)
    assert drawn.std() == pytest.approx(1, abs=1e-5) and abs(drawn.mean()) < 1e-5
    power = np.abs(np.fft.fft2(drawn * np.hanning(512)[:, None] * np.hanning(512))) ** 2
    wave = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512))
    bands = [(0.02, 0.03), (0.04, 0.06), (0.08, 0.12), (0.16, 0.24)]
    means = [np.log2(power[(wave > a) & (wave < b)].mean()) for a, b in bands]
    assert np.polyfit(range(4), means, 1)[0] == pytest.approx(-3.0, abs=0.3)


@pytest.mark.parametrize("wrong", [{"train": (128, 400)}, {"tile": 32}, {"stride": 0}, {"tile": 1024}])
def test_areas_too_small_are_refused(wrong, tmp_path):
    with pytest.raises(InputError, match="demo set"):
        make_demo(tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()
