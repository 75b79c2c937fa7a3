"""Run folders: claimed by settings, described by versions and git, counted in a ledger."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pandas as pd

from common.engine.side_store import lock_now
from common.errors import InputError
from common.files import atomic_write
from common.settings import changed_settings, write_settings
from common.table_files import read_csv
from common.text_files import read_json, read_yaml

RUNS = Path("runs")
SPEC = "spec.json"  # of a set of predictions: what made it
# settings that may differ between two calls that train the same thing
FREE = {"cache", "cache_images", "check", "data", "device_type", "expect", "fold", "folds", "force", "resume", "run"}
FREE |= {"mlflow", "samples_every", "save_every", "tensorboard", "time_budget", "train_folds", "workers"}
LIBRARIES = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy", "scikit-learn")
THIS_CALL = {"check", "expect", "force", "resume", "time_budget"}  # of one call, not of what is trained
LEDGER_COLUMNS = ("run", "fold", "score", "git", "dirty", "settings", "folds", "seconds")


def fold_folder(run: str, fold) -> Path:
    return RUNS / run / f"fold{fold}"


def find_run(run: Path) -> Path:
    """The run folder of a name or a path. InputError where there is none."""
    for folder in (Path(run), RUNS / run):
        if folder.is_dir() and any(folder.glob("fold*/args.yaml")):
            return folder
    raise InputError(f"--runs {run}: no run folder with folds there; train it, or list runs/ for the names")


class Kept(dict):
    """Settings of a file: one that it lacks is an InputError that names the file."""

    def __init__(self, path: Path, content: dict):
        super().__init__(content)
        self.path = path

    def __missing__(self, name):
        raise InputError(f"{self.path}: has no setting {name}; it is not as train.py wrote it: train again")

    def __or__(self, other):
        return Kept(self.path, {**self, **other})


def read_settings(folder: Path) -> dict:
    """The settings a fold was trained with. InputError where its args.yaml does not hold settings."""
    path = folder / "args.yaml"
    content = read_yaml(path, remedy="train the fold again, or copy its folder again")
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: holds no settings; train the fold again, or copy its folder again")
    for name in ("batch_size", "accumulate"):
        number = content.get(name, 1)
        if not (type(number) is int and number > 0) and (name, number) != ("batch_size", "auto"):
            raise InputError(f"{path}: {name} is {str(number)[:40]!r}, no whole number of 1 or more; train the fold "
                             "again, or copy its folder again")  # fmt: skip
    return Kept(path, content)


def read_finished(folder: Path) -> dict:
    """What finished.json says of a fold: {"score", "seconds", "facts", …}. InputError where it does not."""
    path = folder / "finished.json"
    line = read_json(path, remedy="copy the run again")
    score, seconds = line.get("score"), line.get("seconds")
    if not all(isinstance(number, (int, float)) for number in (score or 0, seconds)) or not isinstance(
            line.get("facts") or {}, dict):  # fmt: skip
        raise InputError(f"{path}: does not say score, seconds and facts; copy the run again")
    return line


def begin_set(folder: Path) -> None:
    """Say in the spec.json of a set that is there that it is being made again: killed now, it is of two makers."""
    if (folder / SPEC).is_file():
        atomic_write(folder / SPEC, json.dumps({"runs": [], "unfinished": True}) + "\n")


def finish_set(folder: Path, facts: list[dict]) -> None:
    """Write the spec.json of a set that is whole: the facts of each run that made it."""
    atomic_write(folder / SPEC, json.dumps({"runs": facts}, indent=1) + "\n")


def read_makers(folder: Path) -> list[dict]:
    """The runs that made a set of predictions, by the spec.json beside it: [{"run", "task", …}]; [{}] for a stranger's
    set, which has no such file. InputError where it does not say so."""
    path = folder / SPEC
    if not path.is_file():
        return [{}]
    said = read_json(path, remedy="predict again")
    if said.get("unfinished"):
        raise InputError(f"{folder}: infer.py was stopped while it made this set again, which is of two makers now; "
                         "call it again")  # fmt: skip
    made = said.get("runs")
    if not isinstance(made, list) or not made or not all(isinstance(one, dict) for one in made):
        raise InputError(f"{path}: does not name the runs that made the set; predict again")
    if not all(isinstance(one.get(name, ""), str) for one in made for name in ("run", "task", "folds_hash")):
        raise InputError(f"{path}: a run, task or folds_hash is no text; predict again")
    return made


def run_settings(run: Path) -> dict:
    """The settings of a run, as its first fold has them."""
    return read_settings(sorted(run.glob("fold*/args.yaml"))[0].parent)


def settings_to_resume(run: Path) -> dict:
    """What a call with --resume starts from: the settings of the run's first fold; {} where no fold was begun.

    Where memory left its folds with different rows a step, these are auto again: each fold then has its own.
    """
    begun = [read_settings(path.parent) for path in sorted(run.glob("fold*/args.yaml"))]
    if not begun:
        return {}
    settings = {key: value for key, value in begun[0].items() if key not in FREE}
    if len({one["batch_size"] for one in begun}) > 1:
        settings |= {"batch_size": "auto", "accumulate": min(one["accumulate"] for one in begun)}
    return settings


def is_finished(folder: Path) -> bool:
    return (folder / "finished.json").is_file()


def claim_fold(folder: Path, settings: dict, *, ignore: set[str], resume: bool, force: bool) -> str:
    """ "new", "resume" or "done"; writes args.yaml. InputError where a fold with other settings, or an unfinished one,
    would be written over without --resume or --force."""
    # a start that failed before it saved anything binds nobody
    saved = is_finished(folder) or (folder / "last.pt").exists() or (folder / "best.pt").exists()
    old = read_settings(folder) if saved and (folder / "args.yaml").is_file() else None
    if old is not None and not force:
        changed = changed_settings(old, settings, ignore)
        if changed:
            raise InputError(
                f"{folder}: exists with other settings ({'; '.join(changed[:4])}{' …' if len(changed) > 4 else ''}); "
                "name another --run, or --force to start over"
            )
        if is_finished(folder):
            return "done"
        if not resume and (folder / "last.pt").exists():
            raise InputError(f"{folder}: was begun and not finished; --resume goes on, --force starts over")
    if force:
        for name in ("finished.json", "last.pt", "best.pt", "log.jsonl", "oof.csv", "oof_counts.csv"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "oof", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    keep_settings(folder, settings)
    return "resume" if resume else "new"


def keep_settings(folder: Path, settings: dict) -> None:
    """args.yaml: what the fold is trained with, without the options that concern a single call."""
    write_settings(folder / "args.yaml", {key: value for key, value in settings.items() if key not in THIS_CALL})


def finish_fold(folder: Path, facts: dict) -> None:
    atomic_write(folder / "finished.json", json.dumps(facts) + "\n")


def git_state() -> dict:
    """{"sha", "dirty"} of the code's checkout; outside one what LANDFOLD_COMMIT says, which a Kaggle kernel sets for
    the code that it unpacks, else an empty sha."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, timeout=10).stdout.strip()

    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if sha := git("rev-parse", "--short=12", "HEAD"):
            return {"sha": sha, "dirty": bool(git("status", "--porcelain"))}
    said = os.environ.get("LANDFOLD_COMMIT", "")
    return {"sha": said.removesuffix("-dirty"), "dirty": said.endswith("-dirty")}


