"""A written map of a scene against labels of it: pixels and blobs of the mask as it was handed in."""

from pathlib import Path

import cv2
import numpy as np
import pyogrio
import rasterio

from common.datasets.label_grids import IGNORED, VECTORS, grid_difference, make_label, read_label
from common.metrics.objects import match_objects, object_scores
from common.post.detection_maps import Cut
from common.post.prevalence import pixel_scores

OBJECT_IOU = (0.1, 0.3, 0.5)


def read_mask(target: Path, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mask bool, prob float32, valid bool), each (H,W), of a map: pixels above the threshold whose blob is among the
    polygons beside it, known by their first pixels."""
    with rasterio.open(target) as file:
        prob = file.read(1)
    valid = ~np.isnan(prob)
    mask = valid & (prob > threshold)
    _, _, _, (rows, columns) = pyogrio.raw.read(target.with_suffix(".gpkg"), read_geometry=False,
                                                columns=["row", "column"])  # fmt: skip
    count, blobs = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    kept = np.zeros(count, bool)
    kept[blobs[rows, columns]] = True
    kept[0] = False
    return kept[blobs], prob, valid


def score_truth(target: Path, truth: Path, cut: Cut) -> tuple[dict, dict]:
    """(pixel_scores, {IoU limit: object_scores}) of a map by labels on any grid, or polygons.

    Held in memory, some 15 bytes a pixel. Pixels without data and ignored ones are left out, of the truth also blobs
    under cut.min_blob. InputError where the labels do not fit.
    """
    if truth.suffix.lower() not in VECTORS and (differs := grid_difference(truth, target)):
        print(f"{truth.name}: {differs}; brought onto the scene's grid")
    label = read_label(make_label(truth, grid=target))
    mask, prob, valid = read_mask(target, cut.threshold)
    valid &= label != IGNORED
    mask, true = mask & valid, (label == 1) & valid
    hits = int((mask & true).sum())
    pixels = pixel_scores(hits, int(mask.sum()) - hits, int(true.sum()) - hits)
    matches = match_objects(mask, true, np.where(valid, prob, 0), iou=OBJECT_IOU, min_blob=cut.min_blob)
    return pixels, object_scores([matches])


def say_truth(target: Path, truth: Path, cut: Cut) -> None:
    pixels, objects = score_truth(target, truth, cut)
    print(f"{target.name} against {truth.name}: pixels: IoU {pixels['iou']:.3f}, precision "
          f"{pixels['precision']:.3f}, recall {pixels['recall']:.3f}")  # fmt: skip
    for iou, found in objects.items():
        hits, said, true = (round(n) for n in (found["tp"], found["tp"] + found["fp"], found["tp"] + found["fn"]))
        print(f"  objects at IoU {iou}: precision {found['precision']:.3f} ({hits} of {said}), "
              f"recall {found['recall']:.3f} ({hits} of {true})")  # fmt: skip
