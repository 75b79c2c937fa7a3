"""Dense CRF: labels of pydensecrf2 where it is installed, probabilities of a slow plain version anywhere."""

import itertools

import cv2
import numba
import numpy as np
import pytest

from common.errors import InputError
from common.post import crf, permutohedral


@pytest.fixture(autouse=True)
def threads():
    before = numba.get_num_threads()
    crf._position_lattice.cache_clear()
    yield
    numba.set_num_threads(before)


def picture(height=90, width=120, bands=3, classes=3, seed=0, noise=3.0):
    """prob (K, H, W) of noisy smooth fields and a guide (C, H, W) of whole grey levels."""
    rng = np.random.default_rng(seed)

    def field(scale):
        drawn = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), scale)
        return drawn / drawn.std()

    grey = [128 + 30 * field(9) + noise * rng.normal(size=(height, width)) for _ in range(bands)]
    logits = np.stack([2 * field(7) + rng.normal(size=(height, width)) for _ in range(classes)])
    prob = np.exp(logits) / np.exp(logits).sum(0)
    return prob.astype(np.float32), np.clip(grey, 0, 255).round().astype(np.float32)


def theirs(prob, guide, iterations):
    """pydensecrf2 with the settings that are ours by default."""
    densecrf, utils = (pytest.importorskip(f"pydensecrf.{name}") for name in ("densecrf", "utils"))
    classes, height, width = prob.shape
    model = densecrf.DenseCRF2D(width, height, classes)
    model.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(prob)))
    model.addPairwiseGaussian(sxy=5, compat=5)
    image = np.ascontiguousarray(guide.transpose(1, 2, 0))
    if len(guide) == 3:
        model.addPairwiseBilateral(sxy=5, srgb=3, rgbim=image.astype(np.uint8), compat=15)
    else:
        features = utils.create_pairwise_bilateral((5, 5), [3] * len(guide), image, 2)
        model.addPairwiseEnergy(np.ascontiguousarray(features), compat=15)
    return np.array(model.inference(iterations)).reshape(prob.shape)


@pytest.mark.parametrize(("bands", "classes", "iterations"), [(3, 3, 10), (3, 2, 5), (5, 3, 8), (5, 2, 10), (1, 3, 6)])
def test_labels_and_probabilities_are_those_of_pydensecrf(bands, classes, iterations):
    prob, guide = picture(bands=bands, classes=classes)
    expected = theirs(prob, guide, iterations)
    found = crf.refine(prob, guide, iterations=iterations)
    assert (found.argmax(0) == expected.argmax(0)).mean() >= 0.999
    assert np.quantile(np.abs(found - expected), 0.999) < 1e-3
    assert (found.argmax(0) != prob.argmax(0)).mean() > 0.02  # it did something


def simplex(feature):
    """Vertices (D tuples of D) and weights of one point, after Adams et al. (2010), in double precision."""
    d = len(feature)
    wide = d + 1
    scaled = np.asarray(feature, float) / np.sqrt(np.arange(1, wide) * np.arange(2, d + 2)) * np.sqrt(2 / 3) * wide
    point = np.array([scaled[i:].sum() - (i * scaled[i - 1] if i else 0) for i in range(wide)])
    nearest = np.rint(point / wide).astype(int)
    rank = np.empty(wide, int)
    rank[np.argsort(-(point - nearest * wide), kind="stable")] = np.arange(wide)
    rank += nearest.sum()
    nearest += (rank < 0).astype(int) - (rank > d)
    rank += wide * ((rank < 0).astype(int) - (rank > d))
    offset = ((point - nearest * wide) / wide)[np.argsort(rank)]
    weights = [offset[-1] + 1 - offset[0], *(offset[d - r] - offset[d - r + 1] for r in range(1, wide))]
    return [tuple(nearest * wide + np.where(rank > d - r, r - wide, r)) for r in range(wide)], weights


