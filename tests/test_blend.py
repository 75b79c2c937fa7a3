import json

import numpy as np
import pytest
from published import OUTPUTS, load_published
from scipy.optimize import minimize

from common.errors import InputError
from common.metrics.regression import WEIGHTS, weighted_r2
from common.post.blend import (
    BLENDS,
    apply_blend,
    combine,
    fit_blend,
    fit_members,
    greedy_counts,
    group_moments,
    load_blend,
    save_blend,
    sound_members,
)
from common.post.honest import bootstrap_difference, honest_blend, nested_post
from common.post.physics import apply_post, fit_post

NAMES = ["good", "fair", "poor", "broken"]


@pytest.fixture
def example():
    """Four members over 90 rows in 9 groups: noise of 5, 8 and 12 g, and one of another set of photos."""
    rng = np.random.default_rng(5)
    parts = rng.gamma(1.5, 15, (90, 3))
    target = parts @ np.array([[1, 0, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 1, 1, 1.0]])
    preds = [0.9 * target + rng.normal(0, noise, target.shape) for noise in (5, 8, 12)]
    return np.array([*preds, rng.permutation(target)]), target, np.arange(90) % 9


def slow_error(weights, preds, target, valid=None):
    """Weighted squared error of a blend, from the rows."""
    rest = (target - np.einsum("mnk,mk->nk", preds, weights.reshape(len(preds), -1) * np.ones(5))) ** 2
    return (rest * WEIGHTS * (1 if valid is None else valid)).sum()


def slow_scale(chosen, preds, target, groups, valid=None):
    """The factor of least error, drawn to 1 by its jackknife variance over groups, from the rows and by scipy."""
    valid = np.ones(target.shape) if valid is None else valid

    def best(keep):
        return minimize(
            lambda s: slow_error(s * chosen, preds[:, keep], target[keep], valid[keep]), [1.0], tol=1e-12
        ).x[0]

    free = best(groups >= 0)
    names = np.unique(groups)
    without = np.array([best(groups != name) for name in names])
    variance = (len(names) - 1) * without.var()
    return 1 + (free - 1) * max(0, 1 - variance / (free - 1) ** 2)


def slow_sound(preds, target, groups):
    constant = np.empty_like(target)
    for group in np.unique(groups):
        constant[groups == group] = target[groups != group].mean(0)
    least = ((target - constant) ** 2 @ WEIGHTS).sum()
    return [bool(((target - pred) ** 2 @ WEIGHTS).sum() < least) for pred in preds]


def slow_greedy(errors, steps):
    """Caruana's selection by trying every member at every step."""
    picks, paths = [], []
    for _ in range(steps):

        def error(more, picks=tuple(picks)):
            bag = [*picks, more]
            return sum(errors[i, j] for i in bag for j in bag) / len(bag) ** 2

        picks.append(min(range(len(errors)), key=error))
        paths.append((sum(errors[i, j] for i in picks for j in picks) / len(picks) ** 2, list(picks)))
    best = min(paths, key=lambda path: path[0])[1]
    return np.bincount(best, minlength=len(errors)) / len(best)


def test_moments_are_sums_over_rows(example):
    preds, target, groups = example
    valid = np.random.default_rng(0).random(target.shape) > 0.2
    hidden = np.where(valid, target, np.nan)
    moments = group_moments(preds, hidden, groups, valid=valid)
    for group in range(9):
        for column in range(5):
            keep = (groups == group) & valid[:, column]
            p, y, w = preds[:, keep, column], target[keep, column], WEIGHTS[column]
            assert moments["pp"][group, column] == pytest.approx(w * p @ p.T)
            assert moments["py"][group, column] == pytest.approx(w * p @ y)
            sums = [moments[name][group, column] for name in ("yy", "y", "n")]
            assert sums == pytest.approx([w * y @ y, w * y.sum(), w * keep.sum()])


