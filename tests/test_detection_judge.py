import json

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.special import expit, log_expit
from sklearn.metrics import average_precision_score

from common.errors import InputError
from common.metrics.gates import check_gates
from common.metrics.segmentation import confusion, count_row, counts_of
from common.post.detection_fit import balanced_iou, cut_of, fit_greedy
from common.post.detection_judge import bootstrap_difference, final_report, fit_post, judge
from common.post.detection_maps import Sample, cut_mask, mix_logits

SIDE = 48
RATIOS = (20, 50)


def smooth(rng, sigma):
    noise = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), sigma)
    return noise / noise.std()


class World:
    """Three regions of 5 tiles with blobs and 7 without; maps are truth plus noise, hot by a factor, some ignored."""

    def __init__(self, regions=("a", "b", "c"), positives=5, negatives=7, seed=3):
        rng = np.random.default_rng(seed)
        self.rng, self.maps, self.truth = rng, {}, {}
        lines = []
        for region in regions:
            for index in range(positives + negatives):
                name = f"{region}{index}"
                target = (smooth(rng, 3) > 1.6) & (index < positives)
                target[5:8, 5:8] |= index < positives
                valid = np.ones((SIDE, SIDE), bool)
                valid[: 4 + index % 3] = False
                self.truth[name] = (valid, target.astype(np.uint8))
                lines.append({"id": name, "group": region, "fold": 0})
        self.rows = pd.DataFrame(lines)

    def add(self, name, noise=1.0, heat=3.0, stranger=False, gain=4.0):
        lines = []
        for index, tile in enumerate(self.rows["id"]):
            valid, target = self.truth[tile]
            shown = self.truth[self.rows["id"][(index + 1) % len(self.rows)]][1] if stranger else target
            shown = shown if not stranger else np.roll(shown, 20, 0)
            logit = gain * shown - 5 + noise * (smooth(self.rng, 1.5) + self.rng.normal(size=shown.shape))
            path = f"{name}/{tile}"
            self.maps[path] = (heat * logit).astype(np.float16)
            counts = confusion(target, self.maps[path] > 0, valid, 2)
            lines.append({"id": tile, "fold": 0, **count_row(counts, 7), "prob": path})
        return pd.DataFrame(lines)

    def read(self, path):
        valid, target = self.truth[path.split("/")[1]]
        return self.maps[path].astype(np.float32), valid, target

    def judge(self, sets, **settings):
        settings = {"ratios": RATIOS, "main_ratio": 20, "min_blob": 3} | settings
        return judge(self.rows, sets, read_map=self.read, **settings)

    def pixels(self, frame, ids):
        """(logits, target, positive tile) of the valid pixels of tiles."""
        parts = []
        for path in frame.set_index("id").loc[ids]["prob"]:
            logit, valid, target = self.read(path)
            parts.append((logit[valid], target[valid], np.full(valid.sum(), target[valid].any())))
        return (np.concatenate(values) for values in zip(*parts, strict=True))


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def sets(world):
    return {"good": world.add("good"), "fair": world.add("fair", 1.5), "lost": world.add("lost", stranger=True)}


@pytest.fixture(scope="module")
def single(world, sets):
    return world.judge({"good": sets["good"]})


@pytest.fixture(scope="module")
def several(world, sets):
    return world.judge(sets)


def by_hand(judgement, world, frame, ratio):
    """(hits, false, missed) at the calibrated threshold of 1:ratio (1: balanced), tile by tile from nested."""
    rows, total = judgement["rows"], np.zeros(3)
    weight = ratio * 15 / 21
    for index, path in enumerate(frame.set_index("id").loc[rows["id"]]["prob"]):
        logit, valid, target = world.read(path)
        post = judgement["nested"][index]["post"]
        level = post["balanced"] if ratio == 1 else post["ratios"][str(ratio)]["threshold"]
        pred = (expit(logit.astype(float) / post["temperature"]) > level) & valid
        label, count = ndimage.label(pred, np.ones((3, 3)))
        small = np.flatnonzero(np.bincount(label.ravel(), minlength=count + 1) < 3)
        pred &= ~np.isin(label, small)
        truth = (target == 1) & valid
        found = np.array([(pred & truth).sum(), (pred & ~truth).sum(), (truth & ~pred).sum()])
        total += found * (1 if truth.any() else weight)
    return total


