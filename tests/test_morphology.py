import inspect

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import remove_small_holes, remove_small_objects

from common.post import morphology
from common.post.morphology import clean_mask, finish_mask, small_components

SHAPE = {4: ndimage.generate_binary_structure(2, 1), 8: np.ones((3, 3), bool)}


def patchy(classes, seed, size=64):
    """A mask of blobs of all sizes."""
    rng = np.random.default_rng(seed)
    noise = [ndimage.gaussian_filter(rng.normal(size=(size, size)), 1.5) for _ in range(classes)]
    return np.argmax(noise, 0).astype(np.uint8)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("area, hole", [(30, 0), (0, 25), (60, 40)])
def test_two_classes_equal_scikit_image(connectivity, area, hole):
    ranks = {4: 1, 8: 2}
    for seed in range(4):
        mask = patchy(2, seed)
        expected = mask.astype(bool)
        if area:
            expected = remove_small_objects(expected, max_size=area - 1, connectivity=ranks[connectivity])
        if hole:
            expected = remove_small_holes(expected, max_size=hole - 1, connectivity=ranks[12 - connectivity])
        found = clean_mask(mask, min_area=area, fill_holes=hole, connectivity=connectivity)
        np.testing.assert_array_equal(found, expected)
        assert (found != mask).any()


def slow_clean(mask, valid, areas, hole, connectivity):
    """The rule written plainly: one component after the other, its neighbours by dilation."""
    mask = np.where(valid, mask, 0)
    new, small = mask.copy(), []
    for value, area in enumerate(areas, 1):
        labels, count = ndimage.label(mask == value, SHAPE[connectivity])
        small += [labels == i for i in range(1, count + 1) if (labels == i).sum() < area]
    gone = np.any(small, 0) if small else np.zeros(mask.shape, bool)
    for part in small:
        new[part] = most_common(part, mask, valid & ~gone, connectivity)
    labels, count = ndimage.label(new == 0, SHAPE[12 - connectivity])
    filled = new.copy()
    for i in range(1, count + 1):
        if (labels == i).sum() < hole:
            filled[labels == i] = most_common(labels == i, new, valid & (new > 0), 12 - connectivity)
    return np.where(valid, filled, 0)


def most_common(part, mask, voters, connectivity):
    """A pixel votes once for every side on which it touches the part."""
    kernel = SHAPE[connectivity].astype(int)
    sides = ndimage.convolve(part.astype(int), kernel, mode="constant") * (voters & ~part)
    votes = np.bincount(mask[voters], sides[voters], 5)
    return votes.argmax()


@pytest.mark.parametrize("connectivity", [4, 8])
def test_four_classes_equal_the_plain_rule(connectivity):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        mask, valid = patchy(4, seed, 48), ndimage.gaussian_filter(rng.normal(size=(48, 48)), 3) < 0.1
        found = clean_mask(mask, valid, min_area=(40, 20, 8), fill_holes=30, connectivity=connectivity)
        np.testing.assert_array_equal(found, slow_clean(mask, valid, (40, 20, 8), 30, connectivity))
        assert found.dtype == np.uint8 and not found[~valid].any()


def test_a_small_lake_survives_by_its_own_area():
    mask = np.zeros((40, 40), np.uint8)
    mask[5:30, 5:30] = 1
    mask[10:14, 10:15] = 3  # 20 px of lake within the glacier
    mask[20:24, 20:24] = 2  # 16 px of debris
    kept = clean_mask(mask, min_area=(100, 100, 15))
    assert (kept == 3).sum() == 20 and not (kept == 2).any() and (kept[20:24, 20:24] == 1).all()
    assert set(np.unique(clean_mask(mask, min_area=100))) == {0, 1}
    np.testing.assert_array_equal(clean_mask(mask, min_area=0, fill_holes=0), mask)


def test_nodata_stays_background_and_the_input_as_it_was():
    mask, valid = np.ones((30, 30), np.uint8), np.ones((30, 30), bool)
    valid[4:7, 4:7] = False
    mask[15:18, 15:18] = 0
    before = mask.copy()
    found = clean_mask(mask, valid)
    assert not found[4:7, 4:7].any() and found[15:18, 15:18].all()
    np.testing.assert_array_equal(mask, before)
    assert not clean_mask(mask, np.zeros_like(valid)).any()


def test_areas_are_exact_at_the_limit():
    mask = np.zeros((30, 30), np.uint8)
    mask[2:12, 2:12] = 1  # 100 px
    mask[20:29, 2:13] = 1  # 99 px
    assert clean_mask(mask, min_area=100, fill_holes=0).sum() == 100
    labels, count = small_components(mask == 1, 100, 8, first=5)
    assert count == 6 and set(np.unique(labels)) == {0, 5}


def test_too_few_areas_is_an_error():
    with pytest.raises(ValueError, match="class 3"):
        clean_mask(patchy(4, 0), min_area=(10, 10))


def test_finish_is_thresholds_then_cleaning():
    rng = np.random.default_rng(0)
    prob = np.stack([ndimage.gaussian_filter(rng.normal(size=(64, 64)), 1.5) for _ in range(3)])
    prob = np.exp(20 * prob) / np.exp(20 * prob).sum(0)
    valid = rng.random((64, 64)) > 0.05
    plain = finish_mask(prob, valid, thresholds=(1, 1, 1))
    np.testing.assert_array_equal(plain, np.where(valid, prob.argmax(0), 0))
    done = finish_mask(prob, valid, thresholds=(0.2, 0.3, 0.5), min_area=20, fill_holes=10)
    cut = (prob / np.array([0.2, 0.3, 0.5])[:, None, None]).argmax(0).astype(np.uint8)
    np.testing.assert_array_equal(done, clean_mask(cut, valid, min_area=20, fill_holes=10))
    assert (done != plain).any()


def test_the_module_needs_what_the_platform_has():
    """It is copied into the file that is handed in: numpy and OpenCV, nothing of ours but thresholds."""
    lines = [line for line in inspect.getsource(morphology).splitlines() if line.startswith(("import", "from"))]
    allowed = {"collections.abc", "cv2", "numpy", "common.post.thresholds"}
    assert {line.split()[1] for line in lines} == allowed