def test_broken_member_is_named_and_weighs_nothing_in_every_kind(example):
    preds, target, groups = example
    assert sound_members(group_moments(preds, target, groups)).tolist() == slow_sound(preds, target, groups)
    assert slow_sound(preds, target, groups) == [True, True, True, False]
    for kind in BLENDS:
        blend = fit_blend(preds, target, groups, kind, members=NAMES)
        weights = np.array(blend["weights"])
        assert (weights[3] == 0).all() and (weights[0] > 0).all()
        assert blend["dropped"] == {"broken": pytest.approx(weighted_r2(target, preds[3]))}
        alone = np.array(fit_blend(preds[:3], target, groups, kind, members=NAMES[:3])["weights"])
        assert weights[:3] == pytest.approx(alone)
    assert fit_blend(preds[3:], target, groups, "mean", members=["broken"])["weights"] == [1.0]


def test_members_are_held_to_a_constant_that_has_not_seen_the_group_either(example):
    _, target, groups = example
    target = target + 25 * groups[:, None]
    blind = np.array([target[groups != group].mean(0) for group in groups])
    member = blind + 0.02 * (target - blind)
    seeing = ((target - target.mean(0)) ** 2 @ WEIGHTS).sum()
    assert slow_error(np.ones(1), member[None], target) > 1.1 * seeing
    worse = blind - 0.02 * (target - blind)
    assert sound_members(group_moments([member, worse], target, groups)).tolist() == [True, False]
    # One group leaves no other: then the constant is the mean of its own rows.
    assert sound_members(group_moments([target, member], target, groups * 0)).tolist() == [True, False]


