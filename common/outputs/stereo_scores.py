"""The scores of the stereo report: headline, ladder, and tables per target, member, state and group.

facts: outputs, weights (k,), rows, ids, target and valid (n, k), final, honest (or None), shown (n, k), before (or
None), members, scores, and the options of `write_stereo_report`.
"""

import numpy as np

from common.metrics.regression import score_by, target_table
from common.outputs.report import column, details, heading, headline, notice, number, paragraph, table
from common.outputs.shared_sections import interval_text, member_scores, score_ladder
from common.outputs.stereo_figures import short_name

RUNGS = {
    "constant": ("Constant", "each target's mean"),
    "ridge": ("Ridge regression", "on colour statistics"),
    "member": ("Best single member", ""),
    "fitted": ("Fitted", "judged on the rows it was fitted on"),
    "honest": ("Honest", "judged with groups left out"),
    "reachable": ("Best reachable", "what the noise of the data allows"),
}
MOST_GROUPS = 12


def headline_blocks(facts: dict) -> list[str]:
    """The one score of the page and what it means, then the notes."""
    scores, count = facts["scores"], len(facts["ids"])
    value = scores.get("honest", scores.get("fitted"))
    if "honest" in scores:
        label, judged = "honest score, weighted R²", "Judged with whole groups of photos left out"
    elif facts["blend"]:
        label, judged = "fitted score, weighted R²", "Judged on the rows the blend was fitted on, which flatters"
    else:
        label, judged = "out-of-fold score, weighted R²", "Judged on photos the model was not trained on"
    if value is None or not np.isfinite(value):
        meaning = "no score can be given: the known targets do not vary."
    elif value > 0:
        meaning = f"the predictions explain {number(100 * value, 1)} % of the weighted variation of the masses."
    else:
        meaning = "the predictions are no better than one and the same mass for everything."
    groups = facts["rows"]["group"].nunique()
    scale = f"1 is exact, 0 is what one mass for every target of every photo scores. {count} photos, {groups} groups."
    blocks = [headline(number(value, 4), label, f"{judged}, {meaning} {scale}")]
    return blocks + [notice(str(text)) for text in facts["notes"]]


def scores_section(facts: dict) -> list[str]:
    return [
        score_ladder(facts, RUNGS),
        interval_text(facts),
        heading("Per target"),
        target_scores(facts),
        coverage_table(facts),
        heading("Per member"),
        member_scores(facts),
        heading("Per state"),
        state_scores(facts),
        heading("Per group"),
        group_scores(facts),
    ]


def target_scores(facts: dict) -> str:
    """R2 and RMSE per target, fitted and honest, and the weighted score of all in the last line."""
    valid, sides = facts["valid"], {"fitted": facts["final"], "honest": facts["honest"]}
    sides = {name: pred for name, pred in sides.items() if pred is not None}
    tables = {name: target_table(facts["target"], pred, facts["outputs"], valid=valid) for name, pred in sides.items()}
    records, truth = [], np.where(valid, facts["target"], np.nan)
    for i, output in enumerate(facts["outputs"]):
        record = {"target": short_name(output), "weight": facts["weights"][i]}
        known = truth[np.isfinite(truth[:, i]), i]
        record |= {
            "mean": known.mean() if len(known) else None,
            "zeros": 100 * np.mean(known == 0) if len(known) else None,
        }
        for name, part in tables.items():
            record |= {f"{key} {name}": part[key][i] for key in ("r2", "rmse", "bias")}
        records.append(record)
    total = {"target": "All, weighted", "weight": facts["weights"].sum()}
    records.append(total | {f"r2 {name}": facts["scores"].get(name) for name in sides})
    columns = [column("target", "Target", "name"), column("weight", "Weight", digits=2)]
    columns += [column("mean", "True mean, g", digits=1), column("zeros", "Zeros, %", digits=0)]
    for key, text, digits in (("r2", "R²{}", 4), ("rmse", "RMSE{}, g", 2), ("bias", "Bias{}, g", 2)):
        for name in sides:
            suffix = f" {name}" if len(sides) > 1 else ""
            columns.append(column(f"{key} {name}", text.format(suffix), digits=digits, signed=key == "bias"))
    why = "not defined: grams of different targets are not added up, and R² needs true values that vary."
    return table(columns, records, strong=(len(records) - 1,), why=why, caption="Bias is predicted minus true.")


def coverage_table(facts: dict) -> str:
    """Share of true values inside the predicted intervals; nothing where the model gives none."""
    coverage = facts["coverage"]
    if not coverage:
        return ""
    level, width = 100 * coverage.get("level", 0.9), coverage.get("width", {})
    records = [
        {"target": short_name(output), "share": 100 * share, "width": width.get(output)}
        for output, share in coverage["coverage"].items()
    ]
    columns = [column("target", "Target", "name"), column("share", "Inside, %", digits=1)]
    columns += [column("width", "Mean width, g", digits=1)] if width else []
    caption = f"True values inside the predicted {number(level, 0)} % interval, out of fold."
    return heading("Intervals") + table(columns, records, caption=caption)


def part_columns(name: str, fitted: bool) -> list[dict]:
    columns = [column("part", name, "name"), column("rows", "Photos", digits=0), column("score", "Score", digits=3)]
    columns += [column("fitted", "Fitted", digits=3)] if fitted else []
    columns += [column("rmse", "RMSE, g", digits=1), column("bias", "Bias, g", digits=1, signed=True)]
    return columns + [column("share", "Share of error, %", digits=1), column("error_share", "", "bar")]


def part_records(facts: dict, name: str) -> list[dict]:
    """Lines of `score_by` over the column `name` of the rows, the largest share of the error first."""
    key, options = facts["rows"][name].astype(str), {"weights": facts["weights"], "valid": facts["valid"]}
    found = score_by(facts["target"], facts["shown"], key, **options)
    found["share"] = 100 * found["error_share"]
    if facts["honest"] is not None:
        found["fitted"] = score_by(facts["target"], facts["final"], key, **options)["score"]
    return found.sort_values(["error_share", "part"], ascending=[False, True]).to_dict("records")


PART_WHY = "not defined: the true values of that part do not vary."


def state_scores(facts: dict) -> str:
    if "state" not in facts["rows"]:
        return paragraph("Not shown: the table of rows names no states.", kind="why alone")
    caption = "Score about the state's own mean, RMSE and bias weighted over the targets."
    columns = part_columns("State", facts["honest"] is not None)
    return table(columns, part_records(facts, "state"), caption=caption, why=PART_WHY)


def group_scores(facts: dict) -> str:
    """The groups with the largest share of the error; the others folded away."""
    records, columns = part_records(facts, "group"), part_columns("Group", facts["honest"] is not None)
    caption = "By share of the error. The score is about the group's own mean and harsh where a group hardly varies."
    first = table(columns, records[:MOST_GROUPS], caption=caption, why=PART_WHY)
    if len(records) <= MOST_GROUPS:
        return first
    rest = table(columns, records[MOST_GROUPS:], why=PART_WHY)
    return first + details(f"The other {len(records) - MOST_GROUPS} groups", rest)
