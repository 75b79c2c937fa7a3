import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_recall_curve,
)

from common.errors import InputError
from common.metrics import curves
from common.metrics.curves import (
    BINS,
    average_precision,
    bin_centers,
    bin_edges,
    brier,
    confusion_at,
    ece,
    full_curve,
    logit_histogram,
    nll,
    pr_curve,
    precision_at_recall,
    recall_at_precision,
    reliability_bins,
    threshold_at_precision,
)


def pixels(n=200_000, share=0.02, seed=0, gap=5.0):
    """float32 logits and truth of a rare class; most logits far below 0."""
    rng = np.random.default_rng(seed)
    target = rng.random(n) < share
    return rng.normal(np.where(target, gap - 7, -7), 2).astype(np.float32), target


def sigmoid(logit):
    return 1 / (1 + np.exp(-np.asarray(logit, np.float64)))


AWKWARD = [0.0, 1e-40, 1e-30, 1e-7, 2**-18, 2**-17, 2**-7, 0.0078, 0.1, 0.5, 1, 1.001, 7.3, 200, 255.99, 256, 300, 3e38]


def test_bins_reach_from_edge_to_edge_upper_edge_included():
    """Every bin's edges, and what lies just above and below, against a search in float64."""
    edges = bin_edges()
    assert len(edges) == BINS + 1 and (np.diff(edges) > 0).all() and edges[BINS // 2] == 0
    inner = edges[1:-1].astype(np.float32)
    assert (inner == edges[1:-1]).all()
    values = np.concatenate([inner, np.nextafter(inner, np.float32(np.inf)), np.nextafter(inner, np.float32(-np.inf)),
                             np.float32(AWKWARD), -np.float32(AWKWARD), np.float32([np.inf, -np.inf])])  # fmt: skip
    expected = np.clip(np.searchsorted(edges, values.astype(np.float64), "left") - 1, 0, BINS - 1)
    found = logit_histogram(values, np.zeros(len(values), bool))
    np.testing.assert_array_equal(found, np.stack([np.bincount(expected, minlength=BINS), np.zeros(BINS, int)]))
    centers = bin_centers()
    assert ((centers[1:-1] > edges[1:-2]) & (centers[1:-1] < edges[2:-1])).all() and abs(centers[[0, -1]]).max() == 256
    widths = np.diff(edges)[1:-1]
    assert (widths <= np.maximum(abs(centers[1:-1]) / 2048, 2**-18)).all()


def test_every_float16_of_use_has_a_bin_of_its_own():
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = values[(abs(values) >= 2**-7) & (abs(values) <= 255)]
    counts = logit_histogram(values, np.ones(len(values), bool))
    assert counts.max() == 1 and counts[1].sum() == len(values) > 30_000


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_histogram_counts_each_valid_pixel_once(kind, masked, monkeypatch):
    """Whatever the kind and layout of the arrays, in pieces and threads of any number."""
    logits, target = pixels(99_000)
    logits, target = logits.astype(kind).reshape(90, 1100), target.astype(np.uint8).reshape(90, 1100)
    valid = None
    if masked:
        valid = np.random.default_rng(1).random(target.shape) < 0.7
        target[~valid] = 255
        logits[~valid] = np.nan
    kept = np.ones(target.shape, bool) if valid is None else valid
    place = np.searchsorted(bin_edges(), logits[kept].astype(np.float32), "left") - 1
    expected = np.bincount(target[kept] * np.int64(BINS) + place, minlength=2 * BINS).reshape(2, BINS)
    found = logit_histogram(logits, target, valid)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)
    monkeypatch.setattr(curves, "PIECE", 10_007)
    for threads in (1, 2, 3):
        monkeypatch.setattr(curves._compiled(), "threads", lambda threads=threads: threads)
        np.testing.assert_array_equal(logit_histogram(logits, target, valid), expected)
    flipped = [a if a is None else a[::-2].T for a in (logits, target, valid)]
    assert logit_histogram(*flipped).sum() == kept[::-2].sum()
    halves = [logit_histogram(logits[k], target[k], None if valid is None else valid[k])
              for k in (slice(0, 31), slice(31, None))]  # fmt: skip
    np.testing.assert_array_equal(sum(halves), expected)
    assert logit_histogram(logits[:0], target[:0]).sum() == 0


SCORES = {
    "continuous": lambda logits: logits,
    "float16": lambda logits: logits.astype(np.float16).astype(np.float32),
    "tenths": lambda logits: np.round(logits, 1),
    "two values": lambda logits: np.where(logits > -3, 1.5, -1.5).astype(np.float32),
    "one value": lambda logits: np.zeros_like(logits),
    "mostly clamped": lambda logits: np.clip(logits, -7, 0),
    "near zero": lambda logits: logits / 100,
    "beyond the bins": lambda logits: np.clip(logits * 1e6, -3e38, 300),
}


