"""Polygons of blobs against united pixel squares, labels of scipy, and the files as other readers see them."""

import json

import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio.features
import scipy.ndimage
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin

from common.errors import InputError
from common.post.polygons import SIMPLIFY, Tracer, trace, write_polygons

UTM = CRS.from_epsg(32608)
GRID = from_origin(500000, 7600000, 3, 3)
PIXELS = {"transform": Affine.identity(), "crs": None, "simplify": 0}
AROUND = np.ones((3, 3))


def cut(mask, prob, heights):
    """Strips of the given heights, the last one repeated to the end."""
    y, k = 0, 0
    while y < len(mask):
        h = heights[min(k, len(heights) - 1)]
        yield y, mask[y : y + h], prob[y : y + h]
        y, k = y + h, k + 1


def whole(mask):
    return [(0, np.asarray(mask, bool), np.asarray(mask, np.float32))]


def picture(*rows):
    return np.array([[letter == "#" for letter in row] for row in rows])


def random_masks(number, seed, side=14):
    """Masks of every density, and some made of smooth blobs, rings and diagonals."""
    rng = np.random.default_rng(seed)
    for k in range(number):
        h, w = rng.integers(1, side, 2)
        if k % 3 == 0:
            mask = scipy.ndimage.gaussian_filter(rng.standard_normal((h, w)), 1.2) > rng.normal(0, 0.2)
        else:
            mask = rng.random((h, w)) < rng.random()
        yield mask, rng.random((h, w), dtype=np.float32), rng


def test_shapes_are_the_united_squares_of_their_pixels():
    seen = set()
    for mask, prob, _ in random_masks(180, 0, side=10):
        table = trace([(0, mask, prob)], **PIXELS)
        labels, count = scipy.ndimage.label(mask, AROUND)
        assert len(table) == count
        for number, shape in enumerate(table["geometry"], start=1):
            ys, xs = np.nonzero(labels == number)
            wanted = shapely.union_all(shapely.box(xs, ys, xs + 1, ys + 1))
            assert shapely.is_valid(shape), shapely.is_valid_reason(shape)
            assert shape.equals(wanted)
            seen.add((shape.geom_type, min(sum(len(p.interiors) for p in shapely.get_parts(shape)), 2)))
    assert seen == {(kind, holes) for kind in ("Polygon", "MultiPolygon") for holes in (0, 1, 2)}


def test_columns_are_those_of_the_labels():
    for mask, prob, _ in random_masks(150, 1):
        table = trace([(0, mask, prob)], **PIXELS)
        labels, count = scipy.ndimage.label(mask, AROUND)
        numbers = np.arange(1, count + 1)
        assert table["id"].tolist() == numbers.tolist()
        first = [np.argwhere(labels == number)[0].tolist() for number in numbers]
        assert table[["row", "column"]].to_numpy().tolist() == first
        assert table["pixels"].tolist() == np.bincount(labels.ravel(), minlength=count + 1)[1:].tolist()
        if count:
            means = scipy.ndimage.mean(prob.astype(np.float64), labels, numbers)
            np.testing.assert_allclose(table["mean_prob"].to_numpy(float), means, rtol=1e-12)
            np.testing.assert_array_equal(table["max_prob"], scipy.ndimage.maximum(prob, labels, numbers))


@pytest.mark.parametrize("simplify", [0, SIMPLIFY])
def test_any_strip_heights_give_the_same_table(simplify):
    for mask, prob, rng in random_masks(120, 2, side=30):
        one = trace([(0, mask, prob)], transform=GRID, crs=UTM, simplify=simplify)
        many = trace(cut(mask, prob, rng.integers(1, 6, 8)), transform=GRID, crs=UTM, simplify=simplify)
        assert shapely.to_wkb(one["geometry"]).tolist() == shapely.to_wkb(many["geometry"]).tolist()
        rest = [name for name in one.columns if name != "geometry"]
        assert one[rest].to_numpy(float).tobytes() == many[rest].to_numpy(float).tobytes()


