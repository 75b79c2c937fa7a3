"""--batch-size auto: the largest batch that fits, found by training steps at growing sizes on the device itself."""

import copy
import gc
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from common.datasets.sampling import epoch_order
from common.engine import runs
from common.engine.device import Machine, barrier, rng_state, set_rng_state
from common.engine.loop import Trainer
from common.engine.memory import PeakMemory, free_memory, release_memory, used_memory
from common.engine.predict import predict
from common.errors import InputError
from common.losses.reduce import alone

AUTO = "auto"
SHARE = {"cuda": 0.9, "mps": 0.8, "cpu": 0.8}  # of the free memory: the rest is for fragments, loaders and others
POOL = 16  # samples that the batches are made of, again and again: what a step takes depends on their shape alone
GROWTH = 4  # the next size is at most so many times the last one that fitted: far extrapolations may end in a kill
FINE = 16  # the answer is at most a sixteenth smaller than the largest size that fits
FIRST_STEPS = 20  # a scaled fp16 step is left out until its scale has fallen far enough, a halving a step


def known_settings(folder: Path, *, resume: bool, force: bool) -> dict | None:
    """The settings of a fold, or else of another fold of its run, that settled the rows a step; None where none did.

    A start that saved nothing binds nobody unless it is resumed; a fold that is started over does not bind itself.
    """
    for fold in [folder, *(other for other in sorted(folder.parent.glob("fold*")) if other != folder)]:
        saved = any((fold / name).is_file() for name in ("last.pt", "best.pt", "finished.json"))
        binds = not force if fold == folder else saved
        if binds and (saved or resume) and (fold / "args.yaml").is_file():
            known = runs.read_settings(fold)
            if known["batch_size"] != AUTO:
                return known
    return None


def known_batch_size(folder: Path, *, resume: bool, force: bool) -> int | None:
    """The rows a step that `known_settings` have."""
    known = known_settings(folder, resume=resume, force=force)
    return None if known is None else int(known["batch_size"])


def settle_batch_size(settings: dict, folder: Path) -> None:
    """Put the number that is known in the place of auto, and the batches a step that memory made of those asked for."""
    known = known_settings(folder, resume=settings["resume"], force=settings["force"])
    if known is None:
        return
    settings["batch_size"] = int(known["batch_size"])
    times, rest = divmod(int(known["accumulate"]), settings["accumulate"])
    if times > 1 and not rest and not times & (times - 1):  # a power of two, as halvings leave it
        settings["accumulate"] *= times


def until_it_fits(train: Callable, session, folder: Path, machine: Machine) -> None:
    """Call train(); where its memory does not suffice and --batch-size is auto, again with batches half as large.

    Twice as many of them then make an optimizer step, args.yaml keeps both numbers, and the fold goes on from its
    last.pt. InputError, in a line, where the size was given, where one row is too much, and in several processes.
    """
    settings = session.settings
    before = {name: settings[name] for name in ("resume", "force")}
    while said := out_of_memory(train):
        gc.collect()
        release_memory(machine.device)
        halve(settings, said, folder, machine, auto=session.args.batch_size == AUTO)
        settings |= {"resume": True, "force": False}
    settings |= before


def out_of_memory(train: Callable) -> str:
    """What was said where train() ran out of memory; "" where it did not. It holds no tensor of the step any more."""
    try:
        train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return (str(error).splitlines() or ["out of memory"])[0][:100]
    return ""


