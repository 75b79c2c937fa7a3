import os

import numpy as np
import pandas as pd
import pytest
from fold_tables import OUTPUTS, ZEROS, real_rows, slow_imbalance, toy_rows
from sklearn.model_selection import StratifiedGroupKFold

from common.datasets import folds as F
from common.errors import InputError

NAMED = {"outputs": OUTPUTS, "zeros": ZEROS}


@pytest.fixture(scope="module")
def rows():
    return toy_rows(groups=26, seed=1)


@pytest.fixture
def file(tmp_path):
    """A written folds.csv: 12 rows in 6 groups and 3 folds, then 2 test rows."""
    rows = pd.DataFrame({"id": [f"ID{i:02d}" for i in range(14)]}).assign(path=lambda t: t["id"] + ".jpg")
    rows["green"] = np.arange(14) / 3
    group = np.array([f"g{i // 2}" for i in range(14)])
    fold = np.array([i // 2 % 3 for i in range(12)] + [-1, -1])
    F.write_folds(tmp_path / "folds.csv", rows, fold, group, ["green"])
    return tmp_path / "folds.csv"


@pytest.mark.parametrize("scheme", sorted(F.SCHEMES))
def test_scheme_keeps_groups_whole_and_belongs_to_ids(rows, scheme):
    fold, group = F.make_folds(rows, scheme=scheme, seed=3, **NAMED)
    assert set(fold) == set(range(fold.max() + 1)) and len(fold) == len(group) == len(rows)
    F.check_groups(rows.assign(fold=fold, group=group))
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled, _ = F.make_folds(rows.iloc[order].reset_index(drop=True), scheme=scheme, seed=3, **NAMED)
    assert (shuffled == fold[order]).all()


@pytest.mark.parametrize(
    ("scheme", "columns"),
    [
        ("group_date_state", ["date", "state"]),
        ("group_month", ["month"]),
        ("group_month_state", ["month"]),
        ("leave_state_out", ["state"]),
        ("leave_month_out", ["month"]),
    ],
)
def test_groups_are_what_the_scheme_says(rows, scheme, columns):
    fold, group = F.make_folds(rows, scheme=scheme, **NAMED)
    table = rows.assign(fold=fold, group=group)
    assert (table.groupby(columns)["group"].nunique() == 1).all()
    assert table["group"].nunique() == len(table.groupby(columns))
    assert (table.groupby(columns)["fold"].nunique() == 1).all()
    if scheme.startswith("leave"):
        assert (table.groupby("fold")[columns[0]].nunique() == 1).all()
        assert table.groupby("fold")[columns[0]].first().is_monotonic_increasing


@pytest.mark.parametrize("scheme", ["group_month", "group_month_state"])
def test_month_schemes_are_scikit_learns(rows, scheme):
    rows = rows.sort_values("id", ignore_index=True)
    label = pd.qcut(rows["total"], 5, labels=False) if scheme == "group_month" else rows["state"]
    fold, _ = F.make_folds(rows, scheme=scheme, folds=4, seed=9, **NAMED)
    splitter = StratifiedGroupKFold(4, shuffle=True, random_state=9)
    for k, (_train, held) in enumerate(splitter.split(rows, label, rows["month"].astype(str))):
        assert (np.nonzero(fold == k)[0] == held).all()


def test_stratified_is_balanced_and_says_that_it_leaks(rows, capsys):
    fold, group = F.make_folds(rows, scheme="stratified", **NAMED)
    assert "leaks" in capsys.readouterr().out
    assert (group == rows["id"]).all()
    grouped, _ = F.make_folds(rows, scheme="group_date_state", **NAMED)
    assert F.imbalance(rows, fold, **NAMED) < F.imbalance(rows, grouped, **NAMED)


def test_default_is_better_balanced_than_a_plain_deal(rows):
    fold, group = F.make_folds(rows, scheme="group_date_state", folds=4, **NAMED)
    dealt = np.unique(group, return_inverse=True)[1] % 4
    assert slow_imbalance(rows, fold) < slow_imbalance(rows, dealt) / 2


def test_imbalance_is_the_definition_and_skips_test_rows(rows):
    fold = np.random.default_rng(2).integers(-1, 4, len(rows))
    kept = rows[fold >= 0].reset_index(drop=True)
    assert F.imbalance(rows, fold, **NAMED) == pytest.approx(slow_imbalance(kept, fold[fold >= 0]), rel=1e-10)


def test_fold_table_adds_up(rows):
    fold, group = F.make_folds(rows, scheme="leave_state_out", **NAMED)
    text = F.fold_table(rows, fold, group, **NAMED)
    lines = [line.split() for line in text.splitlines()]
    assert [line[0] for line in lines] == ["fold", "0", "1", "2", "all"]
    assert [int(line[1]) for line in lines[1:]] == [*np.bincount(fold), len(rows)]
    assert float(lines[-1][-1]) == pytest.approx(slow_imbalance(rows, fold), abs=6e-4)
    parts = [float(line[-1]) for line in lines[1:-1]]
    assert sum(parts) == pytest.approx(float(lines[-1][-1]), abs=2e-3)
    assert f"{rows['total'][fold == 1].mean():.1f}" in lines[2]


def test_quantile_bins_equal_pandas():
    values = np.random.default_rng(3).gamma(1, 10, 103)
    assert (F.quantile_bins(values, 5) == pd.qcut(values, 5, labels=False)).mean() > 0.97
    assert F.quantile_bins([3.0, np.nan, 3.0, 1.0], 2).tolist() == [1, 2, 1, 0]


def test_wrong_tables_and_options(rows):
    cases = [
        ({"scheme": "by_moon"}, rows, "by_moon"),
        ({"scheme": "leave_state_out", "folds": 5}, rows, "makes 3 folds of this table, not 5"),
        ({"scheme": "group_date_state", "folds": 40}, rows, "26 groups of date and state"),
        ({"scheme": "group_month", "folds": 1}, rows, "--folds 1"),
        ({"scheme": "group_month", "folds": 13}, rows, "months"),
        ({"scheme": "leave_state_out"}, rows[rows["state"] == "Vic"], "every row has the state Vic"),
        ({"scheme": "group_month"}, rows.drop(columns="month"), "no column month"),
        ({"scheme": "group_month"}, rows.assign(state=rows["state"].where(rows.index != 4)), rows["id"][4]),
        ({"scheme": "group_month"}, pd.concat([rows, rows.iloc[:1]]), rows["id"][0]),
    ]
    for options, table, told in cases:
        with pytest.raises(InputError) as error:
            F.make_folds(table, **{**NAMED, **options})
        assert told in str(error.value) and "\n" not in str(error.value)


def test_file_round_trip(file):
    table = F.read_folds(file)
    assert list(table.columns) == ["id", "path", "group", "fold", "green"]
    assert table["fold"].tolist() == [i // 2 % 3 for i in range(12)] + [-1, -1]
    assert table["green"].tolist() == [i / 3 for i in range(14)]


def test_ids_and_groups_stay_text(tmp_path):
    rows = pd.DataFrame({"id": ["007", "7", "NA", "1e3"], "path": list("abcd")})
    F.write_folds(tmp_path / "f.csv", rows, [0, 1, 0, 1], ["01", "1", "nan", "NA"], [])
    table = F.read_folds(tmp_path / "f.csv")
    assert table["id"].tolist() == ["007", "7", "NA", "1e3"] and table["group"].tolist() == ["01", "1", "nan", "NA"]


def test_hash_sees_who_is_validated_when_and_nothing_else(file):
    first, table = F.folds_hash(file), pd.read_csv(file, dtype=str, keep_default_na=False)
    same = {
        "other line ends": lambda: file.write_bytes(table.to_csv(index=False, lineterminator="\r\n").encode()),
        "other order": lambda: table.iloc[::-1][["fold", "green", "group", "path", "id"]].to_csv(file, index=False),
        "other path": lambda: table.assign(path="x", green="1").to_csv(file, index=False),
        "no test rows": lambda: table[table["fold"] != "-1"].to_csv(file, index=False),
        "a byte-order mark": lambda: table.to_csv(file, index=False, encoding="utf-8-sig"),
    }
    other = {
        "fold": lambda: table.assign(fold=["1", *table["fold"][1:]]).to_csv(file, index=False),
        "group": lambda: table.assign(group=["x", *table["group"][1:]]).to_csv(file, index=False),
        "id": lambda: table.assign(id=["x", *table["id"][1:]]).to_csv(file, index=False),
        "a row less": lambda: table.iloc[1:].to_csv(file, index=False),
        "a row to test": lambda: table.assign(fold=["-1", *table["fold"][1:]]).to_csv(file, index=False),
    }
    for name, write in same.items():
        write()
        assert F.folds_hash(file) == first, name
    hashes = {first}
    for write in other.values():
        write()
        hashes.add(F.folds_hash(file))
    assert len(hashes) == 5 and all(len(h) == 64 for h in hashes)  # two of them leave the same training rows


def test_join_follows_ids_in_any_order(file):
    table = F.read_folds(file)
    rows = table.iloc[[5, 0, 11, *range(1, 5), *range(6, 11)]][["id", "path"]].set_index(np.arange(12) * 2)
    joined = F.join_folds(rows, table, file)
    assert (joined.index == rows.index).all() and "fold" not in rows
    assert joined["fold"].tolist()[:3] == [2, 0, 2] and joined["group"].tolist()[:3] == ["g2", "g0", "g5"]


def test_folds_of_other_data(file):
    table = F.read_folds(file)
    rows = table[["id", "path"]]
    F.join_folds(rows.iloc[2:12], table, file, dropped=["ID00", "ID01"])
    cases = [
        (rows.iloc[2:12], table, ["2 ids in it are not in the data", "ID00"]),
        (rows.iloc[2:12], table.iloc[3:], ["1 ids of the data are not in it", "ID02"]),
        (rows.iloc[[0, *range(12)]], table, ["ID00 twice"]),
        (rows.iloc[:12], table.iloc[[3, *range(12)]], ["ID03 twice"]),
    ]
    for some, of, told in cases:
        with pytest.raises(InputError) as error:
            F.join_folds(some, of, file)
        assert all(words in str(error.value) for words in told) and "\n" not in str(error.value)


def test_broken_files(file, tmp_path):
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    fold = table["fold"].tolist()
    cases = [
        (table.drop(columns="group"), "no column group"),
        (table.assign(id=["ID01", *table["id"][1:]]), "ID01"),
        (table.assign(fold=["", *fold[1:]]), "1 rows have no fold"),
        (table.assign(fold=["1.5", *fold[1:]]), "ID00"),
        (table.assign(fold=["-4", *fold[1:]]), "ID00"),
        (table.assign(fold=["3" if f == "2" else f for f in fold]), "[0, 1, 3]"),
        (table.assign(fold="0"), "[0]"),
    ]
    for broken, told in cases:
        broken.to_csv(file, index=False)
        with pytest.raises(InputError) as error:
            F.read_folds(file)
        assert told in str(error.value) and str(file) in str(error.value)
    for content in (b"", b'id,group,fold\n"a,b\n', b"\xff\xfe\x00\x01,"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"folds\.csv"):
            F.read_folds(file)
    for absent in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError):
            F.read_folds(absent)


def test_failed_write_leaves_the_old_file_and_nothing_else(file, monkeypatch):
    before = file.read_bytes()
    table = F.read_folds(file)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        F.write_folds(file, table, table["fold"] * 0, table["group"], ["green"])
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ["folds.csv"]


def test_group_that_straddles_is_named(file):
    table = F.read_folds(file)
    F.check_groups(table)
    for fold in (1, -1):
        table.loc[4, "fold"] = fold
        with pytest.raises(InputError, match="group g2 straddles"):
            F.check_groups(table)


@pytest.mark.data
@pytest.mark.parametrize("scheme", sorted(F.SCHEMES))
def test_real_rows_by_every_scheme(biomass_data, scheme):
    rows = real_rows(biomass_data)
    fold, group = F.make_folds(rows, scheme=scheme, **NAMED)
    F.check_groups(rows.assign(fold=fold, group=group))
    folds, groups = {"leave_state_out": (4, 4), "leave_month_out": (10, 10)}.get(
        scheme, (5, {"group_date_state": 30, "stratified": 357}.get(scheme, 10))
    )
    assert set(fold) == set(range(folds)) and len(set(group)) == groups


def test_a_published_split_with_rows_that_are_neither():
    rows = pd.DataFrame({"id": list("abcde")})
    fold, group = F.hold_out(rows, ["b"], ["c", "e"])
    assert fold.tolist() == [F.ALWAYS, 0, F.UNUSED, F.ALWAYS, F.UNUSED]
    assert group.tolist() == ["rest", "held", "left out", "rest", "left out"]
    for held, left, told in ((["x"], [], "--hold x"), (["a"], ["y"], "--leave-out y"), (["a"], ["a"], "--leave-out a"),
                             (["a", "b"], ["c", "d", "e"], "nothing is left")):  # fmt: skip
        with pytest.raises(InputError, match=told):
            F.hold_out(rows, held, left)


def test_unused_rows_are_neither_trained_nor_validated():
    from train import split_rows

    rows = pd.DataFrame({"id": list("abcd"), "fold": [F.ALWAYS, 0, F.UNUSED, F.TEST]})
    train, valid = split_rows(rows, 0)
    assert train["id"].tolist() == ["a"] and valid["id"].tolist() == ["b"]
    assert split_rows(rows, "all")[0]["id"].tolist() == ["a", "b"]
