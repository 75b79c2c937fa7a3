"""Blends of class probabilities: plain mean, likeliest mixture, greedy selection; fitted on a sample of pixels.

The sample holds the same pixels of every member, each with what it stands for (`sample_pixels`), and the part of the
tiles it belongs to, so that a part can be left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import InputError
from common.metrics.segmentation import MCC, Metric
from common.outputs.masks import holds_logit, read_beside, read_probs, write_probs
from common.outputs.predictions import listed
from common.post.blend import FORMAT, ZERO, used_members
from common.post.thresholds import checked_thresholds, fit_thresholds, sample_pixels, weighted_counts

PIXELS = 60_000  # of every class in all tiles together
STEPS = 15  # of the greedy selection
ROUNDS = 200  # of the likeliest mixture


@dataclass(frozen=True)
class Sample:
    """Pixels of all members: prob (m, n, K) float32, target, weight and part (n,), background (P,) no-data pixels, 0
    where the metric leaves them out; aim: what thresholds are fitted for, None for the metric."""

    prob: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    part: np.ndarray
    background: np.ndarray
    metric: Metric = MCC
    aim: Metric | None = None

    def without(self, part: int) -> "Sample":
        """The sample of all other parts (their numbers are kept)."""
        keep = self.part != part
        background = np.where(np.arange(len(self.background)) == part, 0, self.background)
        kept = (values[keep] for values in (self.target, self.weight, self.part))
        return Sample(self.prob[:, keep], *kept, background, self.metric, self.aim)

    def member(self, index: int) -> "Sample":
        """The sample of one member alone."""
        return replace(self, prob=self.prob[index : index + 1])

    def blended(self, weights) -> np.ndarray:
        """(n, K) probabilities of the blend with `weights` (m,)."""
        return np.tensordot(np.asarray(weights, np.float32), self.prob, 1)

    def score(self, prob: np.ndarray) -> float:
        """The score of the argmax of prob (n, K)."""
        counts = weighted_counts(self.target, prob.argmax(1), self.weight, prob.shape[1])
        counts[0, 0] += self.background.sum()
        return self.metric.of(counts)


def member_prob(frame: pd.DataFrame, index: int, shape: tuple[int, int], classes: int, name: str) -> np.ndarray:
    """float32 (K,H,W) of line `index` of a set; InputError naming set and tile where its size is not `shape`."""
    line = frame.iloc[index]
    prob = read_probs(line["prob"], classes)
    if prob.shape[1:] != tuple(shape):
        raise InputError(f"{name}: tile {line['id']} is predicted at {prob.shape[1:]}, its label is {tuple(shape)}")
    return prob


def sample_sets(
    rows: pd.DataFrame,
    sets: Mapping[str, pd.DataFrame],
    *,
    classes: int,
    read_target: Callable,
    part,
    seed: int,
    metric: Metric = MCC,
    aim: Metric | None = None,
) -> Sample:
    """The pixel sample of sets that are in the order of `rows`.

    read_target(row) -> (target uint8 (H,W), valid bool (H,W)); part: (tiles,) int, 0 to P-1. At most PIXELS pixels of
    a class are taken in all, spread over the tiles.
    """
    part = np.asarray(part)
    each = max(PIXELS // max(len(rows), 1), 20)
    background = np.zeros(part.max() + 1)
    prob, target, weight, whose = [], [], [], []
    for index, (_, row) in enumerate(rows.iterrows()):
        truth, valid = read_target(row)
        background[part[index]] += np.count_nonzero(~valid) if metric.nodata else 0
        taken, stands = sample_pixels(truth, valid, per_class=each, seed=(seed, index))
        read = (member_prob(frame, index, truth.shape, classes, name) for name, frame in sets.items())
        prob.append(np.stack([one.reshape(classes, -1)[:, taken].T for one in read]))
        target.append(truth.ravel()[taken].astype(np.int64))
        weight.append(stands)
        whose.append(np.full(len(taken), part[index]))
    joined = (np.concatenate(values) for values in (target, weight, whose))
    return Sample(np.concatenate(prob, axis=1), *joined, background, metric, aim)


def known_counts(sample: Sample, prob: np.ndarray) -> np.ndarray:
    """(P, K, K) counts of the argmax of prob (n, K) in every part, over valid pixels alone."""
    parts, classes = len(sample.background), prob.shape[1]
    cell = (sample.part * classes + sample.target) * classes + prob.argmax(1)
    return np.bincount(cell, sample.weight, parts * classes**2).reshape(parts, classes, classes)


def sound_members(sample: Sample) -> np.ndarray:
    """(m,) bool: members better than a constant mask, whichever part is left out; all of them if none is.

    A constant scores 0. No-data pixels do not count here: they are right whatever a member says, so that over
    all pixels a member that knows nothing comes out above 0.
    """
    sound = []
    for prob in sample.prob:
        counts = known_counts(sample, prob)
        others = counts.sum(0) - counts if np.count_nonzero(counts.sum((1, 2))) > 1 else counts.sum(0)
        sound.append(bool(np.all(sample.metric.of(others) > 0)))
    sound = np.array(sound)
    return sound if sound.any() else np.ones_like(sound)


def fit_mean(sample: Sample) -> np.ndarray:
    """(m,) equal weights that add to one."""
    return np.full(len(sample.prob), 1 / len(sample.prob))


def fit_weights(sample: Sample) -> np.ndarray:
    """(m,) weights above zero that add to one and make the truth likeliest under the mixture of the members.

    Expectation maximisation for the shares of a mixture (Dempster, Laird and Rubin 1977): the log likelihood is concave
    in the weights, so it finds the one maximum.
    """
    right = np.take_along_axis(sample.prob, sample.target[None, :, None], 2)[..., 0].astype(np.float64)
    right = np.maximum(right, 1e-4)
    weights = fit_mean(sample)
    for _ in range(ROUNDS):
        share = weights[:, None] * right
        new = (share / share.sum(0)) @ sample.weight / sample.weight.sum()
        if np.abs(new - weights).max() < 1e-6:
            break
        weights = new
    return new


def fit_greedy(sample: Sample) -> np.ndarray:
    """(m,) shares of greedy selection with replacement (Caruana 2004); of the path the best length is kept."""
    total = np.zeros(sample.prob.shape[1:], np.float32)
    picks, best, kept = [], -np.inf, 0
    for step in range(STEPS if len(sample.prob) > 1 else 1):
        scores = [sample.score(total + prob) for prob in sample.prob]
        picks.append(int(np.argmax(scores)))
        total += sample.prob[picks[-1]]
        if scores[picks[-1]] > best + ZERO:
            best, kept = scores[picks[-1]], step + 1
    return np.bincount(picks[:kept], minlength=len(sample.prob)) / kept


BLENDS = {"mean": fit_mean, "weights": fit_weights, "greedy": fit_greedy}


def fit_members(sample: Sample, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights (m,) of the blend `kind` and the (m,) mask of sound members; all others weigh exactly 0."""
    if kind not in BLENDS:
        raise InputError(f"--kind {kind}: masks are blended by {', '.join(BLENDS)}")
    sound = sound_members(sample)
    inside = replace(sample, prob=sample.prob[sound])
    weights = np.zeros(len(sound))
    weights[sound] = BLENDS[kind](inside)
    return weights, sound


