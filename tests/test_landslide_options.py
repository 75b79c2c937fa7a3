"""Every option of the landslide task does something: in the first step, in training, in masks and in folders."""

import importlib
import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import tiny_landslide
import tiny_tiles
import torch
from rasterio.transform import from_origin
from test_engine_resume import ends_with_the_same_bytes
from test_landslide_task import BANDS, PLAIN, by_thresholds, masks_of, probs_of, same_masks, set_of
from tiny_landslide import CLASSES, IGNORED, SENTINEL, TAG, call, has_data, train

from common.engine import tracking
from common.engine.checkpoint import load_checkpoint
from common.post import crf
from common.tasks import TASKS

LANDSLIDE = TASKS["landslide"]
TEXTURE, BINARY = ("--texture", "contrast"), ("--label-map", "0=0", "1=0", "2=1")
# what is changed -> what it is changed in; seen in the first step of --check
STEP = {
    ("--bands", "slope", "ndvi"): (),
    ("--bands", "ndvi", "slope"): ("--bands", "slope", "ndvi"),
    ("--label-map", "0=0", "1=1", "2=2", "255=0"): (),
    ("--head", "softmax"): (),
    ("--head", "corn"): (),
    ("--ordinal-weight", "1"): (),
    ("--ordinal-smoothing", ".05"): (),
    ("--spatial-attention", "none"): (),
    ("--spatial-attention", "bottleneck"): (),
    ("--focal-alpha", "1", "1", "1"): (),
    ("--focal-gamma", "1"): (),
    TEXTURE: (),
    (*TEXTURE, "--texture-band", "ndvi"): TEXTURE,
    ("--oversample-target", ".2"): (),
    ("--shuffle-images",): (),
}  # fmt: skip


@pytest.fixture(scope="module")
def first_step(hills_home, tmp_path_factory):
    return tiny_tiles.first_steps(tmp_path_factory.mktemp("steps"), hills_home / "data", tiny_landslide.QUICK)


@pytest.mark.parametrize("change", STEP, ids=" ".join)
def test_the_option_changes_the_step(first_step, monkeypatch, capsys, change):
    monkeypatch.delitem(LANDSLIDE.draw, "sheet")
    assert first_step(change, capsys) != first_step(STEP[change], capsys)


def test_the_same_call_twice_takes_the_same_step(first_step, monkeypatch, capsys):
    """Else every comparison above would prove nothing."""
    monkeypatch.delitem(LANDSLIDE.draw, "sheet")
    assert first_step((), capsys) == first_step(("--workers", "0"), capsys)


def edit(path: Path, change) -> None:
    """The GeoTIFF with its pixels (C,H,W) as change(pixels) leaves them, in place."""
    with rasterio.open(path, "r+") as file:
        pixels = file.read()
        change(pixels)
        file.write(pixels)


def under_gaps(data: Path, folds: pd.DataFrame, change) -> None:
    """change(label or bands, pixels without data) of every tile that has any."""
    for name in folds.query("fold != -1")["id"]:
        with rasterio.open(data / f"images/{name}.tif") as file:
            gap = ~has_data(file.read())
        if gap.any():
            change(data, name, gap)


def other_labels(data, name, gap):
    edit(data / f"labels/{name}.tif", lambda pixels: np.putmask(pixels[0], gap, (pixels[0] + 1) % 3))


def other_bands(data, name, gap):
    """A band of the rest is huge there, and the sentinel is another one."""

    def change(pixels):
        pixels[3][gap] = 1e29
        pixels[1][pixels[1] == SENTINEL] = np.inf

    edit(data / f"images/{name}.tif", change)


def pixel_of(fold: int, kind: str, change):
    """The change in the middle of a tile of the fold."""

    def of_tile(data, folds):
        name = folds["id"][folds["fold"] == fold].iloc[2]
        edit(data / f"{kind}/{name}.tif", change)

    return of_tile


def add_one(pixels):
    pixels += 1


def exchange(pixels):
    pixels[0, 10:20, 10:30] = (pixels[0, 10:20, 10:30] == 0) * 2


