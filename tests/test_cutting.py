"""Rasters cut into tiles: places, bands, areas of interest, labels, and cuts that were killed or made again."""

import json
import os
import warnings

import numpy as np
import pytest
from raster_files import ORIGIN, UTM, classes, image, read, write
from rasterio.transform import from_origin

from common.datasets import cutting, landslide_files
from common.datasets.cutting import cut_tiles, starts
from common.datasets.stacking import stack_bands
from common.errors import InputError
from common.files import HOST


def call(tmp_path, stack, labels, **settings):
    return cut_tiles(stack, labels, tmp_path / "tiles", **({"side": 32, "stride": 16, "least": 0.0} | settings))


def test_tiles_hold_what_the_raster_has_at_their_place(tmp_path):
    values, truth = image(), classes()
    values[0, 40, 50] = np.nan
    stack = write(tmp_path / "area.tif", values, names=["a", "b"], nodata=np.nan)
    rows = call(tmp_path, stack, write(tmp_path / "labels.tif", truth))
    assert sorted(set(rows["y"])) == [0, 16, 32, 38] and sorted(set(rows["x"])) == [0, 16, 32, 48, 58]
    assert len(rows) == 20
    seen = np.zeros((70, 90), int)
    for row in rows.itertuples():
        tile, names, place = read(tmp_path / "tiles" / "images" / f"{row.id}.tif")
        window = np.s_[row.y : row.y + 32, row.x : row.x + 32]
        assert names == ("a", "b") and tile.dtype == np.float32
        assert np.array_equal(tile, values[:, *window], equal_nan=True)
        assert place == from_origin(ORIGIN[0] + 10 * row.x, ORIGIN[1] - 10 * row.y, 10, 10)
        label, _, _ = read(tmp_path / "tiles" / "labels" / f"{row.id}.tif")
        assert np.array_equal(label[0], truth[window])
        assert row.share == pytest.approx(1 - np.isnan(tile).any(axis=0).mean(), abs=1e-4)
        seen[window] += 1
    assert seen.min() >= 1  # all is covered
    read_back = landslide_files.read_rows(tmp_path / "tiles")
    assert read_back[["raster", "y", "x", "height", "width"]].values.tolist() == (
        rows.sort_values("id")[["raster", "y", "x", "height", "width"]].values.tolist()
    )
    assert (tmp_path / "tiles" / "bands.txt").read_text() == "a\nb\n"


@pytest.mark.parametrize(
    ("length", "want"), [(5, [0]), (32, [0]), (33, [0, 1]), (48, [0, 16]), (49, [0, 16, 17]), (64, [0, 16, 32])]
)
def test_windows_cover_a_length_without_repeating(length, want):
    assert starts(length, 32, 16) == want


def test_labels_end_at_the_area_of_interest(tmp_path):
    stack = write(tmp_path / "area.tif", image())
    area = np.zeros((70, 90), np.uint8)
    area[:40, :50] = 1
    truth = classes()
    rows = call(tmp_path, stack, write(tmp_path / "l.tif", truth), aoi=write(tmp_path / "aoi.tif", area), least=0.25)
    assert len(rows) and ((rows["y"] < 40) & (rows["x"] < 50)).all()
    for row in rows.itertuples():
        window = np.s_[row.y : row.y + 32, row.x : row.x + 32]
        label = read(tmp_path / "tiles" / "labels" / f"{row.id}.tif")[0][0]
        assert np.array_equal(label, np.where(area[window] == 1, truth[window], 255))
        assert row.share == pytest.approx(area[window].mean(), abs=1e-4) and row.share >= 0.25
    every = [(y, x) for y in starts(70, 32, 16) for x in starts(90, 32, 16)]
    want = sum(area[y : y + 32, x : x + 32].mean() >= 0.25 for y, x in every)
    assert len(rows) == want


