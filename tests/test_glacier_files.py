import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.transform import from_origin

from common.datasets import glacier_files as gf
from common.errors import InputError

PREFIX = {"Band1": "B2_B2_masked", "Band2": "B3_B3_masked", "Band3": "B4_B4_masked", "Band4": "B6_B6_masked",
          "Band5": "B10_B10_masked", "label": "Y_output_resized"}  # fmt: skip
LETTERS = ("Band1", "Band2", "Band3", "Band4", "Band5")
NAMES = ("background", "glacier", "debris", "lake")


def tif(path, array, left=500_000.0, top=3_700_000.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=array.shape[0], width=array.shape[1], count=1, dtype=array.dtype,
        crs="EPSG:32643", transform=from_origin(left, top, 30, 30), nodata=0, compress="deflate",
    ) as file:  # fmt: skip
        file.write(array, 1)


def write_set(folder, labels, ids=("02_07", "02_08"), style="train"):
    """A folder of 8x6 tiles: band b of tile i is 100 b + i, the first two columns without data; their label 255."""
    for i, key in enumerate(ids):
        for b, name in enumerate(LETTERS):
            band = np.full((6, 8), 100.0 * (b + 1) + i, np.float32)
            band[:, :2] = 0
            tif(folder / name / (f"{PREFIX[name]}_{key}.tif" if style == "train" else f"img{key}.tif"), band)
        if labels is not None:
            tif(folder / "label" / f"{PREFIX['label']}_{key}.tif", np.array(labels[i], np.float32))
    return folder


def label(*values):
    """6x8, a row for each value, over and over."""
    return [[values[row % len(values)]] * 8 for row in range(6)]


@pytest.fixture
def two(tmp_path):
    return write_set(tmp_path / "set" / "Train", [label(0, 85, 170), label(0, 255, 85)])


