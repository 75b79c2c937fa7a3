"""Learning curves of folds: a PNG beside the checkpoints, and the same axes for the report."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from common.files import atomic_write
from common.outputs.figures import (
    DASHES,
    SERIES,
    colour,
    escaped,
    inline_svg,
    new_figure,
    picture_bytes,
    plain_axes,
)
from common.outputs.report import figure, number, panels

# A score of the first epochs may be far below zero; the curve is cut there so that the rest can be read.
LOWEST_SCORE = -0.25
LEAST_LOG_SPAN = 4
PANEL, PANEL_TEXT = (400, 240), 10


def curve(lines: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of `key` in lines of log.jsonl, where the value is a finite number."""
    points = [(line.get("epoch", i), line.get(key)) for i, line in enumerate(lines)]
    points = [(x, y) for x, y in points if isinstance(y, (int, float)) and math.isfinite(y)]
    return [x for x, _ in points], [y for _, y in points]


def best_point(lines: list[dict], key: str = "score") -> tuple[float, float] | None:
    """Epoch and value of the highest `key`, None where no line has one."""
    epochs, values = curve(lines, key)
    return max(zip(epochs, values, strict=True), key=lambda point: point[1]) if values else None


def draw_curves(axis: Axes, logs: dict[object, list[dict]], key: str, *, log: bool = False) -> int:
    """A line per fold of `logs` (fold -> lines of log.jsonl), a dot at its best score; returns how many were drawn.

    key: "score" (cut below LOWEST_SCORE where it falls lower) or any loss; log: logarithmic values where all are > 0.
    """
    drawn, low, above = 0, math.inf, True
    for index, lines in enumerate(logs.values()):
        epochs, values = curve(lines, key)
        if not values:
            continue
        shade = colour(SERIES[index % len(SERIES)])
        mark = "o" if len(values) == 1 else ""
        axis.plot(epochs, values, color=shade, linestyle=DASHES[index % len(DASHES)], linewidth=1.5, marker=mark)
        if key == "score":
            axis.plot(*best_point(lines), "o", color=shade, markersize=4.5)
        drawn, low, above = drawn + 1, min(low, *values), above and min(values) > 0
    if key == "score" and low < LOWEST_SCORE:
        axis.set_ylim(bottom=LOWEST_SCORE)
    if log and drawn and above:
        logarithmic(axis)
    return drawn


def logarithmic(axis: Axes) -> None:
    """Logarithmic values with plain numbers at 1, 2 and 5, where they span enough for that to help."""
    low, high = axis.dataLim.intervaly
    if high < LEAST_LOG_SPAN * low:
        return
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def loss_keys(logs: dict[object, list[dict]]) -> list[str]:
    """Loss columns that the logs have, the training loss first."""
    found = dict.fromkeys(key for lines in logs.values() for line in lines for key in line if key.endswith("loss"))
    return sorted(found, key=lambda key: (key != "train_loss", key))


def write_curves(path: str | Path, logs: dict[object, list[dict]] | list[dict], *, title: str = "") -> Path:
    """Picture (.png or .jpg) of losses, score and learning rate over the epochs.

    logs: the dicts of one log.jsonl (`epoch` and any of `train_loss`, `valid_loss`, `score`, `lr`), or fold -> dicts.
    Values that are missing or not finite leave a gap; a panel without any value says so.
    """
    logs = logs if isinstance(logs, dict) else {"": logs}
    names = [*loss_keys(logs), "score", "lr"]
    drawing = new_figure(300 * len(names), 250)
    for axis, key in zip(drawing.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        plain_axes(axis, x="epoch", y={"lr": "learning rate"}.get(key, key.replace("_", " ")))
        if not draw_curves(axis, logs, key, log=key != "score"):
            axis.text(0.5, 0.5, "not logged", transform=axis.transAxes, ha="center", color=colour("muted"))
    if title:
        drawing.suptitle(title, color=colour("ink"), fontsize=11, x=0.01, ha="left", parse_math=False)
    return atomic_write(path, picture_bytes(drawing, kind=Path(path).suffix))


def key_to_lines(names: list[str]) -> str:
    """HTML legend of `draw_curves`, in the order of the folds."""
    items = []
    for i, name in enumerate(names):
        dash = DASHES[i % len(DASHES)]
        dashes = "" if dash == "-" else f' stroke-dasharray="{" ".join(str(1.6 * length) for length in dash[1])}"'
        line = f'<path d="M0 6H26" fill="none" stroke="var(--{SERIES[i % len(SERIES)]})" stroke-width="2.2"{dashes}/>'
        items.append(f'<span><svg viewBox="0 0 26 12" aria-hidden="true">{line}</svg>{escaped(name)}</span>')
    return '<div class="legend">' + "".join(items) + "</div>"


def learning_panels(logs: dict, name: str) -> str:
    """Score and losses over the epochs, a line per fold. logs: fold -> lines of log.jsonl; name: prefix of ids."""
    wanted = [("score", "Score", False), *((key, key.replace("_", " ").capitalize(), True) for key in loss_keys(logs))]
    blocks = []
    for index, (key, title, log) in enumerate(wanted):
        drawing = new_figure(*PANEL)
        axis = plain_axes(drawing.add_subplot(), x="epoch", size=PANEL_TEXT)
        if not draw_curves(axis, logs, key, log=log):
            continue
        cut = key == "score" and axis.get_ylim()[0] == LOWEST_SCORE
        text = f"axis cut at {number(LOWEST_SCORE, 2)}" if cut else ""
        text = text or ("logarithmic" if axis.get_yscale() == "log" else "")
        blocks.append(figure(inline_svg(drawing, f"{name}-{index}", title), title=title, caption=text, hero=True))
    return panels(blocks, pairs=True) if blocks else ""