def test_polygons_may_be_the_area_and_the_labels(tmp_path):
    import geopandas
    import shapely

    stack = write(tmp_path / "area.tif", image())
    box = shapely.box(ORIGIN[0] + 100, ORIGIN[1] - 300, ORIGIN[0] + 300, ORIGIN[1] - 100)
    scar = geopandas.GeoDataFrame(geometry=[box], crs=UTM)
    scar.to_crs("EPSG:4326").to_file(tmp_path / "scars.gpkg")
    whole = shapely.box(ORIGIN[0], ORIGIN[1] - 350, ORIGIN[0] + 900, ORIGIN[1])
    geopandas.GeoDataFrame(geometry=[whole], crs=UTM).to_file(tmp_path / "aoi.geojson")
    rows = call(tmp_path, stack, tmp_path / "scars.gpkg", aoi=tmp_path / "aoi.geojson", least=0.01)
    want = np.zeros((70, 90), np.uint8)
    want[10:30, 10:30] = 1
    want[35:] = 255
    for row in rows.itertuples():
        label = read(tmp_path / "tiles" / "labels" / f"{row.id}.tif")[0][0]
        assert np.array_equal(label, want[row.y : row.y + 32, row.x : row.x + 32])
    assert (rows["y"] < 35).all()


@pytest.mark.parametrize(
    ("raw", "label_map", "want"),
    [
        ([0, 255], None, [0, 1]),  # a mask of 0 and 255
        ([0, 1], None, [0, 1]),
        ([1, 2], None, [1, 2]),
        ([0, 2, 255], None, [0, 2, 255]),
        ([5, 7], {5: 0, 7: 2}, [0, 2]),
        ([1, 255], {"1": 1, "255": 0}, [1, 0]),
    ],
)
def test_raw_values_become_classes(tmp_path, raw, label_map, want):
    stack = write(tmp_path / "area.tif", image(32, 32))
    truth = np.resize(np.array(raw, np.uint8), (32, 32))
    call(tmp_path, stack, write(tmp_path / "l.tif", truth), label_map=label_map)
    label = read(next((tmp_path / "tiles" / "labels").glob("*.tif")))[0][0]
    assert np.array_equal(label, np.resize(np.array(want, np.uint8), (32, 32)))


def test_labels_of_another_grid_are_taken_by_the_nearest_pixel(tmp_path, capsys):
    stack = write(tmp_path / "area.tif", image(32, 32))
    coarse = np.array([[0, 1], [2, 1]], np.uint8)
    rows = call(tmp_path, stack, write(tmp_path / "l.tif", coarse, pixel=100))
    label = read(tmp_path / "tiles" / "labels" / f"{rows['id'][0]}.tif")[0][0]
    want = np.full((32, 32), 255)
    want[:20, :20] = np.kron(coarse, np.ones((10, 10)))
    assert np.array_equal(label, want)
    assert "l.tif: pixels 10 times area.tif's" in capsys.readouterr().out


def test_a_raster_smaller_than_a_tile_is_padded(tmp_path):
    stack = write(tmp_path / "area.tif", image(20, 25))
    rows = call(tmp_path, stack, write(tmp_path / "l.tif", classes(20, 25)))
    tile = read(tmp_path / "tiles" / "images" / f"{rows['id'][0]}.tif")[0]
    label = read(tmp_path / "tiles" / "labels" / f"{rows['id'][0]}.tif")[0][0]
    assert tile.shape == (2, 32, 32) and np.array_equal(tile[:, :20, :25], image(20, 25))
    assert np.isnan(tile[:, 20:]).all() and np.isnan(tile[:, :, 25:]).all()
    assert (label[20:] == 255).all() and (label[:, 25:] == 255).all()