def error(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def measure(folder):
    rows = gf.read_rows(folder)
    known = gf.label_map(rows["label"])
    return gf.class_shares(rows, known, gf.outputs_of(known))


@pytest.mark.parametrize(
    "name, key",
    [("B2_B2_masked_02_07.tif", "02_07"), ("B10_B10_masked_12_103.tif", "12_103"), ("img001.tif", "001"),
     ("Y_output_resized_08_14.tif", "08_14"), ("B2_001.tif", "001"), ("07.tif", "07"), ("B10_07.tif", "07")],
)  # fmt: skip
def test_tile_id(name, key):
    assert gf.tile_id(name) == key


def test_tile_id_without_number():
    error(lambda: gf.tile_id("Band1/tile.tif"), "Band1/tile.tif", "rename")


def test_rows_of_folder_and_parent(two):
    rows = gf.read_rows(two.parent)
    assert rows.equals(gf.read_rows(two))
    assert rows["id"].tolist() == ["02_07", "02_08"] and rows[["row", "col"]].to_numpy().tolist() == [[2, 7], [2, 8]]
    assert rows["path"][1] == str(two / "Band1" / "B2_B2_masked_02_08.tif")
    assert rows["label"][0] == str(two / "label" / "Y_output_resized_02_07.tif")


def test_rows_of_test_tiles(two):
    write_set(two.parent / "Test", None, ids=("001", "010", "002"), style="test")
    rows = gf.read_rows(two.parent, require_labels=False)
    assert rows["id"].tolist() == ["001", "002", "010"] and "label" not in rows
    assert (rows[["row", "col"]] == -1).all().all()
    assert rows.equals(gf.read_rows(two.parent / "Test", require_labels=False))
    assert gf.read_tile(rows["path"][1])[:, 0, 7].tolist() == [102, 202, 302, 402, 502]
    assert gf.read_rows(two, require_labels=False)["label"].tolist() == gf.read_rows(two)["label"].tolist()


def test_read_tile_equals_tifffile(two):
    for path in gf.read_rows(two)["path"]:
        key = path[-9:-4]
        alone = [tifffile.imread(two / name / f"{PREFIX[name]}_{key}.tif") for name in LETTERS]
        tile = gf.read_tile(path)
        assert tile.dtype == np.float32 and np.array_equal(tile, np.stack(alone))
        assert np.array_equal(gf.valid_pixels(tile), np.arange(8)[None] * np.ones((6, 1)) >= 2)


def test_a_new_file_is_seen(two):
    assert len(gf.read_rows(two)) == 2
    write_set(two, [label(0, 85)], ids=("03_07",))
    assert gf.read_rows(two)["id"].tolist() == ["02_07", "02_08", "03_07"]


def test_zero_in_some_bands_is_data(two):
    path = two / "Band4" / "B6_B6_masked_02_07.tif"
    tif(path, np.zeros((6, 8), np.float32))
    valid = gf.valid_pixels(gf.read_tile(gf.read_rows(two)["path"][0]))
    assert valid.sum() == 36


@pytest.mark.parametrize(
    "first, second, known",
    [((0, 255), (0, 0), {0: 0, 255: 1}), ((0, 255), (0, 85), {0: 0, 85: 1, 170: 2, 255: 3}),
     ((255, 0), (170, 0), {0: 0, 85: 1, 170: 2, 255: 3}), ((0, 85), (0, 0), {0: 0, 85: 1, 170: 2, 255: 3})],
)  # fmt: skip
def test_label_map_is_decided_over_the_set(tmp_path, first, second, known):
    rows = gf.read_rows(write_set(tmp_path, [label(*first), label(*second)]))
    found = gf.label_map(rows["label"])
    assert found == known and gf.outputs_of(found) == NAMES[: len(known)]
    as_text = {str(value): k for value, k in known.items()}
    for path, values in zip(rows["label"], (first, second), strict=True):
        classes = gf.read_label(path, as_text)
        assert classes.dtype == np.uint8 and np.array_equal(classes, np.vectorize(known.get)(label(*values)))


def test_label_map_given(tmp_path):
    rows = gf.read_rows(write_set(tmp_path, [label(0, 255), label(0, 1)]))
    assert gf.label_map(rows["label"][:1], phase=2)[255] == 3
    assert gf.label_map(rows["label"], phase={"0": 0, "1": 1, "255": 1}) == {0: 0, 1: 1, 255: 1}


def test_stray_labels_name_file_and_values(tmp_path):
    rows = gf.read_rows(write_set(tmp_path, [label(0, 255), label(0, 17, 90.5)]))
    error(lambda: gf.label_map(rows["label"]), "resized_02_08.tif", "17, 90.5", "0, 255", "--label-map")
    error(lambda: gf.read_label(rows["label"][1], {0: 0, 255: 1}), "resized_02_08.tif", "17, 90.5")
    # 85 with the map of phase 1, and a value that is not a number
    tif(tmp_path / "label" / "Y_output_resized_02_08.tif", np.array(label(0, np.nan), np.float32))
    error(lambda: gf.label_map(rows["label"], phase=1), "resized_02_08.tif", "nan")


def test_labels_that_leave_it_open(tmp_path):
    rows = gf.read_rows(write_set(tmp_path, [label(0), label(0)]))
    error(lambda: gf.label_map(rows["label"]), "no label but 0", "--label-map")


def test_class_shares_count_pixels_with_data_only(two):
    third = np.array(label(0, 85, 170), np.float32)
    third[:, :2] = 255  # lake where there is no data: background in the output, in no share
    tif(two / "label" / "Y_output_resized_02_07.tif", third)
    rows = measure(two)
    assert np.allclose(rows[list(NAMES)], [[1 / 3, 1 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 0, 1 / 3]])


def test_missing_band_folder(two):
    (two / "Band4").rename(two / "B6")
    error(lambda: gf.read_rows(two), str(two), "Band4 is missing")


def test_tile_missing_in_one_band(two):
    (two / "Band3" / "B4_B4_masked_02_08.tif").unlink()
    error(lambda: gf.read_rows(two), "Band3", "02_08", "1 of 2")
    error(lambda: gf.read_tile(two / "Band1" / "B2_B2_masked_02_08.tif"), "Band3", "02_08")


@pytest.mark.parametrize("gone", ["Band1/B2_B2_masked_02_07.tif", "label/Y_output_resized_02_07.tif"])
def test_tile_missing_in_first_band_or_label(two, gone):
    (two / gone).unlink()
    error(lambda: gf.read_rows(two), gone.split("/")[0], "02_07", "1 of 2")


def test_two_files_of_one_tile(two):
    tif(two / "Band2" / "copy_02_07.tif", np.ones((6, 8), np.float32))
    error(lambda: gf.read_rows(two), "Band2", "copy_02_07.tif", "02_07")


def test_differing_sizes(two):
    tif(two / "Band5" / "B10_B10_masked_02_08.tif", np.ones((6, 7), np.float32))
    error(lambda: measure(two), "B10_B10_masked_02_08.tif", "6x7", "6x8")


def test_label_of_another_size(two):
    tif(two / "label" / "Y_output_resized_02_08.tif", np.full((3, 4), 85, np.uint8))
    error(lambda: measure(two), "resized_02_08.tif", "3x4", "6x8")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_pixels(two, value):
    band = np.full((6, 8), 5, np.float32)
    band[2, 3:5] = value
    tif(two / "Band2" / "B3_B3_masked_02_08.tif", band)
    error(lambda: measure(two), "B3_B3_masked_02_08.tif", "2 pixels are NaN")


def test_all_no_data_tile(two):
    for name in LETTERS:
        tif(two / name / f"{PREFIX[name]}_02_08.tif", np.zeros((6, 8), np.float32))
    error(lambda: measure(two), "B2_B2_masked_02_08.tif", "remove")


def test_unreadable_and_wrong_files(two):
    path = two / "Band1" / "B2_B2_masked_02_07.tif"
    tifffile.imwrite(path, np.ones((3, 6, 8), np.float32), photometric="minisblack", planarconfig="separate")
    error(lambda: gf.read_tile(path), "B2_B2_masked_02_07.tif", "3 bands")
    path.write_bytes(path.read_bytes()[:200])
    error(lambda: gf.read_tile(path), "B2_B2_masked_02_07.tif", "cannot be read")
    error(lambda: gf.read_rows(two.parent / "elsewhere"), "no such folder", "--data")
    error(lambda: gf.read_rows(two / "label"), "Band1", "--data")
    error(lambda: gf.read_rows(two.parent, require_labels=False), "Test", "--data")


def test_profile(two):
    profile = gf.profile_of(gf.read_rows(two)["path"][0])
    assert (profile["width"], profile["height"], profile["crs"].to_epsg()) == (8, 6, 32643)
    assert profile["transform"][:6] == (30, 0, 500_000, 0, -30, 3_700_000)
    tifffile.imwrite(two / "Band1" / "B2_B2_masked_02_07.tif", np.ones((6, 8), np.float32))
    assert gf.profile_of(two / "Band1" / "B2_B2_masked_02_07.tif")["crs"] is None


@pytest.mark.data
def test_real_tiles(glacier_data):
    rows = gf.read_rows(glacier_data)
    known = gf.label_map(rows["label"])
    assert len(rows) == 20 and known == {0: 0, 255: 1}
    rows = gf.class_shares(rows.iloc[[0, 19]], known, gf.outputs_of(known))
    assert np.allclose(rows["glacier"], [0.4408, 0.458], atol=1e-3)
    assert np.allclose(rows["background"] + rows["glacier"], 1)
    assert gf.valid_pixels(gf.read_tile(rows["path"][19])).mean() == pytest.approx(0.330, abs=1e-3)