# what is done to the data -> whether the first step of fold 0 notices
DATA = {
    "labels without data": (lambda data, folds: under_gaps(data, folds, other_labels), False),
    "bands without data": (lambda data, folds: under_gaps(data, folds, other_bands), False),
    "an unused tile": (pixel_of(-3, "images", add_one), False),
    "an unused label": (pixel_of(-3, "labels", exchange), False),
    "a validation tile": (pixel_of(0, "images", add_one), False),
    "a training tile": (pixel_of(1, "images", add_one), True),
    "a training label": (pixel_of(1, "labels", exchange), True),
}


@pytest.mark.parametrize("what", DATA)
def test_what_reaches_the_loss(hills_empty, first_step, monkeypatch, capsys, what):
    """Nothing of what has no data, of unused and of validated tiles."""
    monkeypatch.delitem(LANDSLIDE.draw, "sheet")
    change, noticed = DATA[what]
    change(hills_empty / "data", set_of(hills_empty / "data/folds.csv"))
    words = ("--crops-per-epoch", "0", "--batch-size", "17")  # every training tile in the one step
    (hills_empty / "steps").mkdir()
    look = tiny_tiles.first_steps(hills_empty / "steps", hills_empty / "data", tiny_landslide.QUICK)
    assert (look(words, capsys) != first_step(words, capsys)) == noticed


# training


@pytest.mark.parametrize("words", [("softmax", "none"), ("coral", "head"), ("corn", "bottleneck")], ids=" ".join)
def test_heads_and_attention_learn_and_predict(hills_empty, words):
    words = ("--head", words[0], "--spatial-attention", words[1], "--epochs", "4", "--lr", "1e-2", "--fold", "1",
             "--crops-per-epoch", "24")  # fmt: skip
    run = train(hills_empty, *words, run="one")
    spec = load_checkpoint(run / "fold1/last.pt")["spec"]
    assert [spec["model"]["head"], spec["model"]["spatial_attention"]] == [words[1], words[3]]
    assert tiny_landslide.log_of(run / "fold1")[-1]["score"] > 0.1
    call(hills_empty, "infer", "--runs", "one", "--fold", "1", "--workers", "0", "--out", "preds")
    for prob, _ in probs_of(hills_empty / "preds/prob").values():
        np.testing.assert_allclose(prob.sum(0), 1, atol=2e-3)
        assert prob.std() > 0.05
    masks_of(hills_empty, "preds")


OVERSAMPLED = ("--epochs", "1", "--fold", "0", "--no-oof", "--oversample-target")


def share_of(rows: pd.DataFrame, read, name: str) -> float:
    labels = [read(row) for row in rows.itertuples()]
    return sum((label == CLASSES.index(name)).sum() for label in labels) / sum((label < 3).sum() for label in labels)


# words, then whether synthetic tiles are needed
MORE = {
    (".2",): False,
    (".22", "--smote"): True,
    (".22", "--smote", "--smote-mode", "pixels", "--smote-k", "3"): True,
    (".36", "--oversample-class", "high", "--smote", "--smote-k", "2"): True,
}  # fmt: skip


@pytest.mark.parametrize("words", MORE, ids=" ".join)
def test_oversampling_reaches_its_share(hills_empty, monkeypatch, capsys, words):
    """In the facts and the log; a second run finds the same tiles and ends with the same bytes of weights."""
    monkeypatch.setattr(tracking, "write_curves", lambda *_, **__: None)
    run = train(hills_empty, *OVERSAMPLED, *words, run="one")
    out = capsys.readouterr().out
    facts = json.loads((run / "fold0/finished.json").read_text())["facts"]["oversampling"]
    target, name = float(words[0]), "high" if "high" in words else "medium"
    assert facts["class"] == name and facts["share_before"] < facts["share"] and f"oversampling: {name}" in out
    assert facts["share"] == pytest.approx(target, abs=0.02) and facts["added"] > 0
    made = list((hills_empty / "cache").glob("oversampled-*"))
    assert len(made) == MORE[words] == bool(facts["synthetic"])
    if made:
        assert facts["share"] >= target and "SMOTE" in out and f"{facts['share']:.2%}" in out
        before = {path: path.stat().st_mtime_ns for path in made[0].rglob("*.npy")}
        again = train(hills_empty, *OVERSAMPLED, *words, run="two")
        one, other = (load_checkpoint(folder / "fold0/last.pt")["state_dict"] for folder in (run, again))
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert before == {path: path.stat().st_mtime_ns for path in made[0].rglob("*.npy")}
        assert len(list((hills_empty / "cache").glob("oversampled-*"))) == 1


