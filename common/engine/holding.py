"""Folders that one process writes at a time: who holds one is known by name, and a crash leaves no lock behind."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from common.engine.device import Machine, barrier
from common.engine.side_store import Claim, claim, is_claimed, lock_of
from common.errors import InputError
from common.files import is_alive

WRITER = "writer"  # the lock of a folder is a hidden file in it: beside it, a mount may not be written
ANOTHER_RUN = "wait until it ends, or name another --run or --fold"
ANOTHER_OUT = "wait until it ends, or give another --out"
LOOKS, PAUSE = 10, 0.05  # at a lock whose holder has not said yet who it is, and seconds between two of them


def note_of_this_process() -> dict:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}


def read_note(lock: Path) -> dict:
    """What the holder wrote of itself; {} where nothing can be read of it."""
    try:
        note = json.loads(lock.read_text())
    except (OSError, ValueError):
        return {}
    known = isinstance(note, dict) and {"pid", "host", "since"} <= set(note) and isinstance(note["pid"], int)
    return note if known else {}


def is_of_the_dead(note: dict) -> bool:
    """Whether a note is none, or that of a process of this machine that is no more: its successor is about to write."""
    return not note or (note["host"] == socket.gethostname() and not is_alive(note["pid"]))


def claim_folder(folder: Path, remedy: str) -> Claim:
    """The right to write a folder. InputError where another process has it, which the line names."""
    lock, note = lock_of(folder / WRITER), {}
    for _ in range(LOOKS):
        if held := claim(folder / WRITER):
            return held
        if not is_of_the_dead(note := read_note(lock)):
            break
        time.sleep(PAUSE)
    who = f"process {note['pid']} on {note['host']}, since {note['since']}" if note else "another process"
    raise InputError(f"{folder}: is being written by {who}; {remedy}")


@contextlib.contextmanager
def hold(folder: Path, remedy: str) -> Iterator[None]:
    """Write `folder` alone until the `with` ends or the process does, however it ends.

    InputError, at once, where another process writes it: the line names that process and the remedy. A folder that
    was made for the lock and stays empty is removed.
    """
    folder = Path(folder)
    before = folder.is_dir()
    try:
        with claim_folder(folder, remedy) as held:
            held.note(json.dumps(note_of_this_process()))
            yield
    finally:
        if not before:
            with contextlib.suppress(OSError):  # it holds what was written
                folder.rmdir()


def is_held(folder: Path) -> bool:
    """Whether a process, this one included, writes the folder now."""
    return is_claimed(folder / WRITER)


@contextlib.contextmanager
def hold_all(folders: list[Path], remedy: str, machine: Machine) -> Iterator[None]:
    """`hold` of several folders, by the first of the processes that share the work; the others wait until it has them,
    so that none writes where another call does."""
    with contextlib.ExitStack() as held:
        for folder in folders if machine.main else []:
            held.enter_context(hold(folder, remedy))
        barrier()
        yield
