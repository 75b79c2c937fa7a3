"""A competition folder of a few small photos, and the scripts called in this process as a shell would call them."""

import contextlib
import importlib
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from common.errors import run_script

OUTPUTS = ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g")
SPECIES = ("Ryegrass_Clover", "Lucerne", "Phalaris_Clover")
STATES = ("NSW", "Tas", "Vic", "WA")
# a model and photos so small that an epoch takes a quarter of a second
SMALL = ("--photo-size", "0", "0", "--weights", "none", "--backbone", "test_vit", "--cell-size", "32", "--grid", "1",
         "1", "--workers", "0", "--batch-size", "4", "--device-type", "cpu", "--samples-every", "0")  # fmt: skip
QUICK = (*SMALL, "--epochs", "2", "--no-two-stage", "--lr", "1e-3", "--backbone-lr", "1e-4")


def photo(rng, green: float, dead: float, size: tuple[int, int]) -> np.ndarray:
    """Noise whose green and red channels rise with the masses: there is something to learn."""
    grey = rng.integers(0, 60, (*size, 3))
    grey[..., 1] += int(2 * green)
    grey[..., 2] += int(2 * dead)
    return np.clip(grey, 0, 255).astype(np.uint8)


def make_tiny(folder: Path, *, photos: int = 18, groups: int = 6, tests: int = 3, size=(64, 128), seed=0) -> Path:
    """train.csv, test.csv, sample_submission.csv and their photos (H, W) in the competition's form."""
    rng = np.random.default_rng(seed)
    lines, asked = [], []
    for kind, count in (("train", photos), ("test", tests)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            name, group = f"ID{100 + k + 1000 * (kind == 'test')}", k % groups
            green, dead, clover = rng.uniform(2, 60), rng.uniform(0, 40) * (k % 5 > 0), rng.uniform(0, 20) * (k % 3 > 0)
            masses = (green, dead, clover, green + clover, green + clover + dead)
            cv2.imwrite(str(folder / kind / f"{name}.jpg"), photo(rng, green, dead, size))
            for output, mass in zip(OUTPUTS, masses, strict=True):
                asked.append((kind, f"{name}__{output}", f"{kind}/{name}.jpg", output))
                facts = (f"2015/{1 + group % 3 + 3}/{4 + group}", STATES[group % 4], SPECIES[group % 3], 0.5, 4.0)
                lines.append((*asked[-1], *facts, round(mass, 4)))
    columns = ["kind", "sample_id", "image_path", "target_name", "Sampling_Date", "State", "Species", "Pre_GSHH_NDVI",
               "Height_Ave_cm", "target"]  # fmt: skip
    table = pd.DataFrame(lines, columns=columns)
    order = ["sample_id", "image_path", *columns[4:9], "target_name", "target"]
    table[table["kind"] == "train"][order].to_csv(folder / "train.csv", index=False)
    wanted = table[table["kind"] == "test"]
    wanted[["sample_id", "image_path", "target_name"]].to_csv(folder / "test.csv", index=False)
    wanted[["sample_id"]].assign(target=0.0).to_csv(folder / "sample_submission.csv", index=False)
    return folder


@contextlib.contextmanager
def inside(folder: Path):
    """The working folder for a while: runs/, cache/ and preds/ are relative to it."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def call(script: str, *argv, cwd: Path) -> int:
    """Exit code of a script's main(argv) in the folder, as `python script.py …` would end."""
    with inside(cwd):
        return run_script(importlib.import_module(script).main, [str(word) for word in argv])


def train(cwd: Path, *argv, data="data", base=QUICK) -> Path:
    """train.py on the folder's data with small settings; the run folder. AssertionError where it fails."""
    code = call("train", "--data", data, *base, *argv, cwd=cwd)
    assert code == 0, f"train.py ended with {code}"
    words = [str(word) for word in argv]
    return cwd / "runs" / (words[words.index("--run") + 1] if "--run" in words else "biomass-1x1-s42")


def train_all(home: Path, runs: list) -> int:
    """Several trainings in one process group; in a process that is to end with them."""
    import train
    from common.engine import device as devices

    os.chdir(home)
    stop, devices.stop_processes = devices.stop_processes, lambda: None
    for argv in runs:
        train.main(list(map(str, argv)))
    stop()
    return 0
