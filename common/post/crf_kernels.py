"""Loops of the mean field (see common/post/crf.py), compiled by numba when first used, for one number of classes each.

A term's arrays: slots and weights (N, D) of its lattice, norms (N,), 0 where a point takes no part, weight, copies
(L, C) that are read and sums (L, C) that are added to. C = K - 1.
"""

import functools
from math import exp, log

import numpy as np


@functools.cache
def mean_field_loops(channels: int, corners: tuple[int, int]):
    """(start, advance) as machine code for one number of classes and of corners of the two terms."""
    import numba  # a third of a second that nobody need wait for who refines nothing

    fast = numba.njit(nogil=True)
    return fast(_start(channels)), fast(_advance(channels, *corners, fast(_softmax(channels))))


def _start(channels):
    def start(prob, valid, least, first, last, unary):
        """Fills unary (N, K - 1): log prob less that of the last class. False where a prob is not a number."""
        one = np.float32(1)
        for p in range(first, last):
            if valid[p]:
                base = prob[channels, p]
                known = base == base
                base = log(min(max(base, least), one))
                for c in range(channels):
                    value = prob[c, p]
                    known = known and value == value
                    unary[p, c] = log(min(max(value, least), one)) - base
                if not known:
                    return False
        return True

    return start


def _softmax(channels):
    def softmax(logits):
        """In place; the last of the logits counts as 0."""
        top, total = np.float32(0), np.float32(0)
        for c in range(channels):
            top = max(top, logits[c])
        logits[channels] = 0
        for c in range(channels + 1):
            logits[c] = exp(logits[c] - top)
            total += logits[c]
        for c in range(channels + 1):
            logits[c] /= total

    return softmax


def _advance(channels, corners, corners2, softmax):
    # Both terms are written out: handing arrays on to functions within the loop costs more than the work itself.
    def advance(unary, valid, first, last, final, result, slots, weights, norms, weight, copies, sums,
                slots2, weights2, norms2, weight2, copies2, sums2):  # fmt: skip
        """Messages to the probabilities of the points first … last - 1, which are sent on or, at last, written."""
        prob = np.zeros(channels + 1, np.float32)
        for p in range(first, last):
            if not valid[p]:
                result[0, p] = 1
                continue
            norm, norm2 = norms[p], norms2[p]
            for c in range(channels):
                prob[c] = unary[p, c]
            if norm > 0:
                for j in range(corners):
                    share, slot = weight * norm * weights[p, j], slots[p, j]
                    for c in range(channels):
                        prob[c] += share * copies[slot, c]
            if norm2 > 0:
                for j in range(corners2):
                    share, slot = weight2 * norm2 * weights2[p, j], slots2[p, j]
                    for c in range(channels):
                        prob[c] += share * copies2[slot, c]
            softmax(prob)
            for c in range(channels + 1):
                if final:
                    result[c, p] = prob[c]
                else:
                    prob[c] -= prob[channels]
            if norm > 0 and not final:
                for j in range(corners):
                    share, slot = norm * weights[p, j], slots[p, j]
                    for c in range(channels):
                        sums[slot, c] += share * prob[c]
            if norm2 > 0 and not final:
                for j in range(corners2):
                    share, slot = norm2 * weights2[p, j], slots2[p, j]
                    for c in range(channels):
                        sums2[slot, c] += share * prob[c]

    return advance
