"""Plain statistics of parts of tiles, by which a classifier may tell one set of tiles from another."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from common.datasets.inputs import valid_pixels

PARTS = 4  # each side of a tile is cut into so many
LEAST = 0.05  # share of a part that must have data


def block_statistics(paths: Iterable[str], read_tile: Callable, bands: Sequence[str]) -> tuple:
    """(values float64 (n, 3 C), names, tile int (n,)): median, spread and roughness of every band in parts of tiles.

    read_tile(path) -> float32 (C,H,W); parts with little data are left out; tile: the number of the path of each line.
    Spread: from the 10th to the 90th percentile; roughness: mean absolute difference of neighbours in a row.
    """
    values, tiles = [], []
    for number, path in enumerate(paths):
        tile = read_tile(path)
        valid = valid_pixels(tile)
        for part, known in zip(parts_of(tile), parts_of(valid[None]), strict=True):
            known = known[0]
            if known.mean() < LEAST:
                continue
            inside = part[:, known].astype(np.float64)
            low, middle, high = np.percentile(inside, (10, 50, 90), axis=1)
            both = known[:, 1:] & known[:, :-1]
            steps = np.abs(np.diff(part.astype(np.float64), axis=2))[:, both]
            rough = steps.mean(axis=1) if both.any() else np.zeros(len(tile))
            values.append(np.concatenate([middle, high - low, rough]))
            tiles.append(number)
    names = [f"{band} {what}" for what in ("median", "spread", "roughness") for band in bands]
    return np.array(values).reshape(-1, len(names)), names, np.array(tiles, int)


def parts_of(tile: np.ndarray) -> list[np.ndarray]:
    """The parts of a tile (C,H,W), row by row."""
    strips = np.array_split(tile, PARTS, axis=1)
    return [part for strip in strips for part in np.array_split(strip, PARTS, axis=2)]