@pytest.mark.parametrize("mode", ["windows", "pixels"])
def test_markers_of_other_tiles_are_in_no_synthetic_one(hills_empty, monkeypatch, mode):
    """Validation, unused and test tiles hold a value of their own in every pixel; one in training tiles is found."""
    monkeypatch.setattr(tracking, "write_curves", lambda *_, **__: None)
    data = hills_empty / "data"
    folds = set_of(data / "folds.csv")
    for name, fold in zip(folds["id"], folds["fold"], strict=True):
        path = data / ("test/images" if fold == -1 else "images") / f"{name}.tif"

        def mark(pixels, value=300.0 if fold == 1 else 7000.0 - fold):
            pixels[3] = value + np.arange(32) / 100

        edit(path, mark)
    train(hills_empty, *OVERSAMPLED, ".25", "--smote", "--smote-mode", mode, run="one")
    folder = next((hills_empty / "cache").glob("oversampled-*"))
    soil = np.concatenate([np.load(path)[3].ravel() for path in (folder / "images").iterdir()])
    soil = soil[np.isfinite(soil)]
    assert len(soil) > 500 and 299 < soil.min() and soil.max() < 301
    spec = load_checkpoint(hills_empty / "runs/one/fold0/last.pt")["spec"]
    assert spec["mean"][3] == pytest.approx(300.16, abs=0.1)


RAMP = (*tiny_landslide.SMALL, "--epochs", "4", "--oversample-target", ".2", "--smote", "--dropout", ".2", "--lr",
        "1e-2", "--fold", "0", "--accumulate", "2", "--augment", "hflip=.5", "rot90=.75")  # fmt: skip


@pytest.mark.soak
def test_killed_anywhere_and_resumed(hills_empty, monkeypatch):
    """The same bytes of weights, history and maps as a run that nobody stopped."""
    ends_with_the_same_bytes(monkeypatch, partial(train, hills_empty, base=RAMP), hills_empty)


def test_shuffled_labels_and_their_shares(hills_home, capsys):
    settings = {"label_map": [], "shuffle_images": False}
    plain = LANDSLIDE.read_rows(hills_home / "data", settings)
    mixed = LANDSLIDE.read_rows(hills_home / "data", settings | {"shuffle_images": True})
    assert list(plain["path"]) == list(mixed["path"]) and sorted(plain["label"]) == sorted(mixed["label"])
    assert (plain["label"] != mixed["label"]).mean() > 0.8 and "SHUFFLED" in capsys.readouterr().out
    shares = plain.set_index("label")[CLASSES]
    np.testing.assert_array_equal(mixed[CLASSES], shares.loc[mixed["label"]])


# predictions

ARGMAX = ("--thresholds", "argmax")


@pytest.fixture(scope="module")
def predicted(hills_home, tmp_path_factory):
    """words of infer.py -> (masks, maps) of the test rows of runs/one; (home, …) of a copy that nothing else uses."""
    home, made = tmp_path_factory.mktemp("predicted") / "home", {}
    shutil.copytree(hills_home, home)

    def predict(*words):
        if words not in made:
            call(home, "infer", "--runs", "one", "--workers", "0", "--out", f"set{len(made)}", *words)
            made[words] = masks_of(home, f"set{len(made)}"), probs_of(home / f"set{len(made)}/prob")
        return made[words]

    predict.home = home
    return predict


