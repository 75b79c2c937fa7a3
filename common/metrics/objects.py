"""Scores of a rare class by its blobs (8-connected components): predicted ones matched one-to-one with true ones.

The masks are read as runs of pixels, eight pixels at a time, and only runs are joined and compared: no image of labels
is made. What is found does not depend on the number of threads (sums are taken in the order of the pixels).
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from common.errors import InputError

OBJECT_IOU = (0.3, 0.5, 0.1)
THREADED = 1 << 20  # pixels from which a second thread pays
WHERE = np.uint64(sum(k << (61 - 8 * k) for k in range(8)))  # (WHERE << 8 k) >> 61 is k: which byte a lone bit is in


@dataclass(frozen=True)
class Matches:
    """The blobs of one tile and who found whom; predicted ones by falling score, true ones by their first pixel.

    iou: the limits; pred_score, pred_area: (n_pred,) mean prob and pixels; matched: (n_iou, n_pred) bool; target_area:
    (n_target,) pixels; target_found: (n_iou, n_target) bool.
    """

    iou: tuple[float, ...]
    pred_score: np.ndarray
    pred_area: np.ndarray
    matched: np.ndarray
    target_area: np.ndarray
    target_found: np.ndarray

    @property
    def n_pred(self) -> int:
        return len(self.pred_area)

    @property
    def n_target(self) -> int:
        return len(self.target_area)


class ObjectCurve(NamedTuple):
    """precision, recall: (n,) with only blobs of at least `score` (n,), falling, kept; average_precision: area."""

    precision: np.ndarray
    recall: np.ndarray
    score: np.ndarray
    average_precision: float


def match_objects(pred, target, prob, *, iou: Sequence[float] = OBJECT_IOU, min_blob: int = 0, valid=None) -> Matches:
    """The blobs of `pred` matched with those of `target`: by falling mean prob (of two equal ones the first in raster
    order), each takes the still free blob of largest IoU, if that is at least the limit.

    pred, target: (H,W) bool (or 0/1); prob: (H,W) float32, read where pred is set; valid: (H,W) bool, pixels outside
    belong to no blob and may split one; blobs under min_blob pixels are left out on both sides. InputError where the
    shapes differ or prob is not finite on a predicted pixel.
    """
    pred, target, prob = np.asarray(pred, bool), np.asarray(target, bool), np.ascontiguousarray(prob, np.float32)
    shapes = [a.shape for a in (pred, target, prob)] + ([] if valid is None else [np.shape(valid)])
    if pred.ndim != 2 or len(set(shapes)) > 1:
        raise InputError(f"objects: pred, target, prob, valid are {shapes}; give images (H,W) of one size")
    limits = np.asarray(iou, np.float64)
    if limits.ndim != 1 or not ((limits > 0) & (limits <= 1)).all():
        raise InputError(f"objects: IoU limits {iou}; give numbers above 0, at most 1")
    if valid is not None:
        pred, target = pred & np.asarray(valid, bool), target & np.asarray(valid, bool)
    code = _compiled()
    threads = code.threads() if pred.size >= THREADED else 1
    said, true = _blobs(((pred, prob), (target, None)), threads)
    score = said.sums / said.area
    if not np.isfinite(score).all():
        raise InputError("objects: prob is not finite on a predicted pixel; set valid to False there")
    order = np.argsort(-score, kind="stable")
    order = order[said.area[order] >= min_blob]
    free = true.area >= min_blob
    matched = np.zeros((len(limits), len(order)), bool)
    found = np.zeros((len(limits), len(true.area)), bool)
    pairs = code.overlaps(said.first, said.edges, said.label, true.first, true.edges, true.label, len(said.area))
    code.greedy(order, *pairs, said.area, true.area, free, limits, matched, found)
    kept = limits.tolist(), score[order], said.area[order], matched, true.area[free], found[:, free]
    return Matches(tuple(kept[0]), *kept[1:])


def object_scores(matches: Sequence[Matches], weights=None) -> dict[float, dict[str, float]]:
    """{IoU limit: {precision, recall, f1, tp, fp, fn}} over tiles, each counted `weights` (n,) times (default once).

    The counts are sums of weights; nan where undefined (precision without a predicted blob, recall without a true one,
    f1 without either). InputError where tiles were matched at different limits.
    """
    weights = _checked(matches, weights)
    scores = {}
    for k, limit in enumerate(matches[0].iou if matches else OBJECT_IOU):
        hits = np.array([m.matched[k].sum() for m in matches], float)
        tp = float(weights @ hits)
        fp = float(weights @ (np.array([m.n_pred for m in matches], float) - hits))
        fn = float(weights @ (np.array([m.n_target for m in matches], float) - hits))
        parts = {"precision": (tp, tp + fp), "recall": (tp, tp + fn), "f1": (2 * tp, 2 * tp + fp + fn)}
        scores[limit] = {name: a / b if b else float("nan") for name, (a, b) in parts.items()}
        scores[limit] |= {"tp": tp, "fp": fp, "fn": fn}
    return scores


def object_curve(matches: Sequence[Matches], weights=None, iou: float = 0.3) -> ObjectCurve:
    """Precision and recall of the blobs of all tiles as the least mean prob of a kept blob falls, and their area.

    The area is average precision, sum of (R_n - R_n-1) P_n over distinct scores as in scikit-learn, with recall over
    all true blobs, found or not; nan without a true blob. Blobs keep their shape: they are dropped, not cut again.
    InputError where `iou` is none of the limits.
    """
    weights = _checked(matches, weights)
    if matches and iou not in matches[0].iou:
        raise InputError(f"objects: no matches at IoU {iou}; there are {', '.join(map(str, matches[0].iou))}")
    none = np.zeros(0)
    score = np.concatenate([none, *(m.pred_score for m in matches)])
    hit = np.concatenate([none, *(m.matched[m.iou.index(iou)] for m in matches)])
    weight = np.concatenate([none, *(np.full(m.n_pred, w) for m, w in zip(matches, weights, strict=True))])
    total = float(sum(w * m.n_target for m, w in zip(matches, weights, strict=True)))
    order = np.argsort(-score, kind="stable")
    order = order[weight[order] > 0]
    score, hit, weight = score[order], hit[order], weight[order]
    last = np.append(score[1:] != score[:-1], True)[: len(score)]
    tp, kept = (weight * hit).cumsum()[last], weight.cumsum()[last]
    precision, recall = tp / kept, tp / total if total else np.full(len(tp), np.nan)
    area = float((np.diff(recall, prepend=0) * precision).sum()) if total else float("nan")
    return ObjectCurve(precision, recall, score[last], area)


def _checked(matches: Sequence[Matches], weights) -> np.ndarray:
    """(n,) float64 weights of the tiles."""
    weights = np.ones(len(matches)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (len(matches),) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError(f"objects: {weights.shape} weights for {len(matches)} tiles; give one, at least 0, per tile")
    if len({m.iou for m in matches}) > 1:
        raise InputError("objects: tiles matched at different IoU limits; match them all at the same")
    return weights


def _blobs(masks, threads: int) -> list[SimpleNamespace]:
    """Per (mask, prob or None): first (H + 1,) number of the first run of each row, edges (2 n,) start and end of each
    run, label (n,) its blob, area (blobs,), sums (blobs,) of prob. Blobs are numbered by their first pixel."""
    code, height = _compiled(), masks[0][0].shape[0]
    cuts = np.linspace(0, height, threads + 1).astype(int).tolist()
    work = [(k, a, b) for k in range(len(masks)) for a, b in zip(cuts[:-1], cuts[1:], strict=True) if a < b]
    words = [_words(mask) for mask, _ in masks]
    first = [np.zeros(height + 1, np.int64) for _ in masks]
    with ThreadPoolExecutor(threads) as pool:
        each = pool.map if threads > 1 else map
        list(each(lambda part: code.count(words[part[0]], first[part[0]], part[1], part[2]), work))
        for k in range(len(masks)):
            first[k] = first[k].cumsum()
        edges = [np.empty(2 * rows[-1], np.int32) for rows in first]
        sums = [np.zeros(rows[-1] if prob is not None else 0) for rows, (_, prob) in zip(first, masks, strict=True)]
        fill = (words, first, edges, [mask.shape[1] for mask, _ in masks], [prob for _, prob in masks], sums)
        list(each(lambda part: code.fill(*(values[part[0]] for values in fill), part[1], part[2]), work))
        joined = list(each(code.join, first, edges, sums))
    found = []
    for rows, ends, (label, area, total) in zip(first, edges, joined, strict=True):
        found.append(SimpleNamespace(first=rows, edges=ends, label=label, area=area, sums=total))
    return found


def _words(mask: np.ndarray) -> np.ndarray:
    """The mask (H,W) as little-endian words (H, ceil(W / 8)) of eight pixels each; a copy only where it must be."""
    over = -mask.shape[1] % 8
    mask = np.pad(mask, ((0, 0), (0, over))) if over else np.ascontiguousarray(mask)
    return mask.view("<u8")


@functools.cache
def _compiled() -> SimpleNamespace:
    """The loops below as machine code, made once a process: two seconds, and no files a read-only disk could refuse."""
    import numba  # a third of a second that nobody need wait for who scores no blobs

    fast = numba.njit(nogil=True)
    return SimpleNamespace(threads=numba.get_num_threads, count=fast(_count), fill=fast(_fill), join=fast(_join),
                           overlaps=fast(_overlaps), greedy=fast(_greedy))  # fmt: skip


def _count(words, first, start_row, end_row):
    """first[y + 1] = runs of row y."""
    eight, top = np.uint64(8), np.uint64(56)
    for y in range(start_row, end_row):
        last, changes = np.uint64(0), 0
        for x in range(words.shape[1]):
            word = words[y, x]
            change = word ^ (word << eight | last)
            last = word >> top
            while change:  # a bit per pixel that differs from the one before
                changes += 1
                change &= change - np.uint64(1)
        first[y + 1] = (changes + 1) // 2


def _fill(words, first, edges, width, prob, sums, start_row, end_row):
    """Start and end of every run and, unless prob is None, its sum of prob; numba leaves the branches of a None out."""
    eight, top, one, where, shift = np.uint64(8), np.uint64(56), np.uint64(1), np.uint64(WHERE), np.uint64(61)
    for y in range(start_row, end_row):
        last, at = np.uint64(0), 2 * first[y]
        for x in range(words.shape[1]):
            word = words[y, x]
            change = word ^ (word << eight | last)
            last = word >> top
            while change:
                rest = change & (change - one)
                edges[at] = 8 * x + np.int64(((change ^ rest) * where) >> shift)
                at += 1
                change = rest
        if at % 2:
            edges[at] = width
        if prob is not None:
            for run in range(first[y], first[y + 1]):
                total = 0.0
                for x in range(edges[2 * run], edges[2 * run + 1]):
                    total += prob[y, x]
                sums[run] = total


def _join(first, edges, sums):
    """(label of every run, pixels of every blob, sum of prob of every blob): union-find over runs of adjacent rows.

    The root of a blob is its first run, so that labels follow the first pixel.
    """
    runs = first[-1]
    parent, label = np.arange(runs), np.empty(runs, np.int32)
    for y in range(1, len(first) - 1):
        above, here = first[y - 1], first[y]
        while above < first[y] and here < first[y + 1]:
            if edges[2 * above] <= edges[2 * here + 1] and edges[2 * here] <= edges[2 * above + 1]:
                a, b = above, here
                while parent[a] != a:
                    parent[a] = parent[parent[a]]
                    a = parent[a]
                while parent[b] != b:
                    parent[b] = parent[parent[b]]
                    b = parent[b]
                parent[max(a, b)] = min(a, b)
            if edges[2 * above + 1] < edges[2 * here + 1]:
                above += 1
            else:
                here += 1
    blobs = 0
    for run in range(runs):
        root = run
        while parent[root] != root:
            root = parent[root]
        parent[run] = root
        label[run] = blobs if root == run else label[root]
        blobs += root == run
    area, total = np.zeros(blobs, np.int64), np.zeros(blobs)
    for run in range(runs):
        area[label[run]] += edges[2 * run + 1] - edges[2 * run]
        if len(sums):
            total[label[run]] += sums[run]
    return label, area, total


def _overlaps(p_first, p_edges, p_label, t_first, t_edges, t_label, blobs):
    """(begin (blobs + 1,), partner, shared): predicted blob p meets the true blobs partner[begin[p]:begin[p + 1]] in
    `shared` pixels, run by run: a partner may come several times."""
    most = len(p_label) + len(t_label)
    one, other, pixels = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    begin, met = np.zeros(blobs + 1, np.int64), 0
    for y in range(len(p_first) - 1):
        p, t = p_first[y], t_first[y]
        while p < p_first[y + 1] and t < t_first[y + 1]:
            common = min(p_edges[2 * p + 1], t_edges[2 * t + 1]) - max(p_edges[2 * p], t_edges[2 * t])
            if common > 0:
                one[met], other[met], pixels[met] = p_label[p], t_label[t], common
                begin[p_label[p] + 1] += 1
                met += 1
            if p_edges[2 * p + 1] < t_edges[2 * t + 1]:
                p += 1
            else:
                t += 1
    begin = begin.cumsum()
    place, partner, shared = begin.copy(), np.empty(met, np.int32), np.empty(met, np.int32)
    for k in range(met):  # sorted by predicted blob, the order kept
        at = place[one[k]]
        partner[at], shared[at] = other[k], pixels[k]
        place[one[k]] += 1
    return begin, partner, shared


def _greedy(order, begin, partner, shared, p_area, t_area, free, limits, matched, found):
    """Fills matched (n_iou, n_pred) and found (n_iou, n_target): each predicted blob takes the best free one."""
    common = np.zeros(len(t_area), np.int64)
    for rank in range(len(order)):
        p = order[rank]
        for k in range(begin[p], begin[p + 1]):
            common[partner[k]] += shared[k]
        for limit in range(len(limits)):
            best, taken = 0.0, -1
            for k in range(begin[p], begin[p + 1]):
                t = partner[k]
                if free[t] and not found[limit, t]:
                    iou = common[t] / (p_area[p] + t_area[t] - common[t])
                    if iou >= limits[limit] and (iou > best or (iou == best and t < taken)):
                        best, taken = iou, t
            if taken >= 0:
                matched[limit, rank] = found[limit, taken] = True
        for k in range(begin[p], begin[p + 1]):
            common[partner[k]] = 0