@pytest.mark.filterwarnings("error::rasterio.errors.NotGeoreferencedWarning")
def test_rasters_without_a_georeference_are_cut_by_their_pixels(tmp_path, capsys):
    paths = {}
    for name, values in {"dem": image(40, 40, 1), "labels": classes(40, 40)[None]}.items():
        paths[name] = tmp_path / f"{name}.tif"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(paths[name], values, crs=None)
    stack = stack_bands(tmp_path / "stack.tif", dem=paths["dem"])
    assert "pixels are taken for 1 x 1 m" in capsys.readouterr().out
    rows = call(tmp_path, stack, paths["labels"])
    assert rows[["y", "x"]].values.tolist() == [[0, 0], [0, 8], [8, 0], [8, 8]]
    rows = landslide_files.read_rows(tmp_path / "tiles")
    assert set(rows["raster"]) == {"stack"} and rows["y"].tolist() == [0, 0, 8, 8]


def test_several_rasters_go_into_one_folder_and_tiles_without_labels_have_none(tmp_path):
    stacks = [write(tmp_path / f"{name}.tif", image(40, 40, seed=k)) for k, name in enumerate("ab")]
    rows = call(tmp_path, stacks, None)
    assert set(rows["raster"]) == {"a", "b"} and len(rows) == 8
    assert not (tmp_path / "tiles" / "labels").exists()
    assert len(list((tmp_path / "tiles" / "images").glob("*.tif"))) == 8


def test_only_chosen_bands_are_cut_and_decide_what_has_data(tmp_path):
    values = image(32, 32, bands=3)
    values[1] = np.nan
    stack = write(tmp_path / "area.tif", values, names=["a", "b", "c"])
    with pytest.raises(InputError, match="has data in all bands"):
        call(tmp_path, stack, None)
    rows = call(tmp_path, stack, None, bands=["c", "a"])
    tile, names, _ = read(tmp_path / "tiles" / "images" / f"{rows['id'][0]}.tif")
    assert names == ("c", "a") and np.array_equal(tile, values[[2, 0]])


# cuts that end early, or are made again


def test_a_cut_that_fails_leaves_no_tiles_and_the_next_one_removes_what_a_killed_one_left(tmp_path, monkeypatch):
    stack, labels = write(tmp_path / "area.tif", image()), write(tmp_path / "l.tif", classes())
    real, written = cutting.write_tile, []

    def failing(path, *rest):
        written.append(path)
        if len(written) == 7:
            raise KeyboardInterrupt
        real(path, *rest)

    monkeypatch.setattr(cutting, "write_tile", failing)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path, stack, labels)
    assert list((tmp_path / "tiles").iterdir()) == []
    dead = tmp_path / "tiles" / f".tmp-{HOST}-999999999-0123abcd-cut"
    (dead / "images").mkdir(parents=True)
    monkeypatch.undo()
    call(tmp_path, stack, labels)
    assert not dead.exists()
    assert sorted(os.listdir(tmp_path / "tiles")) == ["bands.txt", "cut.json", "images", "labels", "tiles.csv"]


def test_a_cut_killed_between_its_moves_is_not_taken_for_whole(tmp_path, monkeypatch):
    stack, labels = write(tmp_path / "area.tif", image()), write(tmp_path / "l.tif", classes())
    rows = call(tmp_path, stack, labels)
    (tmp_path / "tiles" / "images").rename(tmp_path / "gone")
    with pytest.raises(InputError):
        landslide_files.read_rows(tmp_path / "tiles")
    assert call(tmp_path, stack, labels).equals(rows)
    assert len(list((tmp_path / "tiles" / "images").glob("*.tif"))) == 20


def test_the_same_cut_is_left_as_it_is_and_another_is_refused(tmp_path, capsys):
    stack, labels = write(tmp_path / "area.tif", image()), write(tmp_path / "l.tif", classes())
    rows = call(tmp_path, stack, labels)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiles").rglob("*")}
    assert call(tmp_path, stack, labels).equals(rows)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tiles").rglob("*")} == first
    assert "left as it is" in capsys.readouterr().out
    with pytest.raises(InputError, match="other files or settings"):
        call(tmp_path, stack, labels, stride=32)
    write(tmp_path / "l.tif", classes(seed=9))
    with pytest.raises(InputError, match="other files or settings"):
        call(tmp_path, stack, labels)
    assert json.loads((tmp_path / "tiles" / "cut.json").read_text())["side"] == 32


