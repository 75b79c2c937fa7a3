import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.sparse.csgraph import connected_components
from test_glacier_files import error, tif

from common.datasets import blocks, glacier_files

FOUR = ("background", "glacier", "debris", "lake")
TWO = FOUR[:2]


def mosaic(places, seed=0, lakes=0.4, outputs=FOUR):
    """Rows of tiles at (row, col); debris in the upper rows only, lakes in a share of the tiles."""
    draws, n = np.random.default_rng(seed), len(places)
    row, col = np.array(places).T
    shares = {
        "glacier": draws.uniform(0.1, 0.7, n),
        "debris": np.where(row <= np.median(row), draws.uniform(0, 0.1, n), 0),
        "lake": np.where(draws.random(n) < lakes, draws.uniform(0, 0.002, n), 0),
    }
    shares = {name: shares[name] for name in outputs[1:]}
    ids = [f"{r:02d}_{c:02d}" for r, c in places]
    rows = pd.DataFrame({"id": ids, "path": "none.tif", "row": row, "col": col, **shares})
    return rows.assign(background=1 - sum(shares.values()))


def square(side):
    return [(r, c) for r in range(side) for c in range(side)]


def neighbours(places) -> list[tuple[int, int]]:
    """Pairs of tiles a king's move apart, by comparing every pair."""
    return [
        (a, b)
        for a, (ra, ca) in enumerate(places)
        for b, (r, c) in enumerate(places)
        if a < b and max(abs(r - ra), abs(c - ca)) == 1
    ]


def make(rows, scheme="blocks", folds=5, seed=42, outputs=FOUR):
    return blocks.make_folds(rows, scheme=scheme, folds=folds, seed=seed, outputs=outputs)


def parts_of(places, fold):
    """Connected parts of each fold, by scipy on the pairs that are in one fold."""
    kept = np.zeros((len(places), len(places)))
    for a, b in neighbours(places):
        kept[a, b] = fold[a] == fold[b]
    part = connected_components(kept, directed=False)[1]
    return [len(set(part[fold == k])) for k in range(max(fold) + 1)]


def straddling(places, fold):
    return sum(fold[a] != fold[b] for a, b in neighbours(places))


@pytest.mark.parametrize("side, folds, seed", [(5, 5, 1), (5, 3, 2), (7, 5, 3), (8, 4, 42)])
def test_blocks_are_connected_balanced_and_hold_every_class(side, folds, seed):
    places, rows = square(side), mosaic(square(side), seed=seed)
    fold, group = make(rows, folds=folds, seed=seed)
    assert parts_of(places, fold) == [1] * folds
    counts = np.bincount(fold)
    assert counts.max() - counts.min() <= 2 and len(counts) == folds
    assert all(len(set(fold[group == name])) == 1 for name in set(group))
    for name in FOUR:
        assert (rows.groupby(fold)[name].max() > 0).all()


