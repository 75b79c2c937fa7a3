"""The segmentation report and the pictures of tiles, against scikit-learn and plain loops."""

import base64
import re

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import uniform_filter
from sklearn.metrics import confusion_matrix, matthews_corrcoef, precision_recall_fscore_support
from test_report import EVIL, Page, make_log, value

from common.errors import InputError
from common.outputs import segmentation_sections, shared_sections, tile_pictures
from common.outputs.report import DASH
from common.outputs.segmentation_report import write_segmentation_report
from common.outputs.tile_pictures import (
    CLASSES,
    ERRORS,
    FIRST_CLASS,
    NODATA,
    class_colours,
    class_picture,
    combinations_of,
    draw_tile_samples,
    draw_tile_sheet,
    error_picture,
    false_colour,
    rgb,
)

OUTPUTS = ("background", "glacier", "debris", "lake")
BANDS = ("blue", "green", "red", "swir1", "thermal")
SIZE, TILES, FOLDS = 48, 16, 4
MINUS = "\N{MINUS SIGN}"


def make_tiles(seed=0):
    """Targets, valid and honest and fitted predictions (n, H, W), and raw tiles (n, 5, H, W); tile 3 is all valid."""
    rng = np.random.default_rng(seed)
    field = np.stack([uniform_filter(rng.normal(size=(SIZE, SIZE)), 7) for _ in range(TILES)])
    target = np.digitize(field, np.quantile(field, (0.6, 0.9, 0.99)))
    tile = rng.uniform(1000, 9000, (TILES, 5, SIZE, SIZE)) + 3000 * target[:, None]
    valid = rng.random(target.shape) > 0.2
    valid[3] = True
    preds = []
    for share in (0.2, 0.1):
        wrong = rng.random(target.shape) < share * np.linspace(0.1, 2, TILES)[:, None, None]
        preds.append(np.where(valid, np.where(wrong, rng.integers(0, 3, target.shape), target), 0))
    target = np.where(valid, target, 0)
    preds[0][preds[0] == 3] = 0  # lakes are never predicted: their precision is not defined
    return {"target": target, "valid": valid, "honest": preds[0], "fitted": preds[1], "tile": tile * valid[:, None]}


def make_rows():
    rows = pd.DataFrame({"id": [f"{i:02d}_07" for i in range(TILES)]})
    return rows.assign(group=[f"block {i % 5}" for i in range(TILES)], fold=[i % FOLDS for i in range(TILES)])


def make_set(tiles, name):
    """Counts by scikit-learn, in another order than the rows: the report must join by id."""
    lines = []
    for i, row in make_rows().iterrows():
        known = tiles["valid"][i]
        counts = confusion_matrix(tiles["target"][i][known], tiles[name][i][known], labels=range(4))
        columns = {f"n_{t}_{p}": counts[t, p] for t in range(4) for p in range(4)}
        lines.append({"id": row["id"], "fold": row["fold"], "nodata": int((~known).sum())} | columns)
    return pd.DataFrame(lines).sample(frac=1, random_state=1).reset_index(drop=True)


def readers(tiles):
    place = {name: i for i, name in enumerate(make_rows()["id"])}
    return {
        "read_picture": lambda row: tiles["tile"][place[row["id"]]],
        "read_target": lambda row: (tiles["target"][place[row["id"]]], tiles["valid"][place[row["id"]]]),
    }, lambda row: tiles["honest"][place[row["id"]]]


def make_shown():
    target, attainable = [0.1, 0.35, 0.4, 0.15], [0.2, 0.35, 0.37, 0.08]
    shown = {0: [0.22, 0.34, 0.37, 0.07], 1: [0.2, 0.34, 0.365, 0.095]}
    return {f"fold {k}": {"target": target, "attainable": attainable, "shown": shown[k]} for k in shown}


