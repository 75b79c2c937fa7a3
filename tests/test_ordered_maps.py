"""Scenes of ordered classes: rasters against what a model of known answer must give, CRF, stops, labels, misuse."""

import argparse
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, jaccard_score, precision_score, recall_score
from tiny_scenes import write_scene

from common.datasets.band_tiles import TINY
from common.datasets.inputs import model_input, valid_pixels
from common.datasets.landslide_files import read_tile
from common.datasets.whole_scenes import open_whole_scene
from common.engine.tiling import WEIGHTS, window_weights
from common.errors import InputError
from common.models.segmenter import Segmenter
from common.outputs import scene_picture
from common.outputs.scene_picture import ClassPicture
from common.outputs.tile_pictures import class_colours, rgb
from common.post.crf import Crf, guide_of, refine
from common.tasks import ordered, ordered_maps
from common.tasks.crf_options import CRF_OPTIONS

BANDS = ("slope", "wetness", "relief", "soil")
OUTPUTS = ["low", "medium", "high"]
MEAN, STD = (20.0, 5.0, 0.0, 1.0), (8.0, 2.0, 1.0, 0.5)
GAIN, BIAS = 3.0, (1.0, -1.5)  # of the known model's levels, from the standardised slope
NODATA = -9999.0
SPEC = {"bands": list(BANDS), "inputs": list(BANDS), "outputs": OUTPUTS, "model": {},
        "scaling": {"scale": "raw", "indices": [], "texture": None}, "mean": list(MEAN), "std": list(STD),
        "label_map": {"0": 0, "5": 1, "9": 2}}  # fmt: skip
POST = {"thresholds": [0.5, 0.2, 0.3], "isotonic": {"x": [0.1, 0.4, 0.9], "y": [0.0, 0.6, 0.8]}, "temperature": 2.5,
        "bands": {name: [mean, std] for name, mean, std in zip(BANDS, MEAN, STD, strict=True)}}  # fmt: skip
MACHINE = types.SimpleNamespace(device=torch.device("cpu"), amp=None)


class Known(torch.nn.Module):
    """Coral levels of the standardised slope of each pixel, or, head softmax, the logarithms of what they mean."""

    def __init__(self, head="coral", gain=GAIN):
        super().__init__()
        self.head, self.calls = head, 0
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def forward(self, image):
        self.calls += 1
        levels = [self.gain * image[:, 0] + bias for bias in BIAS]
        if self.head == "coral":
            return torch.stack(levels, 1)
        above = [torch.sigmoid(level) for level in levels]
        return torch.stack([1 - above[0], above[0] - above[1], above[1]], 1).clamp_min(1e-30).log()


def known_probs(tile, *, mean=MEAN[0], std=STD[0], gain=GAIN) -> np.ndarray:
    """float64 (3,H,W) of a tile with data everywhere."""
    above = [1 / (1 + np.exp(-(gain * (tile[0].astype(float) - mean) / std + bias))) for bias in BIAS]
    return np.stack([1 - above[0], above[0] - above[1], above[1]])


def draw(height=201, width=222, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """(tile float32 (4,H,W) with no data of three kinds, bool (H,W) where there is data): smooth, then rough."""
    rng = np.random.default_rng(seed)
    tile = np.stack([cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), 6) for _ in BANDS]) * 9
    tile[:2] += rng.standard_normal((2, height, width)) * 0.4
    tile = (tile * np.array(STD)[:, None, None] + np.array(MEAN)[:, None, None]).astype(np.float32)
    tile[1, :30, :40] = NODATA
    tile[2, 50:60, 100:140] = np.nan
    tile[3, 70:80] = -3.4028235e38
    tile[:, 100:101, 5:25] = 0  # is data
    empty = (tile == NODATA).any(0) | np.isnan(tile).any(0) | (tile < -1e30).any(0)
    return tile, ~empty


