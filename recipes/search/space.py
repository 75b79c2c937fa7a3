"""What a search may choose: tables of option: [choices] or option: {low, high}, and what a trial takes of them.

A trial takes one of the tables. Choices go to Optuna as the words of a command line ("2 2"), since its stores know no
lists; an option with a single choice is no parameter.
"""

import math
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.settings import check_value, read_config

ONE_OF = "one_of"
RANGE = {"low", "high", "log"}
OWN = {
    "config",
    "run",
    "task",
    "resume",
    "force",
    "check",
    "expect",
    "time_budget",
}  # the search's to give
SAME = OWN | {"data", "fold", "folds", "train_folds"}  # or all trials are judged by the same


def read_choices(path: Path, parser) -> list[dict]:
    """Tables {option: choices} of which a trial takes one: the file's own joined with each of those under one_of.

    InputError for an option that train.py (its `parser`) does not have and for a choice that it would not take.
    """
    if not path.is_file():
        raise InputError(f"--choices {path}: no such file; write one with lines like lr: [1e-4, 3e-4]")
    common = read_config(path, "--choices")
    entries, tables = common.pop(ONE_OF, [{}]), []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise InputError(f"--choices {path}: {ONE_OF} must be a list of tables of option: [choices]")
    for entry in entries:
        table = common | {str(key).replace("-", "_"): values for key, values in entry.items()}
        tables.append({option: check_choices(path, option, values, parser) for option, values in table.items()})
    return tables


def check_choices(path: Path, option: str, values, parser) -> list | dict:
    actions, where = parser.actions(), f"--choices {path}"
    if option not in actions or option in SAME:
        raise InputError(f"{where}: {option} is no option to choose{parser.nearest('--' + option)}")
    if isinstance(values, dict):
        return check_range(where, option, values, actions[option])
    if not isinstance(values, list) or not values:
        raise InputError(f"{where}: {option}: give a list of choices or {{low, high}}, not {values!r}")
    for value in values:
        check_value(actions[option], value, where)
    if len(set(map(label_of, values))) < len(values):
        raise InputError(f"{where}: {option}: names a choice twice")
    return values


def check_range(where: str, option: str, limits: dict, action) -> dict:
    """{"low", "high", "log"} in numbers of the option's type: whole ones where it takes whole ones."""
    if not {"low", "high"} <= limits.keys() <= RANGE or not isinstance(limits.get("log", False), bool):
        raise InputError(f"{where}: {option}: a range is {{low: A, high: B}} or {{low: A, high: B, log: true}}")
    low, high = (check_value(action, limits[end], where) for end in ("low", "high"))
    numbers = all(
        isinstance(end, (int, float)) and not isinstance(end, bool) and math.isfinite(end) for end in (low, high)
    )
    if not numbers or not low < high or (limits.get("log") and low <= 0):
        raise InputError(
            f"{where}: {option}: a range needs two finite numbers, low < high, and low > 0 where log is true"
        )
    return {"low": low, "high": high, "log": limits.get("log", False)}


def label_of(value) -> str:
    """A choice as the command line would say it: [2, 2] -> "2 2"."""
    return " ".join(map(str, np.atleast_1d(np.array(value, dtype=object))))


def holds(choices: list | dict, value, action) -> bool:
    """Whether a setting of the command line is among the choices."""
    if isinstance(choices, dict):
        return choices["low"] <= value <= choices["high"]
    return value in [check_value(action, choice, "") for choice in choices]


def fix(tables: list[dict], given: dict, parser) -> list[dict]:
    """The tables without the options that are given; of one_of those remain that hold what is given, if any does, and
    of those that are then alike the first."""
    actions = parser.actions()
    holding = [
        table
        for table in tables
        if all(holds(table[option], given[option], actions[option]) for option in table.keys() & given.keys())
    ]
    left = [{key: values for key, values in table.items() if key not in given} for table in holding or tables]
    return [table for place, table in enumerate(left) if table not in left[:place]]


def count_combinations(tables: list[dict]) -> float:
    """How many different trials there are; infinite where an option has a range."""
    return sum(
        math.prod(math.inf if isinstance(values, dict) else len(values) for values in table.values())
        for table in tables
    )


def table_labels(tables: list[dict]) -> list[str]:
    """A name for each table: its number and what it alone has as a single choice."""
    single = [{key: label_of(v[0]) for key, v in table.items() if isinstance(v, list) and len(v) == 1}
              for table in tables]  # fmt: skip
    own = [" ".join(text for key, text in table.items() if any(other.get(key) != text for other in single))
           for table in single]  # fmt: skip
    return [f"{place}: {text}" if text else str(place) for place, text in enumerate(own)]


def parameter_name(tables: list[dict], place: int, option: str) -> str:
    """The option, with the table's number where tables disagree: a parameter of Optuna has one set of choices."""
    alike = all(table.get(option, tables[place][option]) == tables[place][option] for table in tables)
    return option if alike else f"{option} ({place})"


def suggest(trial, tables: list[dict]) -> dict:
    """{option: choice} for Optuna's trial, in the order of the tables."""
    place = 0
    if len(tables) > 1:
        labels = table_labels(tables)
        place = labels.index(trial.suggest_categorical(ONE_OF, labels))
    chosen = {}
    for option, values in tables[place].items():
        name = parameter_name(tables, place, option)
        if isinstance(values, dict):
            draw = trial.suggest_int if isinstance(values["low"], int) else trial.suggest_float
            chosen[option] = draw(name, values["low"], values["high"], log=values["log"])
        elif len(values) == 1:
            chosen[option] = values[0]
        else:
            labels = [label_of(value) for value in values]
            chosen[option] = values[labels.index(trial.suggest_categorical(name, labels))]
    return chosen