def test_thresholds_of_a_call(predicted):
    """production (the default), fitted, argmax and numbers: the masks are what post.json says."""
    post = json.loads((predicted.home / "runs/one/post.json").read_text())
    post |= {"thresholds": [0.9, 0.9, 0.01], "aims": {"production": [0.9, 0.01, 0.9], "v3": [0.01, 0.9, 0.9]}}
    (predicted.home / "runs/one/post.json").write_text(json.dumps(post))
    given = {(): post["aims"]["production"], ("--thresholds", "production"): post["aims"]["production"],
             ("--thresholds", "v3"): post["aims"]["v3"], ("--thresholds", "fitted"): post["thresholds"],
             ARGMAX: [1, 1, 1], ("--thresholds", ".9", ".02", ".02"): [0.9, 0.02, 0.02]}  # fmt: skip
    seen = []
    for words, thresholds in given.items():
        masks, maps = predicted(*words)
        assert same_masks(masks, by_thresholds(maps, thresholds)), words
        seen.append(str([masks[name].tolist() for name in sorted(masks)]))
    assert len(set(seen)) == 5 and seen[0] == seen[1]


def test_thresholds_of_a_judgement(hills_copy):
    """production meets its gates if any thresholds do; every choice gives other masks."""
    given, counts = {"production": (), "fitted": ("fitted",), "argmax": ("argmax",), "given": (".5", ".1", ".4")}, {}
    for name, words in given.items():
        words = ("--thresholds", *words) if words else ()
        call(hills_copy, "ensemble", "--runs", "one", *PLAIN, "--out", name, *words)
        frame = set_of(hills_copy / name / "oof_counts.csv")
        counts[name] = frame[[f"n_{t}_{p}" for t in range(3) for p in range(3)]].sum().to_numpy().reshape(3, 3)
    assert len({str(table.tolist()) for table in counts.values()}) >= 3
    assert (counts["given"] != counts["argmax"]).any()
    kept = pd.concat([set_of(hills_copy / f"runs/one/fold{fold}/oof_counts.csv") for fold in (0, 1)])
    assert counts["argmax"].ravel().tolist() == kept[[f"n_{t}_{p}" for t in range(3) for p in range(3)]].sum().tolist()


def test_the_crf_is_that_of_the_bands_asked_for(predicted):
    """The masks are those of post/crf.py on the tile's bands, measured as the training tiles are; else none."""
    post = json.loads((predicted.home / "runs/one/post.json").read_text())
    plain, maps = predicted(*ARGMAX)
    for words, bands, settings in (((), BANDS[:3], {}), (("--crf-bands", "slope", "soil"), ("slope", "soil"), {}),
                                   (("--crf-iterations", "2"), BANDS[:3], {"iterations": 2})):  # fmt: skip
        masks, again = predicted(*ARGMAX, "--crf", *words)
        for name, (prob, valid) in maps.items():
            np.testing.assert_array_equal(again[name][0], prob)
            with rasterio.open(predicted.home / f"data/test/images/{name}.tif") as file:
                raw = file.read([BANDS.index(band) + 1 for band in bands])
            guide = crf.guide_of(np.where(valid, raw, 0), *zip(*(post["bands"][band] for band in bands), strict=True),
                                 valid)  # fmt: skip
            wanted = crf.refine(prob, guide, valid, **settings).argmax(0)
            np.testing.assert_array_equal(masks[name], np.where(valid, wanted, 0))
        assert not same_masks(masks, plain)


# options of the CRF that leave it without effect, or with another one
CRF = {
    ("--compat-spatial", "0", "--compat-bilateral", "0"): True,
    ("--crf-iterations", "0"): True,
    ("--compat-bilateral", "0"): False,
    ("--compat-spatial", "40"): False,
    ("--spatial-weight", "30", "--compat-spatial", "40"): False,
    ("--bilateral-sxy", "30"): False,
    ("--bilateral-srgb", "50"): False,
}


@pytest.mark.parametrize("words", CRF, ids=" ".join)
def test_every_number_of_the_crf_counts(predicted, words):
    masks, _ = predicted(*ARGMAX, "--crf", *words)
    assert same_masks(masks, predicted(*ARGMAX)[0]) == CRF[words]
    if not CRF[words]:
        before = ("--compat-spatial", "40") if "--spatial-weight" in words else ()
        assert not same_masks(masks, predicted(*ARGMAX, "--crf", *before)[0])


