"""The judge of ordered classes: scikit-learn's and scipy's numbers, nothing of a part in what it is judged by."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from sklearn import metrics as sk

from common.errors import InputError
from common.metrics.ordered_scores import bin_values, ranked_histogram
from common.metrics.ordinal import RateCurve, rate_curve, spearman, value_histogram
from common.metrics.segmentation import confusion, count_row
from common.outputs.masks import read_probs, write_probs
from common.post import ordered_judge
from common.post.ordered_tables import area_table, thinned_curve
from common.post.susceptibility import calibrated, fit_temperature

SIZE, TILES = 32, 8
NAMES = {3: ("low", "medium", "high"), 2: ("background", "slide")}


def write_sets(folder, classes=3, noise=(0.7, 1.2), sure=2.0, seed=0):
    """(rows, sets, truths): members that see a smooth field through noise, and say so too surely."""
    rng = np.random.default_rng(seed)
    centre = np.array([0, 1.0, 1.8])[:classes, None, None]
    sets, truths = {f"m{j}": [] for j in range(len(noise))}, {}
    for i in range(TILES):
        field = gaussian_filter(rng.normal(size=(SIZE, SIZE)), 4)
        field /= field.std()
        target = np.digitize(field, [0.7, 1.2] if classes == 3 else [0.8]).astype(np.uint8)
        valid = np.ones((SIZE, SIZE), bool)
        valid[:3] = False
        target[:3] = 255
        for j, amount in enumerate(noise):
            seen = field + gaussian_filter(rng.normal(size=(SIZE, SIZE)), 1) * 3 * amount
            logits = -sure * (seen - centre) ** 2 - np.array([0, 1.0, 0.3])[:classes, None, None]
            prob = np.exp(logits - logits.max(0))
            prob = (prob / prob.sum(0)).astype(np.float32)
            path = write_probs(folder / f"m{j}_{i}.npz", prob, valid=valid, target=target)
            counts = confusion(target, prob.argmax(0), valid, classes)
            sets[f"m{j}"].append({"id": f"t{i}", "fold": i % 2, "prob": str(path)} | count_row(counts, 3 * SIZE))
        truths[f"t{i}"] = (target, valid)
    rows = pd.DataFrame({"id": list(truths), "group": [f"g{i // 2}" for i in range(TILES)]})
    return rows, {name: pd.DataFrame(lines) for name, lines in sets.items()}, truths


def reads(truths, classes=3):
    return {"outputs": NAMES[classes], "read_target": lambda row: truths[row["id"]]}


SETTINGS = {"kind": "weights", "seed": 0, "morphology": {}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("maps"))


@pytest.fixture(scope="module")
def judged(data):
    rows, sets, truths = data
    return ordered_judge.judge(rows, sets, **reads(truths), **SETTINGS)


def pixels(judgement, sets, truths, read):
    """Every valid pixel's truth and read(row, honest prob), tile by tile."""
    truth, said, likely = [], [], []
    for index, row in judgement["rows"].iterrows():
        target, valid = truths[row["id"]]
        weights = judgement["nested"][index]["weights"]
        paths = (frame.set_index("id").loc[row["id"], "prob"] for frame in sets.values())
        prob = sum(w * read_probs(path) for w, path in zip(weights, paths, strict=True))
        truth.append(target[valid])
        said.append(read(row, prob)[valid])
        likely.append(prob[:, valid])
    return np.concatenate(truth), np.concatenate(said), np.concatenate(likely, 1)


