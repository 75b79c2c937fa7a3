from itertools import product

import numpy as np
import pandas as pd
import pytest
from test_label_grids import error

from common.datasets import regions as rg
from common.datasets.folds import ALWAYS, TEST
from common.datasets.places import GEOD

FILE = "train: [a, b]\nval:\n  - c\ntest: [d]\n"


def table(per_region, seed=0, near=0.02, apart=1.0):
    """Rows of (name, tiles, positive tiles) regions, `apart` degrees of latitude from one another."""
    draws, lines = np.random.default_rng(seed), []
    for k, (name, tiles, positive) in enumerate(per_region):
        for i in range(tiles):
            lat, lon = 60 + k * apart + draws.normal(0, near), 80 + draws.normal(0, near)
            lines.append((f"{name}{i:03d}", name, lat, lon, i < positive, 0.01 * (i < positive)))
    rows = pd.DataFrame(lines, columns=["id", "region", "lat", "lon", "positive", "slump"])
    return rows.assign(path="none.tif")


def many(count=9, seed=1):
    draws = np.random.default_rng(seed)
    return table([(f"r{k}", int(draws.integers(8, 40)), int(draws.integers(1, 8))) for k in range(count)])


def of_region(rows, fold):
    """{region: fold}, where every region is in one."""
    spread = rows.assign(fold=fold).groupby("region")["fold"].agg(set)
    assert all(len(held) == 1 for held in spread)
    return {name: next(iter(held)) for name, held in spread.items()}


@pytest.fixture
def four():
    return table([("a", 10, 3), ("b", 8, 2), ("c", 6, 2), ("d", 6, 1)])


def test_splits_are_read(tmp_path):
    assert rg.read_splits(tmp_path) is None
    (tmp_path / "splits.yaml").write_text(FILE)
    expected = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    assert rg.read_splits(tmp_path) == rg.read_splits(tmp_path / "splits.yaml") == expected
    (tmp_path / "splits.yaml").write_text("train: [1, b]\nval: [c]\n")
    assert rg.read_splits(tmp_path) == {"train": ["1", "b"], "val": ["c"], "test": []}
    error(lambda: rg.read_splits(tmp_path / "other.yaml"), "other.yaml", "not found")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "is not a list of regions per side"),
        ("train: a\nval: [b]\n", "is not a list of regions per side"),
        ("train: [a]\nvalid: [b]\n", "valid is no side"),
        ("train: [a]\nval: []\n", "no region in val"),
        ("val: [a]\n", "no region in train"),
        ("train: [a, b]\nval: [b]\n", "region b is in train and in val"),
        ("train: [a\n", "cannot be read"),
    ],
)
def test_wrong_splits_are_told(tmp_path, text, said):
    (tmp_path / "splits.yaml").write_text(text)
    error(lambda: rg.read_splits(tmp_path), "splits.yaml", said)


def test_the_split_follows_splits_yaml(four):
    splits = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    fold, group = rg.make_folds(four, scheme="split", splits=splits)
    assert of_region(four, fold) == {"a": ALWAYS, "b": ALWAYS, "c": 0, "d": TEST} and list(group) == list(
        four["region"]
    )
    error(lambda: rg.make_folds(four, splits=splits | {"test": []}), "region d of the data is on no side")
    error(lambda: rg.make_folds(four, splits=splits | {"val": ["x"], "test": ["c", "d"]}), "no tile lies in", "val (x)")
    error(lambda: rg.make_folds(four, splits=splits, folds=3), "--folds 3")
    none = four.assign(positive=four["positive"] & (four["region"] != "c"))
    error(lambda: rg.make_folds(none, splits=splits), "fold 0 has no positive tile to validate")
    none = four.assign(positive=four["positive"] & ~four["region"].isin(["a", "b"]))
    error(lambda: rg.make_folds(none, splits=splits), "fold 0 has no positive tile to train on")


def test_the_search_finds_the_best_split_there_is():
    for seed in range(3):
        rows = many(7, seed)
        fold, _ = rg.make_folds(rows, scheme="split", seed=seed)
        sizes = rows.groupby("region")["positive"].agg(["sum", "size"])
        costs = []
        for side in product((ALWAYS, 0, TEST), repeat=7):
            part = [sizes.to_numpy()[np.array(side) == k].sum(0) / sizes.to_numpy().sum(0) for k in (ALWAYS, 0, TEST)]
            if min(p[0] for p in part) == 0:
                continue
            off = [(p - wanted) ** 2 for p, wanted in zip(part, (0.6, 0.2, 0.2), strict=True)]
            costs.append((sum(o[0] + 0.25 * o[1] for o in off), side))
        found = of_region(rows, fold)
        least = min(costs)
        mine = next(c for c, side in costs if dict(zip(sorted(found), side, strict=True)) == found)
        assert mine == pytest.approx(least[0], abs=1e-9)


def test_the_search_needs_three_regions_with_positive_tiles():
    rows = table([("a", 5, 2), ("b", 5, 1), ("c", 5, 0)])
    error(lambda: rg.make_folds(rows, scheme="split"), "2 regions", "splits.yaml")


@pytest.mark.parametrize("scheme", ["split", "regions", "region", "random"])
def test_folds_do_not_depend_on_the_order_and_are_the_same_again(scheme):
    rows = many()
    fold, group = rg.make_folds(rows, scheme=scheme, folds=4 if scheme in ("regions", "random") else None)
    mixed = rows.sample(frac=1, random_state=5).reset_index(drop=True)
    again, other = rg.make_folds(mixed, scheme=scheme, folds=4 if scheme in ("regions", "random") else None)
    assert dict(zip(rows["id"], fold, strict=True)) == dict(zip(mixed["id"], again, strict=True))
    assert dict(zip(rows["id"], group, strict=True)) == dict(zip(mixed["id"], other, strict=True))


