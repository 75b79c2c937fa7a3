"""Optuna's side of a search: the store that processes and machines share, who draws, who ends a trial early.

A store is a database (--storage with ://, by default SQLite beside the table) or a journal file (any other word). What
died with its process is tried again: at once where the process was of this machine, after GRACE seconds without a sign
of life where a database is told of another's, and with take_over where a journal is.
"""

import contextlib
import copy
import os
import re
import time
import warnings
from pathlib import Path

import numpy as np

from common.engine.runs import locked
from common.errors import InputError
from common.files import HOST, is_alive
from common.settings import changed_settings

try:
    import optuna
except ImportError:  # an extra: load() says so where a search begins
    optuna = None

HEARTBEAT, GRACE = 60, 300  # seconds
TRIES = 2  # of a trial that train.py ends with an error; one that was stopped or killed is tried again without end
CHOOSING = 30  # seconds that a process may take to say who it is and what it draws; then it is taken for dead
REPEATS = 20  # draws in a row of what was tried before; then the next is drawn from what is left


class Void(Exception):
    """A trial with the settings of another one, or one too many."""


def load():
    """Optuna, silent. InputError where it is not installed."""
    if optuna is None:
        raise InputError("tune.py searches with Optuna, which is not installed: pip install 'optuna>=4.9'")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def tpe(seed: int, tables: list):
    """Bayesian: ten random trials, then where the good ones lie. Options of one table are drawn together."""
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=len(tables) > 1)


def grid(seed: int, tables: list):
    """Every combination once, in random order.

    Optuna's sampler takes what failed for a whole path of its tree; of a process that was killed while it chose, the
    path ends early, and every later draw would be an error (optuna 5.0).
    """

    class Grid(optuna.samplers.BruteForceSampler):
        @staticmethod
        def _populate_tree(tree, trials, params):
            whole = [trial for trial in trials if trial.state.name != "FAIL" or "chosen" in trial.user_attrs]
            optuna.samplers.BruteForceSampler._populate_tree(tree, whole, params)

    return Grid(seed=seed)


def at_random(seed: int, tables: list):
    return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS = {"tpe": tpe, "grid": grid, "random": at_random}


def draw_by(study, name: str, tables: list, seed: int, number: int) -> None:
    """Let the study draw by this sampler, seeded by the trial's number: several processes draw different things, and
    a search that was stopped draws on as if it had not been."""
    state = np.random.SeedSequence([abs(seed), number]).generate_state(1)[0]
    study.sampler = SAMPLERS[name](int(state), tables)


def pruner_of(keep: int, rounds: int, prune: bool):
    """Of several rounds one of `keep` goes on (asynchronous halving); in one round the folds decide."""
    if not prune or (rounds > 1 and keep == 1):
        return optuna.pruners.NopPruner()
    if rounds > 1:
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=keep)
    return median_of_folds()


def median_of_folds():
    """Optuna's median pruner, given the last mean over folds alone: it takes the best of all steps, and were the first
    fold an easy one, no later mean would ever end a trial."""

    class MedianOfFolds(optuna.pruners.MedianPruner):
        def prune(self, study, trial) -> bool:
            last = copy.copy(trial)
            last.intermediate_values = {trial.last_step: trial.intermediate_values[trial.last_step]}
            return super().prune(study, last)

    return MedianOfFolds(n_startup_trials=5)


def shown(address: str) -> str:
    """The address without its password."""
    return re.sub(r"//[^@/]*@", "//…@", address)


@contextlib.contextmanager
def named_errors(address: str):
    """InputError for what a store raises: databases and their drivers have families of errors of their own."""
    import sqlalchemy

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        said = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"--storage {shown(address)}: {shown(said)}; the store must be reachable and one of Optuna's, "
                         "trials that ended in it are kept") from error  # fmt: skip


def open_storage(address: str):
    """Optuna's store of a URL, or of a journal file. InputError where it cannot be opened."""
    with named_errors(address):
        if "://" in address:
            return open_database(address)
        path = Path(address).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        except (ValueError, KeyError, TypeError, AssertionError, IsADirectoryError) as error:
            raise InputError(f"--storage {address}: is no journal of Optuna; name another file") from error