def halve(settings: dict, said: str, folder: Path, machine: Machine, *, auto: bool) -> None:
    """Half the rows a step and twice the batches of an optimizer step, said and kept; else the InputError for it."""
    size, accumulate = settings["batch_size"], settings["accumulate"]
    if size == AUTO:
        raise InputError(f"{folder}: memory ran out before a batch was measured ({said}); take a smaller --crop or "
                         "model")  # fmt: skip
    fewer = {"batch_size": size // 2, "accumulate": 2 * accumulate}
    words = f"--batch-size {size // 2} --accumulate {2 * accumulate}"
    said = f"{folder}: a batch of {size} rows does not fit into memory ({said})"
    if size < 2:
        raise InputError(f"{said}; take a smaller --crop or model")
    if not auto or machine.world > 1:
        again = "" if machine.world > 1 else ", or --resume --batch-size auto goes on with half of it"
        raise InputError(f"{said}; start over with {words} --force{again}")
    settings |= fewer
    runs.keep_settings(folder, settings)
    print(f"{said}: from the last saved epoch on with {words}")


def measure_batch_size(task, model, train, valid, collate, spec: dict, settings: dict, machine: Machine) -> int:
    """Rows a step, of all processes together, that fit on the device; at most those of an epoch.

    train, valid: the datasets (valid may be None). Model, RNG and datasets are left as they were: the steps are taken
    by a copy. Every process measures by itself and the smallest answer counts. InputError where not one row fits.
    """
    if getattr(model, "closed_form", False):
        raise InputError(f"--batch-size auto: the head {settings['head']} is fitted without steps; give a number")
    state, most = rng_state(), -(-len(train) // machine.world)
    rehearsal = Rehearsal(task, model, train, valid, collate, spec, settings, machine)
    barrier()  # the memory of a machine is looked at by all of its processes before one takes it
    budget = rehearsal.limit()
    barrier()
    with alone():
        size, tried = largest_size(rehearsal.peak, most=most, budget=budget, refuses=machine.device.type == "cuda")
    rehearsal.end()
    set_rng_state(state)
    fitting = smallest(size, machine)
    if not fitting:
        raise InputError("--batch-size auto: not even one row fits into memory; take a smaller --crop or model")
    total = min(fitting * machine.world, len(train))
    if machine.main:
        print(say_size(total, tried, budget, len(train), machine))
    return total


def smallest(size: int, machine: Machine) -> int:
    """The smallest of all processes' numbers."""
    if machine.world == 1:
        return size
    value = torch.tensor(size, device=machine.device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return int(value)


def say_size(total: int, tried: dict, budget: int, rows: int, machine: Machine) -> str:
    """What was chosen and why, in a line."""
    peaks = (f"{size}: {'does not fit' if peak is None else f'{peak / 1e9:.2f} GB'}" for size, peak in tried.items())
    limit = f"all of the epoch's {rows} rows" if total == rows else f"{budget / 1e9:.2f} GB may be used"
    each = f" by {machine.world} processes" if machine.world > 1 else ""
    return f"batch size {total} (auto, measured{each}): {limit}; a step of {', '.join(peaks)}"


def largest_size(peak: Callable, *, most: int, budget: int, refuses: bool) -> tuple[int, dict[int, int | None]]:
    """(the largest size in 1..most that was tried and fits, or 0; {size tried: its peak in bytes, None: no memory}).

    peak(size) takes a step of so many rows and gives its peak in bytes, or None where there was not enough memory.
    refuses: the device says no without harm, so that sizes double until it does; else memory is taken to grow with the
    size in a straight line, sizes go where that meets the budget, and no size is tried that it puts beyond.
    """
    tried: dict[int, int | None] = {}
    low, high, size = 0, most + 1, min(2, most)
    while True:
        tried[size] = peak(size)
        if tried[size] is not None and tried[size] <= budget:
            low = size
        else:
            high = size
        if high - low <= 1 + low // FINE:
            return low, tried
        if high in tried:
            size = between(low, tried.get(low), high, tried[high], budget)
        else:
            size = min(2 * low if refuses else met(tried, low, budget), most)
            if size <= low or (size - low <= low // FINE and size < most):
                return low, tried


def between(low: int, least: int | None, high: int, peak: int | None, budget: int) -> int:
    """A size between one that fits (or none: 0) and one that does not: where a line through their peaks meets the
    budget, or their middle; not too near to either of them, so that few steps settle it."""
    if not low or peak is None:
        return max(1, (low + high) // 2)
    reached = low + (high - low) * (budget - least) / (peak - least)
    edge = max(1, (high - low) // 4)
    return int(min(max(reached, low + edge), high - edge))


def met(tried: dict, low: int, budget: int) -> int:
    """The size at which a line through the two largest sizes tried, which fit, meets the budget, not too far away."""
    if len(tried) < 2:
        return 2 * low
    (size, peak), (larger, higher) = sorted(tried.items())[-2:]
    slope = (higher - peak) / (larger - size)
    reached = size + (budget - peak) / slope if slope > 0 else low * GROWTH
    return int(min(reached, low * GROWTH))


class Rehearsal:
    """Training steps of a copy of the model, with its optimizer and average, and the validation that follows."""

    def __init__(self, task, model, train, valid, collate, spec: dict, settings: dict, machine: Machine):
        self.task, self.model, self.spec, self.settings = task, model, spec, settings
        self.machine, self.device = Machine(machine.device, machine.amp), machine.device
        self.world, self.trainer = machine.world, None
        self.train = Pool(train, collate, epoch_order(len(train), settings["seed"], 0)[:POOL])
        self.valid = None if valid is None or not len(valid) else Pool(valid, collate, range(min(POOL, len(valid))))

    def limit(self) -> int:
        """Bytes that this process may hold. On CUDA the allocator is told, so that it refuses what is beyond."""
        release_memory(self.device)
        held = 0 if self.device.type == "cuda" else used_memory(self.device)
        budget = held + int(SHARE[self.device.type] * free_memory(self.device))
        if self.device.type == "cuda":
            _, whole = torch.cuda.mem_get_info(self.device)
            torch.cuda.set_per_process_memory_fraction(min(1.0, budget / whole), self.device)
        return budget

    def begin(self, size: int = 2) -> None:
        """A trainer whose optimizer has its moments, as it has from the second step on."""
        model = copy.deepcopy(self.model)
        groups, stages = self.task.plan(model, self.settings)
        still = [{**group, "lr": 0.0} for group in groups]
        options = {name: self.settings[name] for name in ("ema_decay", "grad_clip", "seed")}
        # a bad batch is the training's business where it has an answer to it
        options["on_nan"] = "stop" if self.settings["on_nan"] == "stop" else "off"
        trainer = Trainer(model, None, loss_fn=self.task.build_loss(self.spec, self.settings), groups=still,
                          stages=stages, validate=None, folder=Path(), header={}, machine=self.machine,
                          **options)  # fmt: skip
        starts = [sum(stage.epochs for stage in stages[:number]) for number in range(len(stages))]
        self.epoch = max(starts, key=lambda epoch: trained(trainer, epoch))
        trainer.enter_stage(self.epoch)
        trainer.model.train()
        self.trainer = trainer
        for _ in range(FIRST_STEPS):
            self.step(min(2, size))
            if trainer.optimizer.state:
                break

    def step(self, size: int) -> int:
        """One step of so many rows; the bytes of its batch."""
        batch = self.train.batch(size)
        self.trainer.train_step(batch, self.epoch, 0, 1)
        return sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))

    def validate(self, size: int) -> None:
        keep = self.task.keep(self.spec, self.settings, None)
        predict([self.trainer.evaluated], [self.valid.batch(min(size, self.valid.rows))], views=["identity"],
                device=self.device, to_pred=self.task.to_pred, amp=self.machine.amp, keep=keep)  # fmt: skip

    def peak(self, size: int) -> int | None:
        """The most bytes held in a step of so many rows and in their validation; None where memory did not suffice."""
        try:
            if self.trainer is None:
                self.begin(size)
            release_memory(self.device)
            with PeakMemory(self.device) as peak:
                batch = self.step(size)
                if self.valid:
                    self.validate(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            peak = None
        if peak is None:  # outside of the handler, whose traceback holds the step's tensors
            self.forget()
            return None
        gradients = sum(p.nbytes for p in self.trainer.model.parameters()) if self.world > 1 else 0  # DDP's buckets
        waiting = 0 if self.device.type == "cuda" else 2 * self.settings["workers"] * batch
        return peak.bytes + gradients + waiting

    def forget(self) -> None:
        """Free everything; the next trial begins anew."""
        self.trainer = None
        gc.collect()
        release_memory(self.device)

    def end(self) -> None:
        """Leave the device as it was."""
        self.forget()
        if self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
            torch.cuda.reset_peak_memory_stats(self.device)


class Pool:
    """A few samples of a dataset, and batches of any size of them."""

    def __init__(self, dataset, collate, indices):
        self.rows, self.collate = len(dataset), collate
        self.indices = [int(index) for index in indices]
        self.whole = dataset.get_batch if hasattr(dataset, "get_batch") else None
        self.samples = None if self.whole else [dataset[(0, index)] for index in self.indices]

    def __len__(self) -> int:
        return self.rows

    def batch(self, size: int) -> dict:
        chosen = [number % len(self.indices) for number in range(size)]
        if self.whole:
            return self.whole(0, [self.indices[number] for number in chosen])
        return self.collate([self.samples[number] for number in chosen])


def trained(trainer: Trainer, epoch: int) -> int:
    """Numbers that an optimizer step of the epoch changes: the stage with the most takes the most memory."""
    trainer.enter_stage(epoch)
    return sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


def is_out_of_memory(error: Exception) -> bool:
    said = str(error)
    words = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # of torch, cuDNN and cuBLAS, the CPU
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(word in said for word in words)
