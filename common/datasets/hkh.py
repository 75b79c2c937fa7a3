"""The HKH glacier slices (LILA: 15-channel Landsat 7 of the Hindu Kush Himalaya) as tiles of a pretraining set."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from common.datasets.cache import inputs_hash
from common.datasets.glacier_files import CLASSES, PREPARED, load_array, read_prepared, valid_pixels
from common.errors import InputError
from common.files import atomic_write
from common.text_files import read_json

CHANNELS = ("blue", "green", "red", "nir", "swir1", "thermal", "thermal-high", "swir2", "pan", "bqa", "ndvi", "ndsi",
            "ndwi", "elevation", "slope")  # fmt: skip
COMPETITION = (0, 1, 2, 4, 5)  # the five bands of the competition; a map with both thermals and no swir1 is wrong
OUTPUTS = CLASSES[:3]
NAME = re.compile(r"slice_(?P<scene>.+)_img_(?P<k>\d+)\.npy$")
SETTINGS, STATISTICS = "settings.json", "statistics.json"
VERSION = 1  # of what is written


def prepare(data, out, *, min_glacier=0.10, channels=COMPETITION, force=False, progress=True):
    """(rows, statistics) of the slices of `data` with enough glacier, written to the folder `out` as npy tiles.

    min_glacier: least share (0..1) of a slice's pixels that are glacier of any kind; channels: which of CHANNELS, in
    the order of the bands. A tile is (C,H,W) in the smallest type that loses nothing, its label uint8 (H,W) of OUTPUTS;
    NaN becomes 0, no data (0 in all channels kept) background. rows: as `glacier_files.read_rows` gives them, the scene
    as group. statistics: bands, mean and std of the pixels with data, and how many slices were found and kept.
    A call that was cut off goes on where it stopped; a finished folder is given back. InputError: a mask is missing,
    a shape or a value is not as published, no slice is left, or `out` holds other slices or settings (unless force).
    """
    data, out = Path(data), Path(out)
    check_settings(min_glacier, channels)
    slices = find_slices(data)
    claim(out, slices, {"min_glacier": min_glacier, "channels": list(channels), "version": VERSION}, force)
    if (out / PREPARED).is_file():
        return read_prepared(out), read_statistics(out)
    lines, sums = [], Sums(len(channels))
    left_out = {"too little glacier": 0, "no data": 0}
    for path, mask, scene, k in tqdm(slices, desc="slices", unit="slice", disable=None if progress else True):
        made = make_tile(path, mask, out, f"{scene}_{k}", min_glacier, channels)
        if isinstance(made, str):
            left_out[made] += 1
            continue
        tile, label = made
        valid = valid_pixels(tile)
        sums.add(tile[:, valid])
        shares = np.bincount(label[valid], minlength=len(OUTPUTS)) / valid.sum()
        line = {"id": f"{scene}_{k}", "path": f"tiles/{scene}_{k}.npy", "label": f"labels/{scene}_{k}.npy"}
        lines.append(line | {"group": scene} | dict(zip(OUTPUTS, shares, strict=True)))
    if not lines:
        raise InputError(f"{data}: none of {len(slices)} slices has {100 * min_glacier:g} % glacier; ask for less")
    statistics = {"bands": [CHANNELS[c] for c in channels], **sums.result(), "slices": len(slices), "kept": len(lines)}
    atomic_write(out / STATISTICS, json.dumps(statistics | {"left_out": left_out}, indent=1))
    table = pd.DataFrame(lines).sort_values("id")
    atomic_write(out / PREPARED, lambda part: table.to_csv(part, index=False, lineterminator="\n"))  # last: it is whole
    return read_prepared(out), read_statistics(out)


class Sums:
    """Running sums over pixels for the mean and standard deviation of each channel."""

    def __init__(self, channels: int):
        self.pixels, self.mean, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def add(self, values: np.ndarray) -> None:
        """values (C, n). Chan, Golub and LeVeque (1979): stable where the mean is far larger than the spread."""
        count, mean = values.shape[1], values.mean(1, dtype=np.float64)
        squares = ((values - mean[:, None]) ** 2).sum(1)
        shift, total = mean - self.mean, self.pixels + count
        self.squares += squares + shift**2 * self.pixels * count / total
        self.mean, self.pixels = self.mean + shift * count / total, total

    def result(self) -> dict:
        std = np.sqrt(self.squares / self.pixels)
        return {"mean": self.mean.tolist(), "std": std.tolist(), "pixels": self.pixels}


def check_settings(min_glacier, channels) -> None:
    if not 0 <= min_glacier <= 1:
        raise InputError(f"min_glacier {min_glacier}: the least share of glacier is a number from 0 to 1")
    wrong = [c for c in channels if c not in range(len(CHANNELS))]
    if wrong or len(set(channels)) < len(channels) or not len(channels):
        raise InputError(f"channels {' '.join(map(str, channels))}: choose different ones of 0 to {len(CHANNELS) - 1}")


def find_slices(data: Path) -> list[tuple[Path, Path, str, str]]:
    """(image, mask, scene, k) of every slice in a folder or below it, by name. InputError: none, or a mask missing."""
    found = []
    for path in sorted(data.rglob("slice_*_img_*.npy")):
        name = NAME.match(path.name)
        if not name:
            raise InputError(f"{path}: not a name like slice_{{scene}}_img_{{k}}.npy; rename or remove it")
        mask = path.with_name(f"slice_{name['scene']}_mask_{name['k']}.npy")
        if not mask.is_file():
            raise InputError(f"{mask}: the mask of {path.name} is not there; download it too or remove the slice")
        found.append((path, mask, name["scene"], name["k"]))
    if not found:
        raise InputError(f"{data}: no slice_*_img_*.npy there; name the folder of the HKH slices")
    names = pd.Series([f"{scene}_{k}" for _, _, scene, k in found])
    if names.duplicated().any():
        raise InputError(f"{data}: slice {names[names.duplicated()].iloc[0]} is there twice; keep one")
    return found


def claim(out: Path, slices, settings: dict, force: bool) -> None:
    """Write what `out` is made of, or see that it is the same as what is there; forget the tiles there by force."""
    sizes = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for pair in slices for p in pair[:2]]
    wanted = settings | {"slices": inputs_hash("hkh", {"files": sizes})}
    path = out / SETTINGS
    same = path.is_file() and read_json(path, wanted=None) == wanted
    if not same and not force and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: holds other files or was made of other slices or settings; --force replaces them")
    if not same or force:
        for old in [out / PREPARED, out / STATISTICS, *out.glob("tiles/*.npy"), *out.glob("labels/*.npy")]:
            old.unlink(missing_ok=True)
        atomic_write(path, json.dumps(wanted, indent=1))


def make_tile(path: Path, mask: Path, out: Path, name: str, min_glacier: float, channels):
    """(tile (C,H,W), label uint8 (H,W)) of a slice, read from `out` or written there; text: why it is left out.

    The label is written last, so that a label that is there has its tile.
    """
    tile_path, label_path = out / "tiles" / f"{name}.npy", out / "labels" / f"{name}.npy"
    if label_path.is_file() and tile_path.is_file():
        return load_array(tile_path), load_array(label_path)
    label = merge_masks(load_array(mask), mask)
    if (label > 0).mean() < min_glacier:
        return "too little glacier"
    tile = pick_channels(load_array(path), path, channels)
    if tile.shape[1:] != label.shape:
        raise InputError(f"{mask}: {label.shape} pixels where {path.name} has {tile.shape[1:]}; download both again")
    valid = valid_pixels(tile)
    if not valid.any():
        return "no data"
    label[~valid] = 0
    for target, array in ((tile_path, tile), (label_path, label)):
        atomic_write(target, lambda part, array=array: np.save(part, array))
    return tile, label


def merge_masks(mask: np.ndarray, path: Path) -> np.ndarray:
    """uint8 (H,W) of OUTPUTS from (H,W,3) all glacier, clean ice, debris, or (H,W,2) clean ice, debris.

    Glacier that is neither counts as clean ice; where both claim a pixel it is debris. NaN is no glacier.
    """
    if mask.ndim != 3 or mask.shape[2] not in (2, 3):
        raise InputError(f"{path}: a mask of shape {mask.shape}; (H, W, 3) or (H, W, 2) is known: download it again")
    mask = np.nan_to_num(np.asarray(mask, np.float32))
    stray = np.setdiff1d(np.unique(mask), (0, 1, 255))
    if len(stray):
        raise InputError(f"{path}: the mask holds {stray[0]:g}; 0 and 1 (or 255) are known: download it again")
    clean, debris = mask[..., -2] > 0, mask[..., -1] > 0
    glacier = mask[..., 0] > 0 if mask.shape[2] == 3 else clean | debris
    outside = ((clean | debris) & ~glacier).sum()
    if outside > 0.01 * max((clean | debris).sum(), 1):
        raise InputError(
            f"{path}: {outside} pixels of ice or debris outside all glacier; its order is not as published"
        )
    return np.where(debris, 2, np.where(glacier | clean, 1, 0)).astype(np.uint8)


def pick_channels(image: np.ndarray, path: Path, channels) -> np.ndarray:
    """(C,H,W) of the channels, NaN and infinite as 0, in the smallest number type that keeps every value."""
    if image.ndim != 3 or image.shape[2] != len(CHANNELS):
        raise InputError(f"{path}: an array of shape {image.shape}, not (H, W, {len(CHANNELS)}); download it again")
    picked = np.asarray(image[..., list(channels)], np.float32).transpose(2, 0, 1)
    tile = np.nan_to_num(picked, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(tile.min()), float(tile.max())
    for kind in (np.uint8, np.uint16, np.float16):
        limits = np.iinfo(kind) if np.issubdtype(kind, np.integer) else np.finfo(kind)
        if float(limits.min) <= low and high <= float(limits.max) and np.array_equal(tile.astype(kind), tile):
            return np.ascontiguousarray(tile.astype(kind))
    return np.ascontiguousarray(tile)


def read_statistics(folder) -> dict:
    """Statistics of a prepared folder: bands, mean, std, pixels, slices, kept, left_out. InputError: not there."""
    path = Path(folder) / STATISTICS
    return read_json(path, remedy="prepare the folder again with --force")