def test_blocks_keep_more_neighbours_together_than_chance():
    places, rows = square(8), mosaic(square(8), outputs=TWO)
    fold, _ = make(rows, folds=4, outputs=TWO)
    draws = np.random.default_rng(0)
    chance = np.mean([straddling(places, draws.permutation(fold)) for _ in range(100)])
    assert straddling(places, fold) < 0.45 * chance
    # four quadrants leave fewest pairs apart
    quadrants = np.array([2 * (r // 4) + c // 4 for r, c in places])
    assert straddling(places, fold) <= straddling(places, quadrants) * 1.5


def test_blocks_are_stratified():
    rows = mosaic(square(7), outputs=TWO)
    fold, _ = make(rows, outputs=TWO)
    spread = rows.groupby(fold)["glacier"].mean().std()
    cuts = np.array([r * 7 + c for r, c in square(7)]) * 5 // 49  # runs of tiles in reading order
    assert spread < 0.5 * rows.groupby(cuts)["glacier"].mean().std()
    rows = mosaic(square(7), seed=4)
    held = (rows["lake"] > 0).groupby(make(rows)[0]).mean()
    assert held.max() - held.min() <= 0.35


def test_a_mosaic_with_gaps_stays_in_as_few_parts_as_can_be():
    # two islands and a tile far off: five folds of connected tiles, but one fold must hold the lone tile and others
    places = square(4) + [(r + 10, c) for r, c in square(3)] + [(30, 30)]
    fold, _ = make(mosaic(places, outputs=TWO), outputs=TWO)
    parts = parts_of(places, fold)
    assert sorted(parts)[:3] == [1, 1, 1] and sum(parts) <= 7
    alone = fold[-1]
    assert {places[i][0] >= 10 for i in np.flatnonzero(fold == alone)} == {True}  # the nearer island


def test_order_of_rows_and_seed_repeat():
    rows = mosaic(square(6))
    fold, group = make(rows)
    shuffled = rows.sample(frac=1, random_state=3)
    again, groups = make(shuffled)
    assert np.array_equal(pd.Series(again, shuffled.index).sort_index(), fold)
    assert np.array_equal(pd.Series(groups, shuffled.index).sort_index(), group)
    assert fold[0] == 0  # numbered in reading order


@pytest.mark.data
def test_real_mosaic(glacier_data):
    rows = glacier_files.read_rows(glacier_data).assign(glacier=np.linspace(0.2, 0.7, 20), background=0.5)
    fold, _ = make(rows, outputs=TWO)
    places = list(zip(rows["row"], rows["col"], strict=True))
    assert np.bincount(fold).tolist() == [4] * 5
    assert straddling(places, fold) <= 20  # of 37; a random split leaves 31
    # the same from the georeference of the files alone
    moved = rows.assign(row=-1, col=-1)
    assert np.array_equal(make(moved, outputs=TWO)[0], fold)


def georeferenced(tmp_path, places, size=6):
    rows = mosaic(places, outputs=TWO)
    for i, (r, c) in enumerate(places):
        path = tmp_path / f"img{i:03d}.tif"
        tif(path, np.ones((size, size), np.float32), left=3e5 + 30 * size * c, top=4e6 - 30 * size * r)
        rows.loc[i, ["id", "path"]] = [f"{i:03d}", str(path)]
    return rows.assign(row=-1, col=-1)


def test_tiles_without_position_lie_where_their_georeference_says(tmp_path):
    places = square(4)
    rows = georeferenced(tmp_path, places)
    fold, _ = make(rows, folds=4, outputs=TWO)
    assert np.array_equal(fold, make(mosaic(places, outputs=TWO), folds=4, outputs=TWO)[0])
    assert parts_of(places, fold) == [1] * 4


def test_tiles_that_lie_nowhere(tmp_path):
    same = georeferenced(tmp_path, [(0, 0)] * 6)
    error(lambda: make(same, folds=2, outputs=TWO), "at one place", "--scheme random")
    assert "no place" in blocks.describe_folds(same, [0, 0, 0, 1, 1, 1], ["a"] * 6, outputs=TWO)
    import tifffile

    tifffile.imwrite(same["path"][0], np.ones((6, 6), np.float32))
    error(lambda: make(same, folds=2, outputs=TWO), "img000.tif", "georeference", "--scheme random")


def test_stripes_keep_rows_of_the_mosaic_whole():
    places, rows = square(6), mosaic(square(6))
    fold, group = make(rows, scheme="rows", folds=3, outputs=TWO)
    assert np.array_equal(fold, np.repeat([0, 1, 2], 12)) and len(set(group)) == 6
    error(lambda: make(mosaic([(r, c) for r in range(2) for c in range(9)]), "rows", 5, outputs=TWO), "2 rows of tiles")
    assert straddling(places, fold) == 2 * 16


def test_random_says_that_it_leaks(capsys):
    rows = mosaic(square(6))
    fold, group = make(rows, scheme="random")
    assert "leaks" in capsys.readouterr().out
    assert sorted(np.bincount(fold)) == [7, 7, 7, 7, 8] and group.tolist() == rows["id"].tolist()
    held = (rows["lake"] > 0).groupby(fold).mean()
    assert held.max() - held.min() < 0.16


def test_scenes_stay_whole():
    rows = mosaic(square(8), outputs=FOUR[:3]).assign(row=-1, col=-1)
    rows["group"] = [f"scene{i % 9}" for i in range(len(rows))]
    for scheme in ("blocks", "scenes"):  # slices that bring a scene and no place
        fold, group = make(rows, scheme=scheme, outputs=FOUR[:3])
        assert group.tolist() == rows["group"].tolist()
        assert (pd.Series(fold).groupby(rows["group"]).nunique() == 1).all() and set(fold) == set(range(5))
    error(lambda: make(rows, "scenes", 10, outputs=FOUR[:3]), "9 scenes", "10 folds")
    error(lambda: make(mosaic(square(5)), "scenes"), "--scheme blocks")


def test_a_fold_without_a_class():
    rows = mosaic(square(5)).assign(lake=0.0)
    make(rows)  # a class that no tile has is no fold's fault
    rows.loc[[3, 9, 20], "lake"] = 0.01
    error(lambda: make(rows), "lake is in 3 of 25 tiles", "--folds (at most 3)")
    assert set(make(rows, folds=3)[0][[3, 9, 20]]) == {0, 1, 2}
    # five lakes, but all in the first row: three stripes cannot share them
    rows = rows.assign(lake=np.where(rows["row"] == 0, 0.01, 0), debris=0.1)
    error(lambda: make(rows, "rows", 3), "fold 1 of 3 has no lake", "--scheme")


def test_wrong_requests():
    rows = mosaic(square(3))
    error(lambda: make(rows, "months"), "--scheme months", "blocks")
    error(lambda: make(rows, folds=1), "--folds 1")
    error(lambda: make(rows, folds=10), "--folds 10", "9")


def test_description_counts_straddling_pairs():
    places, rows = square(5), mosaic(square(5))
    fold, group = make(rows)
    text = blocks.describe_folds(rows, fold, group, outputs=FOUR)
    pairs = len(neighbours(places))
    assert f"{straddling(places, fold)} of {pairs} pairs" in text
    draws = np.random.default_rng(0)
    chance = np.mean([straddling(places, draws.permutation(fold)) for _ in range(300)])
    said = int(text.rpartition("a random split: ")[2].rstrip(")"))
    assert abs(said - chance) < 1.5
    line = text.splitlines()[-2].split()
    assert line[0] == "all" and line[1] == "25" and float(line[-1]) == (rows["lake"] > 0).sum()


def test_no_warning_from_equal_shares():
    rows = mosaic(square(4), outputs=TWO).assign(glacier=0.5, background=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(make(rows, folds=4, outputs=TWO)[0]) == {0, 1, 2, 3}
