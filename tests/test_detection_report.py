"""The report of a rare class, its pictures and pr_curve.png, against plain loops, scipy and scikit-learn."""

import base64
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter, label
from scipy.special import expit
from sklearn.metrics import average_precision_score
from test_report import EVIL, Page, make_log, value

from common.errors import InputError
from common.metrics.curves import BINS
from common.metrics.objects import match_objects
from common.outputs import detection_figures, detection_pictures, detection_scores, detection_sections, shared_sections
from common.outputs.detection_blobs import HALF_FOUND, LEAST_FOUND, Blob, by_found, open_honest, scan_maps, window_of
from common.outputs.detection_figures import (
    MOST_ODDS,
    curves_figure,
    draw_pr_curve,
    object_curves,
    pixel_curves,
    probability,
    probability_picture,
    reliability_figures,
    set_histogram,
    thresholds_figure,
)
from common.outputs.detection_report import write_detection_report
from common.outputs.figures import colour
from common.outputs.masks import read_beside, read_logit
from common.outputs.report import DASH
from common.outputs.tile_pictures import NODATA, class_picture, error_picture, rgb
from common.post.detection_fit import BLOB_IOU
from common.post.detection_judge import judge

OUTPUTS, BANDS = ("background", "scar"), ("red", "green", "blue")
SIZE, TILES, REGIONS = 48, 18, 3
RATIOS = (200, 500)


def read_map(path):
    return read_logit(path), read_beside(path, "valid"), read_beside(path, "target")


