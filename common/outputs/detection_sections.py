"""The sections of the report of a rare class after its scores: curves, objects, calibration, tiles, blend.

Each takes the facts gathered by `detection_report` and gives a list of HTML blocks.
"""

import numpy as np
import pandas as pd

from common.outputs.curves import key_to_lines
from common.outputs.detection_figures import (
    curves_figure,
    object_curves,
    pixel_curves,
    probability,
    ratio_name,
    reliability_figures,
    short,
)
from common.outputs.detection_pictures import pictures_section
from common.outputs.detection_scores import NO_NEGATIVES, OBJECT_LIMIT, ratio_records, score_section, thresholds_section
from common.outputs.report import (
    column,
    details,
    frame_table,
    heading,
    number,
    panels,
    paragraph,
    table,
)
from common.outputs.segmentation_sections import gates_section
from common.outputs.shared_sections import (
    findings_section,
    learning_section,
    no_blend,
    settings_section,
    weights_blocks,
)
from common.post.prevalence import tile_weights

# which blobs -> title and caption of their curve
OBJECT_CURVES = {
    "raw": ("At .5, uncalibrated", "the mark: all blobs"),
    "ratio": ("At the threshold of the ratio", "the mark: all blobs"),
    "outlines": ("Whole blobs of the threshold of 1:1", "the mark: the honest limit"),
}
MOST_TILES = 12
SCORES = {"iou": "IoU", "precision": "Precision", "recall": "Recall", "f1": "F1", "f0.5": "F0.5", "ap": "AP"}


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
    if (pixels["at"] == "blobs").any():
        caption += " Blobs: the threshold of 1:1 without the blobs under the limit of the ratio."
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
    blobs = frame[(frame["at"] == "blobs") & (frame["iou"] == OBJECT_LIMIT)]
    kept = {line["ratio"]: (line["recall"], line["precision"]) for line in blobs.to_dict("records")}
    drawn = []
    for name, (title, caption) in OBJECT_CURVES.items():
        found = {ratio: scan["matches"][ratio if name == "ratio" else name] for ratio in facts["ratios"]}
        curves = object_curves(found, weights, facts["ratios"], OBJECT_LIMIT)
        ends = {ratio: (curve[0][-1], curve[1][-1]) for ratio, curve in curves.items() if len(curve[0])}
        points = renamed(kept if name == "outlines" else ends, words)
        options = {"title": title, "caption": caption}
        drawn.append(curves_figure(renamed(curves, words), points, f"objects-{name}", **options))
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
