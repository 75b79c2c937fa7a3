"""Loops of the permutohedral lattice (see common/post/permutohedral.py), compiled by numba when first used.

Spans first … last - 1 are of points, vertices or slots: threads share the work by spans.
"""

import functools
from types import SimpleNamespace

import numpy as np

EMPTY = np.uint32(0xFFFFFFFF)
BLOCK = 128  # points that are placed at a time
FIRST_BITS = 14  # of the table of a strip, which doubles as it fills


@functools.cache
def point_loops():
    """embed, join, splat, slice as machine code, made once a process; no files are written."""
    import numba  # a third of a second that nobody need wait for who filters nothing

    fast = numba.njit(nogil=True)
    find = fast(_find)
    embed = functools.partial(fast(_embed), fast(_place), find, fast(_grown))
    return SimpleNamespace(embed=embed, join=fast(_join), splat=fast(_splat), slice=fast(_slice))


@functools.cache
def vertex_loops(channels: int):
    """gather, add, blur, spread as machine code for one number of values at each vertex."""
    import numba

    fast = numba.njit(nogil=True)
    loops = {"gather": _gather, "add": _add, "blur": _blur, "spread": _spread}
    return SimpleNamespace(**{name: fast(make(channels)) for name, make in loops.items()})


def _embed(place, find, grown, features, used, first, last, steps, scales, slots, weights):
    """Fills slots and weights of the points first … last - 1; gives the keys of the slots, int64, in order."""
    corners = len(steps)
    elevated = np.empty((corners, BLOCK), np.float32)
    nearest, rank = np.empty((corners, BLOCK), np.float32), np.empty((corners, BLOCK), np.float32)
    jump, offset, base = np.empty(corners, np.int64), np.empty(corners, np.float32), np.empty(BLOCK, np.int64)
    bits, count = FIRST_BITS, 0
    keys, table = np.empty(1 << (bits - 1), np.int64), np.full(1 << bits, EMPTY, np.uint32)
    before = np.zeros(corners, np.uint32)
    for begin in range(first, last, BLOCK):
        size = min(BLOCK, last - begin)
        place(features, begin, size, steps, scales, elevated, nearest, rank, base)
        for b in range(size):
            p = begin + b
            if not used[p]:
                continue
            for i in range(corners):
                r = np.uint32(rank[i, b])
                jump[r], offset[r] = steps[i], elevated[i, b]
            key = base[b]
            for r in range(corners):
                if r:
                    key -= jump[corners - r]
                    weights[p, r] = offset[corners - 1 - r] - offset[corners - r]
                else:
                    weights[p, r] = offset[corners - 1] + (np.float32(1) - offset[0])
                if keys[before[r]] != key or count == 0:  # else the vertex is also that of the point before
                    if 2 * count >= len(table):
                        bits += 1
                        keys, table = grown(find, keys, bits)
                    at = find(table, keys, bits, key)
                    if table[at] == EMPTY:
                        table[at], keys[count] = count, key
                        count += 1
                    before[r] = table[at]
                slots[p, r] = before[r]
    return keys[:count].copy()


def _find(table, keys, bits, key):
    """Place in the table of a key, or the empty one where it belongs."""
    last = np.uint64(len(table) - 1)
    at = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits)
    while table[at] != EMPTY and keys[table[at]] != key:
        at = (at + np.uint64(1)) & last
    return at


def _grown(find, keys, bits):
    """Full keys in an array twice as long, and their table of 2 ** bits places."""
    more, table = np.empty(1 << (bits - 1), np.int64), np.full(1 << bits, EMPTY, np.uint32)
    for k in range(len(keys)):
        more[k] = keys[k]
        table[find(table, more, bits, keys[k])] = k
    return more, table


def _place(features, begin, size, steps, scales, elevated, nearest, rank, base):
    """Of `size` points: where each lies in its simplex, the multiples of D nearest to it and the ranks of its offsets.

    elevated: (coordinate - nearest multiple) / D; nearest: the multiples over D; all float32 (D, BLOCK). Adams et al.,
    p. 5 to 7. Plain loops over the points inside, which the compiler turns into vector instructions.
    """
    corners = len(elevated)
    wide, share = np.float32(corners), np.float32(1) / np.float32(corners)
    magic = np.float32(12582912)  # adding 1.5 * 2 ** 23 rounds half to even
    total = np.zeros(size, np.float32)
    for j in range(corners - 1, 0, -1):
        scale, times = scales[j - 1], np.float32(j)
        for b in range(size):
            value = features[j - 1, begin + b] * scale
            elevated[j, b] = total[b] - times * value
            total[b] += value
    for b in range(size):
        elevated[0, b] = total[b]
        total[b] = 0
    for i in range(corners):
        for b in range(size):
            nearest[i, b] = (elevated[i, b] * share + magic) - magic
            total[b] += nearest[i, b]
            elevated[i, b] -= nearest[i, b] * wide
            rank[i, b] = 0
    for i in range(corners):
        for j in range(i + 1, corners):
            for b in range(size):
                less = np.float32(elevated[i, b] < elevated[j, b])
                rank[i, b] += less
                rank[j, b] += np.float32(1) - less
    for i in range(corners):  # back onto the plane where the coordinates sum to 0
        for b in range(size):
            turn = np.float32(rank[i, b] + total[b] < 0) - np.float32(rank[i, b] + total[b] >= wide)
            rank[i, b] += total[b] + turn * wide
            nearest[i, b] += turn
            elevated[i, b] = (elevated[i, b] - turn * wide) * share
    for b in range(size):
        base[b] = 0
    for i in range(corners):
        step = steps[i]
        for b in range(size):
            base[b] += np.int64(nearest[i, b]) * step


def _join(keys, number, step, above, below):
    """Vertices one step above and below each along an axis, from sorted keys and the numbers of their vertices; the
    number of all where there is none."""
    count = len(keys)
    below[:] = count
    at = 0
    for k in range(count):
        wanted = keys[k] + step
        while at < count and keys[at] < wanted:
            at += 1
        if at < count and keys[at] == wanted:
            above[number[k]], below[number[at]] = number[at], number[k]
        else:
            above[number[k]] = count


def _splat(slots, weights, used, first, last, sums):
    """Adds 1 at every used point to the sums (L, 1) of its slots."""
    for p in range(first, last):
        if used[p]:
            for j in range(slots.shape[1]):
                sums[slots[p, j], 0] += weights[p, j]


def _slice(slots, weights, used, copies, out, first, last):
    """Reads the copies (L, 1) of the vertices at every used point."""
    for p in range(first, last):
        if used[p]:
            total = np.float32(0)
            for j in range(slots.shape[1]):
                total += weights[p, j] * copies[slots[p, j], 0]
            out[p] = total


def _gather(channels):
    def gather(head, sums, values, first, last):
        for m in range(first, last):
            for c in range(channels):
                values[m, c] = sums[head[m], c]
                sums[head[m], c] = 0

    return gather


def _add(channels):
    def add(more, vertex, sums, values):
        for k in more:
            for c in range(channels):
                values[vertex[k], c] += sums[k, c]
                sums[k, c] = 0

    return add


def _blur(channels):
    def blur(old, new, above, below, first, last):
        half = np.float32(0.5)
        for m in range(first, last):
            for c in range(channels):
                new[m, c] = old[m, c] + half * (old[above[m], c] + old[below[m], c])

    return blur


def _spread(channels):
    def spread(vertex, values, copies, first, last):
        for k in range(first, last):
            for c in range(channels):
                copies[k, c] = values[vertex[k], c]

    return spread
