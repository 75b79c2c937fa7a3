"""A drawn mountain range for the glacier demo set: relief, glaciers with debris at their tongues, lakes, five bands.

What a pixel looks like does not tell its class, what surrounds it does: debris has the spectrum of bare rock but lies
smooth beside ice, snow has that of ice but follows the rough relief in small patches, lakes are as dark as shadows
but level and at the ends of glaciers.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from common.errors import InputError

BACKGROUND, GLACIER, DEBRIS, LAKE = range(4)
SHARES = (0.70, 0.25, 0.049, 0.0005)
SNOW = 0.20  # of the ground that is neither glacier nor lake
PARTIAL = 0.01  # of all pixels are 0 in some bands only
DUST = 0.3  # mean share of rock in the look of ice
SHIFT = 1.6  # pixels: standard deviation of the surveyor's hand along each axis
SHIFT_STEP = 10  # pixels over which it wanders
CELL = 30.0  # metres a pixel

# Reflectance in blue, green, red, SWIR of what lies in full sun.
REFLECTANCE = {
    "rock": (0.20, 0.22, 0.25, 0.30),
    "debris": (0.20, 0.22, 0.25, 0.29),
    "ice": (0.60, 0.58, 0.53, 0.11),
    "snow": (0.66, 0.64, 0.60, 0.10),
    "lake": (0.15, 0.16, 0.11, 0.04),
}
OFFSET = np.array([2500.0, 2200.0, 1800.0, 5200.0], np.float32)  # digital numbers of a black pixel
GAIN = np.array([62000.0, 62000.0, 63000.0, 30000.0], np.float32)  # digital numbers per reflectance of 1
GRAIN = np.array([700.0, 700.0, 700.0, 260.0], np.float32)  # noise of the detector, digital numbers
BRIGHTEST = 65454.0
SUN = np.array([-0.55, -0.55, 0.63])


@dataclass(frozen=True)
class Range:
    """A drawn range: classes as they are, as a surveyor drew them, where it is known, and bands in digital numbers."""

    classes: np.ndarray  # uint8 (H, W)
    drawn: np.ndarray  # uint8 (H, W)
    valid: np.ndarray  # bool (H, W)
    bands: np.ndarray  # float32 (5, H, W) blue, green, red, SWIR, thermal; 0 in all where not valid
    height: np.ndarray  # float32 (H, W) metres


def blobs(rng: np.random.Generator, shape: tuple[int, int], step: float) -> np.ndarray:
    """Noise of mean 0 and standard deviation about 1 whose blobs are `step` pixels wide, float32 `shape`."""
    few = rng.standard_normal((int(shape[0] / step) + 3, int(shape[1] / step) + 3), dtype=np.float32)
    drawn = cv2.resize(few, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    return 1.25 * drawn[: shape[0], : shape[1]]


def fractal(rng: np.random.Generator, shape: tuple[int, int], steps: tuple, weights: tuple) -> np.ndarray:
    """Sum of blobs of several widths, scaled to standard deviation 1."""
    total = sum(weight * blobs(rng, shape, step) for step, weight in zip(steps, weights, strict=True))
    return (total - total.mean()) / total.std()


def edge_mask(rng: np.random.Generator, shape: tuple[int, int], tile: int, share: float) -> np.ndarray:
    """bool (H, W), False for no data: each tile lacks a frayed wedge at one of its sides, `share` of all together."""
    lacks = rng.permutation(np.linspace(0.4 * share, 1.6 * share, (shape[0] // tile) * (shape[1] // tile)))
    frayed = 6 * fractal(rng, shape, (40, 12), (1, 0.5))
    axis = np.arange(tile) - tile / 2
    valid = np.ones(shape, bool)
    for k, lack in enumerate(lacks):
        top, left = k // (shape[1] // tile) * tile, k % (shape[1] // tile) * tile
        angle = rng.uniform(0, 2 * np.pi)
        window = np.s_[top : top + tile, left : left + tile]
        depth = np.cos(angle) * axis[:, None] + np.sin(angle) * axis + frayed[window]
        valid[window] = depth > np.quantile(depth, lack)
    return valid


def place_lakes(rng, body: np.ndarray, valid: np.ndarray, low: np.ndarray, areas: list[int]) -> np.ndarray:
    """bool (H, W): a lake of each area (pixels) at the low ends of glaciers (`body`), as far apart as they go."""
    lakes = np.zeros(body.shape, bool)
    away = cv2.distanceTransform((~body).astype(np.uint8), cv2.DIST_L2, 5)
    inside = cv2.distanceTransform(np.pad(valid, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    radius = float(np.sqrt(max(areas) / np.pi))
    fit = (away > radius) & (away < radius + 2) & (inside > 2 * radius + 4)
    if not fit.any():
        raise InputError("demo set: no room for a lake on so small a range; draw more tiles or larger ones")
    ends = np.argwhere(fit & (low >= np.median(low[fit])))
    spot = ends[rng.integers(len(ends))]
    far = np.full(len(ends), np.inf)
    rows, cols = np.indices(body.shape, np.float32)
    for area in areas:
        angle, stretch = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.35, 0.35))
        along = np.cos(angle) * (rows - spot[0]) + np.sin(angle) * (cols - spot[1])
        across = np.cos(angle) * (cols - spot[1]) - np.sin(angle) * (rows - spot[0])
        distance = np.where(body | lakes | ~valid, np.inf, (along * stretch) ** 2 + (across / stretch) ** 2)
        lakes.flat[np.argpartition(distance.ravel(), area)[:area]] = True
        far = np.minimum(far, np.hypot(*(ends - spot).T))
        spot = ends[int(np.argmax(far))]
    return lakes


def draw_by_hand(rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
    """The classes as a surveyor draws them: outlines of ice and debris wander, so that no map equals the drawing.

    A pixel keeps its class more often than it takes any other, so the classes as they are remain the best answer.
    Shores are drawn as they are: a lake of ten pixels across would not survive the wandering.
    """
    rows, cols = np.indices(classes.shape, np.float32)
    down, right = (SHIFT * fractal(rng, classes.shape, (SHIFT_STEP,), (1,)) for _ in range(2))
    dry = np.where(classes == LAKE, BACKGROUND, classes).astype(np.uint8)
    drawn = cv2.remap(dry, cols + right, rows + down, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    drawn[classes == LAKE] = LAKE
    return drawn


def shade(height: np.ndarray) -> np.ndarray:
    """Light on a relief (metres) from the north-west, float32 (H, W), .16 in full shadow to about 1.3."""
    down, right = np.gradient(height, CELL)
    light = (SUN[2] - SUN[1] * -down - SUN[0] * -right) / np.sqrt(1 + down**2 + right**2)
    return np.clip(light / SUN[2], 0.16, 1.3).astype(np.float32)


def draw_classes(rng, shape, valid, low, ice: float, lake_areas: list[int]) -> np.ndarray:
    """uint8 (H, W): glaciers with debris where they reach down (`low` is high), lakes beside their ends."""
    share = SHARES[GLACIER] + SHARES[DEBRIS]
    body = fractal(rng, shape, (90, 45, 20), (1, 0.6, 0.2))
    body = body > np.quantile(body[valid], 1 - ice * share)
    reach = low + 0.5 * fractal(rng, shape, (30,), (1,))
    classes = np.where(body, GLACIER, BACKGROUND).astype(np.uint8)
    classes[body & (reach > np.quantile(reach[body & valid], 1 - SHARES[DEBRIS] / share))] = DEBRIS
    if lake_areas:
        classes[place_lakes(rng, body, valid, low, lake_areas)] = LAKE
    return classes


def draw_relief(classes: np.ndarray, low: np.ndarray, rough: np.ndarray) -> np.ndarray:
    """Height in metres, float32 (H, W): rough ground, glaciers level out what lies under them, lakes are level."""
    ice = cv2.GaussianBlur((classes != BACKGROUND).astype(np.float32), (0, 0), 2.0)
    height = -350 * low + 260 * ((1 - ice) * rough + 0.6 * ice * cv2.GaussianBlur(rough, (0, 0), 9))
    return (4800 + height).astype(np.float32)


def draw_cover(rng, classes, low, rough) -> np.ndarray:
    """Reflectance in full sun, float32 (4, H, W): rock of several kinds, snow on its heights, dust on the ice."""
    shape = classes.shape
    high = rough - 0.6 * low + 0.5 * fractal(rng, shape, (6,), (1,))
    snow = (classes == BACKGROUND) & (high > np.quantile(high[classes == BACKGROUND], 1 - SNOW))
    kinds = {"ice": classes == GLACIER, "debris": classes == DEBRIS, "lake": classes == LAKE, "snow": snow}
    cover = np.empty((4, *shape), np.float32)
    cover[:] = np.array(REFLECTANCE["rock"])[:, None, None]
    for name, where in kinds.items():
        cover[:, where] = np.array(REFLECTANCE[name])[:, None]
    dust = np.clip(DUST + 0.3 * fractal(rng, shape, (25, 10), (1, 0.6)), 0, 0.9) * kinds["ice"]
    cover += dust * (np.array(REFLECTANCE["rock"], np.float32)[:, None, None] - cover)
    stone = np.exp(0.18 * fractal(rng, shape, (60, 20, 7), (1, 0.7, 0.5)))
    cover *= np.where(kinds["ice"] | kinds["lake"] | snow, 1, stone)
    return cover


def draw_bands(rng, classes, low, rough, height, look: tuple[float, float]) -> np.ndarray:
    """Digital numbers, float32 (5, H, W), whole, 1 to BRIGHTEST; `look` is gain and haze. Thermal is blurred."""
    shape = classes.shape
    light = np.where(classes == LAKE, 1, shade(height))
    cover = draw_cover(rng, classes, low, rough)
    grain = rng.standard_normal((4, *shape), dtype=np.float32) * GRAIN[:, None, None]
    sunlit = OFFSET[:, None, None] * (1 + look[1]) + look[0] * GAIN[:, None, None] * cover * light + grain
    warm = 30300 + 500 * low + 1900 * (light - 1) + 1700 * (cover[3] > 0.15) - 300 * (classes == GLACIER)
    warm = cv2.GaussianBlur(warm.astype(np.float32), (0, 0), 1.7) + 150 * rng.standard_normal(shape, dtype=np.float32)
    return np.clip(np.round(np.concatenate([sunlit, warm[None]])), 1, BRIGHTEST).astype(np.float32)


def drop_values(rng, bands: np.ndarray, classes: np.ndarray, valid: np.ndarray) -> None:
    """Set PARTIAL of all pixels to 0 in some of the bands, in place: a third of them on glaciers, in small clumps."""
    clump = blobs(rng, valid.shape, 5) + 0.3 * rng.standard_normal(valid.shape, dtype=np.float32)
    kind = blobs(rng, valid.shape, 9)
    for where, part in ((classes == GLACIER, 1 / 3), (classes != GLACIER, 2 / 3)):
        where = where & valid
        hit = where & (clump > np.quantile(clump[where], 1 - part * PARTIAL * valid.size / where.sum()))
        bands[2][hit] = 0
        bands[:2, hit & (kind > 0)] = 0


def draw_range(rng, shape, *, tile: int, no_data: float, lake_areas: list[int], look: tuple, ice=1.0) -> Range:
    """A range of `shape` pixels, to be cut into tiles of `tile`.

    no_data: share of the pixels; look: gain and haze of its bands; ice: glaciers and debris as a part of SHARES.
    """
    valid = edge_mask(rng, shape, tile, no_data)
    low = fractal(rng, shape, (150, 70), (1, 0.5))
    rough = fractal(rng, shape, (34, 17, 9, 5), (1, 0.55, 0.3, 0.16))
    classes = draw_classes(rng, shape, valid, low, ice, lake_areas)
    height = draw_relief(classes, low, rough)
    bands = draw_bands(rng, classes, low, rough, height, look)
    drop_values(rng, bands, classes, valid)
    bands[:, ~valid] = 0
    classes[~valid] = BACKGROUND
    drawn = np.where(valid, draw_by_hand(rng, classes), BACKGROUND).astype(np.uint8)
    return Range(classes, drawn, valid, bands, height)
