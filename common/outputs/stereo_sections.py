"""The sections of the stereo report after its scores: figures, members, photos, physics, checks, settings.

Each takes the facts gathered by `stereo_report` and gives a list of HTML blocks.
"""

import numpy as np
import pandas as pd

from common.errors import InputError
from common.metrics.regression import target_table
from common.outputs.report import column, frame_table, heading, number, paragraph, table
from common.outputs.shared_sections import (
    findings_section,
    learning_section,
    no_blend,
    settings_section,
    weights_blocks,
)
from common.outputs.stereo_figures import (
    change_panels,
    key_to_kinds,
    photo,
    photo_figure,
    predicted_panels,
    residual_panels,
    short_name,
)
from common.outputs.stereo_scores import scores_section

MOST_KINDS = 6
COST = (
    "“Off by” is the error of a photo weighted over the targets, “cost” what it takes from the score. Masses in grams."
)


def state_kinds(facts: dict) -> tuple[np.ndarray | None, str]:
    """A number per row for its state and the legend; None and nothing where there are no or too many states."""
    if "state" not in facts["rows"]:
        return None, ""
    kinds, names = pd.factorize(facts["rows"]["state"].astype(str), sort=True)
    return (kinds, key_to_kinds(list(names))) if 1 < len(names) <= MOST_KINDS else (None, "")


def which(facts: dict) -> str:
    """What the figures show, in words."""
    kind = "honest" if facts["honest"] is not None else "fitted" if facts["blend"] else "out-of-fold"
    return f"{kind} predictions"


def predicted_section(facts: dict) -> list[str]:
    kinds, legend = state_kinds(facts)
    text = f"A mark per photo, {which(facts)}; on the line a prediction is exact."
    return [paragraph(text), legend, predicted_panels(*plotted(facts), kinds)]


def plotted(facts: dict) -> tuple:
    truth = np.where(facts["valid"], facts["target"], np.nan)
    return truth, facts["shown"], facts["outputs"], facts["weights"]


def residuals_section(facts: dict) -> list[str]:
    kinds, legend = state_kinds(facts)
    text = (
        "Predicted minus true over the true mass, their histogram at the right. A cloud that falls to the right says "
        "that heavy swards are predicted too light."
    )
    return [paragraph(text), legend, residual_panels(*plotted(facts), kinds)]


def members_section(facts: dict) -> list[str]:
    """Weights of the members as bars, or a table per target where each target has its own."""
    blend = facts["blend"]
    if not blend:
        return no_blend(facts)
    names, weights = list(blend["members"]), np.asarray(blend["weights"], np.float64)
    if weights.shape not in ((len(names),), (len(names), len(facts["outputs"]))):
        raise InputError(
            f"report: blend weights of shape {weights.shape} for {len(names)} members; give one per member"
        )
    shared = weights if weights.ndim == 1 else np.average(weights, axis=1, weights=facts["weights"])
    blocks = weights_blocks(facts, shared)
    if weights.ndim == 2:
        order = np.argsort(-shared, kind="stable")
        columns = [column("name", "Member", "name")]
        columns += [column(output, short_name(output), digits=3) for output in facts["outputs"]]
        records = [{"name": names[i]} | dict(zip(facts["outputs"], weights[i], strict=True)) for i in order]
        blocks += [paragraph("Bars: mean over the targets by their weight in the score."), table(columns, records)]
    return blocks


def photos_section(facts: dict) -> list[str]:
    """Photos with the smallest and the largest share of the error, true and predicted masses below each."""
    if facts["photos"] < 1:
        return [paragraph("Not shown: none were asked for.", kind="why alone")]
    if facts["read_photo"] is None or "path" not in facts["rows"]:
        missing = "a reader of photos" if facts["read_photo"] is None else "the paths of the photos"
        return [paragraph(f"Not shown: {missing} did not come with these predictions.", kind="why alone")]
    cost, worst, best = ranked(facts)
    text = "Both halves with the line between them"
    grids = [f"{rows}×{columns}" for rows, columns in facts["grids"]]
    text += f" and the cells of {grids[0]} (solid)" if grids else "; the grid of cells is not known"
    text += f" and {grids[1]} (dashed)" if len(grids) > 1 else ""
    blocks = [paragraph(f"{text}. {COST}"), heading("Worst"), photo_grid(facts, worst, cost)]
    best_text = "Among the heavier half of the photos, since light ones have small errors by nature."
    return [*blocks, heading("Best"), paragraph(best_text), photo_grid(facts, best, cost)]