@pytest.mark.parametrize("ratio", [1, 20, 50])
def test_pixel_table_is_counted_by_hand(single, world, sets, ratio):
    hit, false, missed = by_hand(single, world, sets["good"], ratio)
    table = single["tables"]["pixel"]
    line = table[(table["ratio"] == ratio) & (table["set"] == "weighted") & (table["at"] == "threshold")].iloc[0]
    assert line["iou"] == pytest.approx(hit / (hit + false + missed))
    assert line["precision"] == pytest.approx(hit / (hit + false))
    assert line["recall"] == pytest.approx(hit / (hit + missed))
    logit, target, positive = world.pixels(sets["good"], single["ids"])
    weight = np.where(positive, 1, ratio * 15 / 21)
    assert line["ap"] == pytest.approx(average_precision_score(target, logit, sample_weight=weight), abs=2e-4)
    if ratio == 1:
        assert single["scores"]["honest"] == pytest.approx(line["iou"])


def test_nested_is_fitted_without_the_region(world, sets, single):
    """What region a is judged with is what a run without its tiles would fit."""
    rows = world.rows[world.rows["group"] != "a"].reset_index(drop=True)
    frame = sets["good"].set_index("id").loc[rows["id"]].reset_index()
    settings = {"ratios": RATIOS, "main_ratio": 20, "min_blob": 3}
    assert single["nested"][0]["post"] == fit_post(rows, frame, read_map=world.read, **settings)
    whole = fit_post(world.rows, sets["good"], read_map=world.read, **settings)
    assert single["blend"]["post"] == whole and whole != single["nested"][0]["post"]


def test_frames_score_what_is_said(world, single):
    positive = np.array([world.truth[tile][1].any() for tile in single["ids"]])
    for name in ("honest", "final"):
        score = single["scores"]["honest" if name == "honest" else "fitted"]
        assert balanced_iou(counts_of(single[name], 2), positive) == pytest.approx(score)
    counts = counts_of(single["honest"], 2)
    for index in (0, 8):
        mask = single["read_pred"](single["rows"].iloc[index])
        valid, target = world.truth[single["ids"][index]]
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(confusion(target, mask, valid, 2), counts[index])
    assert (single["honest"]["nodata"] == 7).all()


def test_temperature_finds_the_heat(single):
    """Logits were drawn too hot; the left-out region gains from the temperature of the others."""
    table = single["tables"]["calibration"].set_index("left out")
    assert list(table.index) == ["a", "b", "c", "all"]
    assert (table["nll_after"] < table["nll_before"]).all() and (table["ece_after"] < table["ece_before"]).all()
    assert single["blend"]["post"]["temperature"] > 1.2
    mass = single["reliability"]["after"]["weight"].sum()
    assert mass == pytest.approx(single["reliability"]["before"]["weight"].sum())


def test_a_part_is_calibrated_at_its_own_ratio():
    """Regions with many and with few negatives: each line is at 1:main by its own tiles; nan without any."""
    world = World(regions=("a", "b", "c"), positives=3, negatives=6)
    world.rows = world.rows[~world.rows["id"].isin(["b4", "b5", "b6", "b7", *(f"c{k}" for k in range(3, 9))])]
    world.rows = world.rows.reset_index(drop=True)
    frame = world.add("good")
    table = world.judge({"good": frame})["tables"]["calibration"].set_index("left out")
    for region, weight in (("a", 20 * 3 / 6), ("b", 20 * 3 / 2)):
        ids = world.rows["id"][world.rows["group"] == region].tolist()
        logit, target, positive = world.pixels(frame, ids)
        loss = -log_expit(np.where(target == 1, logit, -logit).astype(float))
        known = np.average(loss, weights=np.where(positive, 1, weight))
        assert table["nll_before"][region] == pytest.approx(known, rel=1e-3)
    assert np.isnan(table["nll_before"]["c"]) and np.isfinite(table["nll_before"]["all"])


def test_objects_are_weighted_and_matched(single, world, sets):
    """Blobs from scipy's labels, each predicted one (by mean probability) takes the free true one of largest IoU."""
    hits = false = true = 0
    for path in sets["good"]["prob"]:
        logit, valid, target = world.read(path)
        prob = expit(logit)
        blobs = [ndimage.label(mask & valid, np.ones((3, 3))) for mask in (logit > 0, target == 1)]
        pred, truth = ([lab == k for k in range(1, n + 1) if (lab == k).sum() >= 3] for lab, n in blobs)
        true, free = true + len(truth), list(range(len(truth)))
        for blob in sorted(pred, key=lambda blob: -prob[blob].mean()):
            scores = {k: (blob & truth[k]).sum() / (blob | truth[k]).sum() for k in free}
            best = max(scores, key=scores.get, default=None)
            if best is not None and scores[best] >= 0.3:
                free.remove(best)
                hits += 1
            else:
                false += 1 if target[valid].any() else 20 * 15 / 21
    table = single["tables"]["object"]
    line = table[(table["ratio"] == 20) & (table["at"] == "raw .5") & (table["iou"] == 0.3)].iloc[0]
    assert line["precision"] == pytest.approx(hits / (hits + false))
    assert line["recall"] == pytest.approx(hits / true)
    assert (line["true"], set(table["iou"])) == (true, {0.1, 0.3, 0.5})