def settings_of(*words) -> dict:
    parser = argparse.ArgumentParser()
    ordered.add_post(parser)
    ordered_maps.add_map_options(parser)
    return vars(parser.parse_args(["--window", "64", *map(str, words)])) | {"batch_size": 4, "run": "known"}


def mapped(home: Path, *words, post=None, model=None, out="out", scene="scenes/a.tif", models=None) -> Path:
    """Map of the scene made with these words of infer.py; the raster of its classes."""
    models = models or [(model or Known(), SPEC)]
    names = [home / name for name in ([scene] if isinstance(scene, str) else scene)]
    ordered_maps.map_scenes(names, models, post, ["identity"], settings_of(*words), MACHINE, home / out)
    return home / out / "scenes" / f"{names[0].stem}_class.tif"


def values_of(path: Path, kind="_class") -> np.ndarray:
    with rasterio.open(path.with_name(path.name.replace("_class", kind))) as file:
        return file.read(1)


@pytest.fixture
def home(tmp_path) -> Path:
    write_scene(tmp_path / "scenes/a.tif", draw()[0], names=BANDS, nodata=NODATA)
    return tmp_path


# what is written


def test_the_rasters_say_what_the_model_does(home, capsys):
    path = mapped(home)
    tile, valid = draw()
    prob = known_probs(tile)
    value = 0.5 * prob[1] + prob[2]
    wanted = np.where(valid, prob.argmax(0), 255)
    assert (np.bincount(wanted[valid]) > 500).all()
    near = np.sort(prob, 0)[2] - np.sort(prob, 0)[1] < 1e-5
    np.testing.assert_array_equal(values_of(path)[~near], wanted[~near])
    np.testing.assert_allclose(values_of(path, "_susceptibility"), np.where(valid, value, np.nan), atol=1e-6)
    steps = np.where(valid, (value >= 0.33).astype(int) + (value >= 0.67), 255)
    far = np.minimum(abs(value - 0.33), abs(value - 0.67)) > 1e-6
    np.testing.assert_array_equal(values_of(path, "_susceptibility_class")[far], steps[far])
    shares = np.bincount(values_of(path)[valid]) / valid.sum()
    said = ", ".join(f"{name} {share:.1%}" for name, share in zip(OUTPUTS, shares, strict=True))
    assert f"a.tif: {said} of {valid.sum():,} pixels with data" in capsys.readouterr().out
    names = ["a.jpg", "a_class.tif", "a_susceptibility.tif", "a_susceptibility_class.tif"]
    assert sorted(p.name for p in path.parent.iterdir()) == names


def test_the_rasters_are_cogs_on_the_scenes_grid(home):
    cog = pytest.importorskip("rio_cogeo")
    write_scene(home / "scenes/b.tif", draw(1100, 530)[0], names=BANDS, nodata=NODATA)
    path = mapped(home, "--window", "512", scene="scenes/b.tif")
    facts = {"_class": ("uint8", "class"), "_susceptibility": ("float32", "susceptibility"),
             "_susceptibility_class": ("uint8", "susceptibility class")}  # fmt: skip
    for kind, (dtype, name) in facts.items():
        raster = path.with_name(f"b{kind}.tif")
        good, errors, warned = cog.cog_validate(raster, strict=True)
        assert good and not errors and not warned, kind
        with rasterio.open(raster) as file, rasterio.open(home / "scenes/b.tif") as scene:
            assert (file.crs, file.transform, file.shape) == (scene.crs, scene.transform, scene.shape)
            assert file.dtypes == (dtype,) and file.descriptions == (name,) and file.compression.name == "deflate"
            assert file.overviews(1) == [2, 4] and file.tags()["bands"] == " ".join(BANDS)
            if dtype == "float32":
                assert np.isnan(file.nodata)
                continue
            assert file.nodata == 255
            table, shades = file.colormap(1), class_colours(OUTPUTS).values()
            assert [table[k] for k in range(3)] == [(*rgb(shade), 255) for shade in shades] and table[255][3] == 0
        with rasterio.open(raster, overview_level=0) as file:
            assert set(np.unique(file.read(1))) <= {0, 1, 2, 255}, "an overview mixes classes"


