"""What is fitted to maps of a rare class: temperature, thresholds, blob limits, weights of a blend; a part left out.

The score is the IoU of the class over the pixels of all tiles, where those without the class weigh as much in all as
those with it (1:1, "balanced"). A clean map keeps the outlines of that score's threshold and drops whole blobs, since a
threshold high enough for a rare class eats the outlines of what it finds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from common.metrics.curves import average_precision
from common.metrics.objects import Matches, object_curve
from common.post.calibration import fit_temperature, threshold_prob
from common.post.detection_maps import Cut, Maps, Sample, histograms, match_outlines, sample_maps
from common.post.prevalence import at_ratio, best_threshold, negative_weight, pixel_scores, ratio_table, tile_weights

CHANCE = 1.5  # average precision, in prevalences, up to which a set knows nothing: a constant has 1
STEPS = 15  # of the greedy selection
KINDS = ("mean", "greedy")
CLEANS = ("blobs", "pixels")  # what is dropped for the precision of a ratio: whole blobs, or pixels
BLOB_IOU = 0.3  # from which a blob is a true one, where limits are fitted


@dataclass(frozen=True)
class Aim:
    """What is fitted for: the precision (of pixels, of blobs) wanted at each of `ratios`; calibration is for `main`.

    min_blob: 8-connected blobs under so many pixels are dropped from masks and from the truth's objects.
    """

    ratios: tuple[float, ...] = (200, 500, 1000)
    main: float = 200
    precision: float = 0.8
    min_blob: int = 0


def key_of(ratio: float) -> str:
    """The key of a ratio in post.json: "200"."""
    return f"{ratio:g}"


def post_of(hist, tiles: tuple[int, int], aim: Aim) -> dict:
    """post.json (plain types) of hist (2, 2, bins) [tile is positive, pixel is positive, bin].

    tiles: (with the class, without). temperature: fitted at the main ratio (among the positive tiles where there are
    no others); threshold (calibrated probability), ratio, target_precision; ratios {"200": line of ratio_table};
    balanced: the threshold of the largest balanced IoU; min_blob. `with_blobs` adds the limits of blobs.
    """
    positives, negatives = tiles
    known = {"positives": positives, "negatives": negatives}
    temperature = fit_temperature(at_ratio(hist, aim.main, **known))
    ratios = sorted({*aim.ratios, aim.main})
    table = ratio_table(hist, ratios, **known, target_precision=aim.precision, temperature=temperature)
    lines = {key_of(ratio): plain(line) for ratio, line in zip(ratios, table.to_dict("records"), strict=True)}
    threshold = lines[key_of(aim.main)]["threshold"]
    return {
        "temperature": temperature,
        "threshold": threshold,
        "ratio": aim.main,
        "target_precision": aim.precision,
        "ratios": lines,
        "balanced": threshold_prob(best_threshold(at_ratio(hist, 1, **known)), temperature),
        "min_blob": int(aim.min_blob),
    }


def with_blobs(maps: Maps, fits: Sequence[tuple[np.ndarray, dict, int | None]], aim: Aim) -> list[dict]:
    """The post.json of each fit (weights (m,), post, part left out or None) with its limits of blobs.

    Blobs are outlined at the balanced threshold and matched with the truth at BLOB_IOU, over all tiles but the part's.
    A ratio's line gains blob (blobs of a smaller mean calibrated probability are dropped), object_precision,
    object_recall, object_reachable; the post gains blob, that of the main ratio.
    """
    jobs = [(weights, cut_of(post, ratio=1), outside) for weights, post, outside in fits]
    done = []
    for matches, (_, post, outside) in zip(match_outlines(maps, jobs, BLOB_IOU), fits, strict=True):
        positive = maps.positive[maps.part != outside] if outside is not None else maps.positive
        lines = {
            key: line | plain(blob_limit(matches, positive, line["ratio"], aim.precision))
            for key, line in post["ratios"].items()
        }
        done.append(post | {"ratios": lines, "blob": lines[key_of(aim.main)]["blob"]})
    return done


def blob_limit(matches: Sequence[Matches], positive: np.ndarray, ratio: float, precision: float) -> dict:
    """{"blob", "object_precision", "object_recall", "object_reachable"} of blobs matched on tiles, positive bool (n,).

    Of all limits at 1:ratio that of the largest recall where `precision` is reached, else that of the best F0.5; half
    way down to the next blob, so that rounding drops none. Without negative tiles nothing is reached and the scores are
    nan, the limit that of the best F0.5 among the positives; 0 where no limit is better than another.
    """
    others = bool((~positive).any())
    weights = tile_weights(positive, ratio)
    nothing = {"blob": 0.0, "object_precision": float("nan"), "object_recall": float("nan"), "object_reachable": False}
    curve = object_curve(matches, weights, BLOB_IOU)
    if not len(curve.score) or not curve.recall[-1] > 0:
        return nothing
    reached = curve.precision >= precision
    reachable = bool(reached.any() and others)
    f_half = 1.25 * curve.precision * curve.recall / np.maximum(0.25 * curve.precision + curve.recall, 1e-12)
    at = int(np.argmax(np.where(reached, curve.recall, -1) if reachable else f_half))  # of equals the highest limit
    scores = {"object_precision": curve.precision[at], "object_recall": curve.recall[at]} if others else {}
    limit = 0.0
    if at + 1 < len(curve.score):
        limit = max(curve.score[at : at + 2].mean(), np.nextafter(curve.score[at + 1], 1))
    return nothing | scores | {"blob": float(limit), "object_reachable": reachable}


def plain(line: dict) -> dict:
    """Numbers as JSON has them: None for nan, no NumPy types."""
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in line.items()}
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in values.items()}


def cut_of(
    post: dict,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
    min_blob: int | None = None,
    by: str = "pixels",
) -> Cut:
    """The Cut of post.json: `threshold` (calibrated probability) if given, else that of `ratio`, else the main one.

    ratio 1 is the balanced one. by "blobs": the balanced threshold and the limit of blobs of the ratio instead; pixels
    where post.json has no such limit. InputError for a ratio that nothing was fitted for.
    """
    if by not in CLEANS:
        raise InputError(f"--clean {by}: a mask is cleaned by {' or '.join(CLEANS)}")
    lines = post.get("ratios", {})
    if threshold is None and ratio is not None and ratio != 1 and key_of(ratio) not in lines:
        raise InputError(f"ratio 1:{ratio:g}: thresholds were fitted for {', '.join(lines) or 'none'}; choose one")
    line = post if ratio is None or ratio == 1 else lines.get(key_of(ratio), {})
    least = 0.0
    if threshold is None and by == "blobs" and ratio != 1 and "blob" in line:
        threshold, least = post["balanced"], line["blob"]
    elif threshold is None:
        threshold = post["balanced"] if ratio == 1 else line["threshold"]
    small = post.get("min_blob", 0) if min_blob is None else min_blob
    return Cut(threshold, post["temperature"], int(small), least)


def balanced_counts(counts, positive) -> np.ndarray:
    """float64 (3,): hits, false and missed pixels at 1:1, from counts (n, 2, 2) [t, p] of tiles and positive (n,)."""
    return ratio_counts(counts, positive, 1)


def ratio_counts(counts, positive, ratio: float) -> np.ndarray:
    """float64 (3,): hits, false and missed pixels at 1:ratio."""
    positive = np.asarray(positive, bool)
    weight = negative_weight(int(positive.sum()), int((~positive).sum()), ratio)
    total = counts[positive].sum(0) + weight * counts[~positive].sum(0, dtype=np.float64)
    return np.array([total[1, 1], total[0, 1], total[1, 0]])


def balanced_iou(counts, positive) -> float:
    """The score: IoU of the class at 1:1 from counts (n, 2, 2); nan without a positive pixel in truth or output."""
    return pixel_scores(*balanced_counts(counts, positive))["iou"]


def knows(hist, tiles: tuple[int, int]) -> bool:
    """Whether a set is better than a constant: average precision at 1:1 above CHANCE times the share of the class."""
    known = at_ratio(hist, 1, positives=tiles[0], negatives=tiles[1])
    return bool(known[1].sum() > 0 and average_precision(known) > min(CHANCE * known[1].sum() / known.sum(), 0.99))


def sound_members(hists: np.ndarray, maps: Maps, outside: int | None) -> np.ndarray:
    """(m,) bool: sets better than a constant in all parts but `outside`; all of them if none is.

    hists: (m, P, 2, 2, bins) of the sets.
    """
    kept = np.arange(hists.shape[1]) != outside
    sound = np.array([knows(one[kept].sum(0), maps.tiles(outside=outside)) for one in hists])
    return sound if sound.any() else np.ones_like(sound)


def sample_ap(prob, target, weight) -> float:
    """Average precision of weighted pixels: prob, target, weight (n,); equal probabilities are one step."""
    order = np.argsort(-prob, kind="stable")
    hits, all_ = (weight * target)[order].cumsum(), weight[order].cumsum()
    last = np.append(np.diff(prob[order]) != 0, True)
    hits, all_ = hits[last], all_[last]
    return float((np.diff(hits, prepend=0) * hits / all_).sum() / hits[-1]) if hits[-1] > 0 else 0.0


def fit_greedy(sample: Sample) -> np.ndarray:
    """(m,) shares of greedy selection with replacement for average precision at 1:1 (Caruana 2004).

    Of the path the best length is kept, of equal ones the shortest.
    """
    total = np.zeros(sample.prob.shape[1], np.float32)
    picks, best, kept = [], -np.inf, 0
    for step in range(STEPS if len(sample.prob) > 1 else 1):
        scores = [sample_ap(total + prob, sample.target, sample.weight) for prob in sample.prob]
        picks.append(int(np.argmax(scores)))
        total = total + sample.prob[picks[-1]]
        if scores[picks[-1]] > best + 1e-9:
            best, kept = scores[picks[-1]], step + 1
    return np.bincount(picks[:kept], minlength=len(sample.prob)) / kept


def fit_weights(kind: str, sound: np.ndarray, sample: Sample | None) -> np.ndarray:
    """(m,) weights that add to one, 0 for sets that are not sound; sample: for "greedy", without what is left out."""
    if kind not in KINDS:
        raise InputError(f"--kind {kind}: maps of a rare class are blended by {', '.join(KINDS)}")
    weights = np.zeros(len(sound))
    if kind == "mean" or sound.sum() == 1:
        weights[sound] = 1 / sound.sum()
        return weights
    weights[sound] = fit_greedy(Sample(sample.prob[sound], sample.target, sample.weight, sample.part))
    return weights


def unique_vectors(vectors: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(the different ones (v, m), which of them each is)."""
    return np.unique(np.round(np.stack(vectors), 12), axis=0, return_inverse=True)


