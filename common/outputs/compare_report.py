"""compare.html: recipes side by side, metric by metric, with their spread over seeds and what each ingredient gave."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.outputs.compare_tables import (
    Recipe,
    differing,
    ingredient_table,
    matters,
    mean_name,
    recipe_table,
    said,
    scores_of,
    variants_of,
)
from common.outputs.figures import colour, inline_svg, new_figure, plain_axes
from common.outputs.report import (
    DASH,
    column,
    details,
    figure,
    frame_table,
    headline,
    is_missing,
    notice,
    number,
    panels,
    paragraph,
    table,
    write_report,
)
from common.outputs.shared_sections import FEW_GROUPS

MOST = 12  # metrics of a report; all are in compare.csv
DRAWN = 6  # of them
NO_METRIC = ("against first", "low95", "high95", "groups", "seeds")
SPACE = "\N{NO-BREAK SPACE}"


def metrics_of(table: pd.DataFrame) -> list[str]:
    """The columns that hold scores: numbers that are no interval, at most MOST of them."""
    numbers = [name for name in table.columns[1:] if table[name].dtype.kind in "fiu" and name not in NO_METRIC]
    return numbers[:MOST]


def with_spread(line: Mapping, name: str, *, signed: bool = False) -> str:
    """`mean ± spread` as text that is not broken; without a spread the mean alone."""
    value, wide = line.get(name), line.get(f"{name} spread")
    if is_missing(value):
        return DASH
    return number(value, 4, signed=signed) + ("" if is_missing(wide) else f"{SPACE}±{SPACE}{number(wide, 4)}")


def text_table(frame: pd.DataFrame, names: Sequence[str], metrics: Sequence[str], **options) -> str:
    """Names as they are, every metric with its spread."""
    columns = [column(name, name.capitalize(), "name" if name == names[0] else "value") for name in names]
    columns += [column(f"{name} of it", name.replace("_", " "), "value") for name in metrics]
    lines = [{name: str(line[name]) for name in names}
             | {f"{name} of it": with_spread(line, name, **options) for name in metrics}
             for line in frame.to_dict("records")]  # fmt: skip
    return table(columns, lines)


def recipes_section(summary: pd.DataFrame, published: Mapping, metrics: Sequence[str]) -> list[str]:
    known = [{"recipe": name, "seeds": DASH} | dict(scores) for name, scores in published.items()]
    frame = pd.DataFrame([*known, *summary.to_dict("records")])
    text = "Out of fold. Means over seeds, ± their standard deviation; a recipe of one seed has none, nor has the mean "
    text += "of its seeds' predictions, which is one prediction."
    if known:
        text += " Published rows are of other data: what they can be compared by is the size of a step, not its height."
    return [paragraph(text), text_table(frame, ("recipe", "seeds"), metrics)]


def change_section(summary: pd.DataFrame, published: Mapping, metrics: Sequence[str]) -> list[str]:
    """The published rows minus theirs, and every recipe minus the first."""
    lines = []
    if len(published) > 1:
        first, *others = published.items()
        lines += [{"recipe": f"{name} against {first[0]}"} | {m: row[m] - first[1][m] for m in metrics
                  if m in row and m in first[1]} for name, row in others]  # fmt: skip
    one, *others = summary.to_dict("records")
    lines += [{"recipe": line["recipe"]} | {m: line[m] - one[m] for m in metrics} for line in others]
    if not others:
        return [paragraph("There is one recipe; name runs of others to see what they change.", kind="why alone")]
    return [paragraph(f"Means minus those of {one['recipe']}."),
            text_table(pd.DataFrame(lines), ("recipe",), metrics, signed=True)]  # fmt: skip


def ingredients_section(gains: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    if gains.empty:
        text = "No two recipes differ in one or two settings alone: train one that leaves a single ingredient out."
        return [paragraph(text, kind="why alone")]
    text = "Difference between two recipes that differ in this alone, at most two settings (of two the gain is that of "
    text += "both together), seed by seed where both have the seed: mean ± standard deviation over seeds. "
    text += "A mean smaller than its deviation is no gain that these runs can show."
    if (gains["seeds"] == 0).any():
        text += " Seeds 0: the two have none in common, their means are compared."
    return [paragraph(text), text_table(gains, ("change", "from", "to", "seeds"), metrics, signed=True)]


def metric_figure(scores: pd.DataFrame, recipes: Sequence[Recipe], metric: str, published: Mapping) -> str:
    """A dot per seed, a bar at the mean, a diamond at the mean of the predictions, a line per published row; "" where
    no run has the metric."""
    rows = [(f"{recipe.name}{variant}", f"{mean_name(recipe)}{variant}",
             scores_of(scores, recipe, variant, [metric])[metric].to_numpy())
            for recipe in recipes for variant in variants_of(scores, list(recipe.runs.values()))]  # fmt: skip
    if not any(np.isfinite(values).any() for *_, values in rows):
        return ""
    known = {name: row[metric] for name, row in published.items() if not is_missing(row.get(metric))}
    by_name = scores.set_index(scores.columns[0])[metric]
    drawing = new_figure(560, 50 + 24 * (len(rows) + 0.75 * len(known)))
    axis = plain_axes(drawing.add_subplot(), grid="x", size=12)  # as large as the style sheet makes it on a phone
    for place, (_, together, values) in enumerate(rows):
        axis.plot(values, np.full(len(values), place), "o", color=colour("c0"), alpha=0.7, markersize=6)
        if np.isfinite(values).any():
            axis.plot(np.nanmean(values), place, "|", color=colour("ink"), markersize=15, markeredgewidth=1.6)
        if together in by_name.index:
            axis.plot(by_name[together], place, "D", color=colour("c1"), markersize=5)
    for value in known.values():
        axis.axvline(value, color=colour("muted"), linewidth=1, linestyle=":")
    for place, (name, value) in enumerate(known.items()):
        side = "right" if value > np.mean(axis.get_xlim()) else "left"
        axis.text(
            value, -0.8 - 0.75 * place, f" {name} ", color=colour("muted"), fontsize=12, ha=side, parse_math=False
        )
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows], parse_math=False)
    axis.set_ylim(len(rows) - 0.5, -0.7 - 0.75 * len(known))
    words = metric.replace("_", " ")
    svg = inline_svg(drawing, f"compare-{re.sub('[^a-z0-9]+', '-', metric.lower())}",
                     f"{words} of every recipe, a dot per seed")  # fmt: skip
    return figure(svg, title=words, hero=True)


def figures_of(scores: pd.DataFrame, recipes: Sequence[Recipe], metrics: Sequence[str], published: Mapping) -> list:
    """The drawings side by side and what their marks are, or nothing."""
    drawn = [metric_figure(scores, recipes, name, published) for name in metrics[:DRAWN]]
    drawn = [drawing for drawing in drawn if drawing]
    if not drawn:
        return []
    marks = "A dot is a run, the upright bar the mean of a recipe's runs"
    if set(scores.iloc[:, 0]) & {mean_name(recipe) for recipe in recipes}:
        marks += ", the diamond the mean of their predictions"
    return [paragraph(f"{marks}{'; dotted: published' if published else ''}."), panels(drawn, pairs=True)]


def settings_section(recipes: Sequence[Recipe]) -> list[str]:
    keys = differing(recipes)
    if not keys:
        return [paragraph("The recipes have the same settings.", kind="why alone")]
    columns = [column("setting", "Setting", "name")]
    columns += [column(place, recipe.name, "value") for place, recipe in enumerate(recipes)]
    lines = [{"setting": key} | {place: said(one.settings.get(key)) if matters(key, one.settings) else DASH
                                   for place, one in enumerate(recipes)}
             for key in keys]  # fmt: skip
    return [table(columns, lines)]


def runs_section(scores: pd.DataFrame) -> list[str]:
    """All lines, and on how few groups their intervals stand."""
    blocks = [details(counted(len(scores), "line"), frame_table(scores, digits=4, signed=("against first",)))]
    groups = scores["groups"].max() if "groups" in scores else np.nan
    if groups < FEW_GROUPS:
        text = f"The intervals (low95, high95) are a bootstrap over {groups:.0f} groups of tiles: too few for 95 %."
        blocks.insert(0, notice(text, label="Few groups", warn=True))
    return blocks


def head_of(summary: pd.DataFrame, metric: str, recipes: Sequence[Recipe]) -> list[str]:
    """The best of the recipes by the first metric; nothing where none has it."""
    if not summary[metric].notna().any():
        return [paragraph(f"No recipe has a {metric.replace('_', ' ')}.", kind="why alone")]
    best, runs = summary.loc[summary[metric].idxmax()], sum(len(recipe.runs) for recipe in recipes)
    text = f"The best {metric.replace('_', ' ')} of {counted(len(recipes), 'recipe')} ({counted(runs, 'run')}), "
    text += "out of fold like every figure of this page."
    return [headline(number(best[metric], 4), str(best["recipe"]), text)]


def counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def write_compare_report(
    path: str | Path, *, title: str, scores: pd.DataFrame, recipes: Sequence[Recipe], published: Mapping[str, Mapping]
) -> Path:
    """Write the page; returns its path.

    scores: a line per run, and per variant of it ("run + CRF"), its name in the first column; recipes: of
    `recipes_of`; published: {row: {metric: value}} of others, shown beside. At most MOST metrics are shown.
    """
    metrics = metrics_of(scores)
    summary, gains = recipe_table(scores, recipes, metrics), ingredient_table(scores, recipes, metrics)
    parts = {
        "Recipes": recipes_section(summary, published, metrics) + figures_of(scores, recipes, metrics, published),
        "Against the first": change_section(summary, published, metrics),
        "What each ingredient gave": ingredients_section(gains, metrics),
        "Settings that differ": settings_section(recipes),
        "Every run": runs_section(scores),
    }
    sections = [{"title": name, "blocks": blocks} for name, blocks in parts.items()]
    head = head_of(summary, metrics[0], recipes)
    return write_report(path, {"title": title, "label": "Landfold", "head": head, "sections": sections})
