"""The scores of the segmentation report: headline, ladder, confusion matrix, and tables per class, member and tile.

facts: outputs (K names), rows, ids, counts (n, K, K) over valid pixels of what the page shows, final and honest (or
None) likewise, nodata (n,), cost (n,), members, scores, tables, and the options of `write_segmentation_report`.
"""

import numpy as np

from common.metrics.segmentation import class_table, mcc
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
    "fold": ("Per fold", "MCC over all pixels of the fold's tiles."),
    "group": ("Per group", "MCC over all pixels of the group's tiles."),
}
WORDS = {"mcc": "MCC", "mean_iou": "Mean IoU"}
WHY = "not defined: the class is neither in the truth nor in the predictions of these pixels."


def headline_blocks(facts: dict) -> list[str]:
    """The one score of the page and what it means, then the notes."""
    scores, counts = facts["scores"], facts["counts"].sum(0)
    if "honest" in scores:
        label, judged = "honest score, MCC", "Judged with whole groups of tiles left out"
    elif facts["blend"]:
        label, judged = "fitted score, MCC", "Judged on the tiles the blend was fitted on, which flatters"
    else:
        label, judged = "out-of-fold score, MCC", "Judged on tiles the model was not trained on"
    right, groups = 100 * np.trace(counts) / counts.sum(), facts["rows"]["group"].nunique()
    nodata = 100 * facts["nodata"].sum() / (facts["nodata"].sum() + counts.sum())
    scale = f"1 is exact, 0 no better than chance. {len(facts['ids'])} tiles, {groups} groups."
    text = (
        f"{judged}: {number(right, 1)} % of the valid pixels get their class; over these alone the MCC is "
        f"{number(mcc(counts), 4)}. The score counts every pixel; {number(nodata, 1)} % hold no data and are "
        f"{facts['outputs'][0]}. {scale}"
    )
    blocks = [headline(number(scores.get("honest", scores["fitted"]), 4), label, text)]
    return blocks + [notice(str(note)) for note in facts["notes"]]


def scores_section(facts: dict) -> list[str]:
    blocks = [score_ladder(facts, RUNGS), interval_text(facts), heading("Per class"), class_scores(facts)]
    blocks += [heading("Per member"), member_scores(facts)]
    for name, (title, caption) in TABLES.items():
        frame = facts["tables"].get(name)
        if frame is not None and len(frame):
            frame = frame.rename(columns=lambda column: WORDS.get(column, str(column).capitalize()))
            blocks += [heading(title), frame_table(frame, digits=4, caption=caption, why=WHY)]
    return blocks


def class_scores(facts: dict) -> str:
    """Each class against all others, over all pixels as the score is; the fitted IoU beside the honest one."""
    counts = facts["counts"].sum(0)
    counts[0, 0] += facts["nodata"].sum()
    found = class_table(counts, facts["outputs"])
    found["share"] = 100 * found["pixels"] / found["pixels"].sum()
    found["bar"] = found["iou"]
    if facts["honest"] is not None:
        fitted = facts["final"].sum(0)
        fitted[0, 0] += facts["nodata"].sum()
        found["fitted"] = class_table(fitted, facts["outputs"])["iou"]
    columns = [column("class", "Class", "name"), column("share", "Of the truth, %", digits=2)]
    columns += [column("iou", "IoU"), column("bar", "", "bar")]
    columns += [column("fitted", "IoU fitted")] if "fitted" in found else []
    columns += [column("dice", "F1 (Dice)"), column("precision", "Precision"), column("recall", "Recall")]
    columns += [column("mcc", "MCC")]
    caption = "Each class against all others, over all pixels. F1 and Dice are the same number."
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
    columns += [column("cost", "Cost", digits=4, signed=True), column("mcc", "MCC", digits=3), column("bar", "", "bar")]
    columns += [column("wrong", "Wrong, %", digits=1), column("valid", "Valid, %", digits=0)]
    columns += [column(f"share {name}", f"{name.capitalize()}, %", digits=2) for name in facts["outputs"][1:]]
    caption = (
        "Cost: how much higher the score would be without the tile; below zero where the tile lifts it. The MCC is "
        "over the tile's own pixels, 0 where it has one class only. Shares are of the tile's valid pixels."
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
    records = []
    for place in np.argsort(-facts["cost"], kind="stable"):
        row, counts, nodata = facts["rows"].iloc[place], facts["counts"][place], facts["nodata"][place]
        valid, every = counts.sum(), counts.copy()
        every[0, 0] += nodata
        shares = 100 * counts.sum(1) / valid if valid else [None] * len(counts)
        record = {"id": str(row["id"]), "group": str(row["group"]), "cost": facts["cost"][place], "mcc": mcc(every)}
        record |= {"fold": str(row["fold"])} if "fold" in row else {}
        record |= {"wrong": 100 * (1 - np.trace(counts) / valid) if valid else None}
        record |= {"valid": 100 * valid / every.sum(), "bar": record["mcc"]}
        records.append(record | {f"share {n}": s for n, s in zip(facts["outputs"], shares, strict=True)})
    return records
