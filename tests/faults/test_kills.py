"""Kill -9 at random points of every script and task: no file is broken, the bytes are those of a call that nobody
stopped, what was finished is left alone."""

import os

import forks
import kill_jobs
import kills
import pytest
import whole_files

SEED = int(os.environ.get("KILL_SEED", 0))
needs_fork = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="kills are dealt by fork and pidfd: Linux alone")


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    forks.import_scripts()
    return kills.Killer(tmp_path_factory.mktemp("kills"), seed=SEED, say=print)


def job_of(task: str, script: str, name: str):
    found = [job for job in kill_jobs.jobs_of(task) if (job.script, job.name) == (script, name)]
    assert len(found) == 1
    return found[0]


@needs_fork
@pytest.mark.parametrize("task, script, name", [("biomass", "make_folds", "folds"), ("biomass", "train", "two folds")])
def test_killed_at_random_points(killer, task, script, name):
    tally = killer.kill(job_of(task, script, name), 3)
    assert not tally.faults and tally.kills >= 3 and tally.survived == tally.kills and tally.equal == tally.chains > 0


@needs_fork
@pytest.mark.soak
@pytest.mark.parametrize("task", kill_jobs.TASKS)
def test_killed_hundreds_of_times(killer, capsys, task):
    tallies = [killer.kill(job, 15) for job in kill_jobs.jobs_of(task)]
    with capsys.disabled():
        print(f"\nkill -9, seed {SEED}\n{kills.table_of(tallies)}")
    assert not [fault for one in tallies for fault in one.faults]
    assert all(one.kills >= 15 and one.survived == one.kills and one.equal == one.chains for one in tallies)
