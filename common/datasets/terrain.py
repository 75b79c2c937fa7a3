"""Terrain bands of an elevation model: slope, aspect, curvatures, position, ruggedness, flow accumulation, wetness.

All but flow accumulation look at a pixel's surroundings and are computed in strips of rows; water is routed over the
whole model at once.
"""

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace

import cv2
import numpy as np

from common.errors import InputError

# Columns of the array that `_surface` fills, then what strips add.
SURFACE = ("slope", "aspect_sin", "aspect_cos", "curvature", "plan_curvature", "profile_curvature", "tri")
TERRAIN = (*SURFACE, "tpi", "flow_accumulation", "wetness")
HUGE = 1e30  # such numbers stand for missing values
RADIUS = 5  # pixels: half the side of the square that topographic position compares with, 11 x 11
ROWS = 256  # of a strip
LEAST_SLOPE = 1e-3  # tangent: wetness is unbounded on level ground
# Neighbours of a pixel: the four beside it first, so that they win a tie against diagonals.
DOWN = np.array([-1, 0, 0, 1, -1, -1, 1, 1])
RIGHT = np.array([0, -1, 1, 0, -1, 1, -1, 1])
MISSING, DRY, WET = 0, 1, 2  # states of a pixel while the model is flooded
OUT = -1  # direction of a pixel whose water leaves the area


def terrain_bands(dem: np.ndarray, valid: np.ndarray | None = None, *, pixel: tuple[float, float]) -> dict:
    """{name of TERRAIN: float32 (H,W)} of an elevation model, NaN where unknown.

    dem: (H,W) in metres; valid: bool (H,W), None: all; NaN, infinite and huge values are never valid. pixel: height
    and width of a pixel in metres, the height negative where rows run from south to north. What needs the eight
    neighbours is NaN at the edge and beside missing pixels.

    slope: degrees, from Horn's (1981) differences. aspect_sin, aspect_cos: of the direction downhill, clockwise from
    north (east is sin 1), 0 on level ground. curvature, plan_curvature, profile_curvature: Zevenbergen & Thorne
    (1987) in 1/100 m, convex ground has curvature > 0 and curvature = plan - profile; both are 0 on level ground.
    tri: ruggedness of Riley et al. (1999), m. tpi: elevation above the mean of the valid others among the 11 x 11
    pixels around, m. flow_accumulation: log10 of `upslope_cells`. wetness: ln(a / tan slope), a the upslope area per
    metre of contour, with tan slope at least LEAST_SLOPE.

    Memory: 40 bytes a pixel for the result, about 30 for what it is made from.
    """
    dem, valid = checked(dem, valid)
    cells = upslope_cells(dem, valid, pixel=pixel)
    out = {name: np.empty(dem.shape, np.float32) for name in TERRAIN}
    for y, bands in terrain_strips(dem, valid, cells, pixel=pixel):
        for name, values in zip(TERRAIN, bands, strict=True):
            out[name][y : y + len(values)] = values
    return out


