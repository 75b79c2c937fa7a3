"""Tiles as training and inference see them: crops that a plan draws, or whole tiles; read by window from npy files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from common.datasets.arrays import FAULTS, read_npy, short
from common.datasets.cache import cached_folder, remembered_hash
from common.datasets.crops import IGNORED
from common.datasets.inputs import make_channels, standardise, valid_pixels
from common.datasets.texture import TEXTURE_VERSION, glcm
from common.errors import InputError

VERSION = 2  # of what is stored per tile


def itself(label: str) -> list[str]:
    return [label]


@dataclass(frozen=True)
class Source:
    """How a competition's files become arrays."""

    read_tile: Callable[[str, Sequence[str]], np.ndarray]  # (path of a row, bands) -> float32 (C,H,W) raw
    read_label: Callable[[str, dict], np.ndarray]  # (label of a row, label map) -> uint8 (H,W) classes
    files_of: Callable[[str], list[Path]]  # path of a row -> all files that its tile is read from
    size_of: Callable[[str], tuple[int, int]]  # (H, W) where the tile itself cannot be read
    label_files: Callable[[str], list] = itself  # label of a row -> all files that it is read from
    mapped: bool = False  # npy tiles are as the model takes them, bands in order and 0 for no data: read by window


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
        tile = read_npy(path, mapped=True)
    except FAULTS as error:
        raise InputError(f"{path}: not a readable npy tile ({short(error)}); prepare the folder again") from error
    if tile.ndim != 3 or not tile.size:
        raise InputError(f"{path}: a tile of shape {tile.shape}, not (bands, height, width); prepare the folder again")
    return tile


