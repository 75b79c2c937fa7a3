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
        mark=shuffle,  # a tile whose truth was taken away would be counted, and kept, as one without data
    )
    workers = settings["workers"] if workers is None else workers
    pin = machine.device.type == "cuda"
    return sampling.make_loader(dataset, batches, workers=workers, collate=collate, init_worker=init_worker, pin=pin)


def predict_rows(
    task, models, rows, spec, settings, machine, *, views, on_bad="error", progress="", folder=None
) -> dict:
    """engine.predict over the rows as inference sees them, shared by all processes and gathered.

    folder: where a task whose predictions are maps keeps them, a file per row; None keeps what is counted only.
    """
    dataset = task.open_rows(rows, spec, settings, on_bad=on_bad)
    loader = make_loader(dataset, settings, machine, shuffle=False, collate=task.collate, init_worker=task.init_worker)
    device, amp, keep = machine.device, machine.amp, task.keep(spec, settings, folder)
    part = predict(
        models, loader, views=views, device=device, to_pred=task.to_pred, amp=amp, progress=progress, keep=keep
    )
    return gather_predictions(part, list(rows["id"])) | {"folder": folder, "keep": keep}
