"""Soft labels and ignored rims against slow versions that look at every pixel."""

import numpy as np
import pytest
from scipy import ndimage

from common.datasets.soft_targets import edge_confidence, ignore_rim
from common.errors import InputError


def drawn(seed=0, side=40, classes=2):
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(side, side + 6)), 3)
    target = np.digitize(field, np.quantile(field, np.linspace(0, 1, classes + 1)[1:-1])).astype(np.uint8)
    valid = rng.random(target.shape) > 0.03
    valid[:5] = False
    valid[20:30, 10:14] = False
    return np.where(valid, target, 0).astype(np.uint8), valid


def nearest_other(target, valid):
    """(H,W) distance of every pixel to the nearest valid pixel of another class."""
    points = np.argwhere(valid)
    away = np.full(target.shape, np.inf)
    for y, x in np.ndindex(target.shape):
        other = points[target[valid] != target[y, x]]
        if len(other):
            away[y, x] = np.sqrt(((other - (y, x)) ** 2).sum(1).min())
    return away


@pytest.mark.parametrize("width", [1, 2.5, 6])
@pytest.mark.parametrize("seed", range(3))
def test_distance_confidence_is_its_formula(seed, width):
    target, valid = drawn(seed)
    share = np.minimum((nearest_other(target, valid) - 0.5) / width, 1)
    expected = np.where(target == 1, 0.5 + share / 2, 0.5 - share / 2)
    found = edge_confidence(target, valid, kind="distance", width=width)
    assert found.dtype == np.float32 and (found[~valid] == 0).all()
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-6)
    assert ((found > 0.5) == (target == 1))[valid].all()


@pytest.mark.parametrize("width", [0.7, 2, 5])
def test_blur_confidence_is_that_of_scipy_over_the_valid_pixels(width):
    target, valid = drawn()
    blur = lambda mask: ndimage.gaussian_filter(mask.astype(float), width, mode="constant", truncate=4)  # noqa: E731
    expected = blur(target * valid) / np.maximum(blur(valid), 1e-12)
    found = edge_confidence(target, valid, kind="blur", width=width)
    assert found.dtype == np.float32 and (found[~valid] == 0).all() and found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-5)
    assert 0.02 < np.abs(found - target)[valid].mean() < 0.45


@pytest.mark.parametrize("kind", ["distance", "blur"])
@pytest.mark.parametrize("value", [0, 1])
def test_the_edge_of_no_data_is_no_edge(kind, value):
    valid = np.ones((30, 30), bool)
    valid[:, 15:] = False
    found = edge_confidence(np.where(valid, value, 1 - value).astype(np.uint8), valid, kind=kind, width=3)
    assert (found[valid] == value).all() and (found[~valid] == 0).all()
    nothing = edge_confidence(np.ones((5, 5), np.uint8), np.zeros((5, 5), bool), kind=kind, width=3)
    assert (nothing == 0).all()


@pytest.mark.parametrize("kind", ["distance", "blur"])
def test_what_lies_where_nothing_is_valid_has_no_say(kind):
    target, valid = drawn()
    other = np.where(valid, target, 1).astype(np.int64)
    mine, again = (edge_confidence(labels, valid, kind=kind, width=2) for labels in (target, other))
    assert (mine == again).all()


@pytest.mark.parametrize("width", [1, 2, 3.5])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_rim_is_what_is_near_another_class(classes, width):
    target, valid = drawn(classes=classes)
    found = ignore_rim(target, valid, width)
    assert (found == (valid & (nearest_other(target, valid) > width))).all()
    assert valid.sum() > found.sum() > 0
    other = np.where(valid, target, 1).astype(np.int64)
    assert (ignore_rim(other, valid, width) == found).all()


def test_two_pixels_go_on_each_side_of_a_straight_edge_and_none_at_the_border():
    target = np.zeros((12, 20), np.uint8)
    target[:, 9:] = 1
    kept = ignore_rim(target, np.ones_like(target, bool), 2)
    assert (kept == ((np.arange(20) < 7) | (np.arange(20) >= 11))).all()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda t, v: edge_confidence(t, v, kind="soft", width=2), "soft labels 'soft': choose from distance, blur"),
        (lambda t, v: edge_confidence(t, v, kind="blur", width=0), "soft labels blur: width 0"),
        (lambda t, v: edge_confidence(t, v, width=float("nan")), "soft labels distance: width nan"),
        (lambda t, v: ignore_rim(t, v, 0.5), "rim of 0.5 px"),
    ],
)
def test_wrong_settings_are_errors(call, words):
    with pytest.raises(InputError, match=words):
        call(*drawn())
