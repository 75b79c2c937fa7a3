"""Photos a second of the stereo loader with decoded halves in a cache, against decoding the JPEGs every time.

    python benchmarks/loader.py --data DIR        # a biomass folder; without it photos are made
Both sides run in one process, in turn, with the same augmentation, seed, worker count and outputs (which are compared);
the ratio is the median over the repeats. The second size is one where decoding matters less: it is only stated.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.side_by_side import Beside, print_table
from common.datasets.stereo import StereoDataset, collate, init_worker
from common.datasets.transforms import StereoAugment
from common.errors import InputError, run_script

OUTPUTS = ("mass",)
QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 85]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WANTED = {504: 3.5, 1036: None}  # 2x2 cells of 252 and of 518 pixels


class Order:
    """Batches of (epoch, index) for one epoch; the plain stand-in of the project's sampler."""

    def __init__(self, count: int, batch_size: int, epoch: int):
        self.count, self.batch_size, self.epoch = count, batch_size, epoch

    def __iter__(self):
        for start in range(0, self.count, self.batch_size):
            yield [(self.epoch, i) for i in range(start, min(start + self.batch_size, self.count))]

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)


def make_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs of 2000x1000 with texture at all scales, about as large on disk as the real ones (.8 MB)."""
    draws = np.random.default_rng(0)
    paths = [folder / f"ID{i:04d}.jpg" for i in range(count)]
    for path in paths:
        photo = np.zeros((1000, 2000, 3), np.float32)
        for scale, weight in ((1, 14), (4, 22), (16, 28)):
            shape = (1000 // scale + 1, 2000 // scale + 1, 3)
            layer = draws.standard_normal(shape, np.float32) * weight
            photo += cv2.resize(layer, (2000, 1000), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(path), np.clip(photo + (60, 130, 110), 0, 255).astype(np.uint8), QUALITY)
    return paths


def find_photos(data: Path, count: int) -> list[Path]:
    paths = sorted(data.glob("train/*.jpg"))[:count]
    if not paths:
        raise InputError(f"--data {data}: no train/*.jpg there; give the folder that holds train.csv")
    return paths


def dataset(paths: list[Path], side: int, cache: Path | None) -> StereoDataset:
    rows = pd.DataFrame({"id": [p.stem for p in paths], "path": [str(p) for p in paths], "mass": 1.0})
    augment = StereoAugment(seed=0)
    return StereoDataset(
        rows, outputs=OUTPUTS, size=(side, side), mean=MEAN, std=STD, augment=augment, swap_prob=0.5, cache=cache
    )


def start_epochs(data: StereoDataset, workers: int, batch_size: int, epochs: int):
    """Iterator over all batches of several epochs in one loader, so that starting a worker is not timed."""
    order = [batch for epoch in range(epochs) for batch in Order(len(data), batch_size, epoch)]
    return iter(
        DataLoader(data, batch_sampler=order, num_workers=workers, collate_fn=collate, worker_init_fn=init_worker)
    )


def timed(batches, count: int) -> tuple[float, list[float]]:
    """Seconds for the next `count` batches, and a mean of each to compare the two sides by."""
    start, means = time.perf_counter(), []
    for _ in range(count):
        means.append(next(batches)["image"][:, :, :, ::16, ::16].mean().item())
    return time.perf_counter() - start, means


def compare(paths: list[Path], side: int, *, workers: int, batch_size: int, repeats: int, cache: Path) -> dict:
    """Median samples a second of both sides and the median ratio; each repeat is an epoch of both, in turn."""
    per_epoch = len(Order(len(paths), batch_size, 0))
    found = {"plain": [], "cached": []}
    for repeat in range(repeats):
        means = {}
        for name, folder in (("plain", None), ("cached", cache)):
            # One loader at a time: a second one would prefetch on the cores of the first.
            batches = start_epochs(dataset(paths, side, folder), workers, batch_size, 2)
            timed(batches, per_epoch // 2)
            seconds, means[name] = timed(batches, per_epoch)
            found[name].append(min(per_epoch * batch_size, len(paths)) / seconds)
            del batches
        if means["plain"] != means["cached"]:
            raise SystemExit(f"repeat {repeat}: the two loaders do not give the same pictures")
    ratio = float(np.median(np.divide(found["cached"], found["plain"])))
    return {"plain": float(np.median(found["plain"])), "cached": float(np.median(found["cached"])), "ratio": ratio}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/*.jpg; photos are made where it is not given")
    parser.add_argument("--photos", type=int, default=64, help="how many photos make an epoch")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", type=int, nargs="+", default=list(WANTED), help="pixels of a half")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    failed, rows = False, []
    with tempfile.TemporaryDirectory() as folder:
        paths = find_photos(args.data, args.photos) if args.data else make_photos(Path(folder), args.photos)
        size = np.mean([p.stat().st_size for p in paths]) / 1e6
        print(f"{len(paths)} photos of {size:.2f} MB, {args.workers} worker(s), batches of {args.batch_size}")
        for side in args.sides:
            found = compare(
                paths,
                side,
                workers=args.workers,
                batch_size=args.batch_size,
                repeats=args.repeats,
                cache=Path(folder) / "cache",
            )
            wanted = WANTED.get(side)
            missed = wanted is not None and found["ratio"] < wanted
            failed |= missed
            ours, theirs = (1000 / found[name] for name in ("cached", "plain"))  # ms a sample
            what, beside = f"a pair of {side}x{side}, augmented", "cv2.imread in every epoch"
            rows.append(Beside(what, beside, ours, theirs, "ms", ratio=found["ratio"]))
            verdict = "stated only" if wanted is None else f"wanted {wanted}: {'MISSED' if missed else 'met'}"
            print(
                f"halves of {side}x{side}: plain {found['plain']:.1f}, cached {found['cached']:.1f} samples/s,"
                f" ratio {found['ratio']:.2f} ({verdict})"
            )
    print_table(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