def test_thresholds_per_ratio(single):
    table = single["tables"]["thresholds"].set_index("ratio")
    pixels = single["tables"]["pixel"]
    pixels = pixels[(pixels["set"] == "weighted") & (pixels["at"] == "threshold")].set_index("ratio")
    for ratio in RATIOS:
        line = table.loc[ratio]
        assert line["reachable"] and line["precision"] >= 0.8 and line["lowest"] <= line["highest"]
        assert line["honest precision"] == pytest.approx(pixels.loc[ratio, "precision"])
        assert line["honest recall"] == pytest.approx(pixels.loc[ratio, "recall"])
    assert table.loc[50, "threshold"] > table.loc[20, "threshold"]


def test_negatives_are_told_and_subsampled(single, world, sets):
    table = single["tables"]["negatives"].set_index("ratio")
    assert table.loc[20, "negatives"] == 21 and table.loc[20, "weight"] == pytest.approx(20 * 15 / 21)
    assert table.loc[50, "sub-sample"].startswith("none")
    pixels = single["tables"]["pixel"]
    assert sorted(pixels[pixels["set"] == "sub-sampled"]["ratio"]) == [1, 20]
    assert pixels[(pixels["ratio"] == 1) & (pixels["set"] == "sub-sampled")]["ap"].iloc[0] > 0.3


def test_blend_drops_what_knows_nothing(several):
    blend = several["blend"]
    assert list(blend["dropped"]) == ["lost"] and blend["weights"] == [0.5, 0.5, 0]
    assert all(one["weights"] == [0.5, 0.5, 0] for one in several["nested"])
    assert several["best"] == "good" == several["interval"]["against"]
    scores, interval = several["scores"], several["interval"]
    assert interval["difference"] == pytest.approx(scores["honest"] - several["members"]["good"])
    assert interval["low95"] <= interval["difference"] <= interval["high95"]
    assert list(several["gains"]["set"]) == ["good", "fair", "lost", "blend of all"]
    line = several["gains"].iloc[-1]
    assert line["none"] + line["both"] == pytest.approx(scores["honest"])
    assert json.loads(json.dumps(blend)) == blend


def test_greedy_takes_the_better(world, sets):
    judgement = world.judge({name: sets[name] for name in ("fair", "good")}, kind="greedy")
    weights = judgement["blend"]["weights"]
    assert sum(weights) == pytest.approx(1) and weights[1] > 0.6
    assert judgement["scores"]["honest"] > world.judge(sets)["scores"]["honest"]
    with pytest.raises(InputError, match="--kind nnls: maps of a rare class"):
        world.judge(sets, kind="nnls")


def test_greedy_on_known_pixels():
    """Two halves of an answer: neither alone ranks the pixels right, together they do."""
    target = np.array([1, 1, 0, 0], bool)
    prob = np.array([[0.9, 0.1, 0.5, 0.0], [0.1, 0.9, 0.0, 0.5], [0.0, 0.0, 1.0, 1.0]], np.float32)
    weights = fit_greedy(Sample(prob, target, np.ones(4), np.zeros(4, int)))
    assert weights.tolist() == [0.5, 0.5, 0]


def test_mix_is_the_logit_of_the_mean_probability():
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 6, (5, 5)) for _ in range(3)]
    prob = np.average([expit(one) for one in logits], axis=0, weights=[1, 2, 1])
    mixed = mix_logits([one.astype(np.float32) for one in logits], [1, 2, 1])
    np.testing.assert_allclose(mixed, np.log(prob) - np.log1p(-prob), atol=1e-4)
    far = mix_logits([np.full((1, 1), -50, np.float32), np.full((1, 1), -52, np.float32)], [0.5, 0.5])
    assert far[0, 0] == pytest.approx(-50 + np.log((1 + np.exp(-2)) / 2), abs=1e-4)
    assert mix_logits([np.full((1, 1), 60, np.float32), far], [0.0, 1.0])[0, 0] == far[0, 0]


def test_masks_follow_post(world, sets, single):
    post = single["blend"]["post"]
    logit, valid, _ = world.read("good/a0")
    prob = expit(logit.astype(float) / post["temperature"])
    for given, level in (({}, post["threshold"]), ({"threshold": 0.3}, 0.3), ({"ratio": 1}, post["balanced"])):
        mask = cut_mask(logit, valid, cut_of(post, min_blob=0, **given))
        np.testing.assert_array_equal(mask, (prob > level) & valid)
    least, free = (cut_mask(logit, valid, cut_of(post, ratio=1, **given)) for given in ({}, {"min_blob": 0}))
    assert least.sum() < free.sum()
    with pytest.raises(InputError, match="fitted for 20, 50"):
        cut_of(post, ratio=500)


