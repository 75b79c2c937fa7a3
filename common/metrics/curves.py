"""Precision, recall and calibration of a rare class from histograms of logits, which add up over tiles and regions.

A histogram (2, BINS) holds the negative and the positive pixels. Its bins are the numbers of a 16-bit float of a sign,
four exponent and eleven mantissa bits: each reaches from one number to the next, the upper one included, so "logit >
edge" is exact. They are 1 / 2048 of the logit wide (.001 between 2 and 4, .002 between 4 and 8), 4e-6 below 1 / 128,
and end at +-256, where the rest is gathered. Logits stored as float16 have a bin each. Equal steps in probability
would not do: of a class at .1 % nearly all probabilities crowd near 0.

Counts may be weighted (float) and rows or tiles summed with weights before anything here is asked.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from common.errors import InputError

BINS = 1 << 16
PIECE = 1 << 22  # pixels counted at a time; also what a second thread pays from
BLOCK = 4096  # pixels whose bins are found before they are counted
INFINITY = 0x7F800000  # bits of a float32; not-a-numbers are above
# bits below which bins are of equal width (1 / 128), the last number of a sign, the place of what is not counted
_LIMITS = np.int32(120 << 23), np.int32(BINS // 2 - 1), np.int32(2 * BINS)


class Curve(NamedTuple):
    """precision, recall of the rule logit > threshold: (n,) each, threshold falling."""

    precision: np.ndarray
    recall: np.ndarray
    threshold: np.ndarray


class Point(NamedTuple):
    """precision and recall of the rule logit > threshold."""

    threshold: float
    precision: float
    recall: float


@functools.cache
def bin_edges() -> np.ndarray:
    """(BINS + 1,) float64 edges in logits, rising; bin k holds edge k < logit <= edge k + 1; the ends are infinite."""
    number = np.arange(BINS // 2 + 1)
    exponent = np.maximum(number >> 11, 1)
    size = np.ldexp((number - (exponent - 1) * 2048).astype(float), exponent - 19)
    edges = np.concatenate([-size[::-1], size[1:]])
    edges[[0, -1]] = -np.inf, np.inf
    edges.flags.writeable = False
    return edges


@functools.cache
def bin_centers() -> np.ndarray:
    """(BINS,) float64 middle of every bin in logits; the outermost at +-256."""
    edges = bin_edges().copy()
    edges[[0, -1]] = -256, 256
    centers = (edges[1:] + edges[:-1]) / 2
    centers[[0, -1]] = -256, 256
    centers.flags.writeable = False
    return centers


def logit_histogram(logits, target, valid=None) -> np.ndarray:
    """(2, BINS) int64: negative and positive pixels by logit.

    logits: float32 (read in place where contiguous), float16 or float64, any shape; target: bool or uint8 (0, 1) of
    that shape; valid: bool, pixels outside are not counted (default: all count). InputError where shapes differ, a
    logit is not a number or a target neither 0 nor 1.
    """
    logits, target = np.asarray(logits), np.asarray(target)
    masks = [target] if valid is None else [target, np.asarray(valid)]
    if any(mask.shape != logits.shape or mask.dtype not in (np.bool_, np.uint8) for mask in masks):
        told = ", ".join(f"{a.dtype} {a.shape}" for a in (logits, *masks))
        raise InputError(f"histogram: {told}; give logits, target (bool or uint8) and valid (bool) of one shape")
    code = _compiled()
    logits, masks = logits.ravel(), [mask.ravel().view(np.uint8) for mask in masks]
    cuts = [*range(0, logits.size, PIECE), logits.size]
    threads = min(code.threads(), max(len(cuts) - 1, 1)) if len(cuts) > 2 else 1

    def count(thread):
        total = np.zeros((2, BINS), np.int64)
        for start, end in zip(cuts[thread:-1:threads], cuts[thread + 1 :: threads], strict=True):
            total += _count_piece(logits[start:end], *(mask[start:end] for mask in masks))
        return total

    if threads == 1:
        return count(0)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(count, range(threads)))


def _count_piece(logits, target, valid=None) -> np.ndarray:
    """(2, BINS) uint32 of up to PIECE pixels."""
    logits = logits.astype(np.float32, copy=False)
    counts = np.zeros(2 * BINS + 1, np.uint32)
    scratch = np.empty(BLOCK, np.int32)
    worst_target, worst_bits = _compiled().count(logits, logits.view(np.int32), target, valid, scratch, counts)
    if worst_target > 1:
        raise InputError(f"histogram: a target is {worst_target}, not 0 or 1; set valid to False where it is ignored")
    if worst_bits > INFINITY:
        raise InputError("histogram: a logit is not a number; look at the model's output")
    return counts[:-1].reshape(2, BINS)


def average_precision(hist, weights=None) -> float:
    """Area under precision over recall, sum of (R_n - R_n-1) P_n, as scikit-learn's on the logits themselves (1e-5).

    hist: (2, BINS), counts or weights; weights: (of negatives, of positives) on top; nan without positives. Pixels of
    a bin are taken as mixed at random, except where neighbours are all but empty: those are equal logits, which are
    one step (float16 logits, few distinct values).
    """
    hist = _checked(hist, weights)
    if not hist[1].any():
        return float("nan")
    least = hist[1][hist[1] > 0].min()  # of weighted positives, one: the tails hold single pixels
    return float(_compiled().area(hist if (hist[1] == np.floor(hist[1])).all() else hist / least))


def full_curve(hist, weights=None) -> Curve:
    """Precision and recall at the lower edge of every bin that holds pixels; recall nan without positives."""
    hist = _checked(hist, weights)
    held = np.flatnonzero(hist.any(0))[::-1]
    fp, tp = hist[:, held].cumsum(1)
    recall = tp / tp[-1] if len(tp) and tp[-1] else np.full(len(tp), np.nan)
    return Curve(tp / (tp + fp), recall, bin_edges()[held])


def pr_curve(hist, weights=None, points: int = 500) -> Curve:
    """The curve thinned for a figure or a file: its ends and one point per step of 1 / points of either axis."""
    curve = full_curve(hist, weights)
    if not len(curve.recall) or np.isnan(curve.recall[-1]):
        return curve
    step = np.stack([np.round(curve.precision * points), np.round(curve.recall * points)])
    kept = np.append(True, (np.diff(step, axis=1) != 0).any(0))
    kept[-1] = True
    return Curve(*(values[kept] for values in curve))


def precision_at_recall(hist, recall: float, weights=None) -> float:
    """Largest precision of a threshold whose recall is at least `recall`; nan without positives."""
    curve = full_curve(hist, weights)
    reached = curve.precision[curve.recall >= recall]
    return float(reached.max()) if len(reached) else float("nan")


def recall_at_precision(hist, precision: float, weights=None) -> float:
    """Largest recall of a threshold whose precision is at least `precision`: 0 where none is; nan without positives."""
    curve = full_curve(hist, weights)
    if not len(curve.recall) or np.isnan(curve.recall[-1]):
        return float("nan")
    return float(np.max(curve.recall[curve.precision >= precision], initial=0.0))


def threshold_at_precision(hist, precision: float, weights=None) -> Point | None:
    """The threshold (a logit) of largest recall whose precision is at least `precision`, the higher of equal ones.

    None where it is not reachable: no threshold with a hit is that precise.
    """
    curve = full_curve(hist, weights)
    good = np.flatnonzero((curve.precision >= precision) & (curve.recall > 0))
    if not len(good):
        return None
    best = good[curve.recall[good].argmax()]
    return Point(float(curve.threshold[best]), float(curve.precision[best]), float(curve.recall[best]))


def confusion_at(hist, threshold: float, weights=None) -> tuple[float, float, float, float]:
    """(tp, fp, fn, tn) of the rule logit > threshold: exact at an edge of the bins, elsewhere at the nearest one."""
    hist = _checked(hist, weights)
    fp, tp = hist[:, bin_centers() > threshold].sum(1)
    negatives, positives = hist.sum(1)
    return float(tp), float(fp), float(positives - tp), float(negatives - fp)


def nll(hist, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood (nats) of the pixels at prob = sigmoid(logit / temperature); nan without pixels."""
    hist, logit = _checked(hist), bin_centers() / temperature
    return _mean(hist[0] * np.logaddexp(0, logit) + hist[1] * np.logaddexp(0, -logit), hist)


