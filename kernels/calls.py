"""Calls of the scripts as processes: their words, who shares one call, their output, their end."""

import collections
import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

SCRIPTS = ("make_folds.py", "train.py", "infer.py", "ensemble.py")
NOT_FINISHED = 4  # exit code of train.py that --time-budget has stopped
OTHER_JOBS = ("--scene", "--solution")  # options that make infer.py do something else than predict rows
POLL, LOOK = 0.1, 5.0  # seconds between two looks at the processes, and at the disk
GRACE = 20.0  # seconds that a process has to end after SIGTERM, and others after one of them failed
now = time.monotonic
one_line_at_a_time = threading.Lock()


class Overrun(Exception):
    """A call was still running when its time and the tolerance were over."""


def say(line: str) -> None:
    with one_line_at_a_time:
        print(line, flush=True)


def values_of(words: list[str], option: str) -> list[str] | None:
    """The values of an option among the words of a call (its last mention), None where it is not there."""
    values, taking = None, False
    for word in words:
        if word.startswith("--"):
            name, has_value, value = word.partition("=")
            taking = name == option
            values = ([value] if has_value else []) if taking else values
        elif taking:
            values.append(word)
    return values


def value_of(words: list[str], option: str, default: str | None = None) -> str | None:
    return (values_of(words, option) or [default])[0]


def without(words: list[str], option: str) -> list[str]:
    """The words without an option and its values."""
    kept, taking = [], False
    for word in words:
        if word.startswith("--"):
            taking = word.partition("=")[0] == option
        if not taking:
            kept.append(word)
    return kept


def out_folder(words: list[str]) -> str:
    """Where infer.py or ensemble.py writes, relative to the working folder."""
    default = "out" if words[0] == "ensemble.py" else f"preds/{Path(value_of(words, '--runs', 'run')).name}"
    return value_of(words, "--out", default)


def predicts_test(words: list[str]) -> bool:
    """Whether the call predicts the rows of the test set."""
    other = any(values_of(words, option) is not None for option in OTHER_JOBS)
    return words[0] == "infer.py" and value_of(words, "--rows", "test") == "test" and not other


def takes_budget(words: list[str]) -> bool:
    """Whether the call is one that --time-budget is for and that does not have its own."""
    if values_of(words, "--time-budget") is not None:
        return False
    return predicts_test(words) or (words[0] == "train.py" and "--check" not in words)


