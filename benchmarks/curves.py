"""Average precision of a rare class from many logits: ours beside scikit-learn's, seconds and memory, in one run.

Each runs in a process of its own; memory is the largest resident set over what the input alone takes. Seconds depend on
what else the machine does, so the CPU's are given too.

python benchmarks/curves.py [--pixels 100000000 | --small] [--threads 2]
"""

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import Beside, print_table
from common.metrics.curves import average_precision, logit_histogram

FULL, LEAST_RATIO, MOST_MB = 100_000_000, 200, 100  # what is held to: times as fast by clock or CPU, memory


def made_up(pixels: int, share: float):
    """(float32 logits, bool truth), drawn piece by piece so that drawing takes no memory beyond the result."""
    logits, target = np.empty(pixels, np.float32), np.empty(pixels, bool)
    rng = np.random.default_rng(0)
    for start in range(0, pixels, 1 << 16):
        part = slice(start, min(start + (1 << 16), pixels))
        target[part] = rng.random(part.stop - start, np.float32) < share
        logits[part] = 2 * rng.standard_normal(part.stop - start, np.float32) - 7 + 5 * target[part]
    return logits, target


def ours(logits, target) -> float:
    return average_precision(logit_histogram(logits, target))


def by_scikit_learn(logits, target) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(target, logits))


def peak() -> float:
    """Largest resident set of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform != "darwin" else 1024) / 1024


def measure(name: str, pixels: int, share: float, threads: int, repeats: int, answers) -> None:
    """Puts (average precision, shortest seconds, least seconds of CPU, MB beyond the input) into the queue."""
    import numba

    numba.set_num_threads(threads)
    work = {"ours": ours, "scikit-learn": by_scikit_learn}[name]
    work(*made_up(10_000, 0.1))  # compiles and imports
    logits, target = made_up(pixels, share)
    before, seconds, cpu = peak(), [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        value = work(logits, target)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    answers.put((value, min(seconds), min(cpu), peak() - before))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=100_000_000, help="scikit-learn takes half a minute for 1e8")
    parser.add_argument("--small", action="store_true", help="ten million pixels")
    parser.add_argument("--share", type=float, default=0.001, help="share of positives")
    parser.add_argument("--threads", type=int, default=2, help="threads of ours; scikit-learn's sorting uses one")
    args = parser.parse_args(argv)
    pixels, found = 10_000_000 if args.small else args.pixels, {}
    context = multiprocessing.get_context("spawn")
    for name, repeats in (("ours", 7), ("scikit-learn", 1)):
        answers = context.Queue()
        process = context.Process(target=measure, args=(name, pixels, args.share, args.threads, repeats, answers))
        process.start()
        found[name] = value, seconds, cpu, memory = answers.get()
        process.join()
        told = f"shortest of {repeats} runs" if repeats > 1 else "one run"
        times = f"{seconds:.3f} s, {cpu:.3f} s of CPU ({told})"
        print(f"{name}: {value:.7f}, {times}, {memory:.0f} MB beyond the input", flush=True)
    theirs, mine = found["scikit-learn"], found["ours"]
    difference = abs(mine[0] - theirs[0])
    ratio = f"{theirs[1] / mine[1]:.0f} times faster by the clock, {theirs[2] / mine[2]:.0f} by CPU time"
    print(f"{pixels:.0e} logits, {args.threads} threads: {ratio}")
    print(f"difference {difference:.1e}")
    what, cpu = f"average precision of {pixels:.0e} logits", (mine[2], theirs[2])
    print_table([Beside(what, "scikit-learn", mine[1], theirs[1], cpu=cpu, note=f"difference {difference:.1e}"),
                 Beside("... memory beyond the input", "scikit-learn", mine[3], theirs[3], "MB")])  # fmt: skip
    assert difference < 1e-5
    assert mine[3] < MOST_MB, f"{mine[3]:.0f} MB beyond the input"
    if pixels >= FULL:  # sorting fewer takes scikit-learn less time per pixel
        assert max(theirs[1] / mine[1], theirs[2] / mine[2]) >= LEAST_RATIO, "slower than it should be"


if __name__ == "__main__":
    main()
