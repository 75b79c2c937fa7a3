"""The scores of the segmentation report: headline, ladder, confusion matrix, and tables per class, member and tile.

facts: outputs (K names), rows, ids, counts (n, K, K) over valid pixels of what the page shows, final and honest (or
None) likewise, nodata (n,), metric, background (n,) pixels that the score counts beside them, cost (n,), members,
scores, tables, and the options of `write_segmentation_report`.
"""

import numpy as np

from common.metrics.segmentation import class_table
from common.outputs.report import column, details, frame_table, heading, headline, notice, number, paragraph, table
from common.outputs.segmentation_figures import confusion_table, thousands
from common.outputs.shared_sections import interval_text, member_scores, score_ladder

RUNGS = {
    "constant": ("Constant", "one class wherever there is data"),
    "logistic": ("Logistic regression", "pixel by pixel, on the bands"),
    "member": ("Best single member", ""),
    "fitted": ("Fitted", "judged on the tiles it was fitted on"),
    "honest": ("Honest", "judged with groups left out"),
    "reachable": ("Best reachable", "what the noise of the data allows"),
}
MOST_TILES = 12
TABLES = {
    "pixels": ("All and valid pixels", "What no-data pixels, background in truth and output, add to the score."),
    "fold": ("Per fold", "{score} over all {valid}pixels of the fold's tiles."),
    "group": ("Per group", "{score} over all {valid}pixels of the group's tiles."),
}
WHY = "not defined: the class is neither in the truth nor in the predictions of these pixels."


def headline_blocks(facts: dict) -> list[str]:
    """The one score of the page and what it means, then the notes."""
    scores, counts, metric = facts["scores"], facts["counts"].sum(0), facts["metric"]
    if "honest" in scores:
        label, judged = f"honest score, {metric.name}", "Judged with whole groups of tiles left out"
    elif facts["blend"]:
        label, judged = f"fitted score, {metric.name}", "Judged on the tiles the blend was fitted on, which flatters"
    else:
        label, judged = f"out-of-fold score, {metric.name}", "Judged on tiles the model was not trained on"
    right, groups = 100 * np.trace(counts) / counts.sum(), facts["rows"]["group"].nunique()
    nodata = 100 * facts["nodata"].sum() / (facts["nodata"].sum() + counts.sum())
    scale = f"1 is exact, 0 no better than chance. {len(facts['ids'])} tiles, {groups} groups."
    text = f"{judged}: {number(right, 1)} % of the valid pixels get their class"
    if metric.nodata:
        text += (
            f"; over these alone the {metric.name} is {number(metric.of(counts), 4)}. The score counts every pixel; "
            f"{number(nodata, 1)} % hold no data and are {facts['outputs'][0]}. {scale}"
        )
    else:
        text += f". {number(nodata, 1)} % hold no data or no label and count nowhere. {scale}"
    blocks = [headline(number(scores.get("honest", scores["fitted"]), 4), label, text)]
    return blocks + [notice(str(note)) for note in facts["notes"]]


def scores_section(facts: dict) -> list[str]:
    blocks = [score_ladder(facts, RUNGS), interval_text(facts), heading("Per class"), class_scores(facts)]
    blocks += [heading("Per member"), member_scores(facts)]
    metric = facts["metric"]
    words = {metric.key: metric.name, "mean_iou": "Mean IoU"}
    said = {"score": metric.name, "valid": "" if metric.nodata else "valid "}
    for name, (title, caption) in TABLES.items():
        frame = facts["tables"].get(name)
        if frame is not None and len(frame) and (metric.nodata or name != "pixels"):
            frame = frame.rename(columns=lambda column: words.get(column, str(column).capitalize()))
            blocks += [heading(title), frame_table(frame, digits=4, caption=caption.format(**said), why=WHY)]
    return blocks