def known_folds(words: list[str], own: Path, working: Path) -> list[str] | None:
    """The folds that a call of train.py trains: those it names, else those of --folds or of the run's own folds.csv."""
    if named := values_of(words, "--fold") or values_of(words, "--train-folds"):
        return named
    try:
        with open(working / value_of(words, "--folds", str(own)), newline="") as file:
            folds = {int(float(row["fold"])) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError):  # train.py says what is wrong with it
        return None
    return [str(fold) for fold in sorted(folds) if fold >= 0] or None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ranks(count: int) -> list[dict[str, str]]:
    """The environment of each of several processes that share a call, as torchrun sets it.

    torchrun itself answers 1 whatever the exit code of a script is, and adds its own traceback to a one-line error.
    """
    if count == 1:
        return [{}]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(free_port())}  # fmt: skip
    if Path("/sys/class/net/lo").exists():  # else they look for each other under the host's name, without a network
        shared |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def seats(count: int, gpus: int) -> list[dict[str, str]]:
    """The environment of each of several processes that share the machine and know nothing of each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count)))
    return [{"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": str(seat)} if gpus else {})
            for seat in range(count)]  # fmt: skip


@dataclass
class Watch:
    """What ends a call from outside: `disk.look()` raises InputError where no room is left, `ends` is its last time."""

    disk: object
    ends: float | None = None  # by `now`
    looked: float = field(default=-LOOK)

    def look(self) -> None:
        if self.ends is not None and now() > self.ends:
            raise Overrun
        if time.monotonic() - self.looked >= LOOK:
            self.looked = time.monotonic()
            self.disk.look()


class Process:
    """A running script and what it says: every line at once, or, `quiet`, only the last ones if it fails."""

    def __init__(self, command: list[str], *, cwd: Path, env: dict, prefix: str = "", quiet: bool = False):
        self.prefix, self.quiet, self.kept = prefix, quiet, collections.deque(maxlen=40)
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.popen = subprocess.Popen(command, cwd=cwd, env=os.environ | env, start_new_session=True, **pipes)
        self.reader = threading.Thread(target=self.pass_on, daemon=True)
        self.reader.start()

    def pass_on(self) -> None:
        for raw in self.popen.stdout:
            line = self.prefix + raw.decode("utf-8", "replace").rstrip("\r\n").rpartition("\r")[2]
            if self.quiet:
                self.kept.append(line)
            else:
                say(line)

    def code(self) -> int | None:
        """Exit code, 128 + the signal's number for a killed process, None while it runs."""
        code = self.popen.poll()
        return 128 - code if code is not None and code < 0 else code

    def signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, number)

    def close(self) -> int:
        """End the process and all it started, if they still run; exit code."""
        if self.popen.poll() is None:
            self.signal_group(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(GRACE)
        self.signal_group(signal.SIGKILL)  # loader processes would hold the output open
        self.popen.wait()
        self.reader.join(GRACE)
        if self.code():
            for line in self.kept:
                say(line)
        return self.code()


def script(payload: Path, words: list[str]) -> list[str]:
    return [sys.executable, "-u", str(payload / words[0]), *words[1:]]


def run_together(command: list[str], environments: list[dict], *, cwd: Path, watch: Watch) -> int:
    """Exit code of a call that several processes share: of the first that fails, which ends the others, else 0.

    The first process writes what is made: where it ends well, all is there, however the others come to their end.
    """
    watch.look()
    running = [Process(command, cwd=cwd, env=env, prefix=f"process {rank} | " if rank else "", quiet=rank > 0)
               for rank, env in enumerate(environments)]  # fmt: skip
    failed, since = 0, 0.0
    try:
        while any(one.code() is None for one in running):
            codes = [one.code() for one in running if one.code()]
            if codes and not failed:
                failed, since = codes[0], time.monotonic()
            if failed and time.monotonic() - since > GRACE:
                break  # the others wait for the one that failed
            watch.look()
            time.sleep(POLL)
    finally:
        codes = [one.close() for one in running]
    if codes[0] == 0 and any(codes):
        say(f"a process beside the main one ended with code {max(codes)}, when all was written")
    return codes[0] and (failed or codes[0])


def run_queue(jobs: dict[str, object], environments: list[dict], *, cwd: Path, watch: Watch) -> int:
    """Exit code of several calls, each in a process of its own as soon as a seat (an environment) is free.

    jobs: {prefix of its lines: function that gives the command when it starts}. After one that fails or runs out of
    time no other is begun; those that run go on to their end. The code is that of the first failure, else NOT_FINISHED
    if one ran out of time, else 0.
    """
    waiting, free, running, codes = list(jobs.items()), list(environments), [], []
    try:
        while running or (waiting and not any(codes)):
            watch.look()
            while waiting and free and not any(codes):
                prefix, make = waiting.pop(0)
                seat = free.pop(0)
                running.append((Process(make(), cwd=cwd, env=seat, prefix=prefix), seat))
            for one, seat in [pair for pair in running if pair[0].code() is not None]:
                running.remove((one, seat))
                codes.append(one.close())
                free.append(seat)
            time.sleep(POLL)
    finally:
        for one, _ in running:
            one.close()
    if waiting and any(codes):
        say(f"not begun: {', '.join(prefix.strip(' |') for prefix, _ in waiting)}")
    failures = [code for code in codes if code not in (0, NOT_FINISHED)]
    return failures[0] if failures else max(codes, default=0)
