"""The first sections of the report of a rare class: headline, score, thresholds and limits of blobs per ratio.

Each takes the facts gathered by `detection_report` and gives a list of HTML blocks.
"""

import pandas as pd

from common.outputs.curves import key_to_lines
from common.outputs.detection_figures import REACHED, probability, ratio_name, short, thresholds_figure
from common.outputs.report import column, heading, headline, notice, number, paragraph, table
from common.outputs.shared_sections import interval_text, member_scores, score_ladder

RUNGS = {
    "constant": ("Constant", "the class everywhere"),
    "logistic": ("Logistic regression", "pixel by pixel, on the bands"),
    "member": ("Best single member, at .5", ""),
    "fitted": ("Fitted", "judged on the tiles it was fitted on"),
    "honest": ("Honest", "judged with regions left out"),
    "reachable": ("Best reachable", "what the noise of the data allows"),
}
OBJECT_LIMIT = 0.3  # IoU of the object curves
NO_NEGATIVES = "Not shown: no tile is without the class, so that nothing can be told of realistic ratios."


def headline_blocks(facts: dict) -> list[str]:
    """The one score of the page and what it means, then what must be known about it."""
    name, groups = facts["name"], facts["rows"]["group"].nunique()
    lines = facts["tables"]["thresholds"]
    main = lines[lines["ratio"] == facts["main"]].iloc[0]
    left = "whole regions" if groups > 1 else "half of the tiles"
    text = (
        f"Out of fold, with {left} left out of what was fitted: IoU of {name} over the pixels of tiles with and "
        f"without it, both sides weighing alike; 1 is exact. {facts['positives']} tiles with {name}, "
        f"{facts['negatives']} without, {groups} region{'s' if groups != 1 else ''}."
    )
    if facts["ratios"]:
        text += (
            f" At {ratio_name(facts['main'])} the threshold {probability(main['threshold'])} has precision "
            f"{number(main['honest precision'], 2)} and recall {number(main['honest recall'], 2)} of pixels"
        )
        blobs = (number(main.get(f"honest object {key}"), 2) for key in ("precision", "recall"))
        text += "; of whole blobs, kept by their mean probability, {} and {}.".format(*blobs) if "blob" in main else "."
    blocks = [headline(number(facts["scores"]["honest"], 4), "honest score, balanced IoU", text)]
    if groups < 2:
        blocks.append(notice(f"{facts['split']}.", label="One region", warn=True))
    return blocks + [notice(str(note)) for note in facts["notes"]]


def score_section(facts: dict) -> list[str]:
    blocks = [score_ladder(facts, RUNGS), interval_text(facts), paragraph(f"Honest: {facts['split']}.")]
    tiles = facts["tiles"]
    lines = []
    for group, some in tiles.groupby("group", sort=True):
        inside = some["positive"].to_numpy(bool)
        lines.append({"group": str(group), "tiles": len(some), "positives": int(inside.sum())}
                     | {"iou": some["iou"][inside].mean() if inside.any() else None}
                     | {"false": int(some["false"][~inside].sum()), "touched": int((some["false"][~inside] > 0).sum())}
                     | {"others": int((~inside).sum())})  # fmt: skip
    columns = [column("group", "Region", "name"), column("tiles", "Tiles", digits=0)]
    columns += [column("positives", "With the class", digits=0), column("iou", "Mean IoU of these")]
    columns += [column("others", "Without", digits=0), column("touched", "of these with false pixels", digits=0)]
    columns += [column("false", "False pixels there", digits=0)]
    caption = "At the threshold of the largest balanced IoU, fitted without the region."
    blocks += [
        heading("Per region"),
        table(columns, lines, caption=caption, why="no tile of the region has the class."),
    ]
    return [*blocks, heading("Per member"), paragraph("The balanced IoU at probability .5."), member_scores(facts)]


def ratio_records(frame: pd.DataFrame) -> list[dict]:
    return [line | {"ratio": ratio_name(line["ratio"])} for line in frame.to_dict("records")]


