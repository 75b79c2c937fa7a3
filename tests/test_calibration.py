import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from common.errors import InputError
from common.metrics.curves import logit_histogram
from common.post.calibration import (
    calibration_scores,
    calibration_table,
    fit_temperature,
    reliability,
    scale,
    threshold_logit,
    threshold_prob,
)


def drawn(heat, seed=0, count=40_000):
    """Logits `heat` times too large, and truth drawn at the right ones."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-3, 2, count)
    target = rng.random(count) < expit(logit)
    return (heat * logit).astype(np.float32), target


@pytest.mark.parametrize("heat", [0.4, 1.0, 2.5])
def test_temperature_is_the_minimum_on_raw_logits(heat):
    logit, target = drawn(heat)
    known = minimize_scalar(
        lambda t: log_loss(target, expit(logit.astype(float) / t)), bounds=(0.1, 10), method="bounded"
    )
    found = fit_temperature(logit_histogram(logit, target))
    assert found == pytest.approx(known.x, abs=2e-3)
    assert found == pytest.approx(heat, rel=0.05)


def test_temperature_follows_weights():
    """Weighing the negatives is the same as repeating them."""
    logit, target = drawn(2.0)
    hist = logit_histogram(logit, target)
    again = np.concatenate([logit, *[logit[~target]] * 6])
    truth = np.concatenate([target, np.zeros(6 * (~target).sum(), bool)])
    weighted = fit_temperature(hist * np.array([[7.0], [1.0]]))
    assert weighted == pytest.approx(fit_temperature(logit_histogram(again, truth)), abs=1e-4)
    assert abs(weighted - fit_temperature(hist)) > 0.05


def test_temperature_of_one_class_is_one():
    logit, target = drawn(2.0)
    assert fit_temperature(logit_histogram(logit, np.zeros_like(target))) == 1.0


def test_reliability_is_sklearns():
    logit, target = drawn(2.0)
    share, prob = calibration_curve(target, expit(logit.astype(float) / 1.3), n_bins=15)
    table = reliability(logit_histogram(logit, target), 1.3)
    np.testing.assert_allclose(table["share"], share, atol=2e-3)
    np.testing.assert_allclose(table["prob"], prob, atol=2e-3)
    assert table["weight"].sum() == len(logit)


def test_scores_are_those_of_the_pixels():
    logit, target = drawn(2.0)
    prob = expit(logit.astype(float) / 1.5)
    scores = calibration_scores(logit_histogram(logit, target), 1.5)
    assert scores["nll"] == pytest.approx(log_loss(target, prob), rel=1e-4)
    assert scores["brier"] == pytest.approx(brier_score_loss(target, prob), rel=1e-4)
    part = np.minimum((prob * 15).astype(int), 14)
    known = sum(abs(prob[part == k].sum() - target[part == k].sum()) for k in range(15)) / len(prob)
    assert scores["ece"] == pytest.approx(known, rel=0.02)
    order = np.array_split(np.argsort(prob), 15)
    known = sum(abs(prob[k].sum() - target[k].sum()) for k in order) / len(prob)
    assert scores["ece_mass"] == pytest.approx(known, rel=0.05)


def test_stack_has_a_temperature_each():
    """Two parts, one twice as hot, at their own temperatures are as good as the cool pixels together."""
    logit, target = drawn(1.0)
    half = len(logit) // 2
    cool = [logit_histogram(logit[part], target[part]) for part in (slice(half), slice(half, None))]
    hot = logit_histogram(2 * logit[half:], target[half:])
    scores = calibration_scores(np.stack([cool[0], hot]), np.array([1.0, 2.0]))
    known = calibration_scores(cool[0] + cool[1])
    for name in ("nll", "brier", "ece"):
        assert scores[name] == pytest.approx(known[name], rel=1e-3), name
    assert calibration_scores(np.stack([cool[0], hot]))["nll"] > 1.05 * known["nll"]


def test_a_temperature_of_one_part_helps_the_other():
    hists = [logit_histogram(*drawn(2.0, seed)) for seed in (1, 2)]
    table = calibration_table({"b": (hists[1], fit_temperature(hists[0])), "none": (0 * hists[0], 1.0)})
    line = table.iloc[0]
    assert line["left out"] == "b" and line["temperature"] == pytest.approx(2, rel=0.1)
    for name in ("nll", "brier", "ece", "ece_mass"):
        assert line[f"{name}_after"] < line[f"{name}_before"], name
    assert line["ece_after"] < 0.3 * line["ece_before"]
    assert np.isnan(table.iloc[1]["nll_after"])


def test_thresholds_go_both_ways():
    for prob in (1e-6, 0.2, 0.5, 0.999):
        logit = threshold_logit(prob, 1.7)
        assert threshold_prob(logit, 1.7) == pytest.approx(prob, rel=1e-9)
        assert expit(scale(logit, 1.7)) == pytest.approx(prob, rel=1e-9)
    assert scale(np.ones(2, np.float32), 3).dtype == np.float32
    assert 0 < threshold_prob(-np.inf, 2) < 1e-12
    with pytest.raises(InputError, match="between 0 and 1"):
        threshold_logit(1.0, 1)
