"""Area-adjusted accuracy: the worked example of the paper, and its errors against repeated samples."""

import numpy as np
import pytest

from common.errors import InputError
from common.metrics.area_accuracy import olofsson

# Olofsson et al. 2014, table 8: rows are the map (deforestation, forest gain, stable forest, stable non-forest)
SAMPLE = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
HECTARES = 900_000


def half_width(estimate):
    return 1.959964 * estimate.error


def test_the_worked_example_of_the_paper():
    found = olofsson(SAMPLE.T, PIXELS)
    assert float(found.overall.value) == pytest.approx(0.95, abs=0.005)
    assert float(half_width(found.overall)) == pytest.approx(0.02, abs=0.005)
    np.testing.assert_allclose(found.users.value, [0.88, 0.73, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(half_width(found.users), [0.07, 0.10, 0.04, 0.02], atol=0.005)
    np.testing.assert_allclose(found.producers.value, [0.75, 0.85, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(half_width(found.producers)[[0, 2]], [0.21, 0.03], atol=0.005)
    # section 5.2: 21,158 ha of deforestation, give or take 6158 ha
    assert round(found.share.value[0] * HECTARES) == 21158
    assert round(half_width(found.share)[0] * HECTARES) == pytest.approx(6158, abs=1)
    assert found.share.low[0] == pytest.approx(found.share.value[0] - half_width(found.share)[0])
    assert found.share.value.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.mapped, [0.020, 0.015, 0.320, 0.645])


def population():
    """(map, truth) of every pixel of a region; classes 0, 1, 2 as 85, 5 and 10 % of the map."""
    rng = np.random.default_rng(0)
    mapped = np.repeat([0, 1, 2], [8500, 500, 1000])
    chances = np.array([[0.94, 0.02, 0.04], [0.3, 0.5, 0.2], [0.1, 0.1, 0.8]])
    truth = np.array([rng.choice(3, p=chances[m]) for m in mapped])
    return mapped, truth


def test_estimates_and_errors_are_those_of_repeated_samples():
    mapped, truth = population()
    rng, drawn = np.random.default_rng(1), (800, 200, 300)
    area = np.bincount(mapped)
    values, errors, held = [], [], []
    real = [
        np.mean(mapped == truth),
        *(np.mean(truth[mapped == k] == k) for k in range(3)),
        *(np.mean(mapped[truth == k] == k) for k in range(3)),
        *np.bincount(truth) / len(truth),
    ]
    strata = [np.flatnonzero(mapped == k) for k in range(3)]
    for _ in range(1000):
        counts = np.zeros((3, 3), np.int64)
        for k in range(3):
            counts[:, k] = np.bincount(truth[rng.choice(strata[k], drawn[k])], minlength=3)
        parts = olofsson(counts, area)[:4]
        values.append(np.concatenate([np.atleast_1d(part.value) for part in parts]))
        errors.append(np.concatenate([np.atleast_1d(part.error) for part in parts]))
        low, high = (np.concatenate([np.atleast_1d(getattr(p, side)) for p in parts]) for side in ("low", "high"))
        held.append((low <= real) & (real <= high))
    values, errors = np.stack(values), np.stack(errors)
    spread = values.std(0)
    np.testing.assert_allclose(values.mean(0), real, atol=0.01)
    # ratios of estimates (producers) and rare classes are the least exact; the paper's errors are first order
    np.testing.assert_allclose(np.sqrt((errors**2).mean(0)), spread, rtol=0.12)
    assert np.all(np.mean(held, 0)[[0, 1, 2, 3, 7, 9]] > 0.9)


def test_a_map_sampled_in_full_proportion_is_its_plain_accuracy():
    counts = np.array([[80, 5, 1], [4, 20, 6], [2, 3, 30]])
    found = olofsson(counts, counts.sum(0) * 17.0)
    assert float(found.overall.value) == pytest.approx(np.trace(counts) / counts.sum())
    np.testing.assert_allclose(found.users.value, np.diagonal(counts) / counts.sum(0))
    np.testing.assert_allclose(found.producers.value, np.diagonal(counts) / counts.sum(1))
    np.testing.assert_allclose(found.share.value, counts.sum(1) / counts.sum())


def test_what_the_sample_does_not_tell_is_nan():
    counts = np.array([[80, 0, 0], [4, 0, 3], [2, 0, 30]])
    unmapped = olofsson(counts, [60, 0, 40])  # class 1 occurs, but no map has it
    assert np.isnan(unmapped.users.value[1]) and unmapped.producers.value[1] == 0
    assert np.isfinite(unmapped.share.error).all() and np.isfinite(unmapped.overall).all()
    unseen = olofsson(counts, [60, 10, 30])  # mapped, not sampled
    assert np.isnan(unseen.overall.value) and np.isnan(unseen.share.value).all()
    assert np.isnan(unseen.users.value[1]) and unseen.users.value[0] == pytest.approx(80 / 86)
    single = olofsson(np.array([[9, 0], [1, 1]]), [50, 50])
    assert single.users.value[1] == 1 and np.isnan(single.users.error[1]) and np.isnan(single.overall.error)


@pytest.mark.parametrize("counts, area", [
    (np.ones((2, 3)), [1, 1]), (np.ones((2, 2)), [1, 1, 1]), (np.ones(4), [1, 1]), (-np.ones((2, 2)), [1, 1]),
    (np.ones((2, 2)), [1, -1]), (np.ones((2, 2)), [0, 0]), (np.full((2, 2), np.nan), [1, 1]),
    (np.ones((2, 2)), [1, np.inf]),
])  # fmt: skip
def test_numbers_that_fit_no_sample_are_refused(counts, area):
    with pytest.raises(InputError, match="area accuracy: "):
        olofsson(counts, area)
