"""Folds of tiles that touch: contiguous blocks of a mosaic, so that no tile is judged by a model that saw its border.

A block is a connected region of tiles; annealing moves and swaps tiles at the borders of blocks.
"""

import math

import numpy as np
import pandas as pd
from rasterio.transform import array_bounds
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

from common.datasets.balance import balance_matrix, balanced_groups
from common.datasets.folds import FOLDS
from common.datasets.glacier_files import profile_of
from common.errors import InputError

LEAKS = (
    "scheme random leaks: tiles on both sides touch and share their glaciers, so that scores come out too good;"
    " for comparison only"
)
# one more straddling pair of 50 costs .08; a fold that is a tile too large or small of 20 .25; a region in two parts 1
STRADDLE, SIZE, SPLIT, EMPTY = 4.0, 100.0, 1.0, 10.0
CUTS, RESTARTS, FEWER, STEPS, STEPS_A_TILE = 30, 12, 3, 1500, 15  # a mosaic of more than 100 tiles needs fewer restarts
HOT, COLD = 3.0, 0.05  # first and last temperature, in units of the cost of one straddling pair


def blocks(rows, *, folds, seed, outputs):
    """One connected block of the mosaic for each fold, alike in size and classes; scenes where rows bring a group."""
    if "group" in rows and (rows["row"] < 0).all():
        return scenes(rows, folds=folds, seed=seed, outputs=outputs)
    fold = search_blocks(bounds_of(rows), class_matrix(rows, outputs), presence(rows, outputs), folds, seed)
    return fold, np.array([f"block{k}" for k in fold.tolist()])


def stripes(rows, *, folds, **_):
    """Whole rows of the mosaic, from north to south, cut where the folds come nearest to the same size."""
    south = -bounds_of(rows)[:, 3]
    names, index, counts = np.unique(south, return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2) / len(rows)
    fold = np.floor(middle * folds).astype(int)[index]
    if len(set(fold.tolist())) < folds:
        raise InputError(f"--scheme rows: {len(names)} rows of tiles cannot fill {folds} folds; choose fewer --folds")
    return fold, np.array([f"row{k}" for k in index.tolist()])


def scenes(rows, *, folds, seed, outputs):
    """Whole scenes (the column `group`), dealt to folds by the balance search over class shares and presence."""
    if "group" not in rows:
        raise InputError("--scheme scenes: the tiles have no scene (HKH slices do); choose --scheme blocks")
    group = rows["group"].to_numpy(str)
    found = len(set(group.tolist()))
    if found < folds:
        raise InputError(f"the data has {found} scenes, too few for {folds} folds; choose fewer with --folds")
    return balanced_groups(class_matrix(rows, outputs), group, folds, seed=seed, restarts=40), group


def random(rows, *, folds, seed, outputs):
    """Single tiles by the same balance search: leaks, for comparison only."""
    print(LEAKS)
    group = rows["id"].to_numpy(str)
    return balanced_groups(class_matrix(rows, outputs), group, folds, seed=seed, restarts=40), group


SCHEMES = {"blocks": blocks, "rows": stripes, "scenes": scenes, "random": random}


def make_folds(rows, *, scheme, folds=None, seed=42, outputs):
    """(fold (n,) int 0..K-1, group (n,) str) of tiles by a scheme of SCHEMES; group: the block, row, scene or tile.

    rows: id, path, row, col (-1: unknown, then the georeference of `path` tells where) and a share per output;
    folds: how many (None: 5). The answer does not depend on the order of the rows. InputError: too few tiles or scenes,
    tiles that lie nowhere, a fold without a class that other folds have.
    """
    if scheme not in SCHEMES:
        raise InputError(f"--scheme {scheme} is unknown; choose one of {', '.join(sorted(SCHEMES))}")
    count = FOLDS if folds is None else int(folds)
    if count < 2 or count > len(rows):
        raise InputError(f"--folds {count}: choose 2 to {len(rows)}, the number of tiles")
    outputs = tuple(outputs)
    check_classes(rows, count, outputs)
    order = np.argsort(rows["id"].to_numpy(str), kind="stable")
    sorted_fold, sorted_group = SCHEMES[scheme](rows.iloc[order], folds=count, seed=seed, outputs=outputs)
    fold, group = np.empty(len(rows), int), np.empty(len(rows), object)
    fold[order], group[order] = sorted_fold, sorted_group
    for name in outputs:
        lacking = sorted(set(range(count)) - set(fold[rows[name].to_numpy() > 0].tolist()))
        if lacking and (rows[name] > 0).any():
            raise InputError(
                f"--scheme {scheme}: fold {lacking[0]} of {count} has no {name}, so that its score would not count it;"
                " choose fewer --folds or another --seed or --scheme"
            )
    return fold, group.astype(str)


