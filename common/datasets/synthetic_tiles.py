"""Synthetic tiles that bring a rare class to a share of the labelled pixels: one reading of all tiles, then SMOTE.

They are a data folder like any other (images/, labels/, bands.txt), made once from the content of the tiles and the
settings, and found again in the cache. synthetic.csv in it says what every tile was made of.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.cache import cached_folder
from common.datasets.crops import IGNORED
from common.datasets.draws import generator
from common.datasets.inputs import valid_pixels
from common.datasets.smote import describe, mix_windows, nearest_windows, smote, windows_around

VERSION = 2  # of what is stored
MOST_PIXELS = 50_000  # of the class that are mixed with each other; of more, so many are drawn
MOST_WINDOWS = 4_096
SHARED = 0.5  # of two windows that share more of their ground than this only that of more pixels of the class is kept
MEMORY = 2**29  # bytes of tiles that are held while windows are mixed
DRAWS = 3_000  # the decisions of common.datasets.draws that this file takes
TABLE = "synthetic.csv"

Read = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Scan:
    """What one reading of n tiles found: labelled pixels per class (n, K), hashes of the content, and windows around
    the class: columns tile, y, x (in the tile), own, labelled (pixels), ground, down, right (place), with descriptors
    (windows, 2C)."""

    counts: np.ndarray
    hashes: list[str]
    windows: pd.DataFrame
    descriptors: np.ndarray


def scan_tiles(rows, read: Read, *, classes: int, rare: int, side: int, windows: bool) -> Scan:
    """Every tile once: its labelled pixels, the hash of its content, and its windows if they are asked for."""
    counts, hashes, found, descriptors = [], [], [], []
    for index in range(len(rows)):
        tile, label = read(index)
        label = np.where(valid_pixels(tile), label, IGNORED).astype(np.uint8)
        counts.append(np.bincount(label[label != IGNORED], minlength=classes))
        hashes.append(hash_arrays(tile, label))
        if not windows:
            continue
        ground, down, right = place_of(rows, index)
        for y, x in windows_around(label == rare, side):
            box = slice(y, y + side), slice(x, x + side)
            own, labelled = int((label[box] == rare).sum()), int((label[box] != IGNORED).sum())
            found.append((index, y, x, own, labelled, ground, down + y, right + x))
            descriptors.append(describe(tile[:, *box], valid_pixels(tile[:, *box])))
    names = ["tile", "y", "x", "own", "labelled", "ground", "down", "right"]
    return Scan(np.array(counts), hashes, pd.DataFrame(found, columns=names), np.array(descriptors))


def hash_arrays(*arrays: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def place_of(rows: pd.DataFrame, index: int) -> tuple[str, int, int]:
    """(ground, y, x): the raster of a tile and its first pixel there; a ground of its own where that is not known."""
    if {"raster", "y", "x"} <= set(rows) and rows["raster"][index]:  # y and x are negative north and west
        return f"raster {rows['raster'][index]}", int(rows["y"][index]), int(rows["x"][index])
    return f"tile {index}", 0, 0


def synthetic_folder(rows, read: Read, scan: Scan, counts: np.ndarray, settings: dict, root: Path) -> Path:
    """The folder of synthetic tiles that bring labelled pixels `counts` (K,) to the target; made if it is not there.

    Its name is a hash of all that decides the content: every tile as read, the places, ids and settings. TABLE in it
    has no line where no window can raise the share.
    """
    places = [place_of(rows, index) for index in range(len(rows))]
    inputs = {"version": VERSION, "tiles": scan.hashes, "ids": list(rows["id"]), "places": places,
              "counts": counts.tolist()} | settings  # fmt: skip

    def build(folder: Path) -> None:
        for name in ("images", "labels"):
            (folder / name).mkdir()
        (folder / "bands.txt").write_text("\n".join(settings["bands"]) + "\n")
        lines = [
            write_tile(folder, number, *made, settings)
            for number, made in enumerate(MODES[settings["mode"]](rows, read, scan, counts, settings))
        ]
        names = list(lines[0]) if lines else ["id", *(f"n_{output}" for output in settings["outputs"])]
        pd.DataFrame(lines, columns=names).to_csv(folder / TABLE, index=False)

    return cached_folder(root, "oversampled", inputs, build)


def write_tile(folder: Path, number: int, tile, label, source: dict, settings: dict) -> dict:
    """Write one synthetic tile: NaN where there is no data, raw label values; a line of the table."""
    name = f"synthetic-{number:05d}"
    raw, tile = np.full(256, IGNORED, np.int64), tile.copy()
    raw[: len(settings["raw"])] = settings["raw"]
    if IGNORED in settings["raw"]:  # 255 is a class here: what is not known must be without data
        tile[:, label == IGNORED] = 0
        raw[IGNORED] = settings["raw"][0]
    tile[:, ~valid_pixels(tile)] = np.nan
    np.save(folder / "images" / f"{name}.npy", tile.astype(np.float32))
    kind = np.result_type(np.min_scalar_type(raw.min()), np.min_scalar_type(raw.max()))
    np.save(folder / "labels" / f"{name}.npy", raw[label].astype(kind))
    counts = np.bincount(label[label != IGNORED], minlength=len(settings["outputs"]))
    return {"id": name} | source | {f"n_{output}": int(counts[c]) for c, output in enumerate(settings["outputs"])}


def make_windows(rows, read: Read, scan: Scan, counts: np.ndarray, settings: dict):
    """(tile, label, source) of windows mixed with one of their k nearest, until the target is met.

    None at all where no window both holds more of the class than the target and has another to be mixed with.
    """
    side, k, rare, target = (settings[name] for name in ("side", "k", "rare", "target"))
    random = generator(settings["seed"], 0, 0, DRAWS)
    windows, descriptors = thin_windows(scan.windows, scan.descriptors, side, random)
    place = windows[["down", "right"]].to_numpy()
    ground = pd.factorize(windows["ground"])[0]
    apart = lambda i: (ground != ground[i]) | (np.abs(place - place[i]).max(axis=1) >= side)  # noqa: E731
    near = nearest_windows(descriptors, k, apart)
    gain = (windows["own"] - target * windows["labelled"]).to_numpy()
    bases = [index for index in range(len(windows)) if gain[index] > 0 and len(near[index])]
    recent = functools.lru_cache(maxsize=max(8, MEMORY // read(0)[0].nbytes))(read)
    short, room = target * counts.sum() - counts[rare], int(scan.counts.sum())
    while bases and short > 0 and room > 0:
        for base in random.permutation(bases):
            other, share = int(random.choice(near[base])), float(random.random())
            (tile, label), (second, _) = (cut(recent, windows.iloc[i], side) for i in (int(base), other))
            source = {"base": rows["id"][windows["tile"][base]], "y": windows["y"][base], "x": windows["x"][base],
                      "other": rows["id"][windows["tile"][other]], "other_y": windows["y"][other],
                      "other_x": windows["x"][other], "share": share}  # fmt: skip
            yield mix_windows(tile, second, share), label, source
            short, room = short - gain[base], room - int(windows["labelled"][base])
            if short <= 0 or room <= 0:
                break


def thin_windows(windows: pd.DataFrame, descriptors: np.ndarray, side: int, random) -> tuple[pd.DataFrame, np.ndarray]:
    """Windows of which no two share more than SHARED of their ground, those of most pixels of the class first; of more
    than MOST_WINDOWS, so many drawn."""
    kept = []
    for _, group in windows.groupby("ground", sort=False):
        order = group.sort_values("own", ascending=False, kind="stable")
        place, chosen = order[["down", "right"]].to_numpy(), []
        for index in range(len(order)):
            common = np.maximum(side - np.abs(place[chosen] - place[index]), 0).prod(axis=1)
            if (common <= SHARED * side**2).all():
                chosen.append(index)
        kept.extend(order.index[chosen])
    kept = np.sort(kept)
    if len(kept) > MOST_WINDOWS:
        kept = np.sort(random.choice(kept, MOST_WINDOWS, replace=False))
    return windows.loc[kept].reset_index(drop=True), descriptors[kept]


def cut(read: Read, window: pd.Series, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(tile (C, side, side), label (side, side)) of a window; no data where the tile ends before it."""
    tile, label = read(int(window["tile"]))
    box = slice(window["y"], window["y"] + side), slice(window["x"], window["x"] + side)
    tile, label = tile[:, *box], np.where(valid_pixels(tile[:, *box]), label[box], IGNORED).astype(np.uint8)
    over = [(0, side - length) for length in label.shape]
    return np.pad(tile, [(0, 0), *over]), np.pad(label, over, constant_values=IGNORED)


