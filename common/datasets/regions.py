"""Whole regions to one side of a split: splits.yaml, the search where there is none, folds of regions, distances.

A fold is 0, 1, 2 ... (validated in turn), TEST or ALWAYS (trained on in every fold).
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.balance import balance_matrix, balanced_groups
from common.datasets.folds import ALWAYS, FOLDS, TEST
from common.datasets.places import geodesic, near_pairs, nearest_pair
from common.errors import InputError
from common.text_files import read_yaml

SPLITS = "splits.yaml"
SIDES = {"train": ALWAYS, "val": 0, "test": TEST}
SHARES = {"val": 0.2, "test": 0.2}  # of the positive tiles, where the regions are searched
TILES = 0.25  # a deviation of the share of all tiles counts so much beside that of the positive ones
RESTARTS = 40
LEAKS = (
    "scheme random leaks: tiles on both sides lie side by side and share their slumps, so that scores come out too"
    " good; for comparison only"
)


def read_splits(data: str | Path) -> dict[str, list[str]] | None:
    """{"train", "val", "test": regions} of splits.yaml in a folder (or of a file); None where the folder has none.

    InputError: no such mapping of lists, a name that is none of the three, no region to train on or to validate, a
    region on two sides.
    """
    path = Path(data) / SPLITS if Path(data).is_dir() else Path(data)
    if not path.is_file():
        if path.name == SPLITS and path.parent == Path(data):
            return None
        raise InputError(f"{path}: not found; name a folder with {SPLITS} or a file of regions per side")
    content = read_yaml(path)
    form = "write train: [...], val: [...], test: [...] with names of regions"
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values() if v is not None):
        raise InputError(f"{path}: is not a list of regions per side; {form}")
    strange = sorted(str(name) for name in content if name not in SIDES)
    if strange:
        raise InputError(f"{path}: {strange[0]} is no side; {form}")
    splits = {name: [str(region) for region in content.get(name) or []] for name in SIDES}
    for name in ("train", "val"):
        if not splits[name]:
            raise InputError(f"{path}: no region in {name}; {form}")
    for a, b in combinations(SIDES, 2):
        both = sorted(set(splits[a]) & set(splits[b]))
        if both:
            raise InputError(f"{path}: region {both[0]} is in {a} and in {b}; keep it in one")
    return splits


def split(rows, units, *, folds, seed, splits):
    """One validation side (fold 0), a test side and the rest, by splits.yaml or else by search over whole regions."""
    if folds not in (None, 1):
        raise InputError(f"--folds {folds}: --scheme split makes one validation side; leave --folds out")
    if splits is not None:
        side = {region: SIDES[name] for name, regions in splits.items() for region in regions}
        return rows["region"].map(side).to_numpy(int), rows["region"].to_numpy(str)
    return search_split(rows, units, seed), rows["region"].to_numpy(str)


def folds_of_regions(rows, units, *, folds, seed, **_):
    """Whole regions dealt to k folds, alike in tiles, in positive tiles and in the share of the class."""
    return deal(rows, units, FOLDS if folds is None else folds, seed), rows["region"].to_numpy(str)


def leave_region_out(rows, units, *, folds, **_):
    """One fold for each region with positive tiles, in the order of their names; the others are always trained on."""
    positive = rows["positive"].groupby(units).any()
    names = sorted(positive.index[positive])
    if len(names) < 2 or folds not in (None, len(names)):
        raise InputError(
            f"--scheme region: {len(names)} regions (or groups of near ones) have positive tiles, each would be a fold;"
            f" {'choose another --scheme' if len(names) < 2 else 'leave --folds out'}"
        )
    number = {name: k for k, name in enumerate(names)}
    return np.array([number.get(name, ALWAYS) for name in units]), rows["region"].to_numpy(str)


def random(rows, _units, *, folds, seed, **_):
    """Single tiles by the same balance search: leaks, for comparison only."""
    print(LEAKS)
    group = rows["id"].to_numpy(str)
    return deal(rows, group, FOLDS if folds is None else folds, seed), group


SCHEMES = {"split": split, "regions": folds_of_regions, "region": leave_region_out, "random": random}


def make_folds(rows, *, scheme="split", folds=None, seed=42, splits=None, limit_m=0.0):
    """(fold (n,) int, group (n,) str) of tiles by a scheme of SCHEMES; group: the region, of `random` the tile.

    rows: id, region, lat, lon, positive, slump; splits: of `read_splits`, its test regions are tested by every scheme;
    limit_m: regions with tiles nearer than this are kept together (not where splits says where they go). The answer
    does not depend on the order of the rows. InputError: a region that splits does not name, too few regions or
    positive tiles, a fold without any.
    """
    if scheme not in SCHEMES:
        raise InputError(f"--scheme {scheme} is unknown; choose one of {', '.join(SCHEMES)}")
    if folds is not None and not 1 <= int(folds) <= len(rows):
        raise InputError(f"--folds {folds}: choose 2 to {len(rows)}, the number of tiles")
    if splits is not None:
        check_splits(rows, splits)
    tested = rows["region"].isin(splits["test"] if splits and scheme != "split" else []).to_numpy()
    order = np.argsort(rows["id"].to_numpy(str), kind="stable")
    order = order[~tested[order]]
    used = rows.iloc[order].reset_index(drop=True)
    fold, group = np.full(len(rows), TEST), rows["region"].to_numpy(str).astype(object)
    fold[order], group[order] = SCHEMES[scheme](used, near_units(used, limit_m), folds=folds, seed=seed, splits=splits)
    check_positives(rows, fold, scheme)
    return fold, group.astype(str)


def check_splits(rows, splits) -> None:
    """InputError where a region of rows is on no side, or a side to train, validate or test on has no tile."""
    named = {region for regions in splits.values() for region in regions}
    lacking = sorted(set(rows["region"]) - named)
    if lacking:
        raise InputError(f"{SPLITS}: region {lacking[0]} of the data is on no side ({len(lacking)} such); add it")
    for name, regions in splits.items():
        if regions and not rows["region"].isin(regions).any():
            raise InputError(
                f"{SPLITS}: no tile lies in a region of {name} ({', '.join(regions[:3])}); correct the names"
            )


def check_positives(rows, fold, scheme) -> None:
    """InputError where a validation fold, or all that a fold is trained on, has no positive tile."""
    positive = rows["positive"].to_numpy(bool)
    for k in sorted(set(fold[fold >= 0].tolist())):
        for held, what in ((fold == k, "to validate"), ((fold != k) & (fold != TEST), "to train on")):
            if not (positive & held).any():
                raise InputError(
                    f"--scheme {scheme}: fold {k} has no positive tile {what}, so that nothing could be scored; choose"
                    " fewer --folds, another --seed or --scheme, or correct splits.yaml"
                )


def near_units(rows, limit_m: float) -> np.ndarray:
    """(n,) str: the region of each tile, or of regions with tiles nearer than limit_m the first by name."""
    region = rows["region"].to_numpy(str)
    first = {name: name for name in region.tolist()}

    def root(name):
        while first[name] != name:
            name = first[name]
        return name

    for i, j in near_pairs(rows["lat"], rows["lon"], limit_m).tolist() if limit_m > 0 else []:
        a, b = sorted((root(region[i]), root(region[j])))
        first[b] = a
    return np.array([root(name) for name in region.tolist()])


def deal(rows, units, folds, seed) -> np.ndarray:
    """Fold (n,) of rows by the balance search over whole units."""
    found = len(set(units.tolist()))
    if not 2 <= folds <= found:
        raise InputError(
            f"--folds {folds}: the data has {found} regions that are far enough apart; choose 2 to {found}"
        )
    known = rows.assign(positive=rows["positive"].astype(float))
    matrix = balance_matrix(known, shares=(), targets=["positive", "slump"], zeros=[])
    return balanced_groups(matrix, units, folds, seed=seed, restarts=40)


def search_split(rows, units, seed) -> np.ndarray:
    """Fold (n,) of a split of whole units: validation and test come nearest to SHARES of the positive tiles.

    From RESTARTS random starts single units and pairs of units are moved while that lowers the cost.
    """
    names, index = np.unique(units, return_inverse=True)
    sizes = np.stack([np.bincount(index, rows["positive"]), np.bincount(index)], axis=1)  # (units, 2)
    if (sizes[:, 0] > 0).sum() < 3:
        raise InputError(
            f"--scheme split: {(sizes[:, 0] > 0).sum()} regions (or groups of near ones) have positive tiles, too"
            " few to train, validate and test on; write splits.yaml or choose another --scheme"
        )
    rng, best, lowest = np.random.default_rng(seed), None, np.inf
    for _ in range(RESTARTS):
        side, cost = descend(rng.choice(3, len(names), p=[1 - sum(SHARES.values()), *SHARES.values()]), sizes)
        if cost < lowest - 1e-12:
            best, lowest = side, cost
    return np.array(list(SIDES.values()))[best][index]


def split_cost(side: np.ndarray, sizes: np.ndarray) -> float:
    """How far the sides (0 train, 1 val, 2 test; per unit) are from SHARES; sizes (units, 2): positive, all tiles."""
    parts = np.stack([np.bincount(side, sizes[:, k], minlength=3) / sizes[:, k].sum() for k in (0, 1)])
    wanted = np.array([1 - sum(SHARES.values()), *SHARES.values()])
    return float(((parts - wanted) ** 2 * np.array([[1.0], [TILES]])).sum() + (parts[0] == 0).sum())


def descend(side: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, float]:
    """(side, cost) where no change of one unit, nor an exchange between two, lowers the cost any more."""
    cost = split_cost(side, sizes)
    while True:
        tries = [(side.copy(), i, k) for i in range(len(side)) for k in range(3) if k != side[i]]
        for moved, i, k in tries:
            moved[i] = k
        swaps = [(i, j) for i, j in combinations(range(len(side)), 2) if side[i] != side[j]] if len(side) <= 30 else []
        states = [moved for moved, _, _ in tries]
        for i, j in swaps:
            other = side.copy()
            other[[i, j]] = side[[j, i]]
            states.append(other)
        costs = [split_cost(state, sizes) for state in states]
        least = int(np.argmin(costs))
        if costs[least] >= cost - 1e-12:
            return side, cost
        side, cost = states[least], costs[least]


def sides_of(fold: np.ndarray) -> list[tuple[str, np.ndarray, str, np.ndarray]]:
    """Pairs of sides that must lie apart: (name, indices, name, indices); every fold against what it is trained on."""
    fold, known = np.asarray(fold), sorted(set(np.asarray(fold).tolist()))
    pairs, test = [], np.flatnonzero(fold == TEST)
    for k in (k for k in known if k >= 0):
        held, rest = np.flatnonzero(fold == k), np.flatnonzero((fold != k) & (fold != TEST))
        pairs += [(f"fold {k}", held, "its training tiles", rest)] if len(rest) else []
    if len(test):
        pairs += [("test", test, "all other tiles", np.flatnonzero(fold != TEST))]
    return pairs


def distance_report(rows, fold, *, limit_m: float) -> tuple[pd.DataFrame, list[str]]:
    """(table, lines): a line per pair of sides with the nearest tiles, how far apart their centres are, how many below.

    rows: id, region, lat, lon (degrees, WGS 84). Columns: side, against, tile, other, region, other_region, distance_m
    (on the ellipsoid), below (pairs of tiles nearer than limit_m), tiles_below (tiles of `side` that are).
    """
    ids, region = rows["id"].to_numpy(str), rows["region"].to_numpy(str)
    lat, lon = rows["lat"].to_numpy(float), rows["lon"].to_numpy(float)
    near = near_pairs(lat, lon, limit_m)
    near = near[geodesic(lat[near[:, 0]], lon[near[:, 0]], lat[near[:, 1]], lon[near[:, 1]]) < limit_m]
    table = []
    for side, first, against, second in sides_of(fold):
        i, j, metres = nearest_pair(lat, lon, first, second)
        at = np.zeros(len(rows), np.int8)
        at[first], at[second] = 1, 2
        apart = near[at[near[:, 0]] * at[near[:, 1]] == 2]
        tiles = len(set(apart[at[apart] == 1].tolist()))
        table.append((side, against, ids[i], ids[j], region[i], region[j], metres, len(apart), tiles))
    columns = ["side", "against", "tile", "other", "region", "other_region", "distance_m", "below", "tiles_below"]
    table = pd.DataFrame(table, columns=columns)
    lines = [
        f"{t.side}: nearest to {t.against} is {t.tile} ({t.region}), {t.distance_m:,.0f} m from {t.other}"
        f" ({t.other_region}); {t.tiles_below} tiles nearer than {limit_m:,.0f} m"
        for t in table.itertuples()
    ]
    return table, lines


def check_distances(table: pd.DataFrame, limit_m: float, path: Path) -> None:
    """InputError where a tile of a side of `distance_report` is nearer than limit_m to the other; path: that table."""
    if (table["below"] > 0).any():
        worst = table.loc[table["distance_m"].idxmin()]
        raise InputError(
            f"tile {worst['tile']} of {worst['side']} is {worst['distance_m']:,.0f} m from {worst['other']} of"
            f" {worst['against']}, nearer than {limit_m:,.0f} m ({path}); put {worst['region']} and"
            f" {worst['other_region']} on one side, or allow less by make_folds.py --distance"
        )


def describe_folds(rows, fold, group) -> str:
    """Text: a line per side with regions, tiles, positive and negative ones, the share of the class, and the names."""
    fold, lines = np.asarray(fold), []
    names = {ALWAYS: "train", TEST: "test"}
    for k in [*sorted(set(fold.tolist()), key=lambda k: (k == TEST, k)), "all"]:
        part = rows if k == "all" else rows[fold == k]
        positive, regions = int(part["positive"].sum()), sorted(set(part["region"]))
        shown = ", ".join(regions[:4]) + (f" and {len(regions) - 4} more" if len(regions) > 4 else "")
        lines.append({
            "side": names.get(k, k if k == "all" else f"fold {k}"), "regions": len(regions),
            "groups": len(set(np.asarray(group)[part.index.to_numpy()].tolist())), "tiles": len(part),
            "positive": positive, "negative": len(part) - positive, "slump %": f"{100 * part['slump'].mean():.3g}",
            "which": "" if k == "all" else shown,
        })  # fmt: skip
    return pd.DataFrame(lines).to_string(index=False)