def plain_filter(simplices, values, wide):
    """(N, C) filtered, with a dict for the lattice; the order of the axes matters, as vertices may be missing."""
    lattice = {}
    for (vertices, weights), value in zip(simplices, values, strict=True):
        for vertex, weight in zip(vertices, weights, strict=True):
            lattice[vertex] = lattice.get(vertex, 0) + weight * value
    for axis in range(wide):
        step = np.full(wide, -1)
        step[axis] += wide
        both = ((vertex, tuple(np.add(vertex, step)), tuple(np.subtract(vertex, step))) for vertex in lattice)
        lattice = {v: lattice[v] + 0.5 * (lattice.get(up, 0) + lattice.get(down, 0)) for v, up, down in both}
    return np.array([sum(w * lattice[v] for v, w in zip(*each, strict=True)) for each in simplices])


def plain_crf(prob, guide, valid, *, iterations, sxy, bands_sxy, srgb):
    """(K, H, W) by the formulas, point by point; default weights 5 and 15."""
    classes, (height, width) = len(prob), valid.shape
    places = list(itertools.product(range(height), range(width)))
    log = np.log(np.clip(prob, 1e-5, 1)).reshape(classes, -1).T.astype(float)
    terms = [(5, valid.ravel(), [(x / sxy, y / sxy) for y, x in places], np.ones(len(places), bool))]
    if guide is not None:
        used = (valid & np.isfinite(guide).all(0)).ravel()
        bands = guide.reshape(len(guide), -1).T / srgb
        turn = 1 if len(guide) == 3 else -1
        at = [(*(x / bands_sxy, y / bands_sxy)[::turn], *band) for (y, x), band in zip(places, bands, strict=True)]
        terms.append((15, used, at, used))
    terms = [
        (weight, used, entered, [simplex(feature) for feature, take in zip(at, entered, strict=True) if take])
        for weight, used, at, entered in terms
    ]

    def message(values, used, entered, simplices):
        out = np.zeros_like(values)
        out[entered] = plain_filter(simplices, (values * used[:, None])[entered], len(simplices[0][0]))
        return out * used[:, None]

    q = np.exp(log) / np.exp(log).sum(1, keepdims=True)
    norms = [1 / np.sqrt(message(np.ones((len(q), 1)), *term[1:]) + 1e-20) * term[1][:, None] for term in terms]
    for _ in range(iterations):
        total = log.copy()
        for term, norm in zip(terms, norms, strict=True):
            total += term[0] * norm * message(q * norm, *term[1:])
        q = np.exp(total - total.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
    q[~valid.ravel()] = np.eye(classes)[0]
    return q.T.reshape(prob.shape)


@pytest.mark.parametrize("bands", [0, 1, 2, 3, 5])
def test_probabilities_are_those_of_a_plain_version(bands):
    prob, guide = picture(12, 14, bands=max(bands, 1))
    guide = guide + np.random.default_rng(1).random(guide.shape).astype(np.float32)  # no point lies on a border
    valid = np.random.default_rng(2).random(prob.shape[1:]) < 0.8
    guide[0, 3:6, 2:9] = np.nan
    widths = {"spatial_weight": 3.7, "bilateral_sxy": 6.3, "bilateral_srgb": 4.1}
    found = crf.refine(prob, guide if bands else None, valid, iterations=3, **widths)
    expected = plain_crf(prob, guide if bands else None, valid, iterations=3, sxy=3.7, bands_sxy=6.3, srgb=4.1)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_vertices_told_apart_by_random_steps_are_the_same(monkeypatch):
    prob, guide = picture(60, 50)
    expected = crf.refine(prob, guide)
    monkeypatch.setattr(permutohedral, "KEYS", 1 << 58)
    wide = np.random.default_rng(0).uniform(0, 85, (12, 100)).astype(np.float32)
    assert permutohedral.key_steps(wide, np.ones(100, bool)).max() > 1 << 44  # 12 dimensions do not fit
    monkeypatch.setattr(permutohedral, "KEYS", 1 << 30)
    crf._position_lattice.cache_clear()
    np.testing.assert_allclose(crf.refine(prob, guide), expected, atol=1e-6)


def test_threads_and_strips_do_not_matter(monkeypatch):
    prob, guide = picture(64, 70)
    whole = crf.refine(prob, guide)
    monkeypatch.setattr(permutohedral, "STRIP", 500)
    results = []
    for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        numba.set_num_threads(count)
        crf._position_lattice.cache_clear()
        results.append(crf.refine(prob, guide))
    assert len({result.tobytes() for result in results}) == 1
    np.testing.assert_allclose(results[0], whole, atol=1e-4)


def test_spans_of_several_threads_cover_everything_once():
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    with permutohedral.Workers() as workers:
        for length in (0, 1, 4095, 8192, 10001):
            seen = np.zeros(length, int)
            workers.spans(lambda first, last, seen=seen: np.add.at(seen, slice(first, last), 1), length)
            assert (seen == 1).all()


SHAPES = [(1, 1), (1, 9), (11, 1), (2, 3), (33, 129)]


@pytest.mark.parametrize(("shape", "classes"), [*((shape, 3) for shape in SHAPES), ((6, 7), 2), ((6, 7), 8)])
def test_no_size_or_certainty_is_too_much(shape, classes):
    rng = np.random.default_rng(0)
    prob = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, shape)].transpose(2, 0, 1)  # 0 or 1 exactly
    guide = rng.uniform(0, 255, (3, *shape)).astype(np.float32)
    holes = guide.copy()
    holes[0].flat[::2], holes[1].flat[1::7], holes[2].flat[::5] = np.nan, np.inf, -3.4028235e38
    valid = rng.random(shape) < 0.5
    guides = [guide, holes, np.full_like(guide, 7), np.full_like(guide, np.nan), guide * 1e30, None]
    for each in guides if classes == 3 else guides[:2]:
        for known in (None, valid, np.zeros(shape, bool)):
            found = crf.refine(prob, each, known)
            assert np.isfinite(found).all() and found.shape == prob.shape and found.dtype == np.float32
            np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
            if known is not None:
                assert (found[0][~known] == 1).all() and (found[1:, ~known] == 0).all()


