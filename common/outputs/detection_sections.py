"""The sections of the report of a rare class: score, thresholds, curves, objects, calibration, tiles, blend.

Each takes the facts gathered by `detection_report` and gives a list of HTML blocks.
"""

import numpy as np
import pandas as pd

from common.outputs.curves import key_to_lines
from common.outputs.detection_figures import (
    REACHED,
    curves_figure,
    object_curves,
    pixel_curves,
    probability,
    ratio_name,
    reliability_figures,
    short,
    thresholds_figure,
)
from common.outputs.detection_pictures import pictures_section
from common.outputs.report import (
    column,
    details,
    frame_table,
    heading,
    headline,
    notice,
    number,
    panels,
    paragraph,
    table,
)
from common.outputs.segmentation_sections import gates_section
from common.outputs.shared_sections import (
    findings_section,
    interval_text,
    learning_section,
    member_scores,
    no_blend,
    score_ladder,
    settings_section,
    weights_blocks,
)
from common.post.prevalence import tile_weights

RUNGS = {
    "constant": ("Constant", "the class everywhere"),
    "logistic": ("Logistic regression", "pixel by pixel, on the bands"),
    "member": ("Best single member, at .5", ""),
    "fitted": ("Fitted", "judged on the tiles it was fitted on"),
    "honest": ("Honest", "judged with regions left out"),
    "reachable": ("Best reachable", "what the noise of the data allows"),
}
OBJECT_LIMIT = 0.3  # IoU of the object curves
MOST_TILES = 12
NO_NEGATIVES = "Not shown: no tile is without the class, so that nothing can be told of realistic ratios."
SCORES = {"iou": "IoU", "precision": "Precision", "recall": "Recall", "f1": "F1", "f0.5": "F0.5", "ap": "AP"}


def headline_blocks(facts: dict) -> list[str]:
    """The one score of the page and what it means, then what must be known about it."""
    name, groups = facts["name"], facts["rows"]["group"].nunique()
    lines = facts["tables"]["thresholds"]
    main = lines[lines["ratio"] == facts["main"]].iloc[0]
    text = (
        f"Out of fold, with whole regions left out of what was fitted: IoU of {name} over the pixels of tiles with and "
        f"without it, both sides weighing alike; 1 is exact. {facts['positives']} tiles with {name}, "
        f"{facts['negatives']} without, {groups} region{'s' if groups != 1 else ''}."
    )
    if facts["ratios"]:
        text += (
            f" At {ratio_name(facts['main'])} the threshold {probability(main['threshold'])} has precision "
            f"{number(main['honest precision'], 2)} and recall {number(main['honest recall'], 2)} of pixels."
        )
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
    return [*said, paragraph(text), table(columns, records, why=why), *figures, *hollow, *blocks]


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


def curves_section(facts: dict) -> list[str]:
    """Precision over recall of the pixels per ratio, and the scores of the masks."""
    pixels, ratios = facts["tables"]["pixel"], [1.0, *facts["ratios"]]
    areas = {line["ratio"]: line["ap"] for line in weighted(pixels).to_dict("records")}
    words = {ratio: f"{ratio_name(ratio)}, AP {short(areas[ratio])}" for ratio in ratios if ratio in areas}
    curves = pixel_curves(facts["hist"], list(words), facts["positives"], facts["negatives"])
    points = {line["ratio"]: (line["recall"], line["precision"]) for line in weighted(pixels).to_dict("records")}
    target = facts["post"]["target_precision"]
    drawn = curves_figure(renamed(curves, words), renamed(points, words), "pixels", title="Pixels",
                          caption="the dashed line is the precision aimed at", target=target)  # fmt: skip
    text = "A line per ratio; the mark is the mask at the honest threshold of that ratio (1:1: the largest IoU)."
    blocks = [paragraph(text), key_to_lines(list(words.values())), panels([drawn], pairs=True)]
    columns = [column("ratio", "Ratio", "name"), column("set", "Tiles", "name"), column("at", "Mask", "name")]
    columns += [column(key, title, digits=4 if key == "iou" else 3) for key, title in SCORES.items()]
    why = "nothing of the class is predicted or true there."
    caption = "Pixels of the masks at probability .5 before calibration and at the threshold; AP is of the whole curve."
    blocks += [heading("Masks"), table(columns, ratio_records(pixels), caption=caption, why=why)]
    columns = [column("ratio", "Ratio", "name"), column("set", "Tiles", "name")]
    columns += [column(key, f"Precision at recall {key[3:]}") for key in pixels if key.startswith("p@r")]
    columns += [column(key, f"Recall at precision {key[3:]}") for key in pixels if key.startswith("r@p")]
    records = ratio_records(pixels[pixels["at"] == "threshold"])
    return [*blocks, heading("Along the curve"), table(columns, records, why=why)]


