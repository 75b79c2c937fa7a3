"""What a search leaves: results.csv, best.yaml, the command that trains the winner in full, plots/."""

import shlex
import warnings
from pathlib import Path

import matplotlib
import pandas as pd
import yaml

from common.engine import runs
from common.errors import InputError
from common.files import atomic_write
from recipes.search.study import optuna, trials_in, trials_that_count

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "RUNNING": "running", "FAIL": "failed"}
NOT_IN_FULL = {"fold", "train_folds"}  # the search may have looked at some folds, the winner is trained on all
SIZE, PANEL = (10, 6), 2.6  # inches: of a figure, of one option in it


def table_of(study) -> pd.DataFrame:
    """A line for each run, best first: longest rounds, then those with all folds, then by score."""
    lines = []
    for trial in trials_that_count(study):
        rounds = trial.user_attrs.get("rounds", [])
        for place, line in enumerate(rounds):
            last = place + 1 == len(rounds)
            state = state_of(trial) if last else "finished"
            lines.append({**line, "round": place + 1, "state": state, **trial.user_attrs["options"]})
    first = ["run", "round", "epochs", "score", "folds", "best_epoch", "state"]
    table = pd.DataFrame(lines, columns=first + sorted({key for line in lines for key in line} - set(first)))
    order = table.assign(done=table["state"] == "finished").sort_values(
        ["round", "done", "folds", "score"], ascending=False, kind="stable", na_position="last"
    )
    return order.drop(columns="done")


def state_of(trial) -> str:
    return trial.user_attrs.get("state", STATES[trial.state.name])


def say_trial(trial) -> str:
    """How a trial ended, in a line."""
    lines = trial.user_attrs.get("rounds", [])
    if not lines or lines[-1]["score"] is None:
        return f"{trial.user_attrs['run']}: {state_of(trial)}"
    line = lines[-1]
    return f"{line['run']}: {state_of(trial)}, score {line['score']:.4f} over {line['folds']} fold(s)"


def write_table(study, home: Path) -> pd.DataFrame:
    table = table_of(study)
    atomic_write(home / "results.csv", table.to_csv(index=False))
    return table


def best_trial(study, home: Path):
    """The finished trial with the best score. InputError where none has one."""
    if not (done := trials_in(study, "COMPLETE")):
        states = set(map(state_of, trials_that_count(study)))
        remedy = "choose other losses or learning rates" if "collapsed" in states else "the same call goes on"
        if states == {"failed"}:
            remedy = "train.py said why, as many times as each was tried; more --trials try other settings"
        raise InputError(f"{home / 'results.csv'}: every trial {' or '.join(sorted(states)) or 'is missing'}; {remedy}")
    return max(done, key=lambda trial: (trial.value, -trial.number))


def write_winner(trial, home: Path, base: dict, given: dict) -> str:
    """best.yaml; the answer is the one command that trains it in full."""
    kept = {key: value for key, value in given.items() if key not in runs.FREE}
    path = atomic_write(home / "best.yaml", yaml.safe_dump(base | kept | trial.user_attrs["choices"], sort_keys=False))
    words = ["python", "train.py", "--config", str(path), "--run", f"{home.name}-best"]
    for key in sorted(given.keys() & runs.FREE - NOT_IN_FULL):
        words += option_words(key, given[key])
    return shlex.join(words)


def option_words(key: str, value) -> list[str]:
    """The words of an option of train.py with this value."""
    option = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    return [option, *map(str, value if isinstance(value, list) else [value])]


def write_plots(study, folder: Path) -> list[str]:
    """PNG files of Optuna's own plots; the answer names those that this many trials do not give."""
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    kinds = {
        "history": plots.plot_optimization_history,
        "folds": plots.plot_intermediate_values,
        "parallel": plots.plot_parallel_coordinate,
        "importances": plots.plot_param_importances,
        "slices": plots.plot_slice,
        "timeline": plots.plot_timeline,
    }
    missing, searched = [], without_repeats(study)
    searches = len({option for trial in searched.trials for option in trial.params})
    for name, plot in kinds.items():
        try:
            with warnings.catch_warnings(action="ignore"):  # of an axis with one value, of few trials
                axes = plot(searched)
        except (ValueError, RuntimeError) as error:  # no parameter, or scores that do not differ
            missing.append(f"{name} ({str(error).splitlines()[0]})")
            continue
        figure = getattr(axes, "figure", None) or axes.flat[0].figure
        width, height = SIZE
        figure.set_size_inches(max(width, PANEL * searches if name in ("slices", "parallel") else 0), height)
        atomic_write(folder / f"{name}.png", lambda path, figure=figure: figure.savefig(path, bbox_inches="tight"))
        pyplot.close(figure)
    return missing


def without_repeats(study):
    """A copy in memory of what the plots are about: trials that were trained, not draws of what was known."""
    copy = optuna.create_study(direction="maximize")
    copy.add_trials([trial for trial in trials_in(study, "COMPLETE", "PRUNED") if trial.params])
    return copy
