"""Blobs of two large masks, with the mean probability of each: ours beside scipy, scikit-image and cv2, in one run.

The same work is timed for all: both masks labelled (8-connected), the pixels and the mean probability of every
predicted blob, and the shared pixels of every pair of blobs. The others do no more; ours matches the blobs one-to-one
as well. That all found the same is checked: blobs, areas, mean probabilities and, from the pairs, the matches. Seconds
depend on what else the machine does, so the CPU's are given too.

python benchmarks/objects.py [--side 4096] [--threads 2]
"""

import argparse
import sys
import time
from pathlib import Path

import cv2
import numba
import numpy as np
from scipy import ndimage, sparse
from skimage.measure import label as skimage_label
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import Beside, print_table
from common.metrics.objects import OBJECT_IOU, match_objects

LEAST_RATIO = 4  # times as fast as the fastest of the others, by clock or CPU


def made_up(side: int, seed: int = 0):
    """(pred, target bool, prob float32): fields of two noises in common; about 15,000 blobs a side at 4096 px."""
    rng = np.random.default_rng(seed)
    fields = []
    for _ in range(2):
        field = cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), 4)
        fields.append(field / field.std())
    truth, said = fields[0], (fields[0] + 0.5 * fields[1]) / np.sqrt(np.float32(1.25))
    return said > 1.6, truth > 1.6, 1 / (1 + np.exp(np.float32(4.8) - 3 * said))


def by_scipy(mask):
    return ndimage.label(mask, np.ones((3, 3), int))


def by_skimage(mask):
    return skimage_label(mask, connectivity=2, return_num=True)


def by_cv2(mask):
    """cv2's statistics hold the areas, so that they need no bincount."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return labels, count - 1, stats[:, cv2.CC_STAT_AREA].astype(np.int64)


def by_labels(label, pred, target, prob):
    """(area, mean prob) per predicted blob, area per true blob, and (pairs' predicted, true, shared pixels)."""
    said, true = label(pred), label(target)
    areas = [s[2] if len(s) > 2 else np.bincount(s[0].ravel(), minlength=s[1] + 1) for s in (said, true)]
    inside = said[0][pred]
    mean = np.bincount(inside, prob[pred], minlength=said[1] + 1)[1:] / areas[0][1:]
    both = pred & target
    places = said[0][both] - 1, true[0][both] - 1
    shared = sparse.coo_array((np.ones(len(places[0]), np.int32), places), (said[1], true[1])).tocsr().tocoo()
    return areas[0][1:], mean, areas[1][1:], (*shared.coords, shared.data)


def matches_of(area, mean, true_area, pairs) -> list[int]:
    """Matched blobs per IoU limit, by a plain loop over the pairs (not timed)."""
    iou = pairs[2] / (area[pairs[0]] + true_area[pairs[1]] - pairs[2])
    meets = {}
    for p, t, value in zip(pairs[0].tolist(), pairs[1].tolist(), iou.tolist(), strict=True):
        meets.setdefault(p, []).append((-value, t))
    order, counts = np.argsort(-mean, kind="stable").tolist(), []
    for limit in OBJECT_IOU:
        taken = set()
        for p in order:
            free = [(value, t) for value, t in meets.get(p, []) if -value >= limit and t not in taken]
            taken |= {min(free)[1]} if free else set()
        counts.append(len(taken))
    return counts


def timed(work, repeats: int):
    """What `work` gives, its shortest wall-clock and its least CPU milliseconds."""
    wall, cpu = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        result = work()
        wall.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.process_time() - used))
    return result, min(wall), min(cpu)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096, help="pixels of a side of the masks")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads(), help="threads of ours and of cv2")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each; the shortest counts")
    args = parser.parse_args(argv)
    pred, target, prob = made_up(args.side)
    numba.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    match_objects(pred, target, prob)  # compiles
    ours, wall, cpu = timed(lambda: match_objects(pred, target, prob), args.repeats)
    print(f"{args.side}x{args.side}: {ours.n_pred} predicted and {ours.n_target} true blobs, {args.threads} threads")
    print(f"ours: {wall:.1f} ms, {cpu:.1f} ms of CPU, matching at {len(OBJECT_IOU)} limits included")
    others = {"scipy.ndimage": by_scipy, "scikit-image": by_skimage, "cv2 + bincount": by_cv2}
    fastest, rows = [np.inf, np.inf], []
    for name, label in tqdm(others.items(), leave=False):
        found, *theirs = timed(lambda label=label: by_labels(label, pred, target, prob), args.repeats)
        area, mean, true_area, _ = found
        np.testing.assert_array_equal(np.sort(ours.pred_area), np.sort(area))
        np.testing.assert_array_equal(np.sort(ours.target_area), np.sort(true_area))
        np.testing.assert_allclose(ours.pred_score, np.sort(mean)[::-1], rtol=1e-9)
        assert ours.matched.sum(1).tolist() == matches_of(*found) == ours.target_found.sum(1).tolist(), name
        tqdm.write(f"{name}: {theirs[0]:.1f} ms, {theirs[1]:.1f} ms of CPU; the same blobs and matches")
        fastest = np.minimum(fastest, theirs)
        what = f"blobs of two masks of {args.side}x{args.side}"
        rows.append(Beside(what, name, wall, theirs[0], "ms", cpu=(cpu, theirs[1]), note="the same blobs and matches"))
    ratio = f"{fastest[0] / wall:.1f} by the clock, {fastest[1] / cpu:.1f} by CPU time"
    print(f"fastest other / ours: {ratio}; matched {ours.matched.sum(1).tolist()} at {OBJECT_IOU}")
    print_table(rows)
    if args.side >= 4096:  # what is fixed weighs more in small masks
        assert max(fastest[0] / wall, fastest[1] / cpu) >= LEAST_RATIO, "slower than it should be"


if __name__ == "__main__":
    main()
