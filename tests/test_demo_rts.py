"""The rts demo set: the real folder format, hollows that only NDVI or nothing at all tells apart, honest facts."""

import json

import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import rasterio
import rasterio.features
import shapely
import yaml
from scipy import ndimage
from sklearn.linear_model import LogisticRegression

from common.datasets import demo_rts
from common.datasets.demo_rts import ALIKE, BURN, OVERLOOKED, SCAR, SLUMP, Region, draw_by_hand, draw_region, make_demo
from common.datasets.demo_tundra import Look, draw_tundra, look_at, outline, place
from common.errors import InputError

TILE = 128
REGIONS = {
    "East": Region("train", 32608, (500000.0, 7470000.0), (3, 3), 5),
    "West": Region("val", 32607, (580000.0, 7715000.0), (3, 4), 3, Look(0.5, 1.1, 6, -0.05, 0.1)),
    "North": Region("test", 32608, (440000.0, 8150000.0), (2, 2), 2, Look(0.3)),
}
SMALL = {"tile": TILE, "regions": REGIONS, "scene": Region("scene", 32608, (420000.0, 7560000.0), (3, 3), 4), "seed": 2}
LONG = ((0.5 * TILE, 0.04 * TILE),)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, make_demo(folder, **SMALL)


@pytest.fixture(scope="module")
def large():
    """A region of its real tile size, written nowhere."""
    region = Region("val", 32608, (0.0, 0.0), (2, 4), 5)
    return draw_region(5, "Large", region, 512, ((256, 20),))


