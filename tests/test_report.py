"""The report page, its figures, the curves and the contact sheet."""

import base64
import json
import math
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import mean_squared_error, r2_score

from common.errors import InputError
from common.outputs import contact_sheet, curves, figures, report, shared_sections, stereo_sections
from common.outputs.stereo_figures import cell_overlay
from common.outputs.stereo_report import write_stereo_report

OUTPUTS = ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g")
NAMES = ("Green", "Dead", "Clover", "GDM", "Total")
WEIGHTS = np.array([0.1, 0.1, 0.1, 0.2, 0.5])
VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}
EVIL = "<script>alert('x')</script>&\"$\\bad_{$"


class Page(HTMLParser):
    """Well-formedness, text, tables, ids and addresses of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.stack, self.tags, self.ids, self.links, self.words, self.tables = [], [], [], [], [], []
        self.cell = None
        self.feed(text)
        assert self.stack == [], self.stack

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "srcset", "data", "action"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, text):
        if self.stack and self.stack[-1] not in ("style", "title"):
            self.words.append(text)
        if self.cell is not None:
            self.cell += text

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)

    def table(self, first, *, holding=""):
        """Lines of the table whose first heading is `first`, as dicts; `holding`: another heading it must have."""
        for lines in self.tables:
            if lines and lines[0] and lines[0][0] == first and (not holding or holding in lines[0]):
                return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
        raise AssertionError(f"no table {first}: {[t[0] for t in self.tables]}")


def value(text):
    return float(text.replace("\N{MINUS SIGN}", "-"))


def make_rows(count=24, seed=0):
    rng = np.random.default_rng(seed)
    parts = rng.gamma(2.0, 12.0, (count, 3)) * (rng.random((count, 3)) > 0.2)
    target = np.stack([*parts.T, parts[:, 0] + parts[:, 2], parts.sum(1)], 1)
    rows = pd.DataFrame(target, columns=OUTPUTS)
    rows["id"] = [f"ID{100 + i}" for i in range(count)]
    rows["state"] = [("NSW", "Tas", "Vic")[i % 3] for i in range(count)]
    rows["group"] = [f"2015-0{1 + i % 4}-01 {state}" for i, state in enumerate(rows["state"])]
    rows["path"] = [f"{i}.jpg" for i in range(count)]
    return rows


def noisy(rows, spread, seed):
    frame = rows[["id", *OUTPUTS]].copy()
    frame[list(OUTPUTS)] += np.random.default_rng(seed).normal(0, spread, (len(rows), 5))
    return frame.sample(frac=1, random_state=seed)  # the report must join by id, not by place


def make_log(top, epochs=6, seed=0):
    rng = np.random.default_rng(seed)
    scores = top - 2.0 * np.exp(-np.arange(epochs)) + rng.normal(0, 0.05, epochs)
    scores = [float(s) for s in scores]
    return [{"epoch": i, "train_loss": 100 / (i + 1), "score": s, "lr": 1e-3} for i, s in enumerate(scores)]


def full_report(path, rows, **changes):
    logs = {0: make_log(0.7, seed=1), 1: make_log(0.8, seed=2)}
    members = [
        {"name": "two_by_two", "oof": noisy(rows, 6, 1), "logs": logs, "seconds": 90.0, "grid": (2, 2)},
        {"name": "three", "oof": noisy(rows, 9, 2), "grid": (3, 3)},
    ]
    names = ["two_by_two", "three"]
    arguments = {
        "title": "A trial",
        "outputs": OUTPUTS,
        "rows": rows,
        "members": members,
        "final": noisy(rows, 4, 3),
        "honest": noisy(rows, 5, 4),
        "before_physics": noisy(rows, 4.5, 5),
        "scores": {"constant": 0.24, "ridge": 0.4},
        "blend": {"kind": "greedy", "members": names, "weights": [0.7, 0.3]},
        "gains": pd.DataFrame({"set": names, "none": [0.8, 0.7], "ols": [0.001, -0.0002]}),
        "interval": {"against": "two_by_two", "difference": 0.01, "low95": -0.002, "high95": 0.02, "groups": 12},
        "findings": ["WA has no Dead"],
        "read_photo": lambda path: np.full((100, 200, 3), 90, np.uint8),
        "settings": {"Arguments": {"lr": 0.001, "weights": None}, "Git": "abc"},
    }
    arguments |= changes
    write_stereo_report(path, **arguments)
    return Page(path.read_text(encoding="utf-8")), arguments


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One whole report that many tests look at: page, arguments, rows, text."""
    path, rows = tmp_path_factory.mktemp("report") / "report.html", make_rows()
    page, used = full_report(path, rows)
    return page, used, rows, path.read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves the drawings out where a test looks at words and numbers alone: they take nearly all the time."""
    for name in ("predicted_panels", "residual_panels", "change_panels"):
        monkeypatch.setattr(stereo_sections, name, lambda *a, name=name: f"<p>{name}</p>")
    monkeypatch.setattr(shared_sections, "learning_panels", lambda *a: "<p>learning_panels</p>")


def values_of(frame, rows):
    return frame.set_index("id").loc[rows["id"], list(OUTPUTS)].to_numpy()


def slow_score(target, pred):
    """The metric as a plain loop over all (photo, target) pairs."""
    pairs = [(w, y, p) for ys, ps in zip(target, pred, strict=True) for w, y, p in zip(WEIGHTS, ys, ps, strict=True)]
    mean = sum(w * y for w, y, _ in pairs) / sum(w for w, _, _ in pairs)
    return 1 - sum(w * (y - p) ** 2 for w, y, p in pairs) / sum(w * (y - mean) ** 2 for w, y, _ in pairs)


def test_page_is_whole_and_needs_nothing_outside(made):
    page, _, _, text = made
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links
    assert not re.search(r"https?:|@import|@font-face", text)
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)", text))
    assert page.count("script") == 0 and page.count("main") == 1
    assert len(page.ids) == len(set(page.ids))
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids), inside - set(page.ids)
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert len(sections) == 9 and set(sections) <= inside
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_drawings_follow_the_theme(made):
    text = made[3]
    body = text[text.index("<body>") :]
    drawings = re.findall(r"<svg.*?</svg>", body, re.S)
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", text))
    style = text[: text.index("</style>")]
    light, dark = style.split("prefers-color-scheme: dark")
    for name in used:
        assert f"--{name}:" in light and f"--{name}:" in dark, name
    assert {"c0", "c1", "c2", "muted", "rule"} <= set(re.findall(r"var\(--([a-z0-9]+)\)", "".join(drawings)))
    for light_colour, _ in figures.PALETTE.values():
        assert light_colour not in "".join(drawings)
    assert "font-family" not in "".join(drawings) and "DejaVu" not in "".join(drawings)


def test_target_table_equals_sklearn(made):
    page, used, rows, _ = made
    lines = page.table("Target", holding="R² fitted")
    target = rows[list(OUTPUTS)].to_numpy()
    for name in ("fitted", "honest"):
        pred = values_of(used["final" if name == "fitted" else "honest"], rows)
        for i, line in enumerate(lines[:5]):
            assert line["Target"] == NAMES[i]
            assert value(line[f"R² {name}"]) == pytest.approx(r2_score(target[:, i], pred[:, i]), abs=6e-5)
            rmse = math.sqrt(mean_squared_error(target[:, i], pred[:, i]))
            assert value(line[f"RMSE {name}, g"]) == pytest.approx(rmse, abs=6e-3)
            assert value(line[f"Bias {name}, g"]) == pytest.approx((pred - target)[:, i].mean(), abs=6e-3)
            assert value(line["Zeros, %"]) == pytest.approx(100 * (target[:, i] == 0).mean(), abs=0.51)
        assert value(lines[5][f"R² {name}"]) == pytest.approx(slow_score(target, pred), abs=6e-5)
    honest = slow_score(target, values_of(used["honest"], rows))
    assert f"honest score, weighted R²{honest:.4f}" in page.text
    assert f"explain {100 * honest:.1f} %" in page.text and "24 photos, 12 groups" in page.text


def test_member_table_and_selection(made):
    page, used, rows, _ = made
    lines = {line["Member"]: line for line in page.table("Member", holding="Selection")}
    target = rows[list(OUTPUTS)].to_numpy()
    for member in used["members"]:
        pred = values_of(member["oof"], rows)
        assert value(lines[member["name"]]["Score"]) == pytest.approx(slow_score(target, pred), abs=6e-5)
    scores = [[line["score"] for line in log] for log in used["members"][0]["logs"].values()]
    best, last = np.mean([max(s) for s in scores]), np.mean([s[-1] for s in scores])
    line = lines["two_by_two"]
    assert best > last + 1e-3
    assert value(line["At best"]) == pytest.approx(best, abs=6e-5)
    assert value(line["At last"]) == pytest.approx(last, abs=6e-5)
    assert value(line["Selection"]) == pytest.approx(best - last, abs=6e-5)
    assert line["Folds"] == "2" and line["Minutes"] == "1.5" and line["Cells"] == "2×2"
    assert lines["three"]["At best"] == lines["three"]["Selection"] == report.DASH
    assert f"{report.DASH} that set came without a log" in page.text


def test_given_best_and_last_are_used(undrawn, tmp_path):
    rows = make_rows()
    member = {"name": "m", "oof": noisy(rows, 6, 1), "score": 0.5, "score_best": 0.61, "score_last": 0.6}
    page, _ = full_report(tmp_path / "r.html", rows, members=[member], blend=None, interval=None)
    line = page.table("Member", holding="Selection")[0]
    assert (line["Score"], line["At best"], line["At last"], line["Selection"]) == (
        "0.5000", "0.6100", "0.6000", "+0.0100",
    )  # fmt: skip


def test_states_and_groups_show_their_share_of_the_error(made):
    page, used, rows, _ = made
    target, pred = rows[list(OUTPUTS)].to_numpy(), values_of(used["honest"], rows)
    squared = ((target - pred) ** 2 * WEIGHTS).sum(1)
    for heading, name, count in (("State", "state", 3), ("Group", "group", 12)):
        lines = page.table(heading)
        assert len(lines) == count == rows[name].nunique()
        shares = [value(line["Share of error, %"]) for line in lines]
        assert shares == sorted(shares, reverse=True)
        for line in lines:
            here = (rows[name] == line[heading]).to_numpy()
            assert value(line["Share of error, %"]) == pytest.approx(
                100 * squared[here].sum() / squared.sum(), abs=0.06
            )
            assert int(line["Photos"]) == here.sum()
            assert value(line["RMSE, g"]) == pytest.approx(math.sqrt(squared[here].mean()), abs=0.06)
            assert value(line["Score"]) == pytest.approx(slow_score(target[here], pred[here]), abs=6e-4)


def test_many_groups_are_folded(undrawn, tmp_path):
    rows = make_rows()
    rows["group"] = [f"g{i}" for i in range(len(rows))]
    page, _ = full_report(tmp_path / "report.html", rows)
    names = [line[0] for table in page.tables if table[0][0] == "Group" for line in table[1:]]
    assert sorted(names) == sorted(rows["group"]) and "The other 12 groups" in page.text


def test_everything_foreign_is_escaped(tmp_path, monkeypatch):
    rows = make_rows()
    rows["id"] = [f"{EVIL}{i}" for i in range(len(rows))]
    rows["group"] = [EVIL + group for group in rows["group"]]
    rows["state"] = [EVIL + state for state in rows["state"]]
    member = {
        "name": EVIL,
        "oof": noisy(rows, 6, 1),
        "logs": {EVIL: [line | {f"{EVIL}loss": 1.0} for line in make_log(0.7)]},
        "grid": (2, 2),
    }

    def unreadable(path):
        raise InputError(f"{path}: {EVIL}")

    page, _ = full_report(
        tmp_path / "report.html", rows, title=EVIL, label=EVIL, footer=EVIL, members=[member], findings=[EVIL],
        notes=[EVIL], settings={EVIL: {EVIL: EVIL}, "b" + EVIL: EVIL}, read_photo=unreadable,
        blend={"kind": EVIL, "members": [EVIL], "weights": [1.0], "dropped": {}},
        gains=pd.DataFrame({EVIL: [EVIL], "ols": [0.1]}), scores={EVIL: 0.3},
        interval={"against": EVIL, "difference": 0.1, "low95": 0.0, "high95": 0.2},
    )  # fmt: skip
    assert page.count("script") == 0
    assert page.text.count(EVIL) > 40
    for name in ("predicted_panels", "residual_panels", "change_panels"):
        monkeypatch.setattr(stereo_sections, name, lambda *a: "")
    page, _ = full_report(tmp_path / "photos.html", rows)
    assert page.count("script") == 0 and page.count("img") == 8


def test_strangers_sets_give_a_sensible_page(tmp_path):
    rows = make_rows()[["id", "group", *OUTPUTS]]
    final = noisy(rows, 5, 3)
    members = [{"name": "a", "oof": noisy(rows, 6, 1)}, {"name": "b", "oof": noisy(rows, 6, 2)}]
    write_stereo_report(
        tmp_path / "r.html", title="t", outputs=OUTPUTS, rows=rows, members=members, final=final, scores={}
    )
    page = Page((tmp_path / "r.html").read_text())
    for reason in (
        "No member came with a training log.",
        "Not shown: a reader of photos did not come with these predictions.",
        "No blend was fitted.",
        "the predictions before post-processing were not kept",
        "The table was not checked in this run.",
        "the predictions came without settings",
        "the table of rows names no states",
        "No bootstrap interval",
        "came without training logs",
    ):
        assert reason in page.text, reason
    assert page.count("img") == 0 and page.count("svg") == 10
    assert "out-of-fold score, weighted R²" in page.text
    assert not re.search(r"\b(nan|None|inf)\b", page.text)


def test_fitted_score_says_that_it_flatters(undrawn, tmp_path):
    page, _ = full_report(tmp_path / "r.html", make_rows(), honest=None)
    assert "fitted score, weighted R²" in page.text and "which flatters" in page.text
    page, _ = full_report(tmp_path / "r.html", make_rows(), scores={"honest": -0.2})
    assert "no better than one and the same mass" in page.text and "\N{MINUS SIGN}0.2000" in page.text


def test_no_nan_is_printed(tmp_path):
    rows = make_rows()
    rows.loc[3, "Dry_Clover_g"] = np.nan
    rows.loc[rows["state"] == "Vic", "Dry_Dead_g"] = 0.0
    rows.loc[0, "group"] = "alone"
    final = noisy(rows, 5, 3).fillna(1.0)
    final = final[final["id"] != "ID110"]
    log = make_log(0.7)
    log[0]["score"], log[1]["score"], log[2]["train_loss"] = float("nan"), None, float("inf")
    members = [{"name": "a", "oof": final, "logs": {0: log, 1: []}, "score": float("nan")}]
    page, _ = full_report(
        tmp_path / "r.html", rows, final=final, honest=None, members=members, before_physics=final, photos=30,
        blend={"kind": "mean", "members": ["a"], "weights": [[1.0] * 5], "weights_spread": [0.0]},
        scores={"ridge": float("nan")}, settings={"s": {"x": float("nan"), "y": None}},
        coverage={"level": 0.9, "coverage": {"GDM_g": float("nan")}},
    )  # fmt: skip
    assert not re.search(r"\b(nan|NaN|None|inf)\b", page.text)
    assert "1 of 24 photos have no finite prediction and count nowhere." in page.text
    assert "1 target values are unknown and count nowhere." in page.text
    assert f"{report.DASH} the true mass is not known." in page.text
    lines = page.table("Target", holding="R²")
    pred, keep = values_of(final, rows[rows["id"] != "ID110"]), rows["id"] != "ID110"
    target = rows.loc[keep, list(OUTPUTS)].to_numpy()
    known = np.isfinite(target[:, 2])
    assert value(lines[2]["R²"]) == pytest.approx(r2_score(target[known, 2], pred[known, 2]), abs=6e-5)


def test_a_target_that_nobody_knows(tmp_path):
    rows = make_rows()
    used = {name: noisy(rows, 3, i) for i, name in enumerate(("final", "honest", "before_physics"))}
    members = [{"name": "a", "oof": used["final"]}]
    rows["GDM_g"] = np.nan
    page, _ = full_report(tmp_path / "r.html", rows, members=members, blend=None, **used)
    assert page.table("Target", holding="R² fitted")[3]["RMSE honest, g"] == report.DASH
    assert "GDM no known values" in page.text and not re.search(r"\b(nan|NaN|None|inf)\b", page.text)


def test_photos_are_the_costliest_and_the_best_of_the_heavier_half(undrawn, tmp_path):
    rows = make_rows()
    colours = {path: 5 * i for i, path in enumerate(rows["path"])}
    calls = []

    def read_photo(path):
        calls.append(path)
        return np.full((400, 800, 3), colours[path], np.uint8)

    page, used = full_report(tmp_path / "r.html", rows, read_photo=read_photo, photos=3)
    target, pred = rows[list(OUTPUTS)].to_numpy(), values_of(used["honest"], rows)
    squared = ((target - pred) ** 2 * WEIGHTS).sum(1)
    worst = np.argsort(-squared)[:3]
    heavy = np.flatnonzero(target @ WEIGHTS >= np.median(target @ WEIGHTS))
    best = heavy[np.argsort(squared[heavy])][:3]
    order = [*worst, *best]
    assert calls == [rows["path"][i] for i in order]
    sources = [a["src"] for tag, a in page.tags if tag == "img"]
    for i, source in zip(order, sources, strict=True):
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(source.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (320, 640, 3) and abs(picture.mean() - 5 * i) < 3
    mean = (target * WEIGHTS).sum() / len(target)
    cost = squared / ((target - mean) ** 2 * WEIGHTS).sum()
    assert f"off by {math.sqrt(squared[worst[0]]):.1f} g, cost {cost[worst[0]]:.4f}" in page.text
    first = [lines for lines in page.tables if lines[0] == ["", *NAMES]][0]
    assert [line[0] for line in first[1:]] == ["true", "predicted", "error"]
    shown = np.array([[value(text) for text in line[1:]] for line in first[1:]])
    expected = [target[worst[0]], pred[worst[0]], pred[worst[0]] - target[worst[0]]]
    assert np.abs(shown - expected).max() < 0.051
    assert "cells of 2×2 (solid) and 3×3 (dashed)" in page.text


def test_an_unreadable_photo_does_not_cost_the_page(undrawn, tmp_path):
    def read_photo(path):
        if path == "bad":
            raise InputError("bad: truncated JPEG")
        return np.zeros((50, 100, 3), np.uint8)

    rows = make_rows()
    rows.loc[:11, "path"] = "bad"
    page, _ = full_report(tmp_path / "r.html", rows, read_photo=read_photo, photos=12)
    cards = sum(table[0] == ["", *NAMES] for table in page.tables)
    refused = page.text.count("The photo cannot be shown: bad: truncated JPEG")
    assert cards > 12 and refused > 3 and page.count("img") == cards - refused > 3
    page, _ = full_report(tmp_path / "r.html", rows, photos=0)
    assert page.count("img") == 0 and "none were asked for" in page.text


def test_overlay_cuts_both_halves_into_cells():
    drawing = cell_overlay([(2, 4)])
    places = {float(x) for x in re.findall(r"M([\d.]+) 0V100", drawing)}
    assert places == {100, 25, 50, 75, 125, 150, 175}
    assert {float(y) for y in re.findall(r"M0 ([\d.]+)H200", drawing)} == {50}
    assert "dasharray" not in drawing and "dasharray" in cell_overlay([(2, 2), (3, 3)])
    assert set(re.findall(r'd="([^"]+)"', cell_overlay([(1, 1)]))) == {"M100 0V100"}


def test_physics_before_and_after(made):
    page, used, rows, _ = made
    before, after = values_of(used["before_physics"], rows), values_of(used["final"], rows)
    target = rows[list(OUTPUTS)].to_numpy()
    lines = page.table("Target", holding="Mean change, g")
    for i, line in enumerate(lines):
        assert value(line["Mean change, g"]) == pytest.approx(np.abs(after - before)[:, i].mean(), abs=6e-3)
        assert value(line["RMSE before, g"]) == pytest.approx(np.sqrt(((before - target)[:, i] ** 2).mean()), abs=6e-3)
        assert value(line["RMSE after, g"]) == pytest.approx(np.sqrt(((after - target)[:, i] ** 2).mean()), abs=6e-3)
        assert int(line["Below zero before"]) == (before[:, i] < 0).sum()
        assert int(line["Below zero after"]) == (after[:, i] < 0).sum()
    lines = page.table("Identity")
    assert [line["Identity"] for line in lines] == ["GDM = Green + Clover", "Total = GDM + Dead"]
    for name, pred in (("before", before), ("after", after)):
        gaps = np.abs([pred[:, 3] - pred[:, 0] - pred[:, 2], pred[:, 4] - pred[:, 3] - pred[:, 1]])
        for line, gap in zip(lines, gaps, strict=True):
            assert value(line[f"Mean gap {name}, g"]) == pytest.approx(gap.mean(), abs=6e-4)
            assert value(line[f"Largest {name}, g"]) == pytest.approx(gap.max(), abs=6e-3)
            assert value(line[f"Over .5 g {name}, %"]) == pytest.approx(100 * (gap > 0.5).mean(), abs=0.51)
    first, last = slow_score(target, before), slow_score(target, after)
    assert f"from {first:.4f} to {last:.4f}" in page.text
    gains = page.table("set")
    assert [line["ols"] for line in gains] == ["+0.0010", "\N{MINUS SIGN}0.0002"] and gains[0]["none"] == "0.8000"


def test_weights_of_members(made, undrawn, tmp_path):
    page, _, rows, _ = made
    assert "Blend “greedy” of 2 members; 2 have a weight above zero." in page.text
    assert re.search(r"two_by_twoscore 0\.\d{4} 0\.700 threescore 0\.\d{4} 0\.300", page.text)
    per_target = np.array([[0.1, 0.2, 0.3, 0.4, 0.9], [0.9, 0.8, 0.7, 0.6, 0.1]])
    blend = {"kind": "per-target", "members": ["two_by_two", "three"], "weights": per_target.tolist()}
    page, _ = full_report(tmp_path / "r.html", rows, blend=blend | {"dropped": {"three": -1.0}})
    lines = {line["Member"]: line for line in page.table("Member", holding="Green")}
    for name, weights in zip(blend["members"], per_target, strict=True):
        assert [value(lines[name][target]) for target in NAMES] == pytest.approx(list(weights))
    assert f"{per_target[0] @ WEIGHTS:.3f}" in page.text and "dropped: no better than a constant" in page.text


def test_interval_and_its_verdict(made, undrawn, tmp_path):
    page = made[0]
    text = "two_by_two, post-processed alike: +0.0100, 95 % interval \N{MINUS SIGN}0.0020 to +0.0200"
    text += " (paired bootstrap over 12 groups)"
    assert text + "; the difference is not established." in page.text
    sure = {"against": "x", "difference": 0.01, "low95": 0.002, "high95": 0.02, "groups": 12}
    page, _ = full_report(tmp_path / "r.html", make_rows(), interval=sure)
    assert "the difference holds" in page.text


def test_coverage(undrawn, tmp_path):
    coverage = {"level": 0.9, "coverage": dict(zip(OUTPUTS, (0.9, 0.8, 0.7, 0.6, 0.5), strict=True))}
    page, _ = full_report(tmp_path / "r.html", make_rows(), coverage=coverage)
    lines = page.table("Target", holding="Inside, %")
    assert [line["Inside, %"] for line in lines] == ["90.0", "80.0", "70.0", "60.0", "50.0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final": pd.DataFrame({"id": ["a"], **{o: [1.0] for o in OUTPUTS}})}, "no row has both"),
        ({"rows": make_rows().drop(columns="group")}, "lack the column group"),
        ({"final": pd.concat([noisy(make_rows(), 1, 1)] * 2)}, "twice"),
        ({"honest": noisy(make_rows(), 1, 1).head(20)}, "honest predictions lack rows"),
        ({"before_physics": noisy(make_rows(), 1, 1).head(20)}, "before_physics lacks rows"),
        ({"before_physics": pd.DataFrame({"id": ["a"]})}, "lack the column Dry_Green_g"),
        ({"blend": {"kind": "mean", "members": ["two_by_two", "three"], "weights": [1.0]}}, "one per member"),
    ],
)
def test_wrong_input_is_refused_and_leaves_no_file(undrawn, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        full_report(tmp_path / "r.html", **({"rows": make_rows()} | change))
    assert list(tmp_path.iterdir()) == []


def test_file_stays_small_with_large_photos(undrawn, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (1000, 2000, 3), dtype=np.uint8)  # the worst there is for JPEG
    full_report(tmp_path / "r.html", make_rows(), read_photo=lambda path: noise)
    assert (tmp_path / "r.html").stat().st_size < 2.5e6


def test_very_many_marks_become_pixels(tmp_path):
    rows = make_rows(1200)
    full_report(tmp_path / "r.html", rows, photos=0)
    text = (tmp_path / "r.html").read_text()
    assert (tmp_path / "r.html").stat().st_size < 3e6 and text.count("data:image/png") >= 10
    Page(text)


@pytest.mark.data
def test_published_scores_of_the_real_sets(undrawn, tmp_path, biomass_data):
    table = pd.read_csv(biomass_data / "train_all_357_labels.csv")
    table["id"] = table["sample_id"].str.split("__").str[0]
    rows = table.pivot(index="id", columns="target_name", values="target")[list(OUTPUTS)].reset_index()
    about = table.drop_duplicates("id").set_index("id")
    rows["state"] = rows["id"].map(about["State"])
    rows["group"] = rows["id"].map(about["Sampling_Date"]) + " " + rows["state"]
    members = [{"name": p.stem, "oof": pd.read_csv(p)} for p in sorted((biomass_data / "oof").glob("*.csv"))]
    best = next(m for m in members if m["name"].startswith("2026-01-15_23_00_56"))
    write_stereo_report(
        tmp_path / "r.html", title="t", outputs=OUTPUTS, rows=rows, members=members, final=best["oof"], scores={}
    )
    page = Page((tmp_path / "r.html").read_text())
    scores = {line["Member"][:19]: line["Score"] for line in page.table("Member")}
    assert scores["2026-01-15_23_00_56"] == "0.8610" and scores["2026-01-14_19_15_08"] == "0.8578"
    assert scores["2026-01-15_14_30_30"] == "0.8049" and scores["2026-01-23_23_15_57"].startswith("\N{MINUS SIGN}0.2")
    assert "357 photos, 30 groups" in page.text


def test_number():
    assert report.number(-0.00001, 3) == "0.000" and report.number(-0.00001, 3, signed=True) == "0.000"
    assert report.number(-1.25, 1) == "\N{MINUS SIGN}1.2" and report.number(2, 2, signed=True) == "+2.00"
    for nothing in (None, float("nan"), np.float32("inf"), np.nan):
        assert report.number(nothing) == report.DASH


def test_bars_end_where_their_values_are():
    def mark(low, high, x):
        return [float(v) for v in re.findall(r"(?:left|width):([\d.]+)%", report.bar(x, low, high))][:2]

    assert mark(0, 4, 1) == [0, 25] and mark(-1, 1, 0.5) == [50, 25] and mark(-1, 1, -0.5) == [25, 25]
    html = report.ladder([{"label": "a", "value": -3.0}, {"label": "b", "value": float("nan")}], low=-0.25)
    assert 'b style="left:0.00%"' in html and report.number(-3.0, 4) in html and "nan" not in html


def test_sections_with_the_same_title_get_their_own_address(tmp_path):
    parts = [{"title": "A <b>!", "blocks": []}, {"title": "a B", "blocks": [report.paragraph("x < y")]}]
    report.write_report(tmp_path / "r.html", {"title": "t", "sections": parts})
    page = Page((tmp_path / "r.html").read_text())
    assert page.ids == ["a-b", "a-b-2"] and "x < y" in page.text and page.text.count("A <b>!") == 2
    with pytest.raises(InputError, match="at least one section"):
        report.write_report(tmp_path / "r2.html", {"title": "t", "sections": []})


def test_curves_leave_out_what_is_not_a_number():
    lines = [{"epoch": 0, "score": float("nan")}, {"epoch": 1, "score": 0.2}, {"epoch": 2}, {"epoch": 3, "score": 0.1}]
    lines.append({"epoch": 4, "score": float("-inf")})
    assert curves.curve(lines, "score") == ([1, 3], [0.2, 0.1])
    assert curves.best_point(lines) == (1, 0.2) and curves.best_point([{"epoch": 0}]) is None
    axis = figures.new_figure(300, 200).add_subplot()
    assert curves.draw_curves(axis, {0: lines, 1: [{"epoch": 0}]}, "score") == 1
    assert list(axis.lines[0].get_xdata()) == [1, 3] and list(axis.lines[1].get_ydata()) == [0.2]
    assert axis.get_ylim()[0] > curves.LOWEST_SCORE
    curves.draw_curves(axis, {0: [{"epoch": 0, "score": -9.0}, {"epoch": 1, "score": 0.4}]}, "score")
    assert axis.get_ylim()[0] == curves.LOWEST_SCORE


def test_losses_are_logarithmic_only_where_it_helps():
    def scale(*losses):
        axis = figures.new_figure(300, 200).add_subplot()
        curves.draw_curves(axis, {0: [{"epoch": i, "l": x} for i, x in enumerate(losses)]}, "l", log=True)
        return axis.get_yscale()

    assert scale(100, 10, 1) == "log" and scale(1.0, 0.9) == "linear" and scale(10, 0.0) == "linear"


def test_curves_file(tmp_path):
    log = make_log(0.7)
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    picture = cv2.imread(str(curves.write_curves(tmp_path / "curves.png", lines, title="a $\\bad_{$ title")))
    assert picture.shape == (500, 1800, 3) and picture.std() > 5
    curves.write_curves(tmp_path / "nothing.png", [{"epoch": 0, "$\\bad_{$ loss": 1.0}])
    with pytest.raises(InputError, match="cannot be written as '.gif'"):
        curves.write_curves(tmp_path / "curves.gif", lines)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "log.jsonl", "nothing.png"]


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def make_images(count=3, size=60):
    pictures = np.random.default_rng(0).random((count, 2, size, size, 3)).astype(np.float32)
    return pictures, np.moveaxis((pictures - MEAN) / STD, -1, 2).astype(np.float32)


def test_normalisation_is_undone():
    pictures, images = make_images()
    assert np.abs(contact_sheet.to_picture(images, MEAN, STD) - pictures).max() < 1e-5
    assert contact_sheet.to_picture(images * 100, MEAN, STD).max() <= 1


def test_both_halves_are_drawn_with_their_cells():
    pictures, _ = make_images(1)
    axis = figures.new_figure(300, 200).add_subplot()
    contact_sheet.draw_pair(axis, pictures[0], (2, 3), "id")
    left, right = axis.images
    assert np.array_equal(left.get_array(), pictures[0, 0]) and np.array_equal(right.get_array(), pictures[0, 1])
    assert left.get_extent()[1] < right.get_extent()[0]
    lines = {(*np.round(line.get_xdata(), 3), *np.round(line.get_ydata(), 3)) for line in axis.lines}
    shift = 1 + contact_sheet.GAP
    expected = {(s, s + 1, 0.5, 0.5) for s in (0, shift)}
    expected |= {(round(s + c / 3, 3), round(s + c / 3, 3), 0, 1) for s in (0, shift) for c in (1, 2)}
    assert lines == {tuple(map(float, line)) for line in expected}


def test_contact_sheet_and_samples(tmp_path, monkeypatch):
    _, images = make_images()
    target = np.arange(15.0).reshape(3, 5)
    valid = np.ones((3, 5), bool)
    valid[1, 2] = False
    target[1, 2] = 77.0  # a value that is not valid must not be shown
    seen = []
    draw = contact_sheet.draw_sheet
    monkeypatch.setattr(contact_sheet, "draw_sheet", lambda *a: seen.append(a[5]) or draw(*a))
    ids = ["a", "b", "$\\bad_{$"]
    tensors = torch.from_numpy(images), torch.from_numpy(target)
    path = contact_sheet.draw_contact_sheet(*tensors, ids, (2, 2), MEAN, STD, OUTPUTS, tmp_path / "c.png", valid=valid)
    assert seen[0][0].split() == ["Green", "0.0", "Dead", "1.0", "Clover", "2.0", "GDM", "3.0", "Total", "4.0"]
    assert "Clover —" in seen[0][1]
    assert cv2.imread(str(path)).shape[1] == 1375
    path = contact_sheet.draw_samples(
        images, target, target + 1, ids, (2, 2), MEAN, STD, OUTPUTS, tmp_path / "s.jpg", valid=valid
    )
    truth, pred = (line.split() for line in seen[1][0].splitlines()[1:])
    assert truth == ["true", "0.0", "1.0", "2.0", "3.0", "4.0"] and pred[1:] == ["1.0", "2.0", "3.0", "4.0", "5.0"]
    assert cv2.imread(str(path)).std() > 10
