"""What a kernel does when it runs: look at the machine and the mounts, make the script calls, hand in, validate.

The generated script of `kernels/build.py` unpacks this code and calls `main`; nothing here imports torch, so that the
first lines appear within a second.
"""

import argparse
import contextlib
import math
import os
import shlex
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError, run_script
from common.files import atomic_write
from common.settings import duration
from kernels import calls, machine, mounts
from kernels.calls import say
from kernels.copies import copy_folder

INPUTS, WORKING = Path("/kaggle/input"), Path("/kaggle/working")
PAYLOAD = Path(__file__).resolve().parents[1]
RESERVE = 60.0  # seconds kept for the end of a kernel, and for every call of ensemble.py still to come
ROWS = "pred.csv"  # of a set, whose lines say which tiles the masks beside it must be of
TOLERANCE = 300.0  # seconds that a call may take longer than its share


@dataclass
class Session:
    """A kernel that runs: what it is, where it runs, and how far it has come."""

    kernel: dict
    inputs: Path
    working: Path
    listing: list
    temporary: Path
    gpus: int
    processes: int
    ends: float | None  # by calls.now
    disk: machine.Disk
    words: list[list[str]] = field(default_factory=list)  # of every call, placeholders resolved
    handed: Path | None = None
    data: str | None = None  # --data of the call that was handed in

    @property
    def packages(self) -> Path:
        return self.temporary / "packages"


def seconds_of(text: str | None) -> float | None:
    """Seconds of a time such as 8.5h; None stays None. InputError for anything else."""
    try:
        return None if text is None else duration(str(text))
    except argparse.ArgumentTypeError as error:
        raise InputError(f"time_budget {error}") from error


def main(kernel: dict, *, inputs: Path = INPUTS, working: Path = WORKING) -> int:
    """Run a kernel; exit code 0 where it did all it should, else that of the call that failed, or 2.

    kernel: {"name", "task", "version", "commit", "gpu", "calls": [[word, …], …], "time_budget", "hand_in",
    "packages": ["timm>=1.0.20", …], "processes": of a call, None: one a GPU}. inputs: the folder of read-only mounts;
    working: the folder that may be written and is kept.
    """
    with ending_when_told():
        return run_script(lambda _: run_kernel(kernel, Path(inputs), Path(working)), [])