def fit_parts(hist: np.ndarray, maps: Maps, aim: Aim) -> list[dict]:
    """post.json fitted without each part; hist: (P, 2, 2, bins) of one blend."""
    total = hist.sum(0)
    return [post_of(total - one, maps.tiles(outside=part), aim) for part, one in enumerate(hist)]


def fit_all(maps: Maps, kind: str, seed: int, aim: Aim) -> dict:
    """Everything that is fitted: {"hists" (m, P, 2, 2, bins), "weights" (m,), "sound" (m,), "post", "nested": per part
    {"weights", "post"}, "honest_hist" (P, 2, 2, bins), "single": {member: post per part}}."""
    members, parts = list(maps.frames), int(maps.part.max()) + 1
    hists = histograms(maps, np.eye(len(members)))
    greedy = kind == "greedy" and len(members) > 1
    sample = sample_maps(maps, tile_weights(maps.positive, 1), seed) if greedy else None
    vectors, sound = [], sound_members(hists, maps, None)
    for part in range(parts):
        able = sound_members(hists, maps, part)
        vectors.append(fit_weights(kind, able, sample.without(part) if greedy else None))
    vectors.append(fit_weights(kind, sound, sample))
    blends, which = unique_vectors(vectors)
    mixed = hists if len(members) == 1 else histograms(maps, blends)
    posts = [post_of(mixed[which[p]].sum(0) - mixed[which[p], p], maps.tiles(outside=p), aim) for p in range(parts)]
    posts.append(post_of(mixed[which[-1]].sum(0), maps.tiles(), aim))
    *posts, post = with_blobs(maps, list(zip(vectors, posts, [*range(parts), None], strict=True)), aim)
    return {
        "hists": hists,
        "weights": vectors[-1],
        "sound": sound,
        "post": post,
        "nested": [{"weights": vectors[p].tolist(), "post": posts[p]} for p in range(parts)],
        "honest_hist": np.stack([mixed[which[p], p] for p in range(parts)]),
        "single": {name: fit_parts(hist, maps, aim) for name, hist in zip(members, hists, strict=True)},
    }
