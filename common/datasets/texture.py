"""Texture of a band: properties of the grey-level co-occurrence matrix (GLCM) of the window around every pixel.

As scikit-image's graycomatrix(window, [distance], angles, levels, symmetric=True, normed=True) and the mean over the
angles of its graycoprops (Haralick, Shanmugam, Dinstein 1973), without ever writing a matrix down: what is a sum over
pairs of pixels is a box filter of a map of pairs; what needs the counts of the matrix (ASM, energy, entropy) follows
them while the window slides, one column of pairs out and one in.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from math import cos, radians, sin

import cv2
import numpy as np

from common.errors import InputError

TEXTURE_VERSION = 1  # of the values, for what is cached
PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "ASM", "energy", "entropy", "correlation", "mean", "variance",
              "std")  # fmt: skip
LEVELS = (8, 16, 32, 64)
WINDOWS = (3, 5, 7, 9, 11, 13, 15)
ANGLES = (0, 45, 90, 135)
COUNTED = {"ASM", "energy", "entropy"}  # properties that are no sum over pairs
PAIR_MAPS = {
    "squares of differences": lambda a, b: (a - b) ** 2,
    "differences": lambda a, b: np.abs(a - b),
    "closeness": lambda a, b: 1 / (1 + (a - b) ** 2),
    "sum": lambda a, b: a + b,
    "squares": lambda a, b: a * a + b * b,
    "products": lambda a, b: a * b,
}
NEEDED = {"contrast": {"squares of differences"}, "dissimilarity": {"differences"}, "homogeneity": {"closeness"},
          "mean": {"sum"}, "variance": {"sum", "squares"}, "std": {"sum", "squares"},
          "correlation": {"sum", "squares", "products"}}  # fmt: skip
VALUES = {  # of the sums s over the n pairs of a window; the symmetric matrix has each pair as (a, b) and as (b, a)
    "contrast": lambda s, n: s["squares of differences"] / n,
    "dissimilarity": lambda s, n: s["differences"] / n,
    "homogeneity": lambda s, n: s["closeness"] / n,
    "ASM": lambda s, n: s["squared counts"] / (4 * n * n),
    "energy": lambda s, n: np.sqrt(s["squared counts"]) / (2 * n),
    "entropy": lambda s, n: s["entropy"],
    "mean": lambda s, n: s["sum"] / (2 * n),
    "variance": lambda s, n: _variance(s, n),
    "std": lambda s, n: np.sqrt(_variance(s, n)),
    "correlation": lambda s, n: _correlation(s, n),
}


def quantise(band: np.ndarray, low: float, high: float, levels: int) -> np.ndarray:
    """uint8 grey levels 0..levels-1 of a band: `levels` equal steps from low to high, values outside at the ends.

    A value that is not a number is at level 0. InputError unless low < high.
    """
    if not low < high:
        raise InputError(f"texture: grey levels from {low} to {high} are empty; give a low end below the high end")
    scaled = (np.asarray(band, np.float32) - np.float32(low)) * np.float32(levels / (high - low))
    return np.clip(np.nan_to_num(scaled, nan=0.0), 0, levels - 1).astype(np.uint8)


def glcm(
    band: np.ndarray,
    *,
    low: float,
    high: float,
    properties: tuple[str, ...] = ("contrast", "energy"),
    levels: int = 32,
    window: int = 7,
    angles: tuple[int, ...] = ANGLES,
    distance: int = 1,
    threads: int = 1,
) -> np.ndarray:
    """float32 (P, H, W): properties of the GLCM of the window around every pixel of a band (H, W), mean over angles.

    low, high: ends of the grey levels (`quantise`); window: odd side in pixels; angles: degrees, of ANGLES; distance:
    of a pair, in pixels, as scikit-image rounds it. The band is reflected at its border. threads: of the counted
    properties; the result does not depend on them. InputError for a property, level count or window not offered.
    """
    _check(properties, levels, window, angles, distance)
    height, width = band.shape
    grey = np.pad(quantise(band, low, high, levels), window // 2, mode="reflect")
    result = np.zeros((len(properties), height, width), np.float64)
    for angle in angles:
        down, right = round(sin(radians(angle)) * distance), round(cos(radians(angle)) * distance)
        pairs = (window - abs(down)) * (window - abs(right))
        first, second = _pairs(grey, down, right)
        sums = _pair_sums(first, second, properties, (window - abs(down), window - abs(right)), (height, width))
        if COUNTED & set(properties):
            size = (window - abs(down), window - abs(right))
            sums |= _counted(first, second, levels, size, (height, width), "entropy" in properties, threads)
        for place, name in enumerate(properties):
            result[place] += VALUES[name](sums, pairs)
    return (result / len(angles)).astype(np.float32)


def _check(properties, levels, window, angles, distance) -> None:
    offered = {"property": (properties, PROPERTIES), "level count": ([levels], LEVELS), "window": ([window], WINDOWS),
               "angle": (angles, ANGLES)}  # fmt: skip
    for what, (given, known) in offered.items():
        wrong = [value for value in given if value not in known]
        if wrong or not len(given):
            said = f"{what} {wrong[0]} is not offered" if wrong else f"no {what} given"
            raise InputError(f"texture: {said}; choose from {', '.join(map(str, known))}")
    if not 1 <= distance < window:
        raise InputError(f"texture: distance {distance} does not fit a window of {window}; give 1 to {window - 1}")


def _pairs(grey: np.ndarray, down: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """The first and second pixel of every pair: two views of the same shape. down >= 0; right may be negative."""
    height, width = grey.shape[0] - down, grey.shape[1] - abs(right)
    start, end = max(-right, 0), max(right, 0)
    return grey[:height, start : start + width], grey[down:, end : end + width]


def _pair_sums(first, second, properties, size, shape) -> dict[str, np.ndarray]:
    """{name of PAIR_MAPS: float64 (H, W) sum over the pairs of each window}; sums of integers are exact."""
    first, second, found = first.astype(np.float32), second.astype(np.float32), {}
    for name in set().union(*(NEEDED.get(name, set()) for name in properties)):
        boxes = cv2.boxFilter(PAIR_MAPS[name](first, second), cv2.CV_64F, size[::-1], anchor=(0, 0), normalize=False)
        found[name] = boxes[: shape[0], : shape[1]]
    return found


def _variance(s, n):
    return np.maximum(2 * n * s["squares"] - s["sum"] ** 2, 0) / (4 * n * n)


def _correlation(s, n):
    """1 where all pixels of the pairs are equal, as in scikit-image."""
    spread = 2 * n * s["squares"] - s["sum"] ** 2
    product = 4 * n * s["products"] - s["sum"] ** 2
    return np.divide(product, spread, out=np.ones_like(spread), where=spread > 0)


def _counted(first, second, levels: int, size, shape, entropy: bool, threads: int) -> dict[str, np.ndarray]:
    """{"squared counts": float64 (H, W) sum of the squares of the symmetric matrix's counts, "entropy": the same shape
    or None}."""
    squares, entropies = np.zeros(shape), np.zeros(shape) if entropy else None
    gains = _entropy_gains(size[0] * size[1]) if entropy else None
    places = np.multiply(first, levels, dtype=np.uint16) + second
    codes = np.ascontiguousarray(_codes(levels).ravel().take(places).T)
    edges = np.linspace(0, shape[0], threads + 1).astype(int).tolist()
    work = functools.partial(_compiled(), codes, size[0], size[1], levels, gains, squares, entropies)
    if threads == 1:
        work(0, shape[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, edges[:-1], edges[1:]))
    return {"squared counts": squares, "entropy": entropies}


@functools.cache
def _codes(levels: int) -> np.ndarray:
    """(levels, levels) uint16 number of an unordered pair of grey levels: below `levels` where both are the same."""
    codes = np.zeros((levels, levels), np.uint16)
    rows, columns = np.triu_indices(levels, 1)
    codes[rows, columns] = codes[columns, rows] = levels + np.arange(len(rows))
    np.fill_diagonal(codes, np.arange(levels))
    return codes


@functools.cache
def _entropy_gains(pairs: int) -> np.ndarray:
    """(2, pairs + 1): what the entropy gains when a count of pairs rises from c to c + 1, of unlike and of like levels.

    A pair of unlike levels fills two entries of the symmetric matrix, one of like levels counts twice in one entry.
    """
    count = np.arange(1, pairs + 2)
    unlike = np.append(0, -count / pairs * np.log(count / (2 * pairs)))
    like = np.append(0, -count / pairs * np.log(count / pairs))
    return np.diff(np.stack([unlike, like]), axis=1)


@functools.cache
def _compiled():
    """The sliding counts as machine code, made once a process: a second, and no files a read-only disk could refuse."""
    import numba  # a third of a second that a model without texture need not wait for

    return numba.njit(nogil=True)(_slide)


def _slide(codes, high, wide, levels, gains, squares, entropies, first_row, last_row):
    """Fills rows of `squares` and, where it is not None, `entropies` from pair codes (width, height), transposed so
    that a column of a window lies together; windows of high x wide pairs. Numba leaves the branches of a None out."""
    table = np.zeros(levels * (levels + 1) // 2, np.int32)
    width = squares.shape[1]
    for y in range(first_row, last_row):
        square, entropy = 0, 0.0
        for x in range(width + wide - 1):
            if x >= wide:
                for r in range(high):
                    code = codes[x - wide, y + r]
                    count = table[code] - 1
                    table[code] = count
                    square -= (4 * count + 2) * (2 if code < levels else 1)
                    if gains is not None:
                        entropy -= gains[1 if code < levels else 0, count]
            for r in range(high):
                code = codes[x, y + r]
                count = table[code]
                table[code] = count + 1
                square += (4 * count + 2) * (2 if code < levels else 1)
                if gains is not None:
                    entropy += gains[1 if code < levels else 0, count]
            if x >= wide - 1:
                squares[y, x - wide + 1] = square
                if entropies is not None:
                    entropies[y, x - wide + 1] = entropy
        for x in range(width - 1, width + wide - 1):
            for r in range(high):
                table[codes[x, y + r]] = 0