def brier(hist, temperature: float = 1.0) -> float:
    """Mean squared difference of prob and truth; nan without pixels."""
    hist, prob = _checked(hist), bin_probs(temperature)
    return _mean(hist[0] * prob**2 + hist[1] * (1 - prob) ** 2, hist)


def ece(hist, temperature: float = 1.0, *, bins: int = 15, equal: str = "width") -> float:
    """Expected calibration error: mean over `bins` of |mean prob - share of positives|, weighted by their pixels.

    The bins divide the probability of the class (not the confidence of the winner, which says nothing of a rare class)
    into parts of equal width, or of equal mass. After Guo et al., On calibration of modern neural networks, 2017.
    """
    mass, prob, share = reliability_bins(hist, temperature, bins=bins, equal=equal)
    held = mass > 0
    total = mass.sum()
    return float(mass[held] @ np.abs(prob - share)[held] / total) if total else float("nan")


def reliability_bins(hist, temperature: float = 1.0, *, bins: int = 15, equal: str = "width"):
    """(mass, mean prob, share of positives) of `bins` bins of prob, (bins,) each; nan in an empty one.

    equal: "width" (edges k / bins, the upper included) or "mass" (a bin of the histogram that lies across an edge is
    divided).
    """
    hist, prob = _checked(hist), bin_probs(temperature)
    mass = hist.sum(0)
    parts = np.stack([mass, mass * prob, hist[1]])
    if equal == "width":
        place = np.clip(np.ceil(prob * bins).astype(int) - 1, 0, bins - 1)
        sums = np.stack([np.bincount(place, part, bins) for part in parts])
    elif equal == "mass":
        grown = np.concatenate([np.zeros((3, 1)), parts.cumsum(1)], axis=1)
        levels = np.linspace(0, grown[0, -1], bins + 1)
        sums = np.diff(np.stack([np.interp(levels, grown[0], part) for part in grown]), axis=1)
    else:
        raise InputError(f"ece: bins of equal {equal} are not offered; choose width or mass")
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[0], sums[1] / sums[0], sums[2] / sums[0]


