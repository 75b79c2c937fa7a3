"""The report of the segmentation family: what the score is, which classes are confused, and where on which tiles.

`write_segmentation_report` takes the judgement of an ensemble and writes one HTML file; a part that is not at hand is
left out, and the page says why.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import InputError
from common.metrics.segmentation import MCC, Metric, counts_of
from common.outputs.ordered_sections import with_order
from common.outputs.predictions import listed
from common.outputs.report import write_report
from common.outputs.segmentation_scores import headline_blocks
from common.outputs.segmentation_sections import SECTIONS
from common.outputs.shared_sections import with_log_scores

SHARES = ("target", "attainable", "shown")


def write_segmentation_report(
    path: str | Path,
    *,
    title: str,
    outputs: Sequence[str],
    rows: pd.DataFrame,
    members: list[dict],
    judgement: Mapping,
    beside: Mapping[str, float],
    bands: Sequence[str] = (),
    read_picture: Callable | None = None,
    read_target: Callable | None = None,
    pictures: int = 3,
    shown: Mapping[str, Mapping] | None = None,
    gates: pd.DataFrame | None = None,
    logistic: Mapping | None = None,
    findings: list[str] | None = None,
    settings: dict | None = None,
    label: str = "Landfold",
    notes: Sequence[str] = (),
    footer: str = "",
) -> Path:
    """Write report.html; returns its path. All predictions are out of fold; the score is the judgement's.

    outputs: names of the K classes, the background first. rows: a line per tile, `id`, `group`, optional `fold`.
    members: dicts, `name` and `oof` (id, nodata, n_<t>_<p>) required; optional `score` (else that of those counts),
    `logs` (fold -> dicts of log.jsonl), `score_best`, `score_last` and `seconds`.
    judgement: as `common.post.mask_judge.judge` gives: `final` (sets of counts), and any of metric (else the MCC over
    all pixels), honest, blend, scores, gains, interval, tables and read_pred (row -> classes (H, W)). Where there is
    `honest`, the page shows it. With what `common.post.ordered_judge.judge` adds the page has the sections of ordered
    classes; logistic: what `common.metrics.pixel_baselines.logistic_judgement` gives, to stand beside them.
    beside: scores of a constant, of a simple model and the best `reachable`, each by its name.
    bands, read_picture (row -> float32 (C, H, W), raw), read_target (row -> classes (H, W), valid (H, W)): for the
    pictures of the `pictures` worst and as many best tiles.
    shown: name of a fold -> {"target", "attainable", "shown": K shares of the pixels in crops}. gates: a line each of
    gate, needed, reached, passed. findings: sentences of the checks of the data, None where none were run. settings:
    name -> dict or text, printed folded. notes: sentences under the headline.
    InputError where ids are repeated, a column is absent or the sets do not belong to the rows.
    """
    facts = gather(rows, judgement, outputs)
    facts |= {"members": [member_facts(member, facts) for member in members], "findings": findings, "gates": gates}
    facts |= {"blend": judgement.get("blend"), "gains": judgement.get("gains"), "interval": judgement.get("interval")}
    facts |= {"tables": dict(judgement.get("tables") or {}), "read_pred": judgement.get("read_pred")}
    facts |= {"bands": list(bands), "read_picture": read_picture, "read_target": read_target, "pictures": pictures}
    facts |= {"settings": settings, "notes": [*facts["notes"], *notes], "sampler": checked_shares(shown, outputs)}
    facts["scores"] |= {name: value for name, value in beside.items() if value is not None}
    facts |= {"logistic": logistic, "judgement": judgement}
    chosen = with_order(SECTIONS) if "curves" in judgement else SECTIONS
    sections = [{"title": name, "short": short, "blocks": build(facts)} for name, (short, build) in chosen.items()]
    report = {"title": title, "label": label, "head": headline_blocks(facts), "sections": sections, "footer": footer}
    return write_report(path, report)


def gather(rows: pd.DataFrame, judgement: Mapping, outputs: Sequence[str]) -> dict:
    """Counts per tile of the fitted and the honest predictions, in the order of the rows that have them."""
    outputs, honest = list(outputs), judgement.get("honest")
    absent = [name for name in ("id", "group") if name not in rows]
    if absent:
        raise InputError(f"report: the rows lack the column {absent[0]}; give id and group of every tile")
    ids = rows["id"].astype(str)
    keep = ids.isin(judgement["final"]["id"].astype(str)).to_numpy()
    if not keep.any():
        raise InputError("report: no row has a prediction; do the predictions belong to this data?")
    notes = [] if keep.all() else [f"{(~keep).sum()} of {len(rows)} tiles have no prediction and count nowhere."]
    kept = rows[keep].reset_index(drop=True)
    facts = {"outputs": outputs, "rows": kept, "ids": list(kept["id"].astype(str)), "noun": "tile", "notes": notes}
    facts["final"], facts["nodata"] = aligned(facts["ids"], judgement["final"], len(outputs), "final")
    facts["honest"] = None
    if honest is not None:
        facts["honest"], facts["nodata"] = aligned(facts["ids"], honest, len(outputs), "honest")
    facts["counts"] = facts["final"] if honest is None else facts["honest"]
    if not facts["counts"].any():
        raise InputError("report: no tile has a valid pixel with a label; a report needs labelled tiles")
    metric = judgement.get("metric", MCC)
    facts |= {"metric": metric, "background": facts["nodata"] * metric.nodata}
    facts["scores"] = {name: value for name, value in (judgement.get("scores") or {}).items() if value is not None}
    facts["scores"].setdefault("fitted", metric.of(pooled(facts["final"], facts["background"])))
    if honest is not None:
        facts["scores"].setdefault("honest", metric.of(pooled(facts["honest"], facts["background"])))
    facts["cost"] = tile_cost(facts["counts"], facts["background"], metric)
    return facts


def aligned(ids: list[str], frame: pd.DataFrame, classes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, K, K) counts and (n,) no-data pixels of a set in the order of ids."""
    known = frame["id"].astype(str)
    repeated = known[known.duplicated()]
    if len(repeated):
        raise InputError(f"report: the set {name} holds the tile {repeated.iloc[0]} twice; keep one line per tile")
    missing = sorted(set(ids) - set(known))
    if missing:
        raise InputError(f"report: the set {name} lacks tiles: {listed(missing)}; predict the same rows in every set")
    frame = frame.set_index(known).loc[ids]
    if "nodata" not in frame:
        raise InputError(f"report: the set {name} has no column nodata; predict it again")
    return counts_of(frame, classes), frame["nodata"].to_numpy(np.int64)


