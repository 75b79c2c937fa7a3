"""Drawings for a page or a file: matplotlib without pyplot, as inline SVG in the page's colours or as picture bytes.

A figure is drawn with the light colours of PALETTE. `inline_svg` writes each of them as a CSS variable, so that one
drawing serves the light and the dark theme and takes the page's own font.
"""

import base64
import io
import re

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from common.errors import InputError

# name -> (light, dark). The c* are for series: told apart by the common colour-vision deficiencies and in grey.
PALETTE = {
    "ink": ("#17201c", "#e4e9e6"),
    "muted": ("#56645d", "#9aa8a1"),
    "rule": ("#d9dfdb", "#323c37"),
    "paper": ("#fcfdfc", "#131816"),
    "panel": ("#f3f6f4", "#1b221f"),
    "accent": ("#0c6b58", "#58c7a8"),
    "warn": ("#a8430f", "#f0966a"),
    "c0": ("#0065a3", "#62b3ec"),
    "c1": ("#c4501b", "#f0905f"),
    "c2": ("#118a68", "#46c9a0"),
    "c3": ("#8a57ad", "#c79fe6"),
    "c4": ("#b58300", "#e2b84a"),
    "c5": ("#4b5a64", "#aab8c1"),
}
SERIES = ("c0", "c1", "c2", "c3", "c4", "c5")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))
STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "path.simplify": True,
}
# More marks than this in one drawing are stored as pixels: an SVG mark costs about 100 bytes.
MOST_SVG_MARKS = 2500
# Pixels per inch of the SVG canvas: figures are sized in CSS pixels.
DPI = 72
FILE_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}


def colour(name: str) -> str:
    """Light colour of a PALETTE name, the one to draw with."""
    return PALETTE[name][0]


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of width x height CSS pixels with a transparent ground."""
    with matplotlib.rc_context(STYLE):
        return Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="none", layout="constrained")


def plain_axes(axis: Axes, *, x: str = "", y: str = "", grid: str = "both", size: float = 9.5) -> Axes:
    """Axis with labels of `size` px, hair-line grid and no box, in the page's colours; returns it."""
    axis.set_facecolor("none")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(colour("rule"))
    axis.tick_params(length=0, which="both", colors=colour("muted"), labelsize=size)
    if grid:
        axis.grid(True, axis=grid, color=colour("rule"), linewidth=0.6)
    axis.set_axisbelow(True)
    if x:
        axis.set_xlabel(x, color=colour("muted"), fontsize=size, parse_math=False)
    if y:
        axis.set_ylabel(y, color=colour("muted"), fontsize=size, parse_math=False)
    return axis


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element for an HTML page, with PALETTE colours as CSS variables.

    name: letters, digits and dashes, unique in the page (prefix of all ids inside); label: what a screen reader says,
    plain text. No outside reference is left in it.
    """
    FigureCanvasSVG(figure)
    text = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True, dpi=150)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"\n\s*", "\n", re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S))
    return themed(namespaced(svg, name, label))


def namespaced(svg: str, name: str, label: str) -> str:
    """The same drawing with ids unique in a page and an opening tag without fixed size or XML namespaces."""
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg)
    svg = svg.replace("xlink:href=", "href=").replace("url(#", f"url(#{name}-")
    box = re.search(r'viewBox="([^"]+)"', svg)[1]
    return re.sub(r"<svg[^>]*>", f'<svg viewBox="{box}" role="img" aria-label="{escaped(label)}">', svg, count=1)


def escaped(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#x27;")):
        text = text.replace(character, entity)
    return text


def themed(svg: str) -> str:
    """Light colours become variables; the font family is the page's."""
    for name, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{name})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*(?=[;\"])", r"font-size: \1", svg)
    return re.sub(r"font-family: [^;\"]*;? ?", "", svg)


def picture_bytes(figure: Figure, *, dpi: int = 144, kind: str = ".png") -> bytes:
    """The figure on light paper, for a file that stands alone. kind: ".png", or ".jpg" where it holds photos."""
    if kind not in FILE_KINDS:
        raise InputError(f"a picture cannot be written as {kind!r}; use one of {', '.join(FILE_KINDS)}")
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(content, format=FILE_KINDS[kind], dpi=dpi, facecolor=colour("paper"))
    return content.getvalue()


def jpeg_uri(image: np.ndarray, width: int = 640, quality: int = 78) -> str:
    """data: URI of a photo. image: uint8 RGB (H, W, 3), shrunk to `width` pixels where it is wider."""
    high, wide = image.shape[:2]
    if wide > width:
        image = cv2.resize(image, (width, max(1, round(high * width / wide))), interpolation=cv2.INTER_AREA)
    whole, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not whole:
        raise ValueError(f"a photo of shape {image.shape} and type {image.dtype} cannot be written as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()
