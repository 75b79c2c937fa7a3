"""Full and read-only disks: every script of every task on a small disk, looked at, called again with room and compared
with a call that always had it.

python tests/faults/disks.py --trials 8 --seed 0 [--task rts] [--script infer]   # full disks a job; as root; a table
"""

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(HERE), str(HERE.parent), str(HERE.parents[1])) if path not in sys.path]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import forks  # noqa: E402
import kill_jobs  # noqa: E402
import whole_files  # noqa: E402
from children import error_line  # noqa: E402
from kill_jobs import Homes, Job  # noqa: E402

ROOM = 512 * 2**20  # bytes of the disk when it is not small
PAGE = 4096  # what a file takes at least


class Disk:
    """A disk in memory, mounted at a folder; OSError where none can be."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder))

    def mount(self, *words: str) -> None:
        done = subprocess.run(["mount", *words], capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip() or "mount failed")

    def set_to(self, *options: str) -> None:
        self.mount("-o", ",".join(("remount", *options)), str(self.folder))

    def used(self) -> int:
        facts = os.statvfs(self.folder)
        return (facts.f_blocks - facts.f_bfree) * facts.f_frsize

    @contextlib.contextmanager
    def with_free(self, free: int) -> Iterator[None]:
        """So many bytes and no more can be written, in temporary files as well."""
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        before, tempfile.tempdir = tempfile.tempdir, str(temporary)
        self.set_to(f"size={max(PAGE, self.used() + free)}")
        try:
            yield
        finally:
            tempfile.tempdir = before
            self.set_to(f"size={ROOM}")

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        self.set_to("ro")
        try:
            yield
        finally:
            self.set_to("rw")

    def close(self) -> None:
        subprocess.run(
            ["umount", "--lazy", str(self.folder)], check=True
        )  # torch keeps the file of a failed write open


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    disk = Disk(folder)
    try:
        yield disk
    finally:
        disk.close()


@dataclass
class Tally:
    """What happened to one job."""

    job: Job
    full: int = 0  # calls on a disk that was too small
    enough: int = 0  # on one that was not
    locked: int = 0  # on one that was read-only
    lines: int = 0  # refusals of one line, nothing broken, nothing left behind
    equal: int = 0  # calls that went on with room and ended with the bytes of one that always had it
    faults: list[str] = field(default_factory=list)


class Filler:
    """Calls jobs on small disks and keeps the tallies; what goes wrong is a fault, with the seed to see it again."""

    def __init__(self, folder: Path, *, seed: int = 0, say=lambda line: None):
        self.homes, self.folder, self.seed, self.say = Homes(folder), Path(folder), seed, say
        self.tallies: dict[tuple, Tally] = {}
        self.whole: dict[tuple, tuple] = {}

    def call(self, job: Job, home: Path, words: tuple) -> forks.Ended:
        return forks.call_forked(home, job.script, words, said=self.folder / "said.txt")

    def reference(self, job: Job) -> tuple[Path, int]:
        """(home of a call that had room, bytes that it took)."""
        key = (job.task, job.script, job.name)
        if key not in self.whole:
            home = self.homes.fresh(job, f"{job.task}-{job.script}-{job.name}-roomy".replace(" ", "-"))
            before = bytes_of(home)
            ended = self.call(job, home, job.words)
            if ended.code:
                raise RuntimeError(f"{key} ended with {ended.code}: {ended.said[-1500:]}")
            self.whole[key] = home, bytes_of(home) - before
        return self.whole[key]

    def tally(self, job: Job) -> Tally:
        return self.tallies.setdefault((job.task, job.script, job.name), Tally(job))

    def trial(self, job: Job, free: int | None) -> None:
        """One call with so many bytes free (None: on a read-only disk), and the same one again with room."""
        whole, _ = self.reference(job)
        tally, name = self.tally(job), f"{job.task} {job.script} {job.name}, {'read-only' if free is None else free}"
        with mounted(self.folder / "disk") as disk:
            home = shutil.copytree(self.homes.base(job.task, job.needs), disk.folder / "home")
            with disk.read_only() if free is None else disk.with_free(free):
                ended = self.call(job, home, job.words)
            faults = self.look(job, home, ended, free, tally)
            again = kill_jobs.after_kill(job.script, home, job.words)
            ended = self.call(job, home, again) if ended.code else ended
            right = ended.code == 0 or (job.refused and job.refused in ended.said)
            if not right:
                faults.append(f"with room it ended with {ended.code}: {' '.join(ended.said[-600:].split())}")
            faults += whole_files.differences(home, whole) if right else []
        tally.equal += not faults
        tally.faults += [f"{name}: {fault}" for fault in faults]
        self.say("; ".join([name, *faults]))

    def look(self, job: Job, home: Path, ended: forks.Ended, free: int | None, tally: Tally) -> list[str]:
        """Faults of a call on a small disk; what happened is counted."""
        tally.locked += free is None
        tally.enough += free is not None and ended.code == 0
        tally.full += free is not None and ended.code != 0
        if ended.code == 0:
            return [] if free is not None else ["ended with 0 on a disk that it cannot write"]
        faults = [f"left behind: {path}" for path in whole_files.temporary_of(home, ended.pid)]
        faults += [f"broken: {line}" for line in whole_files.broken_files(home, skip=("data", "scenes", "rasters"))]
        try:
            line = error_line(ended.said)
        except AssertionError:
            line = ""
        words = ("Read-only", "cannot be written") if free is None else ("space",)
        if ended.code != 2 or not any(word in line for word in words):
            faults.append(f"ended with {ended.code}: {' '.join((line or ended.said[-1500:]).split())}")
        tally.lines += not faults
        return faults

    def fill(self, job: Job, trials: int) -> Tally:
        """A read-only disk, one without any room, and so many of random sizes up to what the job takes."""
        draw, (_, most) = random.Random(f"{self.seed} {job}"), self.reference(job)
        for free in (None, 0, *(draw.randrange(0, max(most, PAGE)) for _ in range(trials))):
            self.trial(job, free)
        return self.tally(job)


def bytes_of(home: Path) -> int:
    """What the files and folders of a home take on a disk of pages."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in home.rglob("*") if path.is_file())


def table_of(tallies: list[Tally]) -> str:
    lines = ["| task | script | job | full | room enough | read-only | ended by one line | went on to equal bytes |",
             "|---|---|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    names = ("full", "enough", "locked", "lines", "equal")
    for one in tallies:
        counts = " | ".join(str(getattr(one, name)) for name in names)
        lines.append(f"| {one.job.task} | {one.job.script} | {one.job.name} | {counts} |")
    lines.append("| all | | | " + " | ".join(str(sum(getattr(one, name) for one in tallies)) for name in names) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=8, help="disks of random sizes a job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", choices=kill_jobs.TASKS, nargs="+", default=kill_jobs.TASKS)
    parser.add_argument("--script", choices=forks.SCRIPTS, nargs="+", default=forks.SCRIPTS)
    args = parser.parse_args()
    forks.import_scripts()
    with tempfile.TemporaryDirectory(prefix="disks-") as folder:
        filler = Filler(Path(folder), seed=args.seed, say=lambda line: print(line, flush=True))
        for task in args.task:
            for job in kill_jobs.jobs_of(task):
                if job.script in args.script:
                    filler.fill(job, args.trials)
    tallies = list(filler.tallies.values())
    faults = [fault for one in tallies for fault in one.faults]
    print("\n".join([table_of(tallies), *faults]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