def test_a_mask_beside_a_label_changes_the_cut(tmp_path):
    stack, labels = write(tmp_path / "area.tif", image()), write(tmp_path / "l.tif", classes())
    call(tmp_path, stack, labels)
    (tmp_path / "l.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>2</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    with pytest.raises(InputError, match="other files or settings"):
        call(tmp_path, stack, labels)


def test_a_cut_is_the_same_on_a_second_run(tmp_path):
    stack, labels = write(tmp_path / "area.tif", image()), write(tmp_path / "l.tif", classes())
    call(tmp_path / "one", stack, labels)
    call(tmp_path / "two", stack, labels)
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path


# errors


def test_labels_beside_no_images_are_not_overwritten(tmp_path):
    stack, labels = write(tmp_path / "area.tif", image()), write(tmp_path / "tiles" / "labels" / "l.tif", classes())
    with pytest.raises(InputError, match="holds labels but no images"):
        call(tmp_path, stack, labels)
    assert labels.is_file()


WRONG = {
    "no overlap": ({"labels": {"origin": (0.0, 0.0)}}, {}, "does not overlap"),
    "no CRS": ({"labels": {"crs": None, "size": (20, 20)}}, {}, "no georeference says how they lie"),
    "values": ({"labels": {"value": 9}}, {}, "labels hold 9; known are 0, 1, 2 and 255: say with --label-map"),
    "one value": ({"labels": {"value": 0}}, {}, "labels hold 0 and nothing else; say with --label-map"),
    "map": ({}, {"label_map": {0: 0}}, "the label holds 1"),
    "empty area": ({"aoi": {"value": 0}}, {}, "no pixel of .* lies in it"),
    "area elsewhere": ({"aoi": {"origin": (0.0, 0.0)}}, {}, "does not overlap"),
    "band": ({}, {"bands": ["slope"]}, "has no band slope"),
    "stride": ({}, {"stride": 40}, "--stride must be 1 to --side"),
    "share": ({"aoi": {"value": 1, "size": (10, 10)}}, {"least": 0.9}, "lower that share"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(tmp_path, case):
    files, settings, said = WRONG[case]
    stack, paths = write(tmp_path / "area.tif", image(40, 40)), {}
    for kind in {"labels": {}} | files:
        facts = dict(({"labels": {}} | files)[kind])
        values = np.resize(np.array([0, 1], np.uint8), facts.pop("size", (40, 40)))
        value = facts.pop("value", None)
        values = values if value is None else np.full_like(values, value)
        paths[kind] = write(tmp_path / f"{kind}.tif", values, **facts)
    with pytest.raises(InputError, match=said) as caught:
        call(tmp_path, stack, paths["labels"], aoi=paths.get("aoi"), **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiles").exists() or not list((tmp_path / "tiles").iterdir())


def test_polygons_elsewhere_and_files_that_do_not_match_are_refused(tmp_path):
    import geopandas
    import shapely

    stack = write(tmp_path / "area.tif", image(40, 40))
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=UTM).to_file(tmp_path / "far.gpkg")
    with pytest.raises(InputError, match="none of its polygons overlaps"):
        call(tmp_path, stack, tmp_path / "far.gpkg")
    with pytest.raises(InputError, match="--labels: 2 files for 1 rasters"):
        call(tmp_path, stack, [stack, stack])
    other = write(tmp_path / "b" / "area.tif", image(40, 40))
    with pytest.raises(InputError, match="two files are named area"):
        call(tmp_path, [stack, other], None)
    other = write(tmp_path / "b.tif", image(40, 40), names=["x", "y"])
    with pytest.raises(InputError, match="has no band"):
        call(tmp_path, [stack, other], None)
