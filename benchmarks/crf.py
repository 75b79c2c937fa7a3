"""Dense CRF beside pydensecrf2 in one process: milliseconds of 512x512 pixels, and the labels that agree.

Runs alternate, so that other load on the machine hits both. "first" is an image whose size was not seen before, "later"
one whose lattice of positions is kept; machine code is made before either (its time is said once). Times and
ratios are medians over the runs; CPU time is that of all threads. pydensecrf2 has one thread. The guides are smooth,
textured or noisy: of the vertices that a guide scatters pixels over comes most of the work. --large does nothing but
refine an image of that side by overlapping tiles, and states the memory and what differs along the borders of tiles.

python benchmarks/crf.py [--bands 3 5] [--classes 2 3 4 5] [--iterations 5 10] [--large 4096]
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import cv2
import numba
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import Beside, print_table
from common.post import crf, permutohedral

OVERLAP = 100  # pixels: what refine_large takes for its default widths
GUIDES = {"smooth": (8, 0), "textured": (30, 0), "noisy": (30, 4)}  # grey levels: of the structure, of the noise


def field(rng, side: int, scale: float) -> np.ndarray:
    """float32 (side, side) of standard deviation 1, smooth over `scale` pixels; drawn coarsely where that is enough."""
    step = max(1, int(scale // 4))
    coarse = rng.normal(size=(side // step + 2, side // step + 2)).astype(np.float32)
    drawn = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), scale / step), (side, side), interpolation=cv2.INTER_CUBIC)
    return drawn / drawn.std()


def picture(side: int, bands: int, classes: int, kind: str, seed: int = 0):
    """prob float32 (K, side, side) and guide float32 (C, side, side) of whole grey levels."""
    rng, (structure, noise) = np.random.default_rng(seed), GUIDES[kind]
    guide = np.empty((bands, side, side), np.float32)
    for band in guide:
        band[:] = 128 + structure * (field(rng, side, 32) + 0.7 * field(rng, side, 12))
        band += noise * rng.standard_normal(band.shape, np.float32)
    logits = np.stack([2 * field(rng, side, 20) for _ in range(classes)])
    logits += rng.standard_normal(logits.shape, np.float32)
    prob = np.exp(logits, out=logits)
    prob /= prob.sum(0)
    return prob, np.clip(guide, 0, 255, out=guide).round()


def by_pydensecrf(prob, guide, iterations: int) -> np.ndarray:
    """The same settings, from the same arrays."""
    import pydensecrf.densecrf as densecrf
    from pydensecrf.utils import create_pairwise_bilateral, unary_from_softmax

    classes, height, width = prob.shape
    model = densecrf.DenseCRF2D(width, height, classes)
    model.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(prob)))
    model.addPairwiseGaussian(sxy=5, compat=5)
    image = np.ascontiguousarray(guide.transpose(1, 2, 0))
    if len(guide) == 3:
        model.addPairwiseBilateral(sxy=5, srgb=3, rgbim=image.astype(np.uint8), compat=15)
    else:
        features = create_pairwise_bilateral((5, 5), [3] * len(guide), image, 2)
        model.addPairwiseEnergy(np.ascontiguousarray(features), compat=15)
    return np.array(model.inference(iterations)).reshape(prob.shape)


def timed(work):
    """What `work` gives, its wall-clock and its CPU milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)