@pytest.mark.parametrize("head", ["softmax", "coral"])
def test_models_of_each_head_are_averaged_as_probabilities(home, head):
    other = SPEC | {"mean": [25.0, *MEAN[1:]], "std": [4.0, *STD[1:]]}
    path = mapped(home, models=[(Known(head), SPEC), (Known(head), other)])
    tile, valid = draw()
    prob = (known_probs(tile) + known_probs(tile, mean=25.0, std=4.0)) / 2
    np.testing.assert_allclose(values_of(path, "_susceptibility")[valid], (prob[1] / 2 + prob[2])[valid], atol=2e-6)


def test_a_real_ordinal_segmenter_answers_as_on_a_tile(home):
    torch.manual_seed(1)
    facts = {"arch": "unet", "encoder": "tu-test_byobnet", "channels": 4, "classes": 3, "decoder": [16] * 5}
    model = Segmenter(**facts, head="coral", spatial_attention="head").eval()
    tile, _ = draw(96, 96)
    write_scene(home / "scenes/b.tif", tile, names=BANDS, nodata=NODATA)
    path = mapped(home, "--window", "96", model=model, scene="scenes/b.tif")
    image, valid = model_input(read_tile(home / "scenes/b.tif", BANDS), SPEC)
    with torch.inference_mode():
        above = torch.sigmoid(model(torch.from_numpy(image)[None])[0]).numpy()
    wanted = np.where(valid, above.mean(0), np.nan)  # of three classes: half of P(y > 0) + P(y > 1)
    np.testing.assert_allclose(values_of(path, "_susceptibility"), wanted, atol=2e-6)
    assert np.nanstd(wanted) > 1e-4


def test_a_scene_smaller_than_a_window_and_one_without_data(home):
    tile, valid = draw(40, 50)
    write_scene(home / "scenes/b.tif", tile, names=BANDS, nodata=NODATA)
    path = mapped(home, "--scales", ".5", "1", scene="scenes/b.tif")
    assert not valid.all()
    np.testing.assert_array_equal(values_of(path) == 255, ~valid)
    write_scene(home / "scenes/c.tif", np.full((4, 70, 90), np.nan, np.float32), names=BANDS)
    path = mapped(home, "--crf", scene="scenes/c.tif")
    assert (values_of(path) == 255).all() and np.isnan(values_of(path, "_susceptibility")).all()


def test_nodata_is_that_of_tiles(home):
    """The same file as a tile: a pixel lacks data where any band does, and 0 in all bands is data."""
    tile, valid = draw()
    mask = np.full(valid.shape, 255, np.uint8)
    mask[180:190, 200:] = 0
    with rasterio.open(write_scene(home / "b.tif", tile, names=BANDS), "r+") as file:
        file.write_mask(mask)
    for path, wanted in ((home / "scenes/a.tif", valid), (home / "b.tif", None)):
        with open_whole_scene(path, BANDS[::-1]) as scene:
            whole = scene.read(0, 0, *valid.shape)
            np.testing.assert_array_equal(whole, read_tile(path, BANDS[::-1]))
            np.testing.assert_array_equal(scene.read(90, 180, 40, 90)[:, :, :42], whole[:, 90:130, 180:222])
            half = scene.read(96, 0, 16, 64, size=(8, 32))
        if wanted is not None:
            np.testing.assert_array_equal(valid_pixels(whole), wanted)
            assert whole[0, 100, 10] == TINY and valid_pixels(half)[2, 3:12].all()
    assert not valid_pixels(whole)[180:190, 200:].any()


def test_means_that_cancel_stay_data(home):
    tile = np.tile(np.array([[2.0, -2.0], [-2.0, 2.0]], np.float32), (1, 20, 20))
    write_scene(home / "b.tif", tile, names=("slope",))
    with open_whole_scene(home / "b.tif", ("slope",)) as scene:
        assert valid_pixels(scene.read(0, 0, 40, 40, size=(20, 20))).all()
        assert not valid_pixels(scene.read(-40, 0, 40, 40, size=(20, 20))).any()


