import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from common.datasets import label_grids as lg
from common.errors import InputError

UTM, OTHER = "EPSG:32608", "EPSG:32609"
LEFT, TOP, METRES = 500_000.0, 7_600_000.0, 3.0


def write_tif(path, bands, *, crs=UTM, left=LEFT, top=TOP, metres=METRES, names=(), nodata=None, mask=None, **options):
    """A GeoTIFF of bands (C,H,W) or (H,W); names: descriptions; mask: (H,W) bool, an internal mask."""
    bands = bands if np.ndim(bands) == 3 else np.asarray(bands)[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": crs, "transform": from_origin(left, top, metres, metres)} if crs else {}
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", count=len(bands), height=bands.shape[1], width=bands.shape[2],
            dtype=bands.dtype, nodata=nodata, **place, **options,
        ) as file:  # fmt: skip
            file.write(bands)
            for k, name in enumerate(names, 1):
                file.set_band_description(k, name)
            if mask is not None:
                file.write_mask(mask)
    return path


def write_polygons(path, shapes, crs=UTM, kind="Polygon", driver=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyogrio tells of a missing CRS
        pyogrio.raw.write(path, geometry=shapely.to_wkb(np.array(shapes, object)), field_data=[], fields=[], crs=crs,
                          geometry_type=kind, driver=driver)  # fmt: skip
    return path


def error(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert str(word) in str(caught.value), str(caught.value)


def blobs(height, width, seed=0):
    """uint8 of 0 and 1 in coarse patches, some 255."""
    draws = np.random.default_rng(seed)
    patch = np.kron(draws.random((height // 4 + 1, width // 4 + 1)) < 0.3, np.ones((4, 4)))[:height, :width]
    label = patch.astype(np.uint8)
    label[: height // 8, : width // 4] = 255
    return label


@pytest.fixture
def tile(tmp_path):
    return write_tif(tmp_path / "tile.tif", np.ones((40, 48), np.uint8))


def read_on(path, tile):
    """What a row whose label lies on another grid gives."""
    return lg.read_label(lg.make_label(path, grid=tile))


def test_a_label_is_a_file_and_what_is_done_with_it():
    text = lg.make_label("a b/x.tif", band=4, grid="img=1.tif")
    path, parts = lg.split_label(text)
    assert str(path) == "a b/x.tif" and parts == {"band": "4", "grid": "img=1.tif"}
    assert lg.make_label("x.tif", grid=None) == "x.tif"


def test_the_same_grid_needs_nothing_and_rounding_is_no_shift(tmp_path, tile):
    label = write_tif(tmp_path / "l.tif", blobs(40, 48), left=LEFT + 0.01)
    assert lg.grid_difference(label, tile) == ""
    np.testing.assert_array_equal(lg.read_label(str(label)), blobs(40, 48))


@pytest.mark.parametrize(("dx", "dy"), [(3, -2), (-5, 7), (0, 1)])
def test_shift_by_pixels(tmp_path, tile, dx, dy):
    raw = blobs(40, 48)
    label = write_tif(tmp_path / "l.tif", raw, left=LEFT + dx * METRES, top=TOP - dy * METRES)
    assert lg.grid_difference(label, tile) == f"shifted by {dx} px in x and {dy} px in y"
    expected = np.full(raw.shape, 255, np.uint8)
    for y in range(40):
        for x in range(48):
            if 0 <= y - dy < 40 and 0 <= x - dx < 48:
                expected[y, x] = raw[y - dy, x - dx]
    np.testing.assert_array_equal(read_on(label, tile), expected)


@pytest.mark.parametrize("factor", [2, 0.5])
def test_other_resolution(tmp_path, tile, factor):
    raw = blobs(int(40 / factor), int(48 / factor))
    label = write_tif(tmp_path / "l.tif", raw, metres=METRES * factor)
    assert f"pixels {factor:g} times" in lg.grid_difference(label, tile)
    found = read_on(label, tile)
    if factor == 2:
        np.testing.assert_array_equal(found, raw.repeat(2, 0).repeat(2, 1))
    else:  # the centre of a tile's pixel is the corner of four of the label's
        around = np.stack([raw[::2, ::2], raw[1::2, ::2], raw[::2, 1::2], raw[1::2, 1::2]])
        assert found.shape == (40, 48) and (found == around).any(0).all()


def test_larger_label_on_the_same_pixels(tmp_path, tile):
    raw = blobs(60, 60)
    label = write_tif(tmp_path / "l.tif", raw)
    assert lg.grid_difference(label, tile) == "60x60 pixels where the tile has 40x48"
    np.testing.assert_array_equal(read_on(label, tile), raw[:40, :48])


def test_other_crs_by_the_nearest_pixel(tmp_path):
    tile = write_tif(tmp_path / "tile.tif", np.ones((40, 48), np.uint8), left=680_000)
    change = pyproj.Transformer.from_crs(UTM, OTHER, always_xy=True)
    x, y = change.transform(680_000, TOP)
    raw = blobs(120, 120)
    label = write_tif(tmp_path / "l.tif", raw, crs=OTHER, left=x - 100, top=y + 100)
    assert lg.grid_difference(label, tile) == f"in {OTHER} where the tile is in {UTM}"
    cols, rows = np.meshgrid(np.arange(48) + 0.5, np.arange(40) + 0.5)
    px, py = change.transform(680_000 + cols * METRES, TOP - rows * METRES)
    col, row = (px - (x - 100)) / METRES, ((y + 100) - py) / METRES
    sure = (np.abs(col - np.round(col)) > 0.2) & (np.abs(row - np.round(row)) > 0.2)
    expected = raw[np.floor(row).astype(int), np.floor(col).astype(int)]
    assert sure.mean() > 0.3 and len(np.unique(expected[sure])) > 1
    np.testing.assert_array_equal(read_on(label, tile)[sure], expected[sure])


def test_no_overlap_and_no_georeference_are_told(tmp_path, tile):
    away = write_tif(tmp_path / "away.tif", blobs(40, 48), left=LEFT + 1000)
    error(lambda: lg.grid_difference(away, tile), "away.tif", "does not overlap", "tile.tif")
    bare = write_tif(tmp_path / "bare.tif", blobs(40, 48), crs=None)
    assert lg.grid_difference(bare, tile) == ""
    small = write_tif(tmp_path / "small.tif", blobs(20, 48), crs=None)
    error(lambda: lg.grid_difference(small, tile), "small.tif", "20x48", "40x48")


def test_values_of_a_label_by_its_map(tmp_path):
    label = write_tif(tmp_path / "l.tif", np.array([[0, 1, 3, 255]], np.uint8))
    error(lambda: lg.read_label(str(label)), "l.tif", "holds 3;", "--label-map")
    assert lg.read_label(str(label), {"0": 0, "1": 0, "3": 1}).tolist() == [[0, 0, 1, 255]]
    assert lg.read_label(str(label), {0: 0, 1: 0, 3: 0, 255: 1}).tolist() == [[0, 0, 0, 1]]
    tagged = write_tif(tmp_path / "t.tif", np.array([[0, 1, 9]], np.float32), nodata=9)
    assert lg.read_label(str(tagged)).tolist() == [[0, 1, 255]]
    nothing = write_tif(tmp_path / "n.tif", np.array([[0, 1, np.nan]], np.float32), nodata=np.nan)
    assert lg.read_label(str(nothing)).tolist() == [[0, 1, 255]]
    zero = write_tif(tmp_path / "z.tif", np.array([[0, 1]], np.uint8), nodata=0)
    assert lg.read_label(str(zero)).tolist() == [[0, 1]]  # the tag of background says nothing
    error(lambda: lg.read_label(lg.make_label(label, band=2)), "l.tif", "has 1 bands, no band 2")


def test_unreadable_files_are_told_in_a_line(tmp_path):
    error(lambda: lg.read_label(str(tmp_path / "none.tif")), "none.tif", "not found")
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\x00 and no more")
    error(lambda: lg.read_label(str(broken)), "broken.tif", "cannot be read")


def slumps():
    """Polygons in metres from the tile's corner: with a hole, over the edge, of two parts, elsewhere."""
    hole = shapely.Polygon(
        [(10.1, -10.3), (60.2, -12), (58.3, -70.7), (8.1, -60.4)], [[(20, -20), (40, -20), (40, -45), (22, -40)]]
    )
    edge = shapely.Polygon([(130, -30), (200, -30), (200, -60), (131, -61)])
    parts = shapely.MultiPolygon([shapely.box(70, -110, 83, -99), shapely.box(90, -110, 101, -80)])
    away = shapely.box(1000, 1000, 1100, 1100)
    return [shapely.transform(s, lambda xy: xy + [LEFT, TOP]) for s in (hole, edge, parts, away)]


def by_centres(shapes, height=40, width=48):
    """1 where a pixel's centre lies in a polygon, pixel by pixel."""
    whole = shapely.union_all(shapes)
    return np.array(
        [[shapely.contains_xy(whole, LEFT + (x + 0.5) * METRES, TOP - (y + 0.5) * METRES) for x in range(width)]
         for y in range(height)]
    ).astype(np.uint8)  # fmt: skip


@pytest.mark.parametrize("name", ["s.gpkg", "s.shp", "s.geojson"])
def test_polygons_by_pixel_centres_in_every_format(tmp_path, tile, name):
    path = write_polygons(tmp_path / name, slumps(), kind="MultiPolygon" if name == "s.gpkg" else "Unknown")
    expected = by_centres(slumps())
    assert 200 < expected.sum() < 1500
    np.testing.assert_array_equal(read_on(path, tile), expected)


def test_polygons_are_reprojected_and_far_ones_left_out(tmp_path, tile):
    change = pyproj.Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    there = [shapely.transform(s, lambda xy: np.column_stack(change.transform(*xy.T))) for s in slumps()]
    path = write_polygons(tmp_path / "s.geojson", there, crs="EPSG:4326", kind="Unknown")
    np.testing.assert_array_equal(read_on(path, tile), by_centres(slumps()))
    assert len(lg.polygons_on(path, lg.profile_of(tile))) == 3
    elsewhere = write_tif(tmp_path / "e.tif", np.ones((5, 5), np.uint8), left=LEFT + 5000)
    assert read_on(path, elsewhere).tolist() == [[0] * 5] * 5


def test_polygon_files_that_give_no_label_are_told(tmp_path, tile):
    grid = lg.profile_of(tile)
    empty = tmp_path / "empty.geojson"
    empty.write_text('{"type": "FeatureCollection", "features": []}')
    error(lambda: lg.rasterise(empty, grid), "empty.geojson", "holds no polygon")
    blank = write_polygons(tmp_path / "blank.gpkg", [shapely.Polygon(), None])
    error(lambda: lg.rasterise(blank, grid), "blank.gpkg", "holds no polygon")
    points = write_polygons(tmp_path / "points.geojson", [slumps()[0], shapely.Point(LEFT, TOP)], kind="Unknown")
    error(lambda: lg.rasterise(points, grid), "points.geojson", "holds a Point", "1 of 2")
    lost = write_polygons(tmp_path / "lost.shp", slumps()[:1], crs=None)
    error(lambda: lg.rasterise(lost, grid), "lost.shp", "has no CRS", ".prj")
    error(lambda: lg.rasterise(tmp_path / "none.gpkg", grid), "none.gpkg", "not found")
    torn = tmp_path / "torn.geojson"
    torn.write_text('{"type": "FeatureColl')
    error(lambda: lg.rasterise(torn, grid), "torn.geojson", "cannot be read")
    bare = write_tif(tmp_path / "bare.tif", np.ones((4, 4), np.uint8), crs=None)
    error(lambda: lg.rasterise(lost, lg.profile_of(bare)), "lost.shp", "georeference")


def test_polygons_are_read_again_when_the_file_changes(tmp_path, tile):
    path = write_polygons(tmp_path / "s.geojson", slumps(), kind="Unknown")
    before = read_on(path, tile)
    other = write_polygons(tmp_path / "o.geojson", slumps()[1:], kind="Unknown")
    shutil.copyfile(other, path)
    assert (read_on(path, tile) != before).any()


def test_files_of_a_label(tmp_path, tile):
    path = write_polygons(tmp_path / "s.shp", slumps()[:1])
    found = {file.name for file in lg.label_files(lg.make_label(path, grid=tile))}
    assert {"s.shp", "s.dbf", "s.shx", "s.prj", "tile.tif"} <= found
    assert lg.label_files("a.tif::band=4") == [Path("a.tif")]


def test_two_labels_compared_by_pixels_and_blobs(tmp_path):
    one, two = np.zeros((2, 20, 20), np.uint8)
    one[2:6, 2:6], two[2:6, 3:7] = 1, 1  # 12 of 20 pixels in common
    one[10:12, 10:12] = 1  # found by the first alone
    two[15:17, 0:2], one[15:17, 0:2] = 1, 255  # not known to the first
    files = [str(write_tif(tmp_path / f"{k}.tif", label)) for k, label in enumerate((one, two, 0 * one))]
    rows = pd.DataFrame({"id": ["a", "b"]})
    table = lg.compare_labels(rows, [files[0], files[2]], [files[1], files[2]]).set_index("id")
    a, b, both = table.loc["a"], table.loc["b"], table.loc["all"]
    assert a["iou"] == pytest.approx(12 / 24) and np.isnan(b["iou"]) and both["iou"] == pytest.approx(12 / 24)
    assert a["first_share"] == pytest.approx(20 / 396) and both["second_share"] == pytest.approx(16 / 796)
    assert (a["blobs_first"], a["blobs_second"], both["blobs_first"]) == (2, 1, 2)
    assert (a["precision"], a["recall"]) == (0.5, 1.0) and np.isnan(b["f1"])
    strict = lg.compare_labels(rows, [files[0], files[2]], [files[1], files[2]], iou=0.61).set_index("id")
    assert strict.loc["a", "recall"] == 0
    assert lg.compare_labels(rows[:1], files[:1], files[1:2], min_blob=5)["blobs_first"].iloc[0] == 1
    small = str(write_tif(tmp_path / "small.tif", one[:10]))
    error(lambda: lg.compare_labels(rows[:1], files[:1], [small]), "small.tif", "one grid")
