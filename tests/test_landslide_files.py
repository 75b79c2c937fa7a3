"""The reader of tiles of many bands: layouts, band names, no data, label maps, places, and errors of one line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio

from common.datasets import landslide_files as files
from common.datasets.inputs import valid_pixels
from common.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
NAMES = ("slope", "wetness", "soil")


def write_tif(path, array, *, names=None, nodata=None, place=None, crs="EPSG:32633"):
    """A GeoTIFF of an array (C,H,W) or (H,W); place: (y, x) in pixels of 10 m of a raster."""
    array = array[None] if array.ndim == 2 else array
    path.parent.mkdir(parents=True, exist_ok=True)
    geo = (
        {"crs": crs, "transform": rasterio.Affine(10, 0, 500000 + 10 * place[1], 0, -10, 5e6 - 10 * place[0])}
        if place
        else {}
    )
    count, height, width = array.shape
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, dtype=array.dtype,
                       nodata=nodata, **geo) as file:  # fmt: skip
        file.write(array)
        file.descriptions = names or [None] * count


def bands_of(seed, side=8):
    return np.random.default_rng(seed).normal(5, 2, (len(NAMES), side, side)).astype(np.float32)


def make_set(folder, labels, *, kind="labels", names=NAMES, place=True, **options):
    """images/t0.tif … and their labels, side by side with a stride of half a tile."""
    for k, label in enumerate(labels):
        where = (0, 4 * k) if place else None
        write_tif(folder / "images" / f"t{k}.tif", bands_of(k), names=names, place=where, **options)
        write_tif(folder / kind / f"t{k}.tif", np.asarray(label, np.uint8))
    return folder


def label_of(*values, side=8):
    return np.resize(np.array(values, np.uint8), (side, side))


def test_rows_of_three_classes(tmp_path):
    rows = files.read_rows(make_set(tmp_path, [label_of(0, 1, 2, 255), label_of(0, 0, 0, 2)]))
    assert list(rows["id"]) == ["t0", "t1"] and list(rows["split"]) == ["", ""]
    assert files.outputs_of(rows) == files.CLASSES == files.outputs_of(files.label_map_of(rows))
    np.testing.assert_allclose(rows[list(files.CLASSES)], [[1 / 3, 1 / 3, 1 / 3], [0.75, 0, 0.25]])
    assert (
        rows["x"].diff().iloc[1] == 4 and rows["y"].nunique() == 1 and (rows[["height", "width"]] == 8).all(axis=None)
    )
    np.testing.assert_array_equal(files.read_label(rows["label"][0], files.label_map_of(rows)),
                                  label_of(0, 1, 2, 255))  # fmt: skip


@pytest.mark.parametrize(("labels", "known"), [
    ([label_of(0, 1), label_of(0)], {0: 0, 1: 1}),
    ([label_of(0, 255), label_of(0)], {0: 0, 255: 1}),
    ([label_of(0, 255), label_of(0, 2)], {0: 0, 1: 1, 2: 2}),
])  # fmt: skip
def test_label_map_is_decided_by_the_whole_set(tmp_path, labels, known):
    rows = files.read_rows(make_set(tmp_path, labels, kind="masks"))
    assert files.label_map_of(rows) == known
    assert files.label_map_of(rows.iloc[1:]) == known  # of a part as of the whole
    assert files.outputs_of(rows) == (files.CLASSES if 2 in known else files.BINARY)


@pytest.mark.parametrize("labels", [[label_of(0)], [label_of(0, 1, 255)], [label_of(255)]])
def test_open_values_are_an_error_and_a_map_helps(tmp_path, labels):
    make_set(tmp_path, [*labels, *labels])
    with pytest.raises(InputError, match="--label-map"):
        files.read_rows(tmp_path)
    if (labels[0] == 0).any():
        assert files.outputs_of(files.read_rows(tmp_path, label_map={0: 0, 1: 1, 255: 255})) == files.BINARY


def test_255_that_is_tagged_as_no_data_is_no_class(tmp_path):
    """The tag takes 255 out of what the values mean, but not a class 0; a map that is given has the last word."""
    for tag, value in ((255, 1), (0, 1), (0, 255)):
        home = make_set(tmp_path / f"{tag}-{value}", [label_of(0, 255), label_of(0, value)])
        for k, label in enumerate((label_of(0, 255 if tag else value), label_of(0, value))):
            write_tif(home / "labels" / f"t{k}.tif", label, nodata=tag)
        rows = files.read_rows(home)
        assert files.label_map_of(rows) == {0: 0, value: 1}
        np.testing.assert_allclose(rows["landslide"], [0 if tag else 0.5, 0.5])
    mask = make_set(tmp_path / "mask", [label_of(0, 255)])
    write_tif(mask / "labels" / "t0.tif", label_of(0, 255), nodata=255)
    with pytest.raises(InputError, match="hold 0 and nothing else"):
        files.read_rows(mask)
    np.testing.assert_allclose(files.read_rows(mask, label_map={0: 0, 255: 1})["landslide"], [0.5])


@pytest.mark.parametrize(("known", "lacking"), [({0: 0, 2: 2}, 1), ({1: 1}, 0), ({0: 0, 255: 255}, 1)])
def test_a_map_that_skips_a_class_is_refused(tmp_path, known, lacking):
    make_set(tmp_path, [label_of(*known)])
    with pytest.raises(InputError, match=f"--label-map: no value belongs to class {lacking}"):
        files.read_rows(tmp_path, label_map=known)


def test_given_maps(tmp_path):
    make_set(tmp_path, [label_of(0, 1, 2), label_of(0, 2)])
    rows = files.read_rows(tmp_path, label_map={"0": 0, "1": 0, "2": 1})
    np.testing.assert_allclose(rows["landslide"], [21 / 64, 0.5])
    with pytest.raises(InputError, match="2=3 is no class"):
        files.read_rows(tmp_path, label_map={0: 0, 2: 3})
    with pytest.raises(InputError, match=r"t0.tif: the label holds 2; known are"):
        files.read_rows(tmp_path, label_map={0: 0, 1: 1})


def test_wrong_label_values(tmp_path):
    with pytest.raises(InputError, match="t1.tif: the label holds 7; known are"):
        files.read_rows(make_set(tmp_path, [label_of(0, 2), label_of(0, 7)]))


def test_nodata_of_three_kinds_is_zero_in_all_bands(tmp_path):
    raw = bands_of(3)
    raw[0, 0, 0], raw[1, 1, 1], raw[2, 2, 2], raw[1, 3, 3] = -9999, np.nan, -3.4028e38, np.inf
    raw[:, 4, 4] = 0  # data, as it happens
    write_tif(tmp_path / "a.tif", raw, names=NAMES, nodata=-9999)
    tile = files.read_tile(tmp_path / "a.tif", NAMES)
    gone = np.zeros((8, 8), bool)
    gone[[0, 1, 2, 3], [0, 1, 2, 3]] = True
    np.testing.assert_array_equal(valid_pixels(tile), ~gone)
    assert tile.dtype == np.float32 and 0 < tile[0, 4, 4] < 1e-30 and not tile[1:, 4, 4].any()
    keep = ~gone & (raw != 0).any(0)
    np.testing.assert_array_equal(tile[:, keep], raw[:, keep])
    one = files.read_tile(tmp_path / "a.tif", ["wetness"])  # other bands have no say
    assert one.shape == (1, 8, 8) and valid_pixels(one).sum() == 62


def test_dataset_mask(tmp_path):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_tif(tmp_path / "a.tif", bands_of(0), names=NAMES)
        with rasterio.open(tmp_path / "a.tif", "r+") as file:
            file.write_mask(np.arange(64).reshape(8, 8) >= 5)
    assert valid_pixels(files.read_tile(tmp_path / "a.tif", NAMES)).sum() == 59


def test_shares_leave_out_pixels_without_data(tmp_path):
    make_set(tmp_path, [label_of(0, 1), label_of(0, 1)])
    raw = bands_of(0)
    raw[1, :, 1::2] = np.nan  # all of class 1
    raw[0, 0, 0] = np.nan
    write_tif(tmp_path / "images" / "t0.tif", raw, names=NAMES)
    np.testing.assert_allclose(files.read_rows(tmp_path)["landslide"], [0, 0.5])
    np.testing.assert_allclose(files.read_rows(tmp_path, bands=["soil"])["landslide"], [0.5, 0.5])
    lines = "\n".join(files.check_rows(files.read_rows(tmp_path)))
    assert "landslide: in 1 of 2 tiles, 33.68% of 95 labelled pixels" in lines
    assert "band wetness: no data in 32 of 128 pixels" in lines and "band soil" not in lines


def test_npy_tiles_and_bands_txt(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "images" / "a_col2_row5.npy", bands_of(1))
    np.save(tmp_path / "labels" / "a_col2_row5.npy", label_of(0, 1, 2))
    assert files.available_bands(tmp_path / "images" / "a_col2_row5.npy") == ["band1", "band2", "band3"]
    (tmp_path / "bands.txt").write_text("Slope\nSoil moisture\nNDVI\n")
    rows = files.read_rows(tmp_path, bands=["ndvi", "slope"])
    np.testing.assert_array_equal(files.read_tile(rows["path"][0], ["ndvi", "band1"]), bands_of(1)[[2, 0]])
    assert [path.name for path in files.files_of(rows["path"][0])] == ["a_col2_row5.npy", "bands.txt"]
    assert tuple(rows.loc[0, ["row", "col", "raster", "y", "x", "height", "width"]]) == (5, 2, "a", 40, 16, 8, 8)
    assert files.size_of(rows["path"][0]) == (8, 8)
    (tmp_path / "bands.txt").write_text("slope\nsoil\n")
    with pytest.raises(InputError, match=r"bands.txt: names 2 bands, but .* has 3"):
        files.read_rows(tmp_path)


def test_places_of_a_table_come_first(tmp_path):
    make_set(tmp_path, [label_of(0, 1), label_of(0, 1)])
    pd.DataFrame({"id": ["t1"], "raster": ["north"], "y": [64], "x": [32], "height": [8], "width": [8]}).to_csv(
        tmp_path / "tiles.csv", index=False)  # fmt: skip
    rows = files.read_rows(tmp_path).set_index("id")
    assert tuple(rows.loc["t1", ["raster", "y", "x"]]) == ("north", 64, 32)
    assert rows.loc["t0", "raster"] not in ("", "north")
    (tmp_path / "tiles.csv").write_text("id,y\nt1,3\n")
    with pytest.raises(InputError, match="tiles.csv: no column raster"):
        files.read_rows(tmp_path)


def test_tiles_without_a_place(tmp_path):
    rows = files.read_rows(make_set(tmp_path, [label_of(0, 1), label_of(0, 1)], place=False))
    assert (rows["raster"] == "").all() and (rows[["y", "x", "height", "width", "row", "col"]] == -1).all(axis=None)


@pytest.mark.parametrize("home", ["tiles", "."])
def test_splits(tmp_path, home):
    for name in ("train", "val"):
        make_set(tmp_path / home / name, [label_of(0, 1, 2), label_of(0, 2)])
    write_tif(tmp_path / home / "test" / "images" / "x.tif", bands_of(9), names=NAMES)
    rows = files.read_rows(tmp_path)
    assert list(rows["split"]) == ["train", "train", "val", "val"]
    assert list(rows["id"]) == ["train_t0", "train_t1", "val_t0", "val_t1"]
    assert list(files.list_tiles(tmp_path)["id"]) == ["x"]
    write_tif(tmp_path / home / "test" / "labels" / "x.tif", label_of(0, 1, 2))
    assert files.read_rows(tmp_path)["split"].iloc[-1] == "test"
    assert len(files.read_rows(tmp_path, require_labels=False)) == 5


def test_files_that_do_not_fit(tmp_path):
    make_set(tmp_path, [label_of(0, 1), label_of(0, 1)])
    label, image = tmp_path / "labels" / "t1.tif", tmp_path / "images" / "t1.tif"
    cases = [
        (lambda: write_tif(label, label_of(0, 1, side=6)), r"t1.tif: 6x6 pixels where its tile has 8x8"),
        (lambda: label.write_bytes(b"no raster"), r"labels/t1.tif: cannot be read"),
        (label.unlink, r"labels: no label of tile t1"),
        (lambda: (write_tif(label, label_of(0, 1)), image.unlink()), r"images: no tile of label t1"),
        (lambda: write_tif(image, bands_of(1), names=("slope", "ndvi", "soil")), r"t1.tif: has no band wetness; there"),
        (lambda: write_tif(image, np.concatenate([bands_of(1), bands_of(2)[:1]]), names=(*NAMES, "ndvi")),
         r"t1.tif: its bands are not those of t0.tif: ndvi"),
        (lambda: write_tif(image, bands_of(1), names=("slope", "slope", "soil")), r"t1.tif: two of its bands"),
        (lambda: (image.write_bytes(image.read_bytes()[:400])), r"images/t1.tif: cannot be read"),
        (lambda: np.save(tmp_path / "images" / "t0.npy", bands_of(0)), r"t0.npy and t0.tif are both tile t0"),
    ]  # fmt: skip
    for spoil, said in cases:
        spoil()
        with pytest.raises(InputError, match=said) as error:
            files.read_rows(tmp_path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="holds no images/"):
        files.read_rows(tmp_path / "labels")
    with pytest.raises(InputError, match="no such folder"):
        files.read_rows(tmp_path / "nowhere")


def test_useless_bands(tmp_path):
    make_set(tmp_path, [label_of(0, 1), label_of(0, 1)])
    for k in (0, 1):
        raw = bands_of(k)
        raw[1], raw[2] = 4, np.nan
        raw[2, 0, 0] = k + 1  # data at last, and no constant
        write_tif(tmp_path / "images" / f"t{k}.tif", raw, names=NAMES)
    rows = files.read_rows(tmp_path, bands=["slope", "wetness"])
    files.check_bands(rows, ["slope", "soil"])
    with pytest.raises(InputError, match="band wetness is 4 in every pixel"):
        files.check_bands(rows, NAMES)
    for k in (0, 1):
        raw[2] = np.nan
        write_tif(tmp_path / "images" / f"t{k}.tif", raw, names=NAMES)
    with pytest.raises(InputError, match="band soil has no data in any pixel"):
        files.check_bands(rows, ["slope", "soil"])  # what was read before the files changed is forgotten
    with pytest.raises(InputError, match="band wetness is 4 in every pixel"):  # no pixel has data in all: why
        files.read_rows(tmp_path)


def test_real_tiles(landslide_data):
    rows = files.read_rows(landslide_data)
    assert len(rows) == 160 and files.outputs_of(rows) == files.BINARY
    cells = rows[["row", "col"]].to_numpy() - rows[["row", "col"]].iloc[0].to_numpy()
    pixels = rows[["y", "x"]].to_numpy() - rows[["y", "x"]].iloc[0].to_numpy()
    same = (pixels == 128 * cells).all(axis=1)  # georeference and names say the same …
    assert same.sum() == 157  # … but of three tiles at the edge, which were shifted inside: the georeference knows
    bands = files.available_bands(rows["path"][0])
    assert bands == [f"band{k}" for k in range(1, 8)]
    files.check_bands(rows, bands)
    wrong = []
    for path in rows["path"]:
        with rasterio.open(path) as file:
            wrong.append((np.abs(file.read()) > 1e30).any(0).sum())
    assert sum(wrong) == 384 and "band band2: no data in 384 of 2,621,440 pixels" in files.check_rows(rows)
    worst = rows["path"][int(np.argmax(wrong))]
    tile = files.read_tile(worst, bands)
    assert (~valid_pixels(tile)).sum() == max(wrong) and np.abs(tile).max() < 1e6


def test_nodata_tags_and_masks_beside_a_tile_belong_to_it(tmp_path):
    """What is cached of a tile must change with them."""
    path = tmp_path / "a.tif"
    write_tif(path, bands_of(0), names=NAMES, place=(0, 0))
    assert files.files_of(str(path)) == [path] == files.label_files(str(path))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(np.arange(64).reshape(8, 8) >= 5)
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset/>")
    with rasterio.open(path) as file:
        known = {Path(name).name for name in file.files}
    assert known == {"a.tif", "a.tif.msk", "a.tif.aux.xml"}
    for found in (files.files_of(str(path)), files.label_files(str(path))):
        assert {one.name for one in found} == known
