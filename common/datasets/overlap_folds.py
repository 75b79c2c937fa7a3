"""Folds of tiles that overlap: contiguous blocks of an area, and no pixel on two sides of a split.

Of tiles that share pixels with a tile of another side as few as possible are UNUSED.
"""

import numpy as np
import pandas as pd
import shapely
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from common.datasets.balance import balanced_groups
from common.datasets.blocks import class_matrix, presence, search_blocks
from common.datasets.folds import ALWAYS, FOLDS, TEST, UNUSED
from common.errors import InputError

SIDES = {"train": ALWAYS, "val": 0, "test": TEST}
MOST = 200  # cells that blocks are searched among; more are slow
TRIES = 3  # searches, of which the one that leaves out few tiles and deals the classes evenly counts
LOST = 10.0  # a tenth of the tiles unused counts as much as a fold that is one standard deviation off in a class
KEPT = 1000.0  # what a tile inside its block costs beside one on a border
LEAKS = (
    "scheme random leaks: tiles on both sides overlap or touch, so that scores come out too good; for comparison only"
)


def blocks(rows, near, *, folds, seed, outputs):
    """One connected block of the area for each fold, alike in size and classes; UNUSED where blocks overlap."""
    cell, bounds, laid = cells_of(rows)
    found = len(bounds)
    if found < folds:
        raise InputError(
            f"--folds {folds}: the tiles fill {found} places that do not overlap; choose fewer, or cut smaller tiles"
        )
    names = list(outputs)
    table = rows[names].groupby(cell).mean()
    matrix, held, worth = class_matrix(table, names), presence(table, names), rows[names[1]].to_numpy(float)
    best, lowest = None, np.inf
    for start in range(TRIES if len(near) else 1):
        of_cell = search_blocks(bounds, matrix, held, folds, [seed, start])
        fold = of_cell[cell]
        apart = near[fold[near[:, 0]] != fold[near[:, 1]]]
        fold[cover(apart, lies_inside(laid, fold, bounds, of_cell), worth)] = UNUSED
        cost = cost_of(fold, class_matrix(rows, names), folds)
        if best is None or cost < lowest - 1e-9:
            best, lowest = fold, cost
    return best, np.array(["unused" if k == UNUSED else f"block{k}" for k in best.tolist()], object)


def cost_of(fold, matrix, folds) -> float:
    """What speaks against folds (n,): tiles unused, folds of unlike classes (matrix (n, p)) and of unlike size."""
    cost, used = LOST * (fold == UNUSED).mean(), max((fold >= 0).sum(), 1)
    for k in range(folds):
        held = fold == k
        cost += 100 * (held.sum() / used - 1 / folds) ** 2
        cost += (matrix[held].mean(axis=0) ** 2).sum() if held.any() else 10.0
    return float(cost)


def split(rows, near, *, folds, seed, outputs):
    """train, val and test as the folders say; a tile that overlaps one of val or test (of val: of test) is UNUSED.

    The tiles of val are in groups (`held_groups`), by which what is fitted on them can be judged.
    """
    if folds not in (None, 1):
        raise InputError(f"--folds {folds}: --scheme split makes one validation side; leave --folds out")
    sides = rows["split"].to_numpy(str)
    for name in ("train", "val"):
        if name not in sides:
            raise InputError(f"--scheme split: no labelled tile in the folder {name}; choose --scheme blocks")
    fold = np.array([SIDES.get(name, ALWAYS) for name in sides.tolist()])
    group = sides.astype(object)
    lost = outside(fold, near, TEST) | (outside(fold, near, 0) & (fold != TEST))
    fold[lost], group[lost] = UNUSED, "unused"
    held = fold == 0
    if held.any():
        group[held] = held_groups(rows[held].reset_index(drop=True), seed, outputs)
    return fold, group


