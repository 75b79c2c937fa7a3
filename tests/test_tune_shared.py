"""A search that several processes share, while some of them are killed: forked, since an import takes seconds."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pandas as pd
import pytest
import tiny_rts
import yaml

from recipes import tune
from recipes.search import report, study, trials

optuna = pytest.importorskip("optuna")
SIX, TWENTY = ({"lr": [0.001 * k for k in range(1, n + 1)], "ratio": [[1], [2]]} for n in (3, 10))
FOLDS = [0, 1, 2]


def note(line: str) -> None:
    with open("calls.txt", "a") as file:
        file.write(line + "\n")


def slow_training(words: list[str]) -> int:
    """Stands for train.py: a fold takes a moment, one that is finished takes none."""
    given = dict(zip(words[::2], words[1::2], strict=False))
    settings, name, fold = yaml.safe_load(Path(given["--config"]).read_text()), given["--run"], given["--fold"]
    folder = Path("runs") / name / f"fold{fold}"
    if (folder / "finished.json").exists():
        return 0
    note(f"begin {name} {fold}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "last.pt").touch()
    time.sleep(random.uniform(0.005, 0.03))
    score = settings["lr"] * 100 + settings["ratio"][0]
    (folder / "finished.json").write_text(json.dumps({"score": score}))
    note(f"end {name} {fold}")
    return 0


def start(storage: str, *words: str) -> int:
    """The process id of a search of its own, forked."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    with open("said.txt", "a") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            random.seed(os.getpid())
            tune.main(["--task", "rts", "--choices", "choices.yaml", "--name", "s", "--storage", storage, *words])
            code = 0
        except BaseException:
            traceback.print_exc()
        said.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """Its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "find_folds", lambda home, config: (FOLDS, "0123456789abcdef"))
    monkeypatch.setattr(report, "write_plots", lambda study, folder: [])
    monkeypatch.setattr(trials, "launch", slow_training)
    monkeypatch.setattr(study, "CHOOSING", 8)
    (tmp_path / "choices.yaml").write_text(yaml.safe_dump(SIX))
    return tmp_path


def kill_some(storage: str, processes: int, kills: int, rng: random.Random, *words: str) -> int:
    """Searches side by side; so many of them are killed at random times, each is begun again. How many were."""
    running, killed = [start(storage, *words) for _ in range(processes)], 0
    while killed < kills:
        while not Path("calls.txt").exists():
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1.0))
        pid = running.pop(rng.randrange(len(running)))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        killed += ended(pid) == -signal.SIGKILL
        running.append(start(storage, *words))
        if (Path("runs/s/best.yaml")).exists():
            break
    codes = [ended(pid) for pid in [*running]] + [ended(start(storage, *words))]  # the last one finds all others ended
    assert codes == [0] * (processes + 1), Path("said.txt").read_text()[-3000:]
    return killed


def check_whole(storage: str, killed: int, count: int) -> dict:
    """All settings were tried once, no finished fold twice, and the best is the best there is."""
    opened = study.open_study(storage, Path("runs/s"), facts_of(storage))
    counted = study.trials_that_count(opened)
    assert {trial.state.name for trial in counted} <= {"COMPLETE", "PRUNED"}, [trial.user_attrs for trial in counted]
    assert len(counted) == len({json.dumps(trial.params, sort_keys=True) for trial in counted}) == count
    calls = [line.split() for line in Path("calls.txt").read_text().splitlines()]
    ends = [(name, fold) for word, name, fold in calls if word == "end"]
    assert len(ends) == len(set(ends))
    assert len(calls) - 2 * len(ends) <= killed  # folds that were begun again
    best = yaml.safe_load(Path("runs/s/best.yaml").read_text())
    assert (best["lr"], best["ratio"]) == (0.001 * (count // 2), [2])
    assert len(pd.read_csv("runs/s/results.csv")) == count
    return {"folds trained": len(ends), "begun again": len(calls) - 2 * len(ends)}


def facts_of(storage: str) -> dict:
    study.load()
    return optuna.load_study(study_name="s", storage=study.open_storage(storage)).user_attrs["search"]


@pytest.mark.soak
def test_processes_share_a_search_and_one_is_killed(shared):
    storage = "sqlite:///runs/s/study.db"
    killed = kill_some(storage, 2, 1, random.Random(3), "--sampler", "grid", "--trials", "99")
    check_whole(storage, killed, 6)


@pytest.mark.soak
@pytest.mark.parametrize("sampler", ["grid", "tpe"])
@pytest.mark.parametrize("storage", ["sqlite:///runs/s/study.db", "shared.journal"])
def test_processes_share_a_search_and_many_are_killed(shared, storage, sampler, capsys):
    killed, rng, facts = 0, random.Random(11), []
    for search in range(2):
        home = shared / str(search)
        home.mkdir()
        (home / "choices.yaml").write_text(yaml.safe_dump(TWENTY))
        os.chdir(home)
        count = kill_some(storage, 4, 8, rng, "--sampler", sampler, "--trials", "99")
        facts.append(check_whole(storage, count, 20))
        killed += count
    with capsys.disabled():
        again = sum(line["begun again"] for line in facts)
        trained = sum(line["folds trained"] for line in facts)
        print(f"\n{sampler} in {storage}: {killed} processes of {len(facts)} searches killed, {trained} folds trained, "
              f"{again} begun again, none trained twice")  # fmt: skip


@pytest.mark.soak
def test_a_search_that_is_killed_takes_its_training_with_it(tmp_path, monkeypatch):
    """With train.py itself: killed within its first fold, the same call ends with every fold trained."""
    tiny_rts.make_rts(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    words = [sys.executable, str(Path(tune.__file__)), "--task", "rts", "--trials", "2", "--", "--data", "data",
             *tiny_rts.SMALL[2:], "--epochs", "30"]  # fmt: skip
    search = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(Path("runs").glob("*/fold0/last.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    search.kill()
    search.wait()
    log = next(Path("runs").glob("*/fold0/log.jsonl"))
    time.sleep(2)
    size = log.stat().st_size
    time.sleep(4)
    assert log.stat().st_size == size, "the training goes on without its search"
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 trial(s) that were stopped are tried again" in done.stdout and "the winner in full" in done.stdout
    table = pd.read_csv("runs/tune-rts-0/results.csv")
    assert table["state"].tolist() == ["finished"] * 2 and "tune-rts-0-000" in set(table["run"])