def open_database(address: str):
    """Optuna's store in a database. InputError: its tables are another program's, or of another version of Optuna."""
    try:
        return optuna.storages.RDBStorage(
            address,
            engine_kwargs={"connect_args": {"timeout": 100}} if address.startswith("sqlite") else None,
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
    except RuntimeError as error:
        raise InputError(f"--storage {shown(address)}: is the database of another program, or of another version of "
                         "Optuna; name one of its own") from error  # fmt: skip


def open_study(address: str, home: Path, facts: dict):
    """The study of that name in the store, new or begun. InputError where it was begun with other `facts`."""
    with locked(home / "study"), named_errors(address):  # two that make a database at once are in each other's way
        study = optuna.create_study(
            storage=open_storage(address), study_name=home.name, direction="maximize", load_if_exists=True
        )
        if "search" not in study.user_attrs:
            study.set_user_attr("search", facts)
    if changed := changed_settings(study.user_attrs["search"], facts, set()):
        raise InputError(f"{home}: was begun with other settings ({'; '.join(changed)[:300]}); give the search another "
                         "--name")  # fmt: skip
    return study


def trials_in(study, *names: str) -> list:
    """The trials in the states of these names (COMPLETE, PRUNED, RUNNING, WAITING, FAIL)."""
    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState[name] for name in names])


def trials_that_count(study) -> list:
    """Those that trained, train or were given up, and those that another call is to try again: no void ones, nor what
    was tried again since."""
    every = study.get_trials(deepcopy=False)
    followed = {number for trial in every for number in trial.system_attrs.get("retry_history", [])}
    return [
        trial
        for trial in every
        if trial.state.name != "WAITING" and "void" not in trial.user_attrs and trial.number not in followed
    ]


def wait_for_earlier(study, number: int) -> list:
    """The other trials that count, when those that began before this one have chosen: of two that draw the same at the
    same time one must see the other."""
    until = time.monotonic() + CHOOSING
    while True:
        others = [trial for trial in trials_that_count(study) if trial.number != number]
        choosing = [
            trial
            for trial in others
            if trial.number < number and trial.state.name == "RUNNING" and "chosen" not in trial.user_attrs
        ]
        if all(map(is_dead, choosing)) or time.monotonic() > until:
            return others
        time.sleep(0.05)


def check_new(study, trial, wanted: float) -> None:
    """Void, and so noted, where another trial has the same settings and came first, or as many as wanted came first."""
    others = wait_for_earlier(study, trial.number)
    earlier = [other for other in others if other.number < trial.number]
    for other in others:
        first = other.number < trial.number or other.state.is_finished()
        if first and other.params == trial.params and (other.state.name != "FAIL" or not is_worth_it(other)):
            trial.set_user_attr("void", f"as {other.number}")
            raise Void
    if len(earlier) >= wanted:
        trial.set_user_attr("void", "one too many")
        raise Void


def is_dead(trial) -> bool:
    """Whether the process of a running trial is gone: known of this machine's own."""
    host, _, pid = trial.user_attrs.get("worker", "").partition(":")
    return host == HOST and int(pid) != os.getpid() and not is_alive(int(pid))


def wait_for_names(study) -> set[int]:
    """Numbers of the trials whose process was killed before it could say who it was. Clocks of machines differ, so
    what is seen without a name for long enough is meant, not what is old."""
    until = time.monotonic() + CHOOSING
    while True:
        mute = {trial.number for trial in trials_in(study, "RUNNING") if "worker" not in trial.user_attrs}
        if not mute or time.monotonic() > until:
            return mute
        time.sleep(0.05)


def is_elsewhere(trial) -> bool:
    """Whether another machine runs it."""
    return trial.user_attrs.get("worker", "").partition(":")[0] != HOST


def is_worth_it(trial) -> bool:
    """Whether what train.py ended with an error is to be tried again."""
    return trial.user_attrs.get("errors", 0) < TRIES


def revive(study, home: Path, *, take_over: bool = False, failed: bool = False) -> int:
    """Queue again the trials of dead processes; with take_over whatever runs elsewhere, with failed what an error or
    the keyboard ended. Returns how many."""
    retry, gone = optuna.storages.RetryHeartbeatStaleTrialCallback(), set()
    mute = wait_for_names(study) if failed else set()
    study.sampler = optuna.samplers.RandomSampler()  # that of a grid would stop the study, which is not running here
    with locked(home / "study"):
        for trial in trials_in(study, "RUNNING"):
            if is_dead(trial) or trial.number in mute or (take_over and is_elsewhere(trial)):
                with contextlib.suppress(ValueError):  # another machine was first
                    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                    gone.add(trial.number)
        again = [
            trial
            for trial in trials_that_count(study)
            if trial.state.name == "FAIL" and (trial.number in gone or (failed and is_worth_it(trial)))
        ]
        for trial in again:
            retry(study, copy.deepcopy(trial))
    return len(again)
