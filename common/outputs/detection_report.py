"""The report of one rare class: what is honestly reached, at which threshold per ratio, and where it fails.

`write_detection_report` takes the judgement of an ensemble (common.post.detection_judge) and writes one HTML file.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import InputError
from common.metrics.segmentation import counts_of
from common.outputs.detection_blobs import open_honest, scan_maps
from common.outputs.detection_scores import headline_blocks
from common.outputs.detection_sections import SECTIONS
from common.outputs.report import write_report
from common.outputs.shared_sections import with_log_scores
from common.post.detection_fit import balanced_iou

NEEDED = ("ids", "nested", "hist", "reliability", "tiles", "split", "scores", "members", "blend", "tables")


def write_detection_report(
    path: str | Path,
    *,
    title: str,
    outputs: Sequence[str],
    rows: pd.DataFrame,
    members: list[dict],
    judgement: Mapping,
    read_map: Callable,
    beside: Mapping[str, float],
    bands: Sequence[str] = (),
    read_picture: Callable | None = None,
    pictures: int = 4,
    gates: pd.DataFrame | None = None,
    findings: list[str] | None = None,
    settings: dict | None = None,
    label: str = "Landfold",
    notes: Sequence[str] = (),
    footer: str = "",
) -> Path:
    """Write report.html; returns its path. All maps are out of fold; the score is the balanced IoU of the class.

    outputs: names of the background and of the class. rows: a line per tile, `id` and `group`. members: dicts, `name`
    and `oof` (id, prob, n_<t>_<p>) required; optional `logs` (fold -> dicts of log.jsonl), `score_best`, `score_last`
    and `seconds`. judgement: as common.post.detection_judge.judge gives; read_map: as it was given there. beside:
    scores of a constant, of a simple model and the best `reachable`, each by its name. bands, read_picture (row ->
    float32 (C,H,W), raw): for pictures of the `pictures` worst false blobs, missed ones and best tiles, left out where
    there is no reader. gates: a line each of gate, needed, reached, passed. findings: sentences of the checks of the
    data, None where none were run. settings: name -> dict or text, printed folded. notes: sentences under the headline.

    InputError where the judgement lacks a part or a set its maps or a tile. Every map is read once more.
    """
    facts = gather(rows, judgement, outputs)
    facts |= {"members": [member_facts(member, facts) for member in members], "findings": findings, "gates": gates}
    facts["maps"] = open_honest(judgement, members, read_map)
    facts["scan"] = scan_maps(facts["maps"], facts["ratios"], facts["positive"], pictures)
    facts |= {"bands": list(bands), "read_picture": read_picture, "pictures": pictures, "settings": settings}
    facts |= {"notes": list(notes)}
    facts["scores"] |= {name: value for name, value in beside.items() if value is not None}
    sections = [{"title": name, "short": short, "blocks": build(facts)} for name, (short, build) in SECTIONS.items()]
    report = {"title": title, "label": label, "head": headline_blocks(facts), "sections": sections, "footer": footer}
    return write_report(path, report)


def gather(rows: pd.DataFrame, judgement: Mapping, outputs: Sequence[str]) -> dict:
    """What the sections share, with the rows in the order of the judgement's tiles."""
    absent = [name for name in NEEDED if judgement.get(name) is None]
    if absent:
        raise InputError(f"report: the judgement lacks {absent[0]}; it must be one of maps of a rare class")
    outputs, ids = list(outputs), [str(one) for one in judgement["ids"]]
    if len(outputs) != 2:
        raise InputError(f"report: {len(outputs)} outputs; a report of one rare class has two, the background first")
    absent = [name for name in ("id", "group") if name not in rows]
    if absent:
        raise InputError(f"report: the rows lack the column {absent[0]}; give id and group of every tile")
    known = rows.assign(id=rows["id"].astype(str)).drop_duplicates("id").set_index("id", drop=False)
    lacking = [one for one in ids if one not in known.index]
    if lacking:
        raise InputError(f"report: no row of the tile {lacking[0]}; do the predictions belong to this data?")
    post, tiles = judgement["blend"]["post"], judgement["tiles"]
    positive = tiles.set_index(tiles["id"].astype(str)).loc[ids, "positive"].to_numpy(bool)
    facts = {"outputs": outputs, "name": outputs[1], "noun": "tile", "ids": ids, "positive": positive}
    facts |= {"rows": known.loc[ids].reset_index(drop=True), "scores": dict(judgement["scores"])}
    facts |= {"tables": dict(judgement["tables"]), "tiles": tiles, "hist": judgement["hist"], "post": post}
    facts |= {"positives": int(positive.sum()), "negatives": int((~positive).sum())}
    ratios = [line["ratio"] for line in post["ratios"].values()]
    facts |= {"ratios": ratios if facts["negatives"] else [], "main": post["ratio"]}
    facts |= {name: judgement.get(name) for name in ("split", "blend", "gains", "interval", "reliability", "best")}
    return facts


def member_facts(member: dict, facts: dict) -> dict:
    """The member with its balanced IoU at probability .5, its number of tiles, score_best and score_last."""
    found = with_log_scores(member)
    frame = member["oof"].set_index(member["oof"]["id"].astype(str))
    lacking = [one for one in facts["ids"] if one not in frame.index]
    if lacking:
        raise InputError(f"report: member {member['name']} lacks the tile {lacking[0]}; predict the same rows")
    found["score"] = balanced_iou(counts_of(frame.loc[facts["ids"]], 2), facts["positive"])
    found["score"] = None if np.isnan(found["score"]) else found["score"]
    found["rows"] = len(facts["ids"])
    return found
