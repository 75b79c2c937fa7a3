"""Loader workers whose troubles reach the process that waits for them, as one line."""

import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import Queue

from torch._utils import ExceptionWrapper

from common.errors import NO_SHARED_MEMORY, InputError, explained

LOCKS = 10  # a loader's own, and more than one of its workers has


def worker_start(init_worker: Callable | None) -> Callable:
    """worker_init_fn of a DataLoader: `init_worker(number)`, and a batch that cannot be sent is not lost in silence."""
    return partial(begin_worker, init_worker=init_worker)


def begin_worker(number: int, *, init_worker: Callable | None) -> None:
    # Batches are pickled, and shared memory is taken for them, in a thread of the queue. By default it prints what goes
    # wrong there and drops the batch, and the main process waits for it for ever (torch 2.15, Python 3.11).
    Queue._on_queue_feeder_error = send_reason
    if init_worker:
        init_worker(number)


def send_reason(queue: Queue, error: Exception, lost: tuple) -> None:
    """Send why a batch could not be sent in its place. lost: (its number, the batch)."""
    reason = explained(error) or f"a loader process could not send a batch ({error}); --workers 0 needs none"
    wrapped = ExceptionWrapper((InputError, InputError(reason), None), where="in a loader process")
    queue.put((lost[0], wrapped))


def check_shared_memory(workers: int) -> None:
    """InputError where there is not even room for the locks of so many workers: torch would name no file."""
    try:
        _ = [multiprocessing.Lock() for _ in range(LOCKS * (1 + workers))]
    except OSError as error:
        raise InputError(NO_SHARED_MEMORY) from error