def make_pixels(rows, read: Read, scan: Scan, counts: np.ndarray, settings: dict):
    """(tile, label, source) of pixels of the class mixed by SMOTE and packed row by row: no neighbourhood is kept."""
    side, rare, target = settings["side"], settings["rare"], settings["target"]
    own = scan.counts[:, rare]
    kept = np.arange(own.sum())
    if len(kept) > MOST_PIXELS:
        kept = np.sort(generator(settings["seed"], 0, 0, DRAWS + 1).choice(kept, MOST_PIXELS, replace=False))
    points = []
    for index, end in enumerate(np.cumsum(own)):
        inside = kept[(kept >= end - own[index]) & (kept < end)] - (end - own[index])
        if len(inside):
            tile, label = read(index)
            points.append(tile[:, (label == rare) & valid_pixels(tile)].T[inside])
    short = int(np.ceil((target * counts.sum() - counts[rare]) / (1 - target)))
    made = smote(np.concatenate(points), min(short, int(scan.counts.sum())), k=settings["k"], seed=settings["seed"])
    made[~(made != 0).any(axis=1), 0] = np.finfo(np.float32).tiny
    for first in range(0, len(made), side**2):
        part = made[first : first + side**2]
        tile, label = np.zeros((side**2, made.shape[1]), np.float32), np.full(side**2, IGNORED, np.uint8)
        tile[: len(part)], label[: len(part)] = part, rare
        yield tile.T.reshape(-1, side, side), label.reshape(side, side), {}


MODES = {"windows": make_windows, "pixels": make_pixels}
