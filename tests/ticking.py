"""A clock of the tests' own: it stands still but for what they say takes time, so that hours pass in a second."""

from dataclasses import replace

from common.engine import budget

HOUR = 3600.0


class Ticking:
    """forward, step: seconds of a forward pass of one model over a batch, and of a training step; numbers, or functions
    of how many there were before."""

    def __init__(self, forward=0.0, step=0.0):
        self.time, self.forward, self.step, self.forwards, self.steps = 1000.0, forward, step, 0, 0

    def now(self) -> float:
        return self.time

    def passes(self, task):
        """The task, whose models and losses take their time on this clock."""

        def to_pred(model, outputs):
            self.time += self.forward(self.forwards) if callable(self.forward) else self.forward
            self.forwards += 1
            return task.to_pred(model, outputs)

        def build_loss(spec, settings):
            loss = task.build_loss(spec, settings)

            def timed(outputs, batch):
                self.time += self.step(self.steps) if callable(self.step) else self.step
                self.steps += 1
                return loss(outputs, batch)

            return timed

        return replace(task, to_pred=to_pred, build_loss=build_loss)


def tick(monkeypatch, tasks, name: str, task=None, **seconds) -> Ticking:
    """The clock that the budgets go by from now on, and that the named task takes its time on."""
    clock = Ticking(**seconds)
    monkeypatch.setattr(budget, "now", clock.now)
    monkeypatch.setitem(tasks, name, clock.passes(task or tasks[name]))
    return clock