@contextlib.contextmanager
def ending_when_told():
    """SIGTERM ends the calls too: they are process groups of their own and would outlive the kernel."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_kernel(kernel: dict, inputs: Path, working: Path) -> int:
    started, budget = calls.now(), seconds_of(kernel["time_budget"])
    say(f"{kernel['name']}: version {kernel['version']}, commit {kernel['commit']}")
    if not working.is_dir():
        raise InputError(f"{working}: no such folder; a kernel runs on Kaggle, elsewhere call the scripts themselves")
    found = machine.find_gpus()
    say(machine.check_gpus(found, wanted=kernel["gpu"]))
    processes = machine.count_processes(found, os.environ.get("LANDFOLD_PROCESSES", kernel["processes"]))
    listing = mounts.walk(inputs)
    for line in mounts.describe(inputs, listing):
        say(line)
    with tempfile.TemporaryDirectory(prefix="landfold-", ignore_cleanup_errors=True) as temporary:
        disk = machine.Disk(working, warn=machine.WARN, stop=machine.STOP)
        session = Session(kernel, inputs, working, listing, Path(temporary), len(found), processes,
                          None if budget is None else started + budget, disk)  # fmt: skip
        for line in machine.install(kernel["packages"], listing, session.packages):
            say(line)
        session.words = [mounts.resolve(words, listing, inputs) for words in kernel["calls"]]
        try:
            code = run_calls(session)
        except InputError:
            say_handed(session)
            raise
        return code or validate(session)


def say_handed(session: Session) -> None:
    if session.handed:
        say(f"{session.handed} stays as it was handed in before")


def run_calls(session: Session) -> int:
    """Exit code: of the first call that fails, else 0, also where the time is over and training can go on later."""
    for number, words in enumerate(session.words):
        share = time_share(session, number)
        say(f"call {number + 1} of {len(session.words)}: {shlex.join(words)}")
        say(session.disk.say() + (f", {share / 60:.0f} min for this call" if share is not None else ""))
        try:
            code = run_call(session, words, share)
        except calls.Overrun:
            return stopped(session, words)
        if code in (0, 3) and words[0] != "train.py":  # 3: an image was unreadable, the answer is whole all the same
            hand_in(session, words)
        if code == calls.NOT_FINISHED and words[0] == "train.py":
            say_how_to_go_on(session, words)
            return 0
        if code:
            say(f"{words[0]} ended with code {code}; the kernel ends with it")
            say_handed(session)
            return code
    return 0


def time_share(session: Session, number: int) -> float | None:
    """Seconds for a call: what is left but for a reserve, shared by the calls of infer.py that are still to come."""
    if session.ends is None:
        return None
    names = [words[0] for words in session.words[number:]]
    left = session.ends - calls.now() - RESERVE * (1 + names[1:].count("ensemble.py"))
    return max(1.0, left / (names.count("infer.py") if names[0] == "infer.py" else 1))


def with_extras(session: Session, words: list[str], share: float | None) -> list[str]:
    """The command of a call: the script of the payload, the cache outside the working folder, the time it has."""
    words = list(words)
    if calls.values_of(words, "--cache") is None:
        words += ["--cache", str(session.temporary / "cache")]
    if share is not None and calls.takes_budget(words):
        words += ["--time-budget", f"{share:.0f}"]
    return calls.script(PAYLOAD, words)


def run_call(session: Session, words: list[str], share: float | None) -> int:
    """Exit code of one call. calls.Overrun where it outlasts its share, InputError where the disk is full."""
    if words[0] not in calls.SCRIPTS:
        raise InputError(f"call {shlex.join(words)}: no such script; there are {', '.join(calls.SCRIPTS)}")
    watch = calls.Watch(session.disk, None if share is None else calls.now() + share + TOLERANCE)
    if words[0] == "train.py":
        return train(session, words, share, watch)
    shared = session.processes if calls.predicts_test(words) else 1
    return run_ranks(session, words, share, watch, shared)


def run_ranks(session: Session, words: list[str], share: float | None, watch, processes: int) -> int:
    environments = [common_environment(session) | rank for rank in calls.ranks(processes)]
    return calls.run_together(with_extras(session, words, share), environments, cwd=session.working, watch=watch)


def common_environment(session: Session) -> dict[str, str]:
    path = [str(session.packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "LANDFOLD_COMMIT": session.kernel["commit"]}


def train(session: Session, words: list[str], share: float | None, watch) -> int:
    """One process trains what it is asked to; several share a single fold's batches, or take a fold each in turn."""
    words = go_on(session, words)
    if session.processes == 1 or "--check" in words:
        return run_ranks(session, words, share, watch, 1)
    name = calls.value_of(words, "--run")
    run = session.working / "runs" / (name or "")
    begun = name is not None and any(run.glob("fold*/*.pt"))
    folds = calls.known_folds(words, run / "folds.csv" if begun else Path(os.devnull), session.working)
    if folds is None and name is not None:
        # train.py alone knows which folds its data has; --check writes them down and tries the recipe for one step
        say("folds: not known before train.py has read the data, so first a check, which writes them down")
        code = run_ranks(session, [*words, "--check"], None, watch, 1)
        if code:
            return code
        folds = calls.known_folds(words, run / "folds.csv", session.working)
    if folds is None:
        say("folds: not known without --run; one process trains them in turn")
        return run_ranks(session, words, share, watch, 1)
    if len(folds) == 1:
        return run_ranks(session, words, share, watch, session.processes)
    return train_folds(session, words, to_do(words, run, folds), watch)


def to_do(words: list[str], run: Path, folds: list[str]) -> list[str]:
    """The folds that are not finished; the last one where all are, so that its process sees to what follows them."""
    left = [fold for fold in folds if not (run / f"fold{fold}" / "finished.json").is_file()]
    return folds if "--force" in words else left or folds[-1:]


