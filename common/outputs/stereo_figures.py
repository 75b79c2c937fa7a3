"""The drawings of the stereo report: predicted against true, residuals, learning curves, photos with their cells."""

import numpy as np

from common.outputs.figures import (
    MARKERS,
    MOST_SVG_MARKS,
    SERIES,
    colour,
    escaped,
    inline_svg,
    jpeg_uri,
    new_figure,
    plain_axes,
)
from common.outputs.report import figure, number, panels

HERO, SMALL = (400, 400), (232, 218)
HERO_TEXT, SMALL_TEXT = 10, 9.5
PHOTO_PX = 640


def short_name(output: str) -> str:
    """Dry_Clover_g -> Clover: what a heading has room for."""
    return output.removeprefix("Dry_").removesuffix("_g").replace("_", " ") or output


def hero_first(outputs, weights) -> list[int]:
    """Places of the outputs, the one with the largest weight first, the others in their order."""
    first = int(np.argmax(weights))
    return [first, *(i for i in range(len(outputs)) if i != first)]


def marks(axis, x, y, kinds: np.ndarray | None, size: float, total: int) -> None:
    """Scatter of x against y, with a colour and a mark per value of kinds (ints); pixels where there are very many."""
    kinds = np.zeros(len(x), int) if kinds is None else kinds
    for kind in np.unique(kinds):
        here = kinds == kind
        shade, mark = colour(SERIES[kind % len(SERIES)]), MARKERS[kind % len(MARKERS)]
        look = {"color": shade, "marker": mark, "linewidth": 0, "alpha": 0.6, "rasterized": total > MOST_SVG_MARKS}
        axis.scatter(x[here], y[here], s=size, **look)


def key_to_kinds(names: list[str]) -> str:
    """HTML legend of `marks`, in the order of the names."""
    shapes = {
        "o": '<circle cx="13" cy="6" r="4.4"/>',
        "s": '<rect x="9" y="2" width="8" height="8"/>',
        "^": '<path d="M13 1.5 18 10.5H8Z"/>',
        "D": '<path d="M13 .8 18.2 6 13 11.2 7.8 6Z"/>',
        "v": '<path d="M13 10.5 8 1.5H18Z"/>',
        "P": '<path d="M11 1.5h4v2.5h2.5v4H15v2.5h-4V8H8.5V4H11Z"/>',
    }
    items = []
    for i, name in enumerate(names):
        drawing = f'<g fill="var(--{SERIES[i % len(SERIES)]})">{shapes[MARKERS[i % len(MARKERS)]]}</g>'
        items.append(f'<span><svg viewBox="0 0 26 12" aria-hidden="true">{drawing}</svg>{escaped(name)}</span>')
    return '<div class="legend">' + "".join(items) + "</div>"


def predicted_panels(target, pred, outputs, weights, kinds) -> str:
    """Predicted against true in grams, a panel per output, with the line of equality. target, pred: (n, k)."""
    blocks = []
    for i in hero_first(outputs, weights):
        hero = not blocks
        drawing = new_figure(*(HERO if hero else SMALL))
        axis = plain_axes(drawing.add_subplot(), x="true, g", y="predicted, g", size=HERO_TEXT if hero else SMALL_TEXT)
        known = np.isfinite(target[:, i]) & np.isfinite(pred[:, i])
        x, y = target[known, i], pred[known, i]
        low, high = min([0.0, *y, *x]), 1.04 * max([1e-6, *x, *y])
        axis.plot([low, high], [low, high], color=colour("muted"), linewidth=0.9)
        marks(axis, x, y, None if kinds is None else kinds[known], 15 if hero else 11, target.size)
        margin = 0.03 * (high - low)
        axis.set(xlim=(low - margin, high), ylim=(low - margin, high), aspect="equal")
        axis.locator_params(nbins=6 if hero else 4)
        axis.yaxis.set_major_locator(axis.xaxis.get_major_locator())
        svg = inline_svg(drawing, f"pred-{i}", f"Predicted against true {short_name(outputs[i])}")
        blocks.append(figure(svg, title=short_name(outputs[i]), hero=hero))
    return panels(blocks)


