"""Sections that the reports of several families share: scores on one scale, members, learning curves, settings.

facts: members (from `with_log_scores`, with `name`, `score`, `rows`), scores {name: value}, blend (or None), interval
(or None), findings, settings, and noun: what a row is called, such as "photo".
"""

import numpy as np

from common.outputs.curves import LOWEST_SCORE, key_to_lines, learning_panels
from common.outputs.predictions import listed
from common.outputs.report import column, details, findings_list, heading, ladder, number, paragraph, table

FEW_GROUPS = 5  # under which a bootstrap tells little: draws of two groups are of three kinds


def with_log_scores(member: dict) -> dict:
    """The member with `logs` that have lines, `folds`, and score_best and score_last where they were not given.

    Those two are means over the folds of the best and of the last `score` in `logs` (fold -> dicts of log.jsonl).
    """
    found = dict(member)
    found["logs"] = {fold: lines for fold, lines in (member.get("logs") or {}).items() if lines}
    found["folds"] = len(found["logs"]) or (member["oof"]["fold"].nunique() if "fold" in member["oof"] else None)
    folds = [[x["score"] for x in lines if is_number(x.get("score"))] for lines in found["logs"].values()]
    folds = [values for values in folds if values]
    for key, choose in (("score_best", max), ("score_last", lambda values: values[-1])):
        if found.get(key) is None:
            found[key] = float(np.mean([choose(values) for values in folds])) if folds else None
    return found


def is_number(value) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))


def score_ladder(facts: dict, rungs: dict[str, tuple[str, str]]) -> str:
    """Baselines, the best member, the fitted and the honest score and the best reachable one on one scale.

    rungs: name -> (label, note), lowest first, with "member" where the best member goes; scores of other names are
    shown under their own name before it.
    """
    known = {k: v for k, v in facts["scores"].items() if not (v is None or not np.isfinite(v))}
    members = [m for m in facts["members"] if m["score"] is not None and np.isfinite(m["score"])]
    if len(members) > 1:
        best = max(members, key=lambda m: m["score"])
        known["member"] = best["score"]
    order, items = list(rungs), []
    for key in sorted(known, key=lambda key: order.index(key) if key in rungs else order.index("member") - 0.5):
        name, note = rungs.get(key, (key, ""))
        if key == "fitted" and not facts["blend"]:
            name, note = "Out of fold", f"{facts['noun']}s the model was not trained on"
        note = best["name"] if key == "member" else note
        items.append({"label": name, "note": note, "value": known[key], "strong": key == "honest"})
    low = min([0.0, *(item["value"] for item in items)])
    return ladder(items, low=max(low, LOWEST_SCORE))


def interval_text(facts: dict) -> str:
    """The paired bootstrap against the best single member, in a sentence with its verdict."""
    interval = facts["interval"]
    if not interval:
        return paragraph(
            "No bootstrap interval: there is nothing to compare with, or it was not asked for.", kind="why alone"
        )
    low, high = interval["low95"], interval["high95"]
    verdict = "the difference is not established" if low <= 0 <= high else "the difference holds"
    over = f" over {interval['groups']} groups" if interval.get("groups") else " over groups"
    over += ", too few for 95 %" if interval.get("groups", FEW_GROUPS) < FEW_GROUPS else ""
    gain, low, high = (number(value, 4, signed=True) for value in (interval["difference"], low, high))
    return paragraph(
        f"The honest score against {interval['against']}, post-processed alike: {gain}, 95 % interval {low} to {high} "
        f"(paired bootstrap{over}); {verdict}."
    )


def member_scores(facts: dict) -> str:
    """Score of each member, at its best and its last epoch, and their difference, called selection."""
    records = []
    for member in facts["members"]:
        best, last = member["score_best"], member["score_last"]
        selection = None if best is None or last is None else best - last
        seconds, grid = member.get("seconds"), member.get("grid")
        record = {"name": member["name"], "score": member["score"], "bar": member["score"], "best": best, "last": last}
        record |= {"selection": selection, "folds": member["folds"], "rows": member["rows"]}
        record |= {"minutes": None if seconds is None else seconds / 60}
        records.append(record | {"grid": f"{grid[0]}×{grid[1]}" if grid else None})
    columns = [column("name", "Member", "name"), column("score", "Score", digits=4), column("bar", "", "bar")]
    columns += [column("best", "At best", digits=4), column("last", "At last", digits=4)]
    columns += [
        column("selection", "Selection", digits=4, signed=True),
        column("rows", facts["noun"].capitalize() + "s", digits=0),
    ]
    columns += [
        column("folds", "Folds", digits=0),
        column("grid", "Cells", "text"),
        column("minutes", "Minutes", digits=1),
    ]
    columns = [c for c in columns if c["key"] in ("name", "score", "bar", "rows") or any_known(records, c["key"])]
    caption = "Each member by itself, before post-processing."
    if any_known(records, "best"):
        caption += " Selection: what picking the best epoch by the score itself adds to the score of the last epoch."
        why = "that set came without a log, or the value was not recorded."
        return table(columns, records, caption=caption, why=why)
    why = f"the set covers no {facts['noun']} of this table."
    return table(columns, records, caption=caption, why=why) + paragraph(
        "Scores at the best and the last epoch are not shown: the sets came without training logs.", kind="why alone"
    )


