"""A time budget: what of a job is given up, and when, so that it ends in time with something to hand in.

Time is read by `now` alone. Processes agree on every decision, so that none waits for another that has stopped.
"""

import time
from collections import Counter, deque
from statistics import mean

import torch
import torch.distributed as dist
from tqdm import tqdm

FIRST = 3  # batches before a plan is made: the first is slower than those that follow, two are measured
TRIAL = 0.1  # share of the time that these may take; where they would take more, the first one has to do
RECENT, LAST = 10, 3  # batches that an estimate is the mean of: of the last ones alone where they took longer


def now() -> float:
    """Seconds on a clock that only goes forward."""
    return time.monotonic()


def reserve(seconds: float) -> float:
    """Seconds of a budget that are kept for what follows: post-processing, writing, validation of what is written."""
    return max(30.0, 0.02 * seconds)


def share(began: float, seconds: float | None, parts: int) -> float | None:
    """When the next of so many parts of a job has to end, on the clock of `now`; None without a budget."""
    return now() + (began + seconds - reserve(seconds) - now()) / parts if seconds else None


def spoken(seconds: float) -> str:
    """A duration for people: 8.5 h, 12.0 min or 45 s."""
    seconds = max(0.0, seconds)
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def agreed(values: list[float], machine) -> list[float]:
    """The largest of each value over all processes: the slowest decides for all."""
    if machine.world == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=machine.device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return shared.tolist()