def full_report(path, tiles, **changes):
    """A page with every part, and its arguments; `changes` replaces arguments, "judged" parts of the judgement."""
    reading, read_pred = readers(tiles)
    honest, fitted = make_set(tiles, "honest"), make_set(tiles, "fitted")
    logs = {0: make_log(0.7, seed=1), 1: make_log(0.8, seed=2)}
    names = ["unet", "mit"]
    members = [{"name": "unet", "oof": honest, "logs": logs, "seconds": 90.0}, {"name": "mit", "oof": fitted}]
    post = {"thresholds": [0.4, 0.3, 0.2, 0.1], "min_area": [100, 50, 20]}
    judgement = {
        "final": fitted,
        "honest": honest,
        "blend": {"kind": "greedy", "members": names, "weights": [0.7, 0.3], "dropped": {}, "post": post},
        "gains": pd.DataFrame({"set": names, "none": [0.7, 0.6], "thresholds": [0.02, -0.01]}),
        "interval": {"against": "unet", "difference": 0.01, "low95": 0.002, "high95": 0.02, "groups": 5},
        "tables": {"fold": pd.DataFrame({"fold": ["0", "1"], "mcc": [0.61, 0.72], "mean_iou": [0.5, np.nan]})},
        "read_pred": read_pred,
    }
    arguments = {
        "title": "A trial",
        "outputs": OUTPUTS,
        "rows": make_rows(),
        "members": members,
        "judgement": judgement | changes.pop("judged", {}),
        "beside": {"constant": 0.0, "logistic": 0.31, "reachable": 0.93},
        "bands": BANDS,
        "shown": make_shown(),
        "gates": pd.DataFrame(
            {"gate": ["mcc", "recall_lake"], "needed": [0.5, 0.9], "reached": [0.6, np.nan], "passed": [True, False]}
        ),
        "findings": ["a tile without data"],
        "settings": {"Arguments": {"lr": 0.001}},
    }
    arguments |= reading | changes
    write_segmentation_report(path, **arguments)
    return Page(path.read_text(encoding="utf-8")), arguments


