"""Loader workers whose troubles reach the process that waits for them, as one line."""

import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import Queue

from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from common.errors import NO_SHARED_MEMORY, InputError, explained

LOCKS = 10, 4  # a loader's own, and those of each worker: a few more than torch takes


def begin_worker(number: int, *, init_worker: Callable | None) -> None:
    """`init_worker(number)` in a new worker; from then on a batch that cannot be sent is not lost in silence."""
    # Batches are pickled, and shared memory is taken for them, in a thread of the queue. By default it prints what goes
    # wrong there and drops the batch, and the main process waits for it for ever (torch 2.15, Python 3.11).
    Queue._on_queue_feeder_error = send_reason
    sys.excepthook = say_uncaught
    if init_worker:
        init_worker(number)


def say_uncaught(kind, error, trace) -> None:
    """What a thread of a worker caught, unless it is that the main process went away while it took a batch: that one
    says itself why it ends."""
    if not issubclass(kind, (OSError, EOFError, multiprocessing.AuthenticationError)):
        sys.__excepthook__(kind, error, trace)


def send_reason(queue: Queue, error: Exception, lost: tuple) -> None:
    """Send why a batch could not be sent in its place. lost: (its number, the batch)."""
    reason = explained(error) or f"a loader process could not send a batch ({error}); --workers 0 needs none"
    wrapped = ExceptionWrapper((InputError, InputError(reason), None), where="in a loader process")
    queue.put((lost[0], wrapped))


class Loader(DataLoader):
    """A DataLoader that says so where shared memory has no room for the locks of its workers, or for their batches."""

    started = False

    def __init__(self, dataset, *, init_worker: Callable | None = None, **options):
        super().__init__(dataset, worker_init_fn=partial(begin_worker, init_worker=init_worker), **options)

    def __iter__(self):
        if self.num_workers and not self.started:
            check_shared_memory(self.num_workers)
        self.started = self.persistent_workers  # others begin anew in every epoch
        return super().__iter__()


def check_shared_memory(workers: int) -> None:
    """InputError where there is no room for the locks of so many workers: torch would name no file."""
    own, each = LOCKS
    try:
        _ = [multiprocessing.Lock() for _ in range(own + each * workers)]
    except OSError as error:
        raise InputError(NO_SHARED_MEMORY) from error
