import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.enums import ColorInterp
from test_label_grids import LEFT, METRES, TOP, blobs, error, slumps, write_polygons, write_tif

from common.datasets import rts_files as rf
from common.datasets.band_names import bands_of
from common.datasets.places import GEOD, cluster_places, near_pairs, nearest_pair, place_of, region_names

H, W = 40, 48


def photo(seed=0, bands=3):
    """uint8 (C,H,W) without a zero in all bands, but for two columns without data."""
    image = np.random.default_rng(seed).integers(1, 255, (bands, H, W)).astype(np.uint8)
    image[:, :, :2] = 0
    return image


def label_of(k):
    """Slumps in every second tile."""
    label = blobs(H, W, seed=k)
    return label if k % 2 == 0 else np.where(label == 1, 0, label).astype(np.uint8)


def write_set(folder, count=4, extra=True, metadata=True, images="PLANET-RGB"):
    """Tiles a0, a1 ... of two regions 60 km apart; a0, a2 ... hold slumps."""
    lines = []
    for k in range(count):
        place = {"left": LEFT + (60_000 if k >= count // 2 else 0) + k * W * METRES, "top": TOP}
        write_tif(folder / images / f"a{k}.tif", photo(k), **place)
        if extra:
            ndvi, height = np.random.default_rng(90 + k).normal(0, 1, (2, H, W)).astype(np.float32)
            write_tif(folder / "EXTRA" / f"a{k}.tif", np.stack([ndvi, height]), names=("NDVI", "Relative Elevation"),
                      **place)  # fmt: skip
        write_tif(folder / "labels" / f"a{k}.tif", label_of(k), **place)
        kind = "negative" if k % 2 else "positive"
        lines.append((f"a{k}", 68.5, -135 + (k >= count // 2), kind, f"region{int(k >= count // 2)}", f"u{k}"))
    if metadata:
        names = ["Tile_id", "centroid_lat", "centroid_lon", "TrainClass", "RegionName", "UIDs"]
        pd.DataFrame(lines, columns=names).to_csv(folder / "metadata.csv", index=False)
    return folder


@pytest.fixture
def data(tmp_path):
    return write_set(tmp_path / "set")


def change(data, edit):
    """metadata.csv after `edit(table)`."""
    table = pd.read_csv(data / "metadata.csv", dtype=str)
    edit(table).to_csv(data / "metadata.csv", index=False)


def test_rows_by_metadata(data):
    change(data, lambda table: table.iloc[::-1])
    rows = rf.read_rows(data)
    assert list(rows["id"]) == ["a0", "a1", "a2", "a3"] and list(rows.index) == [0, 1, 2, 3]
    assert list(rows["group"]) == list(rows["region"]) == ["region0", "region0", "region1", "region1"]
    assert list(rows["positive"]) == [True, False, True, False] and list(rows["train_class"])[1] == "negative"
    assert rows["lat"].tolist() == [68.5] * 4 and rows["lon"].tolist() == [-135, -135, -134, -134]
    known = label_of(0)[:, 2:][label_of(0)[:, 2:] != 255]
    assert rows["slump"][0] == pytest.approx((known == 1).mean()) and rows["background"][1] == 1
    assert (rows["background"] + rows["slump"]).tolist() == pytest.approx([1] * 4)
    assert (rows["label_grid"] == "").all() and rows["label"][0].endswith("labels/a0.tif")
    assert rf.size_of(rows["path"][0]) == (H, W)
    assert [file.parent.name for file in rf.files_of(rows["path"][0])] == ["PLANET-RGB", "EXTRA"]


def test_without_metadata_regions_come_from_the_georeference(tmp_path):
    rows = rf.read_rows(write_set(tmp_path, metadata=False, extra=False, images="tiles"))
    assert rows["region"].nunique() == 2 and rows["region"][0] == rows["region"][1] != rows["region"][2]
    assert (rows["train_class"] == "").all()
    latitude, longitude = place_of(rows["path"][0])
    assert (rows["lat"][0], rows["lon"][0]) == (latitude, longitude)
    from_file = rasterio.warp.transform(
        "EPSG:32608", "EPSG:4326", [LEFT + W / 2 * METRES], [TOP - H / 2 * METRES]
    )  # fmt: skip
    assert (longitude, latitude) == pytest.approx((from_file[0][0], from_file[1][0]), abs=1e-7)
    assert rf.read_rows(tmp_path, near=100_000.0)["region"].nunique() == 1
    assert rf.read_rows(tmp_path, near=1.0)["region"].nunique() == 4


def test_places_missing_from_metadata_come_from_the_georeference(data):
    change(data, lambda table: table.assign(centroid_lat=["", "68", "68", "68"]))
    rows = rf.read_rows(data)
    assert rows["lat"][0] == pytest.approx(place_of(rows["path"][0])[0]) and rows["lat"][1] == 68
    change(data, lambda table: table.assign(centroid_lat=["north", "68", "68", "68"]))
    error(lambda: rf.read_rows(data), "metadata.csv", "a0", "centroid_lat north")


def test_tiles_without_labels(data):
    (data / "labels").rename(data / "hidden")
    rows = rf.read_rows(data, require_labels=False)
    assert not {"label", "slump", "positive"} & set(rows) and len(rows) == 4
    error(lambda: rf.read_rows(data), "labels: no such labels", "--labels")


def test_wrong_metadata_is_told(data):
    def said(edit, *words):
        before = (data / "metadata.csv").read_text()
        change(data, edit)
        error(lambda: rf.read_rows(data), "metadata.csv", *words)
        (data / "metadata.csv").write_text(before)

    said(lambda t: pd.concat([t, t[:1]]), "a0 is there twice", "keep one")
    said(lambda t: t.assign(Tile_id=["a0", "a1", "a2", "b9"]), "b9 has no image file", "1 of 4")
    said(lambda t: t.assign(RegionName=["r", "", "r", "r"]), "a1 has no RegionName")
    said(lambda t: t.drop(columns="RegionName"), "no column RegionName", "Tile_id")


def test_tiles_that_metadata_does_not_name_are_left_out_and_told(data, capsys):
    change(data, lambda table: table[1:])
    assert list(rf.read_rows(data)["id"]) == ["a1", "a2", "a3"]
    assert "1 tiles are not in it" in capsys.readouterr().out


def test_bands_by_name_from_image_and_extra(data):
    path = data / "PLANET-RGB" / "a1.tif"
    assert bands_of(path) == ["red", "green", "blue", "ndvi", "relative_elevation"]
    tile = rf.read_tile(path, ("relative_elevation", "blue", "NDVI", "band1"))
    with rasterio.open(data / "EXTRA" / "a1.tif") as file:
        extra = file.read()
    image, some = photo(1).astype(np.float32), np.s_[:, 2:]
    for band, expected in zip(tile, (extra[1], image[2], extra[0], image[0]), strict=True):
        np.testing.assert_array_equal(band[some], expected[some])
    assert tile.dtype == np.float32 and (tile[:, :, :2] == 0).all()
    error(lambda: rf.read_tile(path, ("red", "swir")), "a1.tif", "no band swir", "ndvi, relative_elevation")
    error(lambda: rf.read_rows(data, bands=("red", "band7")), "no band band7")


def test_one_tile_with_fewer_bands_is_named(data):
    write_tif(data / "PLANET-RGB" / "a2.tif", photo(2)[:2], left=LEFT + 60_000)
    error(lambda: rf.read_rows(data), "a2.tif", "no band blue")


def test_no_data_by_nodata_tag_and_mask_is_zero_in_all_bands(data):
    path, image = data / "PLANET-RGB" / "a0.tif", photo(0)
    image[:, 5, 5:9], image[0, 6, 6] = 200, 200
    write_tif(path, image, nodata=200)
    tile = rf.read_tile(path, ("red", "ndvi"))
    assert (tile[:, 5, 5:9] == 0).all() and tile[0, 6, 6] == 200 and tile[1, 6, 6] != 0
    mask = np.ones((H, W), bool)
    mask[20:25] = False
    write_tif(path, photo(0), mask=mask)
    tile = rf.read_tile(path, ("green", "ndvi"))
    assert (tile[:, 20:25] == 0).all() and (tile[1, :20, 2:] != 0).all()


def test_missing_values_of_extra_are_zero_in_that_band_alone(data):
    path, values = data / "PLANET-RGB" / "a0.tif", np.full((2, H, W), 0.5, np.float32)
    values[0, 3, 3:6] = np.nan, np.inf, -3.4028e38
    values[0, 4, 4], values[1, 4, 5] = -9999, -9999
    write_tif(data / "EXTRA" / "a0.tif", values, names=("ndvi", "slope"), nodata=-9999)
    tile = rf.read_tile(path, ("red", "ndvi", "slope"))
    expected = np.full((2, H, W), 0.5, np.float32)
    expected[0, 3, 3:6], expected[0, 4, 4], expected[1, 4, 5], expected[:, :, :2] = 0, 0, 0, 0
    np.testing.assert_array_equal(tile[1:], expected)
    np.testing.assert_array_equal(tile[0], photo(0)[0])


def test_extra_of_another_grid_is_told(data):
    path = data / "PLANET-RGB" / "a0.tif"
    write_tif(data / "EXTRA" / "a0.tif", np.ones((1, H, W), np.float32), names=("ndvi",), left=LEFT + METRES)
    error(lambda: rf.read_tile(path, ("ndvi",)), "EXTRA", "a0.tif", "shifted by 1 px in x")
    write_tif(data / "EXTRA" / "a0.tif", np.ones((1, H, W - 1), np.float32), names=("ndvi",))
    error(lambda: rf.read_tile(path, ("ndvi",)), "a0.tif", "40x47", "40x48")


def write_alpha(data, names=("Red", "Green", "Blue", "Mask")):
    """The images again, with the labels as a fourth band tagged as alpha."""
    for k, path in enumerate(sorted((data / "PLANET-RGB").iterdir())):
        with rasterio.open(path) as file:
            place = {"left": file.transform.c, "top": file.transform.f}
        bands = np.concatenate([photo(k), (label_of(k) == 1)[None].astype(np.uint8)])
        write_tif(path, bands, names=names, photometric="RGB", alpha="yes", **place)
        with rasterio.open(path) as file:
            assert file.colorinterp[3] == ColorInterp.alpha


@pytest.mark.parametrize(
    ("names", "labels"), [((), "band4"), ((), "band:4"), (("Red", "Green", "Blue", "Mask"), "band:Mask")]
)
def test_an_alpha_band_is_a_label_and_no_mask(data, names, labels):
    write_alpha(data, names)
    rows = rf.read_rows(data, labels=labels)
    tile = rf.read_tile(rows["path"][0])
    np.testing.assert_array_equal(tile, photo(0).astype(np.float32))
    np.testing.assert_array_equal(rf.read_label(rows["label"][2]), label_of(2) == 1)
    assert bands_of(rows["path"][0])[:4] == ["red", "green", "blue", "ndvi"]
    assert list(rows["positive"]) == [True, False, True, False]
    error(lambda: rf.read_rows(data, labels=labels, bands=("red", "band4")), "band 4 is the label and an input")
    error(lambda: rf.read_rows(data, labels="band5"), "no band band5")


def test_a_fourth_band_with_a_name_of_its_own_is_an_input(data):
    write_alpha(data, ("red", "green", "blue", "nir"))
    assert bands_of(next(iter(rf.list_files(rf.image_folder(data)).values())))[:4] == ["red", "green", "blue", "nir"]


def test_polygons_as_labels(data):
    path = write_polygons(data / "slumps.gpkg", slumps(), kind="Unknown")
    rows = rf.read_rows(data, labels="slumps.gpkg")
    assert list(rows["positive"]) == [True, True, False, False] and (rows["label_grid"] == "polygons").all()
    assert rf.read_rows(data, labels=str(path))["slump"].tolist() == rows["slump"].tolist()
    write_polygons(data / "far.gpkg", slumps()[-1:])
    error(lambda: rf.read_rows(data, labels="far.gpkg"), "far.gpkg", "none of its polygons", "4 tiles")


def test_labels_off_the_grid_are_resampled_and_told(data):
    write_tif(data / "labels" / "a0.tif", label_of(0), left=LEFT + 2 * METRES)
    rows = rf.read_rows(data)
    label = rf.read_label(rows["label"][0])
    np.testing.assert_array_equal(label[:, 2:], label_of(0)[:, :-2])
    assert (label[:, :2] == 255).all()
    assert any("shifted by 2 px in x" in line and "a0 for one" in line for line in rf.check_rows(rows))
    assert not any("onto the tile's grid" in line for line in rf.check_rows(rows[1:]))
    write_tif(data / "labels" / "a0.tif", label_of(0), left=LEFT + 9000)
    error(lambda: rf.read_rows(data), "a0.tif", "does not overlap")


def test_wrong_labels_and_tiles_are_told(data):
    (data / "labels" / "a3.tif").unlink()
    error(lambda: rf.read_rows(data), "labels", "no label of tile a3", "1 of 4")
    write_tif(data / "labels" / "a3.tif", label_of(3) * 0 + 7, left=LEFT + 60_000 + 3 * W * METRES)
    error(lambda: rf.read_rows(data), "a3.tif", "holds 7", "--label-map")
    write_tif(data / "labels" / "a3.tif", label_of(3), left=LEFT + 60_000 + 3 * W * METRES)
    write_tif(data / "PLANET-RGB" / "a3.tif", photo(3) * 0, left=LEFT + 60_000 + 3 * W * METRES)
    error(lambda: rf.read_rows(data), "a3.tif", "no data in all pixels")
    (data / "PLANET-RGB" / "a3.tif").write_bytes((data / "PLANET-RGB" / "a2.tif").read_bytes()[:700])
    error(lambda: rf.read_rows(data), "a3.tif", "cannot be read")


def test_wrong_folders_are_told(tmp_path):
    error(lambda: rf.read_rows(tmp_path / "no"), "no such folder", "--data")
    error(lambda: rf.read_rows(tmp_path), "PLANET-RGB, tiles, images")
    (tmp_path / "images").mkdir()
    error(lambda: rf.read_rows(tmp_path), "images", "no .tif")
    for name in ("x.tif", "x.tiff"):
        write_tif(tmp_path / "images" / name, photo())
    error(lambda: rf.list_files(tmp_path / "images"), "both tile x")


def test_findings(data):
    change(
        data,
        lambda t: t.assign(TrainClass=["negative", "positive", "positive", "odd"], UIDs=["u1,u2", "u3", "u2", "u4"]),
    )
    write_tif(data / "labels" / "a3.tif", np.full((H, W), 255, np.uint8), left=LEFT + 60_000 + 3 * W * METRES)
    said = "\n".join(rf.check_rows(rf.read_rows(data)))
    assert "TrainClass positive, but the label holds no slump: 1 tiles, a1" in said
    assert "TrainClass negative, but the label holds one: 1 tiles, a0" in said
    assert "TrainClass odd of a3" in said and "ignored in every pixel: 1 tiles, a3" in said
    assert "region region0: 1 positive and 1 negative tiles" in said and "in 2 of 4 tiles" in said
    assert "UID u2 is in tiles of 2 regions (1 such UIDs)" in said


def test_places_by_every_pair():
    draws = np.random.default_rng(3)
    lat, lon = draws.uniform(65, 80, 60), draws.uniform(170, 190, 60)
    lon = np.where(lon > 180, lon - 360, lon)  # over the date line
    apart = np.array([[GEOD.inv(lon[i], lat[i], lon[j], lat[j])[2] for j in range(60)] for i in range(60)])
    limit = 90_000.0
    expected = [(i, j) for i in range(60) for j in range(i + 1, 60) if apart[i, j] <= limit]
    assert 20 < len(expected) < 300 and [tuple(pair) for pair in near_pairs(lat, lon, limit).tolist()] == expected
    first, second = np.arange(20), np.arange(20, 60)
    i, j, metres = nearest_pair(lat, lon, first, second)
    assert metres == pytest.approx(apart[:20, 20:].min()) and apart[i, j] == pytest.approx(metres)
    cluster = np.arange(60)
    for _ in range(60):
        for i, j in expected:
            cluster[[i, j]] = min(cluster[i], cluster[j])
    found = cluster_places(lat, lon, limit)
    np.testing.assert_array_equal(found[:, None] == found, cluster[:, None] == cluster)
    assert len(set(region_names(lat, lon, limit))) == len(set(cluster.tolist()))
    assert region_names([-5.5], [170.25], 1) == ["05.500S_170.250E"]


def test_real_tiles_have_an_old_label_as_alpha(rts_data):
    old, new = rf.read_rows(rts_data, labels="band4"), rf.read_rows(rts_data, labels="labels_refined")
    assert len(old) == 5 and old["positive"].all() and new["region"].nunique() == 5
    assert bands_of(old["path"][0]) == ["red", "green", "blue"]
    for path, a, b in zip(old["path"], old["label"], new["label"], strict=True):
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(rf.read_tile(path), file.read([1, 2, 3]))
            np.testing.assert_array_equal(rf.read_label(a), file.read(4))
        one, two = rf.read_label(a) == 1, rf.read_label(b) == 1
        assert 0.3 < (one & two).sum() / (one | two).sum() < 0.9