def weighted(pixels: pd.DataFrame) -> pd.DataFrame:
    return pixels[(pixels["set"] == "weighted") & (pixels["at"] == "threshold")]


def renamed(values: dict, words: dict) -> dict:
    return {words[key]: value for key, value in values.items() if key in words}


def objects_section(facts: dict) -> list[str]:
    """Blobs matched one to one with true ones, raw against calibrated, and their curves."""
    frame, scan = facts["tables"]["object"], facts["scan"]
    if not facts["ratios"] or not len(frame):
        return [paragraph(NO_NEGATIVES, kind="why alone")]
    text = (
        "A predicted blob is right if its IoU with a true one, taken once, is at least the limit. Blobs count by "
        f"their tile: those in tiles without {facts['name']} weigh as much as the ratio asks."
    )
    columns = [column("ratio", "Ratio", "name"), column("at", "Mask", "name"), column("iou", "IoU ≥", digits=1)]
    columns += [column(key, SCORES[key]) for key in ("precision", "recall", "f1", "ap")]
    columns += [column("predicted", "Predicted blobs", digits=0), column("true", "True blobs", digits=0)]
    why = "there is no predicted or no true blob."
    blocks = [paragraph(text), table(columns, ratio_records(frame), why=why)]
    weights = {ratio: tile_weights(facts["positive"], ratio) for ratio in facts["ratios"]}
    words = {ratio: ratio_name(ratio) for ratio in facts["ratios"]}
    drawn = []
    for title, raw in (("At the threshold", False), ("At .5, uncalibrated", True)):
        found = {ratio: scan["matches"]["raw" if raw else ratio] for ratio in facts["ratios"]}
        curves = renamed(object_curves(found, weights, facts["ratios"], OBJECT_LIMIT), words)
        ends = {name: (curve[0][-1], curve[1][-1]) for name, curve in curves.items() if len(curve[0])}
        drawn.append(curves_figure(curves, ends, f"objects-{int(raw)}", title=title, caption="all blobs: the mark"))
    text = f"Blobs of IoU ≥ {short(OBJECT_LIMIT, 1)} kept from the highest mean probability down, a line per ratio."
    return [*blocks, heading("Object curves"), paragraph(text), key_to_lines(list(words.values())),
            panels(drawn, pairs=True)]  # fmt: skip


