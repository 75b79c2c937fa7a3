"""Readers in forked processes, fed with damaged files: what each made of them, in what time and memory.

An input is a mutation of one of the samples, or of an earlier input that reached lines of Python which none before had
reached. Everything follows from the seed. A reader may read a file or refuse it (InputError); anything else is a
fault: another error, a crash, more than SECONDS of its own time, or more than MEMORY of address space.
"""

import contextlib
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError

GB = 2**30
MEMORY = 4 * GB  # of address space, beyond what the process had; common/datasets/limits.py promises it
CEILING = 8 * GB  # where the system refuses, so that a fault of ours does not end the machine
SECONDS, PATIENCE = 30, 180  # of computing, and by the clock
# libtiff says it is out of memory where it refuses to take any for a number that it does not believe
NO_ROOM = re.compile(r"allocat|out ?of ?memory(?! reading of)|insufficient memory|MemoryError", re.IGNORECASE)
FOLLOWED = ("/common/", "/tifffile/", "/numpy/lib/", "/zipfile")  # where new lines count as new ways
PROGRESS = struct.Struct("<qqqq")  # input in work or -1, read, refused, most address space


@dataclass(frozen=True)
class Target:
    """A reader and what it is fed with. read(folder): reads the files there, or raises InputError.

    samples: {name of a file: content} of a sound folder, several; mutate(name, content, draws): a damaged content of
    one of these; damaged: which files are mutated, by the end of their names.
    """

    name: str
    samples: list[dict[str, bytes]]
    mutate: Callable[[str, bytes, random.Random], bytes]
    read: Callable[[Path], object]
    damaged: tuple[str, ...] = ("",)


@dataclass
class Result:
    name: str
    inputs: int = 0
    read: int = 0
    refused: int = 0
    kept: int = 0
    memory: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)


class Lines:
    """The lines of Python that inputs reach; `new` says whether the last one reached any for the first time."""

    def __init__(self):
        self.seen: set[tuple[str, int]] = set()

    def trace(self, frame, _event, _arg):
        name = frame.f_code.co_filename
        return self.line if any(part in name for part in FOLLOWED) else None

    def line(self, frame, event, _arg):
        if event == "line":
            self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self.line

    @contextlib.contextmanager
    def followed(self):
        sys.settrace(self.trace)
        try:
            yield
        finally:
            sys.settrace(None)


def address_space() -> tuple[int, int]:
    """(now, the most so far) bytes of this process."""
    status = Path("/proc/self/status").read_text()
    return tuple(int(re.search(rf"{name}:\s*(\d+)", status)[1]) * 1024 for name in ("VmSize", "VmPeak"))


def fuzz(target: Target, folder: Path, *, inputs: int, seed: int = 0) -> Result:
    """`inputs` mutations through one target, in children of this process; `folder` keeps those that are of use."""
    corpus, result, first = folder / target.name, Result(target.name), 0
    corpus.mkdir(parents=True, exist_ok=True)
    while first < inputs:
        with mmap.mmap(-1, mmap.PAGESIZE) as shared:
            shared[: PROGRESS.size] = PROGRESS.pack(first, 0, 0, 0)
            pid = os.fork()
            if pid == 0:
                be_child(target, corpus, shared, first, inputs, seed)
            _, status = os.waitpid(pid, 0)
            at, read, refused, memory = PROGRESS.unpack(shared[: PROGRESS.size])
        result.read, result.refused = result.read + read, result.refused + refused
        result.memory = max(result.memory, memory)
        if status:
            said = corpus / f"{at}.fault"
            result.faults.append((at, said.read_text() if said.is_file() else how_ended(status)))
        first = at + 1 if status else inputs
    result.inputs, result.kept = inputs, len(list(corpus.glob("*.kept")))
    return result


def how_ended(status: int) -> str:
    number = os.waitstatus_to_exitcode(status)
    if number >= 0:
        return f"ended with code {number}"
    name = signal.Signals(-number).name
    return {"SIGPROF": f"hangs: more than {SECONDS} s of computing", "SIGALRM": f"hangs: more than {PATIENCE} s"}.get(
        name, f"crashed: {name}"
    )


