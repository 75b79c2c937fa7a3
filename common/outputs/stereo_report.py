"""The report of the stereo family: what the score is, where the error lies, and what each step changed.

`write_stereo_report` takes plain tables and writes one HTML file; a part that is not at hand is left out, and the page
says why.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import InputError
from common.metrics.regression import WEIGHTS, weighted_r2
from common.outputs.report import write_report
from common.outputs.shared_sections import with_log_scores
from common.outputs.stereo_scores import headline_blocks
from common.outputs.stereo_sections import SECTIONS


def write_stereo_report(
    path: str | Path,
    *,
    title: str,
    outputs,
    rows: pd.DataFrame,
    members: list[dict],
    final: pd.DataFrame,
    scores: dict[str, float],
    label: str = "Landfold",
    weights=WEIGHTS,
    honest: pd.DataFrame | None = None,
    blend: dict | None = None,
    before_physics: pd.DataFrame | None = None,
    identities: dict | None = None,
    gains: pd.DataFrame | None = None,
    interval: dict | None = None,
    coverage: dict | None = None,
    findings: list[str] | None = None,
    read_photo: Callable[[str], np.ndarray] | None = None,
    grids: list[tuple[int, int]] | None = None,
    photos: int = 4,
    settings: dict | None = None,
    notes: list[str] = (),
    footer: str = "",
) -> Path:
    """Write report.html; returns its path. All masses are in grams, all predictions out of fold.

    rows: a line per photo: `id`, `group`, the outputs; optional `state` and `path`. Rows without a prediction in
    `final`, or without a known target, are left out and counted on the page.
    members: dicts, `name` and `oof` (DataFrame `id` + outputs, before post-processing) required; optional `score`
    (else computed from `oof`), `score_best` and `score_last` (else the mean over folds of the best and the last
    `score` in `logs`), `logs` (fold -> dicts of log.jsonl), `seconds`, `grid` (R, C).
    final: blended and post-processed, `id` + outputs, fitted on all rows. honest: the same for predictions made
    leaving groups out; where given, figures and photos show these.
    scores: any of `honest`, `fitted`, `constant`, `ridge`, `reachable`; other names are shown under their own name.
    Absent `fitted` is computed from `final`, absent `honest` from `honest`.
    blend: as in `post.blend`: kind, members (names), weights (m,) or (m, k), and optional dropped and weights_spread.
    before_physics: `id` + outputs of the blend before post-processing, against `final`. identities: {whole: parts},
    default GDM = Green + Clover and Total = GDM + Dead where the outputs have them.
    gains: a line per set: `set`, `none` (score leaving groups out) and the gain of each reconciliation over it.
    interval: what `post.honest.bootstrap_difference` gives (difference, low95, high95, groups) and "against": the name
    of the set compared with.
    coverage: {"level": .9, "coverage": {output: share}, "width": {output: mean grams} (optional)}.
    findings: sentences of the table checks; None says that none were run, [] that nothing was found.
    read_photo: path -> uint8 RGB (H, W, 3); photos: how many best and how many worst; grids: (R, C) of the cells,
    default those of the members. settings: name -> dict or text, printed folded. notes: sentences under the headline.
    InputError where ids are repeated, a column is absent or no id of `final` is in `rows`.
    """
    facts = gather(rows, final, honest, outputs, weights)
    facts |= {
        "members": [member_facts(m, facts) for m in members],
        "blend": blend,
        "gains": gains,
        "findings": findings,
    }
    facts |= {"interval": interval, "coverage": coverage, "read_photo": read_photo, "photos": photos}
    facts |= {"settings": settings, "notes": [*facts["notes"], *notes]}
    facts["scores"] = known_scores(scores, facts)
    facts["before"] = (
        None if before_physics is None else aligned(facts["ids"], before_physics, outputs, "before_physics")
    )
    facts["score_before"] = None if facts["before"] is None else score_of(facts["before"], facts)
    facts["score_after"] = score_of(facts["final"], facts)
    facts["identities"] = known_identities(outputs, identities)
    facts["grids"] = list(dict.fromkeys(tuple(g) for g in grids or [m["grid"] for m in members if m.get("grid")]))
    sections = [{"title": name, "short": short, "blocks": build(facts)} for name, (short, build) in SECTIONS.items()]
    report = {"title": title, "label": label, "head": headline_blocks(facts), "sections": sections, "footer": footer}
    return write_report(path, report)


def gather(rows, final, honest, outputs, weights) -> dict:
    """Targets and predictions as arrays over the rows that have both, and what was left out."""
    outputs = list(outputs)
    absent = [name for name in ("id", "group", *outputs) if name not in rows]
    if absent:
        raise InputError(f"report: the rows lack the column {absent[0]}; give id, group and every output")
    target = rows[outputs].to_numpy(np.float64)
    pred = aligned(rows["id"], final, outputs, "final")
    predicted, known = np.isfinite(pred).all(1), np.isfinite(target)
    keep = predicted & known.any(1)
    if not keep.any():
        raise InputError("report: no row has both a prediction and a target; do the predictions belong to this data?")
    notes = []
    if (~predicted).any():
        notes.append(f"{(~predicted).sum()} of {len(rows)} photos have no finite prediction and count nowhere.")
    if (~known[predicted]).any():
        notes.append(f"{(~known[predicted]).sum()} target values are unknown and count nowhere.")
    kept = rows[keep].reset_index(drop=True)
    facts = {"outputs": outputs, "weights": np.asarray(weights, np.float64), "rows": kept, "ids": kept["id"]}
    facts |= {"target": target[keep], "valid": known[keep], "final": pred[keep], "notes": notes, "honest": None}
    facts["noun"] = "photo"
    if honest is not None:
        facts["honest"] = aligned(kept["id"], honest, outputs, "honest")
        if not np.isfinite(facts["honest"]).all():
            raise InputError(
                "report: the honest predictions lack rows that the fitted ones have; give both for all rows"
            )
    facts["shown"] = facts["final"] if honest is None else facts["honest"]
    return facts


def aligned(ids, frame: pd.DataFrame, outputs, name: str) -> np.ndarray:
    """Values of the outputs (n, k) in the order of ids, nan where the frame has no such id."""
    absent = [column for column in ("id", *outputs) if column not in frame]
    if absent:
        raise InputError(f"report: the predictions of {name} lack the column {absent[0]}; give id and every output")
    repeated = frame["id"][frame["id"].duplicated()]
    if len(repeated):
        raise InputError(
            f"report: the predictions of {name} hold the id {repeated.iloc[0]} twice; keep one line per id"
        )
    return frame.set_index("id")[list(outputs)].reindex(list(ids)).to_numpy(np.float64)


def score_of(pred: np.ndarray, facts: dict) -> float | None:
    """Weighted R2 over the rows of the report that this prediction covers; None where it covers none."""
    valid = facts["valid"] & np.isfinite(pred)
    if not valid.any():
        return None
    return weighted_r2(facts["target"], pred, weights=facts["weights"], valid=valid)


def member_facts(member: dict, facts: dict) -> dict:
    """The member with its score, and score_best and score_last from its logs where they were not given."""
    pred = aligned(facts["ids"], member["oof"], facts["outputs"], f"member {member['name']}")
    found = with_log_scores(member)
    if found.get("score") is None:
        found["score"] = score_of(pred, facts)
    found["rows"] = int(np.isfinite(pred).all(1).sum())
    return found


def known_scores(scores: dict, facts: dict) -> dict:
    """The given scores, with the fitted and the honest one computed where they are absent."""
    scores = {name: value for name, value in scores.items() if value is not None}
    scores.setdefault("fitted", score_of(facts["final"], facts))
    if facts["honest"] is not None:
        scores.setdefault("honest", score_of(facts["honest"], facts))
    return scores


def known_identities(outputs, identities: dict | None) -> dict:
    default = {"GDM_g": ("Dry_Green_g", "Dry_Clover_g"), "Dry_Total_g": ("GDM_g", "Dry_Dead_g")}
    identities = default if identities is None else identities
    return {whole: parts for whole, parts in identities.items() if {whole, *parts} <= set(outputs)}
