import itertools

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, matthews_corrcoef

from common.errors import InputError
from common.post.thresholds import (
    apply_thresholds,
    checked_thresholds,
    fit_thresholds,
    moved_scores,
    sample_pixels,
    weighted_counts,
)


def pixels(classes, n=4000, seed=0, tilt=1.5):
    """prob (n, K) that over-rates the rare classes, and the truth (n,)."""
    rng = np.random.default_rng(seed)
    share = 0.3 ** np.arange(classes)
    target = rng.choice(classes, n, p=share / share.sum())
    logit = rng.normal(0, 1.2, (n, classes)) + 2.5 * np.eye(classes)[target] + tilt * np.arange(classes)
    prob = np.exp(logit)
    return prob / prob.sum(1, keepdims=True), target


def score(prob, target, thresholds, weight=None):
    return matthews_corrcoef(target, (prob / np.asarray(thresholds)).argmax(1), sample_weight=weight)


def test_equal_thresholds_are_argmax_and_two_classes_cut_at_t():
    prob = pixels(4)[0].T.reshape(4, 40, 100)
    for same in (0.25, 0.1, 3.0):
        np.testing.assert_array_equal(apply_thresholds(prob, [same] * 4), prob.argmax(0))
    first, second = prob[:2] / prob[:2].sum(0)
    pred = apply_thresholds(np.stack([first, second]), (0.7, 0.3))
    assert pred.dtype == np.uint8 and pred.shape == (40, 100)
    np.testing.assert_array_equal(pred, second > 0.3)


@pytest.mark.parametrize("chosen", range(3))
def test_every_tried_value_is_scored_as_if_applied(chosen):
    prob, target = pixels(3)
    weight = np.random.default_rng(1).uniform(0.5, 3, len(target))
    start, tried = np.array([0.5, 0.2, 0.3]), np.geomspace(0.01, 2, 9)
    scores = moved_scores(prob, target, weight, start, chosen, tried, 900.0)
    for value, found in zip(tried, scores, strict=True):
        moved = start.copy()
        moved[chosen] = value
        pred = np.append((prob / moved).argmax(1), 0)
        expected = matthews_corrcoef(np.append(target, 0), pred, sample_weight=np.append(weight, 900.0))
        assert found == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("classes", [2, 3])
def test_fit_is_as_good_as_trying_everything(classes):
    prob, target = pixels(classes)
    grid = np.geomspace(0.02, 50, 24)
    most = max(score(prob, target, (1, *rest)) for rest in itertools.product(grid, repeat=classes - 1))
    fitted = fit_thresholds(prob, target)
    assert sum(fitted) == pytest.approx(1)
    assert score(prob, target, fitted) >= most - 0.001
    assert score(prob, target, fitted) > score(prob, target, np.ones(classes)) + 0.02


def test_four_classes_gain_with_weights_and_nodata():
    prob, target = pixels(4)
    weight = np.where(target == 0, 20.0, 1.0)
    background = 30000.0

    def all_pixels(thresholds):
        counts = weighted_counts(target, (prob / np.asarray(thresholds)).argmax(1), weight, 4)
        counts[0, 0] += background
        pairs = np.argwhere(counts > 0)
        return matthews_corrcoef(*pairs.T, sample_weight=counts[counts > 0])

    fitted = fit_thresholds(prob, target, weight, background=background)
    assert all_pixels(fitted) > all_pixels(fit_thresholds(prob, target)) + 0.005
    rng = np.random.default_rng(0)
    around = [all_pixels(np.array(fitted) * np.exp(rng.normal(0, 0.3, 4))) for _ in range(200)]
    assert all_pixels(fitted) > max(around) - 0.001


def test_nothing_to_fit_stays_equal():
    prob, target = pixels(3)
    assert fit_thresholds(prob, np.zeros_like(target)) == pytest.approx([1 / 3] * 3)


def test_sample_stands_for_all_pixels_and_holds_rare_classes_whole():
    rng = np.random.default_rng(2)
    target = rng.choice(4, (100, 120), p=[0.7, 0.25, 0.049, 0.001])
    valid = rng.random(target.shape) > 0.25
    index, weight = sample_pixels(target, valid, per_class=300, seed=1)
    assert len(set(index.tolist())) == len(index) and valid.ravel()[index].all()
    taken = target.ravel()[index]
    expected = np.bincount(target[valid], minlength=4)
    np.testing.assert_allclose(np.bincount(taken, weight, 4), expected)
    assert np.bincount(taken).tolist() == np.minimum(expected, 300).tolist()
    assert sample_pixels(target, valid, per_class=300, seed=2)[0].tolist() != index.tolist()
    assert len(sample_pixels(target, np.zeros_like(valid), per_class=300, seed=1)[0]) == 0


def test_weighted_counts_equal_scikit_learns():
    prob, target = pixels(3)
    weight = np.random.default_rng(1).uniform(0.5, 3, len(target))
    expected = confusion_matrix(target, prob.argmax(1), sample_weight=weight)
    np.testing.assert_allclose(weighted_counts(target, prob.argmax(1), weight, 3), expected)


@pytest.mark.parametrize("bad", [[0.5], [0.5, 0.0], [0.5, float("nan")], ["a", 1], None])
def test_wrong_thresholds_are_refused(bad):
    with pytest.raises(InputError, match="thresholds: need 2 numbers above zero"):
        checked_thresholds(bad, 2)
    assert checked_thresholds([2, 6], 2) == [0.25, 0.75]