def test_the_crf_in_a_judgement(hills_copy):
    kept = pd.concat([set_of(hills_copy / f"runs/one/fold{fold}/oof_counts.csv") for fold in (0, 1)])
    kept = kept.sort_values("id").filter(regex=r"^n_\d")
    found = {"off": str(kept.to_numpy().tolist())}  # which is what --thresholds argmax gives, see above
    for name, words in {"on": ("--crf",), "bands": ("--crf", "--crf-bands", "soil")}.items():
        call(hills_copy, "ensemble", "--runs", "one", *PLAIN, *ARGMAX, "--out", name, *words)
        frame = set_of(hills_copy / name / "oof_counts.csv")
        found[name] = str(frame.filter(regex=r"^n_\d").to_numpy().tolist())
    assert len(set(found.values())) == 3


def test_specks_and_holes(hills_copy):
    """--min-area and --fill-holes: what has 9 pixels is under 10 and not under 9, in both scripts' way to masks."""
    home, hole, speck = hills_copy, "other_y000_x000", "other_y000_x016"
    call(home, "infer", "--runs", "one", "--workers", "0", "--out", "low")
    for name, around, inside in ((hole, 2, 0), (speck, 0, 2)):
        path = home / f"low/prob/{name}.npz"
        stored, mask = dict(np.load(path)), np.full((32, 32), around)
        mask[20:23, 20:23] = inside
        stored["prob"] = np.eye(3, dtype=np.float16)[mask].transpose(2, 0, 1)
        np.savez_compressed(path, **stored)
    for words, filled, dropped in (((), False, False), (("--fill-holes", "9"), False, False),
                                   (("--fill-holes", "10"), True, False), (("--min-area", "10"), False, True),
                                   (("--min-area", "10", "9"), False, False)):  # fmt: skip
        call(home, "ensemble", "--preds", "low", "--data", "data", *ARGMAX, "--out", "-".join(["set", *words]), *words)
        masks = masks_of(home, "-".join(["set", *words]))
        assert (masks[hole][21, 21] == 2, masks[speck][21, 21] == 0) == (filled, dropped), words
        assert masks[hole][10, 10] == 2 and masks[speck][10, 10] == 0


def test_susceptibility_of_a_map(predicted):
    """infer.py --scene --susceptibility: raw or through what the run fitted; steps at --breaks."""
    home, place = predicted.home, tiny_landslide.write_raster
    bands, _ = tiny_landslide.draw_hills(np.random.default_rng(5), 64, 80)
    path = place(home / "area.tif", bands, from_origin(0, 0, 10, 10), BANDS, tiny_landslide.CRS, nodata=TAG)
    post, found = json.loads((home / "runs/one/post.json").read_text()), {}
    for way in ("raw", "isotonic", "temperature"):
        words = ("--scene", str(path), "--window", "64", "--susceptibility", way, "--breaks", ".2", ".6")
        call(home, "infer", "--runs", "one", "--workers", "0", "--out", way, *words)
        values, steps = (read_one(home / way / f"scenes/area_{kind}.tif")
                         for kind in ("susceptibility", "susceptibility_class"))  # fmt: skip
        assert (np.isnan(values) == ~has_data(bands)).all() and (0 <= values[has_data(bands)]).all()
        np.testing.assert_array_equal(steps, np.where(has_data(bands), np.digitize(values, [0.2, 0.6]), IGNORED))
        found[way] = values
    there = has_data(bands)
    curve = np.interp(found["raw"][there], post["isotonic"]["x"], post["isotonic"]["y"])
    np.testing.assert_allclose(found["isotonic"][there], curve, atol=1e-5)
    assert np.abs(found["temperature"] - found["raw"])[there].max() > 1e-4


