"""Forked processes that a test stops, looks at and kills: what they printed, how they ended."""

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

LONGEST = 120.0  # seconds that a test waits for a child


class Child:
    """`work(say)` in a fork of this process, its output in the file `said`; say() tells the parent that it has come to
    some point and waits there for `go_on`. The exit code is what `work` returns.

    As a context: it is killed, and so is its whole process group, when the `with` ends.
    """

    def __init__(self, work: Callable, said: Path):
        self.said, self.code = said, None
        heard, mouth = os.pipe()
        ear, told = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            live(work, said, mouth, ear)
        os.close(mouth)
        os.close(ear)
        self.heard, self.told = heard, told

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_failure) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.code is None:
            self.wait()
        os.close(self.heard)
        os.close(self.told)

    def reach(self, points: int = 1) -> None:
        """Wait until it has said so often that it is there. AssertionError where it ends instead, or takes too long."""
        for _ in range(points):
            ready = select.select([self.heard], [], [], LONGEST)[0]
            assert ready and os.read(self.heard, 1), f"it never got there: {self.said.read_text()[-2000:]}"

    def go_on(self) -> None:
        os.write(self.told, b"!")

    def kill(self) -> None:
        """SIGKILL to the process alone: its workers live on for a while."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self, longest: float = LONGEST) -> int:
        """Exit code, or the negative signal. AssertionError where it hangs."""
        deadline = time.monotonic() + longest
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                return self.code
            time.sleep(0.01)
        os.killpg(self.pid, signal.SIGKILL)
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        raise AssertionError(f"it hangs: {self.said.read_text()[-2000:]}")


def live(work: Callable, said: Path, mouth: int, ear: int) -> None:
    """The life of a child; never returns."""
    code = 99
    try:
        os.setpgid(0, 0)
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)

        def say() -> None:
            os.write(mouth, b"!")
            os.read(ear, 1)

        code = work(say)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def end(work: Callable, said: Path) -> tuple[int, str]:
    """(exit code, what it printed) of a child that nobody stops."""
    with Child(lambda _: work(), said) as child:
        code = child.wait()
    return code, said.read_text(errors="replace")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def together(work: Callable, folder: Path, count: int = 2, longest: float = LONGEST) -> str:
    """What `count` processes printed that share the work as torchrun starts them, with what is imported here already.
    AssertionError where one ends with another exit code than 0."""
    variables = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(free_port())}  # fmt: skip

    def of_rank(rank: int) -> int:
        os.environ.update(variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        return work()

    files = [folder / f"said{rank}" for rank in range(count)]
    with contextlib.ExitStack() as living:
        ranks = [living.enter_context(Child(lambda _, k=k: of_rank(k), file)) for k, file in enumerate(files)]
        codes = [child.wait(longest) for child in ranks]
    said = "".join(file.read_text(errors="replace") for file in files)
    assert codes == [0] * count, said[-3000:]
    return said


def error_line(printed: str) -> str:
    """The one line of a call that was refused. AssertionError where there is none, more than one, or a traceback."""
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in printed and "Exception ignored" not in printed, printed[-3000:]
    return lines[0]


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
