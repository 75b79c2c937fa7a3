"""Fully connected conditional random field: labels that follow the edges of guide bands.

Kraehenbuehl and Koltun, Efficient inference in fully connected CRFs with Gaussian edge potentials (2011): mean field,
unary -log prob, a Gaussian kernel of position and a bilateral one of position and bands, both normalised
symmetrically, Potts compatibility; as pydensecrf has it, for any number of bands and classes.

Guides are in the units of an 8-bit picture, for which bilateral_srgb = 3 is meant: `guide_of` brings bands there.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from common.errors import InputError
from common.post import permutohedral
from common.post.crf_kernels import mean_field_loops
from common.post.permutohedral import FARTHEST, Lattice, Workers

LEAST = 1e-5  # probability below which the unary is cut, as pydensecrf's unary_from_softmax does
KEPT = 4  # lattices of positions kept between calls,
KEPT_POINTS = 1 << 20  # of images up to this size: 36 bytes a pixel
FAR = 1e4  # kernel widths of a band, beyond which all values count as one
OVERLAP = 20  # kernel widths that tiles of a large image overlap by
SPREAD = 32.0  # grey levels of a standard deviation


@dataclass(frozen=True)
class Crf:
    """iterations of the mean field; spatial_weight: width (sigma, pixels) of the Gaussian kernel and compat_spatial its
    weight; bilateral_sxy (pixels), bilateral_srgb (guide units): widths of the bilateral kernel, compat_bilateral its
    weight. A weight of 0 leaves a term out. InputError for what has no meaning."""

    iterations: int = 8
    spatial_weight: float = 5.0
    compat_spatial: float = 5.0
    bilateral_sxy: float = 5.0
    bilateral_srgb: float = 3.0
    compat_bilateral: float = 15.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not np.isfinite(value) or value < 0:
                raise InputError(f"--{field.name.replace('_', '-')} {value}: give a number of at least 0")
        if self.iterations != int(self.iterations):
            raise InputError(f"--iterations {self.iterations}: a whole number")
        for name in ("spatial_weight", "bilateral_sxy", "bilateral_srgb"):
            if getattr(self, name) < 0.1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: a width of at least .1")


def guide_of(tile: np.ndarray, mean, std, valid: np.ndarray | None = None) -> np.ndarray:
    """float32 (C, H, W) guide from bands: 128 + 32 standard deviations, clipped to 0..255; NaN where not valid.

    tile: (C, H, W) in the units of mean and std, (C,) each; a band with std 0 is 128 throughout.
    """
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))
    scale = np.divide(np.float32(SPREAD), std, out=np.zeros_like(std), where=std > 0)
    guide = np.clip(128 + (np.asarray(tile, np.float32) - mean) * scale, 0, 255)
    if valid is not None:
        guide[:, ~valid] = np.nan
    return guide


def refine(prob, guide=None, valid=None, *, place=(0, 0), **settings) -> np.ndarray:
    """float32 (K, H, W) probabilities after mean field inference; they sum to 1.

    prob: (K, H, W), K >= 2; guide: (C, H, W) in grey levels (`guide_of`) or None: then only the Gaussian term acts; a
    pixel with a guide that is not finite gets no bilateral term. valid: bool (H, W); pixels outside are certain of
    class 0, send and receive nothing. place: y, x of the first pixel, for a part of a larger image. settings: of Crf.
    The bytes are the same for any number of threads (numba.set_num_threads).
    InputError where shapes differ or a probability at a valid pixel is not a number.
    """
    crf = Crf(**settings)
    prob = np.asarray(prob, np.float32)
    valid = np.ones(prob.shape[1:], bool) if valid is None else np.asarray(valid, bool)
    _check(prob, guide, valid)
    classes, height, width = prob.shape
    flat, valid = np.ascontiguousarray(prob.reshape(classes, -1)), np.ascontiguousarray(valid.ravel())
    with Workers() as workers:
        terms = []
        if crf.compat_spatial:
            term = _position_term(height, width, place, crf.spatial_weight, valid, workers)
            terms.append((*term, crf.compat_spatial))
        if guide is not None and crf.compat_bilateral:
            guide = np.asarray(guide, np.float32).reshape(len(guide), -1)
            terms.append((*_bilateral_term(guide, width, place, crf, valid, workers), crf.compat_bilateral))
        return _mean_field(flat, valid, terms, int(crf.iterations), workers).reshape(prob.shape)


def refine_large(
    read_prob: Callable,
    read_guide: Callable | None,
    read_valid: Callable | None,
    height: int,
    width: int,
    *,
    tile: int = 1024,
    overlap: int | None = None,
    **settings,
) -> Iterator[tuple[int, np.ndarray]]:
    """(y, float32 (K, h, width)) strips of `refine` of an image of any size, from top to bottom, without gaps.

    read_prob, read_guide, read_valid: (y, x, h, w) -> that part of what `refine` takes. Tiles of at most `tile` pixels
    overlap by `overlap` (default: OVERLAP kernel widths, at most half a tile); each gives what lies at least half of
    that from its inner borders, so that neighbours agree there. All share one lattice, that of the whole image.
    Memory: of one tile and a row of tiles of the result; benchmarks/crf.py states it.
    """
    crf = Crf(**settings)
    if overlap is None:
        overlap = min(int(np.ceil(OVERLAP * max(crf.spatial_weight, crf.bilateral_sxy))), tile // 2)
    if not 0 <= overlap < tile:
        raise InputError(f"crf: tiles of {tile} pixels that overlap by {overlap}; give larger tiles or less overlap")
    rows, columns = (_cuts(length, tile - overlap) for length in (height, width))
    margin = overlap // 2
    for top, bottom in zip(rows[:-1], rows[1:], strict=True):
        y, end = max(0, top - margin), min(height, bottom + margin)
        strip = None
        for left, right in zip(columns[:-1], columns[1:], strict=True):
            x = max(0, left - margin)
            part = (y, x, end - y, min(width, right + margin) - x)
            prob, guide, valid = (read and read(*part) for read in (read_prob, read_guide, read_valid))
            done = refine(prob, guide, valid, place=(y, x), **settings)
            if strip is None:
                strip = np.empty((len(done), bottom - top, width), np.float32)
            strip[:, :, left:right] = done[:, top - y : bottom - y, left - x : right - x]
        yield top, strip


def _cuts(length: int, step: int) -> list[int]:
    count = -(-length // step)
    return [length * i // count for i in range(count + 1)]


def _check(prob, guide, valid) -> None:
    if prob.ndim != 3 or len(prob) < 2 or not prob.size or valid.shape != prob.shape[1:]:
        raise InputError(f"crf: prob {prob.shape} and valid {valid.shape}; give (K, H, W), K >= 2, and (H, W)")
    if guide is not None and (np.ndim(guide) != 3 or np.shape(guide)[1:] != prob.shape[1:] or not len(guide)):
        raise InputError(f"crf: guide {np.shape(guide)} beside prob {prob.shape}; give (bands, H, W) of the same size")


def _positions(points: int, width: int, place, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """float32 x and y of pixels in row order, in kernel widths. InputError where float32 is too coarse for them."""
    height = points // width
    if max(place[0] + height, place[1] + width) / sigma > FARTHEST:
        raise InputError(f"crf: {height}x{width} pixels at {place} are too many for a kernel of {sigma}; widen it")
    y = np.arange(place[0], place[0] + height, dtype=np.float32) / np.float32(sigma)
    x = np.arange(place[1], place[1] + width, dtype=np.float32) / np.float32(sigma)
    return np.tile(x, height), np.repeat(y, width)


def _norms(lattice: Lattice, used: np.ndarray, workers: Workers) -> np.ndarray:
    """float32 (N,) by which messages are multiplied when sent and when received; 0 at pixels that take no part."""
    norms = permutohedral.filter_ones(lattice, used, workers)
    return np.where(used, 1 / np.sqrt(norms + np.float32(1e-20)), 0).astype(np.float32)


@functools.lru_cache(maxsize=KEPT)
def _position_lattice(height: int, width: int, place, sigma: float) -> tuple[Lattice, np.ndarray]:
    """Lattice of the pixels of an image and its norms where all are valid; kept, since images of a set are alike."""
    used = np.ones(height * width, bool)
    with Workers() as workers:
        lattice = permutohedral.build(np.stack(_positions(len(used), width, place, sigma)), used, workers)
        return lattice, _norms(lattice, used, workers)


def _position_term(height, width, place, sigma, valid, workers) -> tuple[Lattice, np.ndarray]:
    small = tuple(place) == (0, 0) and height * width <= KEPT_POINTS  # a part of a large image does not come again
    make = _position_lattice if small else _position_lattice.__wrapped__
    lattice, norms = make(height, width, tuple(place), sigma)
    return lattice, norms if valid.all() else _norms(lattice, valid, workers)


def _bilateral_term(guide, width, place, crf: Crf, valid, workers) -> tuple[Lattice, np.ndarray]:
    """guide: float32 (C, N). pydensecrf puts x before y for three bands and y before x for any other number; the order
    turns the lattice, and with it a few labels in a thousand."""
    used = valid & np.isfinite(guide).all(0)
    x, y = _positions(len(used), width, place, crf.bilateral_sxy)
    features = np.empty((len(guide) + 2, len(used)), np.float32)
    features[:2] = (x, y) if len(guide) == 3 else (y, x)
    with np.errstate(over="ignore"):
        np.divide(guide, np.float32(crf.bilateral_srgb), out=features[2:])
    np.clip(features[2:], -FAR, FAR, out=features[2:])
    features[:, ~used] = 0
    lattice = permutohedral.build(features, used, workers)
    return lattice, _norms(lattice, used, workers)


def _mean_field(prob, valid, terms, iterations: int, workers: Workers) -> np.ndarray:
    """float32 (K, N) of prob (K, N). terms: (lattice, norms, weight), at most two.

    What is filtered is each probability less that of the last class: one channel less, and all that the softmax needs.
    """
    channels, points = len(prob) - 1, prob.shape[1]
    strips = permutohedral.strips_of(points)
    parts, values = [], []
    for lattice, norms, weight in terms:
        copies, sums = (np.zeros((len(lattice.vertex), channels), np.float32) for _ in range(2))
        parts.append((lattice.slots, lattice.weights, norms, np.float32(weight), copies, sums))
        values.append([np.zeros((len(lattice.head) + 1, channels), np.float32) for _ in range(2)])
    for _ in range(2 - len(terms)):  # norms of 0: no pixel takes part
        empty = np.zeros((1, channels), np.float32)
        parts.append((np.zeros((1, 1), np.uint32), empty, np.zeros(points, np.float32), np.float32(0), empty, empty))
    start, advance = mean_field_loops(channels, tuple(part[0].shape[1] for part in parts))
    unary, result = _unary(prob, valid, start, strips, workers), np.zeros(prob.shape, np.float32)

    def step(i):
        advance(unary, valid, strips[i], strips[i + 1], final, result, *parts[0], *parts[1])

    for iteration in range(iterations + 1):
        final = iteration == iterations
        workers.each(step, len(strips) - 1)
        for (lattice, _, _), part, (first, second) in zip(terms, parts, () if final else values, strict=False):
            permutohedral.gather(lattice, part[-1], first, workers)
            permutohedral.spread(lattice, permutohedral.blur(lattice, first, second, workers), part[-2], workers)
    return result


def _unary(prob, valid, start, strips, workers: Workers) -> np.ndarray:
    """float32 (N, K - 1). InputError where a probability of a valid pixel is not a number."""
    unary, found = np.empty((prob.shape[1], len(prob) - 1), np.float32), [True] * (len(strips) - 1)

    def begin(i):
        found[i] = start(prob, valid, np.float32(LEAST), strips[i], strips[i + 1], unary)

    workers.each(begin, len(found))
    if not all(found):
        raise InputError("crf: a probability at a valid pixel is not a number; look at the model's output")
    return unary