@pytest.fixture(scope="module")
def tiles():
    return make_tiles()


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiles):
    path = tmp_path_factory.mktemp("report") / "report.html"
    page, used = full_report(path, tiles)
    return page, used, path.read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves the drawings out, for tests of words and numbers."""
    monkeypatch.setattr(shared_sections, "learning_panels", lambda *a: "<p>curves</p>")
    monkeypatch.setattr(segmentation_sections, "shares_figure", lambda *a: "<p>shares</p>")
    monkeypatch.setattr(segmentation_sections, "tile_panels", lambda *a, **k: "<p>panels</p>")


def score_of(tiles, name, keep=slice(None)):
    """MCC over all pixels of the tiles, no data being background on both sides, by scikit-learn."""
    return matthews_corrcoef(tiles["target"][keep].ravel(), tiles[name][keep].ravel())


def test_page_is_whole_and_needs_nothing_outside(made):
    page, _, text = made
    assert len(set(page.ids)) == len(page.ids)
    inside = [link for link in page.links if link.startswith("#")]
    assert {link[1:] for link in inside} <= set(page.ids) and len(inside) > 20
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "script" not in text and "http" not in text and "nan" not in page.text.lower().split()
    assert [tag for tag, _ in page.tags].count("section") == 10


def test_headline_and_ladder(made, tiles):
    page, used, text = made
    honest = score_of(tiles, "honest")
    assert f"honest score, MCC</small>{honest:.4f}<" in text
    known = tiles["valid"]
    alone = matthews_corrcoef(tiles["target"][known], tiles["honest"][known])
    right = 100 * (tiles["target"] == tiles["honest"])[known].mean()
    assert f"{right:.1f} % of the valid pixels get their class; over these alone the MCC is {alone:.4f}" in page.text
    assert f"{100 * (~known).mean():.1f} % hold no data" in page.text
    fitted = score_of(tiles, "fitted")
    rungs = ["Constant", "Logistic regression", "Best single member", "Fitted", "Honest", "Best reachable"]
    places = [page.text.index(rung) for rung in rungs]
    assert places == sorted(places)
    numbers = re.findall(r"\d\.\d{4}", page.text[places[0] : places[-1] + 120])
    assert numbers[:6] == ["0.0000", "0.3100", *([f"{fitted:.4f}"] * 2), f"{honest:.4f}", "0.9300"]
    assert "+0.0100, 95 % interval +0.0020 to +0.0200 (paired bootstrap over 5 groups); the difference holds" in text


def test_class_table_equals_sklearn(made, tiles):
    lines = made[0].table("Class", holding="Recall")
    target, pred = tiles["target"].ravel(), tiles["honest"].ravel()
    precision, recall, f1, _ = precision_recall_fscore_support(target, pred, labels=range(4), zero_division=0)
    for k, line in enumerate(lines):
        true, said, fitted = target == k, pred == k, tiles["fitted"].ravel() == k
        assert line["Class"] == OUTPUTS[k]
        assert value(line["Of the truth, %"]) == pytest.approx(100 * true.mean(), abs=6e-3)
        assert value(line["IoU"]) == pytest.approx((true & said).sum() / (true | said).sum(), abs=6e-4)
        assert value(line["IoU fitted"]) == pytest.approx((true & fitted).sum() / (true | fitted).sum(), abs=6e-4)
        assert value(line["Recall"]) == pytest.approx(recall[k], abs=6e-4)
        assert value(line["F1 (Dice)"]) == pytest.approx(f1[k], abs=6e-4)
        assert value(line["MCC"]) == pytest.approx(matthews_corrcoef(true, said), abs=6e-4)
        if said.any():
            assert value(line["Precision"]) == pytest.approx(precision[k], abs=6e-4)
    assert lines[3]["Precision"] == DASH and lines[3]["Recall"] == "0.000"
    assert "not defined: the class is neither" in made[0].text


def test_confusion_matrix(made, tiles):
    page, _, text = made
    known = tiles["valid"]
    counts = confusion_matrix(tiles["target"][known], tiles["honest"][known], labels=range(4))
    body = text[text.index('<table class="confusion">') :]
    body = body[: body.index("</table>")]
    cells = re.findall(r"var\(--(c\d)\) ([\d.]+)%.*?<b>([\d.]+)</b><small>([\d\u202f]+)</small>", body)
    assert [int(cell[3].replace("\u202f", "")) for cell in cells] == counts.ravel().tolist()
    shares = counts / counts.sum(1, keepdims=True)
    for (shade, tint, percent, _), share, right in zip(cells, shares.ravel(), np.eye(4).ravel(), strict=True):
        assert float(percent) == pytest.approx(100 * share, abs=0.06)
        assert float(tint) == pytest.approx(50 * share, abs=0.06) and shade == ("c0" if right else "c1")
    sums = [int(text.replace("\u202f", "")) for text in re.findall(r'<td class="n">([\d\u202f]+)</td>', body)]
    assert sums == [*counts.sum(1), *counts.sum(0), counts.sum()]
    wrong = counts - np.diag(np.diag(counts))
    t, p = np.unravel_index(wrong.argmax(), (4, 4))
    first = f"{OUTPUTS[t]} taken for {OUTPUTS[p]} ({100 * wrong[t, p] / wrong.sum():.0f} %)"
    assert f"Most of the wrong pixels: {first}, " in page.text


def slow_costs(tiles):
    whole = score_of(tiles, "honest")
    return np.array([score_of(tiles, "honest", np.arange(TILES) != i) - whole for i in range(TILES)])


def test_tiles_are_ordered_by_what_they_cost(made, tiles):
    page, _, text = made
    costs, ids = slow_costs(tiles), make_rows()["id"]
    lines = page.table("Tile")
    more = [dict(zip(lines[0], row, strict=True)) for row in page.tables[page_table(page, "Tile", 1)][1:]]
    assert len(lines) == 12 and "The other 4 tiles" in page.text
    assert [line["Tile"] for line in lines + more] == list(ids[np.argsort(-costs)])
    for line in lines + more:
        i = list(ids).index(line["Tile"])
        known, target, pred = tiles["valid"][i], tiles["target"][i], tiles["honest"][i]
        assert value(line["Cost"]) == pytest.approx(costs[i], abs=6e-5)
        assert value(line["MCC"]) == pytest.approx(score_of(tiles, "honest", [i]), abs=6e-4)
        assert value(line["Wrong, %"]) == pytest.approx(100 * (target != pred)[known].mean(), abs=0.06)
        assert value(line["Valid, %"]) == pytest.approx(100 * known.mean(), abs=0.6)
        assert value(line["Debris, %"]) == pytest.approx(100 * (target == 2)[known].mean(), abs=6e-3)


def page_table(page, first, number):
    return [i for i, lines in enumerate(page.tables) if lines and lines[0] and lines[0][0] == first][number]


def test_pictures_are_of_the_worst_and_the_best(made, tiles):
    page, _, text = made
    costs, ids = slow_costs(tiles), make_rows()["id"]
    order = list(np.argsort(-costs))
    cards = re.findall(r'<div class="card"><div class="identity"><span><b>(.*?)</b>', text)
    assert cards == [ids[i] for i in [*order[:3], *order[::-1][:3]]]
    pictures = re.findall(r'<img src="data:image/(\w+);base64,([^"]+)" .*? alt="(.*?)">', text)
    assert [words for _, _, words in pictures[:5]] == [
        f"Tile {cards[0]}, {part}" for part in ("infrared", "natural", "truth", "prediction", "error")
    ]
    assert [kind for kind, _, _ in pictures[:5]] == ["jpeg", "jpeg", "png", "png", "png"]
    assert len(pictures) == 30 and "infrared: swir1, red, green" in page.text
    i = order[0]
    shown = [decoded(content) for _, content, _ in pictures[:5]]
    assert np.array_equal(shown[2], class_picture(tiles["target"][i], OUTPUTS, tiles["valid"][i]))
    assert np.array_equal(shown[3], class_picture(tiles["honest"][i], OUTPUTS, tiles["valid"][i]))
    assert np.array_equal(shown[4], error_picture(tiles["target"][i], tiles["honest"][i], tiles["valid"][i]))
    colour = false_colour(tiles["tile"][i], BANDS, "infrared", valid=tiles["valid"][i])
    assert np.abs(shown[0].astype(int) - colour).mean() < 40  # JPEG of noise


def decoded(content):
    return cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_sampler_shows_its_shares(made, tiles):
    lines = made[0].table("Class", holding="Target, %")
    known = tiles["target"][tiles["valid"]]
    off = {"background": 2.0, "glacier": -1.0, "debris": -0.5, "lake": 1.5}
    for k, line in enumerate(lines):
        assert value(line["In the tiles, %"]) == pytest.approx(100 * (known == k).mean(), abs=6e-3)
        assert value(line["Target, %"]) == [10, 35, 40, 15][k]
        assert value(line["Best attainable, %"]) == [20, 35, 37, 8][k]
        assert value(line["Shown, %"]) == [21, 34, 36.75, 8.25][k]
        assert value(line["Shown − attainable, largest of a fold, points"]) == pytest.approx(off[OUTPUTS[k]])


def test_members_blend_tables_and_gates(made):
    page, _, text = made
    lines = {line["Member"]: line for line in page.table("Member", holding="Selection")}
    assert lines["unet"]["Tiles"] == "16" and lines["unet"]["Folds"] == "2" and lines["unet"]["Minutes"] == "1.5"
    assert lines["mit"]["Folds"] == "4" and lines["mit"]["At best"] == DASH
    assert "Blend “greedy” of 2 members; 2 have a weight above zero." in page.text
    assert [line["Threshold"] for line in page.table("Class", holding="Threshold")] == [
        "0.400",
        "0.300",
        "0.200",
        "0.100",
    ]
    assert "Then the masks are cleaned: min area [100, 50, 20]." in page.text
    assert page.table("set")[1] == {"set": "mit", "none": "0.6000", "thresholds": f"{MINUS}0.0100"}
    assert page.table("Fold")[0] == {"Fold": "0", "MCC": "0.6100", "Mean IoU": "0.5000"}
    gates = page.table("Gate")
    assert [line[""] for line in gates] == ["passed", "not reached"] and gates[1]["Reached"] == DASH
    assert "1 of 2 gates are not reached: recall_lake." in page.text and 'class="notice warn"' in text
    assert "a tile without data" in page.text and "mit." in page.text[page.text.index("no training log") :]


def test_a_page_of_little(undrawn, tmp_path, tiles):
    """Two classes, one member, no honest score, nothing beside it: every absent part is named."""
    two = {"target": tiles["target"] > 0, "fitted": tiles["fitted"] > 0, "valid": tiles["valid"]}
    lines = []
    for i, name in enumerate(make_rows()["id"]):
        known = two["valid"][i]
        counts = confusion_matrix(two["target"][i][known], two["fitted"][i][known], labels=(False, True)).ravel()
        lines.append(
            {"id": name, "nodata": (~known).sum()}
            | dict(zip(("n_0_0", "n_0_1", "n_1_0", "n_1_1"), counts, strict=True))
        )
    frame, path = pd.DataFrame(lines), tmp_path / "r.html"
    rows = pd.concat([make_rows(), pd.DataFrame({"id": ["99_99"], "group": ["z"]})])
    write_segmentation_report(
        path, title="t", outputs=OUTPUTS[:2], rows=rows, members=[{"name": "m", "oof": frame}],
        judgement={"final": frame}, beside={},
    )  # fmt: skip
    page = Page(path.read_text(encoding="utf-8"))
    assert f"{score_of(two, 'fitted'):.4f}" in page.text and "out-of-fold score, MCC" in page.text
    assert "Judged on tiles the model was not trained on" in page.text and "honest" not in page.text.lower()
    assert "1 of 17 tiles have no prediction and count nowhere." in page.text
    for text in ("No member came with a training log", "a reader of tiles and the names of their bands were not given",
                 "shares of the crop sampler did not come", "There is one member, so nothing is blended",
                 "No gates were asked for", "was not checked in this run", "came without settings",
                 "No bootstrap interval"):  # fmt: skip
        assert text in page.text, text


def test_fitted_score_says_that_it_flatters(undrawn, tmp_path, tiles):
    page, _ = full_report(tmp_path / "r.html", tiles, judged={"honest": None})
    assert "fitted score, MCC" in page.text and "which flatters" in page.text
    assert "IoU fitted" not in page.text


def test_a_perfect_prediction_and_no_readable_picture(tmp_path, tiles, undrawn):
    perfect = make_set(tiles | {"honest": tiles["target"]}, "honest")

    def unreadable(row):
        raise InputError(f"{EVIL} cannot be read")

    page, _ = full_report(
        tmp_path / "r.html", tiles, judged={"honest": perfect, "final": perfect, "read_pred": unreadable}, pictures=1
    )
    assert "1.0000" in page.text and "No valid pixel is wrong." in page.text
    assert page.text.count("The tile cannot be shown") == 2 and page.count("script") == 0
    assert value(page.table("Class", holding="Recall")[3]["IoU"]) == 1


def test_everything_foreign_is_escaped(tmp_path, tiles, undrawn):
    rows = make_rows().assign(group=EVIL)
    rows.loc[0, "id"] = EVIL
    honest, fitted = (make_set(tiles, name).replace({"id": {"00_07": EVIL}}) for name in ("honest", "fitted"))
    place = {name: i for i, name in enumerate(rows["id"])}
    page, _ = full_report(
        tmp_path / "r.html", tiles, rows=rows, title=EVIL, label=EVIL, footer=EVIL, notes=[EVIL], findings=[EVIL],
        outputs=(EVIL, *OUTPUTS[1:]), settings={EVIL: {EVIL: EVIL}}, beside={EVIL: 0.1}, pictures=TILES,
        members=[{"name": EVIL, "oof": honest}], shown={EVIL: next(iter(make_shown().values()))},
        judged={"honest": honest, "final": fitted, "read_pred": None,
                "blend": {"kind": EVIL, "members": [EVIL], "weights": [1.0], "post": {"thresholds": [1, 1, 1, 1]}}},
        read_target=lambda row: (tiles["target"][place[row["id"]]], tiles["valid"][place[row["id"]]]),
        read_picture=lambda row: tiles["tile"][place[row["id"]]],
    )  # fmt: skip
    assert page.count("script") == 0 and page.text.count(EVIL) > 30


def test_drawn_shares_escape_class_names_and_panels_too(tmp_path, tiles):
    page, _ = full_report(
        tmp_path / "r.html", tiles, outputs=(EVIL, *OUTPUTS[1:]), members=[], judged={"blend": None}, pictures=1
    )
    assert page.count("script") == 0 and page.count("img") == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": make_rows().drop(columns="group")}, "lack the column group"),
        ({"rows": make_rows().assign(id="x")}, "no row has a prediction"),
        ({"judged": {"honest": pd.DataFrame({"id": ["00_07"], "nodata": [0]})}}, "the set honest lacks tiles: 01_07"),
        ({"judged": {"final": pd.DataFrame({"id": make_rows()["id"]})}}, "final has no column nodata"),
        ({"judged": {"final": pd.DataFrame({"id": make_rows()["id"], "nodata": 0})}}, "no column n_0_0"),
        ({"judged": {"final": pd.DataFrame({"id": ["00_07", "00_07"]})}}, "holds the tile 00_07 twice"),
        ({"judged": {"blend": {"kind": "mean", "members": ["a", "b"], "weights": [1.0]}}}, "one per member"),
        ({"shown": {"fold 0": {"target": [1, 0, 0, 0], "shown": [1, 0, 0, 0]}}}, "of fold 0 lack attainable"),
        ({"shown": {"fold 0": dict.fromkeys(("target", "attainable", "shown"), [0.5, 0.5])}}, "need 4, one per class"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_and_leaves_no_file(undrawn, tmp_path, tiles, change, message):
    with pytest.raises(InputError, match=message):
        full_report(tmp_path / "r.html", tiles, **change)
    assert list(tmp_path.iterdir()) == []


def test_false_colour_stretches_each_band_by_name():
    rng = np.random.default_rng(3)
    tile = rng.uniform(0, 1, (5, 30, 40)) * np.array([1, 10, 100, 1e3, 1e4])[:, None, None] + 7
    tile[:, :5] = 0
    tile[3, 10, 10] = np.nan
    picture = false_colour(tile, BANDS, "natural")
    for channel, band in enumerate((2, 1, 0)):
        low, high = np.percentile(tile[band, 5:], (2, 98))
        wanted = 255 * np.clip((tile[band, 5:] - low) / (high - low), 0, 1)
        assert np.abs(picture[5:, :, channel] - wanted).max() < 0.51
    assert (picture[:5] == rgb(NODATA)).all() and picture.dtype == np.uint8
    assert np.array_equal(false_colour(tile, BANDS), false_colour(tile, BANDS, ("swir1", "red", "green")))
    shuffled = [3, 0, 4, 2, 1]
    assert np.array_equal(false_colour(tile[shuffled], [BANDS[i] for i in shuffled]), false_colour(tile, BANDS))
    shown = false_colour(tile, BANDS, valid=np.ones((30, 40), bool))
    assert not (shown[:5] == rgb(NODATA)).all() and (false_colour(np.zeros_like(tile), BANDS) == rgb(NODATA)).all()
    for wrong in ("nowhere", ("red", "green"), ("red", "green", "nir")):
        with pytest.raises(InputError, match="there are only the bands blue, green"):
            false_colour(tile, BANDS, wrong)


def test_combinations_need_their_bands():
    assert list(combinations_of(BANDS)) == ["infrared", "natural", "heat"]
    assert combinations_of(("red", "green", "blue", "nir")) == {
        "natural": ("red", "green", "blue"), "vegetation": ("nir", "red", "green"),
    }  # fmt: skip
    assert combinations_of(("slope", "curvature", "twi", "dem")) == {"bands": ("slope", "curvature", "twi")}
    assert combinations_of(("slope", "dem")) == {"bands": ("slope", "dem", "slope")}


# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen(shade, matrix):
    """Lab of an sRGB colour as seen with a colour-vision deficiency."""
    part = np.array(rgb(shade)) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(matrix) @ linear, 0, 1)
    part = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return cv2.cvtColor(np.float32([[part]]), cv2.COLOR_RGB2LAB)[0, 0]


@pytest.mark.parametrize("kind", [None, *BLINDNESS])
def test_colours_are_told_apart(kind):
    matrix = np.eye(3) if kind is None else BLINDNESS[kind]
    for shades in ([FIRST_CLASS, NODATA, *CLASSES[:4]], [FIRST_CLASS, NODATA, *ERRORS.values()]):
        lab = np.array([seen(shade, matrix) for shade in shades])
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e3 * np.eye(len(lab))
        assert apart.min() > 15, (kind, np.unravel_index(apart.argmin(), apart.shape), apart.min())


def test_many_classes_have_many_colours():
    names = [f"c{i}" for i in range(20)]
    colours = class_colours(names)
    assert list(colours) == names and len(set(colours.values())) == 20
    classes = np.arange(20).reshape(4, 5)
    picture = class_picture(classes, names, classes != 7)
    assert [tuple(p) for p in picture.reshape(-1, 3)] == [
        rgb(NODATA) if i == 7 else rgb(colours[f"c{i}"]) for i in range(20)
    ]


def test_error_picture_names_every_error():
    target, pred = np.array([[0, 0, 1, 1, 1, 2, 3, 3]]), np.array([[0, 1, 1, 0, 2, 1, 0, 3]])
    words = {"right": rgb(ERRORS["right"]), "ground": rgb(FIRST_CLASS), "missed": rgb(ERRORS["missed"])}
    words |= {"added": rgb(ERRORS["added"]), "confused": rgb(ERRORS["confused"]), "none": rgb(NODATA)}
    names = ("ground", "added", "right", "missed", "confused", "confused", "missed", "none")
    found = error_picture(target, pred, np.array([[True] * 7 + [False]]))
    assert [tuple(pixel) for pixel in found[0]] == [words[name] for name in names]


def test_sheets_show_what_the_model_gets(tmp_path, tiles, monkeypatch):
    seen_panels = []
    draw = tile_pictures.draw_panels
    monkeypatch.setattr(tile_pictures, "draw_panels", lambda *a, **k: seen_panels.append(a) or draw(*a, **k))
    images = torch.tensor(tiles["tile"][:3], dtype=torch.float32)
    images = (images - images.mean()) / images.std()  # standardised: no pixel is zero, so `valid` must be heeded
    batch = (images, torch.tensor(tiles["target"][:3]), torch.tensor(tiles["valid"][:3]))
    options = {"bands": BANDS, "outputs": OUTPUTS}
    path = draw_tile_sheet(*batch, ["a", EVIL, "c"], path=tmp_path / "sheet.jpg", **options)
    assert cv2.imread(str(path)).shape[1] > 1000
    preds = torch.tensor(tiles["honest"][:3])
    path = draw_tile_samples(batch[0], batch[1], preds, batch[2], "abc", path=tmp_path / "samples.png", **options)
    assert cv2.imread(str(path)).shape[0] > 800
    sheet, samples = (lines[0] for lines in seen_panels)
    assert [line["name"] for line in sheet] == ["a", EVIL, "c"]
    assert [words for words, _ in samples[1]["panels"]] == ["", "truth", "prediction", "error"]
    known = tiles["valid"][1]
    for line in (sheet[1], samples[1]):
        assert np.array_equal(line["panels"][1][1], class_picture(tiles["target"][1], OUTPUTS, known))
        assert (line["panels"][0][1][~known] == rgb(NODATA)).all()
    assert np.array_equal(samples[1]["panels"][2][1], class_picture(tiles["honest"][1], OUTPUTS, known))
    assert np.array_equal(samples[1]["panels"][3][1], error_picture(tiles["target"][1], tiles["honest"][1], known))
    share = 100 * (tiles["target"][1][known] == 1).mean()
    assert sheet[1]["caption"].startswith(f"glacier {share:.2g} %   debris ")
    empty = torch.zeros_like(batch[2][:1])
    draw_tile_sheet(images[:1], batch[1][:1], empty, ["e"], path=tmp_path / "e.jpg", **options)
    assert seen_panels[-1][0][0]["caption"] == "no valid pixel"


def test_a_small_patch_does_not_vanish_when_a_tile_is_shrunk():
    classes = np.zeros((600, 600), int)
    classes[301, 303] = 3
    small = tile_pictures.shrunk(class_picture(classes, OUTPUTS))
    assert small.shape == (330, 330, 3) and (small != rgb(FIRST_CLASS)).any()
    assert tile_pictures.shrunk(small) is small


def test_real_tiles_are_drawn(glacier_data, tmp_path):
    from common.datasets.glacier_files import read_rows, read_tile

    row = read_rows(glacier_data).iloc[0]
    tile = read_tile(row["path"])
    picture = false_colour(tile, BANDS)
    nodata = ~(tile != 0).any(0)
    assert picture.shape == (512, 512, 3) and (picture[nodata] == rgb(NODATA)).all()
    assert all(channel[~nodata].std() > 30 for channel in np.moveaxis(picture, -1, 0))
    assert all(len(np.unique(channel[~nodata])) > 200 for channel in np.moveaxis(picture, -1, 0))
