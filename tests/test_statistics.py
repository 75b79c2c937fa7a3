"""Colour and texture statistics against plain formulas, and the baselines against scikit-learn by hand."""

import colorsys

import cv2
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from common.datasets.statistics import (
    COLOUR_NAMES,
    STATISTICS,
    TEXTURE_NAMES,
    colour_statistics,
    correlation,
    local_patterns,
    magnitude,
    reduce_photo,
    statistics_table,
    texture_statistics,
)
from common.errors import InputError
from common.metrics.baselines import CLIP, best_alpha, constant_oof, constant_score, ridge_oof, ridge_score
from common.metrics.regression import weighted_r2


def photo(seed=0, height=120, width=240):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def named(image, function=colour_statistics, names=COLOUR_NAMES):
    return dict(zip(names, function(image).tolist(), strict=True))


@pytest.mark.parametrize("kind", STATISTICS)
def test_names_are_unique_and_values_finite(kind):
    function, names = STATISTICS[kind]
    assert len(set(names)) == len(names)
    for image in (photo(), np.zeros((100, 200, 3), np.uint8), np.full((100, 200, 3), 255, np.uint8)):
        values = function(image)
        assert values.shape == (len(names),) and values.dtype == np.float32 and np.isfinite(values).all()


def test_moments_are_numpys():
    image = photo(1)
    found = named(image)
    for k, channel in enumerate(("red", "green", "blue")):
        plane = image[..., k].astype(float)
        assert found[f"{channel}_mean"] == pytest.approx(plane.mean(), rel=1e-5)
        assert found[f"{channel}_sd"] == pytest.approx(plane.std(), rel=1e-5)
        assert found[f"{channel}_p75"] == pytest.approx(np.percentile(plane, 75))


def test_one_colour_gives_its_own_hue_and_indices():
    rgb = np.array([60, 150, 40])
    found = named(np.full((40, 80, 3), rgb, np.uint8))
    hue, saturation, value = colorsys.rgb_to_hsv(*(rgb / 255))
    assert found["hue_mean"] == pytest.approx(hue * 180, abs=1)
    assert found["saturation_mean"] == pytest.approx(saturation * 255, abs=1)
    assert found["value_mean"] == pytest.approx(value * 255)
    assert found["excess_green_mean"] == pytest.approx((2 * 150 - 60 - 40) / 250, rel=1e-5)
    assert found["excess_red_mean"] == pytest.approx((1.4 * 60 - 150) / 250, rel=1e-5)
    assert found["green_share"] == 1 and found["straw_share"] == 0 and found["dark_share"] == 0
    assert found[f"hue_share_{int(hue * 12)}"] == pytest.approx(1)


def test_texture_ignores_gain_and_sees_scale():
    grey = cv2.GaussianBlur(photo(2, 400, 800), (0, 0), 3)
    grey = np.clip((grey.astype(float) - grey.mean()) / grey.std() * 40 + 128, 0, 255).astype(np.uint8)
    soft = np.clip(grey.astype(float) * 0.5, 0, 255).astype(np.uint8)
    base, dim = (named(image, texture_statistics, TEXTURE_NAMES) for image in (grey, soft))
    assert dim["scale1_correlation_0_3"] == pytest.approx(base["scale1_correlation_0_3"], rel=0.02)
    for name in ("scale1_gradient_mean", "scale2_gradient_sd", "scale2_laplacian"):
        assert dim[name] == pytest.approx(base[name], rel=0.1)
    coarse = named(cv2.GaussianBlur(grey, (0, 0), 9), texture_statistics, TEXTURE_NAMES)
    assert coarse["scale1_gradient_mean"] < 0.6 * base["scale1_gradient_mean"]


def test_equal_gradients_have_equal_bytes_wherever_their_memory_lies():
    """That of OpenCV has other last digits where its result is not aligned to 32 bytes: a cache made again differs."""
    rng = np.random.default_rng(3)
    gx, gy = (rng.normal(size=(16, 32)).astype(np.float32) for _ in range(2))
    held, found = [], set()
    for _ in range(40):
        held.append(np.empty(rng.integers(1, 3000), np.uint8))  # moves what is allocated next
        found.add(magnitude(gx.copy(), gy.copy()).tobytes())
    assert len(found) == 1
    np.testing.assert_allclose(magnitude(gx, gy), np.hypot(gx, gy), rtol=1e-6)


