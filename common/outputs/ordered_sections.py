"""The sections that ordered classes add to the segmentation report: gates, ranking, calibration, areas, gains.

Each takes the facts gathered by `segmentation_report`, among them `judgement` (of common.post.ordered_judge.judge) and
`logistic` (of common.metrics.pixel_baselines.logistic_judgement, or None), and gives a list of HTML blocks.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from common.metrics.ordinal import rate_curve
from common.outputs.curves import PANEL, PANEL_TEXT, key_to_lines
from common.outputs.figures import DASHES, MARKERS, SERIES, colour, inline_svg, new_figure, plain_axes
from common.outputs.report import (
    DASH,
    column,
    details,
    figure,
    frame_table,
    heading,
    notice,
    number,
    panels,
    paragraph,
    table,
)

NO_BREAK = "\N{NO-BREAK SPACE}"
OURS, BASELINE, SUCCESS = "this judgement", "logistic regression", "success rate: tiles trained on"
MEASURES = {
    "kappa": "Cohen's kappa",
    "linear_kappa": "Kappa, linear weights",
    "quadratic_kappa": "Kappa, quadratic weights",
    "rho": "Spearman's rho",
    "auroc": "AUROC, {upward}",
    "ap": "Average precision, {name}",
}
WAYS = {"raw": "as it is", "isotonic": "isotonic", "temperature": "temperature"}
MOST_PARTS = 4
FIGURE_POINTS = 250


def gate_cell(reached, needed: float) -> str:
    """0.412 PASS: a score beside whether it is enough."""
    passed = reached is not None and np.isfinite(reached) and reached >= needed
    return f"{number(reached)}{NO_BREAK}{'PASS' if passed else 'FAIL'}"


def gates_section(facts: dict) -> list[str]:
    """What must be reached, whether it is, and whether a regression on single pixels reaches it as well."""
    gates, logistic = facts["gates"], facts["logistic"]
    if gates is None or not len(gates):
        return [paragraph("No gates were asked for.", kind="why alone")]
    records = [{"gate": one["gate"], "needed": one["needed"], "ours": gate_cell(one["reached"], one["needed"])}
               for one in gates.to_dict("records")]  # fmt: skip
    columns = [column("gate", "Gate", "name"), column("needed", "Needed"), column("ours", "Reached", "text")]
    missed = gates.loc[~gates["passed"].astype(bool), "gate"].tolist()
    verdict = f"{len(missed)} of {len(gates)} gates are not reached: {', '.join(missed)}." if missed else "All are met."
    blocks = [notice(verdict, label="Gates", warn=bool(missed))]
    if logistic is None:
        return [*blocks, table(columns, records), no_logistic()]
    for record, line in zip(records, gates.to_dict("records"), strict=True):
        record["logistic"] = gate_cell(logistic["metrics"].get(line["gate"]), line["needed"])
    columns.append(column("logistic", "Logistic regression", "text"))
    short = [record["gate"] for record in records if record["logistic"].endswith("FAIL")]
    text = "A logistic regression on the bands of single pixels, out of fold on the same tiles, "
    text += f"misses {len(short)} of them: {', '.join(short)}." if short else "reaches them all."
    if any(DASH in record["ours"] + record["logistic"] for record in records):
        text += f" {DASH}: not defined, since the class is never predicted or not there; nothing is reached then."
    return [*blocks, table(columns, records), paragraph(text)]


def upward(name: str, outputs) -> str:
    """What is found at this class or a higher one, in words."""
    return name if name == outputs[-1] else f"{name} or higher"


def no_logistic() -> str:
    text = "A logistic regression on single pixels is not beside it: it was not asked for (--baselines)."
    return paragraph(text, kind="why alone")


def ranking_section(facts: dict) -> list[str]:
    """Agreement and ranking in a table, and how much of a class lies in the area of highest susceptibility."""
    judgement, logistic = facts["judgement"], facts["logistic"]
    records = []
    for line in judgement["tables"]["ordinal"].to_dict("records"):
        words = {"name": line["class"], "upward": upward(line["class"], facts["outputs"])}
        records.append({"measure": MEASURES[line["measure"]].format(**words), "value": line["value"]})
        records[-1] |= {"bar": line["value"], "chance": line["chance"]}
    columns = [column("measure", "Measure", "name"), column("value", "Honest", digits=4), column("bar", "", "bar")]
    columns.append(column("chance", "By chance", digits=3))
    text = (
        "Kappas are of the masks. Rho, AUROC and average precision rank the pixels by the blend's susceptibility (the "
        "mean class as a share of the highest), average precision by the probability of the class itself, before "
        "thresholds and CRF."
    )
    why = "not defined: the class is not in the truth."
    blocks = [paragraph(text), table(columns, records, why=why), heading("Prediction rate")]
    lines = [OURS] if logistic is None else [OURS, BASELINE]
    lines += [SUCCESS] if "success rate" in judgement["curves"] else []
    words = (
        "How much of a class lies in the area of highest susceptibility, on tiles left out. The area under the curve "
        "is .5 without skill."
    )
    words += (
        " The success rate is that of models on tiles they were trained on; what it has more does not hold elsewhere."
        if SUCCESS in lines
        else " The success rate, on tiles trained on, is left out: infer.py --rows train and --success add it."
    )
    blocks += [paragraph(words), key_to_lines(lines), rate_panels(judgement, logistic, facts["outputs"])]
    return blocks if logistic is not None else [*blocks, no_logistic()]


def rate_panels(judgement: Mapping, logistic: Mapping | None, outputs) -> str:
    """A panel per class above the first: found share over area share, ours, the regression's and the success rate."""
    blocks = []
    for name, curve in judgement["curves"]["prediction rate"].items():
        curves = [curve]
        if logistic is not None:
            curves.append(rate_curve(logistic["hist"], at_least=list(outputs).index(name)))
        words = upward(name, outputs)
        areas = f"{number(curve.auc)}" + "".join(f", of the regression {number(one.auc)}" for one in curves[1:])
        if "success rate" in judgement["curves"]:
            curves.append(judgement["curves"]["success rate"][name])
            areas += f", of the success rate {number(curves[-1].auc)}"
        drawing = rate_figure(curves, f"rate-{len(blocks)}", words)
        blocks.append(figure(drawing, title=words.capitalize(), caption=f"area under the curve {areas}", hero=True))
    return panels(blocks, pairs=True)


