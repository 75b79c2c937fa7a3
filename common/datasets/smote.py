"""SMOTE (Chawla et al. 2002): new samples of a rare class between one of its samples and a near neighbour of that one.

Pixels, as vectors of their bands, are treated as by imbalanced-learn's SMOTE. Windows keep the surroundings that a
convolution looks at: they lie around the class, are compared by mean and deviation of their bands, and are mixed whole.
"""

from collections.abc import Callable

import cv2
import numpy as np
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from common.errors import InputError


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

    points: finite floats (N, D); distances are Euclidean. On one thread, for with more of them scikit-learn's order of
    equally near points depends on their number. InputError unless N > k >= 1.
    """
    check_neighbours(len(points), k, "pixels of the class")
    of = np.arange(len(points)) if of is None else np.asarray(of)
    with threadpool_limits(limits=1, user_api="openmp"):
        found = NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points[of], return_distance=False)
    # A point comes first of its own neighbours, except among copies of itself, where it may come later or not at all.
    itself = found == of[:, None]
    itself[~itself.any(axis=1), -1] = True
    return found[~itself].reshape(len(of), k)


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
    N > k >= 1.
    """
    check_neighbours(len(descriptors), k, "windows of the class")
    std = descriptors.std(axis=0)
    scaled = (descriptors - descriptors.mean(axis=0)) / np.where(std > 0, std, 1.0)
    found = []
    for index in range(len(scaled)):
        allowed = np.flatnonzero(apart(index))
        distance = ((scaled[allowed] - scaled[index]) ** 2).sum(axis=1)
        found.append(allowed[np.argsort(distance, kind="stable")[:k]])
    return found


def mix_windows(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """first + share (second - first), float32 (C, H, W): pixels with data in the first alone keep its values.

    A pixel has no data where all its bands are 0; none of the first gains or loses data.
    """
    data, both = (first != 0).any(axis=0), ((first != 0).any(axis=0)) & ((second != 0).any(axis=0))
    mixed = np.where(both, first + np.float32(share) * (second - first), first)
    mixed[0, data & ~(mixed != 0).any(axis=0)] = np.finfo(np.float32).tiny
    return mixed
