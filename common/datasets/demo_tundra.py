"""Drawn tundra for the rts demo set: hills, lakes, rivers with bare banks and gravel bars, and hollows of bare mud.

The colour of a pixel does not tell a thaw slump: its mud is that of river banks and lake shores. What tells it is how
it lies in its surroundings: the floor is mottled within a few pixels (wet flows between drying crust) and a bright
scarp with a shadow at its foot runs along its upper edge. Both fade with `strength`, so that an old, stabilised scar is
a smooth bare patch. A burn scar may have all of it in red, green and blue, but keeps its shrubs and so its NDVI.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from common.datasets.demo_terrain import blobs, fractal

GREEN, BROWN = np.array([[58, 76, 46], [98, 86, 62]], np.float32)  # red, green, blue of wet and of dry tundra
MUD, GRAVEL, WATER = range(1, 4)  # kinds of ground beside vegetation (0)
COLOURS = np.array([[0, 0, 0], [112, 96, 78], [140, 130, 116], [26, 38, 50]], np.float32)
NDVI = np.array([0, 0.08, 0.05, -0.25], np.float32)
MOTTLE = np.array([5, 7, 9, 1.5], np.float32)  # grey values by which each kind varies within some ten pixels
SCARP, SHADOW = 185.0, 44.0  # grey values of fresh soil in the sun and of what lies behind it
RELIEF = 16.0  # metres, standard deviation
DEPTH = 5.0  # metres of a fresh hollow
GRAIN = 4.0  # grey values of noise, before the optics blur it
TRIES = 300  # places looked at for a hollow
STRIP = 256  # rows looked at together
COARSE = 4  # what is wider than some 16 pixels is drawn on a grid so much coarser


@dataclass(frozen=True)
class Look:
    """How a region differs from others: dry share of its tundra, gain, haze (grey values), NDVI, share of lakes."""

    dry: float = 0.4
    gain: float = 1.0
    haze: float = 0.0
    ndvi: float = 0.0
    lakes: float = 0.06


@dataclass(frozen=True)
class Tundra:
    """Ground as it is, drawn upon in place: `cover` in grey values of full sun; `light` is the sun on the hills."""

    cover: np.ndarray  # float32 (3, H, W) red, green, blue
    ndvi: np.ndarray  # float32 (H, W)
    height: np.ndarray  # float32 (H, W) metres
    light: np.ndarray  # float32 (H, W), about 1
    kind: np.ndarray  # uint8 (H, W): 0, MUD, GRAVEL, WATER
    taken: np.ndarray  # bool (H, W): where no hollow can lie: water, and near others


def smooth(rng: np.random.Generator, shape: tuple[int, int], steps: tuple, weights: tuple) -> np.ndarray:
    """A fractal of wide blobs (steps in pixels), drawn COARSE times smaller, float32 `shape`."""
    few = fractal(rng, (shape[0] // COARSE + 2, shape[1] // COARSE + 2), [s / COARSE for s in steps], weights)
    return enlarge(few, shape)


def enlarge(few: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(few, None, fx=COARSE, fy=COARSE, interpolation=cv2.INTER_LINEAR)[: shape[0], : shape[1]]


def draw_kinds(rng: np.random.Generator, shape: tuple[int, int], lakes: float) -> np.ndarray:
    """uint8 (H, W): lakes with bare shores, a river with gravel bars and bare banks, barren patches."""
    wet = smooth(rng, shape, (300, 130, 45), (1, 0.6, 0.25))
    river = np.abs(smooth(rng, shape, (900, 330, 110), (1, 0.45, 0.12)))
    bare = smooth(rng, shape, (110, 40), (1, 0.5))
    level = np.quantile(wet[::8, ::8], 1 - lakes)
    kind = np.zeros(shape, np.uint8)
    kind[bare > 2.3] = MUD
    kind[wet > level - 0.10 * np.maximum(bare, 0)] = MUD
    kind[river < 0.03 + 0.05 * np.maximum(-bare, 0)] = MUD
    kind[(river < 0.085) & (bare > 0.5)] = GRAVEL
    kind[(wet > level) | (river < 0.025)] = WATER
    return kind


def draw_tundra(rng: np.random.Generator, shape: tuple[int, int], look: Look) -> Tundra:
    """Tundra of `shape` pixels without hollows."""
    few = fractal(rng, (shape[0] // COARSE + 2, shape[1] // COARSE + 2), (125, 55, 22, 9), (1, 0.5, 0.25, 0.1))
    down, right = np.gradient(RELIEF * few, 3.0 * COARSE)
    light = enlarge((1 + 1.6 * (down + right)).clip(0.6, 1.5).astype(np.float32), shape)
    kind = draw_kinds(rng, shape, look.lakes)
    fine = blobs(rng, shape, 11)
    dry = smooth(rng, shape, (160, 45, 18), (1, 0.7, 0.4))
    dry = np.clip(look.dry + 0.22 * dry + 0.08 * fine, 0, 1)
    fine *= MOTTLE[kind]
    bare = kind > 0
    cover = np.empty((3, *shape), np.float32)
    for k in range(3):
        cover[k] = GREEN[k] + (BROWN[k] - GREEN[k]) * dry
        np.copyto(cover[k], COLOURS[kind, k], where=bare)
        cover[k] += fine
    ndvi = np.where(bare, NDVI[kind], 0.62 + look.ndvi - 0.3 * dry) + 0.004 * fine
    return Tundra(cover, ndvi.astype(np.float32), enlarge(RELIEF * few, shape), light, kind, bare & (kind == WATER))


def upslope(tundra: Tundra, spot: tuple[int, int], reach: int = 24) -> float:
    """Direction in which the ground rises at a pixel, radians from the direction of the columns to that of the rows."""
    top, left = max(spot[0] - reach, 0), max(spot[1] - reach, 0)
    around = tundra.height[top : spot[0] + reach + 1 : 4, left : spot[1] + reach + 1 : 4]
    down, right = np.gradient(around)
    return float(np.arctan2(down.mean(), right.mean()))


def outline(rng: np.random.Generator, length: float, width: float, angle: float) -> np.ndarray:
    """bool (side, side): one ragged body about `length` by `width` pixels in the middle, long ones winding."""
    side = int(1.5 * length) + 12
    rows, cols = np.indices((side, side), np.float32) - side / 2
    along = np.cos(angle) * cols + np.sin(angle) * rows
    across = np.cos(angle) * rows - np.sin(angle) * cols
    bend = 0.35 * min(length / width - 1, 3) * width
    across = across + bend * np.sin(along / length * rng.uniform(3, 6) + rng.uniform(0, 6))
    ragged = fractal(rng, (side, side), (max(0.8 * width, 8), max(0.3 * width, 5)), (1, 0.5))
    inside = 1 - (2 * along / length) ** 2 - (2 * across / width) ** 2 + 0.3 * ragged > 0
    parts, labels, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=4)
    body = labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])) if parts > 1 else inside
    return cv2.morphologyEx(body.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0


def paint(rng, tundra: Tundra, window: tuple[slice, slice], body: np.ndarray, rise: float, strength: float) -> None:
    """Draw a hollow (`body`, bool, of the window's shape) into cover, NDVI and height; `rise` is its upslope side.

    strength: 1 for a fresh slump, 0 for a smooth bare patch. All hollows of one strength are alike in every band.
    """
    soft = cv2.GaussianBlur(body.astype(np.float32), (0, 0), 2.0)
    down, right = np.gradient(soft)
    outward = -(np.cos(rise) * right + np.sin(rise) * down) / (np.hypot(down, right) + 1e-6)
    inside = cv2.distanceTransform(np.pad(body, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    upper = body & (outward > 0.3)
    mottle = fractal(rng, body.shape, (7, 3.5), (1, 0.8))
    flows = np.clip(mottle, -1.6, 1.6) * 24 * strength
    for k in range(3):
        layer = tundra.cover[k][window]
        floor = COLOURS[MUD, k] + flows * (1, 0.93, 0.85)[k]
        near = strength * (upper & (inside <= 2))
        floor += near * (SCARP - 12 * k - floor)
        floor += strength * (upper & (inside > 2) & (inside <= 4.5)) * (SHADOW - floor)
        layer[body] = floor[body]
    tundra.ndvi[window][body] = (NDVI[MUD] + 0.02 * mottle)[body]
    tundra.height[window][...] -= DEPTH * strength * np.minimum(inside / 6, 1) * body
    near = cv2.dilate(body.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
    tundra.taken[window][near] = True


def regrow(rng: np.random.Generator, tundra: Tundra, window: tuple[slice, slice], body: np.ndarray) -> None:
    """Give a hollow the NDVI of shrubs, which is all that tells a burn scar from a slump."""
    tundra.ndvi[window][body] = (0.4 + 0.05 * fractal(rng, body.shape, (9, 4), (1, 0.5)))[body]


@dataclass(frozen=True)
class Hollow:
    """What an analyst may outline: its kind, the window of the region it lies in, and its pixels."""

    kind: str
    window: tuple[slice, slice]
    body: np.ndarray  # bool, of the window's shape


def is_free(tundra: Tundra, spot: tuple[int, int], length: float, angle: float) -> bool:
    """Whether a hollow's middle line lies on free land, a quick look before the hollow is drawn."""
    steps = np.linspace(-0.5, 0.5, 33) * length
    rows, cols = ((spot[k] + steps * turn).astype(int) for k, turn in ((0, np.sin(angle)), (1, np.cos(angle))))
    inside = min(rows.min(), cols.min()) >= 0 and (rows.max() < len(tundra.taken)) & (
        cols.max() < tundra.taken.shape[1]
    )
    return bool(inside and not tundra.taken[rows, cols].any())


def place(rng, tundra: Tundra, box: tuple, size: tuple, kind: str, strength: float, burnt=False) -> Hollow | None:
    """A hollow drawn on free land, None where there is no room.

    box: top, left, height and width of where it belongs, pixels; a hollow short enough lies wholly within. size: its
    length and width, pixels, a little smaller with each vain try; those more than three times as long as wide lie
    across the slope.
    """
    rim = [min(0.75 * size[0] + 8, side / 2 - 1) for side in box[2:]]
    for vain in range(TRIES):
        length, width = (0.998**vain * side for side in size)
        spot = tuple(int(box[k] + rng.uniform(rim[k], box[k + 2] - rim[k])) for k in (0, 1))
        rise = upslope(tundra, spot)
        angle = rise + (np.pi / 2 if length > 3 * width else rng.normal(0, 0.5))
        if not is_free(tundra, spot, length, angle):
            continue
        body = outline(rng, length, width, angle)
        top, left = (spot[k] - body.shape[0] // 2 for k in (0, 1))
        window = np.s_[top : top + len(body), left : left + len(body)]
        if min(top, left) < 0 or tundra.taken[window].shape != body.shape or (body & tundra.taken[window]).any():
            continue
        paint(rng, tundra, window, body, rise, strength)
        if burnt:
            regrow(rng, tundra, window, body)
        return Hollow(kind, window, body)
    return None


def look_at(rng: np.random.Generator, tundra: Tundra, look: Look) -> tuple[np.ndarray, np.ndarray]:
    """What the satellite sees: RGB uint8 (3, H, W) of 1 to 255; NDVI and relative elevation (metres) float32 (2, H, W).

    NDVI is rounded to odd 400ths and the elevation, which is that above the surroundings, to odd 20ths: neither is
    ever 0, which means no data. Drawn in strips of STRIP rows, since small arrays are faster.
    """
    shape = tundra.ndvi.shape
    few = cv2.resize(tundra.height, (shape[1] // 16, shape[0] // 16), interpolation=cv2.INTER_AREA)
    around = cv2.resize(cv2.GaussianBlur(few, (0, 0), 4), shape[::-1], interpolation=cv2.INTER_LINEAR)
    rgb, extra = np.empty((3, *shape), np.uint8), np.empty((2, *shape), np.float32)
    for top in range(0, shape[0], STRIP):
        rows = np.s_[top : top + STRIP]
        for k in range(3):
            seen = GRAIN * rng.standard_normal(around[rows].shape, dtype=np.float32)
            seen += look.gain * tundra.cover[k, rows] * tundra.light[rows]
            seen += look.haze * (1 + 0.3 * k)
            blurred = cv2.GaussianBlur(np.clip(seen, 1, 255, out=seen).astype(np.uint8), (3, 3), 0.7)
            rgb[k, rows] = np.maximum(blurred, 1)
        ndvi = 0.03 * rng.standard_normal(around[rows].shape, dtype=np.float32) + tundra.ndvi[rows]
        extra[0, rows] = (np.floor(cv2.GaussianBlur(ndvi, (3, 3), 0.7) * 200) + 0.5) / 200
        extra[1, rows] = (np.floor((tundra.height[rows] - around[rows]) * 10) + 0.5) / 10
    return rgb, extra
