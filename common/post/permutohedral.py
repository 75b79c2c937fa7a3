"""Gaussian filtering of scattered points on the permutohedral lattice, compiled, for any number of dimensions.

After Adams, Baek, Davis, Fast high-dimensional filtering using the permutohedral lattice (2010), with the arithmetic of
Kraehenbuehl and Koltun's implementation (float32, rounding half to even), so that the vertices and weights are theirs.
What differs is the bookkeeping: a vertex is one integer that is linear in its place, points are entered strip by
strip into small hash tables, and the vertices are sorted, so that neighbours along an axis are found by one merge and
the blur walks through memory in order. Sums run in the order of the points whatever the number of threads.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import NamedTuple

import numpy as np

from common.post.permutohedral_kernels import point_loops, vertex_loops

STRIP = 1 << 15  # points of a strip: its table of vertices fits a core's own cache
FARTHEST = 1 << 17  # kernel widths from 0: beyond, float32 cannot place a point in its simplex
KEYS = 1 << 62  # vertices that are told apart without fail


class Lattice(NamedTuple):
    """The vertices around N points in d dimensions, D = d + 1.

    slots: uint32 (N, D), a place of the strip's own for each vertex of the point's simplex; weights: float32 (N, D);
    strips: points where strips begin and end; vertex: uint32 (L,) of each slot; head: uint32 (M,) first slot of each
    vertex, rising, so that points near each other have vertices near each other; more: uint32 (L - M,) the other slots;
    above, below: uint32 (D, M) next vertex along each axis, M where there is none.
    """

    slots: np.ndarray
    weights: np.ndarray
    strips: list
    vertex: np.ndarray
    head: np.ndarray
    more: np.ndarray
    above: np.ndarray
    below: np.ndarray


class Workers:
    """Threads for short parts of work: as many as numba is told to use, this one among them."""

    def __init__(self):
        import numba

        self.count = numba.get_num_threads()
        self.pool = ThreadPoolExecutor(self.count - 1) if self.count > 1 else None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.pool:
            self.pool.shutdown()

    def spans(self, work, length: int, least: int = 4096) -> None:
        """work(first, last) over 0 .. length in as many spans as there are threads, each of at least `least`."""
        parts = max(1, min(self.count, length // least))
        self.each(lambda part: work(length * part // parts, length * (part + 1) // parts), parts)

    def each(self, work, count: int) -> None:
        """work(i) for every i below count; threads take every n-th."""
        threads = min(self.count, count)
        waiting = [self.pool.submit(self._share, work, count, i, threads) for i in range(1, threads)]
        self._share(work, count, 0, threads)
        for future in waiting:
            future.result()

    @staticmethod
    def _share(work, count, first, step):
        for i in range(first, count, step):
            work(i)


def build(features: np.ndarray, used: np.ndarray, workers: Workers) -> Lattice:
    """Lattice of points. features: float32 (d, N) in kernel widths, clipped to +-FARTHEST; used: bool (N,), points that
    are not used get no vertex, and neither their slots nor their weights mean anything."""
    corners, points = len(features) + 1, features.shape[1]
    slots, weights = np.zeros((points, corners), np.uint32), np.zeros((points, corners), np.float32)
    steps, scales = key_steps(features, used), np.array(_scales(len(features)), np.float32)
    strips, code = strips_of(points), point_loops()
    keys, order = [None] * (len(strips) - 1), [None] * (len(strips) - 1)

    def enter(i):
        keys[i] = code.embed(features, used, strips[i], strips[i + 1], steps, scales, slots, weights)
        order[i] = np.argsort(keys[i])
        keys[i] = keys[i][order[i]]

    workers.each(enter, len(keys))
    begins = np.cumsum([0] + [len(own) for own in keys])

    def shift(i):
        slots[strips[i] : strips[i + 1]] += np.uint32(begins[i])
        order[i] += begins[i]

    workers.each(shift, len(keys))
    keys, number, vertex, head, more = _merge(np.concatenate(keys), np.concatenate(order))
    above, below = np.empty((corners, len(keys)), np.uint32), np.empty((corners, len(keys)), np.uint32)
    workers.each(lambda axis: code.join(keys, number, steps[axis], above[axis], below[axis]), corners)
    return Lattice(slots, weights, strips, vertex, head, more, above, below)


def _merge(keys: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, ...]:
    """(sorted keys of the vertices, number of each, vertex, head, more) from keys, sorted within strips, of slots."""
    order = np.argsort(keys, kind="stable")  # a merge of the strips, whose first slots stay first
    keys, slots = keys[order], slots[order]
    first = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    leads = np.zeros(len(keys), bool)
    leads[slots[first]] = True
    number = (np.cumsum(leads, dtype=np.uint32) - 1)[slots[first]]
    vertex = np.empty(len(keys), np.uint32)
    vertex[slots] = number[np.cumsum(first) - 1]
    head, more = (np.flatnonzero(part).astype(np.uint32) for part in (leads, ~leads))
    return keys[first], number, vertex, head, more


def strips_of(points: int) -> list[int]:
    """Where strips of points begin and end; they depend on nothing else."""
    count = max(1, -(-points // STRIP))
    return [points * i // count for i in range(count + 1)]


def _scales(d: int) -> list[float]:
    """Diagonal of the matrix E times the standard deviation of the blur (Adams et al., p. 5 and 6)."""
    deviation = np.float32(np.sqrt(2.0 / 3.0) * (d + 1))
    return [1.0 / np.sqrt((i + 2) * (i + 1)) * float(deviation) for i in range(d)]


def key_steps(features: np.ndarray, used: np.ndarray) -> np.ndarray:
    """int64 (D,): what a step along each axis adds to the key of a vertex; they sum to 0, as the steps themselves do.

    Exact where the vertices that the features can reach, and their neighbours, number less than KEYS. Beyond, in ten
    dimensions or so, random steps: among a million vertices two fall together in less than one image of a thousand.
    """
    d = len(features)
    low, high = np.zeros(d), np.zeros(d)
    if used.any():
        low = features.min(1, initial=np.inf, where=used).astype(float) * _scales(d)
        high = features.max(1, initial=-np.inf, where=used).astype(float) * _scales(d)
    sizes = []
    for i in range(d):  # coordinate i of a vertex: (elevated i - elevated d) / (d + 1)
        factors = np.r_[np.zeros(max(i - 1, 0)), [-float(i)] * (i > 0), np.ones(d - i)]
        factors[d - 1] += d
        reach = np.maximum(high * factors, low * factors).sum() - np.minimum(high * factors, low * factors).sum()
        sizes.append(int(reach / (d + 1)) + 8)
    if prod(sizes) < KEYS:
        steps = [prod(sizes[i + 1 :]) for i in range(d)]
    else:
        steps = np.random.default_rng(0).integers(1, KEYS // sum(sizes), d).tolist()
    return np.array([*steps, -sum(steps)], np.int64)


def blur(lattice: Lattice, values: np.ndarray, spare: np.ndarray, workers: Workers) -> np.ndarray:
    """Values at the vertices, float32 (M + 1, C), last row 0, after (.5, 1, .5) along every axis; both are scratch."""
    code, vertices = vertex_loops(values.shape[1]), len(values) - 1
    for above, below in zip(lattice.above, lattice.below, strict=True):
        workers.spans(functools.partial(code.blur, values, spare, above, below), vertices)
        values, spare = spare, values
    return values


def filter_ones(lattice: Lattice, used: np.ndarray, workers: Workers) -> np.ndarray:
    """float32 (N,): the filter's answer to 1 at every used point, unscaled; 0 at the others."""
    code, strips, points = point_loops(), lattice.strips, (lattice.slots, lattice.weights, used)
    sums, out = np.zeros((len(lattice.vertex), 1), np.float32), np.zeros(len(used), np.float32)
    workers.each(lambda i: code.splat(*points, strips[i], strips[i + 1], sums), len(strips) - 1)
    values = gather(lattice, sums, np.zeros((len(lattice.head) + 1, 1), np.float32), workers)
    spread(lattice, blur(lattice, values, np.zeros_like(values), workers), sums, workers)
    workers.spans(functools.partial(code.slice, *points, sums, out), len(used))
    return out


def gather(lattice: Lattice, sums: np.ndarray, values: np.ndarray, workers: Workers) -> np.ndarray:
    """Writes into values (M + 1, C) the sums (L, C) of the strips, which are set to 0; the last row stays."""
    code = vertex_loops(sums.shape[1])
    workers.spans(functools.partial(code.gather, lattice.head, sums, values), len(values) - 1)
    code.add(lattice.more, lattice.vertex, sums, values)
    return values


def spread(lattice: Lattice, values: np.ndarray, copies: np.ndarray, workers: Workers) -> None:
    """Writes the values (M + 1, C) of the vertices into the slots of the strips, (L, C)."""
    work = functools.partial(vertex_loops(values.shape[1]).spread, lattice.vertex, values, copies)
    workers.spans(work, len(copies))