def fit_blend(
    sample: Sample, kind: str, *, members: Sequence[str], seed: int, thresholds: bool | Sequence[float] = True
) -> dict:
    """A blend as plain JSON: format, kind, members, weights (m,), dropped, post {"thresholds"}, pixels, parts, seed.

    members: the m names; dropped: {member: score over valid pixels} of those no better than a constant, which weigh 0.
    thresholds: True fits them, False is the plain argmax; or K numbers.
    """
    weights, sound = fit_members(sample, kind)
    lost = {name: prob for name, prob, ok in zip(members, sample.prob, sound, strict=True) if not ok}
    return {
        "format": FORMAT,
        "kind": kind,
        "members": list(members),
        "weights": weights.tolist(),
        "dropped": {name: sample.metric.of(known_counts(sample, prob).sum(0)) for name, prob in lost.items()},
        "post": {"thresholds": fitted_thresholds(sample, weights, thresholds)},
        "pixels": len(sample.target),
        "parts": len(sample.background),
        "seed": int(seed),
    }


def fitted_thresholds(sample: Sample, weights, wanted: bool | Sequence[float] = True) -> list[float]:
    """K thresholds of the blend with `weights` (m,): fitted (True), equal (False), or the K numbers `wanted`."""
    classes = sample.prob.shape[2]
    if not isinstance(wanted, bool):
        return checked_thresholds(wanted, classes)
    if not wanted:
        return [1 / classes] * classes
    background = float(sample.background.sum())
    options = {"background": background, "metric": sample.aim or sample.metric}
    return fit_thresholds(sample.blended(weights), sample.target, sample.weight, **options)