def ranked(facts: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cost of each photo (its part of 1 - score), the places of the worst, and of the best of the heavier half."""
    weight = facts["weights"] * facts["valid"]
    target = np.where(facts["valid"], facts["target"], 0)
    spread = (weight * (target - (weight * target).sum() / weight.sum()) ** 2).sum()
    cost = (weight * (facts["shown"] - target) ** 2).sum(1) / (spread or 1.0)
    mass = (weight * target).sum(1)
    count, heavy = facts["photos"], np.flatnonzero(mass >= np.median(mass))
    worst = np.argsort(-cost, kind="stable")[:count]
    best = [i for i in heavy[np.argsort(cost[heavy], kind="stable")] if i not in set(worst)][:count]
    return cost, worst, np.array(best, int)


def photo_grid(facts: dict, places: np.ndarray, cost: np.ndarray) -> str:
    return '<div class="photos">' + "\n".join(photo_card(facts, i, cost[i]) for i in places) + "</div>"


def photo_card(facts: dict, place: int, cost: float) -> str:
    """One photo, its id and group, and a table of true and predicted masses; a reason where it cannot be read."""
    row = facts["rows"].iloc[place]
    try:
        drawing = photo(facts["read_photo"](row["path"]), str(row["id"]), facts["grids"])
    except (InputError, OSError, ValueError) as error:
        drawing = f'<div class="photo">{paragraph(f"The photo cannot be shown: {error}")}</div>'
    lines = {"true": np.where(facts["valid"], facts["target"], np.nan)[place], "predicted": facts["shown"][place]}
    lines["error"] = lines["predicted"] - lines["true"]
    errors, weight = np.nan_to_num(lines["error"]), facts["weights"] * facts["valid"][place]
    off = np.sqrt((weight * errors**2).sum() / weight.sum())
    records = [{"": name} | dict(zip(facts["outputs"], values, strict=True)) for name, values in lines.items()]
    columns = [column("", "", "name"), *(column(o, short_name(o), digits=1) for o in facts["outputs"])]
    text = table(columns, records, why="the true mass is not known.")
    return photo_figure(
        drawing, str(row["id"]), f"{row['group']}", f"off by {number(off, 1)} g, cost {number(cost, 4)}", text
    )


def physics_section(facts: dict) -> list[str]:
    """Score, change per target and broken identities before and after post-processing; gains per reconciliation."""
    blocks = []
    if facts["before"] is None:
        blocks.append(paragraph("Not shown: the predictions before post-processing were not kept.", kind="why alone"))
    elif not np.isfinite(facts["before"]).all():
        raise InputError("report: before_physics lacks rows that the final predictions have; give both for all rows")
    else:
        blocks += physics_blocks(facts)
    gains = facts["gains"]
    if gains is None or not len(gains):
        return [*blocks, paragraph("The gains of the reconciliations were not measured here.", kind="why alone")]
    text = "Under “none” the score leaving groups out; the others say what making the masses add up gains over it."
    signed = [name for name in gains if name != "none"]
    return [*blocks, heading("Reconciliations"), frame_table(gains, digits=4, signed=signed, caption=text)]


def physics_blocks(facts: dict) -> list[str]:
    before, after, valid = facts["before"], facts["final"], facts["valid"]
    tables = [target_table(facts["target"], pred, facts["outputs"], valid=valid) for pred in (before, after)]
    records = [
        {"target": short_name(output), "change": np.abs(after - before)[:, i].mean(), "rmse": tables[0]["rmse"][i]}
        | {"after": tables[1]["rmse"][i], "below": (before[:, i] < 0).sum(), "zero": (after[:, i] < 0).sum()}
        for i, output in enumerate(facts["outputs"])
    ]
    columns = [column("target", "Target", "name"), column("change", "Mean change, g", digits=2)]
    columns += [column("rmse", "RMSE before, g", digits=2), column("after", "RMSE after, g", digits=2)]
    columns += [column("below", "Below zero before", digits=0), column("zero", "Below zero after", digits=0)]
    first, last = facts["score_before"], facts["score_after"]
    text = (
        f"Post-processing takes the fitted blend from {number(first, 4)} to {number(last, 4)}"
        f" ({number(last - first, 4, signed=True)})."
    )
    drawing = change_panels(before, after, facts["outputs"], facts["weights"])
    return [paragraph(text), table(columns, records), identity_table(facts), drawing]


def identity_table(facts: dict) -> str:
    """How far the predictions break what adds up in the labels, before and after."""
    place = {output: i for i, output in enumerate(facts["outputs"])}
    records = []
    for whole, parts in facts["identities"].items():
        record = {"name": f"{short_name(whole)} = {' + '.join(map(short_name, parts))}"}
        for name, pred in (("before", facts["before"]), ("after", facts["final"])):
            gap = np.abs(pred[:, place[whole]] - pred[:, [place[part] for part in parts]].sum(1))
            record |= {f"mean {name}": gap.mean(), f"most {name}": gap.max(), f"share {name}": 100 * (gap > 0.5).mean()}
        records.append(record)
    if not records:
        return ""
    columns = [column("name", "Identity", "name")]
    for key, text, digits in (
        ("mean", "Mean gap {}, g", 3),
        ("most", "Largest {}, g", 2),
        ("share", "Over .5 g {}, %", 0),
    ):
        columns += [column(f"{key} {name}", text.format(name), digits=digits) for name in ("before", "after")]
    return table(columns, records, caption="Identities of the labels, and how far the predictions are from them.")


# title -> (its short form in the navigation, its blocks)
SECTIONS = {
    "Score": ("Score", scores_section),
    "Predicted against true": ("Predicted", predicted_section),
    "Residuals": ("Residuals", residuals_section),
    "Learning curves": ("Learning", learning_section),
    "Weights of the members": ("Members", members_section),
    "Best and worst photos": ("Photos", photos_section),
    "What physics changed": ("Physics", physics_section),
    "Checks of the table": ("Checks", findings_section),
    "Settings": ("Settings", settings_section),
}