def class_scores(facts: dict) -> str:
    """Each class against all others, over the pixels of the score; the fitted IoU beside the honest one."""
    counts, metric = facts["counts"].sum(0), facts["metric"]
    counts[0, 0] += facts["background"].sum()
    found = class_table(counts, facts["outputs"])
    found["share"] = 100 * found["pixels"] / found["pixels"].sum()
    found["bar"] = found["iou"]
    if facts["honest"] is not None:
        fitted = facts["final"].sum(0)
        fitted[0, 0] += facts["background"].sum()
        found["fitted"] = class_table(fitted, facts["outputs"])["iou"]
    columns = [column("class", "Class", "name"), column("share", "Of the truth, %", digits=2)]
    columns += [column("iou", "IoU"), column("bar", "", "bar")]
    columns += [column("fitted", "IoU fitted")] if "fitted" in found else []
    columns += [column("dice", "F1 (Dice)"), column("precision", "Precision"), column("recall", "Recall")]
    columns += [column(metric.key, metric.name)] if metric.key in found else []
    which = "all" if metric.nodata else "all valid"
    caption = f"Each class against all others, over {which} pixels. F1 and Dice are the same number."
    return table(columns, found.to_dict("records"), caption=caption, why=WHY)


def confusion_section(facts: dict) -> list[str]:
    """The confusion matrix over valid pixels, and the largest confusions in a sentence."""
    counts, outputs = facts["counts"].sum(0), facts["outputs"]
    text = (
        "A line per true class: how its valid pixels were predicted, as a share of the line and in pixels. "
        f"{thousands(facts['nodata'].sum())} pixels without data are left out."
    )
    wrong = counts - np.diag(np.diag(counts))
    places = [divmod(int(i), len(outputs)) for i in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    named = [
        f"{outputs[t]} taken for {outputs[p]} ({number(100 * wrong[t, p] / wrong.sum(), 0)} %)"
        for t, p in places
        if wrong[t, p] > 0
    ]
    last = f"Most of the wrong pixels: {', '.join(named)}." if named else "No valid pixel is wrong."
    return [paragraph(text), confusion_table(counts, outputs), paragraph(last)]


def tiles_section(facts: dict) -> list[str]:
    """A line per tile, the costliest first; all but the first folded away."""
    records = tile_records(facts)
    columns = [column("id", "Tile", "name"), column("group", "Group", "name")]
    columns += [column("fold", "Fold", "text")] if "fold" in facts["rows"] else []
    metric = facts["metric"]
    columns += [column("cost", "Cost", digits=4, signed=True)]
    columns += [column(metric.key, metric.name, digits=3), column("bar", "", "bar")]
    columns += [column("wrong", "Wrong, %", digits=1), column("valid", "Valid, %", digits=0)]
    columns += [column(f"share {name}", f"{name.capitalize()}, %", digits=2) for name in facts["outputs"][1:]]
    caption = (
        "Cost: how much higher the score would be without the tile; below zero where the tile lifts it. The "
        f"{metric.name} is over the tile's own pixels, 0 where it has one class only. Shares are of the tile's valid "
        "pixels."
    )
    why = "the tile has no valid pixel."
    first = table(columns, records[:MOST_TILES], caption=caption, why=why)
    if len(records) <= MOST_TILES:
        return [first]
    return [
        first,
        details(f"The other {len(records) - MOST_TILES} tiles", table(columns, records[MOST_TILES:], why=why)),
    ]


def tile_records(facts: dict) -> list[dict]:
    """Lines of the table of tiles, the costliest first."""
    records, metric = [], facts["metric"]
    for place in np.argsort(-facts["cost"], kind="stable"):
        row, counts, nodata = facts["rows"].iloc[place], facts["counts"][place], facts["nodata"][place]
        valid, scored = counts.sum(), counts.copy()
        scored[0, 0] += facts["background"][place]
        shares = 100 * counts.sum(1) / valid if valid else [None] * len(counts)
        record = {"id": str(row["id"]), "group": str(row["group"]), "cost": facts["cost"][place]}
        record |= {metric.key: metric.of(scored)}
        record |= {"fold": str(row["fold"])} if "fold" in row else {}
        record |= {"wrong": 100 * (1 - np.trace(counts) / valid) if valid else None}
        record |= {"valid": 100 * valid / max(valid + nodata, 1), "bar": record[metric.key]}
        records.append(record | {f"share {n}": s for n, s in zip(facts["outputs"], shares, strict=True)})
    return records