def held_groups(rows, seed, outputs) -> np.ndarray:
    """(n,) names of groups of validation tiles: what overlaps or touches, also by way of others, is in one group.

    Where more than half of the tiles hang together, blocks of the area are the groups, so that a fit without a group
    has others to be fitted on; tiles on their borders overlap (`describe_folds` counts the pairs).
    """
    joined = np.concatenate(pairs_of(rows))
    ends = coo_matrix((np.ones(len(joined)), joined.T), shape=(len(rows), len(rows)))
    code = connected_components(ends, directed=False)[1]
    if np.bincount(code).max() > len(rows) / 2:
        cell, bounds, _ = cells_of(rows)
        names, folds = list(outputs), min(FOLDS, len(bounds))
        table = rows[names].groupby(cell).mean()
        code = np.zeros(len(rows), int)
        if folds > 1:
            code = search_blocks(bounds, class_matrix(table, names), presence(table, names), folds, seed)[cell]
    return np.array([f"val{k:04d}" for k in code.tolist()], object)


def random(rows, _near, *, folds, seed, outputs):
    """Single tiles by the balance search over class shares: leaks, for comparison only."""
    print(LEAKS)
    group = rows["id"].to_numpy(str)
    return balanced_groups(class_matrix(rows, list(outputs)), group, folds, seed=seed, restarts=40), group


SCHEMES = {"blocks": blocks, "split": split, "random": random}


def default_scheme(rows) -> str:
    """split where the tiles came in folders train and val, else blocks."""
    return "split" if "split" in rows and {"train", "val"} <= set(rows["split"]) else "blocks"


def make_folds(rows, *, scheme=None, folds=None, seed=42, outputs):
    """(fold (n,) int, group (n,) str) of tiles by a scheme of SCHEMES (None: `default_scheme`); group: the block, the
    folder (of val: `held_groups`), of `random` the tile, "unused".

    rows: id, split, raster, y, x, height, width and a share per output; tiles of a folder test stay TEST by every
    scheme. folds: how many (None: 5). The answer does not depend on the order of the rows. InputError: tiles whose
    place is unknown, too few, a fold without a class that others have, nothing left to train on.
    """
    scheme = scheme or default_scheme(rows)
    if scheme not in SCHEMES:
        raise InputError(f"--scheme {scheme} is unknown; choose one of {', '.join(SCHEMES)}")
    outputs, order = tuple(outputs), np.argsort(rows["id"].to_numpy(str), kind="stable")
    tested = rows["split"].to_numpy(str) == "test" if "split" in rows else np.zeros(len(rows), bool)
    if scheme == "split":
        tested[:] = False
    elif folds is None or not 2 <= folds <= (~tested).sum():
        if folds is not None:
            raise InputError(f"--folds {folds}: choose 2 to {(~tested).sum()}, the number of tiles")
        folds = min(FOLDS, int((~tested).sum()))
    order = order[~tested[order]]
    used = rows.iloc[order].reset_index(drop=True)
    if scheme == "blocks":
        check_places(used)
    fold, group = np.full(len(rows), TEST), np.full(len(rows), "test", object)
    fold[order], group[order] = SCHEMES[scheme](used, pairs_of(used)[0], folds=folds, seed=seed, outputs=outputs)
    if scheme == "blocks" and tested.any():
        lost = outside(fold, pairs_of(rows)[0], TEST)
        fold[lost], group[lost] = UNUSED, "unused"
    check_classes(rows, fold, outputs, scheme)
    return fold, group.astype(str)


def check_places(rows) -> None:
    lost = rows["id"][rows["raster"].astype(str) == ""]
    if len(lost):
        raise InputError(
            f"tile {lost.iloc[0]}: neither tiles.csv, a georeference nor its name (col1_row2) says where it lies"
            f" ({len(lost)} of {len(rows)} tiles); cut the tiles with make_folds.py, or choose --scheme random (which"
            " leaks)"
        )


def check_classes(rows, fold, outputs, scheme) -> None:
    """InputError where a fold, or all that it is trained on, lacks a class that the tiles in use have."""
    shares = rows[list(outputs)].to_numpy(float)
    there = shares[fold > UNUSED].sum(axis=0) > 0
    for k in sorted(set(fold[fold >= 0].tolist())) or [0]:
        trained = (fold != k) & (fold >= 0) | (fold == ALWAYS)
        for held, what in ((fold == k, "to validate"), (trained, "to train on")):
            for name, has, known in zip(outputs, shares[held].sum(axis=0) > 0, there, strict=True):
                if known and not has:
                    raise InputError(
                        f"--scheme {scheme}: fold {k} has no {name} {what}; choose fewer --folds or another --seed or"
                        " --scheme"
                    )