def compare(side, bands, classes, iterations, kind, repeats) -> Beside:
    """A line of the table."""
    runs = {"first": [], "later": [], "theirs": []}
    agreed = []
    for seed in range(repeats):
        prob, guide = picture(side, bands, classes, kind, seed)
        crf._position_lattice.cache_clear()
        ours = None
        for name in ("first", "later"):
            ours, *spent = timed(lambda p=prob, g=guide: crf.refine(p, g, iterations=iterations))
            runs[name].append(spent)
        theirs, *spent = timed(lambda p=prob, g=guide: by_pydensecrf(p, g, iterations))
        runs["theirs"].append(spent)
        agreed.append((ours.argmax(0) == theirs.argmax(0)).mean())
    told = {name: [statistics.median(run[part] for run in of) for part in (0, 1)] for name, of in runs.items()}
    ratio = {
        name: [
            statistics.median(b[part] / a[part] for a, b in zip(runs[name], runs["theirs"], strict=True))
            for part in (0, 1)
        ]
        for name in ("first", "later")
    }
    first = f"first of its size {told['first'][0]:.0f} ms, {ratio['first'][0]:.2f} times"
    return Beside(
        what=f"{kind}, {bands} bands, {classes} classes, {iterations} iterations",
        beside="pydensecrf2",
        ours=told["later"][0],
        theirs=told["theirs"][0],
        unit="ms",
        ratio=ratio["later"][0],
        cpu_ratio=ratio["later"][1],
        note=f"{first}; {100 * min(agreed):.3f} % of labels agree",
    )


def peak() -> float:
    """Largest memory this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def large(side: int, bands: int, classes: int, kind: str, tile: int) -> None:
    """An image of that side by tiles; the tile borders are compared with a second cut of the image that has others."""
    prob, guide = picture(side, bands, classes, kind)
    held, begun = peak(), time.perf_counter()
    labels = np.empty((2, side, side), np.uint8)

    def cut(array):
        return lambda y, x, h, w: array[:, y : y + h, x : x + w]

    for i, size in enumerate((tile, tile * 3 // 4)):
        for y, strip in crf.refine_large(cut(prob), cut(guide), None, side, side, tile=size, overlap=OVERLAP):
            labels[i, y : y + strip.shape[1]] = strip.argmax(0)
        if i == 0:
            spent, above = time.perf_counter() - begun, peak() - held
    told = f"{side}x{side}, {bands} bands, {classes} classes, {kind}, tiles of {tile} that overlap by {OVERLAP}"
    print(f"{told}: {spent:.1f} s, {above:.0f} MB above the {held:.0f} MB that the process held with the whole input")
    changed = labels[0] != labels[1]
    near = np.zeros(side, bool)
    cuts = crf._cuts(side, tile - OVERLAP)[1:-1]
    for each in cuts:
        near[each - 4 : each + 4] = True
    border = near[:, None] | near
    told = f"{100 * changed.mean():.5f} % of all, {100 * changed[border].mean():.5f} % within 4 pixels of a border"
    print(f"labels that differ from those of tiles of {tile * 3 // 4}: {told}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bands", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--iterations", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--guides", nargs="+", choices=sorted(GUIDES), default=["smooth", "textured"])
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--repeats", type=int, default=3, help="images of each kind")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads())
    parser.add_argument(
        "--large", type=int, help="only map an image of this side by tiles, with the first of each list"
    )
    parser.add_argument("--tile", type=int, default=1024)
    args = parser.parse_args(argv)
    numba.set_num_threads(args.threads)
    if args.large:
        return large(args.large, args.bands[0], args.classes[0], args.guides[0], args.tile)
    rows, count = [], len(args.bands) * len(args.classes) * len(args.guides) * len(args.iterations)
    progress = tqdm(total=count, leave=False)
    for bands in args.bands:
        for classes in args.classes:
            prob, guide = picture(64, bands, classes, "smooth")
            _, spent, _ = timed(lambda p=prob, g=guide: crf.refine(p, g))
            print(f"machine code for {bands} bands and {classes} classes: {spent:.0f} ms", flush=True)
            for kind in args.guides:
                for iterations in args.iterations:
                    rows.append(compare(args.side, bands, classes, iterations, kind, args.repeats))
                    progress.update()
    progress.close()
    print(f"{args.side}x{args.side}, {args.threads} threads, medians of {args.repeats} images, strips of "
          f"{permutohedral.STRIP} pixels")  # fmt: skip
    print_table(rows)


if __name__ == "__main__":
    main()