def test_certainty_is_cut_where_pydensecrf_cuts_it():
    prob, guide = picture(30, 40)
    certain = np.eye(3, dtype=np.float32)[prob.argmax(0)].transpose(2, 0, 1)
    found = crf.refine(certain, guide)
    np.testing.assert_array_equal(found, crf.refine(np.clip(certain, 1e-5, 1), guide))
    assert (found.argmax(0) != prob.argmax(0)).any()


def test_invalid_pixels_send_nothing():
    prob, guide = picture(40, 40)
    valid = np.ones((40, 40), bool)
    valid[10:20, 5:30] = False
    found = crf.refine(prob, guide, valid)
    prob[:, ~valid], guide[:, ~valid] = np.nan, 1e4
    assert crf.refine(prob, guide, valid).tobytes() == found.tobytes()


def test_a_pixel_without_a_guide_has_no_bilateral_term():
    prob, guide = picture(40, 40)
    valid = np.ones((40, 40), bool)
    valid[10:20, 5:30] = False
    holes = guide.copy()
    holes[1, ~valid] = np.nan
    found = crf.refine(prob, holes, compat_spatial=0)
    np.testing.assert_allclose(found[:, ~valid], prob[:, ~valid], atol=1e-4)
    np.testing.assert_array_equal(found[:, valid], crf.refine(prob, guide, valid, compat_spatial=0)[:, valid])
    np.testing.assert_array_equal(crf.refine(prob, holes, compat_bilateral=0), crf.refine(prob))
    assert np.abs(crf.refine(prob, holes) - prob)[:, ~valid].max() > 0.1  # the Gaussian term still acts there


def test_nothing_to_do_gives_the_probabilities():
    prob, guide = picture(20, 20)
    np.testing.assert_allclose(crf.refine(prob, guide, iterations=0), prob, atol=1e-4)
    np.testing.assert_allclose(crf.refine(prob, guide, compat_spatial=0, compat_bilateral=0), prob, atol=1e-4)


