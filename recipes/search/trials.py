"""A trial: runs of train.py, a process a fold, whose scores Optuna is told as they come."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from common.engine import runs
from common.engine.tracking import read_log
from common.errors import InputError
from common.files import HOST, atomic_write
from recipes.search import space
from recipes.search.study import check_new, draw_by, optuna

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
STOPPED = 4  # its exit code where --time-budget ended a training


@dataclass(frozen=True)
class Search:
    """What all trials of a call have in common."""

    home: Path  # runs/<name>
    tables: list[dict]
    config: dict  # of every trial
    rounds: list  # epochs of each round; [None]: as the recipe
    folds: list[int]
    keep: int  # one of so many goes on from round to round
    wanted: float  # trials in all
    seed: int
    deadline: float  # of time.monotonic(), in seconds


class OutOfTime(Exception):
    """--time-budget is spent: the trial is put off."""


def launch(words: list[str]) -> int:
    """Exit code of train.py in a process of its own: what a fold leaves in memory, or its crash, ends with it."""
    sys.stdout.flush()
    setpriv = shutil.which("setpriv")  # of Linux: a search that is killed takes its training with it
    with_us = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    return subprocess.run([*with_us, sys.executable, str(TRAIN), *words]).returncode


def has_collapsed(log: list[dict]) -> bool:
    return bool(log) and log[-1].get("predicts_nothing", True) and log[-1].get("train_predicted") == 0


def run_fold(name: str, config: Path, fold: int, deadline: float) -> dict:
    """{"score": None where it collapsed, "best_epoch"} of a fold, new or begun.

    OutOfTime where the deadline ended it, InputError where train.py ended with an error.
    """
    folder = runs.fold_folder(name, fold)
    words = ["--config", str(config), "--run", name, "--fold", str(fold)]
    if (folder / "last.pt").exists() and not runs.is_finished(folder):
        words.append("--resume")
    if deadline < math.inf:
        words += ["--time-budget", f"{max(deadline - time.monotonic(), 1):.0f}s"]
    code, log = launch(words), read_log(folder)
    if code == 2 and has_collapsed(log):
        return {"score": None, "best_epoch": 0}
    if code == 130:
        raise KeyboardInterrupt
    if code == STOPPED:
        raise OutOfTime
    if code:
        raise InputError(f"{name}: train.py ended with code {code}, its message is above; finished trials are kept, "
                         "the same call goes on")  # fmt: skip
    best = max(log, key=lambda line: line["score"])["epoch"] if log else 0
    return {"score": json.loads((folder / "finished.json").read_text())["score"], "best_epoch": best}


def run_name(first: str, epochs: int | None) -> str:
    """s-003, of a round with epochs s-e30-003."""
    prefix, _, number = first.rpartition("-")
    return f"{prefix}-e{epochs}-{number}" if epochs else first


def run_round(trial, search: Search, place: int, choices: dict) -> float:
    """The mean score over the folds. Optuna's TrialPruned where one collapsed, or where the first of them suffice."""
    epochs, scores, best = search.rounds[place], [], []
    name = run_name(trial.user_attrs["run"], epochs)
    config = search.config | choices | ({"epochs": epochs} if epochs else {})
    path = atomic_write(search.home / f"{name}.yaml", yaml.safe_dump(config, sort_keys=False))
    before = trial.user_attrs.get("rounds", [])[:place]
    for fold in search.folds:
        if time.monotonic() >= search.deadline:
            raise OutOfTime
        facts = run_fold(name, path, fold, search.deadline)
        scores, best = [*scores, facts["score"]], [*best, facts["best_epoch"]]
        mean = None if facts["score"] is None else float(np.mean(scores))
        line = {"run": name, "epochs": epochs or "", "score": mean, "folds": len(scores)}
        trial.set_user_attr("rounds", [*before, line | {"best_epoch": round(np.mean(best))}])
        if mean is None:
            trial.set_user_attr("state", "collapsed")
            raise optuna.TrialPruned
        if len(search.rounds) == 1:
            trial.report(mean, len(scores))
            if len(scores) < len(search.folds) and trial.should_prune():
                raise optuna.TrialPruned
    return mean


def describe(trial, search: Search, choices: dict) -> None:
    """Note on the trial, for every process and for the table: its run, and what it chose."""
    trial.set_user_attr("run", trial.user_attrs.get("run", f"{search.home.name}-{trial.number:03d}"))
    trial.set_user_attr("choices", choices)
    trial.set_user_attr("options", {option: space.label_of(value) for option, value in choices.items()})


def run_trial(trial, search: Search, sampler: str) -> float:
    """The score of Optuna's trial: the mean over the folds in the last round.

    Void where another trial has the same settings or there are enough, TrialPruned where it does not go on.
    """
    trial.set_user_attr("worker", f"{HOST}:{os.getpid()}")
    draw_by(trial.study, sampler, search.tables, search.seed, trial.number)
    choices = space.suggest(trial, search.tables)
    trial.set_user_attr("chosen", True)
    check_new(trial.study, trial, search.wanted)
    describe(trial, search, choices)
    try:
        for place in range(len(search.rounds)):
            mean = run_round(trial, search, place, choices)
            last = place + 1 == len(search.rounds)
            if len(search.rounds) > 1:
                trial.report(mean, search.keep**place if search.keep > 1 else place)
                if not last and trial.should_prune():
                    raise optuna.TrialPruned
    except InputError:
        trial.set_user_attr("errors", trial.user_attrs.get("errors", 0) + 1)
        raise
    return mean