def rectangles(rows) -> np.ndarray:
    """(n, 4) int64 top, left, bottom, right in pixels of the raster."""
    y, x, height, width = (rows[name].to_numpy(np.int64) for name in ("y", "x", "height", "width"))
    return np.stack([y, x, y + height, x + width], axis=1)


def pairs_of(rows) -> tuple[np.ndarray, np.ndarray]:
    """((m, 2) pairs i < j of tiles that share pixels, (p, 2) pairs that only touch, by an edge or a corner).

    Tiles of different rasters do neither, nor do tiles whose place is unknown.
    """
    box, raster = rectangles(rows), rows["raster"].astype(str).to_numpy(object)
    found = [np.empty((0, 2), np.int64)]
    for name in sorted(set(raster.tolist()) - {""}):
        members = np.flatnonzero(raster == name)
        tree = shapely.STRtree(shapely.box(*box[members].T))
        i, j = tree.query(tree.geometries)
        found.append(np.stack([members[i], members[j]], axis=1)[i < j])
    pairs = np.sort(np.concatenate(found), axis=1)
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    a, b = box[pairs[:, 0]], box[pairs[:, 1]]
    shared = (np.maximum(a[:, :2], b[:, :2]) < np.minimum(a[:, 2:], b[:, 2:])).all(axis=1)
    return pairs[shared], pairs[~shared]


