"""Terrain bands against surfaces whose derivatives are known and against slow, plain versions."""

import heapq

import numpy as np
import pytest

from common.datasets.terrain import LEAST_SLOPE, RADIUS, TERRAIN, flow_directions, terrain_bands, upslope_cells
from common.errors import InputError

NEIGHBOURS = [(-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]


def grid(height, width, pixel):
    """Metres to the east and to the north of the middle, (H,W) each."""
    y, x = np.indices((height, width), float)
    return (x - (width - 1) / 2) * pixel[1], ((height - 1) / 2 - y) * pixel[0]


def rough(shape, seed=0, holes=0.0):
    """A model with many depressions, and where it is known."""
    rng = np.random.default_rng(seed)
    z = 5 * rng.standard_normal(shape) + np.indices(shape)[0]
    return z.astype(np.float32), rng.random(shape) >= holes


def filled_plainly(dem, valid):
    """The model with its depressions filled, by a heap of tuples."""
    height, width = dem.shape
    level = np.full(dem.shape, np.inf)
    heap = []
    for y, x in np.argwhere(valid):
        around = [(y + dy, x + dx) for dy, dx in NEIGHBOURS]
        if any(not (0 <= b < height and 0 <= a < width) or not valid[b, a] for b, a in around):
            level[y, x] = dem[y, x]
            heapq.heappush(heap, (level[y, x], y, x))
    while heap:
        here, y, x = heapq.heappop(heap)
        for dy, dx in NEIGHBOURS:
            b, a = y + dy, x + dx
            if 0 <= b < height and 0 <= a < width and valid[b, a] and np.isinf(level[b, a]):
                level[b, a] = max(here, dem[b, a])
                heapq.heappush(heap, (level[b, a], b, a))
    return level


def follow(direction, y, x):
    """Pixels from one to where its water leaves."""
    path = [(y, x)]
    while direction[y, x] != -1:
        dy, dx = NEIGHBOURS[direction[y, x]]
        y, x = y + dy, x + dx
        assert (y, x) not in path
        path.append((y, x))
    return path


@pytest.mark.parametrize("holes", [0.0, 0.04])
@pytest.mark.parametrize("flat", [False, True])
def test_every_pixel_drains_along_the_steepest_way_of_the_filled_model(holes, flat):
    dem, valid = rough((24, 31), holes=holes)
    dem = np.round(dem / 4) if flat else dem
    pixel = (20.0, 10.0)
    direction, order = flow_directions(dem, valid, pixel=pixel)
    level, cells = filled_plainly(dem, valid), np.zeros(dem.shape, int)
    for y, x in np.argwhere(valid):
        path = follow(direction, y, x)
        heights = [level[place] for place in path]
        assert heights == sorted(heights, reverse=True)
        for place in path:
            cells[place] += 1
        falls = {}
        for k, (dy, dx) in enumerate(NEIGHBOURS):
            b, a = y + dy, x + dx
            if 0 <= b < 24 and 0 <= a < 31 and valid[b, a]:
                falls[k] = (level[y, x] - level[b, a]) / np.hypot(dy * pixel[0], dx * pixel[1])
        if falls and max(falls.values()) > 0:
            assert falls[direction[y, x]] == pytest.approx(max(falls.values()))
    assert np.array_equal(upslope_cells(dem, valid, pixel=pixel), cells)
    assert sorted(order) == np.flatnonzero(valid).tolist()
    assert cells[(direction == -1) & valid].sum() == valid.sum()  # no water is lost or made


def test_a_plane_has_one_slope_and_one_aspect_and_no_curvature():
    east, north = grid(12, 15, (25.0, 40.0))
    bands = terrain_bands(100 + 0.3 * east - 0.4 * north, pixel=(25.0, 40.0))
    inner = np.s_[1:-1, 1:-1]
    assert np.allclose(bands["slope"][inner], np.degrees(np.arctan(0.5)), atol=1e-4)
    assert np.allclose(bands["aspect_sin"][inner], -0.6, atol=1e-6)  # downhill is west and a little north
    assert np.allclose(bands["aspect_cos"][inner], 0.8, atol=1e-6)
    for name in ("curvature", "plan_curvature", "profile_curvature"):
        assert np.abs(bands[name][inner]).max() < 1e-6
    whole = np.s_[RADIUS:-RADIUS, RADIUS:-RADIUS]
    assert np.abs(bands["tpi"][whole]).max() < 1e-4  # a plane lies at the mean of its surroundings
    assert all(values.dtype == np.float32 and values.shape == (12, 15) for values in bands.values())
    assert tuple(bands) == TERRAIN


def test_a_cone_is_curved_along_its_contours_only():
    east, north = grid(41, 41, (10.0, 10.0))
    radius = np.maximum(np.hypot(east, north), 1e-9)
    bands = terrain_bands(1000 - 0.5 * radius, pixel=(10.0, 10.0))
    far = (radius > 120) & (radius < 180)
    assert np.allclose(bands["slope"][far], np.degrees(np.arctan(0.5)), rtol=0.01)
    assert np.allclose(bands["aspect_sin"][far], (east / radius)[far], atol=0.01)
    assert np.allclose(bands["aspect_cos"][far], (north / radius)[far], atol=0.01)
    assert np.allclose(bands["plan_curvature"][far], (100 * 0.5 / radius)[far], rtol=0.05)  # convex: above 0
    assert np.abs(bands["profile_curvature"][far]).max() < 0.01


def test_a_paraboloid_has_the_same_curvature_everywhere():
    east, north = grid(21, 25, (10.0, 5.0))
    bands = terrain_bands(0.01 * (east**2 + north**2), pixel=(10.0, 5.0))
    inner = np.zeros((21, 25), bool)
    inner[1:-1, 1:-1] = True
    assert np.allclose(bands["curvature"][inner], -4, rtol=1e-5)  # minus the Laplacian, in 1/100 m: a hollow
    inner[10, 12] = False  # level in the middle
    assert np.allclose(bands["profile_curvature"][inner], 2, rtol=1e-5)
    assert np.allclose(bands["plan_curvature"][inner], -2, rtol=1e-5)
    assert bands["plan_curvature"][10, 12] == bands["aspect_sin"][10, 12] == bands["aspect_cos"][10, 12] == 0
    assert np.allclose(np.tan(np.deg2rad(bands["slope"][inner])), 0.02 * np.hypot(east, north)[inner], rtol=1e-4)


def test_curvature_is_plan_less_profile_and_a_saddle_has_both_signs():
    east, north = grid(9, 9, (1.0, 1.0))
    bands = terrain_bands(0.05 * east * north + 0.1 * east, pixel=(1.0, 1.0))
    parts = bands["plan_curvature"] - bands["profile_curvature"]
    assert np.allclose(parts[1:-1, 1:-1], bands["curvature"][1:-1, 1:-1], atol=1e-4)
    # second derivative along the gradient (p, q) of f = .05 x y + .1 x is 2 p q .05 / (p^2 + q^2)
    p, q = 0.05 * north + 0.1, 0.05 * east
    along = (2 * p * q * 0.05 / np.maximum(p**2 + q**2, 1e-12))[1:-1, 1:-1]
    assert np.allclose(bands["profile_curvature"][1:-1, 1:-1], 100 * along, atol=1e-3)
    assert along.min() < -0.01 and along.max() > 0.01


def test_position_and_ruggedness_equal_a_plain_version_around_missing_pixels():
    dem, valid = rough((20, 17), seed=3, holes=0.05)
    dem[~valid] = np.float32(-3.4028e38)
    bands = terrain_bands(dem, pixel=(10.0, 10.0))
    assert (~valid).any()
    for y in range(20):
        for x in range(17):
            box = np.s_[max(y - RADIUS, 0) : y + RADIUS + 1, max(x - RADIUS, 0) : x + RADIUS + 1]
            others = dem[box][valid[box]].astype(float)
            mean = (others.sum() - dem[y, x]) / (len(others) - 1)
            want = dem[y, x] - mean if valid[y, x] else np.nan
            assert bands["tpi"][y, x] == pytest.approx(want, abs=1e-4, nan_ok=True)
            around = np.s_[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            known = valid[around].size == 9 and valid[around].all()
            want = np.sqrt(((dem[around].astype(float) - dem[y, x]) ** 2).sum()) if known else np.nan
            assert bands["tri"][y, x] == pytest.approx(want, rel=1e-5, nan_ok=True)
            assert np.isnan(bands["slope"][y, x]) == np.isnan(bands["wetness"][y, x]) == (not known)
            assert np.isnan(bands["flow_accumulation"][y, x]) == (not valid[y, x])


def test_accumulation_and_wetness_follow_their_formulas():
    """A plane that falls to the south: each column drains by itself."""
    dem = -2.0 * np.indices((6, 5))[0]
    bands = terrain_bands(dem, pixel=(4.0, 9.0))
    rows = np.arange(1.0, 7)[:, None]
    assert np.allclose(bands["flow_accumulation"], np.log10(np.broadcast_to(rows, (6, 5))))
    want = np.log(rows[1:-1] * np.sqrt(4.0 * 9.0) / 0.5)
    assert np.allclose(bands["wetness"][1:-1, 1:-1], want)
    level = terrain_bands(np.full((5, 5), 7.0), pixel=(1.0, 1.0))
    assert (
        level["slope"][2, 2] == level["tri"][2, 2] == level["curvature"][2, 2] == level["profile_curvature"][2, 2] == 0
    )
    cells = 10 ** level["flow_accumulation"][2, 2].astype(float)
    assert level["wetness"][2, 2] == pytest.approx(np.log(cells / LEAST_SLOPE))


def test_a_depression_overflows_at_its_lowest_rim():
    dem = np.full((7, 9), 10.0)
    dem[1:6, 1:8] = 3
    dem[3, 4] = 1  # the pit
    dem[3, 8] = 5  # the gap
    cells = upslope_cells(dem, pixel=(1.0, 1.0))
    assert cells[3, 8] >= 35  # all of the inside
    assert cells[3, 4] < 35


def test_bands_do_not_depend_on_strips_or_on_how_the_model_lies_in_memory():
    from common.datasets import terrain

    dem, valid = rough((70, 40), seed=5, holes=0.01)
    whole = terrain_bands(dem, valid, pixel=(10.0, 10.0))
    cells = upslope_cells(dem, valid, pixel=(10.0, 10.0))
    strips = list(terrain.terrain_strips(dem, valid, cells, pixel=(10.0, 10.0), rows=13))
    assert [y for y, _ in strips] == [0, 13, 26, 39, 52, 65]
    joined = np.concatenate([bands for _, bands in strips], axis=1)
    for name, values in zip(TERRAIN, joined, strict=True):
        assert np.allclose(values, whole[name], atol=1e-4, equal_nan=True), name
    turned = terrain_bands(np.asfortranarray(dem), np.asfortranarray(valid), pixel=(10.0, 10.0))
    assert all(np.array_equal(turned[name], whole[name], equal_nan=True) for name in TERRAIN)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (7, 1), (3, 3)])
def test_small_models_give_bands_of_their_size(shape):
    bands = terrain_bands(np.arange(np.prod(shape)).reshape(shape), pixel=(10.0, 10.0))
    assert all(values.shape == shape for values in bands.values())
    assert np.isfinite(bands["slope"]).sum() == (1 if shape == (3, 3) else 0)
    assert np.isfinite(bands["flow_accumulation"]).all()


def test_a_model_without_any_value_is_unknown_throughout():
    bands = terrain_bands(np.full((4, 5), np.nan), pixel=(10.0, 10.0))
    assert all(np.isnan(values).all() for values in bands.values())


def test_arrays_that_are_no_model_are_refused():
    with pytest.raises(InputError, match="one band"):
        terrain_bands(np.zeros((2, 3, 4)), pixel=(1.0, 1.0))
    with pytest.raises(InputError, match="both of its size"):
        terrain_bands(np.zeros((3, 4)), np.ones((4, 3), bool), pixel=(1.0, 1.0))