def mix(probs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """float32 (K,H,W): the weighted mean of probabilities (K,H,W), whatever the weights add up to."""
    total = np.zeros(probs[0].shape, np.float32)
    for prob, weight in zip(probs, weights, strict=True):
        total += np.float32(weight / sum(weights)) * prob
    return total


def apply_blend(blend: dict, sets: Mapping[str, pd.DataFrame], folder: str | Path) -> pd.DataFrame:
    """The blend of {member: set} as a set (id, [fold], nodata, prob), its probabilities written to folder/<id>.npz.

    The names must be the blend's; only members of weight 0 may be absent. InputError otherwise, and where two sets
    differ in their ids or in the size of a tile.
    """
    used = used_members(blend, sets)
    ids, frames = align_sets({name: sets[name] for name in used})
    first = next(iter(frames.values()))
    paths = []
    for index, tile in enumerate(ids):
        probs = [read_probs(frame["prob"].iloc[index]) for frame in frames.values()]
        if len({prob.shape for prob in probs}) > 1:
            sizes = ", ".join(f"{name} {prob.shape}" for name, prob in zip(frames, probs, strict=True))
            raise InputError(f"blend: tile {tile} is predicted at different sizes: {sizes}; predict the same rows")
        valid = read_beside(first["prob"].iloc[index], "valid")
        as_logit = holds_logit(first["prob"].iloc[index])
        prob = mix(probs, list(used.values()))
        paths.append(str(write_probs(Path(folder) / f"{tile}.npz", prob, valid=valid, as_logit=as_logit)))
    kept = [name for name in ("id", "fold", "nodata") if name in first]
    return first[kept].assign(prob=paths)


def align_sets(sets: Mapping[str, pd.DataFrame]) -> tuple[list[str], dict[str, pd.DataFrame]]:
    """The ids of the first set, and all sets in that order; InputError where ids differ, repeat, or have no file."""
    if not sets:
        raise InputError("no prediction sets: name at least one")
    first = next(iter(sets))
    ids = sets[first]["id"].astype(str).tolist()
    aligned = {}
    for name, frame in sets.items():
        if "prob" not in frame or frame["prob"].isna().any():
            raise InputError(f"{name}: has no probabilities (prob); train or predict it again without --no-oof")
        table = frame.assign(id=frame["id"].astype(str))
        if table["id"].duplicated().any():
            raise InputError(f"{name}: ids occur more than once: {listed(table['id'][table['id'].duplicated()])}")
        unlike = sorted(set(ids) ^ set(table["id"]))
        if unlike:
            raise InputError(f"{name}: {first} and it do not both have: {listed(unlike)}; predict the same rows")
        aligned[name] = table.set_index("id", drop=False).loc[ids].reset_index(drop=True)
    return ids, aligned
