"""Calls of the scripts in forked processes that are killed with SIGKILL, by a parent that has everything imported.

A fork costs milliseconds where `import train` takes seconds, so hundreds of kills fit into minutes. Whether the process
that forks is pytest's or that of kills.py makes no difference, as long as it runs no threads of its own.
"""

import contextlib
import importlib
import os
import random
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = ("make_folds", "train", "infer", "ensemble")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
LONGEST = 1200.0  # seconds; a call that takes more, on a machine that is busy with other things, hangs


@dataclass(frozen=True)
class Point:
    """Where a call is killed.

    "event": before the `number`-th change of a file below its folder (a file opened for writing, a rename, a removal, a
    new folder). "torn": before the `number`-th rename of a file, which is cut off to `share` of its bytes first: the
    state that a kill within the write leaves. "later": `wait` seconds after that event, by the parent: within whatever
    is then written, by libraries in C as well. "time": `wait` seconds after its start.
    """

    kind: str
    number: int = 0
    wait: float = 0.0
    share: float = 1.0

    def __str__(self) -> str:
        at = {"event": f"change {self.number}", "torn": f"save {self.number}, {self.share:.0%} of it written",
              "later": f"{1e3 * self.wait:.1f} ms after change {self.number}",
              "time": f"{self.wait:.3f} s after the start"}  # fmt: skip
        return at[self.kind]


@dataclass(frozen=True)
class Ended:
    """How a call ended: its exit code or None where it was killed, its id, what it printed; of one that was not killed
    the files it changed, those it renamed, and its seconds."""

    code: int | None
    pid: int
    said: str
    changes: int = 0
    renames: int = 0
    seconds: float = 0.0


class Watch:
    """An audit hook of a child: counts changes of files below `home` and dies, or says so, at its point."""

    def __init__(self, home: Path, point: Point | None, pipe: int):
        self.home, self.point, self.pipe = str(home.resolve()) + os.sep, point, pipe
        self.changes, self.renames = 0, 0

    def __call__(self, event: str, words: tuple) -> None:
        if event == "open":
            path, _, flags = words
            if isinstance(path, int) or not isinstance(flags, int) or not flags & WRITES:
                return
        elif event in CHANGES:
            path = words[0]
        else:
            return
        path = os.fsdecode(path)
        path = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
        if path.startswith(self.home):
            self.changed(event, path)

    def changed(self, event: str, path: str) -> None:
        self.changes += 1
        file = event == "os.rename" and os.path.isfile(path)
        self.renames += file
        point = self.point
        if point is None:
            return
        if point.kind == "torn" and file and self.renames == point.number:
            self.point = None
            os.truncate(path, int(os.path.getsize(path) * point.share))
            os.kill(os.getpid(), signal.SIGKILL)
        if point.kind == "event" and self.changes == point.number:
            os.kill(os.getpid(), signal.SIGKILL)
        if point.kind == "later" and self.changes == point.number:
            os.write(self.pipe, b"!")


def import_scripts() -> None:
    for name in SCRIPTS:
        importlib.import_module(name)


def run_child(home: Path, script: str, words: list[str], point: Point | None, pipe: int, said: Path) -> None:
    """The life of a child; never returns."""
    code = 99
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(home)
        from common.errors import run_script

        main, before = importlib.import_module(script).main, set(sys.modules)
        watch = Watch(home, point, pipe)
        sys.addaudithook(watch)
        code = run_script(main, words)
        new = " ".join(sorted(set(sys.modules) - before))
        os.write(pipe, f"\n{watch.changes} {watch.renames} {new}"[:60000].encode())
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait_for(pid: int, reader: int, point: Point | None) -> tuple[int, bytes]:
    """(wait status, what the child wrote into the pipe): it is killed here where its point says so, or if it hangs."""
    started, got, ends = time.monotonic(), b"", LONGEST
    if point and point.kind == "time":
        ends = point.wait
    watched = os.pidfd_open(pid)
    try:
        while True:
            left = started + ends - time.monotonic()
            ready = select.select([watched, reader], [], [], max(left, 0))[0]
            if reader in ready:
                got += (new := os.read(reader, 65536))
                if new.startswith(b"!"):
                    ends = time.monotonic() - started + point.wait
            if watched in ready:
                return os.waitpid(pid, 0)[1], got
            if not ready:
                os.kill(pid, signal.SIGKILL)
                if ends == LONGEST:
                    os.waitpid(pid, 0)
                    raise TimeoutError(f"a call did not end within {LONGEST:.0f} s")
    finally:
        os.close(watched)


def call_forked(home: Path, script: str, words, *, said: Path, point: Point | None = None) -> Ended:
    """One call of a script in a child of this process with `home` as its folder; its output is kept in the file `said`.

    Modules that it loaded beside are loaded here too, so that the next child finds them. TimeoutError where it hangs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        run_child(Path(home), script, [str(word) for word in words], point, writer, said)
    os.close(writer)
    try:
        status, got = wait_for(pid, reader, point)
        while new := os.read(reader, 65536):
            got += new
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(reader)
    seconds = time.monotonic() - started
    printed = said.read_text(errors="replace") if said.is_file() else ""
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            raise RuntimeError(f"{script}.py died of signal {os.WTERMSIG(status)}: {printed[-800:]}")
        return Ended(None, pid, printed, seconds=seconds)
    changes, renames, *new = got.decode().rpartition("\n")[2].split()
    load(new)
    return Ended(os.WEXITSTATUS(status), pid, printed, int(changes), int(renames), seconds)


def load(names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def draw_point(draw: random.Random, whole: Ended) -> Point:
    """A point to kill a call at that, left alone, ended like `whole`."""
    number, share = draw.randint(1, max(whole.changes, 1)), draw.choice((0.0, draw.random(), draw.random(), 1.0))
    kind = draw.choices(("event", "torn", "later", "time"), (3, 3, 3, 1))[0]
    if kind == "torn" and whole.renames:
        return Point("torn", draw.randint(1, whole.renames), share=share)
    if kind == "time":
        return Point("time", wait=draw.uniform(0.02, max(whole.seconds, 0.03)))
    return Point("later", number, wait=draw.choice((0.0, 1e-3, 5e-3)) * draw.random() * 2) if kind == "later" else \
        Point("event", number)  # fmt: skip