def test_correlation_is_pearsons():
    plane = photo(3)[..., 0].astype(np.float32)
    for dy, dx in ((0, 1), (2, 0), (1, 3)):
        here, there = plane[dy:, dx:], plane[: len(plane) - dy, : plane.shape[1] - dx]
        assert correlation(plane, dy, dx) == pytest.approx(np.corrcoef(here.ravel(), there.ravel())[0, 1], abs=1e-4)


def test_local_patterns_against_a_slow_loop():
    plane = photo(4, 20, 30)[..., 0].astype(np.float32)
    ring = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
    expected = np.zeros(10)
    for y in range(1, 19):
        for x in range(1, 29):
            bits = [plane[y + dy, x + dx] >= plane[y, x] for dy, dx in ring]
            changes = sum(bits[k] != bits[k - 1] for k in range(8))
            expected[sum(bits) if changes <= 2 else 9] += 1
    np.testing.assert_allclose(local_patterns(plane), expected / expected.sum())


def test_reduced_only_when_larger_and_refused_when_no_photo():
    assert reduce_photo(photo(0, 1000, 2000)).shape == (500, 1000, 3)
    small = photo()
    assert reduce_photo(small) is small
    with pytest.raises(ValueError, match="uint8"):
        reduce_photo(small.astype(np.float32))


def test_table_reads_each_path_in_order():
    pictures = {f"p{k}": photo(k) for k in range(3)}
    table, names = statistics_table(list(pictures), "colour", pictures.__getitem__)
    assert names == COLOUR_NAMES and table.shape == (3, len(names))
    np.testing.assert_array_equal(table, np.stack([colour_statistics(image) for image in pictures.values()]))


@pytest.fixture
def regression():
    """90 rows in 5 folds whose masses follow the statistics."""
    rng = np.random.default_rng(0)
    statistics = rng.normal(size=(90, 12))
    target = np.maximum(statistics @ rng.normal(size=(12, 5)) * 5 + 40 + rng.normal(0, 3, (90, 5)), 0)
    return statistics, target, np.arange(90) % 5


def test_constant_is_the_mean_of_the_other_folds(regression):
    _, target, fold = regression
    pred = constant_oof(target, fold)
    for k in range(5):
        expected = [np.mean([t for t, f in zip(target[:, c], fold, strict=True) if f != k]) for c in range(5)]
        np.testing.assert_allclose(pred[fold == k], np.tile(expected, (18, 1)))
    assert constant_score(target, fold) == weighted_r2(target, pred)


def test_ridge_equals_one_written_by_hand(regression):
    statistics, target, fold = regression
    pred, inside = ridge_oof(statistics, target, fold), fold != 2
    mean, sd = statistics[inside].mean(0), statistics[inside].std(0)
    scaled = np.clip((statistics - mean) / sd, -CLIP, CLIP)
    alpha = best_alpha(statistics[inside], target[inside], fold[inside])
    expected = Ridge(alpha).fit(scaled[inside], target[inside]).predict(scaled[fold == 2])
    np.testing.assert_allclose(pred[fold == 2], np.maximum(expected, 0))
    assert ridge_score(statistics, target, fold) > 0.8


def test_ridge_never_sees_the_held_out_targets(regression):
    statistics, target, fold = regression
    other = target.copy()
    other[fold == 1] += 1000
    np.testing.assert_array_equal(
        ridge_oof(statistics, target, fold)[fold == 1], ridge_oof(statistics, other, fold)[fold == 1]
    )


def test_an_almost_constant_column_does_not_carry_a_photo_off(regression):
    statistics, target, fold = regression
    rare = np.random.default_rng(1).normal(0, 1e-6, 90)
    rare[np.flatnonzero(fold == 0)[0]] = 1.0
    assert ridge_score(np.c_[statistics, rare], target, fold) > 0.7


def test_ridge_without_information_falls_to_the_constant(regression):
    statistics, target, fold = regression
    shuffled = statistics[np.random.default_rng(3).permutation(90)]
    assert abs(ridge_score(shuffled, target, fold) - constant_score(target, fold)) < 0.1


@pytest.mark.parametrize("fold", [np.zeros(90, int), np.r_[-1, np.arange(89) % 5], np.arange(80) % 5])
def test_useless_folds_are_refused(regression, fold):
    with pytest.raises(InputError, match="fold"):
        constant_oof(regression[1], fold)