def rate_figure(curves, name: str, words: str) -> str:
    """SVG of rate curves on one axis, drawn through FIGURE_POINTS places of the area."""
    drawing = new_figure(*PANEL)
    axis = plain_axes(drawing.add_subplot(), x="share of the area", y="share found", size=PANEL_TEXT)
    axis.plot([0, 1], [0, 1], color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 2)))
    places = np.linspace(0, 1, FIGURE_POINTS) ** 2  # closer where the curve is steep
    for index, curve in enumerate(curves):
        found = np.interp(places, curve.area, curve.found)
        axis.plot(places, found, color=colour(SERIES[index]), linestyle=DASHES[index], linewidth=1.5)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    return inline_svg(drawing, name, f"Prediction rate, {words}")


def calibration_section(facts: dict) -> list[str]:
    """Whether the susceptibility is the mean true class of its pixels, as it is and calibrated on other parts."""
    frame, diagrams = facts["judgement"]["tables"]["susceptibility"], facts["judgement"]["reliability"]
    text = (
        "Where the susceptibility is calibrated, the pixels of one value have that value as the mean of their true "
        "classes (0 the lowest, 1 the highest): the line lies on the diagonal. Both ways of calibrating are judged on "
        "parts of the groups that they were not fitted on."
    )
    drawn = {words: diagrams[way] for way, words in WAYS.items()}
    blocks = [paragraph(text), key_to_lines(list(drawn)), panels([reliability_figure(drawn)], pairs=True)]
    last = frame.iloc[-1]
    records = [{"way": words, "ece": last[f"ece_{way}"], "mse": last[f"mse_{way}"]} for way, words in WAYS.items()]
    columns = [column("way", "Susceptibility", "name"), column("ece", "Calibration error", digits=4)]
    columns.append(column("mse", "Mean squared error", digits=4))
    caption = "Calibration error: mean distance from the diagonal over 15 parts of equal width, weighted by pixels."
    blocks.append(table(columns, records, caption=caption))
    parts = frame.iloc[:-1].rename(columns={f"ece_{way}": f"error, {words}" for way, words in WAYS.items()})
    parts = parts[[name for name in parts if not name.startswith("mse_")]]
    drawn = frame_table(parts, digits=4)
    return [*blocks, heading("Per part left out"), drawn] if len(parts) <= MOST_PARTS else [
        *blocks, details(f"Per part left out, {len(parts)}", drawn)]  # fmt: skip


