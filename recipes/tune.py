"""Search over settings: trials drawn from a file of choices, in short runs first, the best of them in longer ones.

python recipes/tune.py --task rts --trials 27 --epochs 10 30 90 -- --data DIR --workers 8   # after --: of train.py
python recipes/tune.py --trials 20 -- --data DIR --freeze-backbone --epochs 20

Every trial is an ordinary run of train.py in a process of its own. runs/<name>/ keeps what each was trained with,
results.csv, and best.yaml for the full fit. Called again, a stopped search goes on, and more --trials are added to it.
"""

import argparse
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train
from common.engine import runs
from common.engine.tracking import read_log
from common.errors import InputError, run_script
from common.files import atomic_write
from common.session import pick_task
from common.settings import Parser, check_value, plain_settings, positive, read_config, settings_hash
from common.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
CHOICES = ROOT / "recipes" / "search"
ONE_OF = "one_of"
OWN = {"config", "run", "task", "resume", "force", "check", "expect"}  # options of train.py that the search gives
MACHINE = runs.FREE - {"data", "fold", "folds", "train_folds"}  # what a trial's score does not depend on


def parser_of(task):
    parser = Parser(prog="tune.py", description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), default=task.name, help="the competition")
    parser.add_argument("--choices", type=Path, metavar="FILE", default=CHOICES / f"{task.name}.yaml",
                        help="YAML of option: [choices]; of the tables under one_of a trial takes one")  # fmt: skip
    parser.add_argument("--trials", type=positive, default=20, help="how many settings to try")
    parser.add_argument("--epochs", type=positive, nargs="+", default=[],
                        help="of the trials, then of the best of them, and so on (default: as the recipe)")  # fmt: skip
    parser.add_argument("--keep", type=positive, default=3, metavar="N", help="one of N goes on to the longer runs")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--name", help="prefix of the runs, folder of the table (default: tune-<task>-<seed>)")
    return parser


def read_choices(path: Path, parser) -> list[dict[str, list]]:
    """Tables {option: choices} of which a trial takes one: the file's own joined with each of those under one_of.

    InputError for an option that train.py (its `parser`) does not have and for a choice that it would not take.
    """
    if not path.is_file():
        raise InputError(f"--choices {path}: no such file; write one with lines like lr: [1e-4, 3e-4]")
    common = read_config(path)
    entries, tables = common.pop(ONE_OF, [{}]), []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise InputError(f"--choices {path}: {ONE_OF} must be a list of tables of option: [choices]")
    for entry in entries:
        table = common | {str(key).replace("-", "_"): values for key, values in entry.items()}
        tables.append({option: check_choices(path, option, values, parser) for option, values in table.items()})
    return tables


def check_choices(path: Path, option: str, values, parser) -> list:
    actions = parser.actions()
    if option not in actions or option in OWN:
        raise InputError(f"--choices {path}: {option} is no option to choose{parser.nearest('--' + option)}")
    if not isinstance(values, list) or not values:
        raise InputError(f"--choices {path}: {option}: give a list of choices, not {values!r}")
    for value in values:
        check_value(actions[option], value, f"--choices {path}")
    return values


def draw_trials(tables: list[dict[str, list]], seed: int, count: int) -> list[dict]:
    """Different {option: choice}, each combination as likely as any other; the first ones are the same for every count.

    All there are where they are fewer than `count`.
    """
    sizes = [math.prod(map(len, table.values())) for table in tables]
    rng, numbers = np.random.default_rng(seed), {}
    while len(numbers) < min(count, sum(sizes)):
        numbers.setdefault(int(rng.integers(sum(sizes))))
    return [pick(tables, sizes, number) for number in numbers]


def pick(tables: list[dict[str, list]], sizes: list[int], number: int) -> dict:
    """The combination of this number, counted through all tables."""
    place = 0
    while number >= sizes[place]:
        number, place = number - sizes[place], place + 1
    chosen, table = {}, tables[place]
    for option, values in table.items():
        number, which = divmod(number, len(values))
        chosen[option] = values[which]
    return chosen


def given_settings(parser, words: list[str]) -> dict:
    """The settings that the words give, without any default. InputError for what train.py would not take."""
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    args = parser.parse_args(words)
    given = plain_settings(args)
    if own := sorted(set(vars(args)) & OWN):
        raise InputError(f"--{own[0]} after --: is the search's own to give; leave it out")
    return given


def fix(tables: list[dict[str, list]], given: dict, parser) -> list[dict[str, list]]:
    """The tables without the options that are given; of one_of those remain that hold what is given, if any does."""
    actions = parser.actions()
    holding = [
        table
        for table in tables
        if all(given[option] in [check_value(actions[option], value, "") for value in table[option]]
               for option in table.keys() & given.keys())
    ]  # fmt: skip
    return [{key: values for key, values in table.items() if key not in given} for table in holding or tables]


def launch(words: list[str]) -> int:
    """Exit code of train.py in a process of its own: what a trial leaves in memory, or its crash, ends with it."""
    sys.stdout.flush()
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *words]).returncode


def has_collapsed(log: list[dict]) -> bool:
    return bool(log) and log[-1].get("predicts_nothing", True) and log[-1].get("train_predicted") == 0