def calibration_section(facts: dict) -> list[str]:
    """One temperature: what it does to the probabilities, each region's fitted without it."""
    main, diagrams = ratio_name(facts["main"]), facts["reliability"]
    text = (
        f"Probabilities are sigmoid(logit / T), T fitted at {main} by likelihood, each part with the T of the "
        f"others ({number(facts['post']['temperature'], 3)} on all). In the figures a point per part of equal width "
        "that holds any pixel, pixels weighted to that ratio; on the dashed line a probability means what it says. One "
        "temperature makes all of them bolder or shyer; it does not correct for a class that is rarer than in training."
    )
    words = {"before": "Before", "after": "After calibration"}
    figures = reliability_figures({words[key]: diagrams[key] for key in words}, "reliability")
    frame = facts["tables"]["calibration"]
    columns = [column("left out", "Left out", "name"), column("temperature", "Temperature")]
    for key, title in (("nll", "NLL"), ("brier", "Brier"), ("ece", "ECE"), ("ece_mass", "ECE, equal mass")):
        columns += [column(f"{key}_before", f"{title} before", digits=5), column(f"{key}_after", "after", digits=5)]
    caption = f"Per pixel at {main}. ECE of 15 parts of equal width; “equal mass” of 15 that hold equally many pixels."
    why = "the part has no pixel with a label, or none that counts at this ratio."
    each = [table([column("prob", "Mean probability"), column("share", "Share of the class"),
                   column("weight", "Pixels, weighted", digits=0)], diagrams[key].to_dict("records"))
            for key in words]  # fmt: skip
    folded = [details(f"The points, {words[key].lower()}", html) for key, html in zip(words, each, strict=True)]
    return [paragraph(text), figures, table(columns, frame.to_dict("records"), caption=caption, why=why), *folded]


def tiles_section(facts: dict) -> list[str]:
    """A line per tile, those of most wrong pixels first; all but the first folded away."""
    frame = facts["tiles"].assign(wrong=facts["tiles"]["false"] + facts["tiles"]["missed"])
    frame = frame.sort_values(["wrong", "id"], ascending=[False, True], kind="stable")
    records = [line | {"positive": "with" if line["positive"] else "without"} for line in frame.to_dict("records")]
    columns = [column("id", "Tile", "name"), column("group", "Region", "name"), column("positive", "Class", "text")]
    columns += [column("iou", "IoU"), column("false", "False, pixels", digits=0)]
    columns += [column("missed", "Missed, pixels", digits=0)]
    caption = "Masks at the honest threshold of the largest balanced IoU."
    why = "nothing is predicted or true there."
    first = table(columns, records[:MOST_TILES], caption=caption, why=why)
    rest = records[MOST_TILES:]
    return [first, details(f"The other {len(rest)} tiles", table(columns, rest, why=why))] if rest else [first]


def blend_section(facts: dict) -> list[str]:
    """Weights of the members, and what threshold and least blob add to the score."""
    blend = facts["blend"]
    names = list(blend["members"])
    blocks = weights_blocks(facts, np.asarray(blend["weights"], float)) if len(names) > 1 else no_blend(facts)
    post = facts["post"]
    text = f"Blobs under {post['min_blob']} pixels are dropped." if post["min_blob"] > 1 else "No blob is too small."
    text = f"Threshold of 1:1 {probability(post['balanced'])}, calibrated and fitted on all tiles. {text}"
    gains = facts["gains"]
    blocks.append(paragraph(text))
    if gains is None or not len(gains):
        return [*blocks, paragraph("The gains of post-processing were not measured here.", kind="why alone")]
    caption = (
        "Under “none” the balanced IoU at probability .5; the others say what the threshold, and dropping small blobs "
        "as well, add to it, each region left out of what is fitted."
    )
    return [*blocks, frame_table(gains, digits=4, signed=[key for key in gains if key != "none"], caption=caption)]


# title -> (its short form in the navigation, its blocks)
SECTIONS = {
    "Score": ("Score", score_section),
    "Thresholds per ratio": ("Thresholds", thresholds_section),
    "Precision and recall of pixels": ("Pixels", curves_section),
    "Objects": ("Objects", objects_section),
    "Calibration": ("Calibration", calibration_section),
    "Where it fails and where it does not": ("Pictures", pictures_section),
    "Every tile": ("Tiles", tiles_section),
    "Learning curves": ("Learning", learning_section),
    "Blend and post-processing": ("Blend", blend_section),
    "Gates": ("Gates", gates_section),
    "Checks of the data": ("Checks", findings_section),
    "Settings": ("Settings", settings_section),
}