def check_classes(rows, folds, outputs) -> None:
    """InputError where a class is in fewer tiles than there are folds (a class that no tile has is no fold's fault)."""
    for name in outputs:
        tiles = int((rows[name] > 0).sum())
        if 0 < tiles < folds:
            raise InputError(
                f"{name} is in {tiles} of {len(rows)} tiles, so that {folds - tiles} of {folds} folds would have none;"
                f" choose fewer --folds{f' (at most {tiles})' if tiles > 1 else ' or other outputs'}"
            )


def rare(outputs) -> list[str]:
    """The classes whose presence is stratified: all after the first two; of two classes none (its share counts)."""
    return list(outputs[2:])


def presence(rows, outputs) -> np.ndarray:
    """bool (n, K) whether a tile holds a class; a class that no tile holds counts as held."""
    held = rows[list(outputs)].to_numpy(float) > 0
    return held | ~held.any(0)


def class_matrix(rows, outputs) -> np.ndarray:
    """(n, p) float64 centred columns to balance: presence of rare classes, shares of all but background (in s.d.)."""
    return balance_matrix(rows, shares=(), targets=list(outputs[1:]), zeros=rare(outputs))


def bounds_of(rows) -> np.ndarray:
    """(n, 4) float64 left, bottom, right, top of tiles: in tiles by row and col, else in the units of their CRS.

    InputError: tiles without either, in differing CRS, or all at one place.
    """
    if (rows["row"] >= 0).all():
        row, col = rows["row"].to_numpy(float), rows["col"].to_numpy(float)
        return np.stack([col, -row - 1, col + 1, -row], axis=1)
    remedy = "name tiles RR_CC, or choose --scheme random (which leaks) or scenes"
    found, systems = [], set()
    for path in rows["path"]:
        profile = profile_of(path)
        if profile["crs"] is None:
            raise InputError(f"{path}: neither the name nor a georeference says where the tile lies; {remedy}")
        found.append(array_bounds(profile["height"], profile["width"], profile["transform"]))
        systems.add(str(profile["crs"]))
    bounds = np.array(found)
    if len(systems) > 1 or len(np.unique(bounds, axis=0)) == 1:
        what = "all at one place" if len(systems) == 1 else f"in {len(systems)} coordinate systems"
        raise InputError(f"{rows['path'].iloc[0]} and the other tiles are {what}; {remedy}")
    return bounds


def touching(bounds: np.ndarray) -> np.ndarray:
    """bool (n, n): tiles whose rectangles share an edge, a corner or an area; never a tile with itself."""
    slack = 0.01 * (bounds[:, 2:] - bounds[:, :2]).min()  # coordinates are rounded
    low, high = bounds[:, :2] - slack / 2, bounds[:, 2:] + slack / 2
    near = ((low[:, None] <= high[None]) & (low[None] <= high[:, None])).all(2)
    return near & ~np.eye(len(bounds), dtype=bool)


def linked(bounds: np.ndarray, near: np.ndarray) -> list[list[int]]:
    """Neighbours of each tile: those it touches and, across gaps, those of the shortest tree over all tiles."""
    centre = (bounds[:, :2] + bounds[:, 2:]) / 2
    scale = (bounds[:, 2:] - bounds[:, :2]).mean()
    distance = squareform(pdist(centre)) / scale + 1e-6  # the tree takes 0 for no edge
    tree = minimum_spanning_tree(np.where(near, 1e-3, distance)).toarray() > 0
    return [np.flatnonzero(line).tolist() for line in near | tree | tree.T]


def search_blocks(bounds, matrix, held, folds, seed) -> np.ndarray:
    """Fold (n,) of every tile: connected, alike in size and classes, as few touching pairs apart as found.

    bounds (n, 4); matrix (n, p) of `class_matrix`; held bool (n, K). Folds are numbered from north-west by the first
    tile in reading order. The best of many cuts of the mosaic by straight lines are annealed.
    """
    near = touching(bounds)
    links, rng = linked(bounds, near), np.random.default_rng(seed)
    n = len(bounds)
    starts = [bisect(bounds, np.arange(n), folds, rng, angle=a) for a in [None] * CUTS + [*rng.uniform(0, np.pi, CUTS)]]
    starts.sort(key=lambda fold: sum(state_costs(fold, near, links, matrix, held, folds)))
    best, lowest = None, math.inf
    for start in starts[: RESTARTS if n <= 100 else FEWER]:
        found, cost = anneal(start, near, links, matrix, held, folds, rng)
        if cost < lowest - 1e-9:
            best, lowest = found, cost
    reading = np.lexsort((bounds[:, 0], -bounds[:, 3]))
    number = {k: position for position, k in enumerate(dict.fromkeys(best[reading].tolist()))}
    return np.array([number[k] for k in best.tolist()])


def state_costs(fold, near, links, matrix, held, folds) -> list[float]:
    """The parts of a state's cost: of the pairs apart, then of each fold."""
    apart = STRADDLE * straddling(near, fold) / max(near.sum() / 2, 1)
    return [apart] + [fold_cost(np.flatnonzero(fold == k), links, matrix, held, len(fold), folds) for k in range(folds)]


