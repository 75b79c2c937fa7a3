import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import Ridge
from sklearn.svm import SVR

from common.errors import InputError
from common.metrics.regression import weighted_r2
from common.models.classical import (
    ALPHAS,
    DEFAULTS,
    HEADS,
    ClassicalHead,
    fit_head,
    fit_ridge,
    grouped_parts,
    grouped_score,
    pool_features,
    ridge_path,
)

FAST = {"extratrees": {"trees": 40}}


def make_table(rows=60, columns=12, seed=0, shift=0.0):
    """Features that code three masses linearly; `shift`: offsets of a group, which tell nothing of another."""
    rng = np.random.default_rng(seed)
    parts = rng.gamma(1.5, (15.0, 8.0, 5.0), (rows, 3))
    green, dead, clover = parts.T
    y = np.stack([green, dead, clover, green + clover, green + clover + dead], 1)
    code = np.random.default_rng(99).normal(size=(3, columns))
    groups = np.arange(rows) // 4
    x = (parts / 10) @ code + 0.2 * rng.normal(size=(rows, columns)) + shift * rng.normal(size=(rows, columns))[groups]
    return x, y + 20 * shift * rng.random((rows, 5))[groups], groups


def standardised(x, rows):
    return np.clip((rows - x.mean(0)) / x.std(0), -4, 4)


@pytest.mark.parametrize("kind", sorted(HEADS))
@pytest.mark.parametrize("targets", ["none", "sqrt", "log1p"])
def test_heads_learn_and_beat_the_mean(kind, targets):
    x, y, groups = make_table()
    new_x, new_y, _ = make_table(seed=1)
    head = fit_head(kind, x, y, groups=groups, params={"targets": targets, **FAST.get(kind, {})})
    pred = head.predict(new_x)
    assert pred.shape == (60, 5) and pred.dtype == np.float64 and (pred >= 0).all()
    assert weighted_r2(new_y, pred) > 0.6 > weighted_r2(new_y, np.tile(y.mean(0), (60, 1)))


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_state_is_plain_and_gives_the_same_head_back(kind, tmp_path):
    x, y, groups = make_table(rows=40)
    params = {"components": 6, "targets": "sqrt", **FAST.get(kind, {})}
    head = fit_head(kind, x, y, groups=[f"g{g}" for g in groups], seed=3, params=params)
    torch.save(head.state(), tmp_path / "head.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ClassicalHead.from_state(torch.load(tmp_path / "head.pt", weights_only=True))
    new_x, _, _ = make_table(seed=4)
    np.testing.assert_allclose(again.predict(new_x), head.predict(new_x), rtol=1e-9, atol=1e-9)
    assert (again.kind, again.seed, again.params) == (kind, 3, head.params)


def test_a_head_that_comes_back_otherwise_is_told():
    x, y, _ = make_table(rows=30)
    state = fit_head("ridge", x, y).state()
    state["probe"] = state["probe"] + 1
    with pytest.warns(UserWarning, match="otherwise"):
        ClassicalHead.from_state(state)
    with pytest.raises(InputError, match="train it again"):
        ClassicalHead.from_state(state | {"version": -1})


def test_ridge_path_equals_scikit_learn_on_wide_and_tall_tables():
    rng = np.random.default_rng(0)
    for rows, columns in ((20, 60), (60, 8)):
        a, y, b = rng.normal(size=(rows, columns)), rng.normal(size=(rows, 3)), rng.normal(size=(7, columns))
        for alpha, found in zip((0.02, 1.5), ridge_path(a, y, b, (0.02, 1.5)), strict=True):
            expected = Ridge(alpha=alpha * columns).fit(a, y).predict(b)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_ridge_takes_the_penalty_with_the_best_grouped_score():
    x, y, groups = make_table(rows=80, columns=30, shift=1.0)
    weights = np.array([0.1, 0.1, 0.1, 0.2, 0.5])
    errors = []
    for alpha in ALPHAS:
        error = 0
        for fit, held in grouped_parts(groups, 7):
            assert not set(groups[fit]) & set(groups[held])
            model = Ridge(alpha=alpha * x.shape[1]).fit(standardised(x[fit], x[fit]), y[fit])
            pred = np.maximum(model.predict(standardised(x[fit], x[held])), 0)
            error += ((pred - y[held]) ** 2 * weights).sum()
        errors.append(error)
    scores = grouped_score(x, y, groups, 7, DEFAULTS["ridge"] | {"targets": "none"}, ALPHAS)
    np.testing.assert_allclose(scores, -np.array(errors), rtol=1e-6)
    best = ALPHAS[int(np.argmin(errors))]
    assert 0 < int(np.argmin(errors)) < len(ALPHAS) - 1, "the test needs a best penalty inside the path"
    expected = Ridge(alpha=best * x.shape[1]).fit(standardised(x, x), y).predict(standardised(x, x))
    found = fit_head("ridge", x, y, groups=groups, seed=7, params={"choose": "groups", "targets": "none"}).predict(x)
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-6, atol=1e-6)
    by_row = fit_head("ridge", x, y, seed=7, params={"choose": "groups", "targets": "none"}).predict(x)
    assert not np.allclose(by_row, found), "the groups must matter here"


