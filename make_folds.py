"""Who is validated when: raw data -> folds.csv, made once and read by everything after.

python make_folds.py --data DIR                       # the task's default scheme
python make_folds.py --data DIR --scheme group_month  # see --help for the others
"""

import sys
from pathlib import Path

import pandas as pd

from common.datasets.folds import TEST, folds_hash, hold_out, read_folds, write_folds
from common.errors import InputError, run_script
from common.session import begin, inside_demo, make_parser, pick_task
from common.tasks import TASKS


def parser_of(task):
    parser = make_parser("make_folds", task, TASKS, __doc__.splitlines()[0])
    folds = parser.add_argument_group("folds")
    folds.add_argument("--scheme", choices=task.schemes, default=task.schemes[0], help="how rows are held together")
    folds.add_argument(
        "--folds", type=int, help="how many (default 5; the leave-out schemes make as many as there are)"
    )
    folds.add_argument(
        "--hold", nargs="+", metavar="ID", help="instead of a scheme: these rows are fold 0, all others are trained on"
    )
    folds.add_argument("--leave-out", nargs="+", default=[], metavar="ID", help="with --hold: rows that are neither")
    folds.add_argument("--seed", type=int, default=42, help="of the search")
    folds.add_argument("--out", type=Path, help="file to write (default: folds.csv in the data folder)")
    folds.add_argument("--force", action="store_true", help="replace folds.csv if it is there with other folds")
    checks = parser.add_argument_group("checks")
    checks.add_argument("--adversarial", action="store_true", help="can a classifier tell train from test, and folds?")
    checks.add_argument("--duplicates", action="store_true", help="look for near-duplicate photos across folds")
    task.add_arguments(parser, "folds")
    return parser


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    task = pick_task(TASKS, argv)
    parser = parser_of(task)
    asked = begin(parser, task, argv, split=None)
    task.cut(asked.settings, lambda path: inside_demo(task, Path(path), asked.args.cache))
    session = begin(parser, task, argv)
    args = session.args
    rows, test = task.read_rows(session.data, session.settings), task.read_test(session.data)
    test = test[~test["path"].isin(rows["path"])].reset_index(drop=True)  # --labels may have made it a training row
    if args.leave_out and not args.hold:
        raise InputError("--leave-out: goes with --hold, a scheme deals all rows; give both")
    if args.hold:
        fold, group = hold_out(rows, args.hold, args.leave_out)
    else:
        more = task.fold_options(session.settings)
        fold, group = task.make_folds(rows, scheme=args.scheme, folds=args.folds, seed=args.seed, **more)
    print(task.describe_folds(rows, fold, group))
    if args.scheme == "stratified":
        print("stratified: rows of one group are on both sides; its scores flatter, use them for comparison only")
    path = args.out or session.data / "folds.csv"
    findings = task.check_data(rows) + task.check_folds(rows, fold, path, session.settings)
    findings += task.study_data(
        rows, test, fold, session.settings, adversarial=args.adversarial, duplicates=args.duplicates
    )
    print("\n".join(findings))
    table = with_test(rows, test, fold, group)
    if path.is_file() and not args.force and not same_folds(path, table):
        raise InputError(
            f"{path}: holds other folds, which runs may depend on; --force replaces them, --out keeps both"
        )
    write_folds(path, table, table["fold"], table["group"], task.target_columns(rows))
    listed = int((table["fold"] == TEST).sum())
    print(f"folds: {path} ({len(rows)} rows, {listed} test rows in fold -1, hash {folds_hash(path)[:12]})")


def with_test(rows, test, fold, group):
    """One table of training rows and test rows, these in fold -1 and each its own group.

    Test rows that are named as training rows are (tiles of another region, numbered alike) cannot be in it.
    """
    named = test["id"].isin(rows["id"])
    if named.any():
        print(f"{named.sum()} test rows have the id of a training row and are not listed ({test['id'][named].iloc[0]})")
    test = test[~named]
    return pd.concat([rows.assign(fold=fold, group=group), test.assign(fold=-1, group=test["id"])], ignore_index=True)


def same_folds(path, table) -> bool:
    old = read_folds(path).set_index("id")["fold"]
    return old[old != TEST].to_dict() == table[table["fold"] != TEST].set_index("id")["fold"].to_dict()


if __name__ == "__main__":
    sys.exit(run_script(main))
