"""The report of ordered classes: scikit-learn's kappa throughout, gates beside the regression's, what is not there."""

import re

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from test_ordered_judge import SETTINGS, TILES, reads, write_sets
from test_report import Page, value
from test_segmentation_report import full_report, make_tiles

from common.metrics.gates import check_gates
from common.metrics.ordinal import rate_curve
from common.metrics.segmentation import MCC
from common.outputs.report import DASH
from common.outputs.segmentation_report import write_segmentation_report
from common.post import ordered_judge

GATES = {"kappa": 0.3, "precision_medium": 0.2, "recall_high": 0.99, "rho": 0.4}
TITLES = ["Score", "Gates", "Confusion of the classes", "Order and ranking", "Calibration of the susceptibility",
          "Areas", "What thresholds and CRF gain", "Best and worst tiles"]  # fmt: skip


def sharpened(row):
    return lambda prob, valid: prob**3 / np.maximum((prob**3).sum(0), 1e-9)


def make_judgement(folder, classes=3, **options):
    rows, sets, truths = write_sets(folder, classes)
    settings = SETTINGS | {"kind": "weights"} | options
    judgement = ordered_judge.judge(rows, sets, **reads(truths, classes), **settings)
    return judgement, sets, truths


def make_logistic(judgement, outputs):
    """A regression that ranks by chance and never says medium."""
    hist = np.repeat(judgement["hist"].sum(1, keepdims=True) // 100, 100, axis=1)
    metrics = {"kappa": 0.31, f"precision_{outputs[1]}": np.nan, f"recall_{outputs[-1]}": 0.2, "rho": 0.05}
    return {"hist": hist, "metrics": metrics}


def write_page(path, judgement, sets, outputs, **changes):
    arguments = {
        "title": "A trial",
        "outputs": outputs,
        "rows": judgement["rows"],
        "members": [{"name": name, "oof": frame} for name, frame in sets.items()],
        "judgement": judgement,
        "beside": {"constant": 0.0, "logistic": 0.31},
        "gates": check_gates(judgement["metrics"], GATES) if len(outputs) == 3 else None,
        "logistic": make_logistic(judgement, outputs),
    }
    write_segmentation_report(path, **arguments | changes)
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ordered")
    judgement, sets, truths = make_judgement(folder, refine=sharpened)
    page = write_page(folder / "report.html", judgement, sets, ("low", "medium", "high"))
    return judgement, sets, truths, page, (folder / "report.html").read_text(encoding="utf-8")


def test_sections_and_their_order(made):
    text = made[4]
    titles = re.findall(r"<h2><a[^>]*>([^<]*)</a>", text)
    assert titles[: len(TITLES)] == TITLES and titles.count("Gates") == 1
    assert "http" not in text.replace("http://www.w3.org", "") and "MCC" not in text


def test_the_score_is_kappa_of_valid_pixels(made):
    judgement, sets, truths, page, text = made
    truth = np.concatenate([truths[name][0][truths[name][1]] for name in judgement["ids"]])
    masks = [judgement["read_pred"](row)[truths[row["id"]][1]] for _, row in judgement["rows"].iterrows()]
    kappa = cohen_kappa_score(truth, np.concatenate(masks))
    assert f"honest score, Cohen's kappa</small>{kappa:.4f}<" in text.replace("&#x27;", "'")
    assert "hold no data or no label and count nowhere" in page.text
    member = next(line for line in page.table("Member") if line["Member"] == "m1")
    assert value(member["Score"]) == pytest.approx(judgement["members"]["m1"], abs=6e-5)
    tile = page.table("Tile")[0]
    place = judgement["ids"].index(tile["Tile"])
    each = len(truth) // TILES
    kept = np.arange(len(truth)) // each != place
    without = cohen_kappa_score(truth[kept], np.concatenate(masks)[kept])
    assert value(tile["Cost"]) == pytest.approx(without - kappa, abs=6e-5)
    assert value(tile["Valid, %"]) == pytest.approx(100 * 29 / 32, abs=0.6)


def test_gates_beside_the_regression(made):
    judgement, page = made[0], made[3]
    lines = {line["Gate"]: line for line in page.table("Gate")}
    assert list(lines) == list(GATES)
    for name, needed in GATES.items():
        reached = judgement["metrics"][name]
        assert lines[name]["Reached"].split() == [f"{reached:.3f}", "PASS" if reached >= needed else "FAIL"]
    assert {line["Reached"].split()[1] for line in lines.values()} == {"PASS", "FAIL"}
    assert lines["kappa"]["Logistic regression"].split() == ["0.310", "PASS"]
    assert lines["precision_medium"]["Logistic regression"].split() == [DASH, "FAIL"]
    assert "misses 3 of them: precision_medium, recall_high, rho" in page.text and "never predicted" in page.text


def test_ranking_and_prediction_rate(made):
    judgement, page, text = made[0], made[3], made[4]
    lines = {line["Measure"]: line for line in page.table("Measure")}
    shown = {"Cohen's kappa": "kappa", "Spearman's rho": "rho", "AUROC, medium or higher": "auroc_medium",
             "AUROC, high": "auroc_high", "Average precision, low": "ap_low"}  # fmt: skip
    for words, name in shown.items():
        assert value(lines[words]["Honest"]) == pytest.approx(judgement["metrics"][name], abs=6e-5)
    share = judgement["hist"].sum(1) / judgement["hist"].sum()
    assert value(lines["Average precision, medium"]["By chance"]) == pytest.approx(share[1], abs=6e-4)
    auc = rate_curve(judgement["hist"], at_least=1).auc
    assert f"<b>Medium or higher</b> area under the curve {auc:.3f}, of the regression 0.500" in text
    assert text.count('aria-label="Prediction rate') == 2


def test_calibration_and_areas(made):
    judgement, page = made[0], made[3]
    last = judgement["tables"]["susceptibility"].iloc[-1]
    lines = {line["Susceptibility"]: line for line in page.table("Susceptibility")}
    assert value(lines["as it is"]["Calibration error"]) == pytest.approx(last["ece_raw"], abs=6e-5)
    assert value(lines["isotonic"]["Mean squared error"]) == pytest.approx(last["mse_isotonic"], abs=6e-5)
    area = judgement["tables"]["area"].set_index(["estimate", "class"])
    found = {line["Class"]: line for line in page.table("Class", holding="Mapped, % of the area")}
    users = area.loc[("users", "medium")]
    expected = f"{100 * users['value']:.1f} ({100 * users['low95']:.1f} to {100 * users['high95']:.1f})"
    assert found["medium"]["User's accuracy, %"] == expected
    assert value(found["high"]["All pixels, %"]) == pytest.approx(
        100 * area.loc[("share", "high"), "all pixels"], abs=6e-3
    )
    assert "too narrow" in page.text


def test_gains_name_the_crf_only_where_there_was_one(made, tmp_path):
    judgement, sets, _, page, text = made
    line = page.table("Set")[0]
    gains = judgement["gains"].iloc[0]
    assert value(line["CRF"]) == pytest.approx(gains["morphology"], abs=6e-5)
    assert value(line["Thresholds and CRF"]) == pytest.approx(gains["both"], abs=6e-5)
    plain = write_page(tmp_path / "p.html", judgement | {"refined": False}, sets, ("low", "medium", "high"))
    assert "Cleaning" in plain.table("Set")[0]
    assert "No CRF was asked for" in plain.text and "No CRF was asked for" not in page.text
    assert "isotonic {" not in text and "{&#x27;x" not in text


def test_without_the_regression_the_page_says_so(made, tmp_path):
    judgement, sets = made[:2]
    page = write_page(tmp_path / "p.html", judgement, sets, ("low", "medium", "high"), logistic=None)
    assert "Logistic regression" not in page.table("Gate")[0]
    assert page.text.count("it was not asked for (--baselines)") == 2
    assert "of the regression" not in page.text


def test_two_classes_and_no_gates(tmp_path):
    judgement, sets, _ = make_judgement(tmp_path, 2)
    page = write_page(tmp_path / "p.html", judgement, sets, ("background", "slide"))
    assert "No gates were asked for" in page.text
    assert "AUROC, slide" in {line["Measure"] for line in page.table("Measure")}
    assert len(page.table("Class", holding="Mapped, % of the area")) == 2


def test_the_report_of_mcc_is_the_same_with_its_metric_named(tmp_path):
    tiles = make_tiles()
    texts = []
    for name, judged in {"a": {}, "b": {"metric": MCC}}.items():
        full_report(tmp_path / name, tiles, judged=judged, read_picture=None)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1] and b"Order and ranking" not in texts[0]