def bin_probs(temperature: float = 1.0) -> np.ndarray:
    """(BINS,) sigmoid(middle of the bin / temperature). InputError for a temperature that is not above 0."""
    if not temperature > 0:
        raise InputError(f"temperature {temperature}: must be above 0")
    return np.exp(-np.logaddexp(0, -bin_centers() / temperature))


def _mean(losses, hist) -> float:
    total = hist.sum()
    return float(losses.sum() / total) if total else float("nan")


def _checked(hist, weights=None) -> np.ndarray:
    hist = np.asarray(hist, np.float64)
    if hist.shape != (2, BINS):
        raise InputError(f"histogram {hist.shape}: must be (2, {BINS}), negative and positive pixels; sum the others")
    return hist if weights is None else hist * np.asarray(weights, np.float64)[:, None]


@functools.cache
def _compiled() -> SimpleNamespace:
    """The loops below as machine code, made once a process: a second, and no files a read-only disk could refuse."""
    import numba  # a third of a second that nobody need wait for who draws no curve

    fast = numba.njit(nogil=True)
    return SimpleNamespace(threads=numba.get_num_threads, count=fast(_count), area=fast(_area))


def _count(logits, bits, target, valid, scratch, counts):
    """Adds the pixels to counts (2 BINS + 1,), the last for what does not count; (worst target, worst bits of |logit|).

    bits: the logits as int32. First the bins of a block, without a branch and in 32 bits throughout, so that the
    compiler takes eight at a time; then the counts.
    """
    i32, worst_target, worst_bits, linear, top, none = np.int32, np.int32(0), np.int32(0), *_LIMITS
    for begin in range(0, len(logits), len(scratch)):
        end = begin + len(scratch)
        x, bit, truth, known = logits[begin:end], bits[begin:end], target[begin:end], valid
        if valid is not None:
            known = valid[begin:end]
        for k in range(len(x)):
            sign = i32(bit[k] >> i32(31))  # -1 where negative, else 0
            magnitude = i32(bit[k] & i32(0x7FFFFFFF))
            below = i32(i32(magnitude - i32(1)) - sign)  # upper edge included: of positive logits the number just below
            large = i32(i32(below >> i32(12)) - i32((120 << 11) - 2048))
            large = large if large < top else top
            scaled = abs(x[k]) if abs(x[k]) < np.float32(1) else np.float32(1)
            scaled *= np.float32(1 << 18)
            small = i32(scaled)
            small = i32(small - i32(i32(np.float32(small) == scaled) & i32(~sign)))
            number = small if below < linear else large
            label = i32(truth[k])
            place = i32(i32(i32(number ^ sign) + i32(BINS // 2)) + i32(label << i32(16)))
            if valid is not None:
                counted = i32(known[k] != 0)
                label, magnitude = i32(label * counted), i32(magnitude * counted)
                place = place if counted else none
            worst_target = label if label > worst_target else worst_target
            worst_bits = magnitude if magnitude > worst_bits else worst_bits
            scratch[k] = place if place < none else none
        for place in scratch[: len(x)]:
            counts[place] += np.uint32(1)
    return worst_target, worst_bits


def _area(hist):
    """Average precision of hist (2, BINS) float64 in units of one positive; see average_precision."""
    hits, kept, area, bins = 0.0, 0.0, 0.0, hist.shape[1]
    for k in range(bins - 1, -1, -1):
        n, p = hist[0, k], hist[1, k]
        below = hist[0, k - 1] + hist[1, k - 1] if k else 0.0
        above = hist[0, k + 1] + hist[1, k + 1] if k + 1 < bins else 0.0
        if p > 0 and n + p > 4 * (below + above):  # one value
            area += p * (hits + p) / (kept + n + p)
        elif p > 0:
            step = 1 + n / (p + 1)  # the j-th of p positives among n negatives comes after j n / (p + 1) of them
            if p <= 64 and p == np.floor(p):
                for j in range(1, int(p) + 1):
                    area += (hits + j) / (kept + j * step)
            else:  # the integral of that from 1/2 to p + 1/2
                start = kept + step / 2
                area += p / step + (hits - kept / step) / step * np.log1p(step * p / start)
        hits += p
        kept += n + p
    return area / hits
