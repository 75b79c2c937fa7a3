"""Kill -9 at random points: every script of every task, killed, looked at, called again until it ends, and compared
with a call that nobody stopped.

python tests/faults/kills.py --kills 30 --seed 0 [--task rts] [--script infer]   # at least 30 kills a job; a table
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(HERE), str(HERE.parent), str(HERE.parents[1])) if path not in sys.path]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import forks  # noqa: E402
import kill_jobs  # noqa: E402
import whole_files  # noqa: E402
from kill_jobs import Homes, Job  # noqa: E402

ROUND = 4  # kills a job before the next job has its turn
MOST = 8  # kills before a call is left alone: a chain has to end


@dataclass
class Tally:
    """What happened to one job."""

    job: Job
    kills: int = 0
    inside: int = 0  # of them while a file was being written
    survived: int = 0  # of them after which every file was whole and what was finished still there as it was
    chains: int = 0  # calls that were killed again and again until they ended
    equal: int = 0  # of them with the bytes of a call that nobody stopped
    files: int = 0  # opened by their readers after kills
    kept: int = 0  # finished things looked at again after the next call
    faults: list[str] = field(default_factory=list)


def first_epoch(said: str) -> int | None:
    """The first epoch that a training printed."""
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("epoch ")]
    return int(lines[0].split()[1].partition("/")[0]) if lines else None


def saved_epochs(home: Path) -> dict[str, int]:
    """{fold folder: epochs in its last.pt} of the run in work."""
    from common.engine.checkpoint import load_checkpoint

    paths = sorted((home / "runs" / "new").glob("fold*/last.pt"))
    return {path.parent.name: load_checkpoint(path).get("next_epoch", 0) for path in paths}


def unfinished_epochs(home: Path) -> int | None:
    """Epochs that the fold in work has saved; None where no fold is in work."""
    saved = saved_epochs(home)
    open_folds = [name for name in saved if not (home / "runs" / "new" / name / "finished.json").is_file()]
    return saved[open_folds[0]] if open_folds else None


class Killer:
    """Kills the calls of jobs in homes of their own and keeps the tallies.

    say: gets a line for every call. What goes wrong is a fault in the tally, with the seed to see it again.
    """

    def __init__(self, folder: Path, *, seed: int = 0, say=lambda line: None):
        self.homes, self.folder, self.seed, self.say = Homes(folder), Path(folder), seed, say
        self.tallies: dict[tuple, Tally] = {}
        self.whole: dict[tuple, tuple] = {}

    def reference(self, job: Job) -> tuple[Path, forks.Ended]:
        """(home, how it ended) of a call that nobody stopped."""
        key = (job.task, job.script, job.name)
        if key not in self.whole:
            home = self.homes.fresh(job, f"{job.task}-{job.script}-{job.name}-whole".replace(" ", "-"))
            ended = self.call(job, home, job.words, None)
            if ended.code:
                raise RuntimeError(f"{key} ended with {ended.code} unstopped: {ended.said[-1500:]}")
            self.whole[key] = home, ended
        return self.whole[key]

    def call(self, job: Job, home: Path, words: tuple, point) -> forks.Ended:
        return forks.call_forked(home, job.script, words, said=home.parent / "said.txt", point=point)

    def tally(self, job: Job) -> Tally:
        return self.tallies.setdefault((job.task, job.script, job.name), Tally(job))

    def chain(self, job: Job, number: int, most: int = MOST) -> None:
        """One home: the call is killed at up to `most` random points, each time called again, until it ends."""
        whole, reference = self.reference(job)
        tally, name = self.tally(job), f"{job.task}-{job.script}-{job.name}-{number}".replace(" ", "-")
        draw, home = random.Random(f"{self.seed} {name}"), self.homes.fresh(job, name)
        done, kills, faults, ended = {}, 0, [], None
        while ended is None or ended.code is None:
            point = forks.draw_point(draw, reference) if kills < most else None
            ended, done, found = self.once(job, home, point, done, tally)
            kills += ended.code is None
            faults += found
            how = f"killed at {point}" if ended.code is None else f"ended with {ended.code} after {kills} kills"
            self.say("; ".join([f"{name} seed {self.seed}: {how}", *found]))
        unlike = whole_files.differences(home, whole)
        tally.chains, tally.equal = tally.chains + 1, tally.equal + (not unlike)
        tally.faults += [f"{name} seed {self.seed}: {fault}" for fault in faults + unlike]
        if not faults + unlike:
            shutil.rmtree(home.parent)

    def once(self, job: Job, home: Path, point, before: dict, tally: Tally) -> tuple[forks.Ended, dict, list[str]]:
        """(how one call of a chain ended, what is finished after it, faults); before: what was finished before it."""
        words = kill_jobs.after_kill(job.script, home, job.words)
        saved = unfinished_epochs(home) if job.script == "train" else None
        ended = self.call(job, home, words, point)
        done, began = whole_files.finished(home), first_epoch(ended.said)
        tally.kept += len(before)
        again = [f"made again: {path}" for path in whole_files.made_again(before, done)]
        if saved and began is not None and began != saved + 1 and saved < kill_jobs.EPOCHS:
            again.append(f"{saved} epochs were saved and it went on with epoch {began}")
        if ended.code is not None:
            failed = [f"ended with {ended.code}: {' '.join(ended.said[-400:].split())}"]
            right = ended.code == 0 or job.refused and job.refused in ended.said
            return ended, done, again if right else again + failed
        broken = whole_files.broken_files(home, skip=("data", "scenes", "rasters"))
        if job.over:
            known = [self.homes.base(job.task, job.needs) / job.over, self.reference(job)[0] / job.over]
            broken += whole_files.mixed_set(home / job.over, known)
        tally.kills, tally.inside = tally.kills + 1, tally.inside + bool(whole_files.temporary_of(home, ended.pid))
        tally.files += len(whole_files.files_of(home))
        tally.survived += not broken + again
        return ended, done, again + [f"broken after {point}: {line}" for line in broken]

    def kill(self, job: Job, kills: int, most: int = MOST) -> Tally:
        """At least so many kills of a job."""
        tally = self.tally(job)
        while tally.kills < kills and tally.chains < 4 * kills:
            self.chain(job, tally.chains, min(most, kills - tally.kills))
        return tally


def table_of(tallies: list[Tally]) -> str:
    """Lines: task, script, what it does, kills, how many within a save, those survived, chains with equal bytes."""
    lines = ["| task | script | job | kills | inside a save | survived | calls with equal bytes | files read |",
             "|---|---|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for one in tallies:
        lines.append(f"| {one.job.task} | {one.job.script} | {one.job.name} | {one.kills} | {one.inside} | "
                     f"{one.survived} | {one.equal} of {one.chains} | {one.files} |")  # fmt: skip
    names = ("kills", "inside", "survived", "equal", "chains", "files")
    kills, inside, survived, equal, chains, files = (sum(getattr(one, name) for one in tallies) for name in names)
    lines.append(f"| all | | | {kills} | {inside} | {survived} | {equal} of {chains} | {files} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="a job, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", choices=kill_jobs.TASKS, nargs="+", default=kill_jobs.TASKS)
    parser.add_argument("--script", choices=forks.SCRIPTS, nargs="+", default=forks.SCRIPTS)
    parser.add_argument("--job", help="only the jobs of this name")
    parser.add_argument("--folder", type=Path, help="keep the homes of faults here (default: a temporary folder)")
    args = parser.parse_args()
    forks.import_scripts()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped, it says what it has found
    folder, started = args.folder or Path(tempfile.mkdtemp(prefix="kills-")), time.time()
    killer = Killer(folder, seed=args.seed, say=lambda line: print(line, flush=True))
    jobs = [job for task in args.task for job in kill_jobs.jobs_of(task)]
    jobs = [job for job in jobs if job.script in args.script and args.job in (None, job.name)]
    with contextlib.suppress(KeyboardInterrupt):  # what was found until then is said
        for goal in sorted({*range(ROUND, args.kills, ROUND), args.kills}):
            for job in jobs:
                killer.kill(job, goal)
    tallies = list(killer.tallies.values())
    faults = [fault for one in tallies for fault in one.faults]
    print("\n".join([table_of(tallies), *faults, f"{time.time() - started:.0f} s"]))
    if not args.folder and not faults:
        shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
