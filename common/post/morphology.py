"""Small components of a class mask go, small holes are filled: what a map at this resolution cannot mean.

numpy and OpenCV only, since the functions are copied into what is handed in.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from common.post.thresholds import apply_thresholds, over_thresholds

AROUND = {
    4: ((-1, 0), (0, -1), (0, 1), (1, 0)),
    8: ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
}


def small_components(inside: np.ndarray, area: int, connectivity: int, first: int = 1) -> tuple[np.ndarray, int]:
    """int32 (H,W): components of `inside` under `area` pixels numbered from `first`, 0 elsewhere; and the next number.

    inside: bool (H,W); connectivity: 4 or 8.
    """
    count, labels, facts, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=connectivity)
    small = facts[:, cv2.CC_STAT_AREA] < area
    small[0] = False
    number = np.zeros(count, np.int32)
    number[small] = np.arange(first, first + small.sum())
    return number[labels], first + int(small.sum())


def voted_class(labels: np.ndarray, count: int, mask: np.ndarray, voters: np.ndarray, connectivity: int) -> np.ndarray:
    """(count,) uint8: the class that most neighbours of each component have, the lowest of equals; 0 without a voter.

    labels: int32 (H,W), 0 where no component; mask: classes (H,W); voters: bool (H,W), pixels that may vote.
    """
    classes = int(mask.max()) + 1
    high, wide = mask.shape
    said = np.where(voters, mask, 255)
    padded = np.full((high + 2, wide + 2), 255, np.uint8)
    padded[1:-1, 1:-1] = said
    rows, columns = np.nonzero(labels)
    number = labels[rows, columns].astype(np.int64)
    votes = np.zeros(count * classes, np.int64)
    for down, right in AROUND[connectivity]:
        near = padded[rows + 1 + down, columns + 1 + right]
        heard = near != 255
        votes += np.bincount(number[heard] * classes + near[heard], minlength=len(votes))
    return votes.reshape(count, classes).argmax(1).astype(np.uint8)


def drop_small(mask: np.ndarray, valid: np.ndarray, areas: Sequence[int], connectivity: int) -> np.ndarray:
    """mask uint8 (H,W) whose components of class k = 1, 2, … under areas[k - 1] pixels took their neighbours' class.

    All such components go at once, so that the order of the classes decides nothing; only pixels that stay vote.
    """
    dropped, count = np.zeros(mask.shape, np.int32), 1
    for value, area in enumerate(areas, start=1):
        labels, count = small_components(mask == value, area, connectivity, count)
        dropped += labels
    new = voted_class(dropped, count, mask, valid & (dropped == 0), connectivity)
    return np.where(dropped > 0, new[dropped], mask)


def clean_mask(
    mask: np.ndarray,
    valid: np.ndarray = None,
    *,
    min_area: "int | Sequence[int]" = 100,
    fill_holes: int = 50,
    connectivity: int = 8,
) -> np.ndarray:
    """uint8 (H,W) without small components of the classes above background (0) and without small holes.

    mask: classes, uint8 (H,W); valid: bool (H,W), pixels outside are background in the result and have no vote.
    min_area: a component of fewer pixels takes the class that most pixels around it have; one number, or one for every
    class above background. fill_holes: background components of fewer pixels do so after it. 0 switches either off.
    connectivity: 4 or 8, of components; holes have the other one, so that a diagonal line has two sides. A component
    at the edge of the tile is judged by what the tile shows of it. For two classes this is scikit-image's
    remove_small_objects followed by remove_small_holes.
    """
    valid = np.ones(mask.shape, bool) if valid is None else valid
    mask = np.where(valid, mask, 0).astype(np.uint8)
    areas = [min_area] * int(mask.max()) if np.ndim(min_area) == 0 else list(min_area)
    if int(mask.max()) > len(areas):
        raise ValueError(f"mask holds class {mask.max()}, min_area gives {len(areas)} areas (none for background)")
    if any(areas):
        mask = drop_small(mask, valid, areas, connectivity)
    if fill_holes:
        dual = 12 - connectivity
        holes, count = small_components(mask == 0, fill_holes, dual)
        new = voted_class(holes, count, mask, valid & (mask > 0), dual)
        mask = np.where(holes > 0, new[holes], mask)
    return np.where(valid, mask, 0).astype(np.uint8)


def finish_mask(
    prob: np.ndarray,
    valid: np.ndarray,
    *,
    thresholds: Sequence[float],
    min_area: "int | Sequence[int]" = 0,
    fill_holes: int = 0,
    connectivity: int = 8,
    refine=None,
) -> np.ndarray:
    """The mask that is handed in, uint8 (H,W), from prob (K,H,W) and valid (H,W): thresholds, then `clean_mask`.

    refine(prob (K,H,W), valid) -> (K,H,W), which is asked with the probabilities over their thresholds, adding up to 1:
    then its largest is the class, since what it gives back knows of the thresholds.
    """
    if refine is not None:
        prob, thresholds = refine(over_thresholds(prob, thresholds), valid), [1] * len(prob)
    mask = apply_thresholds(prob, thresholds)
    return clean_mask(mask, valid, min_area=min_area, fill_holes=fill_holes, connectivity=connectivity)