def in_tiles(prob, guide, valid, **settings):
    parts, sizes = [], []

    def cut(array):
        def read(y, x, h, w):
            sizes.append((h, w))
            return array[..., y : y + h, x : x + w]

        return None if array is None else read

    for y, strip in crf.refine_large(cut(prob), cut(guide), cut(valid), *prob.shape[1:], **settings):
        assert y == sum(part.shape[1] for part in parts)
        parts.append(strip)
    return np.concatenate(parts, 1), np.max(sizes, 0)


@pytest.mark.parametrize("masked", [False, True])
def test_tiles_of_a_large_image_have_no_seam(masked):
    prob, guide = picture(230, 201)
    valid = np.random.default_rng(0).random(prob.shape[1:]) < 0.9 if masked else None
    whole = crf.refine(prob, guide, valid)
    found, largest = in_tiles(prob, guide, valid, tile=140)
    assert found.shape == prob.shape and (largest <= 140).all()
    assert (found.argmax(0) == whole.argmax(0)).mean() >= 0.9999
    assert np.quantile(np.abs(found - whole), 0.9999) < 1e-3


def test_one_tile_is_the_whole_image():
    prob, guide = picture(50, 60)
    found, largest = in_tiles(prob, None, None)
    assert found.tobytes() == crf.refine(prob).tobytes() and tuple(largest) == (50, 60)
    wide, largest = in_tiles(prob, None, None, tile=40, spatial_weight=30)  # half a tile is the most they overlap
    assert wide.shape == prob.shape and (largest <= 40).all()
    with pytest.raises(InputError, match="overlap"):
        in_tiles(prob, guide, None, tile=64, overlap=64)


def test_positions_are_kept_for_images_of_one_size(monkeypatch):
    built, build = [], permutohedral.build
    monkeypatch.setattr(permutohedral, "build", lambda *args: built.append(len(args[0])) or build(*args))
    for seed in range(3):
        prob, guide = picture(30, 40, seed=seed)
        found = crf.refine(prob, guide)
    assert built.count(2) == 1 and built.count(5) == 3
    crf._position_lattice.cache_clear()
    assert crf.refine(prob, guide).tobytes() == found.tobytes()
    crf.refine(prob[:, :, 1:])
    crf.refine(prob, spatial_weight=6)
    assert built.count(2) == 4  # cleared, another size, another width
    for place in ((0, 7), (0, 7)):
        crf.refine(prob, None, place=place)
    assert built.count(2) == 6  # parts of a large image are not kept
    monkeypatch.setattr(crf, "KEPT_POINTS", 1199)
    crf.refine(prob, None)
    assert built.count(2) == 7  # nor are large ones


def test_guide_of_bands():
    tile = np.array([[[0.0, 3, 99]], [[5, 5, 6]]], np.float32)
    found = crf.guide_of(tile, [1, 5], [2, 0], np.array([[True, True, False]]))
    np.testing.assert_array_equal(found[:, :, :2], [[[112, 160]], [[128, 128]]])
    assert np.isnan(found[:, :, 2]).all() and crf.guide_of(tile, [1, 5], [2, 0])[0, 0, 2] == 255


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compat_spatial": -1}, "--compat-spatial -1"),
        ({"spatial_weight": 0}, "--spatial-weight"),
        ({"bilateral_srgb": float("nan")}, "--bilateral-srgb"),
        ({"iterations": 2.5}, "--iterations"),
        ({"guide": np.zeros((3, 8, 9))}, "guide"),
        ({"valid": np.ones((9, 8), bool)}, "valid"),
        ({"prob": np.ones((1, 8, 8))}, "prob"),
        ({"prob": np.full((2, 8, 8), np.nan)}, "not a number"),
        ({"place": (0, 1 << 20)}, "too many"),
    ],
)
def test_wrong_input_is_named(change, said):
    given = {"prob": np.full((2, 8, 8), 0.5), "guide": np.zeros((3, 8, 8)), "valid": np.ones((8, 8), bool)} | change
    with pytest.raises(InputError, match=said):
        crf.refine(given.pop("prob"), given.pop("guide"), given.pop("valid"), **given)
