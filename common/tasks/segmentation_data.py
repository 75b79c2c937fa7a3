"""Rows of the segmentation family as datasets: whole tiles for inference, planned crops for training."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.crops import CropPlan, plan_crops
from common.datasets.tile_transforms import DEFAULT_TILE_PROBABILITIES, TileAugment
from common.datasets.tiles import Source, TileDataset, TileStore, collate, init_worker
from common.errors import InputError
from common.tasks.augmentation import parse_augment
from common.tasks.base import Prepared
from common.tasks.segmentation_options import parse_factors, parse_pair


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


def make_plan(store: TileStore, rows: pd.DataFrame, spec: dict, settings: dict) -> CropPlan:
    boosts = parse_factors(settings["boost"], "--boost")
    return plan_crops(
        (np.asarray(store.label(index)) for index in range(len(rows))),
        classes=tuple(spec["outputs"]),
        crop=settings["crop"],
        target=target_shares(spec["outputs"], settings),
        boost_classes={name: factor for name, factor in boosts.items() if "-" not in name},
        boost_borders={parse_pair(name, "--boost"): factor for name, factor in boosts.items() if "-" in name},
    )


def crops_of(rows: pd.DataFrame, store: TileStore, settings: dict) -> int:
    """Crops an epoch: as asked, or as many as cover the tiles once."""
    if settings["crops_per_epoch"] < 0:
        raise InputError(f"--crops-per-epoch {settings['crops_per_epoch']}: give a number of crops, or 0 for all tiles")
    if settings["crops_per_epoch"]:
        return settings["crops_per_epoch"]
    sides = (store.tile(index).shape[1:] for index in range(len(rows)))
    return sum(-(-height // settings["crop"]) * -(-width // settings["crop"]) for height, width in sides)


def open_training(rows: pd.DataFrame, spec: dict, settings: dict, *, source: Source) -> tuple[TileDataset, CropPlan]:
    """Crops of the training rows, augmented, and the plan they are drawn by."""
    cache = settings["cache"] if settings["cache_images"] else None
    store = TileStore(rows, spec, source, cache=cache)
    plan = make_plan(store, rows, spec, settings)
    probabilities, strengths = parse_augment(settings["augment"], DEFAULT_TILE_PROBABILITIES)
    augment = TileAugment(probabilities, strengths=strengths, seed=settings["seed"]) if probabilities else None
    count, seed = crops_of(rows, store, settings), settings["seed"]
    dataset = TileDataset(rows, spec, source, cache=cache, plan=plan, count=count, augment=augment, seed=seed)
    dataset.store = store
    return dataset, plan


def say_plan(plan: CropPlan, settings: dict) -> list[str]:
    """The shares of every class that the crops should show, could show and will show on average."""
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
    dataset, plan = open_training(train_rows, spec, settings, source=source)
    valid = None if valid_rows is None else open_rows(valid_rows, spec, settings, source=source)
    shares = {name: [float(v) for v in getattr(plan, name)] for name in ("target", "attainable", "expected")}
    facts = {"sampler": settings["sampler"], "classes": list(plan.classes), **shares}
    return Prepared(dataset, valid, collate, init_worker, said=say_plan(plan, settings), facts=facts)