def residual_panels(target, pred, outputs, weights, kinds) -> str:
    """Predicted minus true over the true value, with their histogram at the side, a panel per output."""
    blocks = []
    for i in hero_first(outputs, weights):
        hero = not blocks
        known = np.isfinite(target[:, i]) & np.isfinite(pred[:, i])
        x, error = target[known, i], (pred - target)[known, i]
        drawing = new_figure(*(HERO if hero else SMALL))
        axis, side = drawing.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (4, 1), "wspace": 0.02})
        plain_axes(axis, x="true, g", y="predicted − true, g", size=HERO_TEXT if hero else SMALL_TEXT)
        plain_axes(side, grid="")
        marks(axis, x, error, None if kinds is None else kinds[known], 15 if hero else 11, target.size)
        side.hist(error, bins=31 if hero else 21, orientation="horizontal", color=colour("muted"), alpha=0.75)
        side.spines["bottom"].set_visible(False)
        side.tick_params(labelleft=False, labelbottom=False)
        for part in (axis, side):
            part.axhline(0, color=colour("muted"), linewidth=0.9)
        axis.locator_params(nbins=6 if hero else 4)
        svg = inline_svg(drawing, f"residual-{i}", f"Residuals of {short_name(outputs[i])}")
        text = "no known values"
        if len(error):
            text = f"mean {number(error.mean(), 1, signed=True)} g, spread {number(error.std(), 1)} g"
        blocks.append(figure(svg, title=short_name(outputs[i]), caption=text, hero=hero))
    return panels(blocks)


def change_panels(before, after, outputs, weights) -> str:
    """What post-processing changed: predicted after minus before over the value before, a panel per output."""
    blocks = []
    for i in hero_first(outputs, weights):
        hero = not blocks
        drawing = new_figure(*(HERO if hero else SMALL))
        axis = plain_axes(drawing.add_subplot(), x="before, g", y="change, g", size=HERO_TEXT if hero else SMALL_TEXT)
        axis.axhline(0, color=colour("muted"), linewidth=0.9)
        marks(axis, before[:, i], (after - before)[:, i], None, 15 if hero else 11, before.size)
        axis.locator_params(nbins=6 if hero else 4)
        svg = inline_svg(drawing, f"change-{i}", f"Change of {short_name(outputs[i])} by post-processing")
        blocks.append(figure(svg, title=short_name(outputs[i]), hero=hero))
    return panels(blocks)


def cell_overlay(grids: list[tuple[int, int]]) -> str:
    """SVG laid over a photo of both halves: the line between them, and the cells of up to two grids (rows, columns)."""
    lines = [("M100 0V100", 3, "")]
    for index, (rows, columns) in enumerate(grids[:2]):
        across = [f"M0 {100 * r / rows:.3f}H200" for r in range(1, rows)]
        down = [f"M{h + 100 * c / columns:.3f} 0V100" for h in (0, 100) for c in range(1, columns)]
        if across or down:
            lines.append(("".join(across + down), 1.2, ' stroke-dasharray="5 4"' if index else ""))
    drawing = ""
    for path, width, dash in lines:
        for shade, extra in (("#000", 1.4), ("#fff", 0)):
            look = f'stroke="{shade}" stroke-opacity="{0.4 if extra else 0.92}" stroke-width="{width + extra}"'
            drawing += f'<path d="{path}" fill="none" {look}{dash} vector-effect="non-scaling-stroke"/>'
    return f'<svg viewBox="0 0 200 100" preserveAspectRatio="none" aria-hidden="true">{drawing}</svg>'


def photo(image, name: str, grids: list[tuple[int, int]]) -> str:
    """Photo (uint8 RGB of both halves) as a JPEG inside the page, its cells drawn over it."""
    high, wide = image.shape[:2]
    # width and height keep the room of the photo while it is decoded
    picture = f'<img src="{jpeg_uri(image, PHOTO_PX)}" width="{wide}" height="{high}" alt="Photo {escaped(name)}">'
    return f'<div class="photo">{picture}{cell_overlay(grids)}</div>'


def photo_figure(drawing: str, name: str, group: str, note: str, html: str) -> str:
    """A photo with its name, group and a note above it, and a table below."""
    words = f"<span><b>{escaped(name)}</b> {escaped(group)}</span><span>{escaped(note)}</span>"
    return f'<figure><div class="identity">{words}</div>{drawing}{html}</figure>'
