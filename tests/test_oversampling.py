"""Repeated and synthetic tiles of a rare class: shares, ids, files, what is read, and when they are made again."""

import functools
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rasterio.crs import CRS
from rasterio.transform import from_origin
from scipy import ndimage
from threadpoolctl import threadpool_limits

from common.datasets import landslide_files as files
from common.datasets import synthetic_tiles
from common.datasets.inputs import valid_pixels
from common.datasets.oversampling import oversample, repetitions
from common.datasets.pixel_places import add_places
from common.datasets.synthetic_tiles import place_of, thin_windows, write_tile
from common.errors import InputError

OUTPUTS = ("low", "medium", "high")
BANDS = ("slope", "wetness", "forest")
KNOWN = {0: 0, 1: 1, 2: 2}
SIDE = 24
MARKER = 77_777.0  # a value of tiles that are not trained on


def make_tile(number: int, size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A tile with a band of class 1 between classes 0 and 2, a corner without data and some ignored pixels."""
    random = np.random.default_rng(number)
    height = ndimage.gaussian_filter(random.normal(size=(size, size)), 5)
    height = (height - height.mean()) / height.std()
    wide = 0.1 + 0.08 * (number % 4)
    label = (height > 1.3).astype(np.uint8) + (height > 1.3 + wide)
    label[:2, 10:30] = 255
    tile = np.stack([height * 10 + 30, random.normal(size=(size, size)) + label % 3, label == 1]).astype(np.float32)
    tile[:, -6:, -6:] = np.nan
    return tile, label


def write_tiles(folder: Path, count: int = 12, marked: int = 4) -> Path:
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "bands.txt").write_text("\n".join(BANDS) + "\n")
    for number in range(count + marked):
        tile, label = make_tile(number)
        if number >= count:
            tile[:2] = MARKER
        name = f"col{number % 4:05d}_row{number // 4:05d}.npy"
        np.save(folder / "images" / name, tile)
        np.save(folder / "labels" / name, label)
    return folder


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Path:
    """A data folder of 16 tiles, read only; the last four hold the marker."""
    return write_tiles(tmp_path_factory.mktemp("tiles"))


@functools.cache
def rows_of(data: Path) -> pd.DataFrame:
    return files.read_rows(data).sort_values(["row", "col"]).reset_index(drop=True)


def call(data: Path, cache: Path, **options) -> tuple:
    """(training rows, what oversample gives, numbers of the rows that it read) of the first 12 tiles of a folder."""
    rows = rows_of(data).iloc[:12].assign(fold=[*range(4)] * 3, group="block")
    seen = []

    def read(index):
        seen.append(index)
        row = rows.iloc[index]
        return files.read_tile(row["path"], BANDS), files.read_label(row["label"], KNOWN)

    settings = {"outputs": OUTPUTS, "bands": BANDS, "raw_values": {0: 0, 1: 1, 2: 2}, "side": SIDE, "folder": cache,
                "target": 0.05, "smote": True, "most": 2, "seed": 5, "k": 3}  # fmt: skip
    return rows, oversample(rows, read, **settings | options), seen


def shown(rows: pd.DataFrame) -> np.ndarray:
    """Labelled pixels with data per class of the tiles as read back from their files."""
    counts = np.zeros(3, int)
    for path, label in zip(rows["path"], rows["label"], strict=True):
        valid, classes = valid_pixels(files.read_tile(path, BANDS)), files.read_label(label, KNOWN)
        counts += [(valid & (classes == k)).sum() for k in range(3)]
    return counts


def all_bytes(folder: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def test_repeated_rows_bring_the_share_to_the_target(tiles, tmp_path):
    before, (rows, lines, facts), _ = call(tiles, tmp_path, target=0.033, smote=False, most=5)
    counts = shown(rows)
    assert facts["share_before"] < 0.033 <= facts["share"] == counts[1] / counts.sum()
    pd.testing.assert_frame_equal(rows.iloc[: len(before)], before)
    again = rows.iloc[len(before) :]
    counted = again["id"].str.split("~").str[0].value_counts()
    for name, times in counted.items():
        same = rows[rows["id"].str.split("~").str[0] == name]
        assert list(same["id"]) == [name, *(f"{name}~{time}" for time in range(2, times + 2))]
        assert len(same.drop(columns="id").drop_duplicates()) == 1
    assert rows["id"].is_unique and facts["repeated"] == len(counted) and facts["added"] == len(again)
    share = before.set_index("id")["medium"]
    assert share[counted.index].min() >= share.drop(counted.index).max()  # the richest
    assert f"{facts['share_before']:.2%} -> {facts['share']:.2%}" in lines[0] and not list(tmp_path.iterdir())


def test_repetition_ends_with_the_tile_that_reaches_the_target_or_at_its_cap():
    counts = np.array([[90, 10], [80, 20], [100, 0], [95, 5]])  # 35 of 400 pixels
    np.testing.assert_array_equal(repetitions(counts, 1, 0.0875, 3), [1, 1, 1, 1])
    np.testing.assert_array_equal(repetitions(counts, 1, 0.11, 4), [1, 2, 1, 1])  # 55 of 500
    np.testing.assert_array_equal(repetitions(counts, 1, 0.112, 4), [1, 3, 1, 1])  # tile 0 has less than .11 then
    np.testing.assert_array_equal(repetitions(counts, 1, 0.19, 3), [1, 3, 1, 1])  # the most there may be
    np.testing.assert_array_equal(repetitions(counts, 1, 0.19, 1), [1, 1, 1, 1])
    np.testing.assert_array_equal(repetitions(counts[[3, 0, 2]], 1, 0.06, 3), [1, 2, 1])  # 25 of 400
    np.testing.assert_array_equal(repetitions(np.array([[0, 0], [9, 1]]), 1, 0.05, 3), [1, 1])


@pytest.mark.parametrize("mode", ["windows", "pixels"])
def test_synthetic_tiles_bring_the_share_to_the_target(tiles, tmp_path, mode):
    before, (rows, lines, facts), _ = call(tiles, tmp_path, mode=mode)
    counts, made = shown(rows), rows[rows["id"].str.startswith("synthetic-")]
    share = counts[1] / counts.sum()
    assert facts["share_repeated"] < 0.05 and facts["synthetic"] == len(made) > 0
    assert facts["share"] == share
    last = shown(made.iloc[-1:])  # without the last window the target is missed
    fewer = counts - last
    if mode == "windows":
        assert share >= 0.05 > fewer[1] / fewer.sum()
    else:
        assert abs(share - 0.05) < 1 / counts.sum()
        assert (counts - shown(rows.drop(made.index)) == [0, counts[1] - shown(rows.drop(made.index))[1], 0]).all()
    assert list(rows.columns) == list(before.columns) and set(made["fold"]) == {-2}
    assert set(made["group"]) == {"synthetic"} and set(made["label_map"]) == {before["label_map"][0]}
    assert (made[["row", "col", "y", "x"]] == -1).all(axis=None) and (made[["height", "width"]] == SIDE).all(axis=None)
    for _, row in made.iterrows():
        own = shown(made[made["id"] == row["id"]])
        np.testing.assert_allclose(row[list(OUTPUTS)].to_numpy(float), own / own.sum())
    assert f"{len(made)} synthetic tiles of {SIDE} px" in lines[1] and f"{share:.2%}" in lines[1]


def test_synthetic_tiles_are_a_data_folder(tiles, tmp_path):
    _, (rows, _, facts), _ = call(tiles, tmp_path)
    made = files.read_rows(facts["folder"])
    expected = rows[rows["id"].str.startswith("synthetic-")].reset_index(drop=True)
    assert list(made["path"]) == list(expected["path"]) and list(made["label"]) == list(expected["label"])
    np.testing.assert_allclose(made[list(OUTPUTS)], expected[list(OUTPUTS)])
    assert files.available_bands(made["path"][0]) == list(BANDS)
    assert files.read_tile(made["path"][0], ["forest"]).shape == (1, SIDE, SIDE)


def test_windows_lie_between_a_window_of_a_tile_and_one_elsewhere(tiles, tmp_path):
    before, (_, _, facts), _ = call(tiles, tmp_path)
    table = pd.read_csv(Path(facts["folder"]) / "synthetic.csv")
    sources, folder, shares = before.set_index("id"), Path(facts["folder"]), set()
    for _, line in table.iterrows():
        ends = []
        for name, y, x in ((line["base"], line["y"], line["x"]), (line["other"], line["other_y"], line["other_x"])):
            tile = np.load(sources["path"][name])[:, y : y + SIDE, x : x + SIDE]
            ends.append(np.where(np.isnan(tile).any(axis=0), np.nan, tile))
        first, second = ends
        label = np.load(sources["label"][line["base"]])[line["y"] : line["y"] + SIDE, line["x"] : line["x"] + SIDE]
        lost = np.isnan(first[0])
        expected = np.where(np.isnan(second), first, first + np.float32(line["share"]) * (second - first))
        made = np.load(folder / "images" / f"{line['id']}.npy")
        np.testing.assert_allclose(made[:, ~lost], expected[:, ~lost], rtol=1e-6, atol=1e-6)
        assert np.isnan(made[:, lost]).all()
        np.testing.assert_array_equal(np.load(folder / "labels" / f"{line['id']}.npy"), np.where(lost, 255, label))
        same = line["base"] == line["other"]
        assert not same or max(abs(line["y"] - line["other_y"]), abs(line["x"] - line["other_x"])) >= SIDE
        shares.add(line["share"])
    assert len(table) > 5 and len(shares) == len(table) and table["base"].nunique() > 3


def test_pixels_are_imbalanced_learns(tiles, tmp_path):
    over_sampling = pytest.importorskip("imblearn.over_sampling")
    before, (rows, _, facts), _ = call(tiles, tmp_path, mode="pixels")
    values, classes = [], []
    for path, label in zip(before["path"], before["label"], strict=True):
        tile, target = files.read_tile(path, BANDS), files.read_label(label, KNOWN)
        known = valid_pixels(tile) & (target != 255)
        values.append(tile[:, known].T)
        classes.append(target[known] == 1)
    values, classes = np.concatenate(values), np.concatenate(classes).astype(int)
    made = rows[rows["id"].str.startswith("synthetic-")]
    ours = [files.read_tile(path, BANDS) for path in made["path"]]
    ours = np.concatenate([tile[:, valid_pixels(tile)].T for tile in ours])
    wanted = {1: int(classes.sum()) + len(ours)}
    theirs = over_sampling.SMOTE(sampling_strategy=wanted, k_neighbors=3, random_state=5).fit_resample(values, classes)
    np.testing.assert_array_equal(ours, theirs[0][len(values) :])
    assert len(made) == -(-len(ours) // SIDE**2) and facts["share"] == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("mode", ["windows", "pixels"])
def test_nothing_but_training_tiles_is_seen(tiles, tmp_path, mode):
    _, (_, _, facts), seen = call(tiles, tmp_path, mode=mode)
    made = np.stack([np.load(path) for path in sorted((Path(facts["folder"]) / "images").glob("*.npy"))])
    assert set(seen) == set(range(12))
    assert np.nanmax(made) < 200 and any((np.load(p) == MARKER).any() for p in (tiles / "images").glob("*.npy"))


@pytest.mark.parametrize("mode", ["windows", "pixels"])
def test_the_same_bytes_again_and_with_more_threads(tiles, tmp_path, mode):
    facts = []
    for threads in (1, 4):
        with threadpool_limits(limits=threads):
            facts.append(call(tiles, tmp_path / str(threads), mode=mode)[1][2])
    assert all_bytes(facts[0]["folder"]) == all_bytes(facts[1]["folder"])
    assert Path(facts[0]["folder"]).name == Path(facts[1]["folder"]).name


def test_they_are_made_once_and_again_when_anything_changed(tiles, tmp_path, monkeypatch):
    data, cache = shutil.copytree(tiles, tmp_path / "data"), tmp_path / "cache"
    built = []
    keep = synthetic_tiles.write_tile
    monkeypatch.setattr(synthetic_tiles, "write_tile", lambda *given: built.append(0) or keep(*given))

    def folder(**options):
        built.clear()
        return call(data, cache, **options)[1][2]["folder"], bool(built)

    first, made = folder()
    assert made and folder() == (first, False)
    others = [folder(seed=6), folder(k=2), folder(side=20), folder(target=0.045), folder(mode="pixels"), folder(most=1)]
    label = data / "labels" / "col00001_row00001.npy"
    changed = np.load(label)
    changed[40, 5] = 255 if changed[40, 5] != 255 else 0
    np.save(label, changed)
    others.append(folder())
    tile = data / "images" / "col00002_row00001.npy"
    changed = np.load(tile)
    changed[0, 0, 0] += 1
    np.save(tile, changed)
    others.append(folder())
    assert all(made for _, made in others) and len({first, *(name for name, _ in others)}) == len(others) + 1
    np.save(data / "images" / "col00003_row00003.npy", make_tile(99)[0])  # no training tile
    assert folder() == (others[-1][0], False)


def test_nothing_remains_of_a_build_that_fails(tiles, tmp_path, monkeypatch):
    def fail(folder, number, *_):
        (folder / "images" / "half.npy").write_bytes(b"half")
        raise RuntimeError("killed")

    monkeypatch.setattr(synthetic_tiles, "write_tile", fail)
    with pytest.raises(RuntimeError, match="killed"):
        call(tiles, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize(("raw", "ignored"), [((0, 1, 2), 255), ((0, 255, 7), 0)])
def test_unknown_pixels_stay_unknown_under_any_label_values(tiles, tmp_path, raw, ignored):
    _, (_, _, facts), _ = call(tiles, tmp_path, raw_values=raw)
    known = {value: k for k, value in enumerate(raw)}
    for path in sorted((Path(facts["folder"]) / "images").glob("*.npy")):
        label = Path(facts["folder"]) / "labels" / path.name
        valid, classes = valid_pixels(files.read_tile(path, BANDS)), files.read_label(label, known)
        written = np.load(label)
        assert set(np.unique(written)) <= {*raw, ignored}
        if ignored == 0:
            assert set(np.unique(classes[valid])) <= {0, 1, 2} and set(np.unique(written[~valid])) <= {0}
    assert (call(tiles, tmp_path)[1][2]["folder"] == facts["folder"]) == (raw == (0, 1, 2))


def test_tiles_smaller_than_the_window_end_in_no_data(tiles, tmp_path):
    _, (rows, _, facts), _ = call(tiles, tmp_path, side=60, target=0.032, most=1)
    made = [np.load(path) for path in sorted((Path(facts["folder"]) / "images").glob("*.npy"))]
    assert made and all(tile.shape == (3, 60, 60) and np.isnan(tile[:, 48:]).all() for tile in made)
    assert all(np.isfinite(tile[:, :40, :40]).all() for tile in made)
    counts = shown(rows)
    assert facts["share"] == counts[1] / counts.sum() >= 0.032


def test_windows_that_share_ground_are_thinned():
    windows = pd.DataFrame({"own": [5, 9, 7, 6, 1], "ground": ["a", "a", "a", "b", "a"], "down": [0, 4, 6, 4, 50],
                            "right": [0, 0, 0, 0, 0]})  # fmt: skip
    kept, descriptors = thin_windows(windows, np.arange(5)[:, None], 10, np.random.default_rng(0))
    # of a: 9 is kept, 7 shares .8 and 5 shares .6 of its ground
    assert list(kept["own"]) == [9, 6, 1] and list(descriptors[:, 0]) == [1, 3, 4]


def test_overlapping_tiles_are_not_mixed_with_their_own_ground(tiles, tmp_path):
    """The same ground in two tiles: known by their place in the raster."""
    tile, label = make_tile(3, size=72)
    tile[:, -6:, -6:] = 1.0
    parts = [(tile[:, y : y + 48, x : x + 48], label[y : y + 48, x : x + 48]) for y in (0, 24) for x in (0, 24)]
    rows = pd.DataFrame({"id": list("abcd"), "path": "", "label": "", "raster": "r", "y": [0, 0, 24, 24],
                         "x": [0, 24, 0, 24], "low": 0.9, "medium": 0.05, "high": 0.05})  # fmt: skip
    settings = {
        "outputs": OUTPUTS,
        "bands": BANDS,
        "raw_values": range(3),
        "side": 12,
        "smote": True,
        "most": 1,
        "k": 2,
    }
    facts = oversample(rows, lambda i: parts[i], target=0.08, folder=tmp_path, **settings)[2]
    table = pd.read_csv(Path(facts["folder"]) / "synthetic.csv")
    place = rows.set_index("id")
    for axis in "yx":
        table[f"first_{axis}"] = table[axis] + place[axis].loc[table["base"]].to_numpy()
        table[f"second_{axis}"] = table[f"other_{axis}"] + place[axis].loc[table["other"]].to_numpy()
    away = np.maximum(abs(table["first_y"] - table["second_y"]), abs(table["first_x"] - table["second_x"]))
    assert len(table) > 3 and (away >= 12).all()


def test_pools_are_bounded(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_tiles, "MOST_PIXELS", 30)
    monkeypatch.setattr(synthetic_tiles, "MOST_WINDOWS", 12)
    asked = []
    keep = synthetic_tiles.smote
    monkeypatch.setattr(synthetic_tiles, "smote", lambda points, *a, **b: asked.append(points) or keep(points, *a, **b))
    _, (_, _, facts), _ = call(tiles, tmp_path, mode="pixels")
    assert asked[0].shape == (30, 3) and facts["share"] == pytest.approx(0.05, abs=1e-3)
    assert (asked[0][:, 2] == 1).all()  # the one-hot band of the class in the made-up tiles
    table = pd.read_csv(Path(call(tiles, tmp_path)[1][2]["folder"]) / "synthetic.csv")
    used = {
        tuple(key) for names in (["base", "y", "x"], ["other", "other_y", "other_x"]) for key in table[names].values
    }
    assert 3 < len(used) <= 12


def assert_repetition_alone(before: pd.DataFrame, given: tuple, said: str) -> None:
    rows, lines, facts = given
    share = share_shown(rows)
    assert len(rows) == len(before) + facts["added"] > len(before) and not rows["group"].eq("synthetic").any()
    assert facts["synthetic"] == 0 and "folder" not in facts and facts["share"] == facts["share_repeated"] == share
    assert said in facts["no_smote"] and "has another to be mixed with" in facts["no_smote"]
    assert len(lines) == 2 and facts["no_smote"] in lines[1] and "\n" not in lines[1]
    assert f"repetition alone reaches {share:.2%}" in lines[1] and "smaller --crop" in lines[1]


def share_shown(rows: pd.DataFrame) -> float:
    counts = shown(rows)
    return counts[1] / counts.sum()


def test_windows_too_poor_to_raise_the_share_leave_repetition_alone(tiles, tmp_path):
    """Which may be so of one fold among several: it is said, and is no error. The same is found in the cache."""
    before, given, _ = call(tiles, tmp_path, target=0.9)
    assert_repetition_alone(before, given, f"no window of {SIDE} px")
    assert "more than 90.00% of medium" in given[2]["no_smote"]
    again = call(tiles, tmp_path, target=0.9)[1]
    pd.testing.assert_frame_equal(given[0], again[0])
    assert given[1:] == again[1:]


def test_windows_that_all_share_ground_leave_repetition_alone(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_tiles, "place_of", lambda rows, index: ("one", 0, 0))
    monkeypatch.setattr(synthetic_tiles, "SHARED", 1.0)  # or thinned windows would be fewer than k + 1
    before, given, _ = call(tiles, tmp_path, side=48, target=0.04)
    assert (before["medium"] > 0.04).any()  # and poor they are not
    assert_repetition_alone(before, given, "no window of 48 px")


def test_no_more_synthetic_than_real_pixels(tiles, tmp_path):
    before, (rows, lines, facts), _ = call(tiles, tmp_path, target=0.1, most=1)
    made = shown(rows).sum() - shown(before).sum()
    assert shown(before).sum() <= made <= shown(before).sum() + SIDE**2
    assert facts["share"] < 0.1 and "no more synthetic than real pixels" in lines[1]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"target": 1.0}, "--oversample-target 1.0"),
        ({"target": 0.0}, "--oversample-target 0.0"),
        ({"rare": "steep"}, "no class steep.*low, medium, high"),
        ({"mode": "tiles"}, "--smote-mode tiles.*pixels, windows"),
        ({"k": 0}, "--smote-k 0"),
        ({"k": 5000}, "--smote-k 5000.*lower --smote-k"),
        ({"k": 5000, "mode": "pixels"}, "--smote-k 5000.*lower --smote-k"),
        ({"most": 0}, "at most 0 times"),
    ],
)
def test_wrong_settings_are_one_line(tiles, tmp_path, options, word):
    with pytest.raises(InputError, match=word) as error:
        call(tiles, tmp_path, **options)
    assert "\n" not in str(error.value) and not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_class_that_is_absent_is_one_line(tmp_path):
    tile, rows = np.ones((3, 9, 9), np.float32), pd.DataFrame({"id": ["a"], "path": "", "label": "", "low": 1.0})
    tile[:, 0] = 0
    label = np.zeros((9, 9), np.uint8)
    label[0] = 1  # where there is no data
    with pytest.raises(InputError, match="no training tile holds a pixel of medium"):
        oversample(rows, lambda i: (tile, label), outputs=OUTPUTS, bands=BANDS, raw_values=range(3), side=4,
                   folder=tmp_path)  # fmt: skip


def test_a_share_that_is_there_already_changes_nothing(tiles, tmp_path):
    before, (rows, lines, facts), _ = call(tiles, tmp_path, target=0.001)
    pd.testing.assert_frame_equal(rows, before)
    assert facts["synthetic"] == facts["added"] == 0 and "no tile is repeated" in lines[0] and len(lines) == 1


def test_georeferenced_tiles_lie_on_one_ground_wherever_it_is(tmp_path):
    """Pixels count from the equator: those of northern tiles are negative, as are western ones."""
    profile = {"crs": CRS.from_epsg(4326), "width": 8, "height": 8}
    corners = [(-100.0, 50.0), (-99.96, 50.0), (10.0, -20.0)]
    profiles = [profile | {"transform": from_origin(*corner, 0.01, 0.01)} for corner in corners]
    names = pd.DataFrame({"stem": ["a", "b", "c", "d"], "path": ["a.tif", "b.tif", "c.tif", "d.npy"]})
    unknown = {"crs": None, "transform": from_origin(0, 0, 1, 1), "width": 8, "height": 8}
    places = [place_of(add_places(names, [*profiles, unknown], []), index) for index in range(4)]
    assert places == [("raster crs0", -5000, -10000), ("raster crs0", -5000, -9996), ("raster crs0", 2000, 1000),
                      ("tile 3", 0, 0)]  # fmt: skip


@pytest.mark.parametrize("raw", [(0, 1, 2), (100, 200, 300), (-1, 7, 257), (70_000, 0, 1)])
def test_synthetic_labels_keep_raw_values_of_any_size(tmp_path, raw):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    label = np.resize(np.array([0, 1, 2, 255], np.uint8), (4, 4))
    settings = {"raw": list(raw), "outputs": OUTPUTS}
    write_tile(tmp_path, 0, np.ones((3, 4, 4), np.float32), label, {}, settings)
    read_back = files.read_label(tmp_path / "labels" / "synthetic-00000.npy", dict(zip(raw, range(3), strict=True)))
    np.testing.assert_array_equal(read_back, label)