def test_weights_are_the_nonnegative_optimum(example):
    preds, target, groups = example
    preds = np.concatenate([preds[:3], 1.3 * preds[:1] - 5])
    valid = np.random.default_rng(0).random(target.shape) > 0.2
    for kind, shape in (("weights", (4,)), ("per-target", (4, 5))):
        moments = group_moments(preds, target, groups, valid=valid)
        weights, sound = fit_members(moments, kind, 0)
        assert weights.shape == shape and sound.all() and (weights >= 0).all()
        found = minimize(
            lambda w: slow_error(w, preds, target, valid) / 1e3,
            np.full(4, 0.25),
            bounds=[(0, None)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            tol=1e-12,
        )
        scale = slow_scale(found.x, preds, target, groups, valid)
        if kind == "weights":
            assert weights == pytest.approx(scale * found.x, abs=1e-3)
        else:
            # The pull to the shared weights may not cost more than it is for: still no worse than shared.
            shared = slow_error(scale * found.x, preds, target, valid)
            assert slow_error(weights, preds, target, valid) <= shared * (1 + 1e-9)


def test_a_scale_that_one_group_sets_is_not_believed():
    rng = np.random.default_rng(3)
    groups = np.arange(60) % 6
    target = rng.gamma(2, 10, (60, 5))
    steady = 0.9 * target
    heavy = np.where((groups == 0)[:, None], 0.4 * target, target)
    for pred, sure in ((steady, True), (heavy, False)):
        weights, _ = fit_members(group_moments(pred[None], target, groups), "greedy", 0)
        assert weights.sum() == pytest.approx(1 / 0.9 if sure else 1.0, abs=1e-6)


def test_greedy_equals_trying_every_member(example):
    preds, target, _ = example
    rng = np.random.default_rng(1)
    bags = []
    for _ in range(6):
        rows = rng.integers(0, 90, 90)
        rest = (target - preds)[:, rows] * np.sqrt(WEIGHTS)
        bags.append(np.einsum("ink,jnk->ij", rest, rest))
    got = greedy_counts(np.array(bags), 12)
    for errors, shares in zip(bags, got, strict=True):
        assert shares == pytest.approx(slow_greedy(errors, 12))


def test_greedy_blend_is_the_mean_of_its_bags_scaled(example):
    preds, target, groups = example
    moments = group_moments(preds[:3], target, groups)
    weights = fit_members(moments, "greedy", 7)[0]
    drawn = np.random.default_rng(7).multinomial(9, np.full(9, 1 / 9), 300)
    shares = []
    for counts in drawn[:300]:
        rest = (target - preds[:3]) * np.sqrt(WEIGHTS) * np.sqrt(counts[groups])[:, None]
        shares.append(greedy_counts(np.einsum("ink,jnk->ij", rest, rest)[None], 25)[0])
    chosen = np.mean(shares, 0)
    scale = slow_scale(chosen, preds[:3], target, groups)
    assert scale > 1.05
    assert weights == pytest.approx(scale * chosen, rel=1e-4)
    assert np.array_equal(weights, fit_members(moments, "greedy", 7)[0])
    assert not np.array_equal(weights, fit_members(moments, "greedy", 8)[0])


def test_honest_blend_equals_a_plain_loop(example):
    preds, target, groups = example
    for kind in BLENDS:
        report = honest_blend(preds, target, groups, kind, 3, reconcile="mint")
        expected, weights = np.empty_like(target), []
        for group in range(9):
            rest = groups != group
            blend = fit_blend(preds[:, rest], target[rest], groups[rest], kind, 3, members=NAMES)
            weights.append(np.array(blend["weights"]))
            post = fit_post(target[rest], apply_blend(blend, dict(zip(NAMES, preds[:, rest], strict=True))))
            pred = apply_blend(blend, dict(zip(NAMES, preds[:, ~rest], strict=True)))
            expected[~rest] = apply_post(pred, post, reconcile="mint")
        assert report["honest_pred"] == pytest.approx(expected, abs=1e-6)
        assert report["honest"] == weighted_r2(target, report["honest_pred"])
        assert report["fitted"] == weighted_r2(target, report["fitted_pred"])
        assert report["weights_spread"] == pytest.approx(np.std(weights, axis=0), abs=1e-9)


def test_honest_blend_never_sees_the_group_it_predicts(example):
    preds, target, groups = example
    changed = target.copy()
    changed[groups == 2] *= 3
    for kind in BLENDS:
        first = honest_blend(preds, target, groups, kind)["honest_pred"]
        second = honest_blend(preds, changed, groups, kind)["honest_pred"]
        assert second[groups == 2] == pytest.approx(first[groups == 2], abs=1e-9)


def test_one_member_passes_through(example):
    preds, target, groups = example
    blend = fit_blend(preds[:1], target, groups, "mean", members=["one"])
    assert np.array_equal(apply_blend(blend, {"one": preds[0]}), preds[0])
    for kind in BLENDS:
        assert honest_blend(preds[:1], target, groups, kind)["honest"] > 0.8


def test_saved_and_applied_by_name(example, tmp_path):
    preds, target, groups = example
    for kind in BLENDS:
        blend = fit_blend(preds, target, groups, kind, members=NAMES) | {"note": "kept"}
        path = save_blend(tmp_path / "out" / f"{kind}.json", blend)
        loaded = load_blend(path)
        assert loaded == blend == json.loads(json.dumps(blend))
        shuffled = {name: preds[NAMES.index(name)] for name in ("poor", "broken", "good", "fair")}
        slow = sum(preds[i] * np.array(blend["weights"][i]) for i in range(4))
        assert apply_blend(loaded, shuffled) == pytest.approx(slow)
        # Weight 0: need not be predicted again.
        assert apply_blend(loaded, {n: p for n, p in shuffled.items() if n != "broken"}) == pytest.approx(slow)


def test_errors_are_one_line(example, tmp_path):
    preds, target, groups = example
    blend = fit_blend(preds, target, groups, "per-target", members=NAMES)
    sets = dict(zip(NAMES, preds, strict=True))
    (tmp_path / "half.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    broken = preds.copy()
    broken[1, 3, 2] = np.inf
    cases = {
        "lacks members: good": lambda: apply_blend(blend, {n: sets[n] for n in NAMES[1:]}),
        "does not know: other": lambda: apply_blend(blend, sets | {"other": preds[0]}),
        "5 targets, predictions have 4": lambda: apply_blend(blend, {n: p[:, :4] for n, p in sets.items()}),
        "choose one of mean": lambda: fit_blend(preds, target, groups, "median", members=NAMES),
        "different names": lambda: fit_blend(preds, target, groups, "mean", members=["a", "a", "b", "c"]),
        "must be \\(members": lambda: fit_blend(preds[:, :5], target, groups, "mean", members=NAMES),
        "groups for 90 rows": lambda: fit_blend(preds, target, groups[:4], "mean", members=NAMES),
        "non-finite": lambda: fit_blend(broken, target, groups, "mean", members=NAMES),
        "no such file": lambda: load_blend(tmp_path / "none.json"),
        "half.json: not JSON": lambda: load_blend(tmp_path / "half.json"),
        "list.json: not a blend": lambda: load_blend(tmp_path / "list.json"),
        "one weight at or above zero": lambda: save_blend(tmp_path / "x.json", blend | {"weights": [1, 2, 3]}),
        "occur more than once": lambda: save_blend(tmp_path / "x.json", blend | {"members": ["a"] * 4}),
        "kind or members": lambda: save_blend(tmp_path / "x.json", blend | {"kind": "median"}),
        "kind or members are": lambda: save_blend(tmp_path / "x.json", blend | {"kind": ["mean"]}),
        "at least 2 groups": lambda: honest_blend(preds, target, np.zeros(90), "mean"),
    }
    for message, call in cases.items():
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "x.json").exists()
    for weights in ([[1, 2], [3]] * 2, ["a"] * 4, [1, 1, 1, -1], [1, 1, 1, float("nan")], None):
        with pytest.raises(InputError, match="one weight"):
            save_blend(tmp_path / "x.json", blend | {"weights": weights})


def test_bootstrap_equals_resampling_the_rows(example):
    preds, target, groups = example
    got = bootstrap_difference(target, preds[0], preds[1], groups, draws=200, seed=4)
    rng = np.random.default_rng(4)
    slow = []
    for counts in rng.multinomial(9, np.full(9, 1 / 9), 200):
        rows = np.concatenate([np.tile(np.flatnonzero(groups == g), times) for g, times in enumerate(counts)])
        slow.append(weighted_r2(target[rows], preds[0][rows]) - weighted_r2(target[rows], preds[1][rows]))
    limits = [got["low95"], got["low90"], got["high90"], got["high95"]]
    assert limits == pytest.approx(np.percentile(slow, [2.5, 5, 95, 97.5]))
    assert got["share_positive"] == np.mean(np.array(slow) > 0) > 0.9
    assert got["difference"] == weighted_r2(target, preds[0]) - weighted_r2(target, preds[1])
    assert got["draws"] == 200 and got["groups"] == 9
    other = bootstrap_difference(target, preds[1], preds[0], groups, draws=200, seed=4)
    assert other["low95"] == pytest.approx(-got["high95"]) and other["share_positive"] < 0.1
    same = bootstrap_difference(target, preds[0], preds[0], groups)
    assert same["low95"] == same["high95"] == same["share_positive"] == 0


@pytest.mark.data
def test_anchors_on_the_published_sets(biomass_data):
    _, target, by_name, groups = load_published(biomass_data)
    names, preds = list(by_name), np.array(list(by_name.values()))
    scores = [weighted_r2(target, pred) for pred in preds]
    best, worst = preds[int(np.argmax(scores))], int(np.argmin(scores))
    assert round(max(scores), 4) == 0.8610 and round(min(scores), 4) == -0.2213
    mean = fit_blend(preds, target, groups, "mean", members=names)
    assert weighted_r2(target, apply_blend(mean, by_name)) == pytest.approx(0.8578, abs=1e-4)
    assert list(mean["dropped"]) == [names[worst]]
    single = nested_post(target, best, groups, reconcile="ols")
    least = {"mean": 0.857, "weights": 0.863, "per-target": 0.862, "greedy": 0.863}
    for kind in BLENDS:
        report = honest_blend(preds, target, groups, kind)
        assert (report["weights"][worst] == 0).all() and (report["weights_spread"][worst] == 0).all()
        assert report["honest"] >= least[kind] and report["fitted"] >= report["honest"] - 1e-4, kind
        interval = bootstrap_difference(target, report["honest_pred"], single, groups)
        assert interval["groups"] == 30 and interval["low95"] < interval["difference"] < interval["high95"]
        assert combine(preds, report["weights"]).shape == (357, len(OUTPUTS))
