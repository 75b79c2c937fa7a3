"""Texture of a band beside scikit-image's loop over windows: seconds for contrast and energy of 512x512 pixels.

Both run on one thread in one process. scikit-image takes most of a minute for the band, so only a strip of its rows is
timed and scaled up by default (said in the output); --full times them all. The values of those rows are compared.

python benchmarks/texture.py [--band B6.tif] [--levels 32] [--window 7] [--full]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import tifffile
from skimage.feature import graycomatrix, graycoprops
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import Beside, print_table
from common.datasets.texture import ANGLES, LEVELS, WINDOWS, glcm, quantise

PROPERTIES = ("contrast", "energy")
SIDE = 512


def made_up(seed: int = 0) -> np.ndarray:
    """A band with structure at every scale, in digital numbers."""
    rng = np.random.default_rng(seed)
    parts = [cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), scale) for scale in (1, 4, 16, 64)]
    return (7000 + 1500 * sum(part / part.std() for part in parts)).astype(np.float32)


def timed(work):
    """What `work` gives, its wall-clock and its CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def by_scikit_image(grey: np.ndarray, rows: int, window: int, levels: int) -> np.ndarray:
    """(2, rows, W) from grey levels padded by half a window."""
    angles, result = np.deg2rad(ANGLES), np.zeros((len(PROPERTIES), rows, grey.shape[1] - window + 1))
    for y in tqdm(range(rows), desc="scikit-image", leave=False):
        for x in range(result.shape[2]):
            matrix = graycomatrix(
                grey[y : y + window, x : x + window], [1], angles, levels, symmetric=True, normed=True
            )
            result[:, y, x] = [graycoprops(matrix, name).mean() for name in PROPERTIES]
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--band", type=Path, help="GeoTIFF of one band (default: a made-up one)")
    parser.add_argument("--levels", type=int, choices=LEVELS, default=32)
    parser.add_argument("--window", type=int, choices=WINDOWS, default=7)
    parser.add_argument("--rows", type=int, default=8, help="rows that scikit-image is timed on")
    parser.add_argument("--repeats", type=int, default=7, help="runs of ours; the median counts")
    parser.add_argument("--full", action="store_true", help="time scikit-image on every row")
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    band = made_up() if args.band is None else tifffile.imread(args.band).squeeze().astype(np.float32)
    low, high = np.percentile(band[band != 0], [1, 99])
    settings = {"low": low, "high": high, "properties": PROPERTIES, "levels": args.levels, "window": args.window}
    glcm(band, **settings)  # compiles
    runs = [timed(lambda: glcm(band, **settings)) for _ in range(args.repeats)]
    wall, cpu = (statistics.median(run[part] for run in runs) for part in (1, 2))
    rows = band.shape[0] if args.full else min(args.rows, band.shape[0])
    grey = np.pad(quantise(band, low, high, args.levels), args.window // 2, mode="reflect")
    theirs, their_wall, their_cpu = timed(lambda: by_scikit_image(grey, rows, args.window, args.levels))
    scale = band.shape[0] / rows
    how = "all rows timed" if args.full else f"{rows} of {band.shape[0]} rows timed, scaled up"
    told = f"{args.window} px window, {args.levels} grey levels, {len(ANGLES)} directions"
    print(f"{args.band or 'made-up band'}, {band.shape[0]}x{band.shape[1]}: {' and '.join(PROPERTIES)}, {told}")
    print(f"scikit-image: {their_wall * scale:.1f} s, {their_cpu * scale:.1f} s of CPU ({how})")
    print(f"ours: {wall * 1000:.1f} ms, {cpu * 1000:.1f} ms of CPU (median of {args.repeats})")
    print(f"ratio: {their_wall * scale / wall:.0f} by the clock, {their_cpu * scale / cpu:.0f} by CPU time")
    difference = np.abs(runs[0][0][:, :rows] - theirs) / np.maximum(1, np.abs(theirs))
    print(f"largest difference on those rows: {difference.max():.1e} (relative above 1)")
    print_table([Beside(f"{' and '.join(PROPERTIES)} of {band.shape[0]}x{band.shape[1]}", "scikit-image", 1000 * wall,
                        1000 * their_wall * scale, "ms", cpu=(cpu, their_cpu * scale),
                        note=f"{how}; difference {difference.max():.1e}")])  # fmt: skip


if __name__ == "__main__":
    main()