def read(path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def test_tiles_have_the_real_format(demo):
    folder, _ = demo
    rows = pd.read_csv(folder / "metadata.csv")
    columns = ["Tile_id", "centroid_lat", "centroid_lon", "TrainClass", "RegionName", "UIDs"]
    assert list(rows) == columns and len(rows) == 9 + 12 + 4 and rows["Tile_id"].is_unique
    for name, count, kind in (("PLANET-RGB", 3, "uint8"), ("EXTRA", 2, "float32"), ("labels", 1, "uint8")):
        assert sorted(p.stem for p in (folder / name).iterdir()) == sorted(rows["Tile_id"])
        for row in rows.itertuples():
            with rasterio.open(folder / name / f"{row.Tile_id}.tif") as file:
                assert (file.count, file.shape, file.dtypes[0], file.res) == (count, (TILE, TILE), kind, (3, 3))
                assert file.crs.to_epsg() == REGIONS[row.RegionName].epsg
                assert file.nodata == (None if name == "labels" else 0)
                if name == "EXTRA":
                    assert file.descriptions == ("ndvi", "relative_elevation")


def test_neighbours_touch(demo):
    folder, _ = demo
    bounds = {}
    for row, col in ((0, 0), (0, 1), (1, 0), (2, 3)):
        with rasterio.open(folder / f"labels/west_r{row}_c{col}.tif") as file:
            bounds[row, col] = file.bounds
    first = bounds[0, 0]
    assert (first.left, first.top) == REGIONS["West"].corner
    assert first.right == bounds[0, 1].left and first.top == bounds[0, 1].top
    assert first.bottom == bounds[1, 0].top and first.left == bounds[1, 0].left
    assert (bounds[2, 3].left - first.left, first.top - bounds[2, 3].top) == (9 * TILE, 6 * TILE)


def test_centroids_classes_and_splits_are_those_of_the_files(demo):
    folder, facts = demo
    rows = pd.read_csv(folder / "metadata.csv")
    for row in rows.itertuples():
        with rasterio.open(folder / f"PLANET-RGB/{row.Tile_id}.tif") as file:
            (left, bottom, right, top), crs = file.bounds, file.crs
        there = pyproj.Transformer.from_crs(crs.to_epsg(), 4326, always_xy=True)
        lon, lat = there.transform((left + right) / 2, (bottom + top) / 2)
        assert (row.centroid_lat, row.centroid_lon) == pytest.approx((lat, lon), abs=1e-5)
        label = read(folder / f"labels/{row.Tile_id}.tif")
        assert set(np.unique(label)) <= {0, 1, 255}
        assert row.TrainClass == ("positive" if (label == 1).any() else "negative")
        assert isinstance(row.UIDs, str) == (row.TrainClass == "positive"), "only tiles with slumps name some"
    assert yaml.safe_load((folder / "splits.yaml").read_text()) == {
        "train": ["East"], "val": ["West"], "test": ["North"]
    }  # fmt: skip
    for split, name in (("train", "East"), ("val", "West"), ("test", "North")):
        part = rows[rows["RegionName"] == name]
        labels = np.stack([read(folder / f"labels/{k}.tif")[0] for k in part["Tile_id"]])
        valid = np.stack([read(folder / f"PLANET-RGB/{k}.tif").any(0) for k in part["Tile_id"]])
        assert (
            facts[split]["tiles"] == len(part) and facts[split]["positive"] == (part["TrainClass"] == "positive").sum()
        )
        assert facts[split]["share"] == pytest.approx((labels == 1).sum() / valid.sum())
    assert json.loads((folder / "demo.json").read_text()) == facts


def test_regions_of_the_real_set_lie_far_apart_and_differ():
    places = []
    for region in demo_rts.REGIONS.values():
        there = pyproj.Transformer.from_crs(region.epsg, 4326, always_xy=True)
        places.append(there.transform(*region.corner))
    geod = pyproj.Geod(ellps="WGS84")
    apart = [geod.inv(*a, *b)[2] for k, a in enumerate(places) for b in places[:k]]
    assert min(apart) > 200_000
    assert len({region.look for region in demo_rts.REGIONS.values()}) == len(demo_rts.REGIONS)
    totals = pd.DataFrame([(r.split, r.tiles[0] * r.tiles[1], r.positive) for r in demo_rts.REGIONS.values()])
    assert totals.groupby(0).sum().to_numpy().tolist() == [[60, 14], [142, 30], [60, 14]]


def test_no_data_is_zero_in_all_bands_and_nothing_else_is(demo):
    folder, _ = demo
    lacking = 0
    for path in (folder / "PLANET-RGB").iterdir():
        zero = np.concatenate([read(path), read(folder / "EXTRA" / path.name)]) == 0
        assert np.array_equal(zero.any(0), zero.all(0)), path.name
        lacking += zero.all(0).sum()
        assert not read(folder / "labels" / path.name)[0][zero.all(0)].any()
    assert lacking > 0
    zero = read(folder / "scenes/scene.tif") == 0
    assert np.array_equal(zero.any(0), zero.all(0)) and 0 < zero[0].mean() < 0.3


def test_scene_and_its_hidden_truth(demo):
    folder, facts = demo
    with rasterio.open(folder / "scenes/scene.tif") as file:
        assert file.descriptions == ("red", "green", "blue", "ndvi") and file.shape == (3 * TILE, 3 * TILE)
        assert file.profile["tiled"] and file.nodata == 0 and file.crs.to_epsg() == 32608
        values, transform = file.read(), file.transform
    assert values[:3].max() <= 255 and np.array_equal(values[:3], np.round(values[:3])) and abs(values[3]).max() < 1.2
    truth = read(folder / "hidden/scene_truth.tif")[0]
    meta, _, shapes, (area,) = pyogrio.raw.read(folder / "hidden/scene_truth.gpkg")
    shapes = shapely.from_wkb(shapes)
    assert pyproj.CRS(meta["crs"]).to_epsg() == 32608 and shapely.is_valid(shapes).all()
    burnt = rasterio.features.rasterize(shapes, truth.shape, transform=transform)
    assert np.array_equal(burnt, truth)
    count = ndimage.label(truth, np.ones((3, 3)))[1]
    assert facts["scene"]["slumps"] == len(shapes) == count and facts["scene"]["pixels"] == truth.sum() > 0
    assert area == pytest.approx(shapely.area(shapes)) and area.sum() == pytest.approx(9 * truth.sum())


def hollow_of(kind: str, burnt: bool, strength=1.0):
    tundra = draw_tundra(np.random.default_rng(0), (256, 256), Look(lakes=0.01))
    tundra.taken[:] = False
    hollow = place(np.random.default_rng(4), tundra, (0, 0, 256, 256), (50, 32), kind, strength, burnt)
    return tundra, hollow


def test_overlooked_slumps_are_drawn_like_slumps_and_burn_scars_differ_in_ndvi_alone():
    (slump, one), (overlooked, two), (burn, three) = (hollow_of(k, k == BURN) for k in (SLUMP, OVERLOOKED, BURN))
    assert one.window == two.window == three.window and np.array_equal(one.body, three.body)
    for band in ("cover", "ndvi", "height"):
        assert np.array_equal(getattr(slump, band), getattr(overlooked, band))
    assert np.array_equal(slump.cover, burn.cover) and np.array_equal(slump.height, burn.height)
    changed = slump.ndvi != burn.ndvi
    assert np.array_equal(changed[one.window], one.body) and changed.sum() == one.body.sum()
    assert demo_rts.STRENGTH[SLUMP] == demo_rts.STRENGTH[OVERLOOKED] == demo_rts.STRENGTH[BURN]


def test_only_the_pattern_tells_a_slump_from_a_stabilised_scar():
    """The same mean colour and NDVI, another roughness; the two ranges of strength do not meet."""
    (fresh, hollow), (old, _) = hollow_of(SLUMP, False), hollow_of(SCAR, False, 0.1)
    inner = ndimage.binary_erosion(hollow.body, iterations=6)
    a, b = (t.cover[0][hollow.window][inner] for t in (fresh, old))
    assert abs(a.mean() - b.mean()) < 12 and a.std() > 5 * b.std()
    assert np.array_equal(fresh.ndvi, old.ndvi)
    assert demo_rts.STRENGTH[SCAR][1] + 0.2 < demo_rts.STRENGTH[SLUMP][0]


def test_scarp_lies_on_the_upper_side_and_the_floor_below_the_ground():
    tundra, hollow = hollow_of(SLUMP, False)
    bare, _ = draw_tundra(np.random.default_rng(0), (256, 256), Look(lakes=0.01)), None
    bright = np.argwhere(hollow.body & (tundra.cover[0][hollow.window] > 170)).mean(0)
    middle = np.argwhere(hollow.body).mean(0)
    down, right = (g[hollow.window].mean() for g in np.gradient(bare.height))
    assert np.dot(bright - middle, (down, right)) > 0
    sunk = (bare.height - tundra.height)[hollow.window]
    assert (sunk[~hollow.body] == 0).all() and 4 < sunk[hollow.body].max() <= 5.01


def test_labels_keep_to_their_slumps_and_shake_by_a_pixel_or_two(large):
    """Edges of labels against edges of bodies, by an exact distance."""
    body = np.zeros(large.label.shape, bool)
    kinds = {kind: np.zeros(large.label.shape, bool) for kind in (*ALIKE, BURN, SCAR)}
    for hollow in large.hollows:
        kinds[hollow.kind][hollow.window] |= hollow.body
    body = kinds[SLUMP]
    away = ndimage.distance_transform_edt(~body) - ndimage.distance_transform_edt(body)
    label = large.label == 1
    edge = label & ~ndimage.binary_erosion(label) & (ndimage.maximum_filter(large.label, 5) < 255)
    assert 0.4 < np.abs(away[edge]).mean() < 2 and np.abs(away[edge]).max() < 7
    for kind in (OVERLOOKED, BURN, SCAR):
        assert not (label & kinds[kind] & ~body & (away > 7)).any(), kind
    assert (large.label == 255).any() and 0.005 > label.mean() > 0.0005


def plain_best(drawn, kinds, tile: int) -> float:
    """The best IoU over margins with tiles weighted 1:1, tile by tile with scipy's exact distance."""
    body = np.zeros(drawn.label.shape, bool)
    for hollow in drawn.hollows:
        if hollow.kind in kinds:
            body[hollow.window] |= hollow.body
    away = ndimage.distance_transform_edt(~body) - ndimage.distance_transform_edt(body)
    known = drawn.valid & (drawn.label != 255)
    cuts = [
        np.s_[r : r + tile, c : c + tile] for r in range(0, body.shape[0], tile) for c in range(0, body.shape[1], tile)
    ]
    positive = [bool((drawn.label[cut] == 1).any()) for cut in cuts]
    weight = {True: 1.0, False: sum(positive) / (len(cuts) - sum(positive))}
    scores = []
    for margin in demo_rts.MARGINS:
        both = either = 0.0
        for cut, p in zip(cuts, positive, strict=True):
            mapped, slump = (x[cut] & known[cut] for x in (away <= margin + 0.5, drawn.label == 1))
            both += weight[p] * (mapped & slump).sum()
            either += weight[p] * (mapped | slump).sum()
        scores.append(both / either)
    return max(scores)


def test_best_scores_are_those_of_a_plain_count(demo):
    _, facts = demo
    drawn = draw_region(2, "West", REGIONS["West"], TILE, LONG)
    for key, kinds in (("best", ALIKE), ("best_rgb", (*ALIKE, BURN))):
        assert facts[key] == facts["val"][key] == pytest.approx(plain_best(drawn, kinds, TILE), abs=0.01), key
    assert facts["best_rgb"] < facts["best"] - 0.03
    numbers = pd.Series([hollow.kind for hollow in drawn.hollows]).value_counts()
    assert {k: n for k, n in facts["val"]["hollows"].items() if n} == numbers.to_dict()


def test_no_rule_beats_the_bodies_with_a_margin():
    """The Bayes rule, its probabilities counted from sixty hands, is better than the best margin by .02 at most."""
    rng = np.random.default_rng(0)
    bodies = [np.pad(outline(rng, *demo_rts.draw_size(rng), rng.uniform(0, 3)), 8) for _ in range(25)]
    hands = [np.mean([draw_by_hand(rng, body) for _ in range(60)], 0) for body in bodies]
    labels = [[draw_by_hand(rng, body) for _ in range(4)] for body in bodies]

    def iou(maps) -> float:
        pairs = [(m, one) for m, many in zip(maps, labels, strict=True) for one in many]
        return sum((m & one).sum() for m, one in pairs) / sum((m | one).sum() for m, one in pairs)

    bayes = max(iou([p > t for p in hands]) for t in np.arange(0.2, 0.7, 0.05))
    away = [ndimage.distance_transform_edt(~b) - ndimage.distance_transform_edt(b) for b in bodies]
    margin = max(iou([a <= m + 0.5 for a in away]) for m in demo_rts.MARGINS)
    other = iou([draw_by_hand(rng, body) for body in bodies])
    assert bayes - 0.02 < margin < bayes + 0.01 and other < margin - 0.03


def balanced_iou(large, score: np.ndarray) -> float:
    """The best over thresholds, tiles of 512 weighted 1:1."""
    known = large.valid & (large.label != 255)
    slump = large.label == 1
    tiles = slump.reshape(2, 512, 4, 512).any((1, 3))
    weight = np.where(tiles, 1.0, tiles.sum() / (~tiles).sum()).repeat(512, 0).repeat(512, 1) * known
    best = 0.0
    for threshold in np.quantile(score[slump], np.linspace(0.02, 0.98, 25)):
        mapped = score >= threshold
        best = max(best, (weight * (mapped & slump)).sum() / (weight * (mapped | slump)).sum())
    return best


def test_single_pixels_do_not_tell_a_slump(large):
    """A logistic regression with squares, fitted on the very pixels it is scored on, at their best threshold."""
    bands = np.concatenate([large.rgb[:, ...].astype(np.float32) / 50 - 2, 3 * large.extra[:1]])
    columns = np.concatenate([bands, bands**2]).reshape(8, -1).T
    slump, known = (large.label == 1).ravel(), (large.valid & (large.label != 255)).ravel()
    rng = np.random.default_rng(0)
    chosen = np.concatenate([np.flatnonzero(slump), rng.choice(np.flatnonzero(known & ~slump), 40_000)])
    model = LogisticRegression(max_iter=300).fit(columns[chosen], slump[chosen])
    score = model.decision_function(columns).reshape(large.label.shape)
    constant = balanced_iou(large, np.zeros(large.label.shape))
    assert constant < 0.02 and constant < balanced_iou(large, score) < 0.3


def test_hard_negatives_outweigh_slumps(large):
    """Pixels as bare as a slump's, in NDVI, are many times as many as those of slumps."""
    ndvi, slump = large.extra[0], large.label == 1
    low, high = np.quantile(ndvi[slump], [0.1, 0.9])
    bare = large.valid & (ndvi > low) & (ndvi < high) & (large.label == 0)
    assert bare.sum() > 4 * slump.sum()


def test_ndvi_of_slumps_and_burn_scars_lie_apart_in_what_is_written(large):
    mean = {kind: [large.extra[0][h.window][h.body].mean() for h in large.hollows if h.kind == kind]
            for kind in (SLUMP, BURN)}  # fmt: skip
    red = {kind: [large.rgb[0][h.window][h.body].mean() for h in large.hollows if h.kind == kind]
           for kind in (SLUMP, BURN)}  # fmt: skip
    assert max(mean[SLUMP]) < 0.2 < 0.3 < min(mean[BURN])
    assert min(red[SLUMP]) < np.median(red[BURN]) < max(red[SLUMP])


def test_slumps_are_tens_of_metres_to_several_tiles_long():
    rng = np.random.default_rng(0)
    size = demo_rts.draw_size(rng)
    assert 48 <= 3 * size[0] <= 138
    body = outline(rng, 0.3 * 4096, 0.02 * 4096, 0.3)
    rows, cols = np.nonzero(body)
    assert np.ptp(cols) > 1024 and ndimage.label(body, np.ones((3, 3)))[1] == 1


@pytest.mark.soak
def test_scene_of_the_real_set_holds_a_slump_of_over_a_thousand_pixels(tmp_path):
    facts = make_demo(tmp_path)
    assert facts["scene"]["longest"] > 1000 and facts["scene"]["shape"] == [4096, 4096]
    assert all(0.0008 < facts[split]["share"] < 0.0018 for split in ("train", "val", "test"))
    assert 0.75 < facts["best"] < 0.92 and facts["best_rgb"] < facts["best"] - 0.08


def test_looks_change_what_the_satellite_sees():
    tundra = draw_tundra(np.random.default_rng(1), (128, 128), Look(lakes=0.01))
    plain, other = (
        look_at(np.random.default_rng(2), tundra, look)[0].mean((1, 2)) for look in (Look(), Look(0.4, 1.1, 9))
    )
    assert (other > plain * 1.05 + 5).all()


def test_same_seed_same_bytes_other_seed_other_land(demo, tmp_path):
    folder, _ = demo
    make_demo(tmp_path / "again", **SMALL)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    assert [f for f in files if (folder / f).read_bytes() != (tmp_path / "again" / f).read_bytes()] == []
    one, two = (draw_region(seed, "West", REGIONS["West"], TILE, LONG) for seed in (2, 3))
    assert (one.rgb != two.rgb).mean() > 0.5


@pytest.mark.parametrize("wrong", [{"tile": 64}, {"regions": {"A": Region("val", 32608, (0.0, 0.0), (1, 4), 2)}},
                                   {"scene": Region("scene", 32608, (0.0, 0.0), (2, 2), 1)}])  # fmt: skip
def test_sizes_that_make_no_set_are_refused(wrong, tmp_path):
    with pytest.raises(InputError, match="demo set: tiles of 128 pixels"):
        make_demo(tmp_path / "demo", **(SMALL | wrong))
    assert not (tmp_path / "demo").exists()