class TileStore:
    """The tiles of rows as arrays that can be read by window: npy files in the cache, or what is in memory.

    cache None: nothing is written; keep=True then holds every tile in memory once it was read.
    """

    def __init__(self, rows: pd.DataFrame, spec: dict, source: Source, *, cache: str | None, keep: bool = True):
        self.paths = list(rows["path"])
        self.labels = list(rows["label"]) if "label" in rows else None
        self.spec, self.source, self.cache, self.keep = spec, source, cache, keep
        self.memory: dict[tuple, object] = {}

    def tile(self, index: int) -> np.ndarray:
        """Raw bands (C,H,W); a mapped npy tile is its own cache."""
        path, bands = self.paths[index], self.spec["bands"]
        if self.source.mapped and Path(path).suffix == ".npy":
            return self.held("tile", index, lambda: open_slice(path))
        make = lambda: self.source.read_tile(path, bands)  # noqa: E731
        return self.held("tile", index, lambda: self.stored("tile", index, {"bands": bands}, make))

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

        content = [remembered_hash(file) for file in self.source.label_files(path)]
        # what is no data, and so not known, is a matter of the bands
        inputs = {"map": known, "label": Path(path).name, "content": content, "bands": self.spec["bands"]}
        return self.held("label", index, lambda: self.stored("label", index, inputs, make))

    def held(self, kind: str, index: int, load: Callable) -> np.ndarray:
        """What `load` gives, once per process where the store keeps."""
        if not self.keep:
            return load()
        # rows that repeat a tile share it
        key = kind, self.paths[index], self.labels[index] if kind == "label" else None
        if key not in self.memory:
            self.memory[key] = load()
        return self.memory[key]

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
        """(channels float32 (C',h,w) not yet standardised, data bool (h,w), label uint8 (h,w) or None).

        Beyond the tile (y or x below 0, or too far) there is no data and no known label.
        """
        area = np.s_[..., max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
        tile, label, texture = np.asarray(self.tile(index)[area], np.float32), self.label(index), self.texture(index)
        scaling = self.spec["scaling"]
        channels = make_channels(
            tile,
            bands=self.spec["bands"],
            scale=scaling["scale"],
            indices=scaling["indices"],
            texture_maps=None if texture is None else texture[area],
            relative=scaling.get("relative", ()),
        )
        found = channels, valid_pixels(tile), None if label is None else np.asarray(label[area])
        top, left = max(-y, 0), max(-x, 0)
        edges = (top, height - top - tile.shape[1]), (left, width - left - tile.shape[2])
        if not any(map(any, edges)):
            return found
        fills = zip(found, (0, False, IGNORED), strict=True)
        return tuple(plane if plane is None else np.pad(plane, (*[(0, 0)] * (plane.ndim - 2), *edges),
                                                        constant_values=fill) for plane, fill in fills)  # fmt: skip

    def whole(self, index: int) -> tuple:
        return self.window(index, 0, 0, *self.tile(index).shape[1:])

    def __getstate__(self) -> dict:
        """A worker opens the files itself."""
        return self.__dict__ | {"memory": {}}


class TileDataset(Dataset):
    """Rows to samples {"image" float32 (C',H,W), "target" int64 (H,W), "valid" bool (H,W), "data" bool (H,W), "id"}.

    data: where the tile has pixels; valid: where its label, if it has one, is known too.
    plan and count: `count` crops an epoch, drawn by the plan and augmented, by key (epoch, index); without a plan every
    row's whole tile, nothing random. on_bad "mark": a tile that cannot be read is all no data and "bad";
    "skip": so is every tile, and none is read.
    soften(target, valid) -> (valid, confidence or None): what training takes of a crop's labels, see soft_targets.
    """

    def __init__(self, rows, spec, source, *, cache, plan=None, count=0, augment=None, seed=0, on_bad="error",
                 soften=None):  # fmt: skip
        self.ids, self.spec, self.plan, self.count = list(rows["id"]), spec, plan, count
        self.store = TileStore(rows, spec, source, cache=cache, keep=plan is not None)
        self.augment, self.seed, self.on_bad, self.soften = augment, seed, on_bad, soften

    def __len__(self) -> int:
        return self.count if self.plan else len(self.ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if self.plan is None:
            return self.whole(index)
        tile, y, x, side = self.plan.draw(self.seed, epoch, index, self.count)
        image, data, label = resized(*self.standard(self.store.window(tile, y, x, side, side)), self.plan.crop)
        if self.augment:
            image, label, data = self.augment(image, label, data, epoch=epoch, index=index)
        sample = as_sample(image, data, label, self.ids[tile]) | {"labelled": True}
        if self.soften:
            valid, soft = self.soften(sample["target"].numpy().astype(np.uint8), sample["valid"].numpy())
            sample |= {"valid": torch.from_numpy(valid)} | ({} if soft is None else {"soft": torch.from_numpy(soft)})
        return sample

    def standard(self, window: tuple) -> tuple:
        channels, data, label = window
        return standardise(channels, data, self.spec["mean"], self.spec["std"]), data, label

    def whole(self, index: int) -> dict:
        try:
            if self.on_bad == "skip":
                raise InputError("not to be read")
            image, data, label = self.standard(self.store.whole(index))
            bad = False
        except InputError as error:
            if self.on_bad == "error":
                raise
            if self.on_bad == "mark":
                print(f"unreadable: {error}")
            size, bad = self.store.source.size_of(self.store.paths[index]), True
            image = np.zeros((len(self.spec["inputs"]), *size), np.float32)
            data, label = np.zeros(size, bool), None
        return as_sample(image, data, label, self.ids[index]) | {
            "bad": bad,
            "labelled": self.store.labels is not None,
        }


def resized(image: np.ndarray, data: np.ndarray, label: np.ndarray, side: int) -> tuple:
    """A window at another size (side x side): bands by area or linearly of the pixels with data, the rest from the
    nearest pixel."""
    if data.shape == (side, side):
        return image, data, label
    way = cv2.INTER_AREA if data.shape[0] > side else cv2.INTER_LINEAR
    bands = np.stack([cv2.resize(band, (side, side), interpolation=way) for band in image])
    planes = [cv2.resize(plane.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
              for plane in (data, label)]  # fmt: skip
    share = cv2.resize(data.astype(np.float32), (side, side), interpolation=way)
    data = planes[0].astype(bool) & (share > 0)
    return np.where(data, bands / np.maximum(share, 1e-6), np.float32(0)), data, planes[1]


def as_sample(image, data, label, name: str) -> dict:
    """label: uint8 (H,W) with IGNORED where it is not known; None for a tile without one: all data is valid then."""
    valid = data if label is None else data & (label != IGNORED)
    target = np.zeros(data.shape, np.int64) if label is None else np.where(valid, label, 0)
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image)),
        "target": torch.from_numpy(np.ascontiguousarray(target, dtype=np.int64)),
        "valid": torch.from_numpy(np.ascontiguousarray(valid)),
        "data": torch.from_numpy(np.ascontiguousarray(data)),
        "id": name,
    }


def collate(samples: list[dict]) -> dict:
    """Samples to a batch; tiles of different sizes get no data below and to the right. "size": (H,W) of each."""
    sizes = [tuple(sample["valid"].shape) for sample in samples]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    batch = {}
    for name in ("image", "target", "valid", "data", *(["soft"] if "soft" in samples[0] else [])):
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
