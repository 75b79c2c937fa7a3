"""The training loop. It knows batches, a model and a loss; never a task.

Killed anywhere and resumed, it ends with the same bytes of weights: order, augmentation and dropout are functions of
(seed, epoch, step), everything else is in last.pt.
"""

import contextlib
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from timm.utils import ModelEmaV3
from tqdm import tqdm

from common.engine import budget
from common.engine import device as device_module
from common.engine.bad_steps import REWINDS, BadStep, Guard, broken_weight, fallen_scale
from common.engine.checkpoint import load_training, save_checkpoint
from common.engine.clock import Clock, OutOfTime
from common.engine.device import Machine, autocast, peak_memory_gb, to_device
from common.engine.lone_rows import lone_row
from common.engine.schedule import Plateau, Stage, set_lr, stage_at
from common.engine.training_state import epoch_content, restore, resume_state, stored, unstored
from common.errors import InputError
from common.files import atomic_write


class Trainer:
    """One fold's training: a model, its optimizer and average, and the history of epochs.

    validate(model, epoch) -> {"score": float, ...}: called with the averaged model where an average is kept.
    header: what every checkpoint of the fold carries (spec, fold, args, versions, git, folds_hash, external).
    clock: says when there is no time for another epoch; by default there always is.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loader,
        *,
        loss_fn,
        groups: list[dict],
        stages: list[Stage],
        validate,
        folder: Path,
        header: dict,
        machine: Machine,
        ema_decay: float = 0.0,
        grad_clip: float = 0.0,
        accumulate: int = 1,
        patience: int = 0,
        collapse_epochs: int = 0,
        save_every: int = 1,
        seed: int = 0,
        on_epoch=None,
        plateau: Plateau | None = None,
        clock: Clock | None = None,
        on_nan: str = "stop",
        spike_factor: float = 0.0,
    ):
        self.machine, self.device, self.amp = machine, (device := machine.device), machine.amp
        self.model, self.loader, self.loss_fn, self.validate = model.to(device), loader, loss_fn, validate
        self.stages, self.folder, self.header = stages, folder, header
        self.grad_clip, self.accumulate, self.patience, self.save_every = grad_clip, accumulate, patience, save_every
        self.collapse_epochs = collapse_epochs
        self.seed, self.on_epoch, self.plateau, self.clock = seed, on_epoch, plateau, clock or Clock()
        self.epochs = sum(stage.epochs for stage in stages)
        groups = [{**group, "lr0": group["lr"]} for group in groups]
        self.optimizer = torch.optim.AdamW(groups, fused=device.type in ("cpu", "cuda"))
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp is torch.float16)
        self.ema = ModelEmaV3(model, decay=ema_decay, use_warmup=True) if ema_decay else None
        self.guard, self.start = Guard(on_nan, spike_factor, machine), None
        self.net, self.stage_number, self.history = model, None, []
        self.best, self.since_best, self.next_epoch, self.global_step = None, 0, 0, 0
        self.kept_best = None  # what best.pt will hold, once last.pt knows of that epoch

    @property
    def evaluated(self) -> torch.nn.Module:
        """The model that is validated and handed on: the average where one is kept."""
        return self.ema.module if self.ema else self.model

    def run(self) -> list[dict]:
        """Train from next_epoch to the end, to early stopping or until the clock says that time is out; returns the
        history, a dict an epoch."""
        self.check_collapse()  # of a run that is resumed
        if self.guard.mode == "rewind" and not self.history:  # until there is a checkpoint to go back to
            self.start = stored(self)
        while self.next_epoch < self.epochs and not self.stopped_early():
            epoch = self.next_epoch
            self.enter_stage(epoch)
            if not self.clock.begin_epoch(self):
                break
            try:
                record = self.train_epoch(epoch)
                self.check_weights(epoch)
            except OutOfTime:  # the weights are between two epochs: last.pt stays what it is
                break
            except BadStep as bad:
                self.rewind(bad)
                continue
            trained = budget.now()
            record |= self.validate(self.evaluated, epoch)
            self.finish_epoch(epoch, record)
            self.clock.end_epoch(trained, self)
            self.check_collapse()
        return self.history

    def check_collapse(self) -> None:
        """InputError where nothing that is looked for was predicted in `collapse_epochs` epochs, neither of what the
        model was trained on nor, by its average, of what it was validated on: an average alone begins late.

        While the rate warms up, a model that never found anything has not begun: these epochs do not count.
        """
        nothing = [line.get("predicts_nothing", True) and line.get("train_predicted") == 0 for line in self.history]
        found = nothing.index(False) if False in nothing else len(nothing)
        last = nothing[min(found, math.ceil(self.stages[0].warmup)) :][-self.collapse_epochs :]
        if self.collapse_epochs and len(last) == self.collapse_epochs and all(last):
            raise InputError(
                f"collapsed: for {len(last)} epochs, to epoch {self.next_epoch}, no pixel was predicted that is looked "
                "for; take a loss that weighs misses more, a smaller --lr, or --collapse-epochs 0 to go on regardless"
            )

    def check_weights(self, epoch: int) -> None:
        """Weights that are not finite are never saved, nor validated, and fp16 does not leave out step after step:
        InputError, or BadStep where that goes back."""
        name = broken_weight([self.model, self.evaluated], self.machine)
        said = f"weights are not finite ({name})" if name else fallen_scale(self.scaler)
        if not said:
            return
        said += f" after epoch {epoch + 1}"
        if self.guard.mode == "rewind":
            raise BadStep(said)
        raise InputError(f"{said}; lower --lr, set --amp off or give --on-nan rewind; last.pt is untouched")

    def rewind(self, bad: BadStep) -> None:
        """Go back to last.pt, or to the start where there is none yet, and on with half the learning rate."""
        content = self.last_content()
        if content is None:
            content = unstored(self.start)
        device_module.barrier()  # all have read it
        rewinds = self.guard.next_rewind(bad)
        restore(self, content)
        self.guard.rewinds = rewinds  # of all that led here, of which last.pt knows those before it
        self.stage_number = None
        self.optimizer.zero_grad(set_to_none=True)
        if self.machine.main:
            back = f"rewind {rewinds} of {REWINDS} to the end of epoch {self.next_epoch}"
            tqdm.write(f"{bad}: {back}, learning rate times {self.guard.scale:g} from there on")

    def stopped_early(self) -> bool:
        return bool(self.patience) and self.since_best >= self.patience

    def enter_stage(self, epoch: int) -> None:
        """Freeze and unfreeze the parts as the epoch's stage says."""
        number, stage, _ = stage_at(self.stages, epoch)
        if number == self.stage_number:
            return
        self.stage_number = number
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(stage.scale.get(group["part"], 1.0) > 0)
        if hasattr(self.model, "freeze_backbone"):
            self.model.freeze_backbone(stage.scale.get("backbone", 1.0) == 0)
        # DDP registers the parameters that want a gradient when it is made
        self.net = device_module.wrap_ddp(self.model, self.device) if self.machine.world > 1 else self.model

    def train_epoch(self, epoch: int) -> dict:
        self.model.train()
        self.loader.batch_sampler.epoch = epoch
        steps, sums, rows, waited = len(self.loader), {}, 0, 0.0
        self.guard.begin_epoch(-(-steps // self.accumulate))
        started = asked = time.perf_counter()
        bar = tqdm(
            self.loader,
            desc=f"epoch {epoch + 1}/{self.epochs}",
            leave=False,
            disable=None if self.machine.main else True,
        )
        for step, batch in enumerate(bar):
            waited += time.perf_counter() - asked
            lr = set_lr(self.optimizer, self.stages, epoch, step, steps, self.plateau, self.guard.scale)
            parts = self.train_step(batch, epoch, step, steps)
            count = self.loader.batch_sampler.rows_of(step) if parts else 0
            rows += count
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + float(value) * count
            if epoch == self.next_epoch == 0 and step == min(4, steps - 1) and self.machine.main:
                self.say_estimate((time.perf_counter() - started) / (step + 1) * steps)
            self.clock.step(step, steps, self)
            asked = time.perf_counter()
        seconds = time.perf_counter() - started
        means = {f"train_{key}": value / max(rows, 1) for key, value in sums.items()}
        speed = {"lr": lr, "sec": seconds, "images_s": rows / seconds, "wait": waited / seconds}
        left_out = self.guard.end_epoch(epoch, self.machine.main)
        return {"epoch": epoch + 1, "step": self.global_step, **means, **speed, **left_out}

    def say_estimate(self, epoch_seconds: float) -> None:
        total = epoch_seconds * self.epochs
        tqdm.write(f"estimate: {epoch_seconds:.0f} s an epoch, {total / 60:.1f} min for {self.epochs} epochs")

    def train_step(self, batch: dict, epoch: int, step: int, steps: int) -> dict:
        """Forward, loss in fp32, backward; the optimizer steps every `accumulate` batches and at the epoch's end.

        {} for a batch that is left out with its optimizer step.
        """
        torch.manual_seed(int(np.random.SeedSequence([self.seed, epoch, step, self.machine.rank]).generate_state(1)[0]))
        batch = to_device(batch, self.device) | {"epoch": epoch}
        first = step - step % self.accumulate
        together = min(self.accumulate, steps - first)
        last = step == first + together - 1
        if step == first:
            self.guard.begin_step(self.model)
        elif self.guard.spoilt:
            return {}
        where = f"epoch {epoch + 1}, step {step + 1}, rows {' '.join(batch['id'])}"
        sync = self.net.no_sync() if self.machine.world > 1 and not last else contextlib.nullcontext()
        with sync:
            seldom = self.loader is not None and self.loader.batch_sampler.rows_of(0) > self.machine.world
            with autocast(self.device, self.amp), lone_row(self.model, len(batch["id"]), seldom=seldom):
                outputs = self.net(batch["image"])
            parts = self.loss_fn(outputs, batch)
            if self.guard.judge(self.guard.wrong_loss(parts["loss"]), where):
                return self.leave_out()
            self.scaler.scale(parts["loss"] / together).backward()
        if last and self.guard.judge(self.optimizer_step(), where):
            return self.leave_out()
        return {key: value.detach() for key, value in parts.items()}

    def leave_out(self) -> dict:
        """Nothing is left of the optimizer step that a batch spoilt, its other batches included."""
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.undo(self.model)
        return {}

    def optimizer_step(self) -> str:
        """Step the weights and their average; what is wrong with the gradient where it was judged and not taken."""
        looks = self.guard.looks_at_gradients(self.scaler)
        if self.grad_clip or looks:
            self.scaler.unscale_(self.optimizer)
            weights = (p for g in self.optimizer.param_groups for p in g["params"])
            norm = torch.nn.utils.clip_grad_norm_(weights, self.grad_clip or math.inf)
            if looks and not torch.isfinite(norm):
                return "gradient is not finite"
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.global_step += 1
        if self.ema:
            self.ema.update(self.model, step=self.global_step)
        return ""

    def finish_epoch(self, epoch: int, record: dict) -> None:
        """Book-keeping after validation: best.pt, last.pt, log.jsonl, in an order that a kill cannot break."""
        score = record["score"]  # None where nothing validates
        improved = score is not None and (self.best is None or score > self.best)
        self.best = score if improved else self.best
        self.since_best = 0 if improved or score is None else self.since_best + 1
        self.next_epoch = epoch + 1
        if self.plateau:
            self.plateau.step(score)
        record |= {"best": self.best, "gb": peak_memory_gb(self.device)}
        self.history.append({key: rounded(v) if isinstance(v, float) else v for key, v in record.items()})
        if self.machine.main:
            due = self.next_epoch % self.save_every == 0 or self.next_epoch == self.epochs or self.stopped_early()
            # a clock may give the next epoch up: then this one is the last; a rewind goes back an epoch at most
            due = due or bool(self.clock.seconds) or self.guard.mode == "rewind"
            if improved:
                self.kept_best = epoch_content(self, self.evaluated, copied=not due)
            if due:
                self.save()
            self.write_log()
        if self.on_epoch:
            self.on_epoch(self, self.history[-1], improved)
        self.start = None
        device_module.barrier()

    def write_log(self) -> None:
        atomic_write(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))

    def save(self) -> None:
        """best.pt, where it is another one now, and last.pt: together, as epochs that last.pt does not know are trained
        again, maybe otherwise (with smaller batches, say)."""
        if self.kept_best:
            save_checkpoint(self.folder / "best.pt", self.kept_best)
            self.kept_best = None
        save_checkpoint(self.folder / "last.pt", epoch_content(self, self.model) | resume_state(self))

    def last_content(self) -> dict | None:
        """What last.pt holds; None where there is none yet."""
        path = self.folder / "last.pt"
        return load_training(path) if path.exists() else None

    def resume(self) -> None:
        """Go on from last.pt; where there is none yet, from the start."""
        content = self.last_content()
        if content is None:
            return
        restore(self, content)
        if self.machine.main:
            self.write_log()  # a kill between last.pt and the log would leave the log a line short for good


def rounded(value: float) -> float:
    """To six decimals, small ones to four digits: a share of a few pixels is not nothing, and a rate not 0."""
    return round(value, 6) if not abs(value) < 1e-3 else float(f"{value:.4g}")
