import cv2
import numpy as np
import pytest
from scipy import ndimage

from common.datasets import plant_statistics as module
from common.datasets.plant_statistics import PLANT_NAMES, PLANT_SETS, channel_maps, plant_statistics


def make_photo(seed=0, height=120, width=240, leaf=6, green=(60, 150, 50)):
    """Discs of one colour on brown ground."""
    rng = np.random.default_rng(seed)
    photo = np.full((height, width, 3), (110, 80, 60), np.uint8)
    for _ in range(int(1.2 * height * width / leaf**2 / 3)):
        shade = int(rng.integers(-25, 25))
        colour = tuple(int(c) + shade for c in green)
        cv2.circle(photo, (int(rng.integers(width)), int(rng.integers(height))), leaf, colour, -1)
    return np.clip(photo + rng.normal(0, 4, photo.shape), 0, 255).astype(np.uint8)


def named(values, prefix):
    return np.array([v for name, v in zip(PLANT_NAMES, values, strict=True) if name.startswith(prefix)])


def test_names_fit_and_values_are_finite_on_any_photo():
    flat = np.zeros((100, 200, 3), np.uint8)
    for photo in (make_photo(), make_photo(height=100, width=100), flat, flat + 255):
        values = plant_statistics(photo)
        assert values.shape == (len(PLANT_NAMES),) and values.dtype == np.float32
        assert np.isfinite(values).all()
    maps = channel_maps(make_photo())
    assert {name: len(function(maps)) for name, (function, _) in PLANT_SETS.items()} == {
        name: size for name, (_, size) in PLANT_SETS.items()
    }
    with pytest.raises(ValueError, match="float32"):
        plant_statistics(make_photo().astype(np.float32))


def test_cover_counts_the_green_share():
    photo = np.full((100, 200, 3), (110, 80, 60), np.uint8)
    photo[:, :60] = (60, 150, 50)
    green, _, lowest, highest = named(plant_statistics(photo), "cover")[:4]
    assert abs(green - 0.3) < 0.02 and lowest < 0.02 and highest > 0.95


def test_black_with_a_green_tint_is_dark_not_green():
    photo = np.full((100, 200, 3), (2, 8, 2), np.uint8)
    values = named(plant_statistics(photo), "cover").reshape(9, 4)[:, 0]
    assert values[0] < 0.1 and values[6] > 0.9


def test_larger_leaves_go_in_larger_openings():
    small, large = (named(plant_statistics(make_photo(leaf=leaf)), "granulometry") for leaf in (2, 12))
    assert (np.diff(small[:6]) >= -1e-6).all(), "a larger opening removes no less"
    assert (small[6:12] > large[6:12] + 0.01)[1:4].all(), "openings of the green index take small leaves away first"


def test_lines_are_more_coherent_than_discs():
    lines = np.full((120, 240, 3), 90, np.uint8)
    for x in range(0, 240, 6):
        cv2.line(lines, (x, 0), (x + 20, 120), (60, 150, 50), 2)
    first = [named(plant_statistics(photo), "orientation")[0] for photo in (lines, make_photo())]
    assert first[0] > first[1] + 0.1


def test_coherence_is_the_same_in_every_direction():
    y, x = np.mgrid[:500, :500]
    found = []
    for angle in (0, 30, 45, 90):
        wave = np.sin((x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))) / 4)
        photo = np.repeat((120 + 60 * wave)[..., None], 3, 2).astype(np.uint8)
        found.append(named(plant_statistics(photo), "orientation")[:2])
    assert np.min(found) > 0.9


def test_openings_equal_scipy():
    maps = {"light": np.random.default_rng(0).random((60, 80), np.float32)}
    maps["exg"] = maps["light"] - 0.5
    small = cv2.resize(maps["light"], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)).astype(bool)
    # beyond the border lies nothing: infinitely bright for the erosion, infinitely dark for the dilation
    eroded = ndimage.grey_erosion(small, footprint=kernel, mode="constant", cval=np.inf)
    opened = ndimage.grey_dilation(eroded, footprint=kernel, mode="constant", cval=-np.inf)
    expected = 1 - opened.mean() / (small.mean() + 1e-4) * 1.0
    assert abs(module.granulometry(maps)[1] - expected) < 2e-4


def slow_patterns(x):
    """Rotation-invariant uniform patterns the plain way: loops over pixels and neighbours."""
    counts = np.zeros(10)
    for r in range(1, x.shape[0] - 1):
        for c in range(1, x.shape[1] - 1):
            ring = [x[r + dy, c + dx] > x[r, c] for dy, dx in module.NEIGHBOURS]
            changes = sum(ring[k] != ring[k - 1] for k in range(8))
            counts[sum(ring) if changes <= 2 else 9] += 1
    return counts / counts.sum()


def test_binary_patterns_equal_a_plain_loop():
    rng = np.random.default_rng(2)
    maps = {name: rng.random((40, 50)).astype(np.float32) for name in ("light", "exg")}
    found = module.binary_patterns(maps)
    np.testing.assert_allclose(found[:10], slow_patterns(maps["light"]), atol=1e-6)
    np.testing.assert_allclose(found[10:20], slow_patterns(cv2.pyrDown(maps["light"])), atol=1e-6)
    np.testing.assert_allclose(found[40:50], slow_patterns(maps["exg"]), atol=1e-6)


def test_flips_leave_the_photo_what_it_is():
    photo = make_photo(height=500, width=1000)
    values, flipped = plant_statistics(photo), plant_statistics(np.ascontiguousarray(photo[:, ::-1]))
    assert np.abs(values - flipped).max() < 0.05 * np.abs(values).max()
    np.testing.assert_allclose(named(flipped, "distribution"), named(values, "distribution"), rtol=0.02, atol=2e-3)
