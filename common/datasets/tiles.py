"""Tiles as training and inference see them: crops that a plan draws, or whole tiles; read by window from npy files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from common.datasets.cache import cached_folder, remembered_hash
from common.datasets.crops import IGNORED, CropPlan, draw_crop
from common.datasets.inputs import make_channels, standardise, valid_pixels
from common.datasets.texture import TEXTURE_VERSION, glcm
from common.errors import InputError

VERSION = 1  # of what is stored per tile


@dataclass(frozen=True)
class Source:
    """How a competition's files become arrays."""

    read_tile: Callable[[str], np.ndarray]  # path of a row -> float32 (C,H,W) raw
    read_label: Callable[[str, dict], np.ndarray]  # (label of a row, label map) -> uint8 (H,W) classes
    files_of: Callable[[str], list[Path]]  # path of a row -> all files that its tile is read from
    size_of: Callable[[str], tuple[int, int]]  # (H, W) where the tile itself cannot be read


def texture_maps(tile: np.ndarray, spec: dict) -> np.ndarray | None:
    """float32 (P,H,W) of the spec's texture on one band of a tile (C,H,W); None where the model has no such bands."""
    texture = spec["scaling"]["texture"]
    if not texture:
        return None
    band = tile[spec["bands"].index(texture["band"])]
    options = {key: texture[key] for key in ("low", "high", "levels", "window")}
    return glcm(band, properties=tuple(texture["properties"]), **options)


