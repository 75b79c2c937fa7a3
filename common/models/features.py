"""Frozen features: a backbone that is not trained is run once per stored view, then heads train on what it gave.

Several augmented views of every photo are embedded once and kept in the cache; a dataset of features then stands in
for the dataset of photos, in the same form, so that the ordinary loop and the same model train the heads.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.datasets.cache import cached_folder
from common.errors import InputError

FEATURES_VERSION = 1
DTYPES = {"float32": np.float32, "float16": np.float16}
# draws of one row in one epoch, columns of a table of uniform numbers
VIEW, SWAP, MIX, PARTNER = range(4)


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


def module_hash(module: torch.nn.Module) -> str:
    """32 hex digits of the names, shapes, types and bytes of all parameters and buffers: the backbone's cache key."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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
    inputs: JSON-able, everything the features depend on (`module_hash` of the backbone, hashes of the photos, sizes,
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
        loader = DataLoader(
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
        with torch.autocast(device.type, dtype=amp or torch.bfloat16, enabled=amp is not None):
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

    Training draws a stored view, a stereo swap and a MixUp partner (with its own view and swap, the same lambda for
    both halves, targets and soft auxiliary labels) as pure functions of (seed, epoch, i); otherwise view 0, unmixed.
    CutMix has no meaning on pooled cells and is refused by the caller.
    """

    def __init__(
        self,
        store: FeatureStore,
        ids,
        target,
        *,
        valid=None,
        aux: dict[str, np.ndarray] | None = None,
        train: bool = False,
        seed: int = 0,
        swap_prob: float = 0.5,
        mixup_alpha: float = 0.4,
        mixup_prob: float = 0.0,
        mix_label=None,
    ):
        """target: (n, K) grams; valid: (n, K) bool (default all); aux: name -> (n, C) soft labels; mix_label: (n,)
        hashable, partners are drawn among rows of the same label; a row alone with its label is not mixed."""
        self.ids, self.place, self.features = list(ids), store.positions(ids), store.features
        self.target = torch.as_tensor(np.array(target), dtype=torch.float32)
        self.valid = torch.ones(self.target.shape, dtype=torch.bool)
        if valid is not None:
            self.valid = torch.as_tensor(np.array(valid), dtype=torch.bool)
        self.aux = {name: torch.as_tensor(np.array(v), dtype=torch.float32) for name, v in (aux or {}).items()}
        self.train, self.seed, self.swap_prob = train, seed, swap_prob
        self.mixup_alpha, self.mixup_prob = mixup_alpha, mixup_prob
        self._partners = _partner_lists(mix_label, len(self.ids))
        self._drawn: tuple | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        batch = self.get_batch(key[0], [key[1]])
        aux = {name: value[0] for name, value in batch.pop("aux", {}).items()}
        return {name: value[0] for name, value in batch.items()} | ({"aux": aux} if aux else {})

    def draws(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Uniform numbers (n, 4) and Beta(alpha, alpha) numbers (n,) of an epoch; kept for the epoch last asked for."""
        if self._drawn is None or self._drawn[0] != epoch:
            count = len(self)
            uniform = np.random.default_rng([self.seed, epoch, 1]).random((count, 4))
            alpha = max(self.mixup_alpha, 1e-3)
            self._drawn = epoch, uniform, np.random.default_rng([self.seed, epoch, 2]).beta(alpha, alpha, count)
        return self._drawn[1:]

    def partners(self, indices: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """The MixUp partner of each index: another row of the same label, itself where there is none."""
        label, rank, members = self._partners
        found = indices.copy()
        for k, index in enumerate(indices):
            others = members[label[index]]
            if len(others) > 1:
                step = 1 + int(uniform[index, PARTNER] * (len(others) - 1))
                found[k] = others[(rank[index] + step) % len(others)]
        return found

    def view_features(self, indices: np.ndarray, uniform: np.ndarray) -> torch.Tensor:
        """(B, 2, N, D) of the drawn views, halves exchanged where the draw says so."""
        view = (uniform[indices, VIEW] * self.features.shape[1]).astype(np.int64)
        taken = torch.from_numpy(np.asarray(self.features[self.place[indices], view], np.float32))
        swap = torch.from_numpy(uniform[indices, SWAP] < self.swap_prob)
        return torch.where(swap[:, None, None, None], taken.flip(1), taken)

    def get_batch(self, epoch: int, indices) -> dict:
        """{"image": (B,2,N,D), "target", "valid": (B,K), "id": [str], "aux": {name: (B,C)} where there are any}."""
        indices = np.asarray(indices, np.int64)
        if not self.train:
            image = torch.from_numpy(np.asarray(self.features[self.place[indices], 0], np.float32))
            mixed = {"target": self.target[indices], "aux": {k: v[indices] for k, v in self.aux.items()}}
            valid = self.valid[indices]
        else:
            uniform, beta = self.draws(epoch)
            image, mixed, valid = self._mixed(indices, uniform, beta)
        batch = {"image": image, "target": mixed["target"], "valid": valid, "id": [self.ids[i] for i in indices]}
        return batch | ({"aux": mixed["aux"]} if self.aux else {})

    def _mixed(self, indices: np.ndarray, uniform: np.ndarray, beta: np.ndarray) -> tuple:
        image = self.view_features(indices, uniform)
        partner = self.partners(indices, uniform)
        on = (uniform[indices, MIX] < self.mixup_prob) & (partner != indices)
        share = torch.from_numpy(np.where(on, beta[indices], 1).astype(np.float32))
        rows = np.flatnonzero(on)
        if len(rows):
            weight = share[rows, None, None, None]
            image[rows] = weight * image[rows] + (1 - weight) * self.view_features(partner[rows], uniform)
        partner = np.where(on, partner, indices)

        def mix(table: torch.Tensor) -> torch.Tensor:
            return share[:, None] * table[indices] + (1 - share[:, None]) * table[partner]

        mixed = {"target": mix(self.target), "aux": {name: mix(table) for name, table in self.aux.items()}}
        return image, mixed, self.valid[indices] & self.valid[partner]


def _partner_lists(mix_label, count: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(label number of each row, its rank among its label's rows, the rows of each label)."""
    names = ["all"] * count if mix_label is None else [str(name) for name in mix_label]
    number = {name: k for k, name in enumerate(dict.fromkeys(names))}
    label = np.array([number[name] for name in names], np.int64)
    members = [np.flatnonzero(label == k) for k in range(len(number))]
    rank = np.empty(count, np.int64)
    for rows in members:
        rank[rows] = np.arange(len(rows))
    return label, rank, members
