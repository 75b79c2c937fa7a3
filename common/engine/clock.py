"""The clock of a training with a time budget: which epochs and folds are begun, and what is said of it."""

import math
import shlex
from collections import deque
from statistics import mean

from tqdm import tqdm

from common.engine import budget

STOPPED = 4  # exit code of a training that --resume goes on with


class OutOfTime(Exception):
    """An epoch that was begun would not end in time; it is given up, the one before it stands."""


class Clock:
    """How long a training may go on, and what of its folds ends by then. seconds None: for ever, and nothing is said.

    An epoch is begun where the slowest of the last ones, with its validation, would end in time.
    """

    def __init__(self, seconds: float | None = None, *, began: float | None = None, machine=None):
        self.seconds, self.machine, self.began = seconds, machine, budget.now() if began is None else began
        self.end = self.began + seconds - budget.reserve(seconds) if seconds else math.inf
        self.stopped, self.said = "", ()  # what did not end; the kind of forecast that was printed last
        self.folds: list = []  # those that are not finished, the current one first
        self.stage, self.epochs = None, deque(maxlen=3)  # (seconds to train, seconds to validate and save)
        self.whole = self.extra = 0.0  # seconds of all epochs of a fold; of a fold beside them
        self.ended = False  # whether an epoch, or a fold, ended in this call

    def through(self, folds: list, unfinished: list):
        """Yields the folds, as long as there is time to begin one of those that are not finished."""
        self.folds = list(unfinished)
        for fold in folds:
            waits = fold in self.folds
            if waits and not self.begin_fold():
                return
            yield fold
            if self.stopped:
                return
            if waits:
                self.extra = max(self.extra, budget.now() - self.fold_began - self.whole)
                self.ended = True
                self.folds.pop(0)

    def begin_fold(self) -> bool:
        """Whether the next of the folds is begun: one epoch of it at least has to end in time."""
        need = self.extra + sum(self.longest())
        if self.seconds and budget.agreed([budget.now() + need - self.end], self.machine)[0] > 0:
            self.stopped = ", ".join(f"fold {fold} was not begun" for fold in self.folds)
        self.fold_began, self.whole, self.stage = budget.now(), 0.0, None
        return not self.stopped

    def longest(self) -> tuple[float, float]:
        trains, validates = zip(*self.epochs, strict=True) if self.epochs else ((0.0,), (0.0,))
        return max(trains), max(validates)

    def begin_epoch(self, trainer) -> bool:
        """Whether the epoch that comes next would end in time, with the predictions that a fold ends with."""
        if not self.seconds:
            return True
        if self.stage != trainer.stage_number:  # another stage trains other parts: its first batches tell its time
            self.epochs = deque(list(self.epochs)[-1:], maxlen=3)
        self.stage, self.epoch_began = trainer.stage_number, budget.now()
        train, validate = self.longest()
        if budget.agreed([budget.now() + train + 2 * validate - self.end], self.machine)[0] > 0:
            self.stop(trainer)
        return not self.stopped

    def end_epoch(self, trained: float, trainer) -> None:
        """trained: the time at which its last batch was done."""
        if self.seconds:
            self.epochs.append((trained - self.epoch_began, budget.now() - trained))
            self.whole += budget.now() - self.epoch_began
            self.ended = True
            self.forecast(budget.now(), trainer, *map(mean, zip(*self.epochs, strict=True)))

    def step(self, step: int, steps: int, trainer) -> None:
        """Called after every batch. OutOfTime where, by the batches so far, the epoch would end too late."""
        if not self.seconds:
            return
        if step == 0:
            self.first = budget.now()
        if step not in {min(4, steps - 1), steps // 4, steps // 2, 3 * steps // 4}:
            return
        each = (budget.now() - self.first) / step if step else budget.now() - self.epoch_began
        train = self.first - self.epoch_began + each * (steps - 1)
        validate = self.longest()[1]
        if not self.ended:
            self.forecast(self.epoch_began, trainer, train, validate)
        late = budget.now() + each * (steps - 1 - step) + 2 * validate - self.end - budget.reserve(self.seconds) / 2
        if budget.agreed([late], self.machine)[0] > 0:
            self.stop(trainer)
            raise OutOfTime

    def stop(self, trainer) -> None:
        done = f"fold {self.folds[0]} stopped after epoch {trainer.next_epoch} of {trainer.epochs}"
        later = [f"fold {fold} was not begun" for fold in self.folds[1:]]
        self.stopped = ", ".join([done, *later])

    def forecast(self, at: float, trainer, train: float, validate: float) -> None:
        """Say which folds will end, by the seconds of an epoch: early, when one is over, and where that changes.

        at: when the trainer's next epoch begins.
        """
        epoch, closing, total, room, said = train + validate, max(validate, self.extra), at - self.began, 0.0, []
        for number, fold in enumerate(self.folds):
            count = trainer.epochs if number else trainer.epochs - trainer.next_epoch
            total += self.extra if number else 0.0
            room = self.end - self.began - total - closing
            total += count * epoch + closing
            fits = count if room >= count * epoch else int(max(0.0, room) // epoch)
            if fits == count:
                said.append(f"fold {fold} ends")
            elif number and not fits:
                said.append(f"fold {fold} is not begun")
            else:
                said.append(f"fold {fold} stops at about epoch {trainer.epochs - count + fits} of {trainer.epochs}")
        key = self.ended, *(one.partition(" at about")[0] for one in said)
        if key != self.said and self.machine.main:
            of_folds = f" for {len(said)} folds" if len(said) > 1 else ""
            whole, used, total = map(budget.spoken, (self.seconds, self.end - self.began, total))
            tqdm.write(
                f"time budget {whole} ({used} without its reserve), estimate {total}{of_folds}: {', '.join(said)}"
            )
        self.said = key

    def say_stopped(self, argv: list[str]) -> int:
        """Exit code: STOPPED, having said what is left and how to go on; 0 where nothing is."""
        if not self.stopped:
            return 0
        if self.machine.main:
            words = [word for word in argv if word not in ("--force", "--resume")]
            short = "" if self.ended else f" with more time than {budget.spoken(self.seconds)}, no epoch ends in that"
            print(
                f"stopped by --time-budget: {self.stopped}; go on{short}: python train.py {shlex.join(words)} --resume"
            )
        return STOPPED
