"""The fit of one fold: by the training loop, or in one pass over its rows."""

import json
import time
from pathlib import Path

from common.engine.checkpoint import save_checkpoint
from common.engine.device import peak_memory_gb
from common.engine.loop import Trainer
from common.engine.schedule import Plateau
from common.errors import InputError
from common.files import atomic_write

# settings that the training loop takes as they are
OF_THE_LOOP = ("ema_decay", "grad_clip", "accumulate", "patience", "collapse_epochs", "save_every", "seed", "on_nan",
               "spike_factor")  # fmt: skip


def fit(session, model, loaders, tracker, folder, header, train_rows, machine, clock):
    """The history of epochs: the loop for what is trained by gradient, one pass for what is fitted in closed form."""
    task, settings = session.task, session.settings
    if getattr(model, "closed_form", False):
        if machine.world > 1:
            raise InputError(f"--head {settings['head']}: is fitted by one process; start train.py without torchrun")
        groups = dict(zip(train_rows["id"], train_rows["group"], strict=True))
        return fit_closed_form(model, loaders["train"], groups, tracker.validate, folder, header, machine.device)
    parameters, stages = task.plan(model, settings)
    falls = settings["schedule"] == "plateau"
    trainer = Trainer(
        model,
        loaders["train"],
        loss_fn=task.build_loss(header["spec"], settings),
        groups=parameters,
        stages=stages,
        validate=tracker.validate,
        on_epoch=tracker.epoch,
        folder=folder,
        header=header,
        machine=machine,
        clock=clock,
        plateau=Plateau(settings["plateau_factor"], settings["plateau_patience"]) if falls else None,
        **{name: settings[name] for name in OF_THE_LOOP},
    )
    if settings["resume"]:
        trainer.resume()
    return trainer.run()


def fit_closed_form(model, loader, groups: dict, validate, folder: Path, header: dict, device) -> list[dict]:
    """Fit a model that needs one pass over the rows (`fit_rows`), and write what a trained fold would have."""
    started = time.perf_counter()
    model.to(device).eval()
    model.fit_rows(loader, groups, device)
    seconds = time.perf_counter() - started
    record = {"epoch": 1, "step": 0, "sec": round(seconds, 3), **validate(model, 0), "gb": peak_memory_gb(device)}
    record["best"] = record["score"]
    content = {**header, "epoch": 0, "score": record["score"], "state_dict": model.state_dict(), "ema": None}
    for name in ("best.pt", "last.pt"):
        save_checkpoint(folder / name, {**content, "history": [record], "next_epoch": 1})
    atomic_write(folder / "log.jsonl", json.dumps(record) + "\n")
    return [record]
