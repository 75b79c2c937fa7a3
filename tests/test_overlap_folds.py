"""Folds of tiles that overlap: no pixel on two sides, few tiles unused, blocks in one piece."""

import itertools

import numpy as np
import pandas as pd
import pytest

from common.datasets import overlap_folds as overlap
from common.datasets.folds import ALWAYS, TEST, UNUSED
from common.errors import InputError

OUTPUTS = ("low", "medium", "high")


@pytest.fixture
def one_search(monkeypatch):
    """Where any blocks will do: the first that are found."""
    monkeypatch.setattr(overlap, "TRIES", 1)


def grid(n, *, side=128, stride=64, raster="a", split="", columns=None):
    """Rows of n x n tiles of one raster; the share of the classes changes over the area."""
    lines = []
    for y, x in itertools.product(range(n), range(columns or n)):
        high, medium = 0.12 + 0.1 * np.sin(y / 3) * np.cos(x / 4), 0.02 + 0.01 * np.cos(y + 2 * x)
        name = f"{raster}_{y:03}_{x:03}"
        lines.append((name, split, raster, y * stride, x * stride, side, side, 1 - high - medium, medium, high))
    return pd.DataFrame(lines, columns=["id", "split", "raster", "y", "x", "height", "width", *OUTPUTS])


