import json
from itertools import product

import numpy as np
import pytest
from published import load_published
from scipy.optimize import minimize, nnls
from sklearn.covariance import ledoit_wolf

from common.errors import InputError
from common.metrics.regression import weighted_r2
from common.post.honest import honest_post, nested_post
from common.post.physics import (
    RECONCILES,
    SUMMING,
    apply_post,
    derive_dead,
    fill_unreadable,
    fit_post,
    project,
)

KINDS = ["ols", "shrunk", "mint"]


def make_set(n=120, seed=0, noise=8.0):
    """Coherent targets with many zeros, predictions with correlated errors, and 12 groups."""
    rng = np.random.default_rng(seed)
    parts = rng.gamma(1.2, 18, (n, 3)) * (rng.random((n, 3)) > [0.0, 0.11, 0.38])
    target = parts @ np.array([[1, 0, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 1, 1, 1.0]])
    mix = rng.normal(0, 1, (5, 5))
    pred = target + rng.normal(0, noise, (n, 5)) @ mix / np.linalg.norm(mix, axis=0)
    return target, pred, np.arange(n) % 12


def is_coherent(pred):
    green, dead, clover, gdm, total = pred.T
    return np.allclose(gdm, green + clover, atol=1e-9) and np.allclose(total, gdm + dead, atol=1e-9)


