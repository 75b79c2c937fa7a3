"""The maps of a judged blend tile by tile, as the report shows them: blobs matched per ratio, false ones, missed ones.

A tile is read with the weights and the post-processing that were fitted without its part. Nothing but matches and the
blobs to be shown is held.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from scipy.special import expit

from common.errors import InputError
from common.metrics.objects import Matches
from common.post.calibration import scale
from common.post.detection_fit import BLOB_IOU, cut_of
from common.post.detection_maps import Cut, cut_mask, match_cut, mix_logits

LEAST_FOUND = 0.1  # true blobs of which a smaller share is found are all alike: missed
HALF_FOUND = 0.5  # a true blob of which so much is found is not missed
NEAR = 1.6  # sides of a blob that its picture shows
LEAST_PX = 160


@dataclass(frozen=True)
class Blob:
    """A connected component: place of its tile, (first row, first column, end row, end column), pixels, mean calibrated
    probability, share of its pixels in the mask."""

    place: int
    box: tuple[int, int, int, int]
    pixels: int
    prob: float
    found: float


@dataclass(frozen=True)
class HonestMaps:
    """Reads maps of n tiles as a blend that was fitted without them gives them.

    ids: n names; paths: (n lists of m files); nested: per tile {"weights" (m), "post"}; read_map(path) -> (logit (H,W),
    valid, target).
    """

    ids: Sequence[str]
    paths: Sequence[Sequence[str]]
    nested: Sequence[Mapping]
    read_map: Callable

    def read(self, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(logit float32 (H,W), uncalibrated, valid bool (H,W), true bool (H,W)) of a tile."""
        maps = [self.read_map(path) for path in self.paths[place]]
        logit = mix_logits([one[0] for one in maps], self.nested[place]["weights"])
        valid = np.asarray(maps[0][1], bool)
        return logit, valid, (maps[0][2] == 1) & valid

    def cut(self, place: int, ratio: float | None) -> Cut:
        """What makes the mask of a tile at 1:ratio; None: probability .5 before calibration."""
        post = self.nested[place]["post"]
        return Cut(0.5, 1.0, int(post.get("min_blob", 0))) if ratio is None else cut_of(post, ratio=ratio)

    def temperature(self, place: int) -> float:
        return self.nested[place]["post"]["temperature"]


def open_honest(judgement: Mapping, members: Sequence[Mapping], read_map: Callable) -> HonestMaps:
    """The maps behind a judgement of common.post.detection_judge; members: `name` and `oof` (id, prob) of each set.

    InputError where a member of the blend is not given or lacks a tile.
    """
    frames, ids = {member["name"]: member["oof"] for member in members}, [str(one) for one in judgement["ids"]]
    columns = []
    for name in judgement["blend"]["members"]:
        if name not in frames:
            raise InputError(f"report: the blend has the member {name}, whose set is not given; give it with its maps")
        if "prob" not in frames[name]:
            raise InputError(
                f"report: the set {name} has counts only; a report needs its maps (train without --no-oof)"
            )
        paths = pd.Series(frames[name]["prob"].to_numpy(), frames[name]["id"].astype(str))
        lacking = [one for one in ids if one not in paths.index]
        if lacking:
            raise InputError(f"report: the set {name} lacks the tile {lacking[0]}; predict the same tiles in every set")
        columns.append(paths.loc[ids].astype(str).tolist())
    return HonestMaps(ids, list(zip(*columns, strict=True)), judgement["nested"], read_map)


def scan_maps(maps: HonestMaps, ratios: Sequence[float], positive: np.ndarray, most: int) -> dict:
    """One pass over the tiles: {"matches": {"raw", "outlines" or ratio: [n Matches]}, "false", "missed": [Blob]}.

    "outlines" are masks at the threshold of the largest balanced IoU. Of these: false, blobs of highest mean
    probability in tiles without the class; missed, true ones of which less than HALF_FOUND is found: the largest
    under LEAST_FOUND, then those of which least is. Of each `most` at most and one a tile. Matches are at BLOB_IOU.
    positive: (n,) bool.
    """
    cuts = {"raw": None, "outlines": 1} | {ratio: ratio for ratio in ratios}
    matches: dict[object, list[Matches]] = {name: [] for name in cuts}
    false, missed = [], []
    for place in range(len(maps.ids)):
        logit, valid, target = maps.read(place)
        for name, ratio in cuts.items():
            cut = maps.cut(place, ratio)
            matches[name].append(match_cut(cut_mask(logit, valid, cut), target, valid, logit, cut, (BLOB_IOU,)))
        cut = maps.cut(place, 1)
        pred, prob = cut_mask(logit, valid, cut), expit(scale(logit, cut.temperature))
        if positive[place]:
            blobs = blobs_of(target, prob, pred, place, cut.min_blob)
            missed += sorted((blob for blob in blobs if blob.found < HALF_FOUND), key=by_found)[:1]
        else:
            false += sorted(blobs_of(pred, prob, pred, place, 0), key=by_prob)[:1]
    return {
        "matches": matches,
        "false": sorted(false, key=by_prob)[:most],
        "missed": sorted(missed, key=by_found)[:most],
    }


def by_prob(blob: Blob) -> float:
    return -blob.prob


def by_found(blob: Blob) -> tuple[float, int]:
    return max(blob.found, LEAST_FOUND), -blob.pixels


def blobs_of(mask: np.ndarray, prob: np.ndarray, pred: np.ndarray, place: int, least: int) -> list[Blob]:
    """The 8-connected blobs of a mask (H,W) of at least `least` pixels, with mean prob and share in `pred`."""
    if not mask.any():
        return []
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    total = np.bincount(labels.ravel(), prob.ravel(), count)
    found = np.bincount(labels.ravel(), pred.ravel(), count)
    blobs = []
    for k in range(1, count):
        left, top, wide, high, pixels = (int(value) for value in stats[k])
        if pixels >= least:
            box = (top, left, top + high, left + wide)
            blobs.append(Blob(place, box, pixels, float(total[k] / pixels), float(found[k] / pixels)))
    return blobs


def window_of(box: tuple[int, int, int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a square window NEAR sides of the box wide, at least LEAST_PX, shifted into the tile."""
    top, left, bottom, right = box
    side = max(LEAST_PX, round(NEAR * max(bottom - top, right - left)))
    slices = []
    for low, high, length in ((top, bottom, shape[0]), (left, right, shape[1])):
        size = min(side, length)
        start = min(max(0, (low + high - size) // 2), length - size)
        slices.append(slice(start, start + size))
    return slices[0], slices[1]