def test_ridge_takes_the_penalty_of_the_best_evidence():
    x, y, _ = make_table(rows=40, columns=8, shift=1.0)
    a, z = standardised(x, x), (y - y.mean(0)) / y.std(0)
    kernel = (a - a.mean(0)) @ (a - a.mean(0)).T / 8

    def cost(alpha):
        def minus(log_scale):
            cov = np.exp(log_scale) * (kernel + alpha * np.eye(40))
            return -multivariate_normal(np.zeros(40), cov).logpdf(z.T).sum()

        return minimize_scalar(minus, bounds=(-9, 9), method="bounded").fun

    best = ALPHAS[int(np.argmin([cost(alpha) for alpha in ALPHAS]))]
    assert 0 < ALPHAS.index(best) < len(ALPHAS) - 1, "the test needs a best penalty inside the path"
    expected = Ridge(alpha=best * 8).fit(a, y).predict(a)
    found = fit_head("ridge", x, y, params={"targets": "none"}).predict(x)
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-6, atol=1e-6)


def test_given_penalty_is_used():
    x, y, groups = make_table()
    found = fit_ridge(x, y, groups, 0, {**DEFAULTS["ridge"], "alpha": 2.5, "targets": "none"})(x)
    expected = Ridge(alpha=2.5 * x.shape[1]).fit(standardised(x, x), y).predict(standardised(x, x))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_support_vectors_equal_scikit_learn_per_target():
    x, y, groups = make_table()
    new_x, _, _ = make_table(seed=2)
    params = {"c": 3.0, "gamma": 0.4, "epsilon": 0.05, "targets": "none"}
    found = fit_head("svr", x, y, groups=groups, params=params).predict(new_x)
    for k in range(5):
        z = (y[:, k] - y[:, k].mean()) / y[:, k].std()
        model = SVR(C=3.0, gamma=0.4 / x.shape[1], epsilon=0.05, tol=1e-7).fit(standardised(x, x), z)
        expected = model.predict(standardised(x, new_x)) * y[:, k].std() + y[:, k].mean()
        np.testing.assert_allclose(found[:, k], np.maximum(expected, 0), rtol=1e-6, atol=1e-9)


def test_gaussian_process_equals_scikit_learn_at_its_own_kernel(monkeypatch):
    kept = []
    real = GaussianProcessRegressor.fit

    def fit(self, x, y):
        kept.append(real(self, x, y))
        return kept[-1]

    monkeypatch.setattr(GaussianProcessRegressor, "fit", fit)
    x, y, groups = make_table(rows=30)
    found = fit_head("gp", x, y, groups=groups, params={"rbf": False, "targets": "none"}).predict(x)
    for k, model in enumerate(kept):
        z, kernel = (y[:, k] - y[:, k].mean()) / y[:, k].std(), model.kernel_
        a = standardised(x, x)
        pure = kernel.k1(a, a)
        expected = pure @ np.linalg.solve(pure + kernel.k2.noise_level * np.eye(30), z)
        np.testing.assert_allclose(found[:, k], np.maximum(expected * y[:, k].std() + y[:, k].mean(), 0), atol=1e-4)
        assert np.allclose(pure / (a @ a.T), pure[0, 0] / (a[0] @ a[0])), "without the RBF the kernel is linear"


def test_far_photos_are_not_extrapolated_without_bound():
    x, y, groups = make_table()
    edge = fit_head("ridge", x, y, groups=groups)
    assert np.allclose(edge.predict(x[:1] + 1e3), edge.predict(x[:1] + 1e6))


@pytest.mark.parametrize("rows", [5, 30, 300])
@pytest.mark.parametrize("kind", sorted(HEADS))
def test_any_number_of_rows(kind, rows):
    x, y, groups = make_table(rows=rows, columns=20)
    x[:, 3] = 7.0
    y[:, 2] = 0.0
    params = {"components": 4} | FAST.get(kind, {})
    pred = fit_head(kind, x, y, groups=groups, params=params).predict(x[:3])
    assert np.isfinite(pred).all() and np.allclose(pred[:, 2], 0, atol=1e-6)


def test_same_seed_same_trees_other_seed_others():
    x, y, groups = make_table()
    first, again, other = (fit_head("extratrees", x, y, seed=s, params={"trees": 20}).predict(x) for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.allclose(first, other)


def test_pooling_is_the_mean_over_cells_and_halves():
    features = np.random.default_rng(0).normal(size=(4, 2, 3, 5)).astype(np.float16)
    expected = [[features[i, :, :, d].astype(float).mean() for d in range(5)] for i in range(4)]
    np.testing.assert_allclose(pool_features(features), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "params", "damage", "word"),
    [
        ("forest", {}, None, "forest"),
        ("ridge", {"gamma": 1}, None, "gamma"),
        ("svr", {"targets": "cube"}, None, "cube"),
        ("ridge", {"choose": "luck"}, None, "luck"),
        ("ridge", {}, "features", "row 3"),
        ("ridge", {}, "targets", "row 3"),
        ("ridge", {}, "short", "5 rows"),
    ],
)
def test_bad_input_is_refused(kind, params, damage, word):
    x, y, _ = make_table()
    if damage == "short":
        x, y = x[:4], y[:4]
    elif damage:
        {"features": x, "targets": y}[damage][3, 1] = np.nan
    with pytest.raises(InputError, match=word):
        fit_head(kind, x, y, params=params)


def test_features_of_another_width_are_refused():
    x, y, _ = make_table()
    with pytest.raises(InputError, match="12 features"):
        fit_head("ridge", x, y).predict(x[:, :5])