def pooled(counts: np.ndarray, background: np.ndarray) -> np.ndarray:
    """(K, K) counts over all pixels of all tiles; those without data are background in truth and output."""
    total = counts.sum(0)
    total[0, 0] += background.sum()
    return total


def tile_cost(counts: np.ndarray, background: np.ndarray, metric: Metric) -> np.ndarray:
    """(n,) what each tile takes from the score: that of all other tiles minus that of all."""
    every = counts.copy()
    every[:, 0, 0] += background
    total = every.sum(0)
    return metric.of(total - every) - metric.of(total)


def member_facts(member: dict, facts: dict) -> dict:
    """The member with its score, its number of tiles, and score_best and score_last from its logs."""
    found = with_log_scores(member)
    if found.get("score") is None:
        counts, nodata = aligned(facts["ids"], member["oof"], len(facts["outputs"]), f"member {member['name']}")
        found["score"] = facts["metric"].of(pooled(counts, nodata * facts["metric"].nodata))
    found["rows"] = int(member["oof"]["id"].astype(str).isin(facts["ids"]).sum())
    return found


def checked_shares(shown: Mapping | None, outputs: Sequence[str]) -> dict | None:
    """The sampler's shares per fold as arrays (K,), checked: a fold may not lack one of SHARES."""
    if not shown:
        return None
    found = {}
    for name, shares in shown.items():
        lacking = [key for key in SHARES if key not in shares]
        if lacking:
            raise InputError(f"report: the sampler's shares of {name} lack {lacking[0]}; give {', '.join(SHARES)}")
        found[name] = {key: np.asarray(shares[key], np.float64) for key in SHARES}
        wrong = [key for key, values in found[name].items() if values.shape != (len(outputs),)]
        if wrong:
            raise InputError(f"report: {wrong[0]} shares of {name}: need {len(outputs)}, one per class")
    return found
