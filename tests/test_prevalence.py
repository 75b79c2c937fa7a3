import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from common.errors import InputError
from common.metrics.curves import logit_histogram
from common.post.calibration import threshold_logit
from common.post.prevalence import at_ratio, best_threshold, pixel_scores, ratio_table, subsample, tile_weights

RATIOS = (1, 20, 200)


class Tiles:
    """5 tiles with the class and 9 without, 500 pixels each: (logit, target, weight at a ratio) and the histogram."""

    def __init__(self, lift=3.0):
        rng = np.random.default_rng(4)
        self.positive = np.arange(14) < 5
        self.target = (rng.random((14, 500)) < 0.1) & self.positive[:, None]
        self.logit = (rng.normal(-3, 1.5, (14, 500)) + lift * self.target).astype(np.float32)
        sides = (~self.positive, self.positive)
        self.hist = np.stack([logit_histogram(self.logit[side], self.target[side]) for side in sides])

    def flat(self, ratio):
        weight = np.repeat(np.where(self.positive, 1.0, ratio * 5 / 9), 500)
        return self.logit.ravel(), self.target.ravel(), weight

    def table(self, **settings):
        return ratio_table(self.hist, RATIOS, positives=5, negatives=9, **settings)


@pytest.fixture(scope="module")
def tiles():
    return Tiles()


def test_weights_make_the_ratio(tiles):
    for ratio in (0.5, 1, 200):
        weights = tile_weights(tiles.positive, ratio)
        assert weights[~tiles.positive].sum() == pytest.approx(ratio * weights[tiles.positive].sum())
        assert (weights[tiles.positive] == 1).all()
    assert tile_weights(np.ones(3, bool), 200).tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="ratio 1:0"):
        tile_weights(tiles.positive, 0)


def test_table_is_that_of_weighted_pixels(tiles):
    for line in tiles.table(temperature=1.6).to_dict("records"):
        logit, target, weight = tiles.flat(line["ratio"])
        assert line["ap"] == pytest.approx(average_precision_score(target, logit, sample_weight=weight), abs=1e-4)
        assert line["prevalence"] == pytest.approx(weight @ target / weight.sum())
        precision, recall, _ = precision_recall_curve(target, logit, sample_weight=weight)
        reached = (precision >= 0.8) & (recall > 0)
        assert line["reachable"] == reached.any()
        assert line["recall"] == pytest.approx(recall[reached].max(), abs=0.005)
        pred = logit > threshold_logit(line["threshold"], 1.6)
        assert line["precision"] == pytest.approx(weight @ (pred & target) / (weight @ pred))
        assert line["recall"] == pytest.approx((pred & target).sum() / target.sum())
        assert line["precision"] >= 0.8
        assert (line["positives"], line["negatives"]) == (5, 9)
        assert line["weight"] == pytest.approx(line["ratio"] * 5 / 9)


def test_thresholds_rise_with_the_ratio(tiles):
    table = tiles.table()
    assert table["threshold"].is_monotonic_increasing and table["threshold"].iloc[0] < table["threshold"].iloc[-1]
    assert table["recall"].iloc[0] > table["recall"].iloc[-1] > 0


def test_a_precision_out_of_reach_is_said():
    """Where the largest logits are negatives: the threshold is that of the best F0.5."""
    tiles = Tiles(lift=1.0)
    assert tiles.table(target_precision=0.1)["reachable"].iloc[0]
    line = tiles.table(target_precision=0.999).iloc[-1]
    assert not line["reachable"]
    logit, target, weight = tiles.flat(200)
    precision, recall, edges = precision_recall_curve(target, logit, sample_weight=weight)
    best = (1.25 * precision * recall / np.maximum(0.25 * precision + recall, 1e-12)).max()
    found = 1.25 * line["precision"] * line["recall"] / (0.25 * line["precision"] + line["recall"])
    assert found == pytest.approx(best, rel=0.01)


def test_best_threshold_has_the_largest_iou(tiles):
    known = at_ratio(tiles.hist, 1, positives=5, negatives=9)
    logit, target, weight = tiles.flat(1)

    def iou(threshold):
        pred = logit > threshold
        return weight @ (pred & target) / (weight @ (pred | target))

    best = max(iou(value) for value in np.linspace(-6, 4, 2000))
    assert iou(best_threshold(known)) >= best - 1e-9
    assert best_threshold(known, 0.5) > best_threshold(known) > best_threshold(known, 2)
    assert best_threshold(known * [[1], [0]]) == 0


def test_without_negatives_no_ratio_is_told(tiles):
    hist = tiles.hist * np.array([0, 1])[:, None, None]
    table = ratio_table(hist, (200,), positives=5, negatives=0)
    line = table.iloc[0]
    assert np.isnan(line["precision"]) and np.isnan(line["ap"]) and not line["reachable"]
    assert 0 < line["threshold"] < 1 and line["weight"] == 0


def test_pixel_scores():
    scores = pixel_scores(6, 2, 4)
    assert scores == pytest.approx({"iou": 0.5, "precision": 0.75, "recall": 0.6, "f1": 2 / 3, "f0.5": 7.5 / 10.5})
    assert np.isnan(pixel_scores(0, 0, 0)["iou"]) and pixel_scores(0, 0, 3)["recall"] == 0


def test_subsample_keeps_to_the_ratio():
    positive = np.arange(100) < 8
    index, said = subsample(positive, 5, seed=1)
    assert positive[index].sum() == 8 and len(index) == 48 and said == "8 of 8 positives, 40 of 92 negatives"
    assert (np.diff(index) > 0).all()
    index, said = subsample(positive, 30, seed=1)
    assert positive[index].sum() == 3 and len(index) == 93 and said.startswith("3 of 8")
    assert subsample(positive, 30, seed=1)[0].tolist() == index.tolist()
    assert subsample(positive, 30, seed=2)[0].tolist() != index.tolist()
    index, said = subsample(positive, 200, seed=1)
    assert index is None and said == "none: 1:200 takes 200 negatives, there are 92"
