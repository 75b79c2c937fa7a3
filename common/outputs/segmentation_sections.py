"""The sections of the segmentation report after its scores: pictures of tiles, sampler, blend, gates, settings.

Each takes the facts gathered by `segmentation_report` and gives a list of HTML blocks.
"""

from html import escape

import numpy as np

from common.errors import InputError
from common.outputs.report import column, frame_table, heading, notice, number, paragraph, table
from common.outputs.segmentation_figures import panel_legends, shares_figure, tile_panels
from common.outputs.segmentation_scores import confusion_section, scores_section, tiles_section
from common.outputs.shared_sections import (
    findings_section,
    learning_section,
    no_blend,
    settings_section,
    weights_blocks,
)

SHOWN_ELSEWHERE = ("thresholds", "isotonic", "temperature")  # of what a blend's post holds


def pictures_section(facts: dict) -> list[str]:
    """The tiles that cost the score most and those that lift it most: image, truth, prediction and error."""
    if facts["pictures"] < 1:
        return [paragraph("Not shown: none were asked for.", kind="why alone")]
    if facts["read_picture"] is None or facts["read_target"] is None or not facts["bands"]:
        return [
            paragraph("Not shown: a reader of tiles and the names of their bands were not given.", kind="why alone")
        ]
    order = np.argsort(-facts["cost"], kind="stable")
    worst = order[: facts["pictures"]]
    best = order[len(worst) :][::-1][: facts["pictures"]]
    text = "Each image is stretched to its own valid pixels; the names above it are shown as red, green and blue."
    if facts["read_pred"] is None:
        text += " Predictions and errors are not shown: the probabilities did not come with these sets."
    blocks = [paragraph(text), panel_legends(facts["outputs"], facts["read_pred"] is not None)]
    for title, places in (("Worst: they cost the score most", worst), ("Best: they lift it most", best)):
        if len(places):
            blocks += [heading(title), *(tile_card(facts, place) for place in places)]
    return blocks


def tile_card(facts: dict, place: int) -> str:
    """The panels of one tile below its id and what it costs; a reason where it cannot be read."""
    row, counts = facts["rows"].iloc[place], facts["counts"][place]
    name, options = str(row["id"]), {"bands": facts["bands"], "outputs": facts["outputs"]}
    try:
        target, valid = facts["read_target"](row)
        pred = None if facts["read_pred"] is None else facts["read_pred"](row)
        drawing = tile_panels(facts["read_picture"](row), target, pred, valid, name=name, **options)
    except (InputError, OSError, ValueError) as error:
        drawing = paragraph(f"The tile cannot be shown: {error}", kind="why alone")
    wrong = 100 * (1 - np.trace(counts) / counts.sum()) if counts.sum() else None
    note = f"{number(wrong, 1)} % of its valid pixels wrong, cost {number(facts['cost'][place], 4, signed=True)}"
    group = escape(str(row["group"]))
    words = f"<span><b>{escape(name)}</b> {group}</span><span>{escape(note)}</span>"
    return f'<div class="card"><div class="identity">{words}</div>{drawing}</div>'


def sampler_section(facts: dict) -> list[str]:
    """What the crops shall show, can show and showed, beside the shares in the tiles themselves."""
    if facts["sampler"] is None:
        return [paragraph("Not shown: the shares of the crop sampler did not come with these sets.", kind="why alone")]
    outputs, folds = facts["outputs"], facts["sampler"]
    truth = facts["counts"].sum((0, 2))
    shares = {"in the tiles": 100 * truth / truth.sum()}
    words = {"target": "target", "attainable": "best attainable", "shown": "shown"}
    shares |= {name: 100 * np.mean([one[key] for one in folds.values()], axis=0) for key, name in words.items()}
    text = "Shares of the valid pixels that training saw, mean over the folds; the crops are drawn to meet the target."
    if len(folds) == 1:
        text = (
            f"Shares of the valid pixels that training of {next(iter(folds))} saw; crops are drawn to meet the target."
        )
    records = [
        {"class": outputs[k]} | {name: values[k] for name, values in shares.items()} for k in range(len(outputs))
    ]
    for k, record in enumerate(records):
        record["off"] = 100 * max((one["shown"][k] - one["attainable"][k] for one in folds.values()), key=abs)
    columns = [
        column("class", "Class", "name"),
        *(column(name, f"{name.capitalize()}, %", digits=2) for name in shares),
    ]
    columns += [column("off", "Shown − attainable, largest of a fold, points", digits=2, signed=True)]
    return [paragraph(text), shares_figure(shares, outputs, "sampler"), table(columns, records)]


def blend_section(facts: dict) -> list[str]:
    """Weights of the members, the thresholds, and what post-processing gains."""
    blend = facts["blend"]
    if not blend:
        return no_blend(facts)
    names, weights = list(blend["members"]), np.asarray(blend["weights"], np.float64)
    if weights.shape != (len(names),):
        raise InputError(
            f"report: blend weights of shape {weights.shape} for {len(names)} members; give one per member"
        )
    blocks = weights_blocks(facts, weights) if len(names) > 1 else no_blend(facts)
    post = blend.get("post") or {}
    if "thresholds" in post:
        records = [{"class": n, "t": t} for n, t in zip(facts["outputs"], post["thresholds"], strict=True)]
        caption = "Thresholds: the class with the largest probability over its threshold is predicted."
        blocks += [
            heading("Post-processing"),
            table([column("class", "Class", "name"), column("t", "Threshold")], records),
        ]
        blocks.insert(-1, paragraph(caption))
        others = [f"{key.replace('_', ' ')} {value}" for key, value in post.items() if key not in SHOWN_ELSEWHERE]
        blocks += [paragraph(f"Then the masks are cleaned: {', '.join(others)}.")] if others else []
    gains = facts["gains"]
    if gains is None or not len(gains):
        return [*blocks, paragraph("The gains of post-processing were not measured here.", kind="why alone")]
    text = (
        "Under “none” the score of the plain largest probability; the others say what each step adds, groups left out."
    )
    signed = [name for name in gains if name != "none"]
    return [*blocks, frame_table(gains, digits=4, signed=signed, caption=text)]


def gates_section(facts: dict) -> list[str]:
    """What must be reached before anything is handed in, and whether it is."""
    gates = facts["gates"]
    if gates is None or not len(gates):
        return [paragraph("No gates were asked for.", kind="why alone")]
    records = gates.to_dict("records")
    failed = [record["gate"] for record in records if not record["passed"]]
    verdict = f"{len(failed)} of {len(records)} gates are not reached: {', '.join(failed)}." if failed else ""
    records = [record | {"passed": "passed" if record["passed"] else "not reached"} for record in records]
    columns = [column("gate", "Gate", "name"), column("needed", "Needed"), column("reached", "Reached")]
    columns.append(column("passed", "", "text"))
    said = notice(verdict or "All are reached.", label="Gates", warn=bool(failed))
    return [said, table(columns, records, why="the class does not occur, so the gate counts as not reached.")]


# title -> (its short form in the navigation, its blocks)
SECTIONS = {
    "Score": ("Score", scores_section),
    "Confusion of the classes": ("Confusion", confusion_section),
    "Best and worst tiles": ("Pictures", pictures_section),
    "Every tile": ("Tiles", tiles_section),
    "Learning curves": ("Learning", learning_section),
    "What the sampler showed": ("Sampler", sampler_section),
    "Blend and post-processing": ("Blend", blend_section),
    "Gates": ("Gates", gates_section),
    "Checks of the data": ("Checks", findings_section),
    "Settings": ("Settings", settings_section),
}