def versions() -> dict:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def add_to_ledger(line: dict) -> None:
    """Put a finished fold into runs/ledger.csv; a fold trained again replaces its line."""
    path = RUNS / "ledger.csv"
    with locked(path):
        remedy = "move it away, a new one is begun"
        columns = list(LEDGER_COLUMNS)
        table = read_csv(path, text=None, remedy=remedy) if path.is_file() else pd.DataFrame(columns=columns)
        if lacking := set(LEDGER_COLUMNS) - set(table):
            raise InputError(f"{path}: no column {min(lacking)}; {remedy}")
        same = (table["run"] == line["run"]) & (table["fold"] == str(line["fold"]))
        new = pd.DataFrame([{key: str(line[key]) for key in LEDGER_COLUMNS}])
        text = pd.concat([table[~same], new], ignore_index=True).to_csv(index=False)
        atomic_write(path, text)


@contextlib.contextmanager
def locked(path: Path):
    """Hold the file's lock: two folds that end at once must not lose a line of each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        # where there are no locks, two folds ending in the same instant are a risk we name here
        lock_now(file, wait=True)
        yield


def expected_folds(folds: pd.DataFrame) -> list[int]:
    return sorted(int(fold) for fold in folds["fold"].unique() if fold >= 0)


def unfinished_folds(run: str, folds: list, force: bool) -> list:
    """Those of the folds that are to be trained: all of them with --force."""
    return [fold for fold in folds if force or not is_finished(fold_folder(run, fold))]


def finished_folds(run: Path) -> list[str]:
    """Names of the finished folds of a run ("0", "1", …, "all")."""
    return sorted(path.parent.name.removeprefix("fold") for path in run.glob("fold*/finished.json"))
