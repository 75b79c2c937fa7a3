"""Steps that would spoil the weights: a loss or gradient that is not finite, a loss that leaps. What --on-nan does."""

import math
from collections import deque
from statistics import median

import torch
import torch.distributed as dist
from tqdm import tqdm

from common.engine.device import Machine
from common.errors import InputError

MODES = ("stop", "skip", "rewind")
IN_A_ROW, SHARE = 10, 0.05  # optimizer steps that may be left out: one after the other; of an epoch's (one may always)
REWINDS, FALL = 3, 0.5  # rewinds of a fold; factor on the learning rates of each
WINDOW, ENOUGH = 101, 20  # losses of which the running median is, and how many there must be before one can leap
LEAST_SCALE = 2.0**-16  # of fp16, from 2**16 on: a step whose gradient is not finite is left out and halves it
REMEDY = "look at these rows, lower --lr or set --amp off"


class BadStep(Exception):
    """A step that spoils the weights; the text says where and why. Only with --on-nan rewind."""


class Guard:
    """Judges losses and gradients, counts what was left out and how often the training went back.

    mode: of MODES, or "off": nothing is judged (a rehearsal of steps, whose weights nobody uses).
    spike_factor: a loss above so many times the running median is as bad as NaN; 0: none is. InputError below 1.
    """

    def __init__(self, mode: str = "stop", spike_factor: float = 0.0, machine: Machine | None = None):
        if spike_factor and not 1 < spike_factor < math.inf:
            raise InputError(f"--spike-factor {spike_factor}: give a number above 1, or 0 for no limit")
        self.mode, self.spike_factor, self.world = mode, spike_factor, machine.world if machine else 1
        self.rewinds, self.losses = 0, deque(maxlen=WINDOW)
        self.buffers: list[torch.Tensor] = []
        self.begin_epoch(1)

    @property
    def scale(self) -> float:
        """The factor on the learning rates that the rewinds so far have left."""
        return FALL**self.rewinds

    def begin_epoch(self, steps: int) -> None:
        """steps: the optimizer steps that the epoch has."""
        self.steps, self.skipped, self.in_a_row, self.first, self.spoilt = steps, 0, 0, "", False

    def begin_step(self, model: torch.nn.Module) -> None:
        """Before the first batch of an optimizer step: the statistics of norms are kept, as no gradient guards them."""
        self.in_a_row = self.in_a_row if self.spoilt else 0  # the step before this one was taken
        self.spoilt = False
        if self.mode == "skip":
            self.buffers = [buffer.clone() for buffer in model.buffers()]

    def wrong_loss(self, loss: torch.Tensor) -> str:
        """What is wrong with a loss, the same in all processes; "" where nothing is. Waits for the device once."""
        if self.mode == "off":
            return ""
        if self.world > 1 and (self.mode != "stop" or self.spike_factor):  # alone one would step and the others wait
            loss = loss.detach().clone()
            dist.all_reduce(loss)
            loss = loss / self.world
        value = loss.item()
        if not math.isfinite(value):
            return f"loss is not finite ({value})"
        if self.spike_factor:
            middle = median(self.losses) if len(self.losses) >= ENOUGH else math.inf
            if 0 < middle * self.spike_factor < value:
                return f"loss leaps ({value:.4g}, {value / middle:.3g} times the median of the last {len(self.losses)})"
            self.losses.append(value)
        return ""

    def looks_at_gradients(self, scaler) -> bool:
        """Whether gradients are judged: by default the next loss is, and a scaler leaves such steps out by itself."""
        return self.mode in ("skip", "rewind") and not scaler.is_enabled()

    def judge(self, wrong: str, where: str) -> bool:
        """Whether the step is left out, for `wrong` ("": no). InputError where that ends the training, BadStep where it
        goes back."""
        if not wrong:
            return False
        said = f"{wrong} at {where}"
        if self.mode == "rewind":
            raise BadStep(said)
        if self.mode == "stop":
            raise InputError(f"{said}; {REMEDY}, or --on-nan skip; last.pt is untouched")
        self.spoilt, self.first = True, self.first or said
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= IN_A_ROW or self.skipped > max(1, SHARE * self.steps) or self.skipped == self.steps:
            raise InputError(f"{said}: {self.skipped} of the epoch's {self.steps} steps were left out, {self.in_a_row} "
                             f"in a row; {REMEDY}; last.pt is untouched")  # fmt: skip
        return True

    def undo(self, model: torch.nn.Module) -> None:
        """The statistics of norms as they were before the step that is left out."""
        for buffer, before in zip(model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)

    def end_epoch(self, epoch: int, main: bool) -> dict:
        """What the epoch's line of the log says of it."""
        if self.skipped and main:
            tqdm.write(f"epoch {epoch + 1}: {self.skipped} of {self.steps} steps left out; the first: {self.first}")
        counts = {"skipped": self.skipped} if self.mode == "skip" else {}
        return counts | ({"rewinds": self.rewinds} if self.mode == "rewind" or self.rewinds else {})

    def next_rewind(self, bad: BadStep) -> int:
        """The number of the rewind that a bad step calls for. InputError after the last of them."""
        if self.rewinds == REWINDS:
            raise InputError(f"{bad}, after {REWINDS} rewinds; {REMEDY}; last.pt is untouched") from bad
        return self.rewinds + 1

    def state_dict(self) -> dict:
        return {"rewinds": self.rewinds, "losses": list(self.losses)}

    def load_state_dict(self, state: dict) -> None:
        self.rewinds, self.losses = state.get("rewinds", 0), deque(state.get("losses", []), maxlen=WINDOW)


def broken_weight(models: list[torch.nn.Module], machine: Machine) -> str:
    """The first weight that is NaN or infinite, or number beside the weights that is NaN; "" where there is none in
    any process. Waits for the device once."""
    bad = []
    for model in models:
        bad += [(name, ~torch.isfinite(value).all()) for name, value in model.named_parameters()]
        bad += [(name, torch.isnan(value).any()) for name, value in model.named_buffers()]  # a mask may hold -inf
    flags = torch.stack([flag for _, flag in bad]).int()
    if machine.world > 1:
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return next((name for (name, _), flag in zip(bad, flags.tolist(), strict=True) if flag), "")


def fallen_scale(scaler) -> str:
    """What is wrong where fp16 left out step after step, so that nothing is trained; "" where all is well. Waits for
    the device once."""
    scale = scaler.get_scale()  # 1 where nothing is scaled
    return f"gradients are not finite whatever their scale (fp16's fell to {scale:.2g})" if scale < LEAST_SCALE else ""
