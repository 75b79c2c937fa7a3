"""SMOTE beside imbalanced-learn and plain slow versions; windows around a class and their mixing."""

import numpy as np
import pytest
from scipy import ndimage
from threadpoolctl import threadpool_limits

from common.datasets.smote import (
    describe,
    mix_windows,
    nearest_windows,
    neighbours,
    smote,
    windows_around,
)
from common.errors import InputError


def some_points(count: int, bands: int, seed: int = 0) -> np.ndarray:
    """Bands of very different size, as slope in degrees beside elevation in metres, some of them one-hot."""
    random = np.random.default_rng(seed)
    points = random.normal(size=(count, bands)) * 10.0 ** random.uniform(-2, 3, bands) + random.normal(size=bands) * 99
    points[:, -1] = random.integers(0, 2, count)
    return points.astype(np.float32)


@pytest.mark.parametrize(("count", "bands", "k"), [(40, 2, 3), (300, 7, 5), (700, 28, 5), (6, 4, 5)])
def test_neighbours_are_those_of_a_plain_search(count, bands, k):
    points = some_points(count, bands)
    found = neighbours(points, k)
    for index, point in enumerate(points.astype(np.float64)):
        distance = np.linalg.norm(points - point, axis=1)
        distance[index] = np.inf
        np.testing.assert_array_equal(found[index], np.argsort(distance)[:k])
    np.testing.assert_array_equal(neighbours(points, k, np.array([4, 2, 4])), found[[4, 2, 4]])


def test_a_point_is_never_its_own_neighbour():
    copies = np.concatenate([np.zeros((9, 3), np.float32), np.ones((4, 3), np.float32), np.full((1, 3), 3, np.float32)])
    found = neighbours(copies, 3)
    assert found.shape == (14, 3) and not (found == np.arange(14)[:, None]).any()
    assert all(len(set(near)) == 3 for near in found)
    np.testing.assert_array_equal(copies[found[:13]], np.repeat(copies[:13, None], 3, axis=1))
    assert set(found[13]) < {9, 10, 11, 12}


@pytest.mark.parametrize(("bands", "dtype"), [(3, np.float32), (17, np.float32), (28, np.float64)])
def test_new_pixels_are_imbalanced_learns(bands, dtype):
    over_sampling = pytest.importorskip("imblearn.over_sampling")
    rare, many = some_points(150, bands).astype(dtype), some_points(400, bands, seed=1).astype(dtype)
    known, classes = np.concatenate([many, rare]), np.repeat([0, 1], [400, 150])
    theirs = over_sampling.SMOTE(k_neighbors=5, random_state=7).fit_resample(known, classes)[0][len(known) :]
    ours = smote(rare, len(theirs), k=5, seed=7)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, theirs)


def test_new_pixels_are_the_same_for_any_number_of_threads():
    """Whole numbers in many bands: many points are equally near."""
    points, found = np.random.default_rng(0).integers(0, 2, (3000, 17)).astype(np.float32), []
    for threads in (1, 4):
        with threadpool_limits(limits=threads):
            found.append(smote(points, 5000, k=4, seed=3))
    np.testing.assert_array_equal(*found)
    assert (found[0] != smote(points, 5000, k=4, seed=4)).any()


@pytest.mark.parametrize(("count", "k", "word"), [(5, 5, "hold 5"), (0, 1, "hold 0"), (9, 0, "--smote-k 0")])
def test_too_few_pixels_are_one_line(count, k, word):
    for call in (lambda p: smote(p, 3, k=k, seed=0), lambda p: neighbours(p, k)):
        with pytest.raises(InputError, match=word) as error:
            call(np.zeros((count, 2), np.float32))
        assert "\n" not in str(error.value)


def some_mask(seed: int, size=(70, 90)) -> np.ndarray:
    random = np.random.default_rng(seed)
    blurred = ndimage.gaussian_filter(random.normal(size=size), 3)
    return (blurred > np.quantile(blurred, 0.9)) | (random.random(size) < 0.002)


@pytest.mark.parametrize(("seed", "side"), [(0, 16), (1, 24), (2, 70), (3, 200), (4, 1)])
def test_windows_hold_every_pixel_of_the_class_and_lie_inside(seed, side):
    mask = some_mask(seed)
    windows, seen = windows_around(mask, side), np.zeros_like(mask)
    for y, x in windows:
        assert 0 <= y <= max(mask.shape[0] - side, 0) and 0 <= x <= max(mask.shape[1] - side, 0)
        before = (mask & seen).sum()
        seen[y : y + side, x : x + side] = True
        assert (mask & seen).sum() > before  # each brings something that none before it held
    assert not (mask & ~seen).any()
    if side == 1:
        assert len(windows) == mask.sum()


def test_windows_lie_around_the_largest_component_first():
    mask = np.zeros((60, 60), bool)
    mask[40:47, 20:29] = True
    mask[5, 5] = True
    assert windows_around(mask, 11) == [(43 - 5, 24 - 5), (0, 0)]
    assert windows_around(np.zeros((9, 9), bool), 4) == []


def test_description_leaves_out_pixels_without_data():
    random = np.random.default_rng(0)
    window, valid = random.normal(size=(3, 8, 8)).astype(np.float32), random.random((8, 8)) < 0.6
    spoilt = np.where(valid, window, np.float32(-3.4e38))
    values = [window[band][valid].astype(np.float64) for band in range(3)]
    np.testing.assert_allclose(describe(spoilt, valid), [v.mean() for v in values] + [v.std() for v in values])


def test_nearest_windows_are_compared_in_deviations_and_share_no_ground():
    random = np.random.default_rng(0)
    values, ground = random.normal(size=(40, 6)) * [1, 1, 1, 1e4, 1e-4, 0], np.repeat(np.arange(10), 4)
    found = nearest_windows(values, 3, lambda index: ground != ground[index])
    scaled = (values[:, :5] - values[:, :5].mean(axis=0)) / values[:, :5].std(axis=0)
    for index in range(40):
        order = np.argsort(np.linalg.norm(scaled - scaled[index], axis=1))
        assert list(found[index]) == [other for other in order if ground[other] != ground[index]][:3]


def test_windows_of_one_ground_alone_have_none_to_be_mixed_with():
    found = nearest_windows(np.eye(5), 2, lambda index: np.zeros(5, bool))
    assert [list(near) for near in found] == [[]] * 5


def test_too_few_windows_are_one_line():
    with pytest.raises(InputError, match="windows of the class or more, the training tiles hold 2"):
        nearest_windows(np.eye(2), 2, lambda index: np.ones(2, bool))


def test_mixing_keeps_values_and_places_of_data():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 4, 9, 9)).astype(np.float32)
    first[:, :3], second[:, :, :2] = 0, 0
    mixed = mix_windows(first, second, 0.3)
    both = first + np.float32(0.3) * (second - first)
    np.testing.assert_array_equal(mixed[:, 3:, 2:], both[:, 3:, 2:])
    np.testing.assert_array_equal(mixed[:, 3:, :2], first[:, 3:, :2])
    assert not mixed[:, :3].any()


def test_values_that_cancel_remain_data():
    ones = np.ones((2, 3, 3), np.float32)
    mixed = mix_windows(ones, -ones, 0.5)
    assert (mixed != 0).any(axis=0).all() and mixed.max() < 1e-30
