"""Rows of a task through a model: the loader and the one way to predict them."""

from common.datasets import sampling
from common.engine.device import Machine, gather_predictions
from common.engine.predict import predict


def make_loader(dataset, settings: dict, machine: Machine, *, shuffle: bool, collate, init_worker=None, workers=None):
    """Batches of this process's share of the rows, in an order that depends on seed and epoch alone."""
    batches = sampling.EpochBatches(
        len(dataset),
        settings["batch_size"],
        seed=settings["seed"],
        shuffle=shuffle,
        rank=machine.rank,
        world=machine.world,
    )
    workers = settings["workers"] if workers is None else workers
    pin = machine.device.type == "cuda"
    return sampling.make_loader(dataset, batches, workers=workers, collate=collate, init_worker=init_worker, pin=pin)


def predict_rows(task, models, rows, spec, settings, machine, *, views, on_bad="error", progress="") -> dict:
    """engine.predict over the rows as inference sees them, shared by all processes and gathered."""
    dataset = task.open_rows(rows, spec, settings, on_bad=on_bad)
    loader = make_loader(dataset, settings, machine, shuffle=False, collate=task.collate, init_worker=task.init_worker)
    device, amp = machine.device, machine.amp
    part = predict(models, loader, views=views, device=device, to_pred=task.to_pred, amp=amp, progress=progress)
    return gather_predictions(part, list(rows["id"]))