def be_child(target: Target, corpus: Path, shared, first: int, inputs: int, seed: int) -> None:
    """Inputs from `first` on; ends the process: 0 at the end of the inputs, 1 at a fault, or by a signal."""
    code = 1
    try:
        silence()
        code = run_inputs(target, corpus, shared, first, inputs, seed)
    except BaseException:
        (corpus / f"{PROGRESS.unpack(shared[: PROGRESS.size])[0]}.fault").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def silence() -> None:
    """No output of readers, no core files, the default for signals, and a ceiling on memory."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    for number in (signal.SIGPROF, signal.SIGALRM, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (address_space()[0] + CEILING,) * 2)


def run_inputs(target: Target, corpus: Path, shared, first: int, inputs: int, seed: int) -> int:
    lines, read, refused = Lines(), 0, 0
    before = warmed_up(target, corpus / "input")
    pool = [*target.samples, *(unpack(path) for path in sorted(corpus.glob("*.kept"), key=number_of))]
    for number in range(first, inputs):
        shared[: PROGRESS.size] = PROGRESS.pack(number, read, refused, address_space()[1] - before)
        draws = random.Random(f"{seed} {target.name} {number}")
        files = damaged(target, pool, draws) if number >= len(target.samples) else target.samples[number]
        home = corpus / "input"
        shutil.rmtree(home, ignore_errors=True)
        lay_out(files, home)
        known = len(lines.seen)
        fault = judge(target.read, home, lines, before, sound=number < len(target.samples))
        if fault and fault != "refused":
            (corpus / f"{number}.fault").write_text(fault)
            (corpus / f"{number}.input").write_bytes(pack(files))
            return 1
        read, refused = read + (fault == ""), refused + (fault == "refused")
        if len(lines.seen) > known and number >= len(target.samples):
            pool.append(files)
            (corpus / f"{number}.kept").write_bytes(pack(files))
    shared[: PROGRESS.size] = PROGRESS.pack(-1, read, refused, address_space()[1] - before)
    return 0


def warmed_up(target: Target, home: Path) -> int:
    """Address space once a sound sample was read: libraries take threads and buffers at their first call."""
    shutil.rmtree(home, ignore_errors=True)
    lay_out(target.samples[0], home)
    with contextlib.suppress(Exception), bounded():
        target.read(home)
    return address_space()[1]


@contextlib.contextmanager
def bounded():
    """A signal ends the process where what it wraps takes too long."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def judge(read: Callable, home: Path, lines: Lines, before: int, *, sound: bool) -> str:
    """ "" where the files were read, "refused", or what is wrong."""
    said = ""
    try:
        with bounded(), lines.followed():
            read(home)
    except InputError as error:
        said = refusal(error, home) or ("a sound sample is refused: " + str(error) if sound else "refused")
    except Exception:
        said = traceback.format_exc()
    taken = address_space()[1] - before
    return f"takes {taken:,} bytes of address space\n{said}" if taken > MEMORY else said


def refusal(error: InputError, home: Path) -> str:
    """What is wrong with an InputError: it does not name a file, or hides that memory was asked for in vain."""
    causes, cause = [], error
    while cause is not None:
        causes.append(repr(cause))
        cause = cause.__cause__ or cause.__context__
    if any(NO_ROOM.search(text) for text in causes):
        return "memory was asked for in vain: " + " <- ".join(causes)
    names = [path.name for path in home.rglob("*")]
    if not any(name in str(error) for name in names):
        return f"names none of the files: {error}"
    return "" if len(str(error)) < 1500 else f"says too much: {error}"


def damaged(target: Target, pool: list[dict], draws: random.Random) -> dict[str, bytes]:
    """One of the pool, one to four times mutated."""
    files = dict(draws.choice(pool))
    names = [name for name in files if name.endswith(target.damaged)]
    for _ in range(draws.choice((1, 1, 1, 2, 2, 4))):
        name = draws.choice(names)
        files[name] = target.mutate(name, files[name], draws)
    return files


def lay_out(files: dict[str, bytes], home: Path) -> None:
    for name, content in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def number_of(path: Path) -> int:
    return int(path.stem)


def pack(files: dict[str, bytes]) -> bytes:
    return b"".join(struct.pack("<HI", len(name.encode()), len(data)) + name.encode() + data
                    for name, data in files.items())  # fmt: skip


def unpack(path: Path) -> dict[str, bytes]:
    content, at, files = path.read_bytes(), 0, {}
    while at < len(content):
        short, long = struct.unpack_from("<HI", content, at)
        name = content[at + 6 : at + 6 + short].decode()
        files[name] = content[at + 6 + short : at + 6 + short + long]
        at += 6 + short + long
    return files


def table(results: list[Result]) -> str:
    """Text: a line for each target and one for all."""
    total = Result("all", *(sum(getattr(r, name) for r in results) for name in ("inputs", "read", "refused", "kept")),
                   max(r.memory for r in results), [fault for r in results for fault in r.faults])  # fmt: skip
    width = max(len(r.name) for r in results)
    lines = [f"{'reader':{width}}  inputs    read refused  new ways  most memory  faults"]
    lines += [f"{r.name:{width}} {r.inputs:7,} {r.read:7,} {r.refused:7,} {r.kept:9,} {r.memory / 2**20:9,.0f} MB"
              f" {len(r.faults):7}" for r in [*results, total]]  # fmt: skip
    return "\n".join(lines)