def test_scores_of_the_masks_are_those_of_scikit_learn(data, judged):
    _, sets, truths = data
    truth, pred, _ = pixels(judged, sets, truths, lambda row, _: judged["read_pred"](row))
    found = judged["metrics"]
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(truth, pred), abs=1e-12)
    assert found["kappa"] == judged["scores"]["honest"] and judged["metric"].key == "kappa"
    assert found["quadratic_kappa"] == pytest.approx(sk.cohen_kappa_score(truth, pred, weights="quadratic"), abs=1e-12)
    assert found["linear_kappa"] == pytest.approx(sk.cohen_kappa_score(truth, pred, weights="linear"), abs=1e-12)
    each = {
        "precision": sk.precision_score(truth, pred, average=None),
        "recall": sk.recall_score(truth, pred, average=None),
        "f1": sk.f1_score(truth, pred, average=None),
        "iou": sk.jaccard_score(truth, pred, average=None),
    }
    for measure, values in each.items():
        assert [found[f"{measure}_{name}"] for name in NAMES[3]] == pytest.approx(values.tolist(), abs=1e-12)
    assert found["mean_iou"] == pytest.approx(each["iou"].mean(), abs=1e-12)


def test_ranking_is_that_of_the_honest_blend(data, judged):
    _, sets, truths = data
    truth, said, likely = pixels(judged, sets, truths, lambda _, prob: 0.5 * prob[1] + prob[2])
    found = judged["metrics"]
    assert found["rho"] == pytest.approx(spearmanr(truth, said).statistic, abs=1e-4)
    for k, name in enumerate(NAMES[3]):
        assert found[f"ap_{name}"] == pytest.approx(sk.average_precision_score(truth == k, likely[k]), abs=1e-4)
        if k:
            assert found[f"auroc_{name}"] == pytest.approx(sk.roc_auc_score(truth >= k, said), abs=1e-4)
    assert 0.5 < found["rho"] < 0.95
    assert judged["hist"].sum() == TILES * (SIZE - 3) * SIZE
    assert judged["hist"].sum(1).tolist() == np.bincount(truth).tolist()


def test_sure_maps_keep_their_order_near_0():
    """Most values below one bin of equal width: their order still counts."""
    rng = np.random.default_rng(0)
    values = 10 ** rng.uniform(-7, 0, 20_000)
    truth = (np.log10(values) + 6 + rng.normal(0, 2, len(values)) > 0).astype(int) + (rng.random(len(values)) < values)
    rho = spearmanr(truth, values).statistic
    assert spearman(ranked_histogram(values, truth, None, classes=3)) == pytest.approx(rho, abs=1e-4)
    assert abs(spearman(value_histogram(values, truth, None, classes=3)) - rho) > 0.01
    bins = np.flatnonzero(ranked_histogram(np.array([0.0, 1e-6, 0.3, 1.0]), np.zeros(4, int), None, classes=1)[0])
    np.testing.assert_allclose(bin_values()[bins], [0, 1e-6, 0.3, 1], rtol=2e-3, atol=1e-12)


def test_neither_thresholds_nor_refinement_touch_the_ranking(data, judged):
    rows, sets, truths = data

    def refine(row):
        return lambda prob, valid: prob ** np.array([4, 1, 1])[:, None, None]

    other = ordered_judge.judge(rows, sets, **reads(truths), **SETTINGS, thresholds=False, refine=refine)
    ranked = ["rho", "auroc_medium", "auroc_high", "ap_low", "ap_medium", "ap_high", "ece_raw", "ece_isotonic"]
    assert {name: other["metrics"][name] for name in ranked} == {name: judged["metrics"][name] for name in ranked}
    assert abs(other["metrics"]["kappa"] - judged["metrics"]["kappa"]) > 0.005


def test_calibration_of_a_part_knows_nothing_of_it(data, judged):
    """With the truths of one group turned round its own line is judged by the same temperature, the others' are not."""
    rows, sets, truths = data
    turned = truths | {
        name: (np.where(truths[name][1], 2 - truths[name][0], 255), truths[name][1]) for name in ("t0", "t1")
    }
    other = ordered_judge.judge(rows, sets, **reads(turned), **SETTINGS)
    before, after = (one["tables"]["susceptibility"].set_index("left out") for one in (judged, other))
    assert after.loc["g0", "temperature"] == pytest.approx(before.loc["g0", "temperature"], abs=1e-9)
    assert (after.loc[["g1", "g2", "g3"], "temperature"] > 1.2 * before.loc[["g1", "g2", "g3"], "temperature"]).all()
    assert after.loc["g0", "ece_isotonic"] > 0.2


