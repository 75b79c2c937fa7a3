"""Pictures to look at while training: augmented inputs with their targets, and predictions against the truth."""

import math
from pathlib import Path

import numpy as np

from common.files import atomic_write
from common.outputs.figures import colour, new_figure, picture_bytes
from common.outputs.stereo_figures import short_name

WIDE, HIGH = 430, 215
GAP = 0.02  # between the halves, of the width of one
COLUMNS = 2
MOST_PX = 480


def to_picture(images: np.ndarray, mean, std) -> np.ndarray:
    """Normalised (..., 3, H, W) back to RGB (..., H, W, 3) in 0..1. mean, std: of the 3 bands, for values in 0..1."""
    picture = np.moveaxis(np.asarray(images, np.float32), -3, -1) * np.asarray(std, np.float32)
    return np.clip(picture + np.asarray(mean, np.float32), 0, 1)


def draw_pair(axis, halves: np.ndarray, grid: tuple[int, int], title: str) -> None:
    """Both halves (2, H, W, 3) side by side with a gap, the lines of the R x C cells in each."""
    rows, columns = grid
    step = max(1, math.ceil(max(halves.shape[1:3]) / MOST_PX))
    for side, half in enumerate(halves):
        left = side * (1 + GAP)
        # imshow fixes the limits to the last picture, hence the explicit ones below
        axis.imshow(half[::step, ::step], extent=(left, left + 1, 1, 0), aspect="auto", interpolation="bilinear")
        for line, width in ((colour("ink"), 1.6), ("white", 0.8)):
            look = {"color": line, "linewidth": width, "alpha": 0.55 if width > 1 else 0.95}
            for r in range(1, rows):
                axis.plot((left, left + 1), (r / rows, r / rows), **look)
            for c in range(1, columns):
                axis.plot((left + c / columns, left + c / columns), (0, 1), **look)
    high, wide = halves.shape[1:3]
    axis.set(xlim=(0, 2 + GAP), ylim=(1, 0))
    axis.set_aspect(high / wide)
    axis.set_axis_off()
    axis.set_title(title, fontsize=9, loc="left", color=colour("ink"), fontweight="bold", pad=4, parse_math=False)


def masses(values, outputs) -> str:
    """`Green 12.3  Dead -  ...`: grams, a dash where not known."""
    known = [f"{value:.1f}" if math.isfinite(value) else "—" for value in map(float, values)]
    return "   ".join(f"{short_name(output)} {text}" for output, text in zip(outputs, known, strict=True))


def draw_sheet(images, ids, grid, mean, std, captions: list[str], title: str, path) -> Path:
    """Picture (.png or .jpg) with a pair of halves per image, its id above and its caption below, two to a line."""
    pictures = to_picture(images, mean, std)
    lines = max(1, math.ceil(len(pictures) / COLUMNS))
    figure = new_figure(
        COLUMNS * WIDE + 40, lines * (HIGH + 22 + 13 * (1 + max((c.count("\n") for c in captions), default=0))) + 40
    )
    axes = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for axis in axes[len(pictures) :]:
        axis.set_axis_off()
    for axis, halves, name, caption in zip(axes, pictures, ids, captions, strict=False):
        draw_pair(axis, halves, grid, str(name))
        look = {"fontsize": 8, "color": colour("ink"), "va": "top", "linespacing": 1.5, "family": "monospace"}
        axis.text(0, -0.04, caption, transform=axis.transAxes, **look)
    figure.suptitle(title, fontsize=10, color=colour("muted"), x=0.01, ha="left", parse_math=False)
    return atomic_write(path, picture_bytes(figure, dpi=110, kind=Path(path).suffix))


def known_targets(targets, valid) -> np.ndarray:
    targets = np.asarray(targets, np.float64)
    return targets if valid is None else np.where(np.asarray(valid, bool), targets, np.nan)


def draw_contact_sheet(images, targets, ids, grid, mean, std, outputs, path: str | Path, *, valid=None) -> Path:
    """Picture (.png or .jpg) of augmented inputs as the model gets them, with their cells and their targets in grams.

    images: float (n, 2, 3, H, W), normalised, array or CPU tensor; targets: (n, k) grams, mixed where the images are;
    ids: n names; grid: (R, C); mean, std: (3,) of values in 0..1; valid: (n, k) bool, targets that are known.
    """
    captions = [masses(values, outputs) for values in known_targets(targets, valid)]
    high, wide = np.shape(images)[-2:]
    rows, columns = grid
    title = f"{len(ids)} inputs of two halves of {high} x {wide} px, cells {rows} x {columns}, targets in grams"
    return draw_sheet(images, ids, grid, mean, std, captions, title, path)


def draw_samples(images, targets, preds, ids, grid, mean, std, outputs, path: str | Path, *, valid=None) -> Path:
    """Picture (.png or .jpg) of inputs with true and predicted masses below each; arguments of `draw_contact_sheet`.

    preds: (n, k) grams.
    """
    captions = []
    names = [short_name(output) for output in outputs]
    for truth, pred in zip(known_targets(targets, valid), np.asarray(preds, np.float64), strict=True):
        lines = ["          " + "".join(f"{name[:8]:>9}" for name in names)]
        for label, values in (("true", truth), ("predicted", pred)):
            cells = (f"{value:9.1f}" if math.isfinite(value) else f"{'—':>9}" for value in map(float, values))
            lines.append(f"{label:<10}" + "".join(cells))
        captions.append("\n".join(lines))
    return draw_sheet(images, ids, grid, mean, std, captions, f"{len(ids)} photos, masses in grams", path)