@pytest.mark.parametrize("share", [0.01, 0.5])
@pytest.mark.parametrize("kind", SCORES)
def test_average_precision_equals_scikit_learns(kind, share):
    logits, target = pixels(share=share)
    logits = SCORES[kind](logits)
    hist = logit_histogram(logits, target)
    if kind == "beyond the bins":  # there order is lost, as said: equal to that of clamped logits
        logits = np.clip(logits, -256, 256)
    assert average_precision(hist) == pytest.approx(average_precision_score(target, logits), abs=1e-5)
    weights = (31.5, 1.0)
    theirs = average_precision_score(target, logits, sample_weight=np.where(target, 1, 31.5))
    assert average_precision(hist, weights) == pytest.approx(theirs, abs=1e-5)
    assert average_precision(hist * np.array([[31.5], [1.0]]) * 1e-6) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_of_few_positives(seed):
    """Ten positives: order within a bin cannot be known, all else is exact."""
    logits, target = pixels(2000, 0.005, seed)
    assert 3 <= target.sum() <= 20
    theirs = average_precision_score(target, logits)
    assert average_precision(logit_histogram(logits, target)) == pytest.approx(theirs, abs=1e-3)
    apart = np.argsort(np.argsort(logits)).astype(np.float32) / 16 - 60  # a bin each
    assert logit_histogram(apart, target).max() == 1
    theirs = average_precision_score(target, apart)
    assert average_precision(logit_histogram(apart, target)) == pytest.approx(theirs, abs=1e-12)


def test_a_crowded_bin_counts_as_mixed_at_random():
    """Pixels spread over less than a bin, its neighbours as full: the mean over random orders, not the tie's."""
    rng = np.random.default_rng(0)
    edges = bin_edges()
    k = BINS // 2 + 5 * 2048
    target = rng.random(4000) < 0.3
    target[:2000] = rng.random(2000) < 0.7
    logits = np.repeat([edges[k + 1] + 1e-6, edges[k] + 1e-6], 2000)
    orders = []
    for _ in range(200):
        rank = np.concatenate([2000 + rng.permutation(2000), rng.permutation(2000)])
        orders.append(average_precision_score(target, rank))
    found = average_precision(logit_histogram(logits, target))
    assert found == pytest.approx(np.mean(orders), abs=4 * np.std(orders) / np.sqrt(len(orders)))
    assert abs(found - average_precision_score(target, logits)) > 0.002


def test_curve_equals_scikit_learns_at_every_edge():
    logits, target = pixels(20_000, 0.1)
    hist = logit_histogram(logits, target)
    weight = np.where(target, 1.0, 7.0)
    curve = full_curve(hist, (7, 1))
    precision, recall, threshold = precision_recall_curve(target, logits, sample_weight=weight)
    at = np.searchsorted(threshold, curve.threshold, "right")  # theirs is logit >= threshold
    np.testing.assert_allclose(curve.precision, precision[at], atol=1e-12)
    np.testing.assert_allclose(curve.recall, recall[at], atol=1e-12)
    assert (np.diff(curve.threshold) < 0).all() and curve.recall[-1] == 1
    thin = pr_curve(hist, (7, 1), points=100)
    assert 50 < len(thin.recall) < len(curve.recall)
    assert thin.recall[[0, -1]].tolist() == curve.recall[[0, -1]].tolist()
    assert np.interp(curve.recall, thin.recall, thin.precision)[500:] == pytest.approx(curve.precision[500:], abs=0.02)


@pytest.mark.parametrize("weights", [None, (200.0, 1.0)])
def test_confusion_is_exact_at_an_edge(weights):
    logits, target = pixels(share=0.3)
    hist = logit_histogram(logits, target)
    w_neg, w_pos = weights or (1, 1)
    for edge in (0.0, -3.0, bin_edges()[20_000], bin_edges()[40_000], -np.inf, np.inf):
        tn, fp, fn, tp = confusion_matrix(target, logits > edge, labels=[False, True]).ravel()
        assert confusion_at(hist, edge, weights) == pytest.approx((w_pos * tp, w_neg * fp, w_pos * fn, w_neg * tn))
        again = np.log(sigmoid(edge) / (1 - sigmoid(edge))) if np.isfinite(edge) else edge
        assert confusion_at(hist, again, weights) == confusion_at(hist, edge, weights)


def test_threshold_of_largest_recall_at_a_precision():
    logits, target = pixels(50_000, 0.05, gap=3)
    hist, weights = logit_histogram(logits, target), (4.0, 1.0)
    point = threshold_at_precision(hist, 0.5, weights)
    said = logits > point.threshold
    tp, fp = (said & target).sum(), 4 * (said & ~target).sum()
    assert point.precision == pytest.approx(tp / (tp + fp)) and point.precision >= 0.5
    assert point.recall == pytest.approx(tp / target.sum())
    precision, recall, _ = precision_recall_curve(target, logits, sample_weight=np.where(target, 1, 4))
    assert point.recall == pytest.approx(recall[precision >= 0.5].max(), abs=2e-3)
    assert recall_at_precision(hist, 0.5, weights) == point.recall
    for least in (0.2, 0.5, 0.9):
        expected = precision[recall >= least].max()
        assert precision_at_recall(hist, least, weights) == pytest.approx(expected, abs=2e-3)


