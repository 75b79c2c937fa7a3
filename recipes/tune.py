"""Search over settings: Optuna draws trials from a table of choices, the folds or short runs end poor ones early.

python recipes/tune.py --task rts --trials 27 --epochs 10 30 90 -- --data DIR --workers 8   # after --: of train.py
python recipes/tune.py --trials 20 -- --data DIR --freeze-backbone --epochs 20
python recipes/tune.py --sampler grid --trials 100 --storage postgresql://host/tune -- --data DIR  # on every machine

Every trial is an ordinary run of train.py, a process a fold. runs/<name>/ keeps what each was trained with, plots,
results.csv and best.yaml; the last line is the command that trains the winner in full. Called again, a stopped search
goes on, and more --trials are added to it; called in other processes or on other machines too, the calls share it.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train
from common.datasets.folds import folds_hash, join_folds, read_folds
from common.engine import runs
from common.errors import InputError, run_script
from common.files import atomic_write
from common.session import pick_task
from common.settings import Parser, duration, plain_settings, positive, read_config
from common.tasks import TASKS
from recipes.search import report, space, study, trials

CHOICES = Path(__file__).resolve().parent / "search"
FLAG = argparse.BooleanOptionalAction


def parser_of(task):
    parser = Parser(prog="tune.py", description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), default=task.name, help="the competition")
    parser.add_argument("--choices", type=Path, metavar="FILE", default=CHOICES / f"{task.name}.yaml",
                        help="YAML of option: [choices] or {low, high, log}; of the tables under one_of a trial takes "
                        "one")  # fmt: skip
    parser.add_argument("--sampler", choices=list(study.SAMPLERS), default="tpe",
                        help="tpe: Bayesian; grid: every combination once; random")  # fmt: skip
    parser.add_argument("--trials", type=positive, default=20, help="how many settings to try, in all calls together")
    parser.add_argument("--epochs", type=positive, nargs="+", default=[],
                        help="of the trials, then of the best of them, and so on (default: as the recipe)")  # fmt: skip
    parser.add_argument("--keep", type=positive, default=3, metavar="N", help="one of N goes on to the longer runs")
    parser.add_argument("--prune", action=FLAG, default=True,
                        help="end a trial whose mean over the folds so far is below the median of the finished ones, "
                        "or with several --epochs one that is not to go on")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--name", help="prefix of the runs, folder of the table (default: tune-<task>-<seed>)")
    parser.add_argument("--storage", metavar="URL|FILE",
                        help="what processes and machines share: a database, or a journal file on a shared disk "
                        "(default: SQLite, runs/<name>/study.db)")  # fmt: skip
    parser.add_argument("--take-over", action="store_true",
                        help="try again what other machines left running: a journal shows no sign of life")  # fmt: skip
    parser.add_argument("--time-budget", type=duration, metavar="TIME",
                        help="8.5h, 30m, 90s: stop in time; the same call goes on")  # fmt: skip
    return parser


def given_settings(parser, words: list[str]) -> dict:
    """The settings that the words give, without any default. InputError for what train.py would not take."""
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    args = parser.parse_args(words)
    given = plain_settings(args)
    if own := sorted(set(vars(args)) & space.OWN):
        raise InputError(f"--{own[0].replace('_', '-')} after --: is the search's own to give; leave it out")
    return given


def find_folds(home: Path, config: dict) -> tuple[list[int], str]:
    """(the folds that every trial is trained on, the hash of folds.csv): as train.py finds or makes them."""
    path = atomic_write(home / "base.yaml", yaml.safe_dump(config, sort_keys=False))
    session = train.begin_training(["--config", str(path), "--run", home.name])
    rows = session.task.read_rows(session.data, session.settings)
    file = train.find_folds(session, rows, SimpleNamespace(main=True))
    rows = join_folds(rows, read_folds(file), file, dropped=session.task.dropped_ids(session.settings))
    folds = train.choose_folds(session, runs.expected_folds(rows))
    if "all" in folds:
        raise InputError("--fold all: nothing validates such a run, so it has no score; search with folds")
    return folds, folds_hash(file)


def open_search(args, task, words: list[str]) -> tuple:
    """(Optuna's study, what its trials have in common, the settings given after --). InputError for wrong input."""
    base = (read_config(args.config) if args.config else {}) | {"task": task.name}
    parser = train.parser_of(task)
    tables, given = space.read_choices(args.choices, parser), given_settings(train.parser_of(task), words)
    if args.epochs and any("epochs" in options for options in (given, *tables)):
        raise InputError("--epochs: is given twice; leave it out after -- and of the choices")
    if args.epochs != sorted(set(args.epochs)):
        raise InputError("--epochs: each number must be larger than the one before: the best go on to longer runs")
    if args.name and (Path(args.name).name != args.name or args.name == ".."):
        raise InputError(f"--name {args.name}: is a name, not a path; runs/<name>/ and the runs beside it are named so")
    if fixed := sorted({option for table in tables for option in table} & set(given)):
        print(f"not searched, since given: {', '.join(fixed)}")
        tables = space.fix(tables, given, parser)
    if args.sampler == "grid" and math.isinf(space.count_combinations(tables)):
        raise InputError(f"--sampler grid: {args.choices} has ranges; give choices there, or --sampler tpe")
    home = runs.RUNS / (args.name or f"tune-{task.name}-{args.seed}")
    config = base | given
    folds, folds_id = find_folds(home, config)
    config = {key: value for key, value in config.items() if key not in report.NOT_IN_FULL}
    deciding = {key: value for key, value in config.items() if key not in runs.FREE}
    facts = {"settings": deciding, "choices": tables, "epochs": args.epochs, "folds": folds, "folds.csv": folds_id[:12]}
    store = args.storage or f"sqlite:///{home / 'study.db'}"
    deadline = math.inf if args.time_budget is None else time.monotonic() + args.time_budget
    wanted = min(args.trials, space.count_combinations(tables))
    common = trials.Search(home, tables, config, args.epochs or [None], folds, args.keep, wanted, args.seed, deadline)
    opened = study.open_study(store, home, json.loads(json.dumps(facts)))
    opened.pruner = study.pruner_of(args.keep, len(common.rounds), args.prune)
    return opened, common, base, given


def go_through(opened, search: trials.Search, sampler: str) -> None:
    """Train trials until there are as many as wanted, counting those that other processes have begun."""
    repeats = 0
    while len(study.trials_that_count(opened)) < search.wanted:
        by, ended = sampler if repeats < study.REPEATS else "grid", []
        study.draw_by(opened, by, search.tables, search.seed, len(opened.get_trials(deepcopy=False)))
        opened.optimize(
            lambda trial, by=by: trials.run_trial(trial, search, by),
            n_trials=1,
            catch=(study.Void,),
            callbacks=[lambda _, trial, ended=ended: ended.append(trial)],
        )
        repeats = repeats + 1 if "void" in ended[0].user_attrs else 0
        if not repeats:
            report.write_table(opened, search.home)
            print(f"{report.say_trial(ended[0])} ({len(study.trials_that_count(opened))} of {search.wanted})")
        study.revive(opened, search.home)


def conclude(opened, search: trials.Search, base: dict, given: dict) -> None:
    """The table, the plots and the command that trains the winner in full."""
    table = report.write_table(opened, search.home)
    print(table.head(10).to_string(index=False))
    best = report.best_trial(opened, search.home)
    if missing := report.write_plots(opened, search.home / "plots"):
        print(f"not drawn: {', '.join(missing)}")
    counted = study.trials_that_count(opened)
    if running := sum(trial.state.name == "RUNNING" for trial in counted):
        print(f"{running} trial(s) still run elsewhere; the same call says who won when they have ended")
    if again := sum(trial.state.name == "FAIL" and study.is_worth_it(trial) for trial in counted):
        print(f"{again} trial(s) ended with an error elsewhere; the same call tries them again")
    print(f"best: {best.user_attrs['rounds'][-1]['run']}, score {best.value:.4f} of {len(counted)} trials")
    print(f"the winner in full: {report.write_winner(best, search.home, base, given)}")


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    own, words = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    task = pick_task(TASKS, own)
    args = parser_of(task).parse_args(own)
    study.load()
    opened, search, base, given = open_search(args, task, words)
    with study.named_errors(args.storage or "study.db"):
        if again := study.revive(opened, search.home, take_over=args.take_over, failed=True):
            print(f"{again} trial(s) that were stopped are tried again")
        try:
            go_through(opened, search, args.sampler)
        except trials.OutOfTime:
            report.write_table(opened, search.home)
            print(f"stopped by --time-budget after {len(study.trials_that_count(opened)) - 1} trials; the same call "
                  "goes on")  # fmt: skip
            return trials.STOPPED
        conclude(opened, search, base, given)


if __name__ == "__main__":
    sys.exit(run_script(main))
