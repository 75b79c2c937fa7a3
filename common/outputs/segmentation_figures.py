"""The drawings of the segmentation report: confusion matrix, shares of the sampler, panels of a tile."""

import base64
from html import escape

import cv2
import numpy as np

from common.outputs.figures import colour, inline_svg, jpeg_uri, new_figure, plain_axes
from common.outputs.report import breakable, figure, number, panels
from common.outputs.tile_pictures import (
    class_colours,
    class_legend,
    class_picture,
    combinations_of,
    error_names,
    error_picture,
    false_colour,
    shrunk,
)

PANEL_PX = 320
THIN = "\N{NARROW NO-BREAK SPACE}"


def thousands(count) -> str:
    """1234567 -> 1 234 567, with spaces that do not break."""
    return f"{int(count):,}".replace(",", THIN)


def swatch(name: str, shade: str) -> str:
    """A name behind a small square of its colour, for tables and legends."""
    square = f'<rect x="7" y="0" width="12" height="12" fill="{shade}" stroke="var(--muted)" stroke-width=".7"/>'
    return f'<span class="key"><svg viewBox="0 0 26 12" aria-hidden="true">{square}</svg>{escape(name)}</span>'


def colour_legend(legend: dict[str, str]) -> str:
    """HTML legend of colour -> words."""
    return '<div class="legend">' + "".join(swatch(words, shade) for shade, words in legend.items()) + "</div>"


def confusion_table(counts: np.ndarray, outputs: list[str]) -> str:
    """HTML table of counts (K, K): a line per true class with its shares (tinted by size) and pixels, and the sums."""
    colours, sums = class_colours(outputs), counts.sum(1)
    head = "".join(f'<th scope="col" class="n">{breakable(escape(name))}</th>' for name in outputs)
    head = f'<tr><th scope="col">True ↓ predicted →</th>{head}<th scope="col" class="n">True, pixels</th></tr>'
    lines = []
    for t, name in enumerate(outputs):
        cells = [confusion_cell(counts[t, p], sums[t], right=t == p) for p in range(len(outputs))]
        first = f'<th scope="row">{swatch(name, colours[name])}</th>'
        lines.append(f'<tr>{first}{"".join(cells)}<td class="n">{thousands(sums[t])}</td></tr>')
    said = "".join(f'<td class="n">{thousands(count)}</td>' for count in counts.sum(0))
    last = f'<tr><th scope="row">Predicted, pixels</th>{said}<td class="n">{thousands(counts.sum())}</td></tr>'
    body = f'<table class="confusion"><thead>{head}</thead><tbody>{"".join(lines)}{last}</tbody></table>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">{body}</div>'


def confusion_cell(count: int, total: int, *, right: bool) -> str:
    """Share of the line in percent over the pixels; blue where right, orange where wrong, the stronger the larger."""
    share = count / total if total else None
    # half at most, so that the text stays readable in both themes
    tint = f"color-mix(in srgb, var(--{'c0' if right else 'c1'}) {50 * (share or 0):.1f}%, transparent)"
    percent = number(None if share is None else 100 * share, 2 if share and share < 0.1 else 1)
    return f'<td class="n" style="background:{tint}"><b>{percent}</b><small>{thousands(count)}</small></td>'


SHARE_MARKS = {"s": ("c5", 46), "|": ("ink", 260), "D": ("c1", 34), "o": ("c0", 46)}


def shares_figure(shares: dict[str, np.ndarray], outputs: list[str], name: str) -> str:
    """A line per class with a mark for each of `shares` (words -> (K,) in percent, four at most) on one axis."""
    drawing = new_figure(400, 50 + 40 * len(outputs))
    axis = plain_axes(drawing.add_subplot(), x="% of the pixels", grid="x", size=10)
    places, key = np.arange(len(outputs))[::-1], []
    for (mark, (shade, size)), (words, values) in zip(SHARE_MARKS.items(), shares.items(), strict=False):
        axis.scatter(values, places, marker=mark, s=size, color=colour(shade), linewidth=2, zorder=3)
        drawn = {"s": "M9 2h8v8H9Z", "|": "M12 0h2v12h-2Z", "D": "M13 .8 18.2 6 13 11.2 7.8 6Z", "o": ""}[mark]
        drawn = f'<path d="{drawn}"/>' if drawn else '<circle cx="13" cy="6" r="4.6"/>'
        svg = f'<svg viewBox="0 0 26 12" aria-hidden="true"><g fill="var(--{shade})">{drawn}</g></svg>'
        key.append(f"<span>{svg}{escape(words)}</span>")
    top = max(float(np.max(values)) for values in shares.values())
    axis.set(xlim=(-0.03 * top, 1.05 * top), ylim=(-0.5, len(outputs) - 0.3))
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    for place, words in zip(places, outputs, strict=True):  # not tick labels: a phone's larger text would be cut
        axis.text(0, place + 0.22, words, color=colour("ink"), fontsize=10, parse_math=False)
    drawn = figure(inline_svg(drawing, name, "Shares of the classes"), hero=True)
    return f'<div class="legend">{"".join(key)}</div>' + panels([drawn], pairs=True)


def png_uri(picture: np.ndarray) -> str:
    """data: URI of a picture of flat colours, uint8 RGB, losslessly and smaller than as JPEG."""
    whole, content = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not whole:
        raise ValueError(f"a picture of shape {picture.shape} and type {picture.dtype} cannot be written as PNG")
    return "data:image/png;base64," + base64.b64encode(content.tobytes()).decode()


def panel(words: str, uri: str, shape, name: str) -> str:
    """One picture with its words above; width and height keep its room while it is decoded."""
    size = f'width="{shape[1]}" height="{shape[0]}"'
    return f'<figure><figcaption>{escape(words)}</figcaption><img src="{uri}" {size} alt="{escape(name)}"></figure>'


def tile_panels(tile, target, pred, valid, *, bands: list[str], outputs: list[str], name: str) -> str:
    """A tile in each band combination, its truth and, where pred is not None, the prediction and its errors."""
    html = []
    for combination, shown in list(combinations_of(bands).items())[:2]:
        picture = shrunk(false_colour(tile, bands, combination, valid=valid), PANEL_PX)
        words = f"{combination}: {', '.join(shown)}"
        html.append(panel(words, jpeg_uri(picture, PANEL_PX), picture.shape, f"Tile {name}, {combination}"))
    maps = {"truth": class_picture(target, outputs, valid)}
    if pred is not None:
        maps |= {"prediction": class_picture(pred, outputs, valid), "error": error_picture(target, pred, valid)}
    for words, whole in maps.items():
        picture = shrunk(whole, PANEL_PX)
        html.append(panel(words, png_uri(picture), picture.shape, f"Tile {name}, {words}"))
    return '<div class="tile">' + "\n".join(html) + "</div>"


def panel_legends(outputs: list[str], errors: bool) -> str:
    """Legends of the class colours and, where asked for, of the errors."""
    legends = colour_legend(class_legend(outputs))
    return legends + (colour_legend(error_names(outputs)) if errors else "")
