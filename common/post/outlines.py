"""Outlines of 8-connected blobs given as runs of pixels: rings of corners in linear time, never a label image.

A run is `start <= x < end` of a row y. Runs come sorted by blob, row and start. Rings have x, y of pixel corners in
pixels (y downwards); shells and holes are told apart by the sign of their area. All kernels are compiled by numba when
first used.
"""

import functools
from typing import NamedTuple

import numpy as np
import shapely


class Rings(NamedTuple):
    """Closed rings. corners: int32 (n, 2) x, y; offsets: int64 (rings + 1,) into corners; part: int64 (rings,), first
    run of the 4-connected part that the ring bounds; doubled: int64 (rings,), twice the area, negative for shells."""

    corners: np.ndarray
    offsets: np.ndarray
    part: np.ndarray
    doubled: np.ndarray


@functools.cache
def kernels():
    """(find_runs, join_runs, link_edges, walk_rings) as machine code, made once a process; no files are written."""
    import numba  # a third of a second that only tracing needs to wait for

    compiled = numba.njit(nogil=True)
    link_edges = functools.partial(compiled(_link_edges), compiled(_line_edges))
    return compiled(_find_runs), compiled(_join_runs), link_edges, compiled(_walk_rings)


def _find_runs(mask, prob, y0):
    """row, start, end int32 (n,), total float64 (n,) and peak float32 (n,) of prob, of every run of mask (h, w)."""
    high, wide = mask.shape
    count = 0
    for y in range(high):
        inside = False
        for x in range(wide):
            if mask[y, x] and not inside:
                count += 1
            inside = mask[y, x]
    row, start, end = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32)
    total, peak = np.empty(count, np.float64), np.empty(count, np.float32)
    i = 0
    for y in range(high):
        if i == count:
            break
        x = 0
        while x < wide:
            if not mask[y, x]:
                x += 1
                continue
            row[i], start[i], total[i], peak[i] = y0 + y, x, 0.0, prob[y, x]
            while x < wide and mask[y, x]:
                total[i] += prob[y, x]
                peak[i] = max(peak[i], prob[y, x])
                x += 1
            end[i] = x
            i += 1
    return row, start, end, total, peak


def _join_runs(row, start, end, group, node, parent, reach):
    """Joins in `parent` the nodes of runs of one group that touch from one row to the next; the lowest node leads.

    reach: 1 joins diagonal neighbours, 0 does not. On return parent[i] is the leader itself.
    """
    first, begin, p = 0, 0, 0  # runs first … begin - 1 are the row above, begin … i the row of run i
    for i in range(len(row)):
        if i == 0 or row[i] != row[i - 1] or group[i] != group[i - 1]:
            adjacent = i > 0 and group[i] == group[i - 1] and row[i] == row[i - 1] + 1
            first = begin if adjacent else i
            begin, p = i, first
        while p < begin and end[p] + reach <= start[i]:
            p += 1
        q = p
        while q < begin and start[q] < end[i] + reach:
            a, b = node[i], node[q]
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            parent[max(a, b)] = min(a, b)
            q += 1
    for i in range(len(parent)):
        parent[i] = parent[parent[i]]


def _line_edges(edges, e, start, end, right, left, own, other, y, lower):
    """Adds edges on line y of the runs own[0] … own[1] - 1 that the runs of `other` across the line do not cover.

    lower: the edges lie below their runs and lead to the right, otherwise above and to the left. Returns the next e.
    """
    follow, t = edges[6], 0 if lower else 1
    p = other[0]
    for r in range(own[0], own[1]):
        while p < other[1] and end[p] <= start[r]:
            p += 1
        meets = p > other[0] and end[p - 1] == start[r]
        x, q, before = start[r], p, -1
        while x < end[r]:
            stop = start[q] if q < other[1] and start[q] < end[r] else end[r]
            if stop > x:
                edges[t, e], edges[1 - t, e], edges[4, e], edges[5, e] = x, stop, y, r
                edges[2 + t, e] = (2 * p - 1 if lower else 2 * r) if meets and before < 0 else -1
                touches = stop == end[r] and q < other[1] and start[q] == stop
                edges[3 - t, e] = (2 * q if lower else 2 * r + 1) if touches else -1
                if before < 0 and lower:
                    follow[left[r]] = e
                elif before < 0:
                    left[r] = e
                elif lower:
                    right[before] = e
                else:
                    follow[e] = right[before]
                if stop == end[r] and lower:
                    follow[e] = right[r]
                elif stop == end[r]:
                    right[r] = e
                elif lower:
                    left[q] = e
                else:
                    follow[left[q]] = e
                e += 1
            if stop == end[r]:
                break
            if not lower and start[q] == start[r]:
                left[r] = left[q]
            if not lower and end[q] == end[r]:
                right[r] = right[q]
            x, before = end[q], q
            q += 1
    return e


