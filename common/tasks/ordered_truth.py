"""A written map of ordered classes against a raster of them: agreement of the classes, rank of the susceptibility."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from common.datasets.label_grids import IGNORED, grid_difference, make_label, read_label
from common.metrics.gates import check_gates, say_gates
from common.metrics.ordered_scores import count_scores, rank_scores, ranked_histogram
from common.metrics.segmentation import confusion
from common.post.ordered_tables import DRAWN, area_table
from common.tasks.ordered import GATES

ROWS = 512  # that are compared at a time
LEVEL = "production"
SEED = 0  # of the sample that areas are estimated by


def read_strips(target: Path) -> Iterator[tuple]:
    """(first row, classes uint8 (h,W), susceptibility float32 (h,W)) of a written map."""
    values = target.with_name(f"{target.stem.removesuffix('_class')}_susceptibility.tif")
    with rasterio.open(target) as classes, rasterio.open(values) as susceptible:
        for y in range(0, classes.height, ROWS):
            window = Window(0, y, classes.width, min(ROWS, classes.height - y))
            yield y, classes.read(1, window=window), susceptible.read(1, window=window)


def score_truth(target: Path, label: np.ndarray, outputs) -> tuple[np.ndarray, np.ndarray, dict]:
    """(counts (K,K), pixels (K,) of each class of the whole map, `count_scores` and `rank_scores`) of a map by labels
    uint8 (H,W) on its grid.

    Pixels without data are left out, and ignored ones of all but the whole map.
    """
    counts, hist, mapped = 0, 0, 0
    for y, classes, values in read_strips(target):
        truth = label[y : y + len(classes)]
        valid = (truth != IGNORED) & (classes != IGNORED)
        counts = counts + confusion(truth, classes, valid, len(outputs))
        hist = hist + ranked_histogram(values, truth, valid, classes=len(outputs))
        mapped = mapped + np.bincount(classes[classes != IGNORED], minlength=len(outputs))
    return counts, mapped, count_scores(counts, outputs) | rank_scores(hist, None, outputs)


def say_areas(counts: np.ndarray, mapped: np.ndarray, outputs) -> list[str]:
    """Lines: what a random sample of the labelled pixels of each mapped class tells of the whole map (Olofsson et al.
    2014), with 95 % intervals. Arguments as `score_truth` gives them."""
    if not counts.sum():
        return []
    table = area_table(counts, outputs, SEED, mapped=mapped).set_index(["estimate", "class"])
    cells = {key: interval(line) for key, line in table.iterrows()}
    lines = [f"area-adjusted, by up to {DRAWN} pixels drawn of each mapped class (95 % intervals; labels on "
             f"{counts.sum() / mapped.sum():.0%} of the map): overall accuracy {cells['overall', '']}"]  # fmt: skip
    return lines + [
        f"  {name}: user's accuracy {cells['users', name]}, producer's {cells['producers', name]}, "
        f"share of the area {cells['share', name]}, mapped {table.loc[('share', name), 'mapped']:.3f}"
        for name in outputs
    ]


def interval(line) -> str:
    """0.812 [0.790, 0.834]; unknown where the sample does not tell."""
    if not np.isfinite(line["value"]):
        return "unknown"
    bounds = f" [{line['low95']:.3f}, {line['high95']:.3f}]" if np.isfinite(line["low95"]) else ""
    return f"{line['value']:.3f}{bounds}"


def say_truth(target: Path, truth: Path, spec: dict, settings: dict) -> None:
    """Lines on a map by a raster of the classes, on any grid, with the values that the labels of the training have.

    InputError where it holds other values, or does not overlap. A byte a pixel of it is held in memory.
    """
    if differs := grid_difference(truth, target):
        print(f"{truth.name}: {differs}; brought onto the scene's grid")
    label = read_label(make_label(truth, grid=target), spec["label_map"])
    counts, mapped, scores = score_truth(target, label, spec["outputs"])
    print(f"{target.name} against {truth.name}, {counts.sum():,} pixels: kappa {scores['kappa']:.3f}, "
          f"rho of the susceptibility {scores['rho']:.3f}")  # fmt: skip
    for name in spec["outputs"]:
        said = ", ".join(f"{word} {scores[f'{what}_{name}']:.3f}" for what, word in
                         (("iou", "IoU"), ("precision", "precision"), ("recall", "recall")))  # fmt: skip
        print(f"  {name}: {said}")
    for line in say_areas(counts, mapped, spec["outputs"]):
        print(line)
    if set(GATES[LEVEL]) <= set(scores):
        for line in say_gates(check_gates(scores, GATES[LEVEL]), LEVEL):
            print(line)
