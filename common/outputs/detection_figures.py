"""The drawings of the report of a rare class: precision over recall per ratio, thresholds, reliability; pr_curve.png.

A ratio r stands for r tiles without the class on every tile that has it (common.post.prevalence).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from common.files import atomic_write
from common.metrics.curves import average_precision, logit_histogram, pr_curve
from common.metrics.objects import object_curve
from common.outputs.curves import PANEL, PANEL_TEXT
from common.outputs.figures import (
    DASHES,
    MARKERS,
    SERIES,
    colour,
    inline_svg,
    new_figure,
    picture_bytes,
    plain_axes,
)
from common.outputs.mask_sets import prob_paths
from common.outputs.masks import read_beside, read_logit
from common.outputs.report import MINUS, figure, panels
from common.outputs.tile_pictures import rgb
from common.post.prevalence import at_ratio

RATIOS = (1.0, 200.0, 500.0, 1000.0)
MOST_ODDS = 10.0  # ends of the scale of probability pictures: p = .00005 and .99995
# dark where the class is unlikely, through grey at p = .5 to pale yellow; lightness rises all along (after cividis)
STOPS = ("#00224e", "#35456c", "#666970", "#a59c74", "#fee838")


def ratio_name(ratio: float) -> str:
    """1:200."""
    return f"1:{ratio:g}"


def short(value: float, digits: int = 3) -> str:
    """.627: a share without its zero."""
    return f"{value:.{digits}f}".replace("0.", ".", 1) if np.isfinite(value) else "none"


def probability(value) -> str | None:
    """A probability with as many digits as tell it from 0 and 1: .783, .999988, 1 − 3e−10; None for None and nan."""
    if value is None or not np.isfinite(value):
        return None
    rest = min(value, 1 - value)
    if rest < 1e-8:
        return f"{'1 ' + MINUS + ' ' if value > rest else ''}{rest:.0e}".replace("e-", f"e{MINUS}")
    return short(value, 3 if rest >= 0.01 else 1 - int(np.floor(np.log10(rest))))


def curve_axis(axis: Axes, *, x: str = "recall", y: str = "precision") -> Axes:
    """Axis from 0 to 1 both ways."""
    plain_axes(axis, x=x, y=y, size=PANEL_TEXT)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    return axis


def draw_lines(axis: Axes, curves: Mapping[str, tuple], points: Mapping[str, tuple] | None = None) -> None:
    """A line per item of `curves` (words -> (recall, precision)), in the order of `key_to_lines`, and a mark
    for its item of `points` (words -> (recall, precision))."""
    for index, (words, (recall, precision)) in enumerate(curves.items()):
        shade, dash = colour(SERIES[index % len(SERIES)]), DASHES[index % len(DASHES)]
        axis.plot(recall, precision, color=shade, linestyle=dash, linewidth=1.5)
        point = (points or {}).get(words)
        if point is not None and np.isfinite(point).all():
            axis.plot(*point, MARKERS[index % len(MARKERS)], color=shade, markersize=6.5)


def pixel_curves(hist, ratios: Sequence[float], positives: int, negatives: int) -> dict[float, tuple]:
    """{ratio: (recall, precision)} of hist (2, 2, bins) [tile, pixel, bin]; without negative tiles only 1."""
    curves = {}
    for ratio in ratios:
        if ratio != 1 and not negatives:
            continue
        curve = pr_curve(at_ratio(hist, ratio, positives=positives, negatives=negatives))
        curves[ratio] = (curve.recall, curve.precision)
    return curves


def object_curves(matches: Mapping, weights: Mapping, ratios: Sequence[float], iou: float) -> dict[str, tuple]:
    """{ratio: (recall, precision)} of the blobs that are kept as the least mean probability falls, as steps.

    matches: {ratio: [n Matches]}; weights: {ratio: (n,)}.
    """
    curves = {}
    for ratio in ratios:
        curve = object_curve(matches[ratio], weights[ratio], iou)
        place = np.round(500 * np.stack([curve.recall, curve.precision]))
        kept = np.append(True, (np.diff(place, axis=1) != 0).any(0))[: len(curve.recall)]
        kept[-1:] = True
        recall, precision = curve.recall[kept], curve.precision[kept]
        curves[ratio] = (np.append(0, np.repeat(recall, 2)[:-1]), np.repeat(precision, 2)) if len(recall) else ([], [])
    return curves


def curves_figure(curves: Mapping, points: Mapping, name: str, *, title: str, caption: str = "", target=None) -> str:
    """One panel of precision over recall, {words: (recall, precision)}; target: a precision drawn as a line."""
    drawing = new_figure(*PANEL)
    axis = curve_axis(drawing.add_subplot())
    if target is not None:
        axis.axhline(target, color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 2)))
    draw_lines(axis, curves, points)
    return figure(inline_svg(drawing, name, title), title=title, caption=caption, hero=True)


def thresholds_figure(table: pd.DataFrame, name: str) -> str:
    """Two panels over the ratios: what the thresholds reach, and where they lie, in log-odds of the probability.

    table: lines of ratio, target, reachable, threshold, precision, recall, "honest precision", "honest recall",
    lowest, highest. A hollow mark: the precision is not reachable there.
    """
    at, ratios = np.arange(len(table)), [ratio_name(ratio) for ratio in table["ratio"]]
    reached, blocks = table["reachable"].to_numpy(bool), []
    drawing = new_figure(*PANEL)
    axis = plain_axes(drawing.add_subplot(), x="positive to negative tiles", size=PANEL_TEXT)
    axis.axhline(float(table["target"].iloc[0]), color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 2)))
    for index, key in enumerate(REACHED):
        draw_marks(axis, at, table[key].to_numpy(float), reached, index)
    axis.set(ylim=(-0.03, 1.03), xlim=(-0.35, len(at) - 0.65), xticks=at)
    axis.set_xticklabels(ratios)
    blocks.append(figure(inline_svg(drawing, f"{name}-reached", "Reached"), title="Reached",
                         caption="at the threshold of each ratio", hero=True))  # fmt: skip
    drawing = new_figure(*PANEL)
    axis = plain_axes(drawing.add_subplot(), x="positive to negative tiles", y="log-odds", size=PANEL_TEXT)
    low, odds, high = (log_odds(table[key].to_numpy(float)) for key in ("lowest", "threshold", "highest"))
    axis.vlines(at, low, high, color=colour("c0"), linewidth=2)
    draw_marks(axis, at, odds, reached, 0)
    axis.set(xlim=(-0.35, len(at) - 0.65), xticks=at)
    axis.set_xticklabels(ratios)
    axis.margins(y=0.2)
    caption = "log p / (1 \N{MINUS SIGN} p); the bar spans the fits that leave a part out"
    blocks.append(figure(inline_svg(drawing, f"{name}-threshold", "Threshold"), title="Threshold", caption=caption,
                         hero=True))  # fmt: skip
    return panels(blocks, pairs=True)


# key of the table -> words of the legend, in the order of the lines
REACHED = {
    "honest precision": "precision, honest",
    "honest recall": "recall, honest",
    "precision": "precision, as fitted",
    "recall": "recall, as fitted",
}


def draw_marks(axis: Axes, at, values, filled, index: int) -> None:
    """A line through values with marks, hollow where not `filled`."""
    shade, mark = colour(SERIES[index]), MARKERS[index]
    axis.plot(at, values, color=shade, linestyle=DASHES[index], linewidth=1.4)
    for full, face in ((True, shade), (False, colour("paper"))):
        some = filled == full
        axis.plot(at[some], values[some], mark, color=shade, markerfacecolor=face, markersize=6)


def log_odds(prob) -> np.ndarray:
    prob = np.clip(np.asarray(prob, np.float64), 1e-13, 1 - 1e-13)
    return np.log(prob) - np.log1p(-prob)


def reliability_figures(diagrams: Mapping[str, pd.DataFrame], name: str) -> str:
    """A panel per diagram (words -> prob, share, weight): share of the class over the mean probability of each part."""
    blocks = []
    for index, (words, table) in enumerate(diagrams.items()):
        drawing = new_figure(*PANEL)
        axis = curve_axis(drawing.add_subplot(), x="probability", y="share of the class")
        axis.plot([0, 1], [0, 1], color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 2)))
        axis.plot(table["prob"], table["share"], color=colour("c0"), linewidth=1.3, marker="o", markersize=4.5)
        blocks.append(figure(inline_svg(drawing, f"{name}-{index}", words), title=words, hero=True))
    return panels(blocks, pairs=True)


def probability_picture(odds: np.ndarray, valid: np.ndarray, ground: str) -> np.ndarray:
    """Log-odds (H,W) as uint8 RGB (H,W,3) along STOPS from -MOST_ODDS to MOST_ODDS; `ground`: colour of no data."""
    stops = np.array([rgb(shade) for shade in STOPS], np.float32)
    place = np.clip((odds + MOST_ODDS) / (2 * MOST_ODDS), 0, 1)
    knots = np.linspace(0, 1, len(stops))
    picture = np.stack([np.interp(place, knots, stops[:, k]) for k in range(3)], -1)
    picture = np.round(picture).astype(np.uint8)
    picture[~valid] = rgb(ground)
    return picture


def probability_legend() -> dict[str, str]:
    """Colour -> words of some probabilities of `probability_picture`."""
    words = ("p ≤ .00005", "p = .007", "p = .5", "p = .993", "p ≥ .99995")
    return {to_hex(stop): text for stop, text in zip(STOPS, words, strict=True)}


def set_histogram(frame: pd.DataFrame) -> tuple[np.ndarray, int, int]:
    """(int64 (2, 2, bins) [tile is positive, pixel is positive, bin], positive tiles, negative tiles) of a set of maps.

    InputError where it has counts only or its maps know no truth.
    """
    hist, tiles = np.zeros((2, 2, 1), np.int64), [0, 0]
    for path in prob_paths("the set", frame):
        valid, target = np.asarray(read_beside(path, "valid"), bool), read_beside(path, "target") == 1
        positive = int((target & valid).any())
        counted = logit_histogram(read_logit(path), target, valid)
        hist = hist if hist.shape[-1] > 1 else np.zeros((2, *counted.shape), np.int64)
        hist[positive] += counted
        tiles[positive] += 1
    return hist, tiles[1], tiles[0]


def draw_pr_curve(frame: pd.DataFrame, path: str | Path, *, ratios: Sequence[float] = RATIOS, title: str = "") -> Path:
    """Picture (.png or .jpg) of precision over recall of the pixels of a set, a line per ratio with its average
    precision; returns its path.

    frame: `prob`, paths of maps with their truth. Without tiles that lack the class only 1:1 is drawn, without a pixel
    of the class nothing, and the picture says so. InputError as `set_histogram`.
    """
    hist, positives, negatives = set_histogram(frame)
    drawing = new_figure(460, 340)
    axis = curve_axis(drawing.add_subplot())
    curves = {}
    if positives:
        for ratio, curve in pixel_curves(hist, ratios, positives, negatives).items():
            area = average_precision(at_ratio(hist, ratio, positives=positives, negatives=negatives))
            curves[f"{ratio_name(ratio)}, AP {short(area)}"] = curve
        draw_lines(axis, curves)
        handles = axis.get_lines()
        look = {"loc": "best", "frameon": False, "fontsize": PANEL_TEXT, "labelcolor": colour("ink")}
        axis.legend(handles, list(curves), **look)
    else:
        axis.text(0.5, 0.5, "no tile has a pixel of the class", ha="center", color=colour("muted"))
    words = f"{positives} tiles with the class, {negatives} without"
    words = f"{title}: {words}" if title else words
    drawing.suptitle(words, color=colour("ink"), fontsize=10.5, x=0.01, ha="left", parse_math=False)
    return atomic_write(path, picture_bytes(drawing, kind=Path(path).suffix))