def test_bands_by_name_bands_txt_or_number(home, capsys):
    tile, _ = draw()
    plain = values_of(mapped(home, out="plain"))
    write_scene(
        home / "turned/a.tif", tile[[2, 0, 3, 1]], names=[BANDS[k].title() for k in (2, 0, 3, 1)], nodata=NODATA
    )
    write_scene(home / "bare/a.tif", tile, names=(None,) * 4, nodata=NODATA)
    write_scene(home / "listed/a.tif", tile[::-1], names=(None,) * 4, nodata=NODATA)
    (home / "listed/bands.txt").write_text("\n".join(BANDS[::-1]))
    for name, words in (("turned", ()), ("bare", ()), ("listed", ()), ("turned", ("--scene-bands", 2, 4, 1, 3))):
        path = mapped(home, *words, out=f"{name}{len(words)}", scene=f"{name}/a.tif")
        np.testing.assert_array_equal(values_of(path), plain)
    assert "taken in this order: slope, wetness, relief, soil" in capsys.readouterr().out


def test_the_picture_has_the_classes_in_their_place(home, monkeypatch):
    tile, valid = draw()
    classes = known_probs(tile).argmax(0)
    picture = ClassPicture(*valid.shape, OUTPUTS, most=75)
    for y, end in ((0, 100), (100, 107), (107, 190), (190, 201)):
        picture.add(y, classes[y:end].astype(np.uint8), valid[y:end])
    seen, table = picture.picture(), np.array([rgb(shade) for shade in class_colours(OUTPUTS).values()])
    assert seen.shape == (67, 74, 3)
    for y, x in ((0, 0), (2, 5), (10, 13), (50, 60), (66, 73), (24, 70)):
        here = np.s_[3 * y : 3 * y + 3, 3 * x : 3 * x + 3]
        known = table[classes[here][valid[here]]]
        wanted = known.mean(0) if len(known) else rgb(scene_picture.NODATA)
        np.testing.assert_allclose(seen[y, x], wanted, atol=0.51)
    path = mapped(home)
    assert cv2.imread(str(path.with_name("a.jpg"))).shape == (201 + 24, 222 + 12 + 222, 3)


def test_no_pixel_of_a_window_weighs_nothing():
    """A pixel that one window alone sees, at the edge of the scene, must keep its value."""
    for kind in WEIGHTS:
        for side in (32, 65, 1024):
            weights = window_weights(side, kind)
            assert 0 < weights.min() <= weights.max() <= 1


# what the options do


@pytest.mark.parametrize("way", ["isotonic", "temperature"])
def test_susceptibility_is_calibrated_as_fitted(home, way):
    path = mapped(home, "--susceptibility", way, "--breaks", ".2", ".7", "--thresholds", "argmax", post=POST)
    tile, valid = draw()
    prob = known_probs(tile)
    value = np.interp(prob[1] / 2 + prob[2], POST["isotonic"]["x"], POST["isotonic"]["y"])
    if way == "temperature":
        power = prob ** (1 / POST["temperature"])
        value = (power[1] / 2 + power[2]) / power.sum(0)
    sure = valid & (prob.min(0) > 1e-6)  # smaller ones are cut before the logarithm
    np.testing.assert_allclose(values_of(path, "_susceptibility")[sure], value[sure], atol=2e-5)
    far = sure & (np.minimum(abs(value - 0.2), abs(value - 0.7)) > 1e-4)
    steps = (value >= 0.2).astype(int) + (value >= 0.7)
    np.testing.assert_array_equal(values_of(path, "_susceptibility_class")[far], steps[far])
    np.testing.assert_array_equal(values_of(path), values_of(mapped(home, out="raw")))


