"""Biomass photos as stereo samples: two halves at the size the model cuts into cells, targets, auxiliary labels."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, get_worker_info
from tqdm import tqdm

from common.datasets.cache import inputs_hash, remembered_hash
from common.datasets.draws import SWAP, generator
from common.datasets.mixing import Mix, mix_image, mix_labels, mix_targets
from common.datasets.readers import PHOTO_SIZE, inpaint_stamp, read_photo, split_halves
from common.errors import InputError
from common.files import atomic_write

STORE_VERSION = 1  # raise it when decoding, stamp removal or resizing changes a pixel
ON_BAD = ("error", "mark", "skip")


def init_worker(worker: int) -> None:
    """For DataLoader(worker_init_fn=...): OpenCV's own threads would fight over the cores with the other workers."""
    cv2.setNumThreads(0)


def read_halves(
    path: str | Path,
    size: tuple[int, int],
    *,
    mask_stamp: bool = False,
    photo_size: tuple[int, int] | None = PHOTO_SIZE,
) -> np.ndarray:
    """Both halves of a photo at `size` (H, W): uint8 RGB (2, H, W, 3). InputErrors as `read_photo`."""
    photo = read_photo(path, photo_size)
    if mask_stamp:
        photo = inpaint_stamp(photo)
    halves = np.empty((2, *size, 3), np.uint8)
    for half, part in zip(halves, split_halves(photo), strict=True):
        # Averaging over areas keeps fine grass from turning into moire; it is only defined for shrinking.
        shrinks = part.shape[0] >= size[0] and part.shape[1] >= size[1]
        cv2.resize(part, size[::-1], dst=half, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return halves


class HalvesStore:
    """Decoded, resized halves on disk, one .npy a photo, named by the photo's content in a folder of the settings.

    Rows of any fold share it, a photo that changes gets a new file, and another size or version another folder.
    """

    def __init__(self, root: str | Path, size: tuple[int, int], mask_stamp: bool, photo_size: tuple[int, int] | None):
        self.settings = {"size": list(size), "mask_stamp": mask_stamp, "version": STORE_VERSION}
        self.settings["photo_size"] = None if photo_size is None else list(photo_size)
        self.folder = Path(root) / f"halves-{inputs_hash('halves', self.settings)}"

    def file(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def fill(self, photos: Mapping[str, str], read: Callable[[str], np.ndarray], *, on_bad: str, force: bool) -> None:
        """Decode what is absent of `photos` {key: path}; one that cannot be read is left out where `on_bad` is mark."""
        wanted = [(key, path) for key, path in photos.items() if force or not self.file(key).is_file()]

        def store(item: tuple[str, str]) -> None:
            key, path = item
            try:
                halves = read(path)
            except InputError:
                if on_bad == "error":
                    raise
                return
            atomic_write(self.file(key), lambda temporary: np.save(temporary, halves))

        if not wanted:
            return
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in tqdm(pool.map(store, wanted), total=len(wanted), desc="decoding photos", unit="photo"):
                pass


class StereoDataset(Dataset):
    """Samples of a table of photos; `ds[epoch, i]`, or `ds[i]` for epoch 0, is a pure function of its index.

    rows: `id`, `path` and the columns `outputs` in grams (absent in test rows; NaN is not valid).
    size: (R*S, C*S) pixels of a half. mean, std: of the backbone, for RGB in 0..1.
    augment: a StereoAugment; swap_prob: chance that the halves change places; mix: a Mix over the same rows.
    cache: folder for decoded halves (size H*W*6 bytes a photo), None to decode every time; force_cache decodes anew.
    aux: {name: (n, K) label distributions}, a row of zeros where the label is unknown.
    on_bad: "error" passes on what reading a photo raises; "mark" gives a zero image and "bad": True in the sample;
    "skip" gives every photo that, and reads none.

    A sample: {"image": float32 (2, 3, H, W), "target": float32 (n outputs,), "valid": bool (n outputs,), "id": str},
    "aux" {name: float32 (K,)} if there are any, and "bad" with on_bad="mark".
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        *,
        outputs: Sequence[str],
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        augment: Callable | None = None,
        swap_prob: float = 0.0,
        mix: Mix | None = None,
        mask_stamp: bool = False,
        photo_size: tuple[int, int] | None = PHOTO_SIZE,
        cache: str | Path | None = None,
        force_cache: bool = False,
        aux: Mapping[str, np.ndarray] | None = None,
        on_bad: str = "error",
    ):
        if on_bad not in ON_BAD:
            raise ValueError(f"on_bad is '{on_bad}'; choose from {', '.join(ON_BAD)}")
        self.ids = [str(value) for value in rows["id"]]
        self.paths = [str(value) for value in rows["path"]]
        self.targets, self.valid = target_arrays(rows, outputs)
        self.aux = {name: np.asarray(labels, np.float32) for name, labels in (aux or {}).items()}
        self.size, self.seed, self.augment, self.swap_prob, self.mix = tuple(size), seed, augment, swap_prob, mix
        self.mask_stamp, self.photo_size, self.on_bad = mask_stamp, photo_size, on_bad
        self.tables = normalising_tables(mean, std)
        self.files: list[Path | None] = [None] * len(self.paths)
        if cache is not None and on_bad != "skip":
            self.use_store(HalvesStore(cache, self.size, mask_stamp, photo_size), force_cache)

    def use_store(self, store: HalvesStore, force: bool) -> None:
        keys = [photo_key(path, self.on_bad) for path in self.paths]
        photos = {key: path for key, path in zip(keys, self.paths, strict=True) if key is not None}
        store.fill(photos, self.read, on_bad=self.on_bad, force=force)
        self.files = [store.file(key) if key is not None else None for key in keys]

    def read(self, path: str) -> np.ndarray:
        return read_halves(path, self.size, mask_stamp=self.mask_stamp, photo_size=self.photo_size)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        sample = self.raw_sample(key)
        sample["image"] = normalised([sample["image"]], self.tables, self.size)[0]
        return sample

    def __getitems__(self, keys: list) -> list[dict]:
        """What a DataLoader asks for; in a worker for `collate` alone, which sends bytes instead of floats."""
        if get_worker_info() is None:
            return [self[key] for key in keys]
        samples = [self.raw_sample(key) for key in keys]
        for sample in samples:
            sample["image"] = Unfinished([sample["image"]], self.tables, self.size)
        return samples

    def raw_sample(self, key: int | tuple[int, int]) -> dict:
        """The sample of `key` with two uint8 halves, or None for a bad photo, as its "image"."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        halves = self.halves(epoch, index)
        target, valid = self.targets[index], self.valid[index]
        aux = {name: labels[index] for name, labels in self.aux.items()}
        plan = self.mix.plan(epoch, index, self.size) if self.mix and halves else None
        other = self.halves(epoch, plan.partner) if plan else None
        if other:
            halves = [mix_image(a, b, plan) for a, b in zip(halves, other, strict=True)]
            target, valid = mix_targets(
                target, valid, self.targets[plan.partner], self.valid[plan.partner], plan.weight
            )
            aux = {name: mix_labels(aux[name], self.aux[name][plan.partner], plan.weight) for name in aux}
        found = {"image": halves, "target": torch.tensor(target), "valid": torch.tensor(valid), "id": self.ids[index]}
        if aux:
            found["aux"] = {name: torch.tensor(labels) for name, labels in aux.items()}
        if self.on_bad != "error":
            found["bad"] = halves is None
        return found

    def halves(self, epoch: int, index: int) -> Sequence[np.ndarray] | None:
        """Swapped and augmented halves, each uint8 (H, W, 3), before mixing; None for a photo marked bad."""
        if self.on_bad == "skip":
            return None
        try:
            file = self.files[index]
            left, right = np.load(file) if file is not None and file.is_file() else self.read(self.paths[index])
        except InputError:
            if self.on_bad == "error":
                raise
            return None
        if self.swap_prob > 0 and generator(self.seed, epoch, index, SWAP).random() < self.swap_prob:
            left, right = right, left
        return self.augment(left, right, epoch=epoch, index=index) if self.augment else (left, right)


def target_arrays(rows: pd.DataFrame, outputs: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n, outputs) float32 grams with 0 for what is unknown, and bool where it is known."""
    if not all(name in rows.columns for name in outputs):
        return np.zeros((len(rows), len(outputs)), np.float32), np.zeros((len(rows), len(outputs)), bool)
    grams = rows[list(outputs)].to_numpy(np.float32)
    valid = np.isfinite(grams)
    return np.where(valid, grams, np.float32(0)), valid


def normalising_tables(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(3, 256) float32: what each grey level of each channel becomes."""
    grey = np.arange(256) / 255
    return np.stack([(grey - m) / s for m, s in zip(mean, std, strict=True)]).astype(np.float32)


def normalised(pairs: Sequence, tables: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """float32 (B, 2, 3, H, W) of B pairs of uint8 (H, W, 3) halves; zeros where a pair is None."""
    # NumPy asks for huge pages here and torch.empty does not: the first touch of 50 MB costs a fifth.
    images = np.empty((len(pairs), 2, 3, *size), np.float32)
    for pair, image in zip(pairs, images, strict=True):
        if pair is None:
            image[:] = 0
            continue
        for half, planes in zip(pair, image, strict=True):
            for plane, table, out in zip(cv2.split(half), tables, planes, strict=True):
                cv2.LUT(plane, table, dst=out)
    return torch.from_numpy(images)


class Unfinished:
    """Pairs of halves on their way out of a worker; what arrives in the main process is the normalised tensor.

    Sent as bytes in shared memory that is used again and again, and normalised on arrival: fresh shared memory is the
    dearest part of a decoded sample, and floats need four times as much of it.
    """

    def __init__(self, pairs: list, tables: np.ndarray, size: tuple[int, int]):
        self.pairs, self.tables, self.size = pairs, tables, size

    def __reduce__(self):
        known = [pair is not None for pair in self.pairs]
        shape = (sum(known), 2, *self.size, 3)
        slot = borrow_slot(math.prod(shape))
        sent = iter(slot.numpy()[1 : 1 + math.prod(shape)].reshape(shape))
        for pair in self.pairs:
            if pair is not None:
                np.stack(pair, out=next(sent))
        return finish, (slot, known, self.tables, self.size)


SLOTS: list[torch.Tensor] = []  # of this worker: shared uint8 memory whose first byte says that it is on its way


def borrow_slot(count: int) -> torch.Tensor:
    """Shared memory for `count` bytes behind its first one; `finish` gives it back by setting that byte to 0."""
    for slot in SLOTS:
        if slot[0] == 0 and len(slot) > count:
            slot[0] = 1
            return slot
    SLOTS[:] = [slot for slot in SLOTS if slot[0] == 1 or len(slot) > count]
    SLOTS.append(torch.ones(1 + count, dtype=torch.uint8).share_memory_())
    return SLOTS[-1]


def finish(slot: torch.Tensor, known: list[bool], tables: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """The float32 batch of what `Unfinished` sent."""
    shape = (sum(known), 2, *size, 3)
    arrived = iter(slot.numpy()[1 : 1 + math.prod(shape)].reshape(shape))
    images = normalised([next(arrived) if one else None for one in known], tables, size)
    slot[0] = 0
    return images


def photo_key(path: str, on_bad: str) -> str | None:
    """Hash of a photo's content, remembered while its size and time stay; None where it cannot be read and may."""
    try:
        return remembered_hash(path)
    except (OSError, InputError) as error:
        if on_bad == "mark":
            return None
        raise InputError(f"{path}: photo cannot be read; check --data and the path column of the table") from error


def collate(samples: list[dict]) -> dict:
    """Samples to a batch: tensors stacked, ids as a list, "aux" a dict of (B, K), "bad" a bool (B,)."""
    batch = {"image": join_images([sample["image"] for sample in samples])}
    for name in ("target", "valid"):
        batch[name] = torch.stack([sample[name] for sample in samples])
    batch["id"] = [sample["id"] for sample in samples]
    if "aux" in samples[0]:
        batch["aux"] = {name: torch.stack([s["aux"][name] for s in samples]) for name in samples[0]["aux"]}
    if "bad" in samples[0]:
        batch["bad"] = torch.tensor([sample["bad"] for sample in samples])
    return batch


def join_images(images: list):
    """Stacked tensors; what a worker gathered stays unfinished until it arrives."""
    if isinstance(images[0], Unfinished):
        return Unfinished([pair for image in images for pair in image.pairs], images[0].tables, images[0].size)
    return torch.stack(images)