def thresholds_section(facts: dict) -> list[str]:
    """Threshold, precision and recall per ratio, whether the precision is reachable, and what stands behind it."""
    lines, name = facts["tables"]["thresholds"], facts["name"]
    target = short(facts["post"]["target_precision"], 2).rstrip("0")
    blocks = [behind_block(facts)]
    if not facts["ratios"]:
        return [paragraph(NO_NEGATIVES, kind="why alone"), *blocks]
    missed = [ratio_name(ratio) for ratio in lines["ratio"][~lines["reachable"].to_numpy(bool)]]
    said = []
    if missed:
        text = f"At {', '.join(missed)} no threshold has a precision of {target}; the one of the best F0.5 is given."
        said = [notice(text, label="Not reachable", warn=True)]
    text = (
        f"At 1:r stand r tiles without {name} on every tile with it. Per ratio the threshold of the calibrated "
        f"probability at which the pixels' precision is {target} and recall is largest. As fitted: on the tiles it was "
        "fitted on. Honest: each region judged with temperature and threshold fitted without it."
    )
    records = [
        line
        | {"reachable": "yes" if line["reachable"] else "no", "prevalence": 1e6 * line["prevalence"]}
        | {key: probability(line[key]) for key in ("threshold", "lowest", "highest")}
        for line in ratio_records(lines)
    ]
    columns = [column("ratio", "Ratio", "name"), column("prevalence", "Pixels, per million", digits=1)]
    columns += [column("reachable", "Reachable", "text"), column("threshold", "Threshold", "name")]
    columns += [column(key, words.capitalize()) for key, words in REACHED.items()]
    columns += [column("lowest", "Lowest fit", "name"), column("highest", "Highest fit", "name")]
    columns += [column("reachable_parts", "Reachable without a part", "name")]
    why = "nothing is predicted or true there."
    figures = [key_to_lines(list(REACHED.values())), thresholds_figure(lines, "thresholds")]
    hollow = [paragraph("A hollow mark: the precision is not reachable.", kind="why alone")] if missed else []
    return [*said, paragraph(text), table(columns, records, why=why), *figures, *hollow, *limits_blocks(lines), *blocks]


def limits_blocks(lines: pd.DataFrame) -> list[str]:
    """The limit of whole blobs per ratio and what it reaches; nothing where none were fitted."""
    if "blob" not in lines:
        return []
    columns = [column("ratio", "Ratio", "name"), column("object reachable", "Reachable", "name")]
    columns.append(column("blob", "Least mean probability", "name"))
    for words, prefix in (("honest", "honest object"), ("as fitted", "object")):
        columns += [column(f"{prefix} {key}", f"{key.capitalize()}, {words}") for key in ("precision", "recall")]
    records = [
        line | {"object reachable": "yes" if line["object reachable"] else "no", "blob": probability(line["blob"])}
        for line in ratio_records(lines)
    ]
    caption = (
        "Blobs outlined at the threshold of the largest balanced IoU; those of a smaller mean probability are dropped "
        f"whole. Precision and recall are of blobs at IoU {short(OBJECT_LIMIT, 1)}; where the precision is not "
        "reachable, the limit is that of the best F0.5."
    )
    return [heading("Limits of whole blobs"), table(columns, records, caption=caption, why="there is no such blob.")]


def behind_block(facts: dict) -> str:
    """Which and how many negatives stand behind each ratio."""
    columns = [column("ratio", "Ratio", "name"), column("positives", "With the class", digits=0)]
    columns += [column("negatives", "Without", digits=0), column("weight", "Each of these counts", digits=2)]
    columns += [column("sub-sample", "As a sub-sample", "name")]
    caption = (
        f"The tiles without {facts['name']} are weighted to each ratio. What {facts['negatives']} tiles do not show, "
        "no weight adds: a single false blob counts as often as its tile."
    )
    records = ratio_records(facts["tables"]["negatives"])
    return heading("What stands behind each ratio") + table(columns, records, caption=caption)