@pytest.mark.parametrize("words", [(), ("--thresholds", ".1", ".6", ".3")])
def test_classes_are_chosen_over_thresholds(home, words):
    path = mapped(home, *words, post=POST)
    tile, valid = draw()
    over = known_probs(tile) / np.array([0.1, 0.6, 0.3] if words else POST["thresholds"])[:, None, None]
    near = np.sort(over, 0)[2] - np.sort(over, 0)[1] < 1e-4
    np.testing.assert_array_equal(values_of(path)[~near & valid], over.argmax(0)[~near & valid])
    assert (over.argmax(0) != known_probs(tile).argmax(0))[valid].any()


def test_the_crf_changes_classes_and_nothing_else(home, monkeypatch):
    plain = mapped(home, out="plain", post=POST)
    words = ("--crf", "--crf-bands", "wetness", "soil", "--crf-iterations", "3", "--compat-bilateral", "6")
    path = mapped(home, *words, post=POST)
    for kind in ("_susceptibility", "_susceptibility_class"):
        np.testing.assert_array_equal(values_of(path, kind), values_of(plain, kind))
    tile, valid = draw()
    over = known_probs(tile) / np.array(POST["thresholds"])[:, None, None]
    there = (tile[1] != NODATA) & (tile[3] > -1e30)
    # the guide's own bands must be there; relief may lack
    guide = guide_of(np.where(there, tile[[1, 3]], 0), MEAN[1::2], STD[1::2], there)
    crf = Crf(iterations=3, compat_bilateral=6.0)
    settings = {name: getattr(crf, name) for name in crf.__dataclass_fields__}
    wanted = refine((over / over.sum(0)).astype(np.float32), guide, valid, **settings).argmax(0)
    assert (values_of(path) == np.where(valid, wanted, 255)).mean() > 0.9999
    assert (values_of(path) != values_of(plain)).sum() > 300
    monkeypatch.setattr(ordered_maps, "WHOLE", 0)
    monkeypatch.setattr(ordered_maps, "CRF_TILE", 200)
    tiles = values_of(mapped(home, *words, post=POST, out="tiles"))
    np.testing.assert_array_equal(tiles == 255, ~valid)
    assert (tiles == values_of(path)).mean() > 0.999


def test_without_a_post_the_guide_is_measured_on_the_scene(home):
    tile, valid = draw()
    with open_whole_scene(home / "scenes/a.tif", BANDS) as scene:
        mean, deviation = ordered_maps.guide_statistics(scene, None)
        assert ordered_maps.guide_statistics(scene, POST) == (list(MEAN), list(STD))
        guide = ordered_maps.open_guide(scene, settings_of("--crf"), {"bands": dict.fromkeys(BANDS[1:])})
    assert guide.bands == BANDS[1:]  # the first three that the tiles had
    guide.close()
    known = tile[:, valid].astype(float)
    np.testing.assert_allclose(mean, known.mean(1), rtol=1e-4)
    np.testing.assert_allclose(deviation, known.std(1), rtol=1e-4)


# labels of a scene


def test_a_map_is_scored_by_labels(home, capsys):
    tile, valid = draw()
    rng = np.random.default_rng(1)
    truth = np.clip(
        known_probs(tile).argmax(0) + rng.integers(-1, 2, valid.shape) * (rng.random(valid.shape) < 0.3), 0, 2
    )
    raw = np.array([0, 5, 9], np.uint8)[truth]
    raw[120:140] = 255
    write_scene(home / "truth.tif", raw[None], names=(None,))
    path = mapped(home, "--truth", home / "truth.tif")
    said = capsys.readouterr().out
    known = valid & (raw != 255)
    true, pred = truth[known], values_of(path)[known]
    rho = spearmanr(true, values_of(path, "_susceptibility")[known]).statistic
    assert f"{known.sum():,} pixels: kappa {cohen_kappa_score(true, pred):.3f}, rho of the susceptibility " in said
    assert float(said.split("rho of the susceptibility ")[1].split()[0]) == pytest.approx(rho, abs=1e-3)
    scores = [fn(true, pred, average=None) for fn in (jaccard_score, precision_score, recall_score)]
    for k, name in enumerate(OUTPUTS):
        iou, precision, recall = (score[k] for score in scores)
        assert f"{name}: IoU {iou:.3f}, precision {precision:.3f}, recall {recall:.3f}" in said
    assert f"labels on {known.sum() / valid.sum():.0%} of the map" in said and said.count("user's accuracy") == 3
    drawn = said.split("high: user's accuracy ")[1]
    low, high = map(float, drawn.split("[")[1].split("]")[0].split(", "))
    assert low < precision < high and abs(float(drawn.split()[0]) - precision) < 0.06
    share = (values_of(path)[valid] == 2).mean()
    assert f"mapped {share:.3f}" in drawn.splitlines()[0]
    gates = ordered.GATES["production"]
    assert f"recall_high       {scores[2][2]:.4f}  (needed {gates['recall_high']:.2f})" in said
    mapped(home, "--truth", home / "truth.tif")
    again = capsys.readouterr().out
    assert "mapped before" in again and said.splitlines()[-13:] == again.splitlines()[-13:]