def test_precision_that_is_not_reachable_and_classes_that_are_absent():
    logits = np.float32([-1, 0.5, 2, 3])
    mixed = logit_histogram(logits, np.array([0, 1, 1, 0], bool))
    assert threshold_at_precision(mixed, 0.8) is None and recall_at_precision(mixed, 0.8) == 0
    assert threshold_at_precision(mixed, 0.6).recall == 1
    assert threshold_at_precision(mixed, 0.6).threshold < 0.5
    none = logit_histogram(logits, np.zeros(4, bool))
    assert threshold_at_precision(none, 0.0) is None
    undefined = [average_precision(none), recall_at_precision(none, 0.1), precision_at_recall(none, 0.1)]
    assert np.isnan(undefined).all() and len(pr_curve(none).recall) == 4
    nothing = np.zeros((2, BINS))
    undefined = [f(nothing) for f in (average_precision, nll, brier, ece)] + [recall_at_precision(nothing, 0.5)]
    assert np.isnan(undefined).all() and len(pr_curve(nothing).recall) == 0
    alone = logit_histogram(logits, np.ones(4, bool))
    assert average_precision(alone) == pytest.approx(1) and threshold_at_precision(alone, 1).recall == 1


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_calibration_scores_equal_those_of_the_pixels(temperature):
    logits, target = pixels(share=0.2)
    hist = logit_histogram(logits, target)
    weight = np.where(target, 1, 9.0)
    prob = sigmoid(logits / temperature)
    assert nll(hist, temperature) == pytest.approx(log_loss(target, prob), rel=1e-5)
    assert brier(hist, temperature) == pytest.approx(brier_score_loss(target, prob), rel=1e-5)
    weighted = hist * np.array([[9.0], [1.0]])
    assert nll(weighted, temperature) == pytest.approx(log_loss(target, prob, sample_weight=weight), rel=1e-5)
    assert brier(weighted, temperature) == pytest.approx(brier_score_loss(target, prob, sample_weight=weight), rel=1e-5)


def plain_ece(prob, target, weight, place, bins):
    total = 0.0
    for k in range(bins):
        inside = place == k
        if weight[inside].sum():
            gap = np.average(prob[inside], weights=weight[inside]) - np.average(target[inside], weights=weight[inside])
            total += weight[inside].sum() / weight.sum() * abs(gap)
    return total


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_calibration_error_equals_that_of_the_pixels(temperature):
    logits, target = pixels(share=0.2)
    weight = np.where(target, 1, 3.0)
    hist = logit_histogram(logits, target) * np.array([[3.0], [1.0]])
    prob = sigmoid(logits / temperature)
    place = np.minimum((prob * 15).astype(int), 14)
    expected = plain_ece(prob, target, weight, place, 15)
    assert ece(hist, temperature) == pytest.approx(expected, rel=2e-3) and expected > 0.01
    order = np.argsort(prob)
    grown = (weight[order].cumsum() - weight[order] / 2) / weight.sum()
    place = np.empty(len(prob), int)
    place[order] = np.minimum((grown * 15).astype(int), 14)
    expected = plain_ece(prob, target, weight, place, 15)
    assert ece(hist, temperature, equal="mass") == pytest.approx(expected, rel=2e-3) and expected > 0.01
    mass, mean, share = reliability_bins(hist, temperature, bins=10, equal="mass")
    np.testing.assert_allclose(mass, hist.sum() / 10)
    assert (np.diff(mean) > 0).all() and np.average(share, weights=mass) == pytest.approx(hist[1].sum() / hist.sum())


def test_calibrated_logits_have_no_calibration_error():
    rng = np.random.default_rng(5)
    logits = rng.normal(-3, 2, 400_000).astype(np.float32)
    hist = logit_histogram(logits, rng.random(len(logits)) < sigmoid(logits))
    assert ece(hist) < 0.002 and ece(hist, equal="mass") < 0.003
    assert ece(hist, 3.0) > 0.05 and ece(hist, 3.0, equal="mass") > 0.05
    assert nll(hist) < min(nll(hist, 0.9), nll(hist, 1.1))


WRONG = {
    "of one shape": lambda x, y, h: logit_histogram(x, y[1:]),
    "give logits, target": lambda x, y, h: logit_histogram(x, y.astype(np.int64)),
    "a target is 255": lambda x, y, h: logit_histogram(x, y * np.uint8(255)),
    "not a number": lambda x, y, h: logit_histogram(x * np.float32(np.nan), y),
    "sum the others": lambda x, y, h: average_precision(h[None]),
    "temperature 0": lambda x, y, h: (brier(h, 0), nll(h, 0)),
    "choose width or mass": lambda x, y, h: ece(h, equal="size"),
}


@pytest.mark.parametrize("told", WRONG)
def test_what_is_wrong_is_told(told):
    logits, target = np.float32([1, 2, 3]), np.array([0, 1, 1], np.uint8)
    with pytest.raises(InputError, match=told):
        WRONG[told](logits, target, logit_histogram(logits, target))
