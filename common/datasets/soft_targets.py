"""What is unsure at the edges of a class: a confidence that falls across the edge, or a rim that is not looked at."""

from collections.abc import Callable

import cv2
import numpy as np

from common.errors import InputError

BLUR_REACH = 4  # standard deviations that a Gaussian is cut at, as in scipy


def distance_confidence(target: np.ndarray, valid: np.ndarray, width: float) -> np.ndarray:
    """.5 at the edge, which lies half way between a pixel and the nearest one of the other class; 1 at `width` px
    inside of it and 0 at `width` px outside, linear between."""
    positive, negative = valid & (target == 1), valid & (target == 0)
    confidence = np.zeros(target.shape, np.float32)
    for mine, other, sign in ((positive, negative, 1), (negative, positive, -1)):
        if not mine.any():
            continue
        share = np.ones(int(mine.sum()), np.float32)
        if other.any():
            distance = cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            share = np.minimum((distance[mine] - 0.5) / width, 1)
        confidence[mine] = 0.5 + 0.5 * sign * share
    return confidence


def blur_confidence(target: np.ndarray, valid: np.ndarray, width: float) -> np.ndarray:
    """The class blurred by a Gaussian of standard deviation `width` px, over the valid pixels alone."""
    side = 2 * int(BLUR_REACH * width + 0.5) + 1

    def blur(mask: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(mask.astype(np.float32), (side, side), width, borderType=cv2.BORDER_CONSTANT)

    share = blur(valid & (target == 1)) / np.maximum(blur(valid), np.float32(1e-6))
    return np.where(valid, share.clip(0, 1), np.float32(0))


KINDS: dict[str, Callable] = {"distance": distance_confidence, "blur": blur_confidence}


def edge_confidence(target: np.ndarray, valid: np.ndarray, *, kind: str = "distance", width: float = 2) -> np.ndarray:
    """Confidence float32 (H,W) in 0..1 that a pixel is of class 1; 0 where not valid.

    target (H,W) integers 0 or 1; valid (H,W) bool; kind of KINDS; width in pixels, above 0. The edge of no data and
    that of the tile are no edges: pixels that are not valid have no say. InputError for another kind or width.
    """
    if kind not in KINDS:
        raise InputError(f"soft labels '{kind}': choose from {', '.join(KINDS)}")
    if not 0 < width < float("inf"):
        raise InputError(f"soft labels {kind}: width {width}; give a number of pixels above 0")
    return KINDS[kind](target, valid, width)


def ignore_rim(target: np.ndarray, valid: np.ndarray, width: float = 2) -> np.ndarray:
    """`valid` (H,W) bool without the pixels that have a valid pixel of another class within `width` px (Euclidean).

    target (H,W) classes below 255. So `width` pixels go on each side of a straight edge, and a blob of at most
    2 * width pixels across goes as a whole. Edges of no data are no edges. InputError for a width below 1.
    """
    if not 1 <= width < float("inf"):
        raise InputError(f"rim of {width} px: give a width of at least 1")
    reach = np.arange(-int(width), int(width) + 1)
    disc = (reach[:, None] ** 2 + reach**2 <= width**2).astype(np.uint8)
    classes = target.astype(np.uint8)
    largest = cv2.dilate(np.where(valid, classes, np.uint8(0)), disc)
    least = cv2.erode(np.where(valid, classes, np.uint8(255)), disc)
    return valid & (largest == least)