def test_a_large_mask_burnt_back_is_its_labels():
    rng = np.random.default_rng(3)
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((700, 900)), 3)
    mask = field > np.quantile(field, 0.9)
    table = trace(cut(mask, mask.astype(np.float32), [64]), transform=GRID, crs=UTM, simplify=0)
    labels, count = scipy.ndimage.label(mask, AROUND)
    shapes = zip(table["geometry"], table["id"], strict=True)
    assert count > 300
    np.testing.assert_array_equal(rasterio.features.rasterize(shapes, mask.shape, transform=GRID), labels)
    outlines = [shape for shape, _ in rasterio.features.shapes(mask.astype(np.uint8), mask, 4, GRID)]
    ours, theirs = (shapely.union_all(shapes) for shapes in
                    (table["geometry"].to_numpy(), [shapely.geometry.shape(shape) for shape in outlines]))  # fmt: skip
    assert shapely.area(ours.symmetric_difference(theirs)) < 1e-3


def test_a_blob_over_many_strips_is_one_polygon_with_its_holes():
    mask = np.zeros((400, 300), bool)
    mask[20:390, 30:280] = True
    mask[60:350, 60:80] = False  # a hole over several strips
    mask[100:110, 200:210] = False
    mask[64, 0:20] = True  # another blob, closed early
    table = trace(cut(mask, mask.astype(np.float32), [64]), transform=GRID, crs=UTM)
    assert len(table) == 2
    shape = table["geometry"][0]
    assert shape.geom_type == "Polygon" and len(shape.interiors) == 2
    assert shape.area == 9 * (370 * 250 - 290 * 20 - 100)
    assert shape.bounds == (500000 + 90, 7600000 - 3 * 390, 500000 + 840, 7600000 - 60)


def test_corners_that_touch():
    apart = trace(whole(picture("#..", ".#.", "..#")), **PIXELS)["geometry"]
    assert len(apart) == 1 and len(shapely.get_parts(apart[0])) == 3
    closed = trace(whole(picture(".##", "#.#", "###")), **PIXELS)["geometry"][0]
    assert closed.geom_type == "Polygon" and len(closed.interiors) == 1 and closed.area == 7
    eight = trace(whole(picture("###..", "#.#..", "#####", "..#.#", "..###")), **PIXELS)["geometry"][0]
    assert eight.geom_type == "Polygon" and len(eight.interiors) == 2 and eight.is_valid
    island = trace(whole(picture("#####", "##..#", "#.#.#", "#...#", "#####")), **PIXELS)["geometry"]
    assert len(island) == 1 and island[0].is_valid and sorted(p.area for p in shapely.get_parts(island[0])) == [1, 17]
    nested = trace(whole(picture("#####", "#...#", "#.#.#", "#...#", "#####")), **PIXELS)["geometry"]
    assert [shape.area for shape in nested] == [16, 1]


def test_only_open_blobs_are_held():
    tracer, row = Tracer(), np.zeros((4, 50), bool)
    row[1:3, ::2] = True
    assert len(tracer.add(0, row, row.astype(np.float32))["row"]) == 50 and len(tracer.held["row"]) == 0
    row[3, 10] = True
    assert len(tracer.add(4, row, row.astype(np.float32))["row"]) == 48 and len(tracer.held["row"]) == 3
    assert len(tracer.close()["row"]) == 3 and len(tracer.held["row"]) == 0


@pytest.mark.parametrize("second", [(5, (4, 9)), (3, (4, 9)), (4, (4, 8))])
def test_strips_that_do_not_follow_are_refused(second):
    strips = [(y, np.ones(size, bool), np.ones(size, np.float32)) for y, size in [(0, (4, 9)), second]]
    with pytest.raises(ValueError, match="does not follow row 4 of width 9"):
        trace(strips, **PIXELS)


def test_area_is_geodesic():
    mask = np.zeros((60, 80), bool)
    mask[10:50, 10:70] = True
    mask[20:30, 20:30] = False
    equal_area = trace(whole(mask), transform=from_origin(9e6, 6.8e6, 5, 5), crs="EPSG:6933")
    np.testing.assert_allclose(equal_area["area_m2"], 25 * 2300, rtol=1e-6)
    degrees = trace(whole(mask), transform=from_origin(-139, 69.5, 1e-4, 5e-5), crs=CRS.from_epsg(4326))
    to_equal_area = pyproj.Transformer.from_crs(4326, 6933, always_xy=True).transform
    flat = shapely.transform(degrees["geometry"][0], to_equal_area, interleaved=False).area
    np.testing.assert_allclose(degrees["area_m2"], flat, rtol=1e-6)
    feet = trace(whole(mask), transform=from_origin(2e6, 1e6, 10, 10), crs="EPSG:2256", simplify=0)  # Montana, feet
    assert abs(feet["area_m2"][0] / (230000 * 0.3048**2) - 1) < 2e-3
    assert np.isnan(trace(whole(mask), **PIXELS)["area_m2"]).all()