def bisect(bounds, members, folds, rng, first=0, angle=None) -> np.ndarray:
    """Fold of every tile by recursive halving; sizes differ by one at most.

    angle: of all cuts (radians), which gives stripes; None draws one for each cut.
    """
    fold = np.full(len(bounds), first)
    if folds == 1:
        return fold
    turn = rng.uniform(0, np.pi) if angle is None else angle
    along = (bounds[members, :2] + bounds[members, 2:]) @ np.array([np.cos(turn), np.sin(turn)])
    ordered, left = members[np.argsort(along, kind="stable")], folds // 2
    cut = round(len(members) * left / folds)
    for part, count, start in ((ordered[:cut], left, first), (ordered[cut:], folds - left, first + left)):
        fold[part] = bisect(bounds, part, count, rng, start, angle)[part]
    return fold


def anneal(fold, near, links, matrix, held, folds, rng):
    """(fold, cost) of the best state seen, by proposals of `propose`; a proposal changes the cost of two folds only."""
    n, pairs = len(fold), max(near.sum() / 2, 1)
    apart, *parts = state_costs(fold, near, links, matrix, held, folds)
    cost = apart + sum(parts)
    best, lowest = fold, cost
    steps = max(STEPS, STEPS_A_TILE * n)
    for step in range(steps):
        heat = HOT * (COLD / HOT) ** (step / steps) * STRADDLE / pairs
        tried, pair = propose(fold, links, rng)
        if pair is None:
            continue
        changed = {k: fold_cost(np.flatnonzero(tried == k), links, matrix, held, n, folds) for k in pair}
        after = STRADDLE * straddling(near, tried) / pairs
        rise = after - apart + sum(changed[k] - parts[k] for k in pair)
        if rise > 0 and rng.random() >= math.exp(-rise / heat):
            continue
        fold, apart, cost = tried, after, cost + rise
        for k in pair:
            parts[k] = changed[k]
        if cost < lowest - 1e-9:
            best, lowest = fold, cost
    return best, lowest


def propose(fold, links, rng):
    """(new fold (n,), the two folds that change): a tile goes to a neighbour's fold, mostly in exchange for another.

    (fold, None) where the tile and the neighbour drawn are in one fold already.
    """
    a = int(rng.integers(len(fold)))
    b = links[a][int(rng.integers(len(links[a])))]
    old, to = int(fold[a]), int(fold[b])
    if old == to:
        return fold, None
    tried = fold.copy()
    tried[a] = to
    if rng.random() < 0.6:
        back = [i for i in np.flatnonzero(fold == to).tolist() if any(fold[j] == old for j in links[i])]
        tried[back[int(rng.integers(len(back)))]] = old
    return tried, (old, to)


def straddling(near, fold) -> int:
    """Number of pairs of touching tiles that are in different folds."""
    return int(near[fold[:, None] != fold[None]].sum()) // 2


def fold_cost(members, links, matrix, held, n, folds) -> float:
    """Cost of one fold (members: indices of its tiles): size, unlike classes, parts, absent classes."""
    if not len(members):
        return math.inf
    unlike = float((matrix[members].mean(0) ** 2).sum())
    size = SIZE * (len(members) / n - 1 / folds) ** 2
    absent = held.shape[1] - int(held[members].any(0).sum())
    return unlike + size + SPLIT * (count_parts(members.tolist(), links) - 1) + EMPTY * absent


def count_parts(members: list[int], links) -> int:
    """Number of connected parts of a set of tiles."""
    left, parts = set(members), 0
    while left:
        parts, queue = parts + 1, [left.pop()]
        while queue:
            found = [j for j in links[queue.pop()] if j in left]
            left.difference_update(found)
            queue.extend(found)
    return parts


def describe_folds(rows, fold, group, *, outputs) -> str:
    """Text: a line per fold (tiles, groups, mean share of each class, tiles with each rare class), and the neighbours.

    The last line says how many pairs of tiles that touch are in different folds, where the tiles' places are known.
    """
    fold, group, lines = np.asarray(fold), np.asarray(group), []
    for k in [*sorted(set(fold.tolist())), "all"]:
        held = np.ones(len(fold), bool) if k == "all" else fold == k
        line = {"fold": k, "tiles": int(held.sum()), "groups": len(set(group[held].tolist()))}
        line |= {f"{name} %": f"{100 * rows.loc[held, name].mean():.3g}" for name in outputs}
        lines.append(line | {f"with {name}": int((rows.loc[held, name] > 0).sum()) for name in rare(outputs)})
    text = pd.DataFrame(lines).to_string(index=False)
    try:
        near = touching(bounds_of(rows))
    except InputError:
        return text + "\nneighbours: unknown, the tiles have no place"
    pairs, sizes = int(near.sum()) // 2, np.unique(fold, return_counts=True)[1]
    chance = pairs * (1 - sum(sizes**2 - sizes) / (len(fold) * (len(fold) - 1)))
    return text + (
        f"\nneighbours: {straddling(near, fold)} of {pairs} pairs of touching tiles are in different folds"
        f" (a random split: {chance:.0f})"
    )