def test_final_report_fits_nothing(world, sets, single):
    post = single["blend"]["post"]
    report = final_report(world.rows, sets["good"], post, read_map=world.read, ratio=50)
    assert report["score"] == pytest.approx(single["scores"]["fitted"])
    table = report["tables"]["pixel"]
    line = table[(table["ratio"] == 50) & (table["at"] == "threshold")].iloc[0]
    hit = false = 0
    for path in sets["good"]["prob"]:
        logit, valid, target = world.read(path)
        pred = cut_mask(logit, valid, cut_of(post, ratio=50))
        hit += (pred & (target == 1)).sum()
        false += (pred & (target == 0)).sum() * (1 if target[valid].any() else 50 * 15 / 21)
    assert line["precision"] == pytest.approx(hit / (hit + false))
    assert report["tables"]["calibration"]["temperature"].tolist() == [pytest.approx(post["temperature"])]
    other = final_report(world.rows, sets["good"], post | {"temperature": 1.0}, read_map=world.read, ratio=50)
    assert other["tables"]["calibration"]["nll_after"][0] > report["tables"]["calibration"]["nll_after"][0]
    with pytest.raises(InputError, match="ratio 1:500"):
        final_report(world.rows, sets["good"], post, read_map=world.read, ratio=500)


def test_metrics_are_gates(single):
    gates = {"balanced_iou": 0.1, "precision_50": 2, "object_recall_20": 0.01, "ece": 0}
    assert check_gates(single["metrics"], gates)["passed"].tolist() == [True, False, True, True]


def test_bootstrap_weighs_negatives_in_each_draw():
    """By a slow version over the same draws."""
    rng = np.random.default_rng(5)
    positive, groups = np.arange(20) % 3 == 0, np.arange(20) % 4
    counts = [rng.integers(1, 40, (20, 2, 2)) * np.where(positive, 1, [[[1], [0]]]).T.reshape(20, 2, 1) for _ in "ab"]
    answer = bootstrap_difference(*counts, positive, groups, draws=50, seed=2)
    drawn = np.random.default_rng(2).multinomial(4, [0.25] * 4, 50)
    known = []
    for times in drawn:
        index = np.concatenate([np.tile(np.flatnonzero(groups == g), n) for g, n in enumerate(times)])
        known.append(np.subtract(*(balanced_iou(one[index], positive[index]) for one in counts)))
    assert answer["low95"] == pytest.approx(np.percentile(known, 2.5))
    assert answer["high90"] == pytest.approx(np.percentile(known, 95))
    assert answer["groups"] == 4


def test_one_region_is_halved():
    world = World(regions=("a",), positives=4, negatives=4)
    judgement = world.judge({"good": world.add("good"), "fair": world.add("fair", 1.5)})
    assert "halved" in judgement["split"] and judgement["interval"]["groups"] == 8
    assert list(judgement["tables"]["calibration"]["left out"]) == ["half 1", "half 2", "all"]
    first, second = (judgement["nested"][index]["post"] for index in (0, 1))
    assert first != second


def test_only_positive_tiles_say_nothing_of_ratios():
    world = World(regions=("a", "b"), positives=3, negatives=0)
    judgement = world.judge({"good": world.add("good")})
    assert judgement["tables"]["pixel"]["ratio"].unique().tolist() == [1] and judgement["tables"]["object"].empty
    assert not judgement["tables"]["thresholds"]["reachable"].any()
    assert 0.2 < judgement["scores"]["honest"] < 1
    json.dumps(judgement["blend"], allow_nan=False)


def test_a_region_without_the_class_and_none_at_all():
    """With region b left out nothing of the class is left in a: the plain .5 stands."""
    world = World(regions=("a", "b"), positives=3, negatives=3)
    for tile, (_, target) in world.truth.items():
        target[:] = 0 if tile.startswith("a") else target
    frame = world.add("good")
    judgement = world.judge({"good": frame})
    assert judgement["nested"][-1]["post"]["temperature"] == 1 and judgement["nested"][-1]["post"]["threshold"] == 0.5
    with pytest.raises(InputError, match="no tile has a pixel of the class"):
        judge(world.rows[:6], {"good": frame[:6]}, read_map=world.read)


def test_sizes_that_differ_are_named(world, sets):
    def read(path):
        logit, valid, target = world.read(path)
        return (logit[:-1] if path == "fair/a3" else logit), valid, target

    with pytest.raises(InputError, match=r"fair: tile a3 is predicted at \(47, 48\), its label is \(48, 48\)"):
        judge(world.rows, {name: sets[name] for name in ("good", "fair")}, read_map=read)
