"""Maps of a rare class, tile by tile: histograms of their logits, and what is counted at given thresholds.

Only histograms and counts are held, never more than the maps of one tile.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from scipy.special import expit, log_expit

from common.errors import InputError
from common.metrics.curves import logit_histogram
from common.metrics.objects import Matches, match_objects
from common.metrics.segmentation import confusion, count_columns, counts_of
from common.post.calibration import scale, threshold_logit
from common.post.mask_blend import align_sets
from common.post.mask_judge import PARTS, rows_of
from common.post.morphology import small_components
from common.post.thresholds import sample_pixels

PIXELS = 40_000  # of every class in all tiles together, in the sample that weights are fitted on


@dataclass(frozen=True)
class Maps:
    """The maps of m sets of the same n tiles.

    frames: {name: set in the order of the tiles}; positive: (n,) bool, tiles that have the class; part: (n,) int, 0 to
    P-1, the parts left out in turn; read_map(path) -> (logit float32 (H,W), valid bool (H,W), target uint8 (H,W)).
    """

    frames: Mapping[str, pd.DataFrame]
    positive: np.ndarray
    part: np.ndarray
    read_map: Callable

    def read(self, index: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """(m logits (H,W), valid, target) of a tile; truth and valid pixels are those of the first set."""
        logits, valid, target = [], None, None
        for name, frame in self.frames.items():
            logit, known, truth = self.read_map(frame["prob"].iloc[index])
            valid, target = (known, truth) if valid is None else (valid, target)
            if logit.shape != target.shape:
                tile = frame["id"].iloc[index]
                raise InputError(f"{name}: tile {tile} is predicted at {logit.shape}, its label is {target.shape}")
            logits.append(logit)
        return logits, np.asarray(valid, bool), target == 1

    def tiles(self, part: int | None = None, *, outside: int | None = None) -> tuple[int, int]:
        """(tiles with the class, tiles without): of all, of one part, or of all parts but `outside`."""
        inside = np.ones(len(self.part), bool) if part is None else self.part == part
        inside &= self.part != outside
        return int((inside & self.positive).sum()), int((inside & ~self.positive).sum())


@dataclass(frozen=True)
class Cut:
    """What turns logits into a mask: pixels whose calibrated probability is above `threshold`, less small blobs and
    those whose mean calibrated probability is under `least`."""

    threshold: float
    temperature: float = 1.0
    min_blob: int = 0
    least: float = 0.0


@dataclass
class Plan:
    """What is counted of one blend of the sets: {cut name: Cut} for each tile, and the names matched blob by blob.

    weights: (n, m), what each set weighs on each tile; samples: {ratio: bool (n,)}, tiles of sub-sampled sets.
    """

    weights: np.ndarray
    cuts: Sequence[Mapping[str, Cut]]
    matched: Sequence[str] = ()
    samples: Mapping[float, np.ndarray] = None


def mix_logits(logits: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """float32 logit of the weighted mean of the probabilities sigmoid(logits), whatever the weights add up to.

    p and 1 - p are averaged each in logs, so that what lies near 0 or 1 keeps its digits; weight 0 is left out.
    """
    used = [(logit, weight) for logit, weight in zip(logits, weights, strict=True) if weight > 0]
    if len(used) == 1:
        return np.asarray(used[0][0], np.float32)
    sides = []  # what the weights add up to is in both and cancels
    for sign in (1, -1):
        each = [log_expit(np.float32(sign) * logit) + np.float32(np.log(weight)) for logit, weight in used]
        sides.append(np.logaddexp.reduce(each))
    return (sides[0] - sides[1]).astype(np.float32)


def cut_mask(logit: np.ndarray, valid: np.ndarray, cut: Cut) -> np.ndarray:
    """bool (H,W): valid pixels above the threshold, without 8-connected blobs under cut.min_blob pixels or of a mean
    calibrated probability under cut.least."""
    pred = (logit > np.float32(threshold_logit(cut.threshold, cut.temperature))) & valid
    if cut.min_blob > 1:
        pred &= small_components(pred, cut.min_blob, 8)[0] == 0
    if cut.least > 0:
        drop_faint(pred, logit, cut)
    return pred


def drop_faint(pred: np.ndarray, logit: np.ndarray, cut: Cut) -> None:
    """Clears in place the 8-connected blobs of pred bool (H,W) whose mean sigmoid(logit / T) is under cut.least."""
    count, labels = cv2.connectedComponents(pred.view(np.uint8), connectivity=8)
    label = labels[pred]
    prob = expit(scale(logit[pred], cut.temperature))  # as `match_cut` has it, of few pixels
    mean = np.bincount(label, prob, count) / np.maximum(np.bincount(label, minlength=count), 1)
    pred[pred] = mean[label] >= cut.least


def match_outlines(maps: Maps, fits: Sequence[tuple[np.ndarray, Cut, int | None]], iou: float) -> list[list[Matches]]:
    """Per fit (weights (m,), cut, part left out or None): the blobs of every tile outside that part, matched at `iou`.

    Maps are read once for all fits; only what the blobs are is held.
    """
    found = [[] for _ in fits]
    for index in range(len(maps.part)):
        logits, valid, target = maps.read(index)
        mixed = {}
        for matches, (weights, cut, outside) in zip(found, fits, strict=True):
            if maps.part[index] == outside:
                continue
            key = weights.tobytes()
            mixed[key] = logit = mixed[key] if key in mixed else mix_logits(logits, weights)
            matches.append(match_cut(cut_mask(logit, valid, cut), target, valid, logit, cut, (iou,)))
    return found


def histograms(maps: Maps, vectors: np.ndarray) -> np.ndarray:
    """int64 (v, P, 2, 2, bins) [blend, part, tile is positive, pixel is positive, bin] of the blends `vectors` (v, m).

    Maps are read once for all blends.
    """
    found: np.ndarray | None = None
    for index in range(len(maps.part)):
        logits, valid, target = maps.read(index)
        for which, weights in enumerate(vectors):
            counted = logit_histogram(mix_logits(logits, weights), target, valid)
            if found is None:
                found = np.zeros((len(vectors), maps.part.max() + 1, 2, *counted.shape), np.int64)
            found[which, maps.part[index], int(maps.positive[index])] += counted
    return found


@dataclass(frozen=True)
class Sample:
    """Pixels of all sets: prob (m, n) float32, target (n,) bool, weight (n,) of the pixel in tiles 1:1, part (n,)."""

    prob: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    part: np.ndarray

    def without(self, part: int) -> "Sample":
        keep = self.part != part
        return Sample(self.prob[:, keep], self.target[keep], self.weight[keep], self.part[keep])


def sample_maps(maps: Maps, tile_weight: np.ndarray, seed: int) -> Sample:
    """At most PIXELS pixels of a class, spread over the tiles, each with what it stands for times its tile's weight."""
    each = max(PIXELS // len(maps.part), 20)
    prob, truth, weight, whose = [], [], [], []
    for index in range(len(maps.part)):
        logits, valid, target = maps.read(index)
        taken, stands = sample_pixels(target, valid, per_class=each, seed=(seed, index))
        prob.append(np.stack([expit(logit.ravel()[taken]) for logit in logits]))
        truth.append(target.ravel()[taken])
        weight.append(stands * tile_weight[index])
        whose.append(np.full(len(taken), maps.part[index]))
    joined = (np.concatenate(values) for values in (truth, weight, whose))
    return Sample(np.concatenate(prob, axis=1).astype(np.float32), *joined)


def count_maps(maps: Maps, plans: Mapping[str, Plan], *, object_iou: Sequence[float]) -> dict:
    """Reads every tile once: per plan {"counts": {cut: int64 (n, 2, 2)}, "matches": {cut: [n Matches]}, "samples":
    {ratio: int64 (2, bins)}}.

    Counts and matches are over valid pixels; the blobs of the truth under min_blob pixels are left out of the matches.
    """
    found = {name: {"counts": {}, "matches": {}, "samples": {}} for name in plans}
    for index in range(len(maps.part)):
        logits, valid, target = maps.read(index)
        for name, plan in plans.items():
            logit = mix_logits(logits, plan.weights[index])
            for cut_name, cut in plan.cuts[index].items():
                pred = cut_mask(logit, valid, cut)
                counts = confusion(target, pred, valid, 2)
                found[name]["counts"].setdefault(cut_name, []).append(counts)
                if cut_name in plan.matched:
                    matches = match_cut(pred, target, valid, logit, cut, object_iou)
                    found[name]["matches"].setdefault(cut_name, []).append(matches)
            add_samples(found[name]["samples"], plan.samples or {}, index, logit, target, valid)
    for one in found.values():
        one["counts"] = {name: np.stack(counts) for name, counts in one["counts"].items()}
    return found


def match_cut(pred, target, valid, logit, cut: Cut, object_iou) -> Matches:
    """The blobs of a mask matched with those of the truth, in the order of their mean calibrated probability."""
    prob = expit(scale(logit, cut.temperature))
    return match_objects(pred, target, prob, iou=object_iou, min_blob=cut.min_blob, valid=valid)


def add_samples(found: dict, samples: Mapping[float, np.ndarray], index: int, logit, target, valid) -> None:
    """Adds a tile's histogram to every sub-sampled set that it is in."""
    wanted = [ratio for ratio, inside in samples.items() if inside[index]]
    if wanted:
        counted = logit_histogram(logit, target, valid)
        for ratio in wanted:
            found[ratio] = found.get(ratio, 0) + counted


def positive_tiles(rows: pd.DataFrame, frame: pd.DataFrame) -> np.ndarray:
    """(n,) bool, tiles with a labelled pixel of the class: of a set's counts, else of rows["positive"]."""
    if all(name in frame for name in count_columns(2)):
        positive = counts_of(frame, 2)[:, 1].sum(1) > 0
    elif "positive" in rows:
        positive = rows["positive"].to_numpy(bool)
    else:
        raise InputError("the set knows no truth (n_<truth>_<pred>), nor do the rows (positive); give labelled tiles")
    if not positive.any():
        raise InputError("no tile has a pixel of the class; thresholds and scores need labelled tiles that have it")
    return positive


def parts_of(groups, positive: np.ndarray) -> tuple[np.ndarray, str]:
    """((n,) int part in which each tile is left out, a line that says what a part is).

    Groups stay whole, at most PARTS parts; one group is halved, tiles with and without the class alike.
    """
    names, code = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    if len(names) > 1:
        count = min(PARTS, len(names))
        return code * count // len(names), f"{len(names)} regions, left out in {count} parts"
    part = np.zeros(len(code), int)
    for inside in (positive, ~positive):
        part[inside] = np.arange(inside.sum()) % 2
    return part, "one region: its tiles are halved, so that neighbours stand on both sides and scores flatter"


def open_maps(rows, sets: Mapping[str, pd.DataFrame], read_map: Callable) -> tuple[list[str], pd.DataFrame, Maps, str]:
    """(ids, their rows, the maps, what a part is) of sets of the same tiles; rows: `id` and `group`."""
    ids, frames = align_sets(sets)
    rows = rows_of(rows, ids)
    positive = positive_tiles(rows, next(iter(frames.values())))
    groups = rows["group"] if "group" in rows else np.zeros(len(rows), int)
    part, split = parts_of(groups, positive)
    return ids, rows, Maps(frames, positive, part, read_map), split