def test_small_blobs_are_dropped_and_numbered_anew():
    mask = np.zeros((40, 60), bool)
    for k, side in enumerate((2, 5, 3, 8)):
        mask[1 + k * 9 : 1 + k * 9 + side, 5 : 5 + side] = True
    by_pixels = trace(cut(mask, mask, [7]), transform=GRID, crs=UTM, min_pixels=9)
    assert by_pixels["pixels"].tolist() == [25, 9, 64] and by_pixels["id"].tolist() == [1, 2, 3]
    by_area = trace(cut(mask, mask, [7]), transform=GRID, crs=UTM, min_area_m2=100)
    assert by_area["pixels"].tolist() == [25, 64] and by_area["id"].tolist() == [1, 2]
    assert (by_area["area_m2"] >= 100).all() and by_area["row"].tolist() == [10, 28]
    assert len(trace(whole(mask), **PIXELS, min_pixels=1000)) == 0
    with pytest.raises(InputError, match="needs a scene with a CRS"):
        trace(whole(mask), **PIXELS, min_area_m2=1)


def test_simplified_outlines_stay_near_and_valid():
    for mask, prob, _ in random_masks(80, 4, side=60):
        exact = trace([(0, mask, prob)], **PIXELS)["geometry"].to_numpy()
        simple = trace([(0, mask, prob)], **PIXELS | {"simplify": SIMPLIFY})["geometry"].to_numpy()
        assert shapely.is_valid(simple).all()
        assert (abs(shapely.area(simple) / shapely.area(exact) - 1) <= 0.2 + 1e-9).all()
        # the end of a ring is simplified once more, by segments that are already off by the tolerance
        assert (shapely.hausdorff_distance(simple, exact) <= 2 * SIMPLIFY).all()
    stairs = np.tril(np.ones((80, 80), bool))
    shape = trace(whole(stairs), **PIXELS | {"simplify": SIMPLIFY})["geometry"][0]
    assert shapely.get_num_coordinates(shape) < 10
    dot = trace(whole(picture("...", ".#.", "...")), **PIXELS | {"simplify": 5})["geometry"][0]
    assert dot.equals(shapely.box(1, 1, 2, 2))


def test_blobs_of_very_many_corners_keep_them(monkeypatch):
    mask = np.zeros((100, 100), bool)
    mask[2:40, 2:40] = np.tril(np.ones((38, 38)))
    mask[50:54, 50:54] = np.tril(np.ones((4, 4)))
    exact = trace(whole(mask), **PIXELS)["geometry"]
    monkeypatch.setattr("common.post.polygons.MOST_CORNERS", 20)
    large, small = trace(whole(mask), **PIXELS | {"simplify": SIMPLIFY})["geometry"]
    assert large.equals_exact(exact[0], 0) and not small.equals(exact[1])


def ring_and_block():
    mask = np.zeros((120, 160), bool)
    mask[10:60, 10:90] = True
    mask[30:40, 30:50] = False
    mask[80:100, 100:150] = True
    prob = np.where(mask, np.float32(0.25), 0).astype(np.float32)
    prob[85, 120] = 0.75
    return trace([(0, mask, prob)], transform=GRID, crs=UTM)


def test_files_open_in_their_crs_and_place(tmp_path):
    table = ring_and_block()
    paths = write_polygons(tmp_path / "scene.part", table, UTM)
    assert (
        [path.name for path in paths]
        == ["scene.part.gpkg", "scene.part.geojson"]
        == sorted((path.name for path in tmp_path.iterdir()), reverse=True)
    )
    facts, _, shapes, columns = pyogrio.raw.read(paths[0])
    assert facts["crs"] == "EPSG:32608" and pyogrio.list_layers(paths[0])[0][0] == "scene.part"
    got = dict(zip(facts["fields"], columns, strict=True))
    for name in ("id", "area_m2", "mean_prob", "max_prob", "pixels", "row", "column"):
        np.testing.assert_array_equal(got[name], table[name])
    assert got["max_prob"].tolist() == [0.25, 0.75]
    assert all(a.equals(b) for a, b in zip(shapely.from_wkb(shapes), table["geometry"], strict=True))
    facts, _, shapes, _ = pyogrio.raw.read(paths[1])
    assert facts["crs"] == "EPSG:4326"
    back = pyproj.Transformer.from_crs(4326, 32608, always_xy=True).transform
    flat = shapely.transform(shapely.from_wkb(shapes), back, interleaved=False)
    assert (shapely.hausdorff_distance(flat, table["geometry"].to_numpy()) < 0.02).all()  # 7 decimals of a degree