def checked(dem: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The model as floats and where it is known. InputError for arrays that are no image or of two sizes."""
    dem = np.asarray(dem)
    if dem.ndim != 2 or not dem.size or (valid is not None and np.shape(valid) != dem.shape):
        raise InputError(
            f"elevation: an array {dem.shape} with valid {np.shape(valid)}; give one band (H,W), both of its size"
        )
    if dem.dtype not in (np.float32, np.float64):
        dem = dem.astype(np.float32)
    dem = np.ascontiguousarray(dem)
    known = np.abs(dem) <= HUGE  # False for NaN
    return dem, known if valid is None else known & np.ascontiguousarray(valid, dtype=bool)


def terrain_strips(
    dem: np.ndarray, valid: np.ndarray, cells: np.ndarray, *, pixel: tuple[float, float], rows: int = ROWS
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 (10,h,W) in the order of TERRAIN) from top to bottom; arguments as `checked` returns them.

    cells: int (H,W) of `upslope_cells`.
    """
    height = len(dem)
    for y in range(0, height, rows):
        top, bottom = max(y - RADIUS, 0), min(y + rows + RADIUS, height)
        inner = slice(y - top, min(y + rows, height) - top)
        part, known = dem[top:bottom], valid[top:bottom]
        surface = np.full((len(SURFACE), *part.shape), np.nan, np.float32)
        kernels().surface(part, known, float(pixel[0]), float(pixel[1]), surface)
        surface = surface[:, inner]
        here = cells[y : y + rows]
        flow = np.where(here > 0, np.log10(np.maximum(here, 1)), np.nan)
        tangent = np.maximum(np.tan(np.deg2rad(surface[0].astype(np.float64))), LEAST_SLOPE)
        wetness = np.log(np.maximum(here, 1) * np.sqrt(abs(pixel[0] * pixel[1])) / tangent)
        above = position(part, known)[inner]
        yield y, np.concatenate([surface, np.stack([above, flow, wetness]).astype(np.float32)])


def position(dem: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """float64 (H,W): elevation above the mean of the valid others within RADIUS; NaN where there are none."""
    if not valid.any():
        return np.full(dem.shape, np.nan)
    middle = dem[valid].mean(dtype=np.float64)  # sums of small numbers keep their digits
    values = np.where(valid, dem - middle, 0).astype(np.float64)
    side = (2 * RADIUS + 1, 2 * RADIUS + 1)
    settings = {"ddepth": -1, "ksize": side, "normalize": False, "borderType": cv2.BORDER_CONSTANT}
    others = cv2.boxFilter(valid.astype(np.float64), **settings).round() - 1
    total = cv2.boxFilter(values, **settings) - values
    return np.where(valid & (others > 0), values - total / np.maximum(others, 1), np.nan)


def upslope_cells(dem: np.ndarray, valid: np.ndarray | None = None, *, pixel: tuple[float, float]) -> np.ndarray:
    """int32 (H,W), int64 beyond 2^31 pixels: how many pixels drain through each, itself included; 0 where not valid.

    Each pixel drains to the steepest of its eight neighbours (D8) on the model with its depressions filled by
    priority flood (Barnes et al., 2014); level ground drains the way it was flooded, to its outlet. Water leaves at
    the edge and into missing pixels.
    """
    dem, valid = checked(dem, valid)
    direction, order = flow_directions(dem, valid, pixel=pixel)
    cells = valid.astype(order.dtype)
    kernels().accumulate(direction.ravel(), order, DOWN * dem.shape[1] + RIGHT, cells.ravel())
    return cells


def flow_directions(dem: np.ndarray, valid: np.ndarray, *, pixel: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """(int8 (H,W): number of the neighbour (DOWN, RIGHT) that a pixel drains to or OUT, int (n,): valid pixels, flat).

    In that order every pixel comes after the one it drains to. dem, valid: as `checked` returns them.
    """
    height, width = dem.shape
    number = np.int32 if dem.size < 2**31 else np.int64
    # a ring around spares the loop every question about edges; pixel numbers are those of the wider array
    state = np.pad(np.where(valid, DRY, MISSING).astype(np.uint8), 1)
    level = np.pad(dem, 1)
    eight = np.ones((3, 3), np.uint8)
    rim = (state == DRY) & (cv2.erode(state, eight, borderType=cv2.BORDER_CONSTANT, borderValue=MISSING) == MISSING)
    seeds = np.flatnonzero(rim).astype(number)
    seeds = seeds[np.argsort(level.ravel()[seeds], kind="stable")]
    state.ravel()[seeds] = WET
    direction = np.full(state.shape, OUT, np.int8)
    order = np.empty(int(valid.sum()), number)
    step = DOWN * (width + 2) + RIGHT
    away = np.hypot(DOWN * float(pixel[0]), RIGHT * float(pixel[1])).astype(np.float64)
    run = kernels()
    run.flood(run.push, run.sink, level.ravel(), state.ravel(), seeds, step, away, direction.ravel(), order)
    y, x = np.divmod(order, width + 2)
    return np.ascontiguousarray(direction[1:-1, 1:-1]), ((y - 1) * width + x - 1).astype(number, copy=False)


def _surface(dem, valid, high, wide, out):
    """Bands SURFACE of all pixels that have nine values; high, wide: metres."""
    for y in range(1, dem.shape[0] - 1):
        for x in range(1, dem.shape[1] - 1):
            whole = True
            for k in range(9):
                whole &= valid[y - 1 + k // 3, x - 1 + k % 3]
            if not whole:
                continue
            # relative to the middle: differences of float32 heights are exact in float64
            z = float(dem[y, x])
            nw, n, ne = dem[y - 1, x - 1] - z, dem[y - 1, x] - z, dem[y - 1, x + 1] - z
            w, e = dem[y, x - 1] - z, dem[y, x + 1] - z
            sw, s, se = dem[y + 1, x - 1] - z, dem[y + 1, x] - z, dem[y + 1, x + 1] - z
            east = ((ne + 2 * e + se) - (nw + 2 * w + sw)) / (8 * wide)
            north = ((nw + 2 * n + ne) - (sw + 2 * s + se)) / (8 * high)
            steep = np.hypot(east, north)
            out[0, y, x] = np.degrees(np.arctan(steep))
            out[1, y, x] = -east / steep if steep > 0 else 0.0
            out[2, y, x] = -north / steep if steep > 0 else 0.0
            d, f = (w + e) / 2 / wide**2, (ne + sw - nw - se) / (4 * high * wide)
            g, h = (e - w) / (2 * wide), (n - s) / (2 * high)
            c = (n + s) / 2 / high**2
            square = g * g + h * h
            out[3, y, x] = -200 * (d + c)
            out[4, y, x] = -200 * (d * h * h + c * g * g - f * g * h) / square if square > 0 else 0.0
            out[5, y, x] = 200 * (d * g * g + c * h * h + f * g * h) / square if square > 0 else 0.0
            out[6, y, x] = np.sqrt(nw**2 + n**2 + ne**2 + w**2 + e**2 + sw**2 + s**2 + se**2)


def _flood(push, sink, level, state, seeds, step, away, direction, order):
    """Fill `direction` and `order`: lowest pixels first from the edge inwards, a depression at the level of its rim.

    All arrays are flat. level: the model, filled in place; seeds: pixels of the rim, lowest first.
    """
    heap, keys, size = seeds.copy(), level[seeds], len(seeds)
    pit = np.empty(256, order.dtype)  # pixels at the present level, a ring: first come, first served
    first, waiting = 0, 0
    for k in range(len(order)):
        if waiting:
            at = pit[first]
            first, waiting = (first + 1) % len(pit), waiting - 1
        else:
            at, size = heap[0], size - 1
            sink(heap, keys, size)
        order[k], here = at, level[at]
        best, fall = direction[at], 0.0
        for side in range(8):
            other = at + step[side]
            if state[other] == WET:
                steep = (float(here) - float(level[other])) / away[side]
                if steep > fall:
                    best, fall = side, steep
            elif state[other] == DRY:
                state[other] = WET
                direction[other] = 11 - side if side > 3 else 3 - side  # back to where the flood came from
                if level[other] > here:
                    heap, keys = push(heap, keys, size, other, level[other])
                    size += 1
                    continue
                level[other] = here
                if waiting == len(pit):
                    pit, first = np.concatenate((pit[first:], pit[:first], np.empty_like(pit))), 0
                pit[(first + waiting) % len(pit)] = other
                waiting += 1
        direction[at] = best


def _push(heap, keys, size, at, key):
    """(heap, keys) with a pixel more, in longer arrays where they were full."""
    if size == len(heap):
        heap, keys = np.concatenate((heap, np.empty_like(heap))), np.concatenate((keys, np.empty_like(keys)))
    here = size
    while here > 0 and keys[(here - 1) // 2] > key:
        heap[here], keys[here] = heap[(here - 1) // 2], keys[(here - 1) // 2]
        here = (here - 1) // 2
    heap[here], keys[here] = at, key
    return heap, keys


def _sink(heap, keys, size):
    """Take the lowest pixel off: the last of `size` + 1 is put in its place."""
    at, key, here = heap[size], keys[size], 0
    while 2 * here + 1 < size:
        below = 2 * here + 1
        if below + 1 < size and keys[below + 1] < keys[below]:
            below += 1
        if keys[below] >= key:
            break
        heap[here], keys[here] = heap[below], keys[below]
        here = below
    heap[here], keys[here] = at, key


def _accumulate(direction, order, step, cells):
    for k in range(len(order) - 1, -1, -1):
        side = direction[order[k]]
        if side != OUT:
            cells[order[k] + step[side]] += cells[order[k]]


@cache
def kernels() -> SimpleNamespace:
    """The loops as machine code, made once a process."""
    import numba  # a third of a second that nobody need wait for who has no elevation model

    fast = numba.njit(nogil=True)
    return SimpleNamespace(surface=fast(_surface), flood=fast(_flood), push=fast(_push), sink=fast(_sink),
                           accumulate=fast(_accumulate))  # fmt: skip