def run_trial(name: str, config: Path, words: list[str]) -> dict:
    """{"score": mean over the folds, NaN where one collapsed, "best_epoch", "state"} of a run, new or begun."""
    run = runs.RUNS / name
    begun = any(run.glob("fold*/last.pt"))
    code = launch([*words, "--config", str(config), "--run", name, *(["--resume"] if begun else [])])
    logs = [read_log(folder) for folder in sorted(run.glob("fold*"))]
    if code == 2 and any(map(has_collapsed, logs)):
        return {"score": math.nan, "best_epoch": 0, "state": "collapsed"}
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise InputError(f"{name}: train.py ended with code {code}, its message is above; finished trials are kept, "
                         "the same call goes on")  # fmt: skip
    scores = [json.loads(path.read_text())["score"] for path in run.glob("fold*/finished.json")]
    if None in scores:
        raise InputError(f"{name}: has no score, since nothing validated it; search with folds")
    best = [max(log, key=lambda line: line["score"])["epoch"] for log in logs if log]
    return {"score": float(np.mean(scores)), "best_epoch": round(np.mean(best or [0])), "state": "finished"}


def read_results(path: Path) -> dict[str, dict]:
    """{run: its line of the table}."""
    if not path.is_file():
        return {}
    return {line["run"]: line for line in pd.read_csv(path, dtype={"settings": str}).to_dict("records")}


def run_round(home: Path, trials: list[dict], base: dict, words: list[str], given: dict, epochs: int | None) -> list:
    """Lines of the table for the numbered trials {number: options}, best first; what is known is not run again."""
    path, lines = home / "results.csv", []
    known = read_results(path)
    for number, options in trials:
        name = f"{home.name}-{f'e{epochs}-' if epochs else ''}{number:03d}"
        config = base | options | ({"epochs": epochs} if epochs else {})
        deciding = {key: value for key, value in given.items() if key not in MACHINE}
        code = settings_hash({"config": config, "given": deciding}, set())
        if name in known and known[name]["settings"] != code:
            raise InputError(f"{path}: {name} had other settings; give the search another --name")
        if name not in known:
            file = atomic_write(home / f"{name}.yaml", yaml.safe_dump(config, sort_keys=False))
            facts = {"run": name, "epochs": epochs or "", **run_trial(name, file, words), "settings": code}
            known[name] = facts | {key: " ".join(map(str, np.atleast_1d(value))) for key, value in options.items()}
            atomic_write(path, ranked(list(known.values())).to_csv(index=False))
        line = known[name]
        print(f"{name}: {line['state']}, score {line['score']:.4f} ({len(lines) + 1} of {len(trials)})")
        lines.append(line | {"number": number})
    return ranked(lines).to_dict("records")


def ranked(lines: list[dict]) -> pd.DataFrame:
    """The lines by score, collapsed runs last; of equal ones the first stays first."""
    return pd.DataFrame(lines).sort_values("score", ascending=False, kind="stable", na_position="last")


def search(home: Path, trials: list[dict], base: dict, words: list[str], given: dict, rounds: list, keep: int) -> dict:
    """The options of the best trial of the last round; one of `keep` goes on from each round to the next."""
    left = list(enumerate(trials))
    for place, epochs in enumerate(rounds):
        lines = run_round(home, left, base, words, given, epochs)
        shown = pd.DataFrame(lines).drop(columns=["settings", "number"])
        print(f"round {place + 1} of {len(rounds)}:\n{shown.head(10).to_string(index=False)}")
        lines = [line for line in lines if line["state"] == "finished"]
        if not lines:
            raise InputError(f"{home / 'results.csv'}: every trial collapsed; choose other losses or learning rates")
        left = [(line["number"], trials[line["number"]]) for line in lines[: -(-len(left) // keep)]]
    print(f"best: {lines[0]['run']}, score {lines[0]['score']:.4f} at epoch {lines[0]['best_epoch']}")
    return trials[left[0][0]]


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    own, words = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    task = pick_task(TASKS, own)
    args = parser_of(task).parse_args(own)
    base = (read_config(args.config) if args.config else {}) | {"task": task.name}
    tables = read_choices(args.choices, train.parser_of(task))
    given = given_settings(train.parser_of(task), words)
    if args.epochs and any("epochs" in options for options in (given, *tables)):
        raise InputError("--epochs: is given twice; leave it out after -- and of the choices")
    fixed = sorted({option for table in tables for option in table} & set(given))
    if fixed:
        print(f"not searched, since given: {', '.join(fixed)}")
        tables = fix(tables, given, train.parser_of(task))
    home = runs.RUNS / (args.name or f"tune-{task.name}-{args.seed}")
    trials = draw_trials(tables, args.seed, args.trials)
    best = search(home, trials, base, words, given, args.epochs or [None], args.keep)
    kept = {key: value for key, value in given.items() if key not in runs.FREE}
    path = atomic_write(home / "best.yaml", yaml.safe_dump(base | kept | best, sort_keys=False))
    where = "".join(f" --{key} {shlex.quote(str(given[key]))}" for key in ("data", "folds") if key in given)
    print(f"for the full fit: python train.py --config {path}{where} --run NAME")


if __name__ == "__main__":
    sys.exit(run_script(main))