def open_slice(path: str) -> np.ndarray:
    """An npy tile (C,H,W), read where it is looked at. InputError naming a file that holds none."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable npy tile ({error}); prepare the folder again") from error


class TileStore:
    """The tiles of rows as arrays that can be read by window: npy files in the cache, or what is in memory.

    cache None: nothing is written; keep=True then holds every tile in memory once it was read.
    """

    def __init__(self, rows: pd.DataFrame, spec: dict, source: Source, *, cache: str | None, keep: bool = True):
        self.paths = list(rows["path"])
        self.labels = list(rows["label"]) if "label" in rows else None
        self.spec, self.source, self.cache, self.keep = spec, source, cache, keep
        self.memory: dict[tuple[str, int], object] = {}

    def tile(self, index: int) -> np.ndarray:
        """Raw bands (C,H,W); an npy slice is its own cache."""
        path = self.paths[index]
        if Path(path).suffix == ".npy":
            return self.held("tile", index, lambda: open_slice(path))
        return self.held("tile", index, lambda: self.stored("tile", index, {}, lambda: self.source.read_tile(path)))

    def texture(self, index: int) -> np.ndarray | None:
        texture = self.spec["scaling"]["texture"]
        if not texture:
            return None
        inputs = {"texture": texture, "bands": self.spec["bands"], "code": TEXTURE_VERSION}
        make = lambda: texture_maps(np.asarray(self.tile(index), np.float32), self.spec)  # noqa: E731
        return self.held("texture", index, lambda: self.stored("texture", index, inputs, make))

    def label(self, index: int) -> np.ndarray | None:
        """uint8 (H,W): classes, 255 where there is no data; None for rows without labels."""
        if self.labels is None:
            return None
        path, known = self.labels[index], self.spec["label_map"]

        def make():
            label, tile = self.source.read_label(path, known), self.tile(index)
            if label.shape != tile.shape[1:]:
                raise InputError(f"{path}: its size {label.shape} is not the tile's {tile.shape[1:]}; cut both alike")
            return np.where(valid_pixels(tile), label, IGNORED).astype(np.uint8)

        inputs = {"map": known, "content": remembered_hash(path)}
        return self.held("label", index, lambda: self.stored("label", index, inputs, make))

    def held(self, kind: str, index: int, load: Callable) -> np.ndarray:
        """What `load` gives, once per process where the store keeps."""
        if not self.keep:
            return load()
        if (kind, index) not in self.memory:
            self.memory[kind, index] = load()
        return self.memory[kind, index]

    def stored(self, kind: str, index: int, inputs: dict, make: Callable) -> np.ndarray:
        """The array that `make` computes, from the cache where there is one."""
        if self.cache is None:
            return make()
        content = [remembered_hash(path) for path in self.source.files_of(self.paths[index])]
        folder = cached_folder(
            self.cache,
            kind,
            {"files": content, "version": VERSION, **inputs},
            lambda folder: np.save(folder / "array.npy", make()),
        )
        return np.load(folder / "array.npy", mmap_mode="r")

    def window(self, index: int, y: int, x: int, height: int, width: int) -> tuple:
        """(channels float32 (C',h,w) not yet standardised, valid bool (h,w), target uint8 (h,w) or None)."""
        area = np.s_[..., y : y + height, x : x + width]
        tile, label, texture = np.asarray(self.tile(index)[area], np.float32), self.label(index), self.texture(index)
        scaling = self.spec["scaling"]
        channels = make_channels(
            tile,
            bands=self.spec["bands"],
            scale=scaling["scale"],
            indices=scaling["indices"],
            texture_maps=None if texture is None else texture[area],
        )
        return channels, valid_pixels(tile), None if label is None else np.asarray(label[area])

    def whole(self, index: int) -> tuple:
        return self.window(index, 0, 0, *self.tile(index).shape[1:])

    def __getstate__(self) -> dict:
        """A worker opens the files itself."""
        return self.__dict__ | {"memory": {}}


class TileDataset(Dataset):
    """Rows to samples {"image" float32 (C',H,W), "target" int64 (H,W), "valid" bool (H,W), "id"}.

    plan and count: `count` crops an epoch, drawn by the plan and augmented, by key (epoch, index); without a plan every
    row's whole tile, nothing random. on_bad "mark": a tile that cannot be read is all no data and "bad".
    """

    def __init__(self, rows, spec, source, *, cache, plan: CropPlan | None = None, count=0, augment=None, seed=0,
                 on_bad="error"):  # fmt: skip
        self.ids, self.spec, self.plan, self.count = list(rows["id"]), spec, plan, count
        self.store = TileStore(rows, spec, source, cache=cache, keep=plan is not None)
        self.augment, self.seed, self.on_bad = augment, seed, on_bad

    def __len__(self) -> int:
        return self.count if self.plan else len(self.ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if self.plan is None:
            return self.whole(index)
        tile, y, x = draw_crop(self.plan, self.seed, epoch, index)
        image, valid, target = self.standard(self.store.window(tile, y, x, self.plan.crop, self.plan.crop))
        if self.augment:
            image, target, valid = self.augment(image, target, valid, epoch=epoch, index=index)
        return as_sample(image, target, valid, self.ids[tile]) | {"labelled": True}

    def standard(self, window: tuple) -> tuple:
        channels, valid, label = window
        target = np.zeros(valid.shape, np.uint8) if label is None else np.where(valid, label, 0)
        return standardise(channels, valid, self.spec["mean"], self.spec["std"]), valid, target

    def whole(self, index: int) -> dict:
        try:
            image, valid, target = self.standard(self.store.whole(index))
            bad = False
        except InputError as error:
            if self.on_bad == "error":
                raise
            print(f"unreadable: {error}")
            size, bad = self.store.source.size_of(self.store.paths[index]), True
            image = np.zeros((len(self.spec["inputs"]), *size), np.float32)
            valid, target = np.zeros(size, bool), np.zeros(size, np.uint8)
        return as_sample(image, target, valid, self.ids[index]) | {
            "bad": bad,
            "labelled": self.store.labels is not None,
        }


def as_sample(image, target, valid, name: str) -> dict:
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image)),
        "target": torch.from_numpy(np.ascontiguousarray(target, dtype=np.int64)),
        "valid": torch.from_numpy(np.ascontiguousarray(valid)),
        "id": name,
    }


def collate(samples: list[dict]) -> dict:
    """Samples to a batch; tiles of different sizes get no data below and to the right. "size": (H,W) of each."""
    sizes = [tuple(sample["valid"].shape) for sample in samples]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    batch = {}
    for name in ("image", "target", "valid"):
        padded = [torch.nn.functional.pad(s[name], (0, width - w, 0, height - h))
                  for s, (h, w) in zip(samples, sizes, strict=True)]  # fmt: skip
        batch[name] = torch.stack(padded)
    batch |= {"id": [sample["id"] for sample in samples], "size": sizes, "labelled": samples[0]["labelled"]}
    if "bad" in samples[0]:
        batch["bad"] = torch.tensor([sample["bad"] for sample in samples])
    return batch


def init_worker(number: int) -> None:
    """A loader worker decodes and augments on one thread: the others train."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
