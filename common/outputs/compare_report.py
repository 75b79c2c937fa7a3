"""compare.html: recipes side by side, metric by metric, with their spread over seeds and what each ingredient gave."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from common.outputs.compare_tables import (
    Recipe,
    differing,
    ingredient_table,
    recipe_table,
    said,
    scores_of,
    variants_of,
)
from common.outputs.figures import colour, inline_svg, new_figure, plain_axes
from common.outputs.report import (
    column,
    details,
    figure,
    frame_table,
    headline,
    is_missing,
    number,
    panels,
    paragraph,
    table,
    write_report,
)

MOST = 12  # metrics of a report; all are in compare.csv
NO_METRIC = ("against first", "low95", "high95", "groups", "seeds")
DASH = "–"


def metrics_of(table: pd.DataFrame) -> list[str]:
    """The columns that hold scores: numbers that are no interval, at most MOST of them."""
    numbers = [name for name in table.columns[1:] if table[name].dtype.kind in "fiu" and name not in NO_METRIC]
    return numbers[:MOST]


def with_spread(line: Mapping, name: str, *, signed: bool = False) -> str:
    """`mean ± spread` as text; without a spread the mean alone."""
    value, wide = line.get(name), line.get(f"{name} spread")
    if is_missing(value):
        return DASH
    return number(value, 4, signed=signed) + ("" if is_missing(wide) else f" ± {number(wide, 4)}")


def text_table(frame: pd.DataFrame, names: Sequence[str], metrics: Sequence[str], **options) -> str:
    """Names as they are, every metric with its spread."""
    columns = [column(name, name.capitalize(), "name") for name in names]
    columns += [column(name, name.replace("_", " "), "text") for name in metrics]
    lines = [{name: str(line[name]) for name in names} | {name: with_spread(line, name, **options) for name in metrics}
             for line in frame.to_dict("records")]  # fmt: skip
    return table(columns, lines)


def recipes_section(summary: pd.DataFrame, published: Mapping, metrics: Sequence[str]) -> list[str]:
    known = [{"recipe": name, "seeds": DASH} | dict(scores) for name, scores in published.items()]
    frame = pd.concat([pd.DataFrame(known), summary], ignore_index=True) if known else summary
    text = "Out of fold. Means over seeds, ± their standard deviation; a recipe of one seed has none."
    if known:
        text += " Published rows are of other data: what they can be compared by is the size of a step, not its height."
    return [paragraph(text), text_table(frame, ("recipe", "seeds"), metrics)]


def change_section(summary: pd.DataFrame, published: Mapping, metrics: Sequence[str]) -> list[str]:
    """Every recipe minus the first, and the published rows minus theirs."""
    lines = [{"recipe": name} | {m: row[m] - summary[m][0] for m in metrics} for name, row in
             zip(summary["recipe"][1:], summary[metrics].iloc[1:].to_dict("records"), strict=True)]  # fmt: skip
    if len(published) > 1:
        first, *others = published.items()
        lines += [{"recipe": f"{name} against {first[0]}"} | {m: row[m] - first[1][m] for m in metrics if m in row}
                  for name, row in others]  # fmt: skip
    if not lines:
        return [paragraph("There is one recipe; name runs of others to see what they change.", kind="why alone")]
    return [paragraph(f"Means minus those of {summary['recipe'][0]}."),
            text_table(pd.DataFrame(lines), ("recipe",), metrics, signed=True)]  # fmt: skip


def ingredients_section(gains: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    if gains.empty:
        text = "No two recipes differ in one or two settings alone: train one that leaves a single ingredient out."
        return [paragraph(text, kind="why alone")]
    text = "Difference between two recipes that differ in this alone, seed by seed where both have the seed: mean ± "
    text += "standard deviation over seeds. A mean smaller than its deviation is no gain that these runs can show."
    return [paragraph(text), text_table(gains, ("change", "from", "to", "seeds"), metrics, signed=True)]


def metric_figure(scores: pd.DataFrame, recipes: Sequence[Recipe], metric: str, published: Mapping) -> str:
    """A dot per seed, a bar at the mean, a line per published row."""
    rows = [(f"{recipe.name}{variant}", scores_of(scores, recipe, variant, [metric])[metric].to_numpy())
            for recipe in recipes for variant in variants_of(scores, list(recipe.runs.values()))]  # fmt: skip
    drawing = new_figure(460, 46 + 26 * len(rows))
    axis = plain_axes(drawing.add_subplot(), grid="x")
    for place, (_, values) in enumerate(rows):
        axis.plot(values, np.full(len(values), place), "o", color=colour("accent"), alpha=0.6, markersize=5)
        if np.isfinite(values).any():
            axis.plot(np.nanmean(values), place, "|", color=colour("ink"), markersize=14, markeredgewidth=2)
    for name, known in published.items():
        if metric in known:
            axis.axvline(known[metric], color=colour("muted"), linewidth=1, linestyle=":")
            axis.text(known[metric], -0.75, name, color=colour("muted"), fontsize=7, ha="center")
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.set_ylim(len(rows) - 0.4, -1.1)
    words = metric.replace("_", " ")
    svg = inline_svg(drawing, f"compare-{words.replace(' ', '-')}", f"{words} of every recipe, a dot per seed")
    return figure(svg, title=words)


def settings_section(recipes: Sequence[Recipe]) -> list[str]:
    keys = differing(recipes)
    if not keys:
        return [paragraph("The recipes have the same settings.", kind="why alone")]
    columns = [column("setting", "Setting", "name"), *(column(recipe.name, recipe.name, "text") for recipe in recipes)]
    lines = [{"setting": key} | {r.name: said(r.settings.get(key)) for r in recipes} for key in keys]
    return [table(columns, lines)]


def write_compare_report(
    path: str | Path, *, title: str, scores: pd.DataFrame, recipes: Sequence[Recipe], published: Mapping[str, Mapping]
) -> Path:
    """Write the page; returns its path.

    scores: a line per run, and per variant of it ("run + CRF"), its name in the first column; recipes: of
    `recipes_of`; published: {row: {metric: value}} of others, shown beside. At most MOST metrics are shown.
    """
    metrics = metrics_of(scores)
    summary, gains = recipe_table(scores, recipes, metrics), ingredient_table(scores, recipes, metrics)
    best = summary.loc[summary[metrics[0]].idxmax()]
    text = (
        f"The best {metrics[0].replace('_', ' ')} of {len(recipes)} recipes ({len(scores)} lines): {best['recipe']}. "
    )
    text += "Every figure is out of fold."
    drawings = [metric_figure(scores, recipes, name, published) for name in metrics[:6]]
    parts = {
        "Recipes": recipes_section(summary, published, metrics) + [panels(drawings, pairs=True)],
        "Against the first": change_section(summary, published, metrics),
        "What each ingredient gave": ingredients_section(gains, metrics),
        "Settings that differ": settings_section(recipes),
        "Every run": [details(f"{len(scores)} lines", frame_table(scores, digits=4, signed=("against first",)))],
    }
    sections = [{"title": name, "blocks": blocks} for name, blocks in parts.items()]
    head = [headline(with_spread(best, metrics[0]), escape(str(best["recipe"])), text)]
    return write_report(path, {"title": title, "label": "Landfold", "head": head, "sections": sections})
