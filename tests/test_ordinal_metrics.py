"""Kappa and rankings from histograms against scikit-learn, scipy and slow formulas."""

import numpy as np
import pytest
import sklearn.metrics
from scipy import stats

from common.errors import InputError
from common.metrics import ordinal
from common.metrics.ordinal import (
    auroc,
    average_precision,
    cohens_kappa,
    rate_curve,
    spearman,
    value_histogram,
)
from common.metrics.segmentation import confusion


def ranked(classes=3, pixels=3000, bins=64, seed=0):
    """Classes of falling frequency, values that follow them roughly, and the values as the bins have them."""
    rng = np.random.default_rng(seed)
    target = np.minimum(rng.geometric(0.7, pixels) - 1, classes - 1)
    values = np.clip(rng.beta(2, 5, pixels) + 0.2 * target, 0, 1).astype(np.float32)
    binned = np.minimum(np.floor(values.astype(np.float64) * bins), bins - 1)
    return target, values, binned, value_histogram(values, target, None, classes=classes, bins=bins)


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_kappa_is_that_of_scikit_learn_also_stacked(classes, weights):
    rng = np.random.default_rng(classes)
    stacked, expected = [], []
    for skill in (0.0, 0.3, 0.9):
        target = rng.choice(classes, 4000, p=np.arange(classes, 0, -1) / sum(range(classes + 1)))
        pred = np.where(rng.random(4000) < skill, target, rng.integers(0, classes, 4000))
        stacked.append(confusion(target, pred, None, classes))
        expected.append(sklearn.metrics.cohen_kappa_score(target, pred, weights=weights))
        assert cohens_kappa(stacked[-1], weights) == pytest.approx(expected[-1], abs=1e-12)
    mine = cohens_kappa(np.stack(stacked)[:, None], weights)
    assert mine.shape == (3, 1)
    np.testing.assert_allclose(mine[:, 0], expected, atol=1e-12)


def test_kappa_of_constants_and_of_nothing():
    assert cohens_kappa([[7, 0, 0], [2, 0, 0], [1, 0, 0]]) == 0  # low everywhere
    assert cohens_kappa([[7, 0], [0, 0]], "quadratic") == 0 and cohens_kappa(np.zeros((3, 3))) == 0
    assert cohens_kappa([[5, 0], [0, 3]]) == 1 and cohens_kappa([[0, 5], [5, 0]]) == -1
    with pytest.raises(InputError, match="weights cubic; choose one of None, linear, quadratic"):
        cohens_kappa([[5, 0], [0, 3]], "cubic")


def test_histogram_counts_every_valid_pixel_in_its_bin():
    target, values, binned, _ = ranked(bins=64)
    valid = np.random.default_rng(1).random(len(target)) < 0.7
    shape = (3, 20, 50)
    arrays = [a.reshape(shape) for a in (values, target.astype(np.uint8), valid)]
    hist = value_histogram(*arrays, classes=3, bins=64)
    slow = np.zeros((3, 64), np.int64)
    for t, b in zip(target[valid], binned[valid].astype(int), strict=True):
        slow[t, b] += 1
    assert hist.dtype == np.int64 and np.array_equal(hist, slow)
    parts = [value_histogram(*(a[i] for a in arrays), classes=3, bins=64) for i in range(3)]
    assert np.array_equal(sum(parts), hist)


def test_histogram_ends_and_half_precision():
    edges = np.array([0, 1e-9, 1, 1.0005, -0.0005, 0.5], np.float32)
    hist = value_histogram(edges, np.zeros(6, int), None, classes=2)
    assert hist.shape == (2, 65536) and hist[0, 0] == 3 and hist[0, -1] == 2 and hist[0, 32768] == 1
    every = np.arange(0x3C01, dtype=np.uint16).view(np.float16)  # all numbers from 0 to 1
    hist = value_histogram(every[every >= 2**-5], np.zeros((every >= 2**-5).sum(), int), None, classes=1)
    assert hist[0, :-1].max() == 1 and hist[0, -1] == 1  # a bin each; below, the numbers are denser


