"""Tiles that overlap: every pixel of their raster once."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

PLACE = ["raster", "y", "x", "height", "width"]


def own_pixels(rows: pd.DataFrame) -> Iterator[tuple[int, np.ndarray | None]]:
    """(number of a row, bool (h,w) of the pixels that no tile given before has, None where these are all of it).

    rows: raster ("" or a height of -1: unknown, which overlaps nothing), y, x, height, width. Tiles come first that
    overlap none before, so that of tiles cut every half side a quarter has all pixels but those of the rim; tiles
    without own ones are left out. Memory is that of a tile.
    """
    if not set(PLACE) <= set(rows):
        yield from ((index, None) for index in range(len(rows)))
        return
    name = rows["raster"].astype(str).to_numpy()
    low = rows[["y", "x"]].to_numpy(np.int64)
    high = low + rows[["height", "width"]].to_numpy(np.int64)
    known = (name != "") & (high > low).all(1)

    def shared(index: int, others: list[int]) -> np.ndarray:
        """Those of the others that have pixels of the tile."""
        others = np.array(others, int)
        meets = (low[others] < high[index]) & (low[index] < high[others])
        return others[meets.all(1) & (name[others] == name[index]) & known[others] & known[index]]

    given, later = [], []
    for index in range(len(rows)):
        if len(shared(index, given)):
            later.append(index)
            continue
        given.append(index)
        yield index, None
    for index in later:
        own = np.ones(high[index] - low[index], bool)
        for other in shared(index, given):
            (y, x), (end_y, end_x) = (np.maximum(edge - low[index], 0) for edge in (low[other], high[other]))
            own[y:end_y, x:end_x] = False
        given.append(index)
        if own.any():
            yield index, own


def counts_once(rows: pd.DataFrame, counts: np.ndarray, recount: Callable) -> np.ndarray:
    """(K,K) counts of every pixel once. counts: (n,K,K) of the tiles; recount(number, own) -> (K,K) of those pixels."""
    parts = [counts[index] if own is None else recount(index, own) for index, own in own_pixels(rows)]
    return np.sum(parts, axis=0)
