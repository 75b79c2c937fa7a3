"""Calibrated susceptibility: the curve of scikit-learn, the likeliest temperature, less error on pixels left out."""

import json

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from common.errors import InputError
from common.metrics.ordinal import value_histogram
from common.post.susceptibility import (
    KNOTS,
    WAYS,
    apply_isotonic,
    calibrated,
    fit_isotonic,
    fit_temperature,
    susceptibility_classes,
    thinned_knots,
)

BINS = 1024
PLACES = np.array([0, 0.5, 1])


def drawn_pixels(count, sharper=1.0, seed=0):
    """(said prob (n, 3), true class (n,)): classes drawn from a softmax, probabilities said `sharper` times as sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, 3)) + [1.5, -0.5, 0]
    chance = softmax(logits, 1)
    target = (rng.random(count)[:, None] > chance.cumsum(1)).sum(1)
    return softmax(sharper * logits, 1).astype(np.float32), target


def said(prob):
    return prob @ PLACES


def hist_of(prob, target, bins=BINS):
    return value_histogram(said(prob), target, None, classes=3, bins=bins)


def middles(bins=BINS):
    return (np.arange(bins) + 0.5) / bins


def test_raw_is_the_mean_class_as_a_share_of_the_highest():
    prob, _ = drawn_pixels(50)
    grid = prob.T.reshape(3, 5, 10)
    found = calibrated(grid, None, "raw")
    assert found.dtype == np.float32 and found.shape == (5, 10)
    np.testing.assert_allclose(found, 0.5 * grid[1] + grid[2], atol=1e-6)
    np.testing.assert_allclose(calibrated(grid[:2], {}, "raw"), grid[1], atol=1e-6)


def test_the_curve_is_that_of_scikit_learn():
    """On values in the middle of their bins nothing is lost by the histogram, and few levels are all kept."""
    rng = np.random.default_rng(0)
    values = (rng.integers(0, 40, 3000) + 0.5) / 40
    target = np.minimum((values**2 + rng.normal(0, 0.3, 3000)).clip(0) * 3, 2).astype(int)
    curve = fit_isotonic(value_histogram(values, target, None, classes=3, bins=40), middles(40))
    reference = IsotonicRegression(out_of_bounds="clip").fit(values, PLACES[target])
    tried = np.linspace(-0.1, 1.1, 500)
    np.testing.assert_allclose(apply_isotonic(tried, curve), reference.predict(tried), atol=2e-4)


def test_a_long_curve_is_thinned_to_its_knots_and_stays_close():
    prob, target = drawn_pixels(60_000, sharper=2)
    hist = hist_of(prob, target, 1 << 16)
    curve = fit_isotonic(hist, middles(1 << 16))
    assert len(curve["x"]) == len(curve["y"]) <= KNOTS and len(json.dumps(curve)) < 4000
    reference = IsotonicRegression(out_of_bounds="clip").fit(said(prob), PLACES[target])
    assert len(reference.X_thresholds_) > KNOTS
    tried = np.linspace(0, 1, 2000)
    off = np.abs(apply_isotonic(tried, curve) - reference.predict(tried))
    assert off.max() < 0.03 and off.mean() < 0.005


def test_thinning_keeps_the_ends_and_what_matters_most():
    x = np.linspace(0, 1, 101)
    y = np.where(x < 0.5, 0.0, 1.0)
    kept, level = thinned_knots(x, y, 4)
    np.testing.assert_allclose(kept, [0, 0.49, 0.5, 1])
    np.testing.assert_allclose(level, [0, 0, 1, 1])


def test_a_calibrated_map_rises_and_stays_within_0_and_1():
    prob, target = drawn_pixels(5000, sharper=3)
    inside = np.abs(said(prob) - 0.5) < 0.3
    curve = fit_isotonic(hist_of(prob[inside], target[inside]), middles())
    steps = np.linspace(0, 1, 501)
    ramp = np.stack([1 - steps, 0 * steps, steps])
    found = calibrated(ramp, {"isotonic": curve}, "isotonic")
    assert (np.diff(found) >= 0).all() and 0 <= found.min() <= found.max() <= 1 and np.ptp(found) > 0.3
    assert found[0] == np.float32(curve["y"][0]) and found[-1] == np.float32(curve["y"][-1])


@pytest.mark.parametrize("sharper", [0.5, 1.0, 2.5])
def test_the_temperature_is_the_likeliest_and_the_one_that_was_hidden(sharper):
    prob, target = drawn_pixels(30_000, sharper)
    weight = np.random.default_rng(1).integers(1, 4, len(target)).astype(float)
    found = fit_temperature(prob, target, weight)
    tried = np.exp(np.linspace(np.log(0.2), np.log(6), 1500))
    logits = np.log(prob[:3000].astype(float))
    right = (np.arange(3000), target[:3000])
    cost = [-(weight[:3000] * log_softmax(logits / t, 1)[right]).sum() for t in tried]
    assert fit_temperature(prob[:3000], target[:3000], weight[:3000]) == pytest.approx(tried[np.argmin(cost)], rel=2e-3)
    assert found == pytest.approx(sharper, rel=0.04)


def test_the_weight_of_a_pixel_is_that_of_as_many_pixels():
    prob, target = drawn_pixels(500, 2)
    weight = np.random.default_rng(2).integers(0, 4, 500)
    repeated = fit_temperature(np.repeat(prob, weight, 0), np.repeat(target, weight), np.ones(weight.sum()))
    assert fit_temperature(prob, target, weight) == pytest.approx(repeated, rel=1e-4)


def test_one_class_alone_tells_no_temperature():
    prob, _ = drawn_pixels(100, 2)
    assert fit_temperature(prob, np.zeros(100, int), np.ones(100)) == 1


def calibration_error(values, target):
    part = np.minimum((values * 15).astype(int), 14)
    sums = [np.bincount(part, one, 15) for one in (values, PLACES[target])]
    return np.abs(sums[0] - sums[1]).sum() / len(values)


def test_the_error_falls_on_pixels_left_out():
    prob, target = drawn_pixels(40_000, sharper=3)
    post = {
        "isotonic": fit_isotonic(hist_of(prob[:20_000], target[:20_000]), middles()),
        "temperature": fit_temperature(prob[:20_000], target[:20_000], np.ones(20_000)),
    }
    errors = {way: calibration_error(calibrated(prob[20_000:].T, post, way), target[20_000:]) for way in WAYS}
    assert errors["raw"] > 0.05
    assert errors["isotonic"] < 0.3 * errors["raw"] and errors["temperature"] < 0.3 * errors["raw"]


def test_probabilities_that_float16_made_0_stay_finite():
    prob = np.array([[1, 0, 0.5], [0, 0, 0.5], [0, 1, 0]], np.float16)
    found = calibrated(prob, {"temperature": 3.0}, "temperature")
    assert np.isfinite(found).all() and found[0] < 0.05 < 0.2 < found[2] < 0.4 and found[1] > 0.95


def test_classes_by_breaks():
    values = np.array([[0, 0.3299, 0.33, 0.5], [0.66, 0.67, 0.9, 1]], np.float32)
    assert susceptibility_classes(values).tolist() == [[0, 0, 1, 1], [1, 2, 2, 2]]
    assert susceptibility_classes(values).dtype == np.uint8
    assert susceptibility_classes(values, (0.5,)).tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("breaks", [(), (0.5, 0.5), (0.6, 0.4), (0, 0.5), (0.5, 1), (np.nan,)])
def test_breaks_that_mean_nothing(breaks):
    with pytest.raises(InputError, match="--breaks"):
        susceptibility_classes(np.zeros(3), breaks)


@pytest.mark.parametrize(
    "post, way, words",
    [
        ({}, "platt", "choose one of raw"),
        ({}, "isotonic", "nothing was fitted"),
        (None, "temperature", "nothing was fitted"),
        ({"temperature": 0.0}, "temperature", "above 0"),
        ({"isotonic": {"x": [0, 1], "y": [0.5, 0.2]}}, "isotonic", "no rising curve"),
        ({"isotonic": {"x": [0, 1], "y": [0, 1.2]}}, "isotonic", "no rising curve"),
        ({"isotonic": {"x": [], "y": []}}, "isotonic", "no rising curve"),
    ],
)
def test_what_cannot_be_done_says_so(post, way, words):
    with pytest.raises(InputError, match=words):
        calibrated(np.full((3, 2), 1 / 3), post, way)


def test_no_pixel_is_an_error():
    with pytest.raises(InputError, match="no pixel"):
        fit_isotonic(np.zeros((3, 10)), middles(10))