def painted(rows, fold):
    """Whether any pixel of a raster is painted by two folds, tile by tile: the slow reference (pixels of 16)."""
    ground = {}
    for row, k in zip(rows.itertuples(), fold, strict=True):
        if k == UNUSED:
            continue
        for y in range(row.y // 16, (row.y + row.height) // 16):
            for x in range(row.x // 16, (row.x + row.width) // 16):
                if ground.setdefault((row.raster, y, x), k) != k:
                    return True
    return False


def test_pairs_equal_a_plain_search():
    rng, rows = np.random.default_rng(0), grid(5)
    rows[["y", "x"]] = rng.integers(0, 40, (25, 2)) * 16
    rows["raster"] = rng.choice(["a", "b", ""], 25)
    shared, touched = [], []
    for i, j in itertools.combinations(range(25), 2):
        a, b = rows.iloc[i], rows.iloc[j]
        if a.raster == b.raster != "":
            gap = max(abs(a.y - b.y), abs(a.x - b.x)) - 128  # squares of one size
            shared += [(i, j)] if gap < 0 else []
            touched += [(i, j)] if gap == 0 else []
    found = overlap.pairs_of(rows)
    assert found[0].tolist() == [list(p) for p in sorted(shared)] and shared
    assert found[1].tolist() == [list(p) for p in sorted(touched)] and touched


@pytest.mark.parametrize(("n", "stride", "most"), [(15, 64, 0.3), (15, 96, 0.45), (8, 128, 0.0)])
def test_blocks_share_no_pixel(n, stride, most, one_search):
    rows = grid(n, stride=stride)
    fold, group = overlap.make_folds(rows, folds=4, outputs=OUTPUTS)
    assert set(fold) - {UNUSED} == {0, 1, 2, 3} and (fold == UNUSED).mean() <= most
    assert not painted(rows, fold) and overlap.check_overlap(rows, fold) == []
    sizes = np.bincount(fold[fold >= 0])
    assert sizes.min() > 0.5 * sizes.max()
    assert all(len(set(fold[group == name])) == 1 for name in set(group))


def test_single_rasters_never_overlap_each_other(one_search):
    rows = pd.concat([grid(4, raster="a"), grid(4, raster="b")], ignore_index=True)
    assert not len(overlap.across((rows["raster"] == "a").to_numpy(int), overlap.pairs_of(rows)[0]))
    fold, _ = overlap.make_folds(rows, folds=2, outputs=OUTPUTS)
    assert not (fold == UNUSED).any() and rows.groupby("raster")["id"].count().eq(np.bincount(fold)).all()


def test_order_of_rows_decides_nothing(one_search):
    rows = grid(5)
    fold, group = overlap.make_folds(rows, folds=2, outputs=OUTPUTS, seed=1)
    turn = np.random.default_rng(0).permutation(len(rows))
    again, names = overlap.make_folds(rows.iloc[turn].reset_index(drop=True), folds=2, outputs=OUTPUTS, seed=1)
    np.testing.assert_array_equal(again, fold[turn])
    np.testing.assert_array_equal(names, group[turn])


def test_cover_is_the_smallest_there_is():
    rng = np.random.default_rng(3)
    for _ in range(20):
        pairs = np.array([p for p in itertools.combinations(range(9), 2) if rng.random() < 0.25])
        lost = overlap.cover(pairs, np.zeros(9, bool), rng.random(9))
        assert (lost[pairs[:, 0]] | lost[pairs[:, 1]]).all()
        least = min(bin(k).count("1") for k in range(512) if all(k >> i & 1 or k >> j & 1 for i, j in pairs))
        assert lost.sum() == least
    star = np.array([[0, 1], [0, 2], [0, 3]])
    assert overlap.cover(star, np.array([True, False, False, False]), np.zeros(4)).tolist() == [False] + [True] * 3
    assert overlap.cover(star[:1], np.zeros(2, bool), np.array([0.1, 0.0])).tolist() == [False, True]


def test_tiles_inside_their_block_stay(one_search):
    rows = grid(15)
    fold, _ = overlap.make_folds(rows, folds=2, outputs=OUTPUTS)
    cell, bounds, laid = overlap.cells_of(rows)
    for k in np.flatnonzero(fold == UNUSED):  # every one of them crosses a border of cells
        assert (np.array([rows["y"][k], rows["x"][k]]) % 128 != 0).any()
    assert len(bounds) == 64 and (np.bincount(cell) > 0).all() and laid.shape == (225, 4)


def test_more_searches_lose_no_more():
    rows, found = grid(9, stride=48), {}
    for tries in (1, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(overlap, "TRIES", tries)
            fold, _ = overlap.make_folds(rows, folds=2, outputs=OUTPUTS)
        found[tries] = overlap.cost_of(fold, overlap.class_matrix(rows, list(OUTPUTS)), 2)
    assert found[3] <= found[1]


def test_many_tiles_are_put_into_few_cells():
    cell, bounds, _ = overlap.cells_of(grid(40, stride=100))
    assert len(bounds) <= overlap.MOST and cell.max() == len(bounds) - 1


def test_split_of_folders_drops_what_overlaps_held_tiles(one_search):
    rows = grid(4, columns=12)
    rows["split"] = np.select([rows["x"] >= 64 * 9, rows["x"] >= 64 * 6], ["test", "val"], "train")
    assert overlap.default_scheme(rows) == "split" and overlap.default_scheme(grid(2)) == "blocks"
    fold, group = overlap.make_folds(rows, outputs=OUTPUTS)
    expected = [ALWAYS] * 5 + [UNUSED] + [0] * 2 + [UNUSED] + [TEST] * 3
    assert fold.reshape(4, 12).tolist() == [expected] * 4
    assert all((fold[group == name] == k).all() for name, k in (("train", ALWAYS), ("test", TEST), ("unused", UNUSED)))
    assert len(set(group[fold == 0])) > 1 and set(group[fold != 0]) == {"train", "test", "unused"}
    blocks, _ = overlap.make_folds(rows, scheme="blocks", folds=2, outputs=OUTPUTS)
    np.testing.assert_array_equal(blocks == TEST, rows["split"] == "test")
    assert not painted(rows, blocks)
    with pytest.raises(InputError, match="leave --folds out"):
        overlap.make_folds(rows, folds=3, outputs=OUTPUTS)
    with pytest.raises(InputError, match="no labelled tile in the folder train"):
        overlap.make_folds(grid(3), scheme="split", outputs=OUTPUTS)


def test_validation_tiles_that_hang_together_are_one_group():
    """Three places of overlapping tiles, four tiles that only touch, and one alone."""
    rows = pd.concat([grid(2, raster=name) for name in "abc"] + [grid(2, raster="d", stride=128), grid(1, raster="e")])
    rows = pd.concat([rows.assign(split="val"), grid(2, raster="t", split="train")], ignore_index=True)
    turn = np.random.default_rng(1).permutation(len(rows))
    fold, group = overlap.make_folds(rows.iloc[turn].reset_index(drop=True), outputs=OUTPUTS)
    group = group[np.argsort(turn)]
    places = pd.Series(group).groupby(rows["raster"]).agg(set)
    assert all(len(names) == 1 for names in places) and len(set().union(*places)) == 6
    assert set(group[rows["split"] == "train"]) == {"train"} and (fold == UNUSED).sum() == 0


def test_validation_tiles_of_one_place_are_in_blocks():
    """All of them hang together: the blocks are of one piece, and what they share is said."""
    rows = pd.concat([grid(8).assign(split="val"), grid(3, raster="t", split="train")], ignore_index=True)
    fold, group = overlap.make_folds(rows, outputs=OUTPUTS)
    held = fold == 0
    names, sizes = np.unique(group[held], return_counts=True)
    assert held.sum() == 64 and len(names) == 5 and sizes.min() > 4
    near = overlap.pairs_of(rows)[0]
    shared = sum(group[i] != group[j] for i, j in near if held[i] and held[j])
    said = overlap.describe_folds(rows, fold, group, outputs=OUTPUTS)
    assert 0 < shared < len(near) / 2 and f"but two groups: {shared} overlapping pairs" in said
    alone, group = overlap.make_folds(pd.concat([rows[:1], rows[64:]], ignore_index=True), outputs=OUTPUTS)
    assert group[alone == 0].tolist() == ["val0000"]


def test_random_says_that_it_leaks(capsys):
    rows = grid(5)
    fold, group = overlap.make_folds(rows, scheme="random", folds=2, outputs=OUTPUTS)
    assert "leaks" in capsys.readouterr().out and set(fold) == {0, 1}
    assert "share pixels" in overlap.check_overlap(rows, fold, group)[0]
    with pytest.raises(InputError, match=r"tiles a_.* \(fold .\) and a_.* share pixels"):
        overlap.check_overlap(rows, fold)


def test_every_side_is_checked():
    rows = grid(1, columns=3)
    for sides, wrong in (([0, 0, 1], True), ([0, UNUSED, 1], False), ([ALWAYS, TEST, TEST], True),
                         ([ALWAYS, 0, 0], True), ([0, UNUSED, 0], False), ([TEST, UNUSED, 0], False)):  # fmt: skip
        if wrong:
            with pytest.raises(InputError, match="share pixels"):
                overlap.check_overlap(rows, np.array(sides), np.array(["x", "y", "y"]))
        else:
            assert overlap.check_overlap(rows, np.array(sides)) == []


def test_what_cannot_be_dealt():
    with pytest.raises(InputError, match="tile a_000_000: neither tiles.csv"):
        overlap.make_folds(grid(3).assign(raster=""), outputs=OUTPUTS)
    with pytest.raises(InputError, match="places that do not overlap; choose fewer"):
        overlap.make_folds(grid(3), folds=9, outputs=OUTPUTS)
    with pytest.raises(InputError, match="choose 2 to 9"):
        overlap.make_folds(grid(3), folds=10, outputs=OUTPUTS)
    rare = grid(6, stride=128)
    rare.loc[1:, "medium"] = 0.0
    with pytest.raises(InputError, match="has no medium to"):
        overlap.make_folds(rare, folds=2, outputs=OUTPUTS)


def test_description_counts_what_is_lost():
    rows = grid(1, columns=4)
    text = overlap.describe_folds(rows, np.array([0, UNUSED, 1, TEST]), np.array(list("abcd")), outputs=OUTPUTS)
    assert "unused: 1 of 4 tiles" in text
    assert "overlapping pairs on two sides: 1; pairs that only touch there: 1" in text


def test_real_tiles(landslide_data):
    from common.datasets.landslide_files import BINARY, read_rows

    rows = read_rows(landslide_data)
    fold, _ = overlap.make_folds(rows, outputs=BINARY)
    assert np.bincount(fold, minlength=5).min() >= 28 and overlap.check_overlap(rows, fold) == []
    assert len(overlap.across(fold, overlap.pairs_of(rows)[1])) < 20  # of 172 pairs that touch
