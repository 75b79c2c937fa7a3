"""A full disk, and one that is read-only: a line that says so, no broken file, and with room the bytes of a call that
always had it."""

import os

import disks
import forks
import kill_jobs
import pytest

SEED = int(os.environ.get("DISK_SEED", 0))


@pytest.fixture(scope="module")
def filler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disks")
    try:
        with disks.mounted(folder / "trial"):
            pass
    except OSError as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    forks.import_scripts()
    return disks.Filler(folder, seed=SEED, say=print)


def job_of(task: str, script: str, name: str):
    found = [job for job in kill_jobs.jobs_of(task) if (job.script, job.name) == (script, name)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("script, name, free", [("make_folds", "folds", 0), ("train", "two folds", 400_000),
                                                ("train", "two folds", None)])  # fmt: skip
def test_a_disk_that_cannot_take_it(filler, script, name, free):
    job = job_of("biomass", script, name)
    filler.trial(job, free)
    tally = filler.tally(job)
    assert not tally.faults and tally.lines == tally.full + tally.locked == tally.equal > 0


@pytest.mark.soak
@pytest.mark.parametrize("task", kill_jobs.TASKS)
def test_disks_of_every_size(filler, capsys, task):
    tallies = [filler.fill(job, 4) for job in kill_jobs.jobs_of(task)]
    with capsys.disabled():
        print(f"\nfull disks, seed {SEED}\n{disks.table_of(tallies)}")
    assert not [fault for one in tallies for fault in one.faults]
    assert all(one.full >= 1 and one.locked >= 1 and one.lines == one.full + one.locked for one in tallies)
    assert all(one.equal == one.full + one.enough + one.locked for one in tallies)