def make_set(folder, name, *, noise, seed, tiles=range(TILES)):
    """A set of maps: every third tile has the class, in every other of these a blob is not seen; others have a false
    blob or none."""
    rng, lines = np.random.default_rng(seed), []
    truth_of = np.random.default_rng(0)
    truths = []
    for i in range(TILES):
        field = gaussian_filter(truth_of.normal(size=(SIZE, SIZE)), 3)
        truths.append((field > np.quantile(field, 0.93)) & (i % 3 == 0))
    for i in tiles:
        target, valid = truths[i], rng.random((SIZE, SIZE)) > 0.02
        seen = target.copy()
        if target.any():
            labels, count = label(target, np.ones((3, 3)))
            if count > 1 and i % 6 == 0:
                seen &= labels != 1 + i % count
        elif i % 2:
            seen[10 : 14 + i // 4, 20:25] = True
        logit = 7.0 * gaussian_filter(seen.astype(float), 0.8) - 4 + noise * rng.normal(size=target.shape)
        logit, path = logit.astype(np.float16), Path(folder) / f"{name}-{i}.npz"
        np.savez(path, logit=logit, valid=valid, target=target.astype(np.uint8))
        counts = {f"n_{t}_{p}": int(((target == t) & ((logit > 0) == p) & valid).sum()) for t in (0, 1) for p in (0, 1)}
        lines.append({"id": f"tile_{i:02d}", "fold": i % 2, "nodata": 0, "prob": str(path)} | counts)
    return pd.DataFrame(lines)


def make_rows(regions=REGIONS):
    rows = pd.DataFrame({"id": [f"tile_{i:02d}" for i in range(TILES)]})
    return rows.assign(group=[f"region {i // 3 % regions}" for i in range(TILES)])


def pictures_of(row):
    return np.random.default_rng(int(row["id"][-2:])).uniform(1, 255, (3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    return {"unet": make_set(folder, "unet", noise=0.8, seed=1), "mit": make_set(folder, "mit", noise=1.6, seed=2)}


@pytest.fixture(scope="module")
def judged(sets):
    return judge(make_rows(), sets, read_map=read_map, ratios=RATIOS, main_ratio=200, target_precision=0.75)


def arguments(sets, judgement, **changes):
    logs = {0: make_log(0.7, seed=1), 1: make_log(0.8, seed=2)}
    members = [{"name": name, "oof": frame.sample(frac=1, random_state=3)} for name, frame in sets.items()]
    members[0] |= {"logs": logs, "seconds": 90.0}
    given = {
        "title": "A trial",
        "outputs": OUTPUTS,
        "rows": make_rows().sample(frac=1, random_state=4),
        "members": members,
        "judgement": judgement,
        "read_map": read_map,
        "beside": {"constant": 0.01, "logistic": 0.2, "reachable": 0.95},
        "bands": BANDS,
        "read_picture": pictures_of,
        "pictures": 2,
        "gates": pd.DataFrame({"gate": ["ece"], "needed": [0.1], "reached": [np.nan], "passed": [False]}),
        "findings": ["a tile without data"],
        "settings": {"Arguments": {"lr": 0.001}},
        "notes": ["a note"],
    }
    return given | changes


def write(path, sets, judgement, **changes):
    write_detection_report(path, **arguments(sets, judgement, **changes))
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, sets, judged):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write(path, sets, judged), path.read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves the drawings out, for tests of words and numbers."""
    monkeypatch.setattr(shared_sections, "learning_panels", lambda *a: "<p>curves</p>")
    places = {"curves_figure": detection_sections, "reliability_figures": detection_sections}
    for name, module in (places | {"thresholds_figure": detection_scores}).items():
        monkeypatch.setattr(module, name, lambda *a, **k: "<p>drawn</p>")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, in order."""
    found = []
    monkeypatch.setattr(detection_figures, "inline_svg", lambda drawing, *a: found.append(drawing) or "<svg></svg>")
    return found


@pytest.fixture(scope="module")
def honest(sets, judged):
    """(logit, valid, target, temperature, post) of every tile by plain means: weighted mean of probabilities."""
    found = []
    for i, one in enumerate(judged["nested"]):
        logits = [read_map(frame["prob"][i])[0].astype(np.float64) for frame in sets.values()]
        prob = np.average(expit(logits), axis=0, weights=one["weights"])
        _, valid, target = read_map(sets["unet"]["prob"][i])
        found.append((np.log(prob / (1 - prob)), valid, target == 1, one["post"]["temperature"], one["post"]))
    return found


def test_page_is_whole_and_needs_nothing_outside(made):
    page, text = made
    assert len(set(page.ids)) == len(page.ids)
    inside = [link for link in page.links if link.startswith("#")]
    assert {link[1:] for link in inside} <= set(page.ids) and len(inside) > 20
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "script" not in text and "http" not in text and "nan" not in page.text.lower().split()
    assert [tag for tag, _ in page.tags].count("section") == 12
    for words in ("a note", "a tile without data", "1 of 1 gates are not reached: ece.", "lr"):
        assert words in page.text, words
    assert "mit." in page.text[page.text.index("no training log") :]


def test_headline_and_ladder(made, judged):
    page, text = made
    assert f"honest score, balanced IoU</small>{judged['scores']['honest']:.4f}<" in text
    assert f"6 tiles with scar, 12 without, {REGIONS} regions." in page.text and "One region" not in page.text
    rungs = ["Constant", "Logistic regression", "Best single member", "Fitted", "Honest", "Best reachable"]
    places = [page.text.index(rung) for rung in rungs]
    assert places == sorted(places)
    numbers = re.findall(r"\d\.\d{4}", page.text[places[0] : places[-1] + 120])
    best = max(float(line["Score"]) for line in page.table("Member", holding="Score"))
    scores = [0.01, 0.2, best, judged["scores"]["fitted"], judged["scores"]["honest"], 0.95]
    assert numbers[:6] == [f"{score:.4f}" for score in scores]


def test_members_are_scored_balanced_at_one_half(made, sets):
    """Negative tiles weigh half: 12 of them on 6 positive ones."""
    lines = {line["Member"]: line for line in made[0].table("Member", holding="Selection")}
    for name, frame in sets.items():
        sums = np.zeros(3)
        for path in frame["prob"]:
            logit, valid, target = read_map(path)
            target = (target == 1)[valid]
            pred, weight = logit[valid] > 0, 1 if target.any() else 0.5
            sums += weight * np.array([(pred & target).sum(), (pred & ~target).sum(), (~pred & target).sum()])
        assert value(lines[name]["Score"]) == pytest.approx(sums[0] / sums.sum(), abs=6e-5)
    assert lines["unet"]["Minutes"] == "1.5" and lines["unet"]["Tiles"] == str(TILES)


def honest_pixels(honest, ratio):
    """(precision, recall) of the masks at a ratio's threshold, each tile with what was fitted without it."""
    sums, positive = np.zeros(3), [bool((one[2] & one[1]).any()) for one in honest]
    for (logit, valid, target, heat, post), inside in zip(honest, positive, strict=True):
        pred = (expit(logit / heat) > post["ratios"][f"{ratio}"]["threshold"])[valid]
        weight = 1 if inside else ratio * sum(positive) / (len(positive) - sum(positive))
        target = target[valid]
        sums += weight * np.array([(pred & target).sum(), (pred & ~target).sum(), (~pred & target).sum()])
    return sums[0] / (sums[0] + sums[1]), sums[0] / (sums[0] + sums[2])


def test_thresholds_per_ratio(made, judged, honest):
    page, _ = made
    lines = page.table("Ratio", holding="Threshold")
    assert [line["Ratio"] for line in lines] == ["1:200", "1:500"]
    for line, ratio in zip(lines, RATIOS, strict=True):
        fit = judged["blend"]["post"]["ratios"][str(ratio)]
        precision, recall = honest_pixels(honest, ratio)
        assert value(line["Precision, honest"]) == pytest.approx(precision, abs=2e-3)
        assert value(line["Recall, honest"]) == pytest.approx(recall, abs=2e-3)
        assert value(line["Recall, as fitted"]) == pytest.approx(fit["recall"], abs=6e-4)
        assert float("0" + line["Threshold"]) == pytest.approx(fit["threshold"], rel=1e-2)
        assert line["Reachable"] == ("yes" if fit["reachable"] else "no")
        assert value(line["Pixels, per million"]) == pytest.approx(1e6 * fit["prevalence"], abs=0.06)
    behind = page.table("Ratio", holding="As a sub-sample")
    blobs = page.table("Ratio", holding="Least mean probability")
    for line, known in zip(blobs, judged["tables"]["thresholds"].to_dict("records"), strict=True):
        assert line["Least mean probability"] == probability(known["blob"])
        for key in ("precision", "recall"):
            assert value(line[f"{key.capitalize()}, honest"]) == pytest.approx(known[f"honest object {key}"], abs=6e-4)
            assert value(line[f"{key.capitalize()}, as fitted"]) == pytest.approx(known[f"object {key}"], abs=6e-4)
    assert [line["Ratio"] for line in behind] == ["1:1", "1:200", "1:500"]
    assert all(line["Without"] == "12" and line["With the class"] == "6" for line in behind)
    assert value(behind[1]["Each of these counts"]) == 100 and behind[1]["As a sub-sample"].startswith("none")


def test_regions_are_summed_from_tiles(made, judged):
    lines = made[0].table("Region")
    tiles = judged["tiles"]
    for line in lines:
        some = tiles[tiles["group"] == line["Region"]]
        empty = some[~some["positive"]]
        assert int(line["Tiles"]) == len(some) and int(line["With the class"]) == some["positive"].sum()
        assert value(line["Mean IoU of these"]) == pytest.approx(some["iou"][some["positive"]].mean(), abs=6e-4)
        assert int(line["False pixels there"]) == empty["false"].sum()
        assert int(line["of these with false pixels"]) == (empty["false"] > 0).sum()
    assert len(lines) == REGIONS


def slow_blobs(mask, prob, pred):
    """[(pixels, mean prob, share in pred, rows, columns)] by scipy."""
    labels, count = label(mask, np.ones((3, 3)))
    found = []
    for k in range(1, count + 1):
        inside = labels == k
        found.append((int(inside.sum()), prob[inside].mean(), pred[inside].mean(), *np.nonzero(inside)))
    return found


def test_blobs_of_the_pictures_equal_scipy(sets, judged, honest):
    members = [{"name": name, "oof": frame.sample(frac=1, random_state=5)} for name, frame in sets.items()]
    maps, positive = open_honest(judged, members, read_map), judged["tiles"]["positive"].to_numpy()
    scan = scan_maps(maps, RATIOS, positive, 4)
    false, missed = [], []
    for place, (logit, valid, target, heat, post) in enumerate(honest):
        prob = expit(logit / heat)
        pred = (prob > post["balanced"]) & valid
        if positive[place]:
            blobs = slow_blobs(target & valid, prob, pred)
            least = min(blobs, key=lambda one: (max(one[2], LEAST_FOUND), -one[0]))
            missed += [(place, least)] if least[2] < HALF_FOUND else []
        elif pred.any():
            false.append((place, max(slow_blobs(pred, prob, pred), key=lambda one: one[1])))
    false.sort(key=lambda one: -one[1][1])
    missed.sort(key=lambda one: (max(one[1][2], LEAST_FOUND), -one[1][0]))
    assert len(false) > 4 and 4 < len(missed) < positive.sum(), "one blob is found by more than half"
    for found, wanted in ((scan["false"], false), (scan["missed"], missed)):
        assert len(found) == 4
        for blob, (place, (pixels, prob, share, rows, columns)) in zip(found, wanted, strict=False):
            assert blob.place == place and blob.pixels == pixels
            assert blob.prob == pytest.approx(prob, abs=1e-5) and blob.found == pytest.approx(share)
            assert blob.box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    for name, found in scan["matches"].items():
        assert len(found) == TILES and found[0].iou == (BLOB_IOU,)
        for (logit, valid, target, heat, post), one in zip(honest, found, strict=True):
            limits = {"raw": 0.5, "outlines": post["balanced"]}
            limit = limits[name] if name in limits else post["ratios"][str(name)]["threshold"]
            heat = 1 if name == "raw" else heat
            said = slow_blobs((expit(logit / heat) > limit) & valid, expit(logit), target)
            assert sorted(one.pred_area) == sorted(blob[0] for blob in said)


def test_blobs_found_whole_are_not_missed(sets, judged, tmp_path, undrawn):
    """The truth itself as the map: no blob is missed, and the report says so."""

    def read(path):
        logit, valid, target = read_map(path)
        return np.where(target == 1, 30, -30).astype(np.float32), valid, target

    members = [{"name": name, "oof": frame} for name, frame in sets.items()]
    scan = scan_maps(open_honest(judged, members, read), RATIOS, judged["tiles"]["positive"].to_numpy(), 4)
    assert scan["missed"] == [] and scan["false"] == []
    write(tmp_path / "r.html", sets, judged, read_map=read)
    assert "None missed: of every true blob" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_large_blobs_come_first_among_the_missed():
    blobs = [
        Blob(0, (0, 0, 1, 1), pixels, 0.5, found) for pixels, found in ((10, 0), (900, 0.7), (300, 0.05), (9, 0.4))
    ]
    assert [blob.pixels for blob in sorted(blobs, key=by_found)] == [300, 10, 9, 900]


def test_least_blobs_are_left_out(sets):
    judgement = judge(make_rows(), sets, read_map=read_map, ratios=RATIOS, main_ratio=200, min_blob=9)
    maps = open_honest(judgement, [{"name": n, "oof": f} for n, f in sets.items()], read_map)
    assert maps.cut(0, None).min_blob == 9 and maps.cut(0, None).temperature == 1
    scan = scan_maps(maps, RATIOS, judgement["tiles"]["positive"].to_numpy(), TILES)
    areas = np.concatenate([one.pred_area for found in scan["matches"].values() for one in found])
    assert areas.size and areas.min() >= 9
    assert min(blob.pixels for blob in scan["false"] + scan["missed"]) >= 9


def test_windows_hold_their_box():
    rng = np.random.default_rng(0)
    for _ in range(500):
        shape = rng.integers(20, 900, 2)
        top, left = rng.integers(0, shape)
        bottom, right = top + 1 + rng.integers(0, shape[0] - top), left + 1 + rng.integers(0, shape[1] - left)
        rows, columns = window_of((top, left, bottom, right), tuple(shape))
        assert 0 <= rows.start <= top and bottom <= rows.stop <= shape[0]
        assert 0 <= columns.start <= left and right <= columns.stop <= shape[1]
        side = max(160, 1.6 * max(bottom - top, right - left))
        for part, length in ((rows, shape[0]), (columns, shape[1])):
            assert abs(part.stop - part.start - min(side, length)) <= 1
    assert window_of((300, 300, 320, 320), (700, 700)) == (slice(230, 390), slice(230, 390))


def cards_of(text):
    """[(tile, note)] and pictures [(kind, content, words)] of the page."""
    cards = re.findall(r'<div class="identity"><span><b>(.*?)</b> .*?</span><span>(.*?)</span>', text)
    return cards, re.findall(r'<img src="data:image/(\w+);base64,([^"]+)" .*? alt="(.*?)">', text)


def test_pictures_show_the_tiles_as_they_are(made, judged, honest):
    cards, pictures = cards_of(made[1])
    assert len(cards) == 6 and len(pictures) == 30  # 2 false, 2 missed, 2 best
    tiles = judged["tiles"].set_index("id")
    names = [name for name, _ in cards]
    assert not tiles.loc[names[:2], "positive"].any() and tiles.loc[names[2:], "positive"].all()
    order = tiles["iou"][tiles["positive"]].sort_values(ascending=False)
    assert names[4:] == list(order.index[:2]) and cards[4][1] == f"IoU {order.iloc[0]:.3f}"
    assert cards[2][1].endswith("0 % found") and "mean probability ." in cards[0][1]
    for k, name in enumerate(names):
        parts = pictures[5 * k : 5 * k + 5]
        assert [words for *_, words in parts] == [
            f"Tile {name}, {part}" for part in ("image", "truth", "probability", "mask", "error")
        ]
        logit, valid, target, heat, post = honest[int(name[-2:])]
        pred, target = ((expit(logit / heat) > post["balanced"]) & valid).astype(int), (target & valid).astype(int)
        _, truth, prob, mask, error = [decoded(content) for _, content, _ in parts]
        assert np.array_equal(truth, class_picture(target, OUTPUTS, valid))
        assert np.array_equal(mask, class_picture(pred, OUTPUTS, valid))
        assert np.array_equal(error, error_picture(target, pred, valid))
        assert np.abs(prob.astype(int) - probability_picture(logit / heat, valid, NODATA)).max() <= 1


def decoded(content):
    return cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_a_blob_is_shown_in_its_window(sets, judged, tmp_path, undrawn, monkeypatch):
    monkeypatch.setattr(detection_pictures, "window_of", lambda box, shape: (slice(4, 30), slice(7, 20)))
    path = tmp_path / "r.html"
    write(path, sets, judged)
    shapes = [decoded(content).shape[:2] for *_, content, _ in cards_of(path.read_text())[1]]
    assert shapes == [(26, 13)] * 20 + [(SIZE, SIZE)] * 10


def test_object_curves_equal_a_plain_loop():
    rng, matches = np.random.default_rng(3), []
    for _ in range(12):
        pred, target = (gaussian_filter(rng.normal(size=(2, 40, 40)), (0, 2, 2)) > 0.1).astype(bool)
        shift = np.roll(pred, 1, axis=1)
        matches.append(match_objects(pred, shift | (target & (rng.random() > 0.5)), rng.random((40, 40)), iou=(0.3,)))
    weights = np.where(np.arange(12) % 2, 3.5, 1.0)
    recall, precision = object_curves({7: matches}, {7: weights}, [7], 0.3)[7]
    scores = np.concatenate([one.pred_score for one in matches])
    wanted = []
    total = sum(w * one.n_target for w, one in zip(weights, matches, strict=True))
    for limit in np.sort(scores)[::-1]:
        kept = [one.pred_score >= limit for one in matches]
        hits = sum(w * one.matched[0][k].sum() for w, one, k in zip(weights, matches, kept, strict=True))
        wanted.append((hits / total, hits / sum(w * k.sum() for w, k in zip(weights, kept, strict=True))))
    corners = np.array([recall, precision]).T[1::2]
    assert 0 < recall[-1] < 1 and np.allclose(corners[-1], wanted[-1])
    far = [np.abs(np.subtract(corners, point)).max(1).min() for point in wanted]
    assert max(far) <= 1 / 500
    assert recall[0] == 0 and ((np.diff(recall) == 0) | (np.diff(precision) == 0)).all()  # steps
    area = (np.diff(np.append(0, corners[:, 0])) * corners[:, 1]).sum()
    exact = (np.diff(np.append(0, [r for r, _ in wanted])) * [p for _, p in wanted]).sum()
    assert area == pytest.approx(exact, abs=3e-3)


def test_object_curves_without_a_blob():
    nothing = match_objects(np.zeros((4, 4), bool), np.eye(4) > 0, np.zeros((4, 4)))
    assert object_curves({5: [nothing]}, {5: np.ones(1)}, [5], 0.3) == {5: ([], [])}


def test_three_object_curves_and_their_marks(drawn, sets, judged, tmp_path):
    """Raw, at the threshold, and whole blobs, where the mark is what the honest limit keeps."""
    write(tmp_path / "r.html", sets, judged)
    panels = [one.axes[0] for one in drawn if one.axes[0].get_xlabel() == "recall"][1:]
    frame = judged["tables"]["object"]
    assert len(panels) == 3
    for axis, at in zip(panels, ("raw .5", "threshold", "blobs"), strict=True):
        wanted = frame[(frame["at"] == at) & (frame["iou"] == 0.3)]
        marks = [line.get_data() for line in axis.get_lines() if line.get_marker() != "None"]
        assert np.ravel(marks) == pytest.approx(wanted[["recall", "precision"]].to_numpy().ravel(), abs=1e-6)
    tables = judged["tables"]
    lines = tables["thresholds"].drop(columns="blob")
    page = write(tmp_path / "r.html", sets, judged | {"tables": tables | {"thresholds": lines}})
    assert "Limits of whole blobs" not in page.text and "whole blobs, kept" not in page.text


def test_histogram_of_a_set(sets):
    hist, positives, negatives = set_histogram(sets["unet"])
    assert (positives, negatives) == (6, 12) and hist.shape == (2, 2, BINS)
    for inside in (0, 1):
        for truth in (0, 1):
            count = 0
            for path in sets["unet"]["prob"]:
                _, valid, target = read_map(path)
                count += ((target[valid] == truth).sum()) * (bool(target[valid].any()) == inside)
            assert hist[inside, truth].sum() == count


def slow_average(frame, ratio):
    """Average precision of a set's pixels at a ratio by scikit-learn."""
    truth, logits, weights = [], [], []
    for path in frame["prob"]:
        logit, valid, target = read_map(path)
        target = target[valid]
        truth.append(target)
        logits.append(logit[valid])
        weights.append(np.full(len(target), 1.0 if target.any() else ratio * 6 / 12))
    truth, logits, weights = map(np.concatenate, (truth, logits, weights))
    return average_precision_score(truth, logits, sample_weight=weights)


def test_pr_curve_equals_sklearn(sets, tmp_path, monkeypatch):
    drawn, whole = [], detection_figures.picture_bytes
    monkeypatch.setattr(detection_figures, "picture_bytes", lambda d, **k: drawn.append(d) or whole(d, **k))
    path = draw_pr_curve(sets["mit"], tmp_path / "pr_curve.png", ratios=(1, 200, 500), title="fold 0")
    assert path.read_bytes().startswith(b"\x89PNG")
    axis = drawn[0].axes[0]
    words = [text.get_text() for text in axis.get_legend().get_texts()]
    assert drawn[0].get_suptitle() == "fold 0: 6 tiles with the class, 12 without"
    for ratio, text, line in zip((1, 200, 500), words, axis.get_lines(), strict=True):
        wanted = slow_average(sets["mit"], ratio)
        assert text == f"1:{ratio}, AP {wanted:.3f}".replace("0.", ".")
        recall, precision = line.get_data()
        area = np.trapezoid(precision, recall) + recall[0] * precision[0]
        assert area == pytest.approx(wanted, abs=0.01)
    assert {line.get_color() for line in axis.get_lines()} == {colour(f"c{k}") for k in range(3)}


@pytest.mark.parametrize("inside, lines", [(True, 1), (False, 0)])
def test_pr_curve_of_one_side(sets, tmp_path, monkeypatch, inside, lines):
    """Without negatives only 1:1 can be told; without positives nothing, and the picture says so."""
    drawn, whole = [], detection_figures.picture_bytes
    monkeypatch.setattr(detection_figures, "picture_bytes", lambda d, **k: drawn.append(d) or whole(d, **k))
    some = sets["unet"][(sets["unet"]["n_1_0"] + sets["unet"]["n_1_1"] > 0) == inside]
    draw_pr_curve(some, tmp_path / "p.jpg")
    axis = drawn[0].axes[0]
    assert len(axis.get_lines()) == lines
    assert [text.get_text() for text in axis.texts] == [] if inside else ["no tile has a pixel of the class"]


def test_pr_curve_needs_maps(sets, tmp_path):
    with pytest.raises(InputError, match="counts only"):
        draw_pr_curve(sets["unet"].drop(columns="prob"), tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()


def test_pixel_curves_without_negative_tiles(sets):
    hist, positives, _ = set_histogram(sets["unet"])
    assert list(pixel_curves(hist, (1, 200), positives, 0)) == [1]


def test_marks_lie_where_the_masks_are(drawn):
    curves = {"a": ([0, 1], [1, 0.5]), "b": ([0, 0.5], [0.9, 0.1])}
    curves_figure(curves, {"b": (0.4, 0.3), "a": (np.nan, 0.2)}, "n", title="t", target=0.75)
    lines = drawn[0].axes[0].get_lines()
    assert [line.get_ydata()[0] for line in lines] == [0.75, 1, 0.9, 0.3] and lines[3].get_xdata() == [0.4]
    assert lines[3].get_color() == lines[2].get_color() != lines[1].get_color()


def threshold_lines(**changes):
    table = {"ratio": [200.0, 500.0], "target": 0.8, "reachable": [True, False], "threshold": [0.9, 0.99]}
    table |= {"precision": [0.8, 0.5], "recall": [0.7, 0.4], "honest precision": [0.75, np.nan]}
    table |= {"honest recall": [0.6, np.nan], "lowest": [0.8, 0.9], "highest": [0.95, 0.999]}
    return pd.DataFrame(table | changes)


def test_marks_are_hollow_where_not_reachable(drawn):
    thresholds_figure(threshold_lines(), "n")
    reached, odds = (drawing.axes[0] for drawing in drawn)
    marks = [line for line in reached.get_lines() if line.get_linestyle() == "None"]
    faces = [(line.get_xdata().tolist(), line.get_markerfacecolor() == colour("paper")) for line in marks]
    assert faces == [([0], False), ([1], True)] * 4
    assert reached.get_lines()[0].get_ydata()[0] == 0.8
    assert [tick.get_text() for tick in reached.get_xticklabels()] == ["1:200", "1:500"]
    assert odds.get_lines()[0].get_ydata() == pytest.approx(np.log([9, 99]))
    ends = [segment[:, 1] for segment in odds.collections[0].get_segments()]
    assert np.allclose(ends, [np.log([4, 19]), np.log([9, 999])])


def test_reliability_points(drawn):
    table = pd.DataFrame({"prob": [0.01, 0.5], "share": [0.02, 0.4], "weight": [9.0, 1.0]})
    reliability_figures({"Before": table, "After": table.assign(share=0.1)}, "n")
    lines = [drawing.axes[0].get_lines() for drawing in drawn]
    assert [list(line[0].get_data()[1]) for line in lines] == [[0, 1], [0, 1]]
    assert lines[0][1].get_xdata().tolist() == [0.01, 0.5] and lines[0][1].get_ydata().tolist() == [0.02, 0.4]
    assert lines[1][1].get_ydata().tolist() == [0.1, 0.1]


def test_probabilities_keep_their_digits():
    said = [probability(p) for p in (0.5, 0.7826, 0.9999878, 1 - 3e-10, 0.00123, 3e-12, None, np.nan)]
    assert said == [".500", ".783", ".999988", "1 − 3e−10", ".0012", "3e−12", None, None]


def test_colours_of_probability_grow_lighter():
    odds = np.linspace(-MOST_ODDS - 2, MOST_ODDS + 2, 200, dtype=np.float32)[None]
    valid = np.ones(odds.shape, bool)
    valid[0, 5] = False
    picture = probability_picture(odds, valid, NODATA)
    light = picture[0] @ [0.2126, 0.7152, 0.0722]
    assert tuple(picture[0, 5]) == rgb(NODATA)
    assert (np.diff(np.delete(light, 5)) >= 0).all() and light[-1] - light[0] > 150
    assert np.array_equal(picture[0, 0], picture[0, 10]) and not np.array_equal(picture[0, 60], picture[0, 100])


def test_unreachable_precision_is_said(undrawn, sets, judged, tmp_path):
    tables = judged["tables"]
    lines = tables["thresholds"].assign(reachable=[True, False], reachable_parts=["3 of 3", "1 of 3"])
    page = write(tmp_path / "r.html", sets, judged | {"tables": tables | {"thresholds": lines}})
    assert "At 1:500 no threshold has a precision of .75; the one of the best F0.5 is given." in page.text
    assert "A hollow mark" in page.text
    assert [line["Reachable"] for line in page.table("Ratio", holding="Threshold")] == ["yes", "no"]


def test_one_region_is_said_to_flatter(undrawn, sets, tmp_path):
    rows = make_rows(regions=1)
    judgement = judge(rows, {"unet": sets["unet"]}, read_map=read_map, ratios=RATIOS)
    one = {"unet": sets["unet"]}
    page = write(tmp_path / "r.html", one, judgement, rows=rows, gates=None, findings=None, settings=None)
    assert "with half of the tiles left out" in page.text
    assert "its tiles are halved" in page.text and 'class="notice warn"' in (tmp_path / "r.html").read_text()
    for words in ("There is one member, so nothing is blended", "No gates were asked for",
                  "was not checked in this run", "came without settings", "No bootstrap interval"):  # fmt: skip
        assert words in page.text, words


def test_tiles_with_the_class_alone(sets, tmp_path):
    """Nothing can be told of realistic ratios; the rest stands, drawings too."""
    some = {"unet": sets["unet"][make_rows().index % 3 == 0].reset_index(drop=True)}
    judgement = judge(make_rows(), some, read_map=read_map, ratios=RATIOS)
    page = write(tmp_path / "r.html", some, judgement)
    assert page.text.count("no tile is without the class") == 2
    assert "6 tiles with scar, 0 without" in page.text and "No blob is predicted in the 0 tiles" in page.text


def test_absent_pictures_are_said(undrawn, sets, judged, tmp_path):
    path = tmp_path / "r.html"
    assert "a reader of tiles and the names of their bands" in write(path, sets, judged, read_picture=None).text
    assert "none were asked for" in write(path, sets, judged, pictures=0).text

    def broken(row):
        raise InputError(f"{row['id']}.tif: cut off")

    page = write(path, sets, judged, read_picture=broken)
    assert page.text.count("The tile cannot be shown: tile_") == 6
    page = write(path, sets, judged, read_picture=lambda row: np.ones((3, 9, 9)))
    assert page.text.count("its image is (9, 9), its map (48, 48)") == 6


def test_names_cannot_break_the_page(undrawn, sets, judged, tmp_path):
    rows = make_rows().assign(group=EVIL)
    page = write(
        tmp_path / "r.html", sets, judged, rows=rows, title=EVIL, outputs=("background", EVIL), findings=[EVIL]
    )
    assert "script" not in {tag for tag, _ in page.tags} and page.text.count("alert('x')") > 10


@pytest.mark.parametrize(
    "change, message",
    [
        ({"outputs": ("a", "b", "c")}, "3 outputs"),
        ({"rows": make_rows().drop(columns="group")}, "lack the column group"),
        ({"rows": make_rows().iloc[1:]}, "no row of the tile tile_00"),
    ],
)
def test_what_does_not_belong_is_an_error(sets, judged, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "r.html", sets, judged, **change)
    assert not list(tmp_path.iterdir())


def test_members_must_have_the_maps(sets, judged, tmp_path):
    given = arguments(sets, judged)["members"]
    bare = [given[0], given[1] | {"oof": given[1]["oof"].drop(columns="prob")}]
    short = [given[0], given[1] | {"oof": sets["mit"].iloc[:-1]}]
    for members, message in ((bare, "mit has counts only"), (short, "lacks the tile tile_17"),
                             (given[:1], "the member mit, whose set is not given")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            write(tmp_path / "r.html", sets, judged, members=members)
    with pytest.raises(InputError, match="lacks nested"):
        write(tmp_path / "r.html", sets, {name: part for name, part in judged.items() if name != "nested"})


def test_tables_hold_what_was_judged(made, judged):
    page, _ = made
    pixels = page.table("Ratio", holding="F0.5")
    for line, known in zip(pixels, judged["tables"]["pixel"].to_dict("records"), strict=True):
        assert line["Ratio"] == f"1:{known['ratio']:g}" and line["Mask"] == known["at"]
        assert value(line["IoU"]) == pytest.approx(known["iou"], abs=6e-5)
        assert value(line["F0.5"]) == pytest.approx(known["f0.5"], abs=6e-4)
    objects = page.table("Ratio", holding="True blobs")
    for line, known in zip(objects, judged["tables"]["object"].to_dict("records"), strict=True):
        assert line["Mask"] == known["at"] and value(line["IoU ≥"]) == known["iou"]
        shown = line["Precision"]
        assert (
            shown == DASH
            if np.isnan(known["precision"])
            else value(shown) == pytest.approx(known["precision"], abs=6e-4)
        )
        assert int(line["Predicted blobs"]) == known["predicted"]
    calibration = page.table("Left out")
    assert [line["Left out"] for line in calibration] == ["region 0", "region 1", "region 2", "all"]
    for line, known in zip(calibration, judged["tables"]["calibration"].to_dict("records"), strict=True):
        assert value(line["NLL before"]) == pytest.approx(known["nll_before"], abs=6e-6)
    tiles = page.table("Tile")
    wrong = (judged["tiles"]["false"] + judged["tiles"]["missed"]).sort_values(ascending=False)
    assert len(tiles) == 12 and "The other 6 tiles" in page.text
    assert [int(line["False, pixels"]) + int(line["Missed, pixels"]) for line in tiles] == wrong.iloc[:12].tolist()
    assert [line["set"] for line in page.table("set")] == ["unet", "mit", "blend of all"]