def any_known(records: list[dict], key: str) -> bool:
    return any(record.get(key) is not None for record in records)


def learning_section(facts: dict) -> list[str]:
    """A pair of figures per member that has logs; the others are named."""
    blocks, without = [], []
    for index, member in enumerate(facts["members"]):
        drawn = learning_panels(member["logs"], f"learn-{index}") if member["logs"] else ""
        if not drawn:
            without.append(member["name"])
            continue
        legend = key_to_lines([f"fold {fold}" for fold in member["logs"]])
        blocks += [heading(member["name"]), legend, drawn]
    if blocks:
        blocks.insert(0, paragraph("A line per fold; the dot marks the epoch with the best score."))
    if without:
        some = f"{len(without)} of {len(facts['members'])} members" if blocks else "No member"
        verb = "have" if not blocks or len(without) > 1 else "has"
        text = f"{some} came with a training log." if not blocks else f"{some} {verb} no training log: "
        blocks.append(paragraph(text + (listed(without) + "." if len(blocks) else ""), kind="why alone"))
    return blocks


def weights_blocks(facts: dict, shared: np.ndarray) -> list[str]:
    """Weights of a blend's members (m,) as bars, the largest first, with notes below each name."""
    blend, names = facts["blend"], list(facts["blend"]["members"])
    notes = member_notes(blend, names, {m["name"]: m["score"] for m in facts["members"]})
    text = f"Blend “{blend['kind']}” of {len(names)} members; {int((shared > 0).sum())} have a weight above zero."
    order = np.argsort(-shared, kind="stable")
    items = [{"label": names[i], "value": shared[i], "note": notes[i]} for i in order]
    return [paragraph(text), ladder(items, high=max(1e-9, shared.max()), digits=3, solid=True)]


def no_blend(facts: dict) -> list[str]:
    reason = "There is one member, so nothing is blended." if len(facts["members"]) == 1 else "No blend was fitted."
    return [paragraph(reason, kind="why alone")]


def member_notes(blend: dict, names: list[str], scores: dict) -> list[str]:
    """Below each member's name: its score, how its weight varied over refits, and whether it was dropped."""
    spread = np.asarray(blend.get("weights_spread", np.full(len(names), np.nan)), np.float64)
    spread = spread if spread.ndim == 1 else spread.mean(1)
    notes = []
    for name, wide in zip(names, spread, strict=True):
        parts = [] if scores.get(name) is None else [f"score {number(scores[name], 4)}"]
        parts += [f"weight ± {number(wide, 3)} over refits"] if np.isfinite(wide) and wide > 0 else []
        parts += ["dropped: no better than a constant"] if name in blend.get("dropped", ()) else []
        notes.append(", ".join(parts))
    return notes


def findings_section(facts: dict) -> list[str]:
    if facts["findings"] is None:
        return [paragraph("The table was not checked in this run.", kind="why alone")]
    if not len(facts["findings"]):
        return [paragraph("The checks of the table found nothing to report.")]
    return [findings_list(facts["findings"])]


def settings_section(facts: dict) -> list[str]:
    """A folded table per name of `settings`; text is printed as it is."""
    if not facts["settings"]:
        return [paragraph("Not known: the predictions came without settings.", kind="why alone")]
    blocks = []
    for name, values in facts["settings"].items():
        if isinstance(values, dict):
            records = [{"key": key, "value": "none" if value is None else value} for key, value in values.items()]
            blocks.append(details(name, settings_table(records)))
        else:
            blocks.append(details(name, paragraph(str(values))))
    return blocks


def settings_table(records: list[dict]) -> str:
    return table([column("key", "", "name"), column("value", "", "text")], records, kind="settings")
