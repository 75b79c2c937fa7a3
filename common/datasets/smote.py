"""SMOTE (Chawla et al. 2002): new samples of a rare class between one of its samples and a near neighbour of that one.

Pixels, as vectors of their bands, are treated as by imbalanced-learn's SMOTE. Windows keep the surroundings that a
convolution looks at: they lie around the class, are compared by mean and deviation of their bands, and are mixed whole.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from common.errors import InputError

CHUNK = 512  # points that a thread of the search takes at a time


def check_neighbours(samples: int, k: int, what: str) -> None:
    """InputError unless k is positive and each of the samples has k others."""
    if k < 1:
        raise InputError(f"--smote-k {k}: a sample is mixed with one of its nearest; give 1 or more")
    if samples <= k:
        raise InputError(
            f"--smote-k {k}: takes {k + 1} {what} or more, the training tiles hold {samples}; "
            "lower --smote-k or leave --smote out"
        )


# pixels


def neighbours(points: np.ndarray, k: int, of: np.ndarray | None = None) -> np.ndarray:
    """int64 (Q, k): of the points with the indices `of` (all N without it) the k nearest others, nearest first.

    points: finite floats (N, D); distances are Euclidean, in float64. Of equally near points the first comes first:
    the same answer for any number of threads. InputError unless N > k >= 1.
    """
    points = np.asarray(points, np.float64)
    check_neighbours(len(points), k, "pixels of the class")
    # The search walks outwards along the band of most variance: most points are then too far in that band alone.
    bands = np.argsort(-points.var(axis=0), kind="stable")
    order = np.argsort(points[:, bands[0]], kind="stable")
    ranked = np.pad(points[np.ix_(order, bands)], ((0, 0), (0, (1 - len(bands)) % 4)))
    place = np.empty(len(points), np.int64)
    place[order] = np.arange(len(points))
    wanted = place if of is None else place[np.asarray(of)]
    found = np.empty((len(wanted), k), np.int64)
    search, threads = _compiled()
    parts = [slice(first, first + CHUNK) for first in range(0, len(wanted), CHUNK)]
    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(lambda part: search(ranked, order, wanted[part], found[part]), parts))
    return found


@functools.cache
def _compiled():
    """(search, number of threads); the search is compiled once a process, half a second, and no files are written."""
    import numba  # a third of a second that nobody need wait for who mixes no pixels

    return numba.njit(nogil=True)(_search), numba.get_num_threads


def _search(ranked, order, wanted, found):
    """found[q] = nearest others of ranked[wanted[q]] as numbers order[.]; ranked: (N, 1 + 4 m), ascends in column 0."""
    count, bands = ranked.shape
    k = found.shape[1]
    best = np.empty(k)
    for q in range(len(wanted)):
        here = wanted[q]
        best[:] = np.inf
        found[q] = count
        left, right = here - 1, here + 1
        while left >= 0 or right < count:
            to_left = ranked[here, 0] - ranked[left, 0] if left >= 0 else np.inf
            to_right = ranked[right, 0] - ranked[here, 0] if right < count else np.inf
            other = left if to_left <= to_right else right
            step = min(to_left, to_right)
            total = step * step
            if total > best[k - 1]:
                break
            if other == left:
                left -= 1
            else:
                right += 1
            for band in range(1, bands, 4):  # a look at the limit after every four lets the processor work ahead
                a = ranked[here, band] - ranked[other, band]
                b = ranked[here, band + 1] - ranked[other, band + 1]
                c = ranked[here, band + 2] - ranked[other, band + 2]
                d = ranked[here, band + 3] - ranked[other, band + 3]
                total += (a * a + b * b) + (c * c + d * d)
                if total > best[k - 1]:
                    break
            number, at = order[other], k - 1
            if total > best[at] or (total == best[at] and number > found[q, at]):
                continue
            while at > 0 and (total < best[at - 1] or (total == best[at - 1] and number < found[q, at - 1])):
                best[at], found[q, at] = best[at - 1], found[q, at - 1]
                at -= 1
            best[at], found[q, at] = total, number


def smote(points: np.ndarray, count: int, *, k: int, seed: int) -> np.ndarray:
    """(count, D) new vectors x + u (n - x): x one of the points (N, D), n one of its k nearest, u uniform in [0, 1).

    What imbalanced-learn 0.14 adds with SMOTE(k_neighbors=k, random_state=seed) to a class of these points, number by
    number and in their dtype, but for ties of distance. Bands are not scaled: those of large numbers decide what is
    near. InputError unless N > k >= 1.
    """
    check_neighbours(len(points), k, "pixels of the class")
    random = np.random.RandomState(seed)  # its streams are frozen: the same in any version of numpy
    drawn = random.randint(low=0, high=len(points) * k, size=count)
    steps = random.uniform(size=count)[:, None]
    base, rank = np.divmod(drawn, k)
    used, at = np.unique(base, return_inverse=True)
    near = neighbours(points, k, used)[at, rank]
    return (points[base] + steps * (points[near] - points[base])).astype(points.dtype)


# windows


def windows_around(found: np.ndarray, side: int) -> list[tuple[int, int]]:
    """(y, x) of side x side windows that together hold every pixel of a mask (H, W), each centred on a pixel of it.

    Components (of 8 neighbours) of most pixels come first, and what an earlier window holds asks for no other. Windows
    are moved inside; in a tile smaller than the window they begin at 0.
    """
    count, parts, boxes, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8), connectivity=8)
    last_y, last_x = (max(length - side, 0) for length in found.shape)
    left, windows = found.copy(), []
    key = (boxes[1:, cv2.CC_STAT_LEFT], boxes[1:, cv2.CC_STAT_TOP], -boxes[1:, cv2.CC_STAT_AREA])
    for part in np.lexsort(key) + 1 if count > 1 else ():
        x0, y0, wide, high = boxes[part, :4]
        box = slice(y0, y0 + high), slice(x0, x0 + wide)
        while True:
            ys, xs = np.nonzero(left[box] & (parts[box] == part))
            if not len(ys):
                break
            centre = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
            y = int(np.clip(y0 + ys[centre] - side // 2, 0, last_y))
            x = int(np.clip(x0 + xs[centre] - side // 2, 0, last_x))
            left[y : y + side, x : x + side] = False
            windows.append((y, x))
    return windows


def describe(window: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """float64 (2C,): mean and deviation of every band of (C, H, W) over its valid pixels (H, W), of which one is."""
    values = window[:, valid].astype(np.float64)
    return np.concatenate([values.mean(axis=1), values.std(axis=1)])


def nearest_windows(descriptors: np.ndarray, k: int, apart: Callable[[int], np.ndarray]) -> list[np.ndarray]:
    """Of each of N windows the numbers of its k nearest, or of fewer where fewer may be mixed with it, nearest first.

    descriptors: (N, D), compared at mean 0 and deviation 1; apart(i) -> bool (N,): windows that share no ground with
    window i (a copy of the same ground would be nearest, and mixing the two nothing new). InputError unless
    N > k >= 1, or where every pair shares ground.
    """
    check_neighbours(len(descriptors), k, "windows of the class")
    std = descriptors.std(axis=0)
    scaled = (descriptors - descriptors.mean(axis=0)) / np.where(std > 0, std, 1.0)
    found = []
    for index in range(len(scaled)):
        allowed = np.flatnonzero(apart(index))
        distance = ((scaled[allowed] - scaled[index]) ** 2).sum(axis=1)
        found.append(allowed[np.argsort(distance, kind="stable")[:k]])
    if not any(len(near) for near in found):
        raise InputError(
            f"--smote-k {k}: all {len(found)} windows of the class lie on the same ground; leave --smote out"
        )
    return found


def mix_windows(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """first + share (second - first), float32 (C, H, W): pixels with data in the first alone keep its values.

    A pixel has no data where all its bands are 0; none of the first gains or loses data.
    """
    data, both = (first != 0).any(axis=0), ((first != 0).any(axis=0)) & ((second != 0).any(axis=0))
    mixed = np.where(both, first + np.float32(share) * (second - first), first)
    mixed[0, data & ~(mixed != 0).any(axis=0)] = np.finfo(np.float32).tiny
    return mixed
