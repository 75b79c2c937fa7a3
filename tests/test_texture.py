import itertools
import re

import numpy as np
import pytest
import tifffile
from skimage.feature import graycomatrix, graycoprops

from benchmarks import texture as benchmark
from common.datasets.texture import ANGLES, LEVELS, PROPERTIES, WINDOWS, glcm, quantise
from common.errors import InputError

DIRECTIONS = [angles for count in range(1, 5) for angles in itertools.combinations(ANGLES, count)]


def drawn(shape=(21, 26), seed=0):
    """A band with slopes, noise and a flat corner."""
    rng = np.random.default_rng(seed)
    band = np.cumsum(rng.normal(size=shape), axis=1) + 2 * rng.normal(size=shape)
    band[: shape[0] // 2, : shape[1] // 2] = 1.5
    return band.astype(np.float32)


def by_scikit_image(grey, y, x, window, levels, distance=1):
    """(properties, angles) of the window around a pixel; `grey` is padded by half a window."""
    cut = grey[y : y + window, x : x + window]
    matrix = graycomatrix(cut, [distance], np.deg2rad(ANGLES), levels, symmetric=True, normed=True)
    return np.array([graycoprops(matrix, name)[0] for name in PROPERTIES])


def pixels(shape, count, seed):
    """Corners, the middle, and some at random."""
    rng = np.random.default_rng(seed)
    fixed = [(0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 2)]
    return fixed + [tuple(rng.integers(0, shape).tolist()) for _ in range(count)]


def compare(band, *, levels, window, distance=1, directions=DIRECTIONS, count=3):
    low, high = np.percentile(band, [2, 98])
    grey = np.pad(quantise(band, low, high, levels), window // 2, mode="reflect")
    places = pixels(band.shape, count, seed=levels + window)
    wanted = np.array([by_scikit_image(grey, y, x, window, levels, distance) for y, x in places])
    for angles in directions:
        maps = glcm(band, low=low, high=high, properties=PROPERTIES, levels=levels, window=window, angles=angles,
                    distance=distance)  # fmt: skip
        assert maps.dtype == np.float32 and maps.shape == (len(PROPERTIES), *band.shape)
        found = np.array([maps[:, y, x] for y, x in places])
        chosen = wanted[:, :, [ANGLES.index(angle) for angle in angles]].mean(axis=2)
        np.testing.assert_allclose(found, chosen, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("levels", LEVELS)
def test_every_property_and_direction_set_as_scikit_image(levels, window):
    compare(drawn(), levels=levels, window=window)


@pytest.mark.parametrize("distance", [2, 3, 6])
def test_distances_are_rounded_as_scikit_image_does(distance):
    compare(drawn(seed=1), levels=16, window=7, distance=distance, directions=[(0,), (45,), (90,), (135,), ANGLES])


@pytest.mark.soak
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("levels", LEVELS)
def test_many_pixels_as_scikit_image(levels, window):
    compare(drawn((60, 70), seed=2), levels=levels, window=window, count=300)


def test_no_drift_along_a_wide_row():
    """The sliding sums of the last windows of a long row are as good as those of the first."""
    band = drawn((9, 3000), seed=3)
    low, high = np.percentile(band, [1, 99])
    maps = glcm(band, low=low, high=high, properties=PROPERTIES)
    grey = np.pad(quantise(band, low, high, 32), 3, mode="reflect")
    for x in (0, 2900, 2999):
        wanted = by_scikit_image(grey, 4, x, 7, 32).mean(axis=1)
        np.testing.assert_allclose(maps[:, 4, x], wanted, rtol=1e-5, atol=1e-5)


def test_flat_band():
    maps = dict(zip(PROPERTIES, glcm(np.full((8, 9), 5.0), low=0, high=10, properties=PROPERTIES), strict=True))
    for name, value in {"contrast": 0, "energy": 1, "ASM": 1, "entropy": 0, "homogeneity": 1, "correlation": 1,
                        "mean": 16, "variance": 0, "std": 0, "dissimilarity": 0}.items():  # fmt: skip
        assert (maps[name] == value).all(), name


def test_each_property_alone_and_in_any_order_is_the_same():
    band = drawn()
    low, high = np.percentile(band, [1, 99])
    together = glcm(band, low=low, high=high, properties=PROPERTIES)
    for place, name in enumerate(PROPERTIES):
        np.testing.assert_array_equal(glcm(band, low=low, high=high, properties=(name,))[0], together[place])
    backwards = glcm(band, low=low, high=high, properties=PROPERTIES[::-1])
    np.testing.assert_array_equal(backwards[::-1], together)


def test_threads_change_nothing():
    band = drawn((50, 40))
    one, three = (glcm(band, low=-5, high=5, properties=PROPERTIES, threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one, three)


def test_grey_levels_are_equal_steps_and_closed_at_both_ends():
    band = np.array([[-1e9, 99.9, 100, 124.9, 125, 299.9, 300, 1e9, np.nan]])
    assert quantise(band, 100, 300, 8).tolist() == [[0, 0, 0, 0, 1, 7, 7, 7, 0]]
    spread = np.bincount(quantise(np.linspace(0, 1, 64_001)[:-1], 0, 1, 64), minlength=64)
    assert np.abs(spread - 1000).max() <= 1
    with pytest.raises(InputError, match="low end below"):
        quantise(band, 3, 3, 8)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"properties": ("contrast", "energie")}, "property energie is not offered; choose from contrast"),
        ({"properties": ()}, "no property given"),
        ({"levels": 33}, "level count 33 .* 8, 16, 32, 64"),
        ({"window": 8}, "window 8 "),
        ({"angles": (30,)}, "angle 30 .* 0, 45, 90, 135"),
        ({"distance": 7}, "distance 7 does not fit .* 1 to 6"),
        ({"distance": 0}, "distance 0 "),
    ],
)
def test_what_is_not_offered_is_an_error(wrong, said):
    with pytest.raises(InputError, match=said):
        glcm(np.zeros((8, 8)), low=0, high=1, **wrong)


def test_a_real_band(glacier_data):
    path = sorted((glacier_data / "Train" / "Band4").glob("*.tif"))[3]
    band = tifffile.imread(path).squeeze()
    low, high = np.percentile(band[band > 0], [1, 99])
    maps = glcm(band, low=low, high=high, properties=PROPERTIES)
    grey = np.pad(quantise(band, low, high, 32), 3, mode="reflect")
    places = pixels(band.shape, 40, seed=0)
    wanted = [by_scikit_image(grey, y, x, 7, 32).mean(axis=1) for y, x in places]
    np.testing.assert_allclose([maps[:, y, x] for y, x in places], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.soak
def test_a_thousand_times_the_speed_of_scikit_image(capsys):
    benchmark.main(["--rows", "4"])
    printed = capsys.readouterr().out
    assert int(re.search(r"(\d+) by CPU time", printed)[1]) >= 1000, printed
    assert float(re.search(r"difference on those rows: (\S+)", printed)[1]) < 1e-5