def test_labels_of_another_grid_are_brought_onto_the_scenes(home, capsys):
    tile, valid = draw()
    truth = np.zeros((101, 111), np.uint8)
    truth[60:] = 9
    place = from_origin(500000.0, 7600000.0, 6, 6)
    write_scene(home / "coarse.tif", truth[None], names=(None,), place=place)
    path = mapped(home, "--truth", home / "coarse.tif")
    true = np.zeros(valid.shape, int)
    true[120:] = 2
    kappa = cohen_kappa_score(true[valid], values_of(path)[valid])
    said = capsys.readouterr().out
    assert "coarse.tif: pixels 2 times the tile's; brought onto the scene's grid" in said
    assert f"kappa {kappa:.3f}" in said


# stops, damage, what is there already


class Stopped(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a kill."""


@pytest.mark.parametrize("where", ["draw_classes", "overview"])
def test_a_stop_redoes_no_window_and_ends_with_the_same_files(home, monkeypatch, where):
    plain = mapped(home, out="plain")

    def stop(*_words, **_facts):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(ordered_maps, where, stop)
        with pytest.raises(Stopped):
            mapped(home)
    model = Known()
    path = mapped(home, model=model)
    assert model.calls == 0
    files = sorted(p.name for p in path.parent.iterdir())
    assert files == sorted(p.name for p in plain.parent.iterdir())
    for name in files:
        assert (path.parent / name).read_bytes() == (plain.parent / name).read_bytes(), name


def test_a_damaged_block_costs_its_pixels_and_is_said_every_time(home, capsys):
    scene = home / "scenes/a.tif"
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffFile(scene) as file:
        offset = file.pages[0].dataoffsets[5]
    with open(scene, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 40)
    for said in ("could not be read: no data", "mapped before"):
        damaged = ordered_maps.map_scenes([scene], [(Known(), SPEC)], None, ["identity"], settings_of(), MACHINE, home)
        out = capsys.readouterr().out
        assert damaged and said in out and "rows 64 to 127, columns 64 to 127 could not be read" in out
    _, valid = draw()
    valid[64:128, 64:128] = False
    np.testing.assert_array_equal(values_of(home / "scenes/a_class.tif") == 255, ~valid)


OTHER = {"scales": (".5", "1"), "overlap": (".3",), "window": ("96",), "window_weights": ("gaussian",),
         "scene_bands": ("1", "2", "3", "4"), "thresholds": ("argmax",), "crf_bands": ("soil",), "crf": (),
         "crf_iterations": ("3",), "spatial_weight": ("4",), "compat_spatial": ("4",), "bilateral_sxy": ("4",),
         "bilateral_srgb": ("4",), "compat_bilateral": ("4",), "susceptibility": ("isotonic",),
         "breaks": (".2", ".3")}  # fmt: skip


def test_a_map_is_made_once_and_never_taken_for_another(home, capsys):
    model = Known()
    path = mapped(home, post=POST)
    capsys.readouterr()
    mapped(home, post=POST, model=model)
    assert "a.tif: mapped before" in capsys.readouterr().out
    assert set(OTHER) == set(ordered_maps.DECIDING)
    of_crf = set(CRF_OPTIONS.values()) | {"crf_bands"}
    for name, words in OTHER.items():
        with pytest.raises(InputError, match="is a map of other models or settings"):
            crf = ("--crf",) if name in of_crf else ()
            mapped(home, f"--{name.replace('_', '-')}", *words, *crf, post=POST, model=model)
    for changed in ({"post": POST | {"temperature": 2.0}}, {"model": Known(gain=2.0)}):
        with pytest.raises(InputError, match="is a map of other models or settings"):
            mapped(home, **({"post": POST, "model": model} | changed))
    path.with_name("a_susceptibility.tif").unlink()
    with pytest.raises(InputError, match="is there without a_susceptibility.tif; remove it"):
        mapped(home, post=POST, model=model)
    assert model.calls == 0


# misuse: a line, and no model is called

WRONG = {
    "window": (("--window", "16"), "--window 16"),
    "breaks": (("--breaks", ".7", ".3"), "--breaks 0.7 0.3"),
    "one": (("--breaks", ".7", "1"), "--breaks 0.7 1.0"),
    "thresholds": (("--thresholds", ".7", ".3"), "argmax or 3 numbers above 0"),
    "area": (("--min-area", "5"), "--min-area: is for the masks of tiles"),
    "holes": (("--fill-holes", "5"), "--fill-holes: is for the masks of tiles"),
    "isotonic": (("--susceptibility", "isotonic"), "--susceptibility isotonic: nothing was fitted"),
    "no crf": (("--crf-iterations", "3"), "--crf-iterations: .* add --crf"),
    "guide": (("--crf", "--crf-bands", "ndvi"), "--crf-bands ndvi: no such band"),
    "polygons": (("--truth", "a.gpkg"), "--truth a.gpkg: polygons tell no ordered classes"),
    "truth": (("--truth", "none.tif"), "none.tif: not found"),
}


@pytest.mark.parametrize("name", WRONG)
def test_numbers_and_options_that_make_no_sense(home, name):
    words, wanted = WRONG[name]
    model = Known()
    with pytest.raises(InputError, match=wanted):
        mapped(home, *words, model=model)
    assert model.calls == 0 and not (home / "out/scenes/a_class.tif").exists()


def test_scenes_that_lack_a_band_or_share_a_name(home):
    tile, _ = draw(64, 64)
    model = Known()
    write_scene(home / "more/a_susceptibility.tif", tile, names=BANDS)
    with pytest.raises(InputError, match="would both become a_susceptibility_class.tif; rename one"):
        mapped(home, scene=["scenes/a.tif", "more/a_susceptibility.tif"], model=model)
    write_scene(home / "scenes/b.tif", tile, names=("x", *BANDS[1:]))
    with pytest.raises(InputError, match="no band slope; there are: 1 x"):
        mapped(home, scene="scenes", model=model)
    write_scene(home / "scenes/b.tif", tile[:3], names=BANDS[:3])
    few = SPEC | {name: SPEC[name][:2] for name in ("bands", "inputs", "mean", "std")}
    with pytest.raises(InputError, match="no band soil"):
        mapped(home, "--crf", "--crf-bands", "soil", scene="scenes", models=[(model, few)], post=POST)
    with pytest.raises(InputError, match="--crf-bands soil: --scene-bands gives the numbers of slope, wetness;"):
        mapped(home, "--crf", "--crf-bands", "soil", "--scene-bands", 1, 2, models=[(model, few)], post=POST)
    write_scene(home / "out/scenes/c_class.tif", tile, names=BANDS)
    write_scene(home / "c.tif", tile, names=BANDS)
    with pytest.raises(InputError, match="c_class.tif: is a scene itself"):
        mapped(home, scene=["c.tif", "out/scenes/c_class.tif"], model=model)
    assert model.calls == 0