@pytest.mark.parametrize(
    "values, target, words",
    [
        ([0.1, np.nan], [0, 1], "nan"),
        ([0.1, 1.1], [0, 1], "0.1 to 1.1"),
        ([-0.1, 0.1], [0, 1], "from 0 to 1"),
        ([0.1, 0.1], [0, 2], "classes 0 to 2; they are 0 to 1"),
        ([0.1, 0.1], [-1, 1], "classes -1 to 1"),
        ([0.1], [0, 1], "must have one shape"),
    ],
)
def test_histogram_refuses_what_is_no_value_or_class(values, target, words):
    with pytest.raises(InputError, match=words):
        value_histogram(values, target, None, classes=2)
    if len(values) == 2 and "nan" not in words:
        good = value_histogram(values, target, [False, False], classes=2)
        assert not good.any()  # what is not valid may hold anything


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_spearman_is_that_of_scipy_on_the_bins(classes):
    target, values, binned, hist = ranked(classes, seed=classes)
    assert spearman(hist) == pytest.approx(stats.spearmanr(target, binned).statistic, abs=1e-12)
    fine = value_histogram(values, target, None, classes=classes)
    assert spearman(fine) == pytest.approx(stats.spearmanr(target, values).statistic, abs=1e-4)
    assert spearman(hist[:, ::-1]) == pytest.approx(-spearman(hist))
    many = hist * 10**7  # of pixels: sums of squared ranks beyond 64 bits
    assert spearman(many) == pytest.approx(spearman(hist), abs=1e-6)


def test_undefined_rankings_are_nan():
    hist = np.zeros((3, 8), np.int64)
    assert np.isnan(spearman(hist)) and np.isnan(auroc(hist, at_least=1))
    hist[0] = 3
    assert np.isnan(spearman(hist)) and np.isnan(auroc(hist, at_least=1))
    assert np.isnan(average_precision(hist, of_class=2)) and np.isnan(rate_curve(hist, at_least=1).auc)
    hist[2, 7] = 1
    assert spearman(hist) > 0 and auroc(hist, at_least=1) > 0.9


@pytest.mark.parametrize("side", [{"at_least": 1}, {"at_least": 2}, {"of_class": 1}, {"of_class": 0}])
def test_auroc_and_average_precision_are_those_of_scikit_learn(side):
    target, _, binned, hist = ranked()
    positive = target >= side["at_least"] if "at_least" in side else target == side["of_class"]
    assert auroc(hist, **side) == pytest.approx(sklearn.metrics.roc_auc_score(positive, binned), abs=1e-12)
    expected = sklearn.metrics.average_precision_score(positive, binned)
    assert average_precision(hist, **side) == pytest.approx(expected, abs=1e-12)


def test_rate_curve_is_the_sorted_pixels_piece_by_piece():
    target, values, binned, hist = ranked()
    positive = target >= 1
    curve = rate_curve(hist, at_least=1)
    steps = sorted(set(binned), reverse=True)
    slow = [(np.mean(binned >= edge), np.mean(binned[positive] >= edge)) for edge in steps]
    np.testing.assert_allclose(np.stack([curve.area, curve.found], 1), [(0, 0), *slow], atol=1e-12)
    assert curve.auc == pytest.approx(sklearn.metrics.auc(curve.area, curve.found), abs=1e-12)
    share = positive.mean()  # the area under it and that under the ROC curve are one number in two scales
    assert curve.auc == pytest.approx(share / 2 + (1 - share) * auroc(hist, at_least=1), abs=1e-12)
    fine = rate_curve(value_histogram(values, target, None, classes=3), at_least=1)
    order = np.argsort(-values, kind="stable")
    assert fine.auc == pytest.approx(np.cumsum(positive[order]).mean() / positive.sum(), abs=1e-3)
    perfect = value_histogram(positive * 0.9, target, None, classes=3)
    assert rate_curve(perfect, at_least=1).auc == pytest.approx(1 - share / 2)


def test_a_side_must_be_named_and_have_another():
    hist = np.ones((3, 4), np.int64)
    for side in ({}, {"at_least": 1, "of_class": 1}):
        with pytest.raises(InputError, match="give one of at_least and of_class"):
            auroc(hist, **side)
    for side in ({"at_least": 0}, {"at_least": 3}, {"of_class": 7}):
        with pytest.raises(InputError, match="of 3 has no other side"):
            average_precision(hist, **side)


def test_default_bins_hold_a_tile_of_the_real_size():
    rng = np.random.default_rng(0)
    values, target = rng.random((512, 512), np.float32), rng.integers(0, 3, (512, 512), np.uint8)
    hist = value_histogram(values, target, None, classes=3)
    assert hist.shape == (3, ordinal.BINS) and hist.sum() == 512**2
    assert np.array_equal(hist.sum(1), np.bincount(target.ravel()))