class Plan:
    """What the rows of one run get until `deadline`: all views of all folds, or as much of it as there is time for.

    Given up in this order: views, the last first, down to the identity; folds, the last first, down to one; rows, the
    last first. What is left of the job is estimated anew before every batch, so that rows that follow slow ones get
    less, and those that follow fast ones more.
    passes(views, folds) -> forward passes that a batch costs; in_turn: the folds are predicted one after the other,
    each over all rows, else together. limit: the deadline where rows would have to be given up else.
    """

    def __init__(
        self, deadline: float, views: list[str], folds: int, *, passes, machine, name="", in_turn=False, limit=None
    ):
        self.limit = deadline if limit is None else limit
        self.deadline, self.passes, self.machine, self.name, self.in_turn = deadline, passes, machine, name, in_turn
        self.begun = now()
        self.levels = [(views[:count], folds) for count in range(len(views), 0, -1)]
        self.levels += [(views[:1], count) for count in range(folds - 1, 0, -1)]
        self.level = self.worst = self.turn = 0
        self.measured: deque = deque(maxlen=RECENT)  # seconds of a batch: (for its rows, to keep it, for a pass)
        self.kept = 0.0
        self.said = False
        self.given: Counter = Counter()  # (views, folds, or the fold's place where they take turns) -> rows
        self.cut = False  # whether a fold was stopped before its last row

    def timed(self, keep):
        """engine.predict's `keep`, its time measured: what is not predicted is kept all the same."""

        def keeps(batch, seen):
            began = now()
            kept = keep(batch, seen)
            self.kept += now() - began
            return kept

        return keep and keeps

    def follow(self, loader, rest):
        """Yields (batch, views, models) of a loader; models is 0 where no time is left.

        rest(indices) gives batches of these rows without reading them. All processes stop at the same batch.
        """
        batches, done = iter(loader), 0
        while done < len(loader) and self.goes_on(done, len(loader)):
            views, folds = self.levels[self.level]
            asked, self.kept = now(), 0.0
            batch = next(batches)
            arrived = now()
            yield batch, views, 1 if self.in_turn else folds
            if done or not self.measured:
                if done == 1 and not self.turn:
                    self.measured.clear()  # the first batch, which stood for what was not known yet
                work = now() - arrived - self.kept
                self.measured.append((arrived - asked, self.kept, work / self.passes_of(self.level)))
            self.given[tuple(views), self.turn if self.in_turn else folds] += loader.batch_sampler.rows_of(done)
            done += 1
        lacking = list(loader.batch_sampler)[done:]
        self.cut = self.cut or bool(lacking)
        for batch in rest([index for keys in lacking for _, index in keys]) if lacking else ():
            yield batch, [], 0

    def passes_of(self, level: int) -> int:
        views, folds = self.levels[level]
        return self.passes(views, 1 if self.in_turn else folds)

    def goes_on(self, done: int, steps: int) -> bool:
        """Choose what the next batch gets; False where there is no time for it. One batch is always predicted."""
        means = [max(mean(column), mean(column[-LAST:])) for column in zip(*self.measured, strict=True)] or [0.0] * 3
        spent, wait, keep, work = agreed([now() - self.deadline, *means], self.machine)
        # what is kept is read and written once more when all is done, by one process
        room = -spent - keep * (steps - done) - (keep * steps * self.machine.world if self.measured else 0)
        costs = [wait + work * self.passes_of(level) for level in range(len(self.levels))]
        if not self.measured:
            self.level = 0 if room > 0 else len(self.levels) - 1
            return True
        if self.turn == 0 and done < FIRST and costs[0] * (FIRST - done) <= TRIAL * room:
            return True
        needs = [cost * self.batches_left(level, done, steps) for level, cost in enumerate(costs)]
        fitting = [level for level, need in enumerate(needs) if need <= room]
        if not fitting:
            room += self.limit - self.deadline
        self.level = fitting[0] if fitting else min(range(len(needs)), key=needs.__getitem__)
        self.say(needs, room, done, steps)
        return costs[self.level] <= room or done == 0

    def batches_left(self, level: int, done: int, steps: int) -> int:
        later = max(0, self.levels[level][1] - 1 - self.turn) if self.in_turn else 0
        return steps - done + later * steps

    def next_turn(self) -> bool:
        """Whether another fold is begun, of those that take turns."""
        self.turn += 1
        return self.turn < self.levels[self.level][1] and agreed([now() - self.deadline], self.machine)[0] < 0

    def say(self, needs: list[float], room: float, done: int, steps: int) -> None:
        """The estimate, once, and what is dropped whenever it is more than before."""
        first, worse = not self.said, self.level > self.worst
        self.said, self.worst = True, max(self.worst, self.level)
        if not (first or worse) or not self.machine.main:
            return
        total, share = now() - self.begun + needs[0], self.deadline - self.begun
        line = f"time budget: {self.name} has {spoken(share)} and would take {spoken(total)}"
        if self.level == 0:
            tqdm.write(f"{line}; nothing is dropped")
            return
        views, folds = self.levels[self.level]
        line += f"; from batch {done + 1} of {steps} on {folds} of {self.levels[0][1]} folds x {' '.join(views)}"
        dropped = [view for view in self.levels[0][0] if view not in views]
        line += f" (dropped: {', '.join([*dropped[::-1], *self.folds_dropped(folds)])})"
        short = 1 - max(0.0, room) / needs[self.level] if needs[self.level] else 0.0
        tqdm.write(line + (f", and the last {short:.0%} of the rows are not predicted" if short > 0 else ""))

    def folds_dropped(self, folds: int) -> list[str]:
        lost = self.levels[0][1] - folds
        return [f"the last {lost} folds" if lost > 1 else "the last fold"] if lost else []

    def facts(self, names: list[str], left: int) -> dict:
        """For spec.json: {"given": [{"folds", "views", "rows"}], "left": rows that no fold predicted}; names: of the
        folds."""
        given = [{"folds": [names[folds]] if self.in_turn else names[:folds], "views": list(views), "rows": rows}
                 for (views, folds), rows in self.given.items()]  # fmt: skip
        return {"seconds": round(now() - self.begun, 1), "given": given, "left": left}

    def lines(self, names: list[str], left: int) -> list[str]:
        """What was dropped, to be said at the end."""
        views, folds = self.levels[0]
        everything = {(tuple(views), fold) for fold in (range(folds) if self.in_turn else [folds])}
        said, facts = f"time budget: {self.name}:", self.facts(names, left)
        if set(self.given) == everything and not self.cut:
            return [f"{said} nothing was dropped, {spoken(facts['seconds'])}"]
        lines = [f"{said} {one['rows']} rows by fold {' '.join(one['folds'])} x {' '.join(one['views'])}"
                 for one in facts["given"]]  # fmt: skip
        return [*lines, *([f"{said} {left} rows were not predicted"] if left else [])]
