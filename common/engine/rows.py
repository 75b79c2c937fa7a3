"""Rows of a task through a model: the loader and the one way to predict them, by one fold or by the mean of several."""

import shutil
from dataclasses import replace
from pathlib import Path

from common.datasets import sampling
from common.datasets.folds import ALWAYS
from common.engine.device import Machine, barrier, gather_predictions
from common.engine.predict import predict


def make_loader(
    dataset, settings: dict, machine: Machine, *, shuffle: bool, collate, init_worker=None, workers=None, whole=False
):
    """Batches of this process's share of the rows, in an order that depends on seed and epoch alone.

    The processes share every batch; whole: each takes whole ones, for rows in their own order.
    """
    share = {"rank": machine.rank, "world": machine.world}
    if whole:
        batches = sampling.WholeShares(len(dataset), settings["batch_size"], **share)
    else:
        # a tile whose truth was taken away would be counted, and kept, as one without data: not marked where predicted
        own = {"seed": settings["seed"], "shuffle": shuffle, "mark": shuffle}
        batches = sampling.EpochBatches(len(dataset), settings["batch_size"], **own, **share)
    workers = settings["workers"] if workers is None else workers
    pin = machine.device.type == "cuda"
    return sampling.make_loader(dataset, batches, workers=workers, collate=collate, init_worker=init_worker, pin=pin)


def predict_rows(
    task,
    models,
    rows,
    spec,
    settings,
    machine,
    *,
    views,
    on_bad="error",
    progress="",
    folder=None,
    plan=None,
    whole=False,
) -> dict:
    """engine.predict over the rows as inference sees them, shared by all processes and gathered.

    folder: where a task whose predictions are maps keeps them, a file per row; None keeps what is counted only.
    plan: engine.budget's, that says what each batch gets. whole: each process predicts whole batches, so that any
    number of them gives the same bytes; in training, where memory is measured for a part of one, they share each.
    """
    dataset = task.open_rows(rows, spec, settings, on_bad=on_bad)
    how = {"collate": task.collate, "init_worker": task.init_worker, "whole": whole}
    loader = make_loader(dataset, settings, machine, shuffle=False, **how)
    device, amp, keep = machine.device, machine.amp, task.keep(spec, settings, folder)
    steps = None

    def unread(indices: list[int]):
        dataset = task.open_rows(rows.iloc[indices].reset_index(drop=True), spec, settings, on_bad="skip")
        alone = replace(machine, rank=0, world=1)  # these rows are this process's own
        return make_loader(dataset, settings, alone, shuffle=False, collate=task.collate, workers=0)

    if plan:
        steps, kept = plan.follow(loader, unread), plan.timed(keep)
    part = predict(
        models, loader, views=views, device=device, to_pred=task.to_pred, amp=amp, progress=progress,
        keep=kept if plan else keep, steps=steps,
    )  # fmt: skip
    return gather_predictions(part, list(rows["id"])) | {"folder": folder, "keep": keep}


def marked(predicted: dict, mark: str = "bad") -> list[str]:
    """ids of the rows with a mark: bad (not read, or not predicted), or left (no time was left to predict them)."""
    ids = predicted["id"]
    return [name for name, flag in zip(ids, predicted.get(mark, [False] * len(ids)), strict=True) if flag]


def rows_of_fold(rows, fold: str, which: str):
    """The rows that a fold's model predicts. oof: those it is validated on; train: those of the fold before, which it
    was trained on, the first also those trained on always; a full fit all. Together these are each row once."""
    if fold == "all":
        held = (rows["fold"] >= 0) | (rows["fold"] == ALWAYS)
    elif which == "oof":
        held = rows["fold"] == int(fold)
    else:
        before = (int(fold) - 1) % (rows["fold"].max() + 1)
        held = rows["fold"].isin(({before} - {int(fold)}) | ({ALWAYS} if fold == "0" else set()))
    return rows[held].reset_index(drop=True)


def with_fold(frame, rows):
    """A set with the fold that its rows are validated in."""
    return frame.assign(fold=frame["id"].map(rows.set_index("id")["fold"]).to_numpy(int))


def read_alike(task, specs: list[dict]) -> bool:
    """Whether the models of these specs take the same input for a row, so that one pass over the rows does for all."""
    return all(task.reads(spec) == task.reads(specs[0]) for spec in specs)


def predict_folds(task, loaded, rows, settings, machine, *, folder: Path, plan=None, **options):
    """(frame, ids that could not be read, ids that no time was left for): the mean of all folds, in one pass where they
    read the rows alike, else fold by fold. loaded: [(name of the fold, model, spec)]."""
    specs = [spec for _, _, spec in loaded]
    if read_alike(task, specs):
        models = [model for _, model, _ in loaded]
        predicted = predict_rows(task, models, rows, specs[0], settings, machine, folder=folder, plan=plan, **options)
        left = marked(predicted, "left")
        return task.make_frame(predicted, specs[0]), sorted(set(marked(predicted)) - set(left)), left
    frames, left, bad, apart = {}, {}, set(), folder.with_name(f"{folder.name}-folds")
    for fold, model, spec in loaded:
        if frames and plan and not plan.next_turn():
            break
        predicted = predict_rows(
            task, [model], rows, spec, settings, machine, folder=apart / fold, plan=plan, **options
        )
        frames[fold], left[fold] = task.make_frame(predicted, spec), set(marked(predicted, "left"))
        bad |= set(marked(predicted)) - left[fold]
    unseen = sorted(set.intersection(*left.values()))
    barrier()  # every process has written its maps
    if not machine.main:
        return next(iter(frames.values())), sorted(bad), unseen
    mean = mean_of_predicted(task, frames, left, folder)
    shutil.rmtree(apart, ignore_errors=True)
    return mean, sorted(bad), unseen


def mean_of_predicted(task, sets: dict, left: dict, folder: Path):
    """task.mean_sets, each row by those of the sets that predicted it, its maps in `folder`.

    left: {set: ids that it has no prediction for}; a row that none has predicted is that of the first set.
    """
    ids, first = list(next(iter(sets.values()))["id"]), next(iter(sets))
    by: dict[tuple, list] = {}
    for name in ids:
        by.setdefault(tuple(one for one in sets if name not in left[one]) or (first,), []).append(name)
    if len(by) == 1 and len(sets) > 1 and not any(left.values()):
        return task.mean_sets(sets, folder)
    means = []
    for names, some in by.items():
        parts = {name: sets[name][sets[name]["id"].isin(some)].reset_index(drop=True) for name in names}
        if len(parts) == 1:  # a set alone would be given back with its maps where they lie
            parts["itself"] = parts[names[0]]
        means.append(task.mean_sets(parts, folder))
    mean = task.concat(means)
    return mean.set_index("id").loc[ids].reset_index()[list(mean)]
