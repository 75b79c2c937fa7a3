"""Datasets of one fold of the stereo family: photos, augmented and mixed, or features stored once."""

from pathlib import Path

import pandas as pd
from torch import nn

from common.datasets.mixing import Mix
from common.datasets.stereo import STORE_VERSION, StereoDataset, collate, init_worker, photo_key
from common.datasets.transforms import DEFAULT_PROBABILITIES, StereoAugment
from common.engine.checkpoint import save_external
from common.errors import InputError
from common.models.features import FeatureDataset, FeatureStore, embed_rows
from common.tasks.augmentation import parse_augment
from common.tasks.base import Prepared


def pair(values) -> tuple | None:
    """(H, W) of a size option; 0 0 stands for any."""
    return tuple(values) if any(values) else None


def photo_options(spec: dict, settings: dict) -> dict:
    """How photos become halves: the same in training and in inference."""
    names = ("outputs", "mean", "std", "mask_stamp")
    options = {name: spec[name] for name in names} | {"size": tuple(spec["size"])}
    cache = settings["cache"] if settings["cache_images"] else None
    return options | {"photo_size": pair(spec["photo_size"]), "cache": cache}


def open_rows(rows: pd.DataFrame, spec: dict, settings: dict, *, on_bad: str = "error") -> StereoDataset:
    """The photos of the rows as inference sees them: nothing random, decoded once where there is a cache."""
    return StereoDataset(
        rows,
        on_bad=on_bad,
        **photo_options(spec, settings),
    )


def aux_labels(rows: pd.DataFrame, spec: dict, aux_targets) -> dict:
    """{name: (n, K)} for a model with auxiliary heads, else nothing."""
    return aux_targets(rows) if aux_targets and spec["model"].get("aux") else {}


def mixing(rows: pd.DataFrame, settings: dict) -> Mix | None:
    """MixUp and CutMix as the options ask; None where neither is on."""
    if not settings["mixup_prob"] and not settings["cutmix_prob"]:
        return None
    names = ("mixup_prob", "mixup_alpha", "cutmix_prob", "cutmix_alpha")
    return Mix(rows, seed=settings["seed"], within=settings["mix_within"], **{name: settings[name] for name in names})


def open_training(rows: pd.DataFrame, spec: dict, settings: dict, *, aux_targets=None, plain=False) -> StereoDataset:
    """The training rows, augmented, swapped and mixed; plain=True augments alone (for stored features)."""
    aux = aux_labels(rows, spec, aux_targets)
    probabilities, strengths = parse_augment(settings["augment"], DEFAULT_PROBABILITIES)
    augment = StereoAugment(
        probabilities,
        strengths=strengths,
        seed=settings["seed"],
        photometric_independent=settings["photometric_independent"],
    )
    return StereoDataset(
        rows,
        seed=settings["seed"],
        augment=augment if probabilities else None,
        swap_prob=0.0 if plain else settings["swap_prob"],
        mix=None if plain else mixing(rows, settings),
        aux=aux,
        **photo_options(spec, settings),
    )


def prepare(model, train_rows, valid_rows, spec, settings, run: Path, device, *, aux_targets) -> Prepared:
    """Datasets of one fold. A backbone that stays frozen is run once per stored view and leaves the loop."""
    if spec["head"] != "mlp":
        return prepare_closed_form(model, train_rows, valid_rows, spec, settings, device)
    if settings["freeze_backbone"]:
        model.freeze_backbone(True)
    if settings["freeze_backbone"] and settings["store_views"]:
        return prepare_stored(model, train_rows, valid_rows, spec, settings, run, device, aux_targets)
    valid = None if valid_rows is None else open_rows(valid_rows, spec, settings)
    return Prepared(open_training(train_rows, spec, settings, aux_targets=aux_targets), valid, collate, init_worker)


def prepare_stored(model, train_rows, valid_rows, spec, settings, run: Path, device, aux_targets) -> Prepared:
    """Features of all rows from the store; the backbone is taken out of the model until restore()."""
    if settings["cutmix_prob"]:
        raise InputError("--cutmix-prob: a box has no meaning on stored features; use --store-views 0 or MixUp")
    if settings["unfreeze_blocks"] or settings["two_stage"]:
        raise InputError("--freeze-backbone excludes --two-stage and --unfreeze-blocks; leave one out")
    digest = model.backbone_hash()
    store = store_features(model, train_rows, valid_rows, spec, settings, device, digest, settings["store_views"])
    external = {
        "prefix": "backbone.",
        "file": save_external(run, model.backbone.state_dict(), digest),
        "sha256": digest,
    }
    backbone, model.backbone = model.backbone, BackboneElsewhere()

    def restore():
        model.backbone = backbone
        model.backbone_key = digest

    valid = None if valid_rows is None else stored_rows(store, valid_rows, spec, settings, aux={}, train=False)
    aux = aux_labels(train_rows, spec, aux_targets)
    train = stored_rows(store, train_rows, spec, settings, aux=aux, train=True)
    return Prepared(train, valid, collate, init_worker, external, restore)


def store_features(model, train_rows, valid_rows, spec, settings, device, digest: str, views: int) -> FeatureStore:
    """Features of all rows of the fold: view 0 plain, then `views` augmented ones; the same store for every fold."""
    rows = train_rows if valid_rows is None else pd.concat([train_rows, valid_rows], ignore_index=True)
    rows = rows.sort_values("id", ignore_index=True)
    inputs = {"features": digest, "spec": {key: spec[key] for key in ("size", "grid", "mean", "std", "mask_stamp")}}
    inputs |= {"decoding": STORE_VERSION, "photos": [photo_key(path, "error") for path in rows["path"]]}
    if views:
        inputs |= {name: settings[name] for name in ("augment", "photometric_independent", "seed")}
    return embed_rows(
        model,
        open_rows(rows, spec, settings),
        augmented=open_training(rows, spec, settings, plain=True) if views else None,
        ids=list(rows["id"]),
        views=1 + views,
        root=settings["cache"],
        inputs=inputs,
        device=device,
        workers=settings["workers"],
    )


def prepare_closed_form(model, train_rows, valid_rows, spec, settings, device) -> Prepared:
    """A head that is fitted sees every photo once, as inference does; its features are stored for all folds."""
    store = store_features(model, train_rows, valid_rows, spec, settings, device, model.features_hash(), 0)

    parts = [rows if rows is None else FeatureDataset(store, rows, outputs=spec["outputs"])
             for rows in (train_rows, valid_rows)]  # fmt: skip
    return Prepared(*parts, collate, init_worker)


def stored_rows(store, rows: pd.DataFrame, spec: dict, settings: dict, *, aux: dict, train: bool) -> FeatureDataset:
    return FeatureDataset(
        store,
        rows,
        outputs=spec["outputs"],
        train=train,
        seed=settings["seed"],
        swap_prob=settings["swap_prob"],
        mix=mixing(rows, settings) if train else None,
        aux=aux,
    )


class BackboneElsewhere(nn.Module):
    """Stands in the model for a frozen backbone whose features come from the store: it has nothing to train."""

    frozen = True

    def freeze(self, frozen: bool = True) -> None:
        if not frozen:
            raise InputError("--freeze-backbone: stored features cannot train a backbone; use --store-views 0")