def read_one(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


# rasters


RASTERS = ("--dem", "rasters/dem.tif", "--land-cover", "rasters/cover.tif", "--labels", "rasters/labels.tif")
CUT = ("make_folds", "--task", "landslide", "--data", "cut", "--folds", "2", "--side", "32", "--stride", "16",
       "--raster", "rasters/image.tif", *RASTERS)  # fmt: skip


def test_tiles_are_cut_from_rasters_and_folded(tmp_path, capsys):
    """Bands of all sources by name, labels and area kept; the same call again reuses them, another is refused."""
    tiny_landslide.write_rasters(tmp_path / "rasters")
    call(tmp_path, *CUT, "--aoi", "rasters/aoi.tif")
    assert "cut: " in capsys.readouterr().out
    folds, table = set_of(tmp_path / "cut/folds.csv"), pd.read_csv(tmp_path / "cut/tiles.csv")
    assert set(folds.query("fold != -1")["id"]) == set(table["id"]) and (folds["fold"] == -3).any()
    names = (tmp_path / "cut/bands.txt").read_text().split()
    assert names[:4] == ["ndvi", "soil", "elevation", "slope"] and names[-2:] == ["landcover_3", "landcover_7"]
    with rasterio.open(tmp_path / "rasters/labels.tif") as file:
        truth = file.read(1)
    for row in table.itertuples():
        with rasterio.open(tmp_path / f"cut/labels/{row.id}.tif") as file:
            label = file.read(1)
        wanted = truth[row.y : row.y + 32, row.x : row.x + 32].copy()
        wanted[:, : max(16 - row.x, 0)] = IGNORED
        np.testing.assert_array_equal(label, wanted)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut/images").iterdir()}
    call(tmp_path, *CUT, "--aoi", "rasters/aoi.tif")
    said = capsys.readouterr().out
    assert "stacked before" in said and "cut before" in said and said.count("left as it is") == 2
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cut/images").iterdir()}
    call(tmp_path, *CUT, code=2)
    assert "other files or settings" in capsys.readouterr().err
    words = ("--bands", "elevation", "slope", "ndvi", "--epochs", "1", "--fold", "0")
    run = train(tmp_path, *words, data="cut", run="one")
    assert load_checkpoint(run / "fold0/last.pt")["spec"]["bands"] == ["elevation", "slope", "ndvi"]


def test_rasters_in_the_folder_of_the_tiles_are_left_alone(tmp_path, capsys):
    """As in the drawn set, whose rasters lie in it."""
    tiny_landslide.write_rasters(tmp_path / "cut/rasters")
    before = {path: path.read_bytes() for path in (tmp_path / "cut/rasters").iterdir()}
    words = [word.replace("rasters/", "cut/rasters/") for word in CUT]
    call(tmp_path, *words)
    assert before == {path: path.read_bytes() for path in (tmp_path / "cut/rasters").iterdir()}
    assert [path.name for path in (tmp_path / "cut/stack").glob("*.tif")] == ["image.tif"]
    (tmp_path / "cut/stack/image.tif").replace(tmp_path / "cut/stack/labels.tif")
    words[words.index("cut/rasters/image.tif")] = words[words.index("cut/rasters/labels.tif")]
    words[words.index("--labels") + 1] = "cut/stack/labels.tif"
    before = (tmp_path / "cut/stack/labels.tif").read_bytes()
    call(tmp_path, *words, code=2)
    assert "would be replaced" in capsys.readouterr().err
    assert (tmp_path / "cut/stack/labels.tif").read_bytes() == before


@pytest.mark.parametrize("script", ["make_folds", "train", "infer", "ensemble"])
def test_every_option_of_the_task_is_exercised(script):
    """An option that no test names could do nothing and nobody would know. What glacier has as well is tested there."""
    module = importlib.import_module(script)
    options = {name: set(action.option_strings) for name, action in module.parser_of(LANDSLIDE).actions().items()}
    elsewhere = {**module.parser_of(TASKS["biomass"]).actions(), **module.parser_of(TASKS["glacier"]).actions()}
    again = {"thresholds", "min_area", "fill_holes", "label_map", "texture_band", "gates"}  # alike in name only
    here = [path for name in ("*landslide*", "test_ordered_maps*", "test_scene_maps") for path in
            Path(__file__).parent.glob(f"{name}.py")]  # fmt: skip
    words = {word for path in here for word in re.findall(r"--[a-z0-9-]+", path.read_text())}
    unused = [n for n, strings in options.items() if (n not in elsewhere or n in again) and not strings & words]
    assert not unused, unused