def test_ols_is_the_nonnegative_least_squares_solution():
    _, pred, _ = make_set()
    got = project(pred)
    assert (got[:, :3] == 0).any()
    for row, answer in zip(pred, got, strict=True):
        assert answer == pytest.approx(SUMMING @ nnls(SUMMING, row)[0], abs=1e-8)
    assert is_coherent(got) and (got >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_reconciliation_solves_the_quadratic_programme(kind):
    target, pred, _ = make_set()
    post = fit_post(target, pred)
    covariance = np.eye(5) if kind == "ols" else np.array(post["covariance"][kind])
    inverse = np.linalg.inv(covariance)
    got = RECONCILES[kind](pred, post)
    assert is_coherent(got) and (got >= 0).all() and (got[:, :3] == 0).any()
    for row, answer in zip(pred[:25], got[:25], strict=True):

        def distance(parts, row=row):
            return (row - SUMMING @ parts) @ inverse @ (row - SUMMING @ parts)

        found = min(
            (
                minimize(distance, start, bounds=[(0, None)] * 3, method="L-BFGS-B", options={"ftol": 1e-15})
                for start in ([1, 1, 1], np.maximum(row[:3], 0))
            ),
            key=lambda result: result.fun,
        )
        assert distance(answer[:3]) <= found.fun * (1 + 1e-6) + 1e-9
        assert answer[:3] == pytest.approx(found.x, abs=2e-2)


def test_without_negative_parts_projection_is_the_textbook_matrix():
    rng = np.random.default_rng(1)
    target = 50 + rng.random((60, 3)) * 50 @ np.eye(3)
    target = target @ np.array([[1, 0, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 1, 1, 1.0]])
    pred = target + rng.normal(0, 3, target.shape) * [1, 2, 3, 4, 5]
    constraint = np.array([[1, 0, 1, -1, 0], [0, 1, 0, 1, -1.0]])
    post = fit_post(target, pred)
    for kind in KINDS:
        spread = np.eye(5) if kind == "ols" else np.array(post["covariance"][kind])
        gain = spread @ constraint.T @ np.linalg.inv(constraint @ spread @ constraint.T)
        assert RECONCILES[kind](pred, post) == pytest.approx(pred - pred @ constraint.T @ gain.T, abs=1e-5)


def test_projection_keeps_what_is_coherent_and_repeats():
    target, pred, _ = make_set()
    assert project(target) == pytest.approx(target, abs=1e-9)
    assert project(project(pred)) == pytest.approx(project(pred), abs=1e-9)
    # Residuals that obey the identities have a singular covariance.
    coherent = project(pred)
    post = fit_post(target, coherent)
    assert apply_post(coherent, post, reconcile="mint") == pytest.approx(apply_post(coherent, post), abs=1e-3)


def test_derive_dead_row_by_row():
    rows = np.array(
        [
            [10, 5, 5, 15, 20],  # parts make Total: nothing to do
            [10, 5, 5, 15, 23.5],  # 3.5 of 23.5 is 14.9 %: within the tolerance
            [10, 5, 5, 15, 24],  # 4 of 24 is 16.7 %
            [10, 5, 5, 30, 24],  # GDM above Total: relu
            [0, 0, 0, 0, 0],
            [1, 1, 1, 2, -1],
        ],
        float,
    )
    before = rows.copy()
    assert derive_dead(rows, dead="derive")[:, 1].tolist() == [5, 5, 9, 0, 0, 0]
    assert derive_dead(rows, dead="none")[:, 1].tolist() == [5, 5, 5, 5, 0, 1]
    for dead in ("none", "derive"):
        always = derive_dead(rows, dead=dead, always_correct_dead=True)
        assert always[:, 1].tolist() == [5, 8.5, 9, 0, 0, 0]
    assert np.array_equal(np.delete(always, 1, 1), np.delete(rows, 1, 1)) and np.array_equal(rows, before)


def test_fitted_values_are_those_of_numpy_and_scikit_learn_and_plain_json():
    target, pred, _ = make_set()
    post = json.loads(json.dumps(fit_post(target, pred, dead="derive"), allow_nan=False))
    residual = target - derive_dead(pred, dead="derive")
    assert post["maximum"] == pytest.approx(target.max(0)) and post["median"] == pytest.approx(np.median(target, 0))
    assert np.array(post["covariance"]["mint"]) == pytest.approx(np.cov(residual.T))
    shrunk, share = ledoit_wolf(residual)
    assert np.array(post["covariance"]["shrunk"]) == pytest.approx(shrunk) and post["shrinkage"] == pytest.approx(share)
    valid = np.ones(target.shape, bool)
    valid[:100, 2] = False
    hidden = np.where(valid, target, np.nan)
    some = fit_post(hidden, pred, valid=valid)
    assert some["rows"] == 20 and some["maximum"][2] == target[100:, 2].max()
    assert np.array(some["covariance"]["mint"]) == pytest.approx(np.cov((target - pred)[100:].T))
    assert fit_post(target[:9], pred[:9])["covariance"] == {"shrunk": None, "mint": None}


def test_order_is_derive_then_reconcile_then_clamp():
    target = np.tile([[10.0, 10, 10, 20, 30]], (12, 1))
    post = fit_post(target, target + np.random.default_rng(0).normal(0, 1, target.shape))
    pred = np.array([[40.0, 0, 0, 40, 90]])
    # Derived: Dead 50, coherent; clamped afterwards to 11, 11, 11, 22, 33.
    assert apply_post(pred, post, dead="derive")[0] == pytest.approx([11, 11, 0, 22, 33])
    # Not derived: plain projection first spreads the 50 g gap, then the clamp.
    plain = SUMMING @ nnls(SUMMING, pred[0])[0]
    assert apply_post(pred, post)[0] == pytest.approx(np.minimum(plain, [11, 11, 11, 22, 33]))
    negative = np.array([[-3.0, 5, 2, 2, 9]])
    assert apply_post(negative, post)[0] == pytest.approx(SUMMING @ nnls(SUMMING, negative[0])[0])
    assert apply_post(negative, post, reconcile="none")[0] == pytest.approx([0, 5, 2, 2, 9])
    assert apply_post(pred * 10, None)[0, 4] > 500


def test_clamped_rows_apart_the_result_is_coherent_and_bounded():
    target, pred, _ = make_set(n=400, seed=2)
    post = fit_post(target, pred)
    for kind, dead, always in product(RECONCILES, ("none", "derive"), (False, True)):
        post = fit_post(target, pred, dead=dead, always_correct_dead=always)
        out = apply_post(pred, post, dead=dead, always_correct_dead=always, reconcile=kind)
        top = 1.1 * target.max(0)
        assert (out >= 0).all() and (out <= top).all()
        if kind != "none":
            assert is_coherent(out[(out < top).all(1)])


def test_unreadable_images_get_the_medians():
    target, pred, _ = make_set()
    post = fit_post(target, pred)
    broken = pred.copy()
    broken[4, 2] = np.nan
    broken[9] = np.inf
    filled, bad = fill_unreadable(broken, post)
    assert np.flatnonzero(bad).tolist() == [4, 9]
    assert filled[bad] == pytest.approx(np.tile(np.median(target, 0), (2, 1)))
    assert np.array_equal(filled[~bad], pred[~bad])
    with pytest.raises(InputError, match="post.json"):
        fill_unreadable(broken, None)
    assert np.array_equal(fill_unreadable(pred, None)[0], pred)


def test_errors_are_one_line():
    target, pred, _ = make_set()
    post = fit_post(target, pred)
    broken = pred.copy()
    broken[0, 0] = np.nan
    cases = {
        "choose one of none, ols": lambda: apply_post(pred, post, reconcile="oils"),
        "choose one of none, derive": lambda: apply_post(pred, post, dead="yes"),
        "fit-post": lambda: apply_post(pred, None, reconcile="shrunk"),
        "at least 10": lambda: apply_post(pred, fit_post(target[:5], pred[:5]), reconcile="mint"),
        "--dead none, not always": lambda: apply_post(pred, post, reconcile="mint", always_correct_dead=True),
        "not what this version fits": lambda: apply_post(pred, {"maximum": [1] * 5}),
        "1 rows are not finite": lambda: apply_post(broken, post),
        "needs \\(rows, 5\\)": lambda: apply_post(pred[:, :3], post),
        "finite predictions": lambda: fit_post(target, broken),
        "at least 2 groups": lambda: nested_post(target, pred, np.zeros(120)),
    }
    for message, call in cases.items():
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_nested_post_never_sees_the_group_it_predicts():
    target, pred, groups = make_set()
    got = nested_post(target, pred, groups, reconcile="mint")
    for group in range(12):
        rest = groups != group
        slow = apply_post(pred[~rest], fit_post(target[rest], pred[rest]), reconcile="mint")
        assert got[~rest] == pytest.approx(slow)
    changed = target.copy()
    changed[groups == 3] *= 100
    again = nested_post(changed, pred, groups, reconcile="mint")
    assert np.array_equal(again[groups == 3], got[groups == 3]) and not np.allclose(again, got)


def test_honest_post_reports_gains_against_none():
    target, pred, groups = make_set()
    report = honest_post(target, pred, groups, dead="derive")
    assert report["raw"] == weighted_r2(target, pred) and set(report["reconcile"]) == set(RECONCILES)
    for kind, scores in report["reconcile"].items():
        nested = nested_post(target, pred, groups, reconcile=kind, dead="derive")
        assert scores["nested"] == weighted_r2(target, nested)
        assert scores["nested_gain"] == scores["nested"] - report["reconcile"]["none"]["nested"]
    assert report["reconcile"]["ols"]["nested_gain"] > 0.005


@pytest.mark.data
def test_default_reconciliation_never_costs_on_sound_published_sets(biomass_data):
    _, target, preds, groups = load_published(biomass_data)
    sound = {name: pred for name, pred in preds.items() if weighted_r2(target, pred) > 0.5}
    assert len(sound) == 11
    reports = {name: honest_post(target, pred, groups) for name, pred in sound.items()}
    for name, report in reports.items():
        scores = report["reconcile"]
        assert scores["ols"]["nested_gain"] > -0.0005, name
        assert scores["ols"]["nested"] - report["raw"] > -0.0005, name
        assert scores["mint"]["fitted_gain"] > scores["mint"]["nested_gain"], name
    # Minimum trace flatters itself: ahead on every set as fitted, behind on several when groups are left out.
    assert min(report["reconcile"]["mint"]["fitted_gain"] for report in reports.values()) > 0
    assert sum(report["reconcile"]["mint"]["nested_gain"] < 0 for report in reports.values()) >= 4


def test_few_rows_leave_the_fitted_kinds_without_a_figure():
    rng = np.random.default_rng(0)
    target = rng.gamma(2, 10, (9, 5))
    report = honest_post(target, target + rng.normal(0, 2, target.shape), np.arange(9) % 3)["reconcile"]
    assert np.isfinite(report["ols"]["nested"]) and np.isnan(report["mint"]["nested"])
    assert np.isnan(report["shrunk"]["nested_gain"])