def reliability_figure(diagrams: Mapping[str, pd.DataFrame]) -> str:
    """Mean true class over the mean susceptibility of its part, a line per way."""
    drawing = new_figure(*PANEL)
    axis = plain_axes(drawing.add_subplot(), x="susceptibility", y="mean true class", size=PANEL_TEXT)
    axis.plot([0, 1], [0, 1], color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 2)))
    for index, one in enumerate(diagrams.values()):
        axis.plot(one["prob"], one["share"], color=colour(SERIES[index]), linestyle=DASHES[index], linewidth=1.4,
                  marker=MARKERS[index], markersize=4.5)  # fmt: skip
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    return figure(inline_svg(drawing, "reliability", "Calibration of the susceptibility"),
                  caption="the dashed line: calibrated", hero=True)  # fmt: skip


def interval_cell(line: Mapping, scale: float = 100) -> str:
    """12.3 (10.1 to 14.5): a value with its interval, in percent."""
    value, low, high = (number(scale * line[name], 1) for name in ("value", "low95", "high95"))
    return value if value == DASH else f"{value} ({low} to {high})"


def area_section(facts: dict) -> list[str]:
    """Accuracy and areas as a survey of a few hundred pixels of every mapped class would estimate them."""
    frame = facts["judgement"]["tables"]["area"]
    lines = {(line["estimate"], line["class"]): line for line in frame.to_dict("records")}
    records = []
    for name in facts["outputs"]:
        share, users, producers = (lines[kind, name] for kind in ("share", "users", "producers"))
        record = {"class": name, "mapped": 100 * share["mapped"], "share": interval_cell(share)}
        record |= {"true": 100 * share["all pixels"], "users": interval_cell(users)}
        records.append(record | {"producers": interval_cell(producers)})
    columns = [column("class", "Class", "name"), column("mapped", "Mapped, % of the area", digits=2)]
    columns += [column("share", "Estimated area, %", "text"), column("true", "All pixels, %", digits=2)]
    columns += [column("users", "User's accuracy, %", "text"), column("producers", "Producer's accuracy, %", "text")]
    whole = lines["overall", ""]
    text = (
        f"Overall accuracy {interval_cell(whole)} %, of all pixels {number(100 * whole['all pixels'], 1)} %. A random "
        "sample of up to 500 pixels of every mapped class, weighted by the mapped areas, with 95 % intervals (Olofsson "
        "et al. 2014). They take pixels for independent; neighbours resemble each other, so for another area the "
        "intervals are too narrow. A pixel that several tiles hold counts once here, in the other scores with each."
    )
    return [paragraph(text), table(columns, records)]


def gains_section(facts: dict) -> list[str]:
    """What thresholds, and CRF or cleaning, each add to the score."""
    gains, metric = facts["gains"], facts["metric"]
    if gains is None or not len(gains):
        return [paragraph("What the steps gain was not measured here.", kind="why alone")]
    refined = facts["judgement"].get("refined", False)
    cleaned = "CRF" if refined else "cleaning"
    words = {"none": "Argmax", "thresholds": "Thresholds", "morphology": cleaned.capitalize() if not refined else "CRF"}
    shown = gains.rename(columns=words | {"both": f"Thresholds and {cleaned}", "set": "Set"})
    text = f"{metric.name} of the argmax, and what each step adds to it, judged with groups left out."
    text += "" if refined else " No CRF was asked for (--crf)."
    signed = [name for name in shown if name not in ("Set", "Argmax")]
    return [paragraph(text), frame_table(shown, digits=4, signed=signed)]


# title -> (its short form in the navigation, its blocks)
SECTIONS: dict[str, tuple[str, Callable]] = {
    "Order and ranking": ("Ranking", ranking_section),
    "Calibration of the susceptibility": ("Calibration", calibration_section),
    "Areas": ("Areas", area_section),
    "What thresholds and CRF gain": ("Gains", gains_section),
}


def with_order(sections: Mapping[str, tuple[str, Callable]]) -> dict[str, tuple[str, Callable]]:
    """The sections of the report with gates after the scores and what ordered classes add after the second."""
    found = {}
    for place, (name, section) in enumerate(sections.items()):
        if name != "Gates":
            found[name] = section
        if place == 0:
            found["Gates"] = ("Gates", gates_section)
        if place == 1:
            found |= SECTIONS
    return found
