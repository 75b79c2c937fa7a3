"""The most balanced assignment of groups to folds: annealing over moves and swaps of whole groups, compiled by numba.

A table of rows becomes a matrix of centred columns (one per state, month, target, zero share), so that the imbalance of
a fold is the squared length of its mean row plus a term for its size; a move of a group costs one addition per column.
"""

import functools
import math

import numpy as np
import pandas as pd

SIZE_WEIGHT = 25.0
HOT, COLD = 0.03, 0.002  # first and last temperature, in units of the mean imbalance of a fold at the start


def balance_matrix(rows: pd.DataFrame, *, shares, targets, zeros) -> np.ndarray:
    """(n, p) float64 columns whose fold means are the deviations that `imbalance` squares.

    rows: n lines; shares: names of categorical columns (one indicator per value); targets: numeric columns, in standard
    deviations (population); zeros: numeric columns whose share of exact zeros counts. Every column is centred over the
    rows. A missing number sits at the mean of its column, so that it pulls nowhere.
    """
    columns = [np.zeros((len(rows), 0))]
    for name in shares:
        columns.append(pd.get_dummies(rows[name].astype(str)).sort_index(axis=1).to_numpy(np.float64))
    for name in targets:
        values = rows[name].to_numpy(np.float64)
        spread = np.nanstd(values)
        columns.append((values / (spread if spread > 0 else 1.0))[:, None])
    for name in zeros:
        values = rows[name].to_numpy(np.float64)
        columns.append(np.where(np.isnan(values), np.nan, values == 0)[:, None])
    matrix = np.concatenate(columns, axis=1)
    return np.nan_to_num(matrix - np.nanmean(matrix, axis=0, keepdims=True), nan=0.0)


def fold_costs(matrix: np.ndarray, fold: np.ndarray, folds: int) -> np.ndarray:
    """(folds,) each fold's part of the imbalance: matrix (n, p) of `balance_matrix`, fold (n,) in 0..folds-1.

    Infinite for an empty fold.
    """
    counts = np.bincount(fold, minlength=folds)
    sums = np.zeros((folds, matrix.shape[1]))
    np.add.at(sums, fold, matrix)
    means = sums / np.maximum(counts, 1)[:, None]
    cost = (means**2).sum(axis=1) + SIZE_WEIGHT * (counts / len(fold) - 1 / folds) ** 2
    return np.where(counts == 0, np.inf, cost)


def balanced_groups(matrix, group, folds: int, *, seed: int, restarts: int = 240, steps: int = 40_000) -> np.ndarray:
    """Fold (n,) int of every row such that groups stay whole, no fold is empty and the imbalance is as small as found.

    matrix: (n, p) float64 of `balance_matrix`; group: (n,) labels, at least `folds` different ones (else ValueError).
    The same for the same seed and table; folds are numbered by the first group, in sorted order, that each one holds.
    restarts x steps proposals, each O(p); the best state ever seen wins.
    """
    names, index = np.unique(np.asarray(group).astype(str), return_inverse=True)
    if not 2 <= folds <= len(names):
        raise ValueError(f"{len(names)} groups cannot fill {folds} folds")
    sums = np.zeros((len(names), matrix.shape[1]))
    np.add.at(sums, index, matrix)
    sizes = np.bincount(index).astype(np.float64)
    rng = np.random.default_rng(seed)
    search, best, lowest = _compiled(), None, np.inf
    for _ in range(restarts):
        start = rng.permutation(np.arange(len(names)) % folds)
        found, cost = search(sums, sizes, start, int(folds), SIZE_WEIGHT, rng.random((steps, 3)))
        if cost < lowest - 1e-12:
            best, lowest = found, cost
    number = {label: position for position, label in enumerate(dict.fromkeys(best.tolist()))}
    return np.array([number[label] for label in best.tolist()])[index]


@functools.cache
def _compiled():
    """The annealing as machine code, made once a process: a second, and no files that a read-only disk could refuse."""
    import numba  # a third of a second that the other schemes need not wait for

    return numba.njit(nogil=True)(_anneal)


def _anneal(sums, sizes, fold, folds, size_weight, draws):
    """Best fold (G,) of every group and its imbalance. sums: (G, p) group sums of centred columns; sizes: (G,) rows.

    A proposal takes group `a` to fold `to` and, half of the time, a group `b` of that fold back (a swap). Compiled by
    numba; plain loops throughout, since array expressions and slices take three times as long to compile.
    """
    groups, columns = sums.shape
    total, size, members = np.zeros((folds, columns)), np.zeros(folds), np.zeros(folds)
    for g in range(groups):
        size[fold[g]] += sizes[g]
        members[fold[g]] += 1.0
        for j in range(columns):
            total[fold[g], j] += sums[g, j]
    part, rows, cost = np.zeros(folds), 0.0, 0.0
    for k in range(folds):
        rows += size[k]
    for k in range(folds):
        part[k] = size_weight * (size[k] / rows - 1.0 / folds) ** 2
        for j in range(columns):
            part[k] += (total[k, j] / size[k]) ** 2
        cost += part[k]
    best, lowest, heat = fold.copy(), cost, max(HOT * cost / folds, 1e-12)
    cooling = (COLD / HOT) ** (1.0 / len(draws))
    for step in range(len(draws)):
        heat *= cooling
        a, b = int(draws[step, 0] * groups), int(draws[step, 1] * 2 * groups) - groups
        old, to = fold[a], fold[b] if b >= 0 else -(b + 1) * folds // groups
        if to == old or (b < 0 and members[old] == 1.0):
            continue
        shift = sizes[a] - (sizes[b] if b >= 0 else 0.0)
        part_old = size_weight * ((size[old] - shift) / rows - 1.0 / folds) ** 2
        part_to = size_weight * ((size[to] + shift) / rows - 1.0 / folds) ** 2
        for j in range(columns):
            moved = sums[a, j] - (sums[b, j] if b >= 0 else 0.0)
            part_old += ((total[old, j] - moved) / (size[old] - shift)) ** 2
            part_to += ((total[to, j] + moved) / (size[to] + shift)) ** 2
        rise = part_old + part_to - part[old] - part[to]
        if rise > 0.0 and draws[step, 2] >= math.exp(-rise / heat):
            continue
        for j in range(columns):
            moved = sums[a, j] - (sums[b, j] if b >= 0 else 0.0)
            total[old, j] -= moved
            total[to, j] += moved
        size[old], size[to], part[old], part[to] = size[old] - shift, size[to] + shift, part_old, part_to
        fold[a], cost = to, cost + rise
        if b >= 0:
            fold[b] = old
        else:
            members[old], members[to] = members[old] - 1.0, members[to] + 1.0
        if cost < lowest:
            lowest = cost
            for g in range(groups):
                best[g] = fold[g]
    return best, lowest
