"""Kill -9 at random points of every script and task: no file is broken, the bytes are those of a call that nobody
stopped, what was finished is left alone."""

import os

import forks
import kill_jobs
import kills
import pytest

from common.engine.runs import begin_set, finish_set, read_makers
from common.errors import InputError

SEED = int(os.environ.get("KILL_SEED", 0))
needs_fork = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="kills are dealt by fork and pidfd: Linux alone")


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    forks.import_scripts()
    return kills.Killer(tmp_path_factory.mktemp("kills"), seed=SEED, say=print)


def short_jobs(killer, task: str) -> dict:
    """{script: job} of a task, each in the home that the one before it leaves where nobody stops it."""
    small = {
        "make_folds": ("--task", task, "--data", "data", "--folds", "2"),
        "train": kill_jobs.train_words(task, "new", "--epochs", "2"),
        "infer": ("--runs", "new", "--data", "data", *kill_jobs.CPU, "--out", "preds/new"),
        "ensemble": ("--runs", "new", "--no-baselines", "--no-report", "--save-blend", "out/blend.json"),
    }
    jobs, needs = {}, ""
    for script, words in small.items():
        jobs[script] = kill_jobs.Job("short", task, script, words, needs)
        needs = f"after {script}"
        if script != "ensemble":
            killer.homes.made[task, needs] = killer.reference(jobs[script])[0]
    return jobs


@needs_fork
def test_killed_at_random_points(killer):
    """Two kills of each script; the long form has every task."""
    for job in short_jobs(killer, "glacier").values():
        killer.kill(job, 2, most=2)
    tallies = list(killer.tallies.values())
    assert not [fault for one in tallies for fault in one.faults]
    assert [one.job.script for one in tallies] == list(forks.SCRIPTS)
    for one in tallies:
        assert one.kills == one.survived >= 2 and one.equal == one.chains > 0, one
    assert sum(one.inside for one in tallies) and sum(one.files for one in tallies)


def test_a_set_that_is_being_made_again_is_nobodys(tmp_path):
    """Killed while it writes over the maps of another run, infer.py leaves no set that says it is the old one."""
    begin_set(tmp_path)
    assert not list(tmp_path.iterdir()) and read_makers(tmp_path) == [{}], "there was no set"
    finish_set(tmp_path, [{"run": "one", "task": "rts"}])
    assert read_makers(tmp_path) == [{"run": "one", "task": "rts"}]
    begin_set(tmp_path)
    with pytest.raises(InputError, match=r"infer\.py was stopped .* call it again"):
        read_makers(tmp_path)


@needs_fork
@pytest.mark.soak
@pytest.mark.parametrize("task", kill_jobs.TASKS)
def test_killed_hundreds_of_times(killer, capsys, task):
    tallies = [killer.kill(job, 15) for job in kill_jobs.jobs_of(task)]
    with capsys.disabled():
        print(f"\nkill -9, seed {SEED}\n{kills.table_of(tallies)}")
    assert not [fault for one in tallies for fault in one.faults]
    assert all(one.kills >= 15 and one.survived == one.kills and one.equal == one.chains for one in tallies)