def cells_of(rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cell (n,) of each tile, bounds (c, 4) of the cells, bounds (n, 4) of the tiles) that blocks are made of.

    Bounds are left, bottom, right, top in pixels, rasters side by side. A cell is a tile where tiles are few and do
    not overlap; else a square that holds the centres of its tiles, as large as a tile or so large that there are at
    most MOST.
    """
    box, names = rectangles(rows), rows["raster"].astype(str).to_numpy(object)
    _, first, raster = np.unique(names.astype(str), return_index=True, return_inverse=True)
    box -= np.array([np.tile(box[raster == k, :2].min(axis=0), 2) for k in range(len(first))])[raster]
    side = int((box[:, 2:] - box[:, :2]).max())
    shift = raster * (int(box[:, 3].max()) + 10 * side)
    top, left, bottom, right = box.T
    laid = np.stack([left + shift, -bottom, right + shift, -top], axis=1).astype(float)
    if len(rows) <= MOST and not len(pairs_of(rows)[0]):
        return np.arange(len(rows)), laid, laid
    middle = (box[:, :2] + box[:, 2:]) / 2
    while True:
        known, cell = np.unique(np.column_stack([shift, middle // side]), axis=0, return_inverse=True)
        if len(known) <= max(MOST, len(first)):
            break
        side = int(np.ceil(side * 1.25))
    left, top = known[:, 0] + known[:, 2] * side, known[:, 1] * side
    return cell.ravel(), np.stack([left, -top - side, left + side, -top], axis=1), laid


def lies_inside(laid, fold, bounds, of_cell) -> np.ndarray:
    """bool (n,): whether a tile (bounds (n, 4), fold (n,)) shares no area with a cell (c, 4) of another block."""
    tile, cell = shapely.STRtree(shapely.box(*bounds.T)).query(shapely.box(*laid.T))
    low, high = np.maximum(laid[tile, :2], bounds[cell, :2]), np.minimum(laid[tile, 2:], bounds[cell, 2:])
    strange = (low < high).all(axis=1) & (fold[tile] != of_cell[cell])
    return ~np.isin(np.arange(len(laid)), tile[strange])


def cover(pairs: np.ndarray, inside: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """bool (n,): the fewest tiles to leave out so that of every pair (m, 2) at least one is gone (a vertex cover).

    Tiles inside their block go only where both of a pair are; of as good answers that of the least worth (n,) 0..1.
    """
    n, m = len(inside), len(pairs)
    if not m:
        return np.zeros(n, bool)
    cost = np.where(inside, KEPT, 1.0) + worth / (n + 1)
    ends = coo_matrix((np.ones(2 * m), (np.repeat(np.arange(m), 2), pairs.ravel())), shape=(m, n)).tocsr()
    # half a second for 5,000 tiles: two blocks alone make a bipartite graph, whose relaxation is whole already
    found = milp(cost, constraints=LinearConstraint(ends, lb=1), integrality=np.ones(n), bounds=Bounds(0, 1))
    return np.round(found.x).astype(bool)


def outside(fold, near, side: int) -> np.ndarray:
    """bool (n,): tiles of other sides (not UNUSED) that share pixels with one of this side."""
    lost = np.zeros(len(fold), bool)
    for i, j in ((near[:, 0], near[:, 1]), (near[:, 1], near[:, 0])):
        lost[i[(fold[j] == side) & (fold[i] != side) & (fold[i] != UNUSED)]] = True
    return lost


def across(fold, pairs: np.ndarray) -> np.ndarray:
    """The pairs (m, 2) whose tiles are on two sides, neither of them UNUSED."""
    a, b = fold[pairs[:, 0]], fold[pairs[:, 1]]
    return pairs[(a != b) & (a != UNUSED) & (b != UNUSED)]


def check_overlap(rows, fold, group=None) -> list[str]:
    """InputError naming two tiles that share pixels on two sides of a split; [] where there are none.

    group (n,): where it is the tile itself (scheme random, made to leak) a line says so instead.
    """
    fold, ids = np.asarray(fold), rows["id"].to_numpy(str)
    pairs = across(fold, pairs_of(rows)[0])
    if not len(pairs):
        return []
    if group is not None and (fold >= 0).any() and (np.asarray(group) == ids)[fold >= 0].all():
        return [f"{len(pairs)} pairs of tiles on two sides share pixels: {LEAKS}"]
    names = {TEST: "test", ALWAYS: "always trained on"}
    i, j = pairs[0]
    sides = [names.get(int(fold[k]), f"fold {fold[k]}") for k in (i, j)]
    raise InputError(
        f"tiles {ids[i]} ({sides[0]}) and {ids[j]} ({sides[1]}) share pixels, so that scores would come out too good"
        f" ({len(pairs)} such pairs); make the folds again with make_folds.py --scheme blocks"
    )


def describe_folds(rows, fold, group, *, outputs) -> str:
    """Text: a line per side (tiles, groups, mean share of each class, tiles with each class but the first), then how
    many tiles are unused and how many pairs of tiles on two sides overlap or touch.
    """
    fold, group, lines = np.asarray(fold), np.asarray(group), []
    names = {ALWAYS: "train", TEST: "test", UNUSED: "unused"}
    for k in [*sorted(set(fold.tolist()), key=lambda k: (k < 0, k)), "all"]:
        held = np.ones(len(fold), bool) if k == "all" else fold == k
        line = {"fold": names.get(k, k), "tiles": int(held.sum()), "groups": len(set(group[held].tolist()))}
        line |= {f"{name} %": f"{100 * rows.loc[held, name].mean():.3g}" for name in outputs}
        lines.append(line | {f"with {name}": int((rows.loc[held, name] > 0).sum()) for name in outputs[1:]})
    text, lost = pd.DataFrame(lines).to_string(index=False), int((fold == UNUSED).sum())
    unknown = int((rows["raster"].astype(str) == "").sum())
    if unknown:
        text += f"\nplaces: unknown of {unknown} of {len(rows)} tiles; whether they overlap cannot be told"
    near, touch = pairs_of(rows)
    overlapping, touching = across(fold, near), across(fold, touch)
    inside = near[(fold[near] >= 0).all(axis=1) & (fold[near[:, 0]] == fold[near[:, 1]])]
    mixed = int((group[inside[:, 0]] != group[inside[:, 1]]).sum())
    if mixed:
        text += (
            f"\nin one fold but two groups: {mixed} overlapping pairs; a fit without a group sees some of its pixels"
        )
    return text + (
        f"\nunused: {lost} of {len(rows)} tiles lie across a border of the sides; overlapping pairs on two sides:"
        f" {len(overlapping)}; pairs that only touch there: {len(touching)}"
    )