def train_folds(session: Session, words: list[str], folds: list[str], watch) -> int:
    """A process a fold, as many at a time as there are GPUs; each has the time that is left when it begins."""
    words = calls.without(calls.without(words, "--train-folds"), "--fold")
    count, began = min(session.processes, len(folds)), calls.now()
    say(f"folds {' '.join(folds)}: a process each, {count} at a time")

    def command(fold: str) -> list[str]:
        left = None if watch.ends is None else max(1.0, watch.ends - TOLERANCE - calls.now())
        if left is not None and folds.index(fold) >= count:
            say_folds_to_come(
                folds[folds.index(fold) :], count, (calls.now() - began) / (folds.index(fold) // count), left
            )
        return with_extras(session, [*words, "--fold", fold], left)

    jobs = {f"fold {fold} | ": lambda fold=fold: command(fold) for fold in folds}
    environments = [common_environment(session) | seat for seat in calls.seats(count, session.gpus)]
    return calls.run_queue(jobs, environments, cwd=session.working, watch=watch)


def say_folds_to_come(folds: list[str], count: int, seconds: float, left: float) -> None:
    """What will become of the folds not begun yet, if each takes as long as those before (each says it of itself)."""
    needed = seconds * math.ceil(len(folds) / count)
    verdict = "enough" if needed <= left else "NOT ENOUGH, what is stopped can go on in another kernel"
    say(f"folds {' '.join(folds)}: {seconds / 60:.0f} min a fold, {needed / 60:.0f} of {left / 60:.0f} min: {verdict}")


def go_on(session: Session, words: list[str]) -> list[str]:
    """The words with --resume where the run was begun: in the working folder, or in a mount, which is copied."""
    name = calls.value_of(words, "--run")
    if name is None or "--force" in words or "--check" in words:
        return words
    run = session.working / "runs" / name
    if not mounts.is_run(run):
        found = mounts.runs_named(session.listing, name)
        if not found:
            return words
        copy_run(session, mounts.find("run", name, session.listing, session.inputs), run)
    say(f"run {name} was begun before; training goes on")
    return words if "--resume" in words else [*words, "--resume"]


def copy_run(session: Session, source: Path, run: Path) -> None:
    """A run of a mount as a folder that may be written, with the ledger beside it."""
    copy_folder(source, run, keep_free=session.disk.stop)
    ledger = source.parent / "ledger.csv"
    if ledger.is_file() and not (run.parent / "ledger.csv").exists():
        atomic_write(run.parent / "ledger.csv", ledger.read_bytes())
    say(f"copied {source} to {run}")


def say_how_to_go_on(session: Session, words: list[str]) -> None:
    name = calls.value_of(words, "--run", "of the default name")
    say(f"training of run {name} is not finished: attach the output of this kernel (kernels/build.py "
        f"{session.kernel['name']} --attach-kernel OWNER/SLUG) and run it again; it goes on from there")  # fmt: skip


def stopped(session: Session, words: list[str]) -> int:
    """Exit code after a call that outlasted its time: 0 where training can go on later, or something is handed in."""
    say(f"STOPPED: {words[0]} was still running {TOLERANCE / 60:.0f} minutes after its time was over")
    if words[0] == "train.py":
        say_how_to_go_on(session, words)
        return 0
    if session.handed is None:
        raise InputError(f"{words[0]}: no time was left and nothing was handed in; give it fewer runs, views or folds")
    say_handed(session)
    return 0


def hand_in(session: Session, words: list[str]) -> None:
    """Copy what a call wrote to be handed in to its place in the working folder, whole or not at all."""
    name = session.kernel["hand_in"]
    source = session.working / calls.out_folder(words) / name if name else None
    if source is None or not source.exists():
        return
    target = session.working / name
    if source.resolve() != target.resolve():
        if source.is_dir():
            copy_folder(source, target)
            rows = source.parent / ROWS
            if rows.is_file():
                atomic_write(session.working / ROWS, rows.read_bytes())
        else:
            atomic_write(target, source.read_bytes())
    session.handed, session.data = target, calls.value_of(words, "--data")
    say(f"handed in: {target} (from {source})")


def validate(session: Session) -> int:
    """Exit code of the last look at what is handed in, as it lies there. InputError where there is nothing."""
    name = session.kernel["hand_in"]
    if not name:
        return 0
    if session.handed is None:
        raise InputError(f"{session.working / name}: no call has written it; let --out of the last call hold it")
    words = ["kernels/check_hand_in.py", session.kernel["task"], str(session.working)]
    words += ["--data", session.data] if session.data else []
    words += ["--cache", str(session.temporary / "cache")]
    watch = calls.Watch(session.disk)
    return calls.run_together(calls.script(PAYLOAD, words), [common_environment(session)], cwd=session.working,
                              watch=watch)  # fmt: skip
