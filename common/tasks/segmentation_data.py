"""Rows of the segmentation family as datasets: whole tiles for inference, planned crops for training; their study."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.adversarial import adversarial_auc, adversarial_lines, fold_adversarial
from common.datasets.crops import IGNORED, CropPlan, plan_crops
from common.datasets.duplicates import duplicate_lines, hash_photos, near_duplicates
from common.datasets.folds import TEST, UNUSED
from common.datasets.oversampling import oversample
from common.datasets.ratio_plan import RatioPlan, plan_ratio
from common.datasets.soft_targets import edge_confidence, ignore_rim
from common.datasets.tile_statistics import block_statistics
from common.datasets.tile_transforms import DEFAULT_TILE_PROBABILITIES, TileAugment
from common.datasets.tiles import Source, TileDataset, TileStore, collate, init_worker
from common.errors import InputError
from common.outputs.tile_pictures import false_colour
from common.tasks.augmentation import parse_augment
from common.tasks.base import Prepared
from common.tasks.segmentation_options import RATIO, parse_factors, parse_pair


def open_rows(rows: pd.DataFrame, spec: dict, settings: dict, *, source: Source, on_bad: str = "error") -> TileDataset:
    """The tiles of the rows as inference sees them: whole, nothing random."""
    cache = settings["cache"] if settings["cache_images"] else None
    return TileDataset(rows, spec, source, cache=cache, on_bad=on_bad)


def target_shares(outputs: list[str], settings: dict) -> dict[str, float] | None:
    """{class: share} that the crops should show; None for uniform crops. InputError for a wrong number of shares."""
    if settings["sampler"] == "uniform":
        return None
    shares = settings["target_shares"] or [1 / len(outputs)] * len(outputs)
    if len(shares) != len(outputs):
        raise InputError(f"--target-shares: {len(shares)} shares for {len(outputs)} classes ({', '.join(outputs)})")
    return dict(zip(outputs, shares, strict=True))


def make_plan(store: TileStore, rows: pd.DataFrame, spec: dict, settings: dict) -> CropPlan | RatioPlan:
    labels = (np.asarray(store.label(index)) for index in range(len(rows)))
    crop, classes = settings["crop"], tuple(spec["outputs"])
    if settings["sampler"] == RATIO:
        if len(settings["ratio"]) > 2:
            raise InputError(f"--ratio {' '.join(map(str, settings['ratio']))}: give one number, or a first and a last")
        ratio, epochs = (settings["ratio"][0], settings["ratio"][-1]), settings["ratio_epochs"]
        scales, seed = settings["scales_train"], settings["seed"]
        return plan_ratio(labels, crop=crop, ratio=ratio, ratio_epochs=epochs, scales=scales, seed=seed,
                          classes=classes, names=list(rows["path"]))  # fmt: skip
    boosts = parse_factors(settings["boost"], "--boost")
    return plan_crops(
        labels,
        classes=classes,
        crop=crop,
        target=target_shares(spec["outputs"], settings),
        boost_classes={name: factor for name, factor in boosts.items() if "-" not in name},
        boost_borders={parse_pair(name, "--boost"): factor for name, factor in boosts.items() if "-" in name},
    )


def crops_of(rows: pd.DataFrame, store: TileStore, plan, settings: dict) -> int:
    """Crops an epoch: as asked, as many as cover the tiles once, or as show each positive tile once at the ratio."""
    if settings["crops_per_epoch"] < 0:
        raise InputError(f"--crops-per-epoch {settings['crops_per_epoch']}: give a number of crops, or 0 for all tiles")
    asked = settings["crops_per_epoch"]
    if settings["sampler"] == RATIO:
        ends = {plan.ratio_of(epoch): epoch for epoch in (0, plan.ratio_epochs)}
        count = asked or round(len(plan.positives) * (1 + max(ends)))
        if lacking := [ratio for ratio, epoch in ends.items() if not plan.positives_of(epoch, count)]:
            raise InputError(f"--crops-per-epoch {count}: at --ratio {max(lacking):g} none of them would be positive; "
                             "give more, or a smaller ratio")  # fmt: skip
        return count
    if asked:
        return asked
    sides = (store.tile(index).shape[1:] for index in range(len(rows)))
    return sum(-(-height // settings["crop"]) * -(-width // settings["crop"]) for height, width in sides)


def oversampled(rows: pd.DataFrame, spec: dict, settings: dict, source: Source) -> tuple[pd.DataFrame, list[str], dict]:
    """(the training rows with more of a rare class, lines for the log, facts), as --oversample-target asks."""
    if not settings.get("oversample_target"):
        if settings.get("smote") or settings.get("oversample_class"):
            raise InputError("--smote, --oversample-class: say how --oversample-target is reached; give it too")
        return rows, [], {}
    store = TileStore(rows, spec, source, cache=settings["cache"] if settings["cache_images"] else None, keep=False)
    read = lambda index: (np.asarray(store.tile(index), np.float32), np.asarray(store.label(index)))  # noqa: E731
    raw_values = {index: int(raw) for raw, index in reversed(spec["label_map"].items()) if index != IGNORED}
    names = {"rare": "oversample_class", "target": "oversample_target", "smote": "smote", "k": "smote_k",
             "mode": "smote_mode", "seed": "seed", "side": "crop", "folder": "cache"}  # fmt: skip
    return oversample(rows, read, outputs=spec["outputs"], bands=spec["bands"], raw_values=raw_values,
                      **{name: settings[option] for name, option in names.items()})  # fmt: skip


def open_training(rows: pd.DataFrame, spec: dict, settings: dict, *, source: Source):
    """(crops of the training rows, augmented; the plan they are drawn by; lines and facts of oversampling)."""
    rows, said, facts = oversampled(rows, spec, settings, source)
    cache = settings["cache"] if settings["cache_images"] else None
    store = TileStore(rows, spec, source, cache=cache)
    plan = make_plan(store, rows, spec, settings)
    probabilities, strengths = parse_augment(settings["augment"], DEFAULT_TILE_PROBABILITIES)
    colour = {}
    if spec.get("colour"):  # the other bands are measurements: nothing photometric touches them
        colour = {"rgb": spec["colour"], "photometric": spec["colour"], "mean": spec["mean"], "std": spec["std"]}
    seed, count = settings["seed"], crops_of(rows, store, plan, settings)
    augment = TileAugment(probabilities, strengths=strengths, seed=seed, **colour) if probabilities else None
    softening = {"rim": settings["ignore_rim"], "kind": settings.get("soft_labels", "none"),
                 "width": settings.get("soft_width", 0.0)}  # fmt: skip
    soften = partial(soften_labels, **softening) if softening["rim"] or softening["kind"] != "none" else None
    dataset = TileDataset(rows, spec, source, cache=cache, plan=plan, count=count, augment=augment, seed=seed,
                          soften=soften)  # fmt: skip
    dataset.store = store
    return dataset, plan, said, facts


def soften_labels(target: np.ndarray, valid: np.ndarray, *, rim: int, kind: str, width: float) -> tuple:
    """(valid, confidence of class 1 or None) of a crop: without the rim of its edges, softly where asked."""
    soft = None if kind == "none" else edge_confidence(target, valid, kind=kind, width=width)
    return (ignore_rim(target, valid, rim) if rim else valid), soft


def say_plan(plan, settings: dict, count: int) -> list[str]:
    """The shares of every class that the crops should show, could show and will show on average."""
    if settings["sampler"] == RATIO:
        return plan.report(count, settings["epochs"])
    balanced = settings["sampler"] == "balanced"
    rows = {"target": plan.target if balanced else None, "attainable": plan.attainable, "expected": plan.expected}
    lines = [f"crops of {plan.crop} px from {len(plan.crops)} places (as varied as {plan.effective:.0f}), "
             f"{settings['sampler']} sampler"]  # fmt: skip
    for name, shares in rows.items():
        if shares is not None and (balanced or name == "expected"):
            lines.append(
                f"  {name:10s} " + ", ".join(f"{c} {s:.2%}" for c, s in zip(plan.classes, shares, strict=True))
            )
    for name, boost in plan.boosts.items():
        lines.append(
            f"  boost {name}: {boost['asked']:g} times asked, {boost['before']:.2%} -> {boost['reached']:.2%} of crops"
        )
    return lines


def prepare(model, train_rows, valid_rows, spec, settings, run: Path, device, *, source: Source) -> Prepared:
    dataset, plan, said, oversampling = open_training(train_rows, spec, settings, source=source)
    valid = None if valid_rows is None else open_rows(valid_rows, spec, settings, source=source)
    names = [name for name in ("target", "attainable", "expected") if hasattr(plan, name)]
    shares = {name: [float(v) for v in getattr(plan, name)] for name in names}
    facts = {"sampler": settings["sampler"], "classes": list(plan.classes), **shares}
    facts |= {"oversampling": oversampling} if oversampling else {}
    return Prepared(dataset, valid, collate, init_worker, said=[*said, *say_plan(plan, settings, dataset.count)],
                    facts=facts)  # fmt: skip


def study_tiles(
    tiles: pd.DataFrame,
    side: Sequence[int],
    group: Sequence,
    read_tile: Callable,
    bands: Sequence[str],
    *,
    adversarial: bool,
    duplicates: bool,
) -> list[str]:
    """Findings that need the pixels: test against the rest, fold against fold, near-duplicates between any two sides.

    Tiles that are neither trained on nor judged by (UNUSED) take no part.

    tiles: id and path of n tiles; side: (n,) the fold of each, TEST for those of the test set; group: (n,) what is held
    out as a whole, so that recognising a place does not count; read_tile(path) -> float32 (C,H,W) of the C `bands`, 0
    in all where there is no data. Its InputErrors are passed on.
    """
    used, lines = np.asarray(side) != UNUSED, []
    tiles, side, group = tiles[used], np.asarray(side, int)[used], np.asarray(group, str)[used]
    if adversarial:
        values, names, tile = block_statistics(tiles["path"], read_tile, bands)
        at, groups = side[tile], group[tile]
        lines += adversarial_lines("train against test", adversarial_auc(values, at == TEST, names, groups=groups))
        for answer in fold_adversarial(values, at, names, groups=groups):
            lines += adversarial_lines(f"fold {answer['fold']} against the others", answer)
    if duplicates:
        hashes = hash_photos(list(tiles["path"]), lambda path: false_colour(read_tile(path), bands))
        lines += duplicate_lines(near_duplicates(hashes, tiles["id"], side), "tiles")
    return lines
