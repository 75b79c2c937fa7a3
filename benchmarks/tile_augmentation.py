"""Augmentation of a five-band tile beside the same transforms of albumentations in a Compose, one thread.

Ours composes all warps and interpolates the tile once; albumentations interpolates image and masks once per warp.

python benchmarks/tile_augmentation.py [--side 512] [--repeats 40]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import albumentations as A
import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import Beside, print_table
from common.datasets.tile_transforms import TileAugment

WARPS = ("affine", "elastic", "grid", "optical")


def milliseconds(work, repeats: int) -> float:
    work(0)
    times = []
    for index in range(1, repeats + 1):
        start = time.perf_counter()
        work(index)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def theirs(names) -> A.Compose:
    made = {
        "affine": A.Affine(scale=(0.8, 1.2), translate_percent=(-0.06, 0.06), rotate=(-45, 45), p=1),
        "elastic": A.ElasticTransform(alpha=120, sigma=16, p=1),
        "grid": A.GridDistortion(num_steps=5, distort_limit=(-0.3, 0.3), p=1),
        "optical": A.OpticalDistortion(distort_limit=(-0.3, 0.3), p=1),
    }
    return A.Compose([made[name] for name in names], seed=0)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="of the tile, pixels")
    parser.add_argument("--repeats", type=int, default=40, help="samples; the median counts")
    args = parser.parse_args(argv)
    cv2.setNumThreads(0)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(5, args.side, args.side)).astype(np.float32)
    target = rng.integers(0, 4, image.shape[1:]).astype(np.uint8)
    valid = np.ones(image.shape[1:], bool)
    last = np.ascontiguousarray(image.transpose(1, 2, 0))
    print(f"{args.side}x{args.side}, 5 bands, target and validity mask, median of {args.repeats} samples")
    rows = []
    for names in [*((name,) for name in WARPS), WARPS]:
        ours = TileAugment(dict.fromkeys(names, 1.0), seed=0)
        compose = theirs(names)
        mine = milliseconds(lambda index, f=ours: f(image, target, valid, epoch=0, index=index), args.repeats)
        other = milliseconds(lambda _, f=compose: f(image=last, masks=[target, valid.astype(np.uint8)]), args.repeats)
        rows.append(Beside(" + ".join(names), "albumentations", mine, other, "ms"))
    print_table(rows)


if __name__ == "__main__":
    main()