def test_geopandas_reads_them(tmp_path):
    geopandas = pytest.importorskip("geopandas")
    paths = write_polygons(tmp_path / "map", ring_and_block(), UTM)
    metric, degrees = (geopandas.read_file(path) for path in paths)
    assert metric.crs.to_epsg() == 32608 and degrees.crs.to_epsg() == 4326
    np.testing.assert_allclose(degrees.to_crs(32608).area, metric.area, rtol=1e-3)
    np.testing.assert_allclose(metric["area_m2"], metric.area, rtol=2e-3)


def test_equal_tables_are_equal_bytes(tmp_path):
    first = [path.read_bytes() for path in write_polygons(tmp_path / "a" / "map", ring_and_block(), UTM)]
    stamp = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    again = [path.read_bytes() for path in write_polygons(tmp_path / "b" / "map", ring_and_block(), UTM)]
    assert first == again and b"2000-01-01T00:00:00" in first[0]
    assert stamp is None and pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") is None


def test_an_empty_table_is_a_valid_file(tmp_path):
    table = trace(whole(np.zeros((30, 40), bool)), transform=GRID, crs=UTM)
    assert len(table) == 0 and table["area_m2"].sum() == 0
    for path, crs in zip(write_polygons(tmp_path / "map", table, UTM), ("EPSG:32608", "EPSG:4326"), strict=True):
        facts, _, shapes, _ = pyogrio.raw.read(path)
        assert len(shapes) == 0
        assert path.suffix == ".geojson" or facts["crs"] == crs
    assert json.loads((tmp_path / "map.geojson").read_text())["features"] == []


def test_without_a_crs_there_is_no_geojson(tmp_path):
    (path,) = write_polygons(tmp_path / "map", trace(whole(np.ones((9, 9))), **PIXELS), None)
    facts, _, shapes, _ = pyogrio.raw.read(path)
    assert path.suffix == ".gpkg" and shapely.from_wkb(shapes)[0].area == 81
    assert facts["crs"] is None or "Undefined" in facts["crs"]


@pytest.mark.parametrize("read", [CRS.from_wkt, pyproj.CRS.from_user_input])
def test_a_local_crs_has_no_areas_and_no_geojson(tmp_path, read):
    crs = read('LOCAL_CS["mine",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]')
    table = trace(whole(np.ones((9, 9))), transform=Affine.identity(), crs=crs)
    assert np.isnan(table["area_m2"]).all() and table["pixels"].tolist() == [81]
    (path,) = write_polygons(tmp_path / "map", table, crs)
    assert "mine" in pyogrio.read_info(path)["crs"]
    with pytest.raises(InputError, match="local one; assign it with gdal_edit.py -a_srs"):
        trace(whole(np.ones((9, 9))), transform=Affine.identity(), crs=crs, min_area_m2=1)


def test_a_polygon_over_the_antimeridian_is_cut_there(tmp_path):
    x, y = pyproj.Transformer.from_crs(4326, 32601, always_xy=True).transform(180, 70)
    crs, transform = CRS.from_epsg(32601), from_origin(x - 150, y, 3, 3)
    table = trace(whole(np.ones((100, 100))), transform=transform, crs=crs)
    np.testing.assert_allclose(table["area_m2"], 90000, rtol=2e-3)
    _, path = write_polygons(tmp_path / "map", table, crs)
    parts = shapely.get_parts(shapely.from_wkb(pyogrio.raw.read(path)[2])[0])
    assert len(parts) == 2 and {round(max(abs(b) for b in p.bounds[::2]), 6) for p in parts} == {180}
    assert all(p.bounds[2] - p.bounds[0] < 0.01 for p in parts)


@pytest.mark.soak
def test_thousands_of_masks():
    for mask, prob, rng in random_masks(2500, 5, side=40):
        table = trace(cut(mask, prob, rng.integers(1, 9, 8)), **PIXELS)
        shapes = table["geometry"].to_numpy()
        labels, count = scipy.ndimage.label(mask, AROUND)
        assert len(table) == count and shapely.is_valid(shapes).all()
        burnt = rasterio.features.rasterize(zip(shapes, table["id"], strict=True), mask.shape) if count else labels
        np.testing.assert_array_equal(burnt, labels)
        np.testing.assert_array_equal(shapely.area(shapes), table["pixels"].to_numpy(float))
