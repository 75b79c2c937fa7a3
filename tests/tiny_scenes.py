"""Small scenes to be mapped, and runs of a model whose answer is known; infer.py on them, here or in other processes.

As a script: tiny_scenes.py WORDS OF infer.py …, with that model in place of the segmenter.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import tiny_data
import torch
from rasterio.transform import from_origin

from common.engine.checkpoint import save_checkpoint
from common.engine.runs import finish_fold
from common.settings import write_settings
from common.tasks import segmentation
from common.tasks.segmentation_spec import VIEWS

CRS = "EPSG:32608"
PLACE = from_origin(500000.0, 7600000.0, 3, 3)
GROUND, FOUND, EDGE = 60, 140, 100  # red of the ground and of what is to be found; where the probability is .5
SPEC = {"task": "rts", "family": "segmentation", "outputs": ["background", "slump"], "bands": ["red", "green", "blue"],
        "inputs": ["red", "green", "blue"], "scaling": {"scale": "raw", "indices": [], "texture": None},
        "label_map": {"0": 0, "1": 1, "255": 255}, "views": VIEWS}  # fmt: skip
POST = {"temperature": 1.0, "threshold": 0.5, "balanced": 0.5, "ratio": 200.0, "min_blob": 0,
        "ratios": {"200": {"threshold": 0.5}, "500": {"threshold": 0.999}}}  # fmt: skip
WORDS = ("--task", "rts", "--device-type", "cpu", "--amp", "off", "--window", "64", "--batch-size", "4")


class Known(torch.nn.Module):
    """Logit of the class: gain times the standardised red, and `context` times its mean over what is seen.

    Each call adds a byte to the file STUB_LOG and takes STUB_SLEEP seconds.
    """

    head = "softmax"

    def __init__(self, gain: float, context: float):
        super().__init__()
        self.gain, self.context = torch.nn.Parameter(torch.tensor(gain)), context

    def forward(self, image):
        if "STUB_LOG" in os.environ:
            with open(os.environ["STUB_LOG"], "a") as file:
                file.write(".")
        time.sleep(float(os.environ.get("STUB_SLEEP", 0)))
        red = image[:, 0]
        logit = self.gain * red + self.context * red.mean(dim=(1, 2), keepdim=True)
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


def save_run(home: Path, name: str, folds: list[dict], *, post: dict | None = POST, net=None) -> Path:
    """runs/<name>/ with a checkpoint per fold: {"gain", "context", "mean", "std"} of Known, by default 2, 0, EDGE, 10.

    net: a state dict and its spec["model"] instead of Known's.
    """
    run = home / "runs" / name
    for fold, own in enumerate(folds):
        own = {"gain": 2.0, "context": 0.0, "mean": EDGE, "std": 10.0} | own
        model = {"gain": own["gain"], "context": own["context"]}
        state, model = net or (Known(**model).state_dict(), model)
        spec = SPEC | {"model": model, "mean": [own["mean"]] * 3, "std": [own["std"]] * 3}
        settings = {"task": "rts", "use": "last", "batch_size": 4, "data": "."}
        folder = run / f"fold{fold}"
        folder.mkdir(parents=True)
        content = {"spec": spec, "args": settings, "state_dict": state, "ema": None, "folds_hash": "x"}
        save_checkpoint(folder / "last.pt", content)
        write_settings(folder / "args.yaml", settings)
        finish_fold(folder, {})
    numbers = [*range(len(folds)), -2]  # a row that is always trained on
    ids = [f"t{fold}" for fold in numbers]
    pd.DataFrame({"id": ids, "fold": numbers, "group": ids}).to_csv(run / "folds.csv", index=False)
    if post is not None:
        (run / "post.json").write_text(json.dumps(post))
    return run


def write_scene(path: Path, tile, *, names=("red", "green", "blue"), crs=CRS, place=PLACE, **profile) -> Path:
    """A GeoTIFF of a tile (C,H,W) in compressed blocks of 64."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", **profile}
    with rasterio.open(path, "w", driver="GTiff", count=len(tile), height=tile.shape[1], width=tile.shape[2],
                       dtype=tile.dtype, crs=crs, transform=place, **profile) as file:  # fmt: skip
        file.descriptions = names
        file.write(tile)
    return path


def draw_scene(height=200, width=230, *, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 (3,H,W), bool (H,W) of what is to be found): three blobs, one across four windows of 64, and no data in
    the lower right corner."""
    rng = np.random.default_rng(seed)
    true = np.zeros((height, width), bool)
    true[50:90, 40:80], true[60:70, 55:60] = True, False  # across rows and columns 64, with a hole
    true[120:124, 150:160] = True
    true[90:92, 45:70] = True
    true[10, min(200, width - 5)] = True
    tile = rng.integers(1, 30, (3, height, width)).astype(np.uint8)
    tile[0] = np.where(true, FOUND, GROUND) + rng.integers(-15, 16, (height, width))
    tile[:, 150:, 190:] = 0
    true[150:, 190:] = False
    return tile, true


def infer(home: Path, *words, code: int = 0) -> None:
    """infer.py in this process in the folder `home`, which must end with this exit code."""
    done = tiny_data.call("infer", *WORDS, *words, cwd=home)
    assert done == code, f"infer.py ended with {done}, not {code}"


def main():  # the repository is on PYTHONPATH
    import infer
    from common.errors import run_script

    segmentation.Segmenter = Known
    sys.exit(run_script(infer.main, [*WORDS, *sys.argv[1:]]))


if __name__ == "__main__":
    main()
