"""A few small tiles in the glacier competition's form, HKH slices, and the scripts called on them in this process.

As a script, started by torchrun: tiny_tiles.py FILE, a JSON list of train.py's arguments, one list a training, of
models whose batch norm is replaced (two processes equal one only without it).
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import rasterio
import tiny_data
import torch
from rasterio.transform import from_origin
from torch import nn

BANDS = {"Band1": "B2", "Band2": "B3", "Band3": "B4", "Band4": "B6", "Band5": "B10"}
VALUES = {1: (0, 255, 0, 0), 2: (0, 85, 170, 255)}  # raw label of background, glacier, debris, lake
LEVELS = np.array([[9, 21, 11, 15], [9, 22, 12, 17], [10, 22, 13, 14], [12, 3, 11, 5], [26, 17, 23, 19]]) * 1e3
CHANNELS = 15
# a model and crops so small that an epoch takes a tenth of a second
SMALL = ("--task", "glacier", "--encoder", "tu-test_efficientnet", "--decoder", "32", "16", "16", "--crop", "32",
         "--crops-per-epoch", "8", "--batch-size", "4", "--workers", "0", "--device-type", "cpu", "--samples-every",
         "0")  # fmt: skip
QUICK = (*SMALL, "--epochs", "2")


def draw_classes(rng, height: int, width: int) -> np.ndarray:
    """uint8 (H,W) of classes: every tile has a glacier, debris at its lower end and a small lake."""
    field = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 5)
    classes = (field > np.quantile(field, 0.6)).astype(np.uint8)
    top, left = rng.integers(4, height - 24), rng.integers(20, width - 24)
    classes[top : top + 14, left : left + 18] = 2
    classes[top + 15 : top + 20, left : left + 6] = 3
    return classes


def draw_tile(rng, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(raw bands float32 (5,H,W), classes (H,W)): no data on the left, a few zeros in the thermal band alone."""
    classes = draw_classes(rng, height, width)
    tile = LEVELS[:, classes] + rng.normal(scale=1500, size=(5, height, width))
    tile = np.clip(np.round(tile), 1, 65455).astype(np.float32)
    tile[4][rng.random((height, width)) < 0.01] = 0
    empty = int(rng.integers(4, 16))
    tile[:, :, :empty], classes[:, :empty] = 0, 0
    return tile, classes


def write_band(path: Path, values: np.ndarray, corner: tuple[float, float]) -> None:
    """One (H,W) GeoTIFF, EPSG:32643, 30 m, nodata 0; corner: x and y of its upper left in metres."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "height": values.shape[0], "width": values.shape[1], "count": 1, "nodata": 0}
    profile |= {"dtype": values.dtype, "crs": "EPSG:32643", "transform": from_origin(*corner, 30, 30)}
    with rasterio.open(path, "w", **profile) as file:
        file.write(values, 1)


def write_tile(folder: Path, name: str, tile, classes, corner, values) -> None:
    """The five bands of a tile, and its label where values are given; name: RR_CC or imgNNN."""
    plain = name.startswith("img")
    for band, (inner, short) in zip(tile, BANDS.items(), strict=True):
        write_band(folder / inner / f"{'' if plain else f'{short}_{short}_masked_'}{name}.tif", band, corner)
    if values is not None:
        label = np.array(values, np.float32)[classes]
        write_band(folder / "label" / f"{'' if plain else 'Y_output_resized_'}{name}.tif", label, corner)


def make_tiles(folder: Path, *, tiles=8, size=64, phase=2, naming="RR_CC", seed=0) -> Path:
    """Train/ (a mosaic of two rows) and Test/ with a tile of either naming style, img001 of another shape.

    phase: 2 (labels 0 85 170 255) or 1 (0 255); naming: of the training tiles, RR_CC or img.
    """
    rng = np.random.default_rng(seed)
    for k in range(tiles):
        row, col = k % 2, k // 2
        corner = (570000.0 + 30 * size * col, 3770000.0 - 30 * size * row)
        name = f"{row + 2:02d}_{col + 7:02d}" if naming == "RR_CC" else f"img{k + 1:03d}"
        write_tile(folder / "Train", name, *draw_tile(rng, size, size), corner, VALUES[phase])
    for name, shape, corner in (("09_08", (size, size), (700000.0, 3.6e6)), ("img001", (48, 72), (800000.0, 3.5e6))):
        write_tile(folder / "Test", name, *draw_tile(rng, *shape), corner, None)
    return folder


def make_slices(folder: Path, *, scenes=3, slices=2, size=64, seed=0) -> Path:
    """HKH slices (H,W,15) float32 and masks (H,W,3) uint8, and one slice with too little glacier to be kept."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for scene in range(scenes):
        for k in range(slices + (scene == 0)):
            tile, classes = draw_tile(rng, size, size)
            if k == slices:
                classes[:] = 0
            image = np.zeros((size, size, CHANNELS), np.float32)
            image[..., [0, 1, 2, 4, 5]] = np.round(tile / 257).transpose(1, 2, 0)
            image[..., 3], image[..., 10] = image[..., 2] * 0.9, np.nan
            masks = np.stack([(classes > 0) & (classes < 3), classes == 1, classes == 2], -1).astype(np.uint8)
            np.save(folder / f"slice_S{scene}_img_{k}.npy", image)
            np.save(folder / f"slice_S{scene}_mask_{k}.npy", masks)
    return folder


def call(home: Path, script: str, *words, code: int = 0) -> None:
    """A script in the folder `home`, which must end with this exit code."""
    done = tiny_data.call(script, *words, cwd=home)
    assert done == code, f"{script}.py ended with {done}, not {code}"


def train(home: Path, *words, run: str, data="data", base=QUICK) -> Path:
    """train.py with small settings; the run folder."""
    call(home, "train", "--data", data, *base, *words, "--run", run)
    return home / "runs" / run


def first_steps(home: Path, data: Path, given: tuple) -> Callable:
    """look(words, capsys) -> loss and gradient norm of the first step, as train.py --check prints them, of the settings
    `given` and these words on a folder of data with folds; home: an empty folder to be called in."""
    seen = {}
    (home / "data").symlink_to(data)

    def look(words: tuple, capsys) -> str:
        if words not in seen:
            torch.manual_seed(0)
            capsys.readouterr()
            call(home, "train", "--data", "data", *given, "--fold", "0", "--check", *words)
            seen[words] = re.search(r"one step: (.*);", capsys.readouterr().out).group(1)
        return seen[words]

    return look


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_batch_norm(module: nn.Module) -> nn.Module:
    """The model with a group norm in place of every batch norm."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(1, child.num_features)
            setattr(module, name, nn.Sequential(norm, child.act) if hasattr(child, "act") else norm)
        else:
            without_batch_norm(child)
    return module


def patch_models(replace=setattr) -> None:
    """From now on Segmenters are built without batch norm; replace: a monkeypatch's setattr undoes it."""
    from common.models import segmenter

    build = segmenter.build_net
    replace(segmenter, "build_net", lambda *words, **more: without_batch_norm(build(*words, **more)))


def train_all(home: Path, runs: list) -> int:
    """tiny_data's, of models without batch norm."""
    patch_models()
    return tiny_data.train_all(home, runs)
