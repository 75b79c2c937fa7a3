"""Near-duplicate photos: a perceptual hash of 64 bits and the pairs that lie on both sides of a split.

The hash is the sign pattern of the low frequencies of the photo (Zauner, Implementation and benchmarking of perceptual
image hash functions, 2010): JPEG encoding, scaling and small changes of brightness flip a few bits at most (pasture
photos: JPEG quality 30 up to 2, a crop of 1 % up to 6), while unrelated photos differ in about 32 (91 real ones: no
pair in fewer than 18).
"""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

BITS = 64
SIDE = 32


def photo_hash(image) -> np.ndarray:
    """(64,) bool hash of a uint8 image (H, W, 3) RGB or (H, W).

    The photo is shrunk to 32x32 grey pixels; bits: is each of 64 low-frequency coefficients of the cosine transform
    above their median? The average brightness and all frequencies that do not vary along x are left out.
    """
    grey = image if image.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, 1:9].ravel()
    return low > np.median(low)


def hash_photos(paths, read, *, threads: int = 4) -> np.ndarray:
    """(n, 64) bool hashes of the files `paths`, read by `read(path) -> uint8 image`; errors of `read` are passed on."""
    with ThreadPoolExecutor(threads) as pool:
        hashes = pool.map(lambda path: photo_hash(read(path)), paths)
        return np.array(
            list(tqdm(hashes, total=len(paths), desc="photo hashes", unit="photo", leave=False)), bool
        ).reshape(-1, BITS)


def distances(first, second) -> np.ndarray:
    """(n, m) int32 Hamming distances of bool hashes (n, 64) and (m, 64): a product of +-1 matrices, exact."""
    a, b = np.where(first, 1, -1).astype(np.float32), np.where(second, 1, -1).astype(np.float32)
    return ((a.shape[1] - a @ b.T) / 2).astype(np.int32)


def near_duplicates(hashes, ids, sides, *, max_distance: int = 8, block: int = 1024) -> pd.DataFrame:
    """Pairs of different `sides` (folds, groups, train and test) whose hashes differ in at most max_distance bits.

    hashes: (n, 64) bool; ids, sides: (n,). Gives id_a, id_b, side_a, side_b, distance, nearest first; each pair once,
    in the order of the rows. Memory: block x n distances at a time.
    """
    ids, sides = np.asarray(ids), np.asarray(sides)
    found = []
    for start in tqdm(range(0, len(ids), block), desc="near-duplicates", leave=False, disable=len(ids) <= block):
        distance = distances(hashes[start : start + block], hashes)
        rows = np.arange(start, start + len(distance))
        close = (distance <= max_distance) & (rows[:, None] < np.arange(len(ids))) & (sides[rows][:, None] != sides)
        a, b = np.nonzero(close)
        found += list(zip(ids[rows[a]], ids[b], sides[rows[a]], sides[b], distance[a, b].tolist(), strict=True))
    pairs = pd.DataFrame(found, columns=["id_a", "id_b", "side_a", "side_b", "distance"])
    return pairs.sort_values("distance", kind="stable", ignore_index=True)


def duplicate_lines(pairs: pd.DataFrame, noun: str) -> list[str]:
    """The pairs of `near_duplicates` in words, the count first; sides are folds, -1 for test."""
    lines = [f"near-duplicate {noun} across folds or in train and test: {len(pairs)}"]
    return lines + [
        f"  {p.id_a} (fold {p.side_a:.0f}) and {p.id_b} (fold {p.side_b:.0f}): {p.distance} of 64 bits"
        for p in pairs.itertuples()
    ]
