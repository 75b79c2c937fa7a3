"""Frozen features: a backbone that is not trained is run once per stored view, then heads train on what it gave.

Several augmented views of every photo are embedded once and kept in the cache; a dataset of features then stands in
for the dataset of photos, in the same form, so that the ordinary loop and the same model train the heads.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from common.datasets.cache import cached_folder
from common.datasets.draws import SWAP, generator
from common.datasets.mixing import Mix, mix_labels, mix_targets
from common.datasets.stereo import target_arrays
from common.datasets.workers import Loader
from common.errors import InputError

FEATURES_VERSION = 1
DTYPES = {"float32": np.float32, "float16": np.float16}
VIEW = 1_002  # position of the draw of a stored view, beside draws.SWAP and draws.MIX


@dataclass(frozen=True)
class FeatureStore:
    """features: (n, V, 2, N, D) of n photos, V stored views, 2 halves, N cells; view 0 is the plain photo."""

    features: np.ndarray
    ids: tuple[str, ...]
    folder: Path

    def positions(self, ids) -> np.ndarray:
        """Rows of the store that hold these ids. InputError for an id that is not stored."""
        place = {name: k for k, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in place]
        if missing:
            raise InputError(f"{self.folder}: no features of {missing[0]} ({len(missing)} ids missing); use --force")
        return np.array([place[name] for name in ids], np.int64)


class StoredViews(Dataset):
    """(view, index) -> (view, index, image): view 0 from the plain dataset, view v > 0 from the augmented one."""

    def __init__(self, plain, augmented):
        self.plain, self.augmented = plain, augmented

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, key: tuple[int, int]):
        view, index = key
        dataset = self.plain if view == 0 else self.augmented
        return view, index, dataset[(view, index)]["image"]


def embed_rows(
    model,
    plain,
    *,
    ids,
    root: str | Path,
    inputs: dict,
    augmented=None,
    views: int = 1,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    amp: torch.dtype | None = None,
    dtype: str = "float32",
    workers: int = 0,
    force: bool = False,
) -> FeatureStore:
    """Features of all rows under `views` stored views, from the cache where they are there.

    model.embed(image (B,2,3,H,W)) -> (B,2,N,D). plain and augmented: datasets over the same n rows whose
    [(epoch, index)]["image"] is (2,3,H,W); view 0 is plain[(0, i)], view v > 0 is augmented[(v, i)], which must
    augment each photo by itself (no stereo swap, no mixing: FeatureDataset does these on features).
    inputs: JSON-able, everything the features depend on (model.backbone_hash(), hashes of the photos, sizes,
    augmentation and its seed). dtype float16 halves the file and rounds to 1e-3 relative: check it against float32.
    InputError: unknown dtype, views > 1 without an augmented dataset, a feature that is not finite, full disk.
    """
    if dtype not in DTYPES:
        raise InputError(f"features cannot be stored as {dtype}; choose one of {', '.join(DTYPES)}")
    if views < 1 or (views > 1 and augmented is None):
        raise InputError(f"{views} stored views: needs 1, or more with an augmentation to make them")
    precision = None if amp is None else str(amp).removeprefix("torch.")
    key = {"inputs": inputs, "ids": list(ids), "views": views, "dtype": dtype, "amp": precision}
    key["version"] = FEATURES_VERSION

    def build(folder: Path) -> None:
        loader = Loader(
            StoredViews(plain, augmented),
            sampler=[(view, index) for view in range(views) for index in range(len(plain))],
            batch_size=batch_size,
            num_workers=workers,
        )
        _embed_into(folder / "features.npy", model, loader, (len(plain), views), DTYPES[dtype], device, amp, list(ids))
        (folder / "ids.json").write_text(json.dumps(list(ids)))

    return open_store(cached_folder(root, "features", key, build, force))


@torch.inference_mode()
def _embed_into(path: Path, model, loader, size: tuple[int, int], dtype, device, amp, ids: list[str]) -> None:
    """Run the backbone over the loader into a (n, V, 2, N, D) file; the mode of the model is given back."""
    device = torch.device(device)
    was_training, store = model.training, None
    model.eval().to(device)
    for view, index, image in tqdm(loader, desc="frozen features", leave=False):
        with torch.autocast(device.type, dtype=amp) if amp is not None else contextlib.nullcontext():
            features = model.embed(image.to(device, non_blocking=True))
        features = features.float().cpu().numpy()
        if store is None:
            store = np.lib.format.open_memmap(path, "w+", dtype, (*size, *features.shape[1:]))
        with np.errstate(over="ignore"):
            store[index.numpy(), view.numpy()] = features
        finite = np.isfinite(store[index.numpy(), view.numpy()]).reshape(len(index), -1).all(1)
        if not finite.all():
            row = ids[int(index[int(np.argmin(finite))])]
            raise InputError(f"features of {row} are not finite in {np.dtype(dtype)}; store float32, or look at it")
    model.train(was_training)
    store.flush()


def open_store(folder: Path) -> FeatureStore:
    """A store that was written by embed_rows, mapped into memory, not read."""
    features = np.load(folder / "features.npy", mmap_mode="r")
    return FeatureStore(features, tuple(json.loads((folder / "ids.json").read_text())), folder)


class FeatureDataset(Dataset):
    """Rows of a store in the form of the photo dataset: ds[(epoch, i)], or whole batches by get_batch.

    Training (train=True) draws a stored view, a stereo swap and a MixUp partner (with its own view and swap; the same
    lambda for both halves, targets and soft auxiliary labels) as pure functions of (seed, epoch, i). Swap and MixUp
    are the draws that the photo dataset makes with the same seed. Otherwise view 0, neither swapped nor mixed.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: pd.DataFrame,
        *,
        outputs: Sequence[str],
        train: bool = False,
        seed: int = 0,
        swap_prob: float = 0.5,
        mix: Mix | None = None,
        aux: Mapping[str, np.ndarray] | None = None,
    ):
        """rows: `id` and the columns `outputs` in grams (absent in test rows; NaN is not valid); mix: over the same
        rows; aux: name -> (n, C) label distributions. InputError: a row without features, CutMix (a box of pixels)."""
        if mix is not None and mix.cutmix_prob > 0:
            raise InputError(f"--cutmix-prob {mix.cutmix_prob}: stored features have no pixels to cut; set it to 0")
        self.ids = [str(value) for value in rows["id"]]
        self.place, self.features = store.positions(self.ids), store.features
        self.target, self.valid = target_arrays(rows, outputs)
        self.aux = {name: np.asarray(labels, np.float32) for name, labels in (aux or {}).items()}
        self.train, self.seed, self.swap_prob, self.mix = train, seed, swap_prob if train else 0.0, mix

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        batch = self.get_batch(epoch, [index])
        aux = {name: value[0] for name, value in batch.pop("aux", {}).items()}
        return {name: value[0] for name, value in batch.items()} | ({"aux": aux} if aux else {})

    def view_features(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """float32 (B, 2, N, D) of the views drawn in this epoch, halves exchanged where the draw says so."""
        views = self.features.shape[1] if self.train else 1
        view = np.zeros(len(indices), np.int64)
        if views > 1:
            view[:] = [generator(self.seed, epoch, i, VIEW).integers(views) for i in indices.tolist()]
        taken = np.array(self.features[self.place[indices], view], np.float32)
        if self.swap_prob > 0:
            draws = np.array([generator(self.seed, epoch, i, SWAP).random() for i in indices.tolist()])
            swapped = draws < self.swap_prob
            taken[swapped] = taken[swapped, ::-1]
        return taken

    def get_batch(self, epoch: int, indices: Sequence[int]) -> dict:
        """{"image": (B,2,N,D), "target", "valid": (B,K), "id": [str], "aux": {name: (B,C)} where there are any}."""
        indices = np.asarray(indices, np.int64)
        image = self.view_features(epoch, indices)
        target, valid = self.target[indices], self.valid[indices]
        aux = {name: labels[indices] for name, labels in self.aux.items()}
        if self.train and self.mix is not None:
            plans = [self.mix.plan(epoch, i, (1, 1)) for i in indices.tolist()]
            mixed = [k for k, plan in enumerate(plans) if plan is not None]
            others = self.view_features(epoch, np.array([plans[k].partner for k in mixed], np.int64))
            for k, other in zip(mixed, others, strict=True):
                weight, partner = plans[k].weight, plans[k].partner
                image[k] = weight * image[k] + (1 - weight) * other
                target[k], valid[k] = mix_targets(
                    target[k], valid[k], self.target[partner], self.valid[partner], weight
                )
                for name, labels in aux.items():
                    labels[k] = mix_labels(labels[k], self.aux[name][partner], weight)
        batch = {"image": torch.from_numpy(image), "target": torch.from_numpy(target), "valid": torch.from_numpy(valid)}
        batch["id"] = [self.ids[i] for i in indices.tolist()]
        return batch | ({"aux": {name: torch.from_numpy(v) for name, v in aux.items()}} if aux else {})