def test_folds_of_whole_regions_are_alike():
    rows = many(12)
    fold, group = rg.make_folds(rows, scheme="regions", folds=3)
    of_region(rows, fold)
    assert sorted(set(fold.tolist())) == [0, 1, 2] and list(group) == list(rows["region"])
    counts = rows.assign(fold=fold).groupby("fold")["positive"].agg(["sum", "size"])
    assert (abs(counts["size"] / len(rows) - 1 / 3) < 0.06).all()
    assert (abs(counts["sum"] / counts["sum"].sum() - 1 / 3) < 0.1).all()
    error(lambda: rg.make_folds(rows, scheme="regions", folds=13), "--folds 13", "12")
    error(lambda: rg.make_folds(rows, scheme="blocks"), "--scheme blocks is unknown", "split, regions, region, random")


def test_leaving_regions_out_validates_those_with_positive_tiles():
    rows = table([("a", 5, 2), ("b", 5, 0), ("c", 5, 1), ("d", 4, 4)])
    fold, _ = rg.make_folds(rows, scheme="region")
    assert of_region(rows, fold) == {"a": 0, "b": ALWAYS, "c": 1, "d": 2}
    error(lambda: rg.make_folds(rows, scheme="region", folds=2), "leave --folds out")


def test_test_regions_stay_test_in_every_scheme(capsys):
    rows = many(6)
    splits = {"train": ["r0", "r1", "r2"], "val": ["r3"], "test": ["r4", "r5"]}
    for scheme in ("regions", "region", "random"):
        fold, _ = rg.make_folds(rows, scheme=scheme, folds=2 if scheme != "region" else None, splits=splits)
        np.testing.assert_array_equal(fold == TEST, rows["region"].isin(["r4", "r5"]))
        assert set(fold[fold != TEST].tolist()) == ({0, 1, 2, 3} if scheme == "region" else {0, 1})
    assert "leaks" in capsys.readouterr().out


def test_random_takes_tiles_apart():
    rows = many(4)
    fold, group = rg.make_folds(rows, scheme="random", folds=3)
    assert list(group) == list(rows["id"])
    assert rows.assign(fold=fold).groupby("region")["fold"].nunique().max() == 3


def test_near_regions_are_kept_together():
    rows = table([(f"r{k}", 6, 2) for k in range(8)], apart=0.5, near=0.001)
    rows.loc[rows["region"] == "r7", "lat"] = 60.005  # half a kilometre north of r0
    rows.loc[rows["region"] == "r5", "lat"] = 60.012  # near r7, too far from r0
    for scheme in ("split", "regions", "region"):
        for seed in range(3):
            fold, _ = rg.make_folds(rows, scheme=scheme, folds=3 if scheme == "regions" else None, seed=seed,
                                    limit_m=1000)  # fmt: skip
            side = of_region(rows, fold)
            assert side["r0"] == side["r5"] == side["r7"]
            assert (rg.distance_report(rows, fold, limit_m=1000)[0]["below"] == 0).all()
    assert len(set(rg.near_units(rows, 0).tolist())) == 8 and len(set(rg.near_units(rows, 1000).tolist())) == 6


def test_distances_by_every_pair():
    rows = table([("a", 9, 2), ("b", 7, 2), ("c", 8, 2), ("d", 6, 1)], apart=0.05, near=0.03)
    fold = rows["region"].map({"a": ALWAYS, "b": 0, "c": 1, "d": TEST}).to_numpy()
    limit = 4000.0
    found, lines = rg.distance_report(rows, fold, limit_m=limit)
    lat, lon = rows["lat"].to_numpy(), rows["lon"].to_numpy()
    assert list(found["side"]) == ["fold 0", "fold 1", "test"] and len(lines) == 3
    sides = [
        (fold == 0, np.isin(fold, [ALWAYS, 1])),
        (fold == 1, np.isin(fold, [ALWAYS, 0])),
        (fold == TEST, fold != TEST),
    ]
    for (first, second), line in zip(sides, found.itertuples(), strict=True):
        apart = {(i, j): GEOD.inv(lon[i], lat[i], lon[j], lat[j])[2]
                 for i in np.flatnonzero(first) for j in np.flatnonzero(second)}  # fmt: skip
        i, j = min(apart, key=apart.get)
        assert (line.tile, line.other) == (rows["id"][i], rows["id"][j])
        assert line.distance_m == pytest.approx(apart[i, j])
        below = [pair for pair, metres in apart.items() if metres < limit]
        assert line.below == len(below) > 0 and line.tiles_below == len({i for i, _ in below})
    nearest = found["distance_m"].min()
    error(lambda: rg.check_distances(found, limit, "d.csv"), f"{nearest:,.0f} m", "4,000 m", "d.csv", "--distance")
    rg.check_distances(rg.distance_report(rows, fold, limit_m=nearest - 1)[0], nearest - 1, "d.csv")


def test_the_balance_as_text(four):
    text = rg.describe_folds(four, np.where(four["region"] == "c", 0, np.where(four["region"] == "d", TEST, ALWAYS)),
                             four["region"].to_numpy())  # fmt: skip
    lines = [line.split() for line in text.splitlines()]
    assert lines[1] == ["train", "2", "2", "18", "5", "13", "0.278", "a,", "b"]
    assert lines[2][:6] == ["fold", "0", "1", "1", "6", "2"] and lines[3][0] == "test"
    assert lines[4][:6] == ["all", "4", "4", "30", "8", "22"]