def _link_edges(line_edges, row, start, end, blob):
    """Horizontal edges of the outlines, interior to their left on a map with north up, and which one follows which.

    Returns int32 (7, edges): x of tail and of head; the twins of tail and head; y; a run that the edge bounds; the
    next edge (a vertical one lies between them). A twin is the number of a corner where two pixels touch diagonally,
    which two edge ends share, or -1; there the outline keeps to its own pixel (4-connected parts).

    A vertical edge is the end of one run or of several below each other: `right` is the edge that follows a run's
    right side (upwards), `left` the one before its left side (downwards); both are handed down from row to row.
    """
    n = len(row)
    # A run has one edge above and one below, plus one for each neighbour there; pages not touched cost no memory.
    edges = np.empty((7, 6 * n), np.int32)
    right, left = np.empty(n, np.int32), np.empty(n, np.int32)
    e, above, below = 0, 0, 0  # runs above … below - 1 lie over the line y, runs below … stop - 1 under it
    while below < n or above < below:
        stop = below
        if below < n and (above == below or (blob[below] == blob[above] and row[below] == row[above] + 1)):
            while stop < n and row[stop] == row[below] and blob[stop] == blob[below]:
                stop += 1
        y = row[above] + 1 if above < below else row[below]
        e = line_edges(edges, e, start, end, right, left, (above, below), (below, stop), y, True)
        e = line_edges(edges, e, start, end, right, left, (below, stop), (above, below), y, False)
        above, below = below, stop
    return edges[:, :e]


def _walk_rings(edges, part):
    """Corners (m, 2), offsets, part and doubled area of the closed rings of `_link_edges`, all of them simple.

    An outline that comes to a corner for the second time is cut there into two rings that touch in it.
    """
    n = edges.shape[1]
    line, run, follow = edges[4], edges[5], edges[6]
    corners, offsets = np.empty((3 * n, 2), np.int32), np.zeros(n + 1, np.int64)
    parts, doubled = np.empty(n, np.int64), np.empty(n, np.int64)
    held = np.empty((2 * n, 2), np.int32)
    walked, place = np.full(2 * len(part), -1, np.int64), np.empty(2 * len(part), np.int64)
    done = np.zeros(n, np.bool_)
    m = rings = 0
    for first in range(n):
        if done[first]:
            continue
        e, top, closed = first, 0, False
        while not closed:
            done[e] = True
            for side in range(3):  # both ends of the edge, and after the last edge what is left on the stack
                twin, since = -1, 0
                if side < 2:
                    twin = edges[2 + side, e]
                    if twin < 0 or walked[twin] != first:
                        if twin >= 0:
                            walked[twin], place[twin] = first, top
                        held[top, 0], held[top, 1] = edges[side, e], line[e]
                        top += 1
                        continue
                    since = place[twin]
                elif follow[e] != first:
                    continue
                area, last = 0, top - 1
                for i in range(since, top):
                    corners[m, 0], corners[m, 1] = held[i, 0], held[i, 1]
                    area += np.int64(held[last, 0]) * held[i, 1] - np.int64(held[i, 0]) * held[last, 1]
                    last, m = i, m + 1
                corners[m, 0], corners[m, 1] = held[since, 0], held[since, 1]
                m += 1
                parts[rings], doubled[rings] = part[run[e]], area
                rings += 1
                offsets[rings] = m
                top = since + 1
            closed = follow[e] == first
            e = follow[e]
    return corners[:m], offsets[: rings + 1], parts[:rings], doubled[:rings]


def trace_rings(row: np.ndarray, start: np.ndarray, end: np.ndarray, blob: np.ndarray) -> Rings:
    """Rings of blobs given as runs, int32 (n,) each, sorted by blob, row, start: by part, each part's shell first.

    Shells and holes have no corner twice and no corner on a straight line; those of one part touch in corners only.
    """
    _, join_runs, link_edges, walk_rings = kernels()
    nodes = np.arange(len(row))
    part = nodes.copy()
    join_runs(row, start, end, blob, nodes, part, 0)
    corners, offsets, parts, doubled = walk_rings(link_edges(row, start, end, blob), part)
    order = np.lexsort((np.arange(len(parts)), doubled > 0, parts))
    lengths = np.diff(offsets)[order]
    sorted_offsets = np.concatenate([[0], np.cumsum(lengths)])
    take = np.repeat(offsets[:-1][order] - sorted_offsets[:-1], lengths) + np.arange(len(corners))
    return Rings(corners[take], sorted_offsets, parts[order], doubled[order])


def rings_to_shapes(rings: Rings, blob: np.ndarray) -> np.ndarray:
    """Polygon, or MultiPolygon where parts touch diagonally only, of every blob 0 … n-1, in pixels; object (n,).

    blob: (runs,) the blob of every run, sorted from 0.
    """
    shells = np.flatnonzero(rings.doubled < 0)
    blobs = blob[rings.part[shells]]
    parts = np.append(shells, len(rings.doubled))
    whole = np.concatenate([np.searchsorted(blobs, np.arange(blob[-1] + 1)), [len(shells)]])
    kind = shapely.GeometryType.MULTIPOLYGON
    shapes = shapely.from_ragged_array(kind, rings.corners.astype(np.float64), (rings.offsets, parts, whole))
    single = np.diff(whole) == 1
    shapes[single] = shapely.get_geometry(shapes[single], 0)
    return shapes