def test_calibration_lowers_the_error_and_equals_the_plain_way(data, judged):
    """The line of a part: what was fitted on the others, written out pixel by pixel."""
    _, sets, truths = data
    table = judged["tables"]["susceptibility"].set_index("left out")
    assert table.loc["all", "ece_isotonic"] < 0.5 * table.loc["all", "ece_raw"]
    assert table.loc["all", "pixels"] == table["pixels"].iloc[:-1].sum() == TILES * (SIZE - 3) * SIZE
    assert judged["metrics"]["ece_raw"] == table.loc["all", "ece_raw"]
    truth, said, likely = pixels(judged, sets, truths, lambda _, prob: 0.5 * prob[1] + prob[2])
    part = np.repeat(np.arange(TILES) // 2, (SIZE - 3) * SIZE)
    mine, error = part == 2, truth / 2 - said
    assert table.loc["g2", "mse_raw"] == pytest.approx(np.mean(error[mine] ** 2), abs=1e-4)
    cell = np.minimum((said * 15).astype(int), 14)
    assert table.loc["all", "ece_raw"] == pytest.approx(np.abs(np.bincount(cell, error)).sum() / len(said), abs=1e-3)
    heated = calibrated(likely[:, mine], {"temperature": table.loc["g2", "temperature"]}, "temperature")
    assert table.loc["g2", "mse_temperature"] == pytest.approx(np.mean((truth[mine] / 2 - heated) ** 2), abs=1e-3)
    raw = judged["reliability"]["raw"]
    assert raw["weight"].sum() == len(said) and np.average(raw["prob"], weights=raw["weight"]) == pytest.approx(
        said.mean(), abs=1e-4
    )


def test_calibration_of_a_part_is_fitted_on_the_blend_it_is_judged_with(data, judged):
    _, sets, truths = data
    table, part = judged["tables"]["susceptibility"].set_index("left out"), np.repeat(np.arange(TILES) // 2, 29 * SIZE)
    found = []
    for p in range(4):
        alike = judged | {"nested": [judged["nested"][2 * p]] * TILES}
        truth, _, likely = pixels(alike, sets, truths, lambda _, prob: prob[0])
        others = part != p
        found.append(fit_temperature(likely[:, others].T, truth[others], np.ones(others.sum())))
    assert table["temperature"].iloc[:4].tolist() == pytest.approx(found, rel=3e-5)


def test_post_of_one_set_is_plain_and_that_of_a_blend_of_one(data):
    rows, sets, truths = data
    one = {"m0": sets["m0"]}
    post = ordered_judge.fit_post(rows, sets["m0"], **reads(truths))
    assert set(post) == {"thresholds", "isotonic", "temperature"}
    assert json.loads(json.dumps(post)) == post and len(post["isotonic"]["x"]) <= 64
    blend = ordered_judge.judge(rows, one, **reads(truths), **SETTINGS)["blend"]
    json.dumps(blend)
    assert blend["post"]["temperature"] == pytest.approx(post["temperature"], rel=1e-4)
    assert blend["post"]["isotonic"] == post["isotonic"]
    assert blend["post"]["thresholds"] == post["thresholds"]


def test_order_of_rows_and_files_decides_nothing(data, judged):
    rows, sets, truths = data
    turned = {name: frame.iloc[::-1].reset_index(drop=True) if name == "m1" else frame for name, frame in sets.items()}
    other = ordered_judge.judge(rows.iloc[::-1], turned, **reads(truths), **SETTINGS)
    assert other["metrics"] == judged["metrics"]
    pd.testing.assert_frame_equal(other["tables"]["area"], judged["tables"]["area"])


def test_two_classes(tmp_path):
    rows, sets, truths = write_sets(tmp_path, 2)
    found = ordered_judge.judge(rows, sets, **reads(truths, 2), **SETTINGS)
    truth, pred, likely = pixels(found, sets, truths, lambda row, _: found["read_pred"](row))
    assert found["metrics"]["kappa"] == pytest.approx(sk.cohen_kappa_score(truth, pred), abs=1e-12)
    assert found["metrics"]["quadratic_kappa"] == pytest.approx(found["metrics"]["kappa"], abs=1e-12)
    assert found["metrics"]["auroc_slide"] == pytest.approx(sk.roc_auc_score(truth, likely[1]), abs=1e-4)
    assert list(found["curves"]["prediction rate"]) == ["slide"]
    table = ordered_judge.compare(rows, sets, **reads(truths, 2))
    assert table.columns[1:5].tolist() == ["kappa", "precision_slide", "recall_slide", "rho"]


def test_curve_is_thin_and_the_same(data, judged):
    curve, whole = judged["curves"]["prediction rate"]["high"], rate_curve(judged["hist"], at_least=2)
    assert len(curve.area) <= 400 < len(whole.area) and curve.auc == whole.auc
    assert (curve.area[0], curve.found[0], curve.area[-1], curve.found[-1]) == (0, 0, 1, 1)
    assert np.abs(np.interp(whole.area, curve.area, curve.found) - whole.found).max() < 0.006
    nothing = RateCurve(np.linspace(0, 1, 1000), np.full(1000, np.nan), np.nan)
    assert len(thinned_curve(nothing).area) <= 400


COUNTS = np.array([[90_000, 900, 1500], [1200, 700, 300], [2000, 400, 9000]])


def test_area_table_against_the_whole_map():
    table = area_table(COUNTS, NAMES[3], seed=3).set_index(["estimate", "class"])
    whole = table["all pixels"]
    assert whole["overall", ""] == pytest.approx(np.trace(COUNTS) / COUNTS.sum())
    assert whole["users"].tolist() == pytest.approx((np.diag(COUNTS) / COUNTS.sum(0)).tolist())
    assert whole["producers"].tolist() == pytest.approx((np.diag(COUNTS) / COUNTS.sum(1)).tolist())
    assert whole["share"].tolist() == pytest.approx((COUNTS.sum(1) / COUNTS.sum()).tolist())
    assert table.loc["share", "mapped"].tolist() == pytest.approx((COUNTS.sum(0) / COUNTS.sum()).tolist())
    assert (table["value"] != table["all pixels"]).any() and (table["low95"] < table["value"]).all()


def test_area_intervals_hold_the_truth_as_often_as_they_say():
    held = []
    for seed in range(300):
        table = area_table(COUNTS, NAMES[3], seed=seed)
        held.append(table["all pixels"].between(table["low95"], table["high95"]))
    rate = np.mean(held, 0)
    assert (rate > 0.88).all() and 0.92 < rate.mean() < 0.98


def test_a_class_of_few_mapped_pixels_is_taken_whole():
    counts = COUNTS.copy()
    counts[:, 1] = [40, 50, 10]
    table = area_table(counts, NAMES[3], seed=0).set_index(["estimate", "class"])
    assert table.loc[("users", "medium"), "value"] == 0.5
    assert area_table(counts, NAMES[3], seed=0).equals(area_table(counts, NAMES[3], seed=0))
    assert not area_table(counts, NAMES[3], seed=0).equals(area_table(counts, NAMES[3], seed=1))


def test_compare_puts_the_gates_first_and_agrees_with_scikit_learn(data):
    rows, sets, truths = data
    table = ordered_judge.compare(rows, sets, **reads(truths))
    assert table.columns[:5].tolist() == ["run", "kappa", "precision_medium", "recall_high", "rho"]
    assert table["run"].tolist() == ["m0", "m1"]
    truth = np.concatenate([target[valid] for target, valid in truths.values()])
    for line, frame in zip(table.to_dict("records"), sets.values(), strict=True):
        prob = np.concatenate(
            [read_probs(p)[:, truths[t][1]] for t, p in zip(frame["id"], frame["prob"], strict=True)], 1
        )
        pred = prob.argmax(0)
        assert line["kappa"] == pytest.approx(sk.cohen_kappa_score(truth, pred), abs=1e-12)
        assert line["recall_high"] == pytest.approx(sk.recall_score(truth == 2, pred == 2), abs=1e-12)
        assert line["rho"] == pytest.approx(spearmanr(truth, 0.5 * prob[1] + prob[2]).statistic, abs=1e-4)
    first, second = table.to_dict("records")
    assert np.isnan(first["against first"])
    assert second["against first"] == pytest.approx(second["kappa"] - first["kappa"], abs=1e-12)
    assert second["low95"] < second["against first"] < second["high95"] < 0


def test_compare_shows_the_refined_beside_the_plain(data):
    rows, sets, truths = data

    def refine(row):
        return lambda prob, valid: np.stack([0 * prob[0], 0 * prob[0], 1 + 0 * prob[0]])

    table = ordered_judge.compare(rows, sets, **reads(truths), refine=refine).set_index("run")
    assert table.index.tolist() == ["m0", "m0 + CRF", "m1", "m1 + CRF"]
    plain = ordered_judge.compare(rows, sets, **reads(truths)).set_index("run")
    pd.testing.assert_frame_equal(table.loc[["m0", "m1"]], plain)
    assert table.loc["m1 + CRF", "recall_high"] == 1 and table.loc["m1 + CRF", "kappa"] == 0
    assert table.loc["m1 + CRF", "rho"] == table.loc["m1", "rho"]


def test_compared_thresholds_are_fitted_without_the_part(data):
    rows, sets, truths = data
    fitted = ordered_judge.compare(rows, sets, **reads(truths), thresholds=True).set_index("run")
    plain = ordered_judge.compare(rows, sets, **reads(truths)).set_index("run")
    alone = ordered_judge.judge(rows, {"m1": sets["m1"]}, **reads(truths), **SETTINGS)
    assert fitted.loc["m1", "kappa"] == pytest.approx(alone["scores"]["honest"], abs=0.01)
    assert fitted.loc["m1", "kappa"] != plain.loc["m1", "kappa"]
    given = ordered_judge.compare(rows, sets, **reads(truths), thresholds=[0.4995, 0.4995, 0.001]).set_index("run")
    assert given.loc["m0", "recall_high"] > plain.loc["m0", "recall_high"] + 0.1


def test_one_set_is_judged_once(data):
    """A blend of one is that one: three masks of a tile are refined (fitted; honest without and with thresholds)."""
    rows, sets, truths = data
    asked = []

    def refine(row):
        def refined(prob, valid):
            asked.append(row["id"])
            return prob

        return refined

    one = ordered_judge.judge(rows, {"m0": sets["m0"]}, **reads(truths), **SETTINGS, refine=refine)
    assert len(asked) == 3 * TILES
    line = one["gains"].set_index("set").loc["m0"]
    assert line["none"] + line["both"] == pytest.approx(one["scores"]["honest"], abs=1e-12)


def test_compare_and_judge_say_the_same_of_a_set(data):
    """With the seed and the morphology of the call."""
    rows, sets, truths = data
    one, post = {"m1": sets["m1"]}, {"min_area": [9, 9], "fill_holes": 5}
    for seed in (0, 7):
        judged = ordered_judge.judge(rows, one, **reads(truths), kind="mean", seed=seed, morphology=post)
        line = ordered_judge.compare(rows, one, **reads(truths), thresholds=True, seed=seed, morphology=post).iloc[0]
        assert line["kappa"] == pytest.approx(judged["scores"]["honest"], abs=1e-12)
        plain = ordered_judge.compare(rows, one, **reads(truths), thresholds=True, seed=seed).iloc[0]
        assert plain["kappa"] != line["kappa"]


def test_one_group_is_compared_without_what_is_fitted(data):
    (rows, sets, truths), alone = data, data[0].assign(group="val")
    table, one = (ordered_judge.compare(some, sets, **reads(truths)) for some in (rows, alone))
    assert set(table) - set(one) >= {"low95", "high95"} and (one["kappa"] == table["kappa"]).all()
    assert one["against first"][1] == pytest.approx(table["against first"][1], abs=1e-12)
    with pytest.raises(InputError, match=r"one alone \(val\); say --thresholds argmax"):
        ordered_judge.compare(alone, sets, **reads(truths), thresholds=True)
