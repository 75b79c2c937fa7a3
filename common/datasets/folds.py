"""Who is validated when: the fold schemes, the imbalance of a split, and folds.csv.

Every scheme keeps rows of one group together. Columns of `rows` are named by arguments, so that any task can use them.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from common.datasets.balance import balance_matrix, balanced_groups, fold_costs
from common.errors import InputError
from common.files import atomic_write
from common.table_files import read_csv

FOLDS = 5
# folds of rows that are never trained or tuned on, of rows trained on in every fold, and of rows that are left out
TEST, ALWAYS, UNUSED = -1, -2, -3
REMAKE = "make it again with make_folds.py"
LEAKS = (
    "scheme stratified leaks: it splits groups, so that rows of one date and place are on both sides and scores come"
    " out too good (.86 to .95 where the leaderboard said .62 to .72); for comparison only"
)


def group_date_state(rows, *, folds, seed, outputs, zeros, date, state, month, **_):
    """Groups of one date and state, dealt to folds by the balance search."""
    group = (pd.to_datetime(rows[date]).dt.strftime("%Y-%m-%d") + "_" + rows[state].astype(str)).to_numpy(str)
    _need(len(set(group)), folds, "groups of date and state")
    matrix = balance_matrix(rows, shares=(state, month), targets=outputs, zeros=zeros)
    return balanced_groups(matrix, group, folds, seed=seed), group


def group_month(rows, *, folds, seed, stratify, month, **_):
    """Groups of one month, stratified by fifths of the column `stratify` (scikit-learn's StratifiedGroupKFold)."""
    return _stratified_groups(quantile_bins(rows[stratify]), rows[month], folds, seed, "months")


def group_month_state(rows, *, folds, seed, month, state, **_):
    """Groups of one month, stratified by state (scikit-learn's StratifiedGroupKFold)."""
    return _stratified_groups(rows[state].astype(str).to_numpy(str), rows[month], folds, seed, "months")


def leave_state_out(rows, *, state, **_):
    """One fold for each state, in the order of their names; `folds` and `seed` decide nothing."""
    return _one_fold_each(rows[state])


def leave_month_out(rows, *, month, **_):
    """One fold for each month, in their order; `folds` and `seed` decide nothing."""
    return _one_fold_each(rows[month])


def stratified(rows, *, folds, seed, outputs, state, month, **_):
    """Single rows, stratified by fifths of all outputs, state and month (iterative-stratification): leaks."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    print(LEAKS)
    names = {name: quantile_bins(rows[name]) for name in outputs} | {c: rows[c].astype(str) for c in (state, month)}
    labels = pd.get_dummies(pd.DataFrame(names).astype(str)).to_numpy(int)
    fold = np.full(len(rows), -1)
    splitter = MultilabelStratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    for k, (_train, held) in enumerate(splitter.split(np.zeros(len(rows)), labels)):
        fold[held] = k
    return fold, rows["id"].to_numpy(str)


SCHEMES = {
    "group_date_state": group_date_state,
    "group_month": group_month,
    "group_month_state": group_month_state,
    "leave_state_out": leave_state_out,
    "leave_month_out": leave_month_out,
    "stratified": stratified,
}


def make_folds(
    rows, *, scheme, folds=None, seed=42, outputs, stratify=None, zeros=(), date="date", state="state", month="month"
):
    """(fold (n,) int 0..K-1, group (n,) str) of training rows by a scheme of SCHEMES.

    folds: how many (None: 5; the leave-out schemes make one per state or month and refuse another count);
    outputs: target columns to balance; stratify: the one `group_month` bins (None: the last of outputs); zeros: columns
    whose share of zeros is balanced. The answer belongs to the ids: it does not depend on the order of the rows.
    InputError: missing or repeated values in the columns needed, too few groups, a fold left empty.
    """
    if scheme not in SCHEMES:
        raise InputError(f"--scheme {scheme} is unknown; choose one of {', '.join(sorted(SCHEMES))}")
    _check_table(rows, ["id", *outputs, date, state, month], required=("id", date, state, month))
    order = np.argsort(rows["id"].to_numpy(str), kind="stable")
    named = {"outputs": tuple(outputs), "stratify": stratify or outputs[-1], "zeros": tuple(zeros)}
    columns = {"date": date, "state": state, "month": month}
    count = FOLDS if folds is None else int(folds)
    if count < 2 or count > len(rows):
        raise InputError(f"--folds {count}: choose 2 to {len(rows)}, the number of rows")
    sorted_fold, sorted_group = SCHEMES[scheme](rows.iloc[order], folds=count, seed=seed, **named, **columns)
    made = len(set(sorted_fold.tolist()))
    if folds is not None and made != count:  # only the leave-out schemes have a number of their own
        raise InputError(f"--scheme {scheme} makes {made} folds of this table, not {count}; leave --folds out")
    fold, group = np.empty(len(rows), int), np.empty(len(rows), object)
    fold[order], group[order] = sorted_fold, sorted_group
    return fold, group.astype(str)


def imbalance(rows, fold, *, outputs, zeros=(), shares=("state", "month")) -> float:
    """How far the folds are from looking alike: 0 is perfect, lower is better.

    Sum over folds of the squared deviations (from the value over all rows) of the shares of each value of the columns
    `shares`, of the means of `outputs` in standard deviations, and of the shares of zeros of `zeros`, plus 25 times the
    squared deviation of the fold's share of rows from 1/K. Rows of fold -1 count nowhere. A table of 30
    groups in 5 folds: .555 by the search, 1.13 to 2.5 for the best of 300 seeds of StratifiedGroupKFold, by its label.
    """
    fold = np.asarray(fold)
    used = rows[fold >= 0]
    labels, index = np.unique(fold[fold >= 0], return_inverse=True)
    matrix = balance_matrix(used, shares=shares, targets=outputs, zeros=zeros)
    return float(fold_costs(matrix, index, len(labels)).sum())


def fold_table(rows, fold, group, *, outputs, zeros=(), shares=("state", "month"), show=("state",)) -> str:
    """The balance of a split as text: a line per fold, and one for all rows of fold >= 0.

    Columns: rows, groups, the shares (%) of each value of the columns `show`, means of outputs, zeros (%) of `zeros`,
    the fold's part of `imbalance` (the last line: their sum).
    """
    used = rows[np.asarray(fold) >= 0]
    fold, group = np.asarray(fold)[np.asarray(fold) >= 0], np.asarray(group)[np.asarray(fold) >= 0]
    labels, index = np.unique(fold, return_inverse=True)
    costs = fold_costs(balance_matrix(used, shares=shares, targets=outputs, zeros=zeros), index, len(labels))
    lines = []
    for k, cost in [*zip(labels.tolist(), costs, strict=True), ("all", costs.sum())]:
        held = np.ones(len(fold), bool) if k == "all" else fold == k
        part = used[held]
        line = {"fold": k, "rows": len(part), "groups": len(set(group[held].tolist()))}
        for name in show:
            for value in sorted(set(used[name].astype(str))):
                line[f"{value} %"] = f"{100 * (part[name].astype(str) == value).mean():.0f}"
        line |= {name: f"{part[name].mean():.1f}" for name in outputs}
        line |= {f"{name}=0 %": f"{100 * (part[name] == 0).mean():.0f}" for name in zeros}
        lines.append(line | {"imbalance": f"{cost:.3f}"})
    return pd.DataFrame(lines).to_string(index=False)


def write_folds(path, rows, fold, group, outputs) -> None:
    """Writes folds.csv (`id, path, group, fold, <outputs>`) whole or not at all; in fold -1 (test) outputs may lack."""
    path = Path(path)
    table = pd.DataFrame({"id": rows["id"], "path": rows["path"]}).assign(group=group, fold=fold)
    for name in outputs:
        table[name] = rows[name] if name in rows else np.nan
    try:
        atomic_write(path, lambda part: table.to_csv(part, index=False, lineterminator="\n"))
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another --out"
        ) from error


def read_folds(path) -> pd.DataFrame:
    """folds.csv as a table: id, group (and path) as text, fold as int, whatever else as numbers.

    InputError: not there, not a table, a column missing, ids repeated, a fold missing or no whole number, a number of a
    fold skipped (0, 1, 3).
    """
    if not Path(path).exists():
        raise InputError(f"{path} is not there; make it with make_folds.py or name another with --folds")
    table = read_csv(path, text=None, remedy=REMAKE)
    lacking = [name for name in ("id", "group", "fold") if name not in table]
    if lacking:
        raise InputError(f"{path} has no column {', '.join(lacking)}; {REMAKE}")
    if table["id"].duplicated().any():
        twice = table["id"][table["id"].duplicated()]
        raise InputError(f"{path} holds {twice.nunique()} ids more than once, {twice.iloc[0]} for one; {REMAKE}")
    fold = pd.to_numeric(table["fold"], errors="coerce")
    wrong = table["id"][~((fold >= UNUSED) & (fold % 1 == 0))]
    if len(wrong):
        raise InputError(
            f"{path}: {len(wrong)} rows have no fold (a whole number from {UNUSED}), {wrong.iloc[0]} for one; {REMAKE}"
        )
    table["fold"] = fold.astype(int)
    held = sorted(set(table["fold"]) - {TEST, ALWAYS, UNUSED})
    if held != list(range(len(held))) or len(held) + (table["fold"] == ALWAYS).any() < 2 or not held:
        raise InputError(f"{path} holds the folds {held}, not 0, 1, 2 ... without a gap; {REMAKE}")
    for name in table.columns.difference(["id", "path", "group", "fold"]):
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return table


def folds_hash(path) -> str:
    """sha256 (hex) of who is validated when: (id, group, fold) of all rows but test's, sorted by id.

    Line endings, order of rows or columns, paths, targets and test rows (fold -1) change nothing.
    """
    table = read_folds(path)
    table = table[table["fold"] != TEST].sort_values("id")
    content = json.dumps([table["id"].tolist(), table["group"].tolist(), table["fold"].tolist()])
    return hashlib.sha256(content.encode()).hexdigest()


def join_folds(rows, folds, path, *, dropped=()) -> pd.DataFrame:
    """A copy of rows with the columns `group` and `fold` of the table `folds` (of read_folds), joined by id.

    path: where the table came from, for the messages; dropped: ids taken out of rows on purpose. Test rows (fold -1) of
    the table that rows lacks are fine. InputError: repeated ids, or ids that one has and the other lacks.
    """
    for name, table in (("the table of rows", rows), (path, folds)):
        if table["id"].duplicated().any():
            raise InputError(f"{name} holds the id {table['id'][table['id'].duplicated()].iloc[0]} twice; keep one")
    ids, known = set(rows["id"]), set(folds["id"])
    missing = sorted(ids - known)
    surplus = sorted(set(folds["id"][folds["fold"] != TEST]) - ids - set(dropped))
    for these, what in ((missing, "of the data are not in it"), (surplus, "in it are not in the data")):
        if these:
            raise InputError(f"{path} belongs to other data: {len(these)} ids {what}, {these[0]} for one; {REMAKE}")
    by_id = folds.set_index("id").loc[rows["id"]]
    return rows.assign(group=by_id["group"].to_numpy(str), fold=by_id["fold"].to_numpy(int))


def check_groups(rows, path="folds.csv") -> None:
    """InputError naming the first group whose rows (columns `group`, `fold`) are in more than one fold."""
    spread = rows.groupby("group")["fold"].agg(lambda fold: sorted(set(fold)))
    for group, held in spread.items():
        if len(held) > 1:
            raise InputError(f"{path}: group {group} straddles the folds {', '.join(map(str, held))}; {REMAKE}")


def hold_out(rows, ids: list[str], unused: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """(fold, group) of a split that someone else has published: the ids are fold 0, all other rows are trained on.

    unused: ids that are neither, between the two. InputError for an id that is not in `rows`, one on both lists, or
    where nothing is left to train on.
    """
    for option, named in (("--hold", ids), ("--leave-out", unused)):
        unknown = sorted(set(named) - set(rows["id"]))
        if unknown:
            raise InputError(f"{option} {unknown[0]}: is no id of the data; name some of its ids")
    both = sorted(set(ids) & set(unused))
    if both:
        raise InputError(f"--leave-out {both[0]}: is named by --hold too; name it once")
    if set(ids) | set(unused) >= set(rows["id"]):
        raise InputError("--hold …: nothing is left to train on; name some of the ids of the data, not others or all")
    held, left = (rows["id"].isin(named).to_numpy() for named in (ids, unused))
    fold = np.where(held, 0, np.where(left, UNUSED, ALWAYS))
    return fold, np.where(held, "held", np.where(left, "left out", "rest"))


def quantile_bins(values, count: int = 5) -> np.ndarray:
    """(n,) int bin of each number by rank, 0..count-1, equal numbers in one bin; missing numbers in bin `count`."""
    rank = pd.Series(np.asarray(values, float)).rank(method="average")
    share = (rank - 0.5) / max(rank.notna().sum(), 1)
    return np.where(rank.isna(), count, np.floor(share.fillna(0) * count)).astype(int)


def _stratified_groups(label, group, folds, seed, what):
    group = group.astype(str).to_numpy(str)
    _need(len(set(group)), folds, what)
    fold = np.full(len(group), -1)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # rare labels cannot be in every fold
        try:
            for k, (_train, held) in enumerate(splitter.split(np.zeros(len(group)), label, group)):
                fold[held] = k
        except ValueError as error:  # every label has fewer rows than there are folds
            raise InputError(f"the table of rows is too small for {folds} folds; choose fewer with --folds") from error
    if len(set(fold.tolist())) < folds:
        raise InputError(f"{folds} folds cannot be filled from {what} of such sizes; choose fewer with --folds")
    return fold, group


def _one_fold_each(values):
    """Folds in the order of the values themselves (month 2 before month 10)."""
    names, fold = np.unique(values.to_numpy(), return_inverse=True)
    if len(names) < 2:
        raise InputError(f"every row has the {values.name} {names[0]}: none can be left out; choose another --scheme")
    return fold, values.astype(str).to_numpy(str)


def _need(found, folds, what):
    if found < folds:
        raise InputError(
            f"the data has {found} {what}, too few for {folds} folds; choose fewer --folds or another --scheme"
        )


def _check_table(rows, columns, required):
    lacking = [name for name in columns if name not in rows]
    if lacking:
        raise InputError(f"the table of rows has no column {', '.join(lacking)}; choose another --scheme")
    for name in required:
        if rows[name].isna().any():
            at = rows["id"][rows[name].isna()].iloc[0]
            raise InputError(f"row {at} of the data has no {name}, which the folds need; fill it in or use --drop-ids")
    if rows["id"].duplicated().any():
        raise InputError(f"the data holds the id {rows['id'][rows['id'].duplicated()].iloc[0]} twice; keep one")
