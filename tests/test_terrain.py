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
