"""MixUp and CutMix: pure draws, allowed partners, the same share for picture and targets."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from common.datasets.mixing import Mix, MixPlan, mix_image, mix_labels, mix_targets
from common.errors import InputError

SIZE = (40, 60)


def table(count=60) -> pd.DataFrame:
    return pd.DataFrame({"month": [1 + i % 3 for i in range(count)], "state": ["NSW", "Vic"] * (count // 2)})


def plans(mix: Mix, count: int, epochs: int = 1) -> list:
    return [mix.plan(epoch, index, SIZE) for epoch in range(epochs) for index in range(count)]


def test_plans_are_pure_and_change_with_epoch_and_seed():
    make = lambda seed: Mix(table(), seed=seed, mixup_prob=0.5, cutmix_prob=0.5)  # noqa: E731
    first, again = plans(make(1), 60), plans(make(1), 60)[::-1][::-1]
    assert first == again and first != plans(make(2), 60)
    mix = make(1)
    assert [mix.plan(1, i, SIZE) for i in range(60)] != first
    assert [mix.plan(0, i, SIZE) for i in reversed(range(60))][::-1] == first


def test_shares_and_lambda_follow_their_laws():
    mix = Mix(table(), seed=3, mixup_prob=0.5, cutmix_prob=0.2, mixup_alpha=0.4)
    drawn = plans(mix, 60, epochs=60)
    kinds = ["none" if p is None else "cutmix" if p.box else "mixup" for p in drawn]
    for kind, share in (("none", 0.3), ("mixup", 0.5), ("cutmix", 0.2)):
        assert stats.binomtest(kinds.count(kind), len(drawn), share).pvalue > 1e-3
    weights = [p.weight for p in drawn if p and not p.box]
    assert stats.kstest(weights, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


def test_partners_are_uniform_over_the_others():
    mix = Mix(table(6), seed=0, mixup_prob=1.0)
    for index in range(6):
        partners = [mix.plan(epoch, index, SIZE).partner for epoch in range(600)]
        seen = np.bincount(partners, minlength=6)
        assert seen[index] == 0 and stats.chisquare(np.delete(seen, index)).pvalue > 1e-4


def test_partners_stay_within_columns():
    rows = table()
    rows.loc[5, "month"] = 12  # alone
    rows["state"] = rows["state"].astype(object)
    rows.loc[[7, 19], "state"] = None  # unknown twice is not the same state
    mix = Mix(rows, seed=0, mixup_prob=0.5, cutmix_prob=0.5, within=["month", "state"])
    for index in range(len(rows)):
        found = {mix.plan(epoch, index, SIZE).partner for epoch in range(40)} if index not in (5, 7, 19) else None
        if found is None:
            assert all(mix.plan(epoch, index, SIZE) is None for epoch in range(40))
            continue
        alike = (rows["month"] == rows["month"][index]) & (rows["state"] == rows["state"][index])
        assert found <= set(np.flatnonzero(alike)) - {index} and len(found) > 3


def test_box_holds_exactly_the_share_of_the_partner():
    mix = Mix(table(), seed=0, cutmix_prob=1.0)
    areas = []
    for plan in plans(mix, 60, epochs=5):
        top, bottom, left, right = plan.box
        assert 0 <= top <= bottom <= SIZE[0] and 0 <= left <= right <= SIZE[1]
        mask = mix_image(np.zeros((*SIZE, 3), np.uint8), np.ones((*SIZE, 3), np.uint8), plan)
        assert mask[top:bottom, left:right].all() and np.isclose(mask.mean(), 1 - plan.weight)
        areas.append(mask.mean())
    assert 0 < np.mean(areas) < 0.5 and np.ptp(areas) > 0.6


def test_mixup_of_pictures_is_the_weighted_mean():
    draws = np.random.default_rng(0)
    own, other = draws.integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    kept = own.copy()
    mixed = mix_image(own, other, MixPlan(1, 0.3, None))
    assert mixed.dtype == np.uint8 and np.abs(mixed - (0.3 * own + 0.7 * other)).max() <= 0.51
    cut = mix_image(own, other, MixPlan(1, 0.5, (3, 9, 4, 20)))
    wanted = own.copy()
    wanted[3:9, 4:20] = other[3:9, 4:20]
    assert (cut == wanted).all() and (own == kept).all()


def test_targets_and_labels_are_mixed_where_both_are_known():
    own, other = np.array([10, 0, 4, 0], np.float32), np.array([20, 8, 0, 0], np.float32)
    known = np.array([True, True, True, False]), np.array([True, True, False, False])
    target, valid = mix_targets(own, known[0], other, known[1], 0.25)
    assert target.tolist() == [17.5, 6, 0, 0] and target.dtype == np.float32
    assert valid.tolist() == [True, True, False, False]
    one, two = np.eye(3, dtype=np.float32)[:2]
    assert np.allclose(mix_labels(one, two, 0.25), [0.25, 0.75, 0])
    assert not mix_labels(one, np.zeros(3, np.float32), 0.25).any()


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match="--mix-within farm.*month, state"):
        Mix(table(), seed=0, mixup_prob=0.5, within=["farm"])
    with pytest.raises(InputError, match="--mixup-prob 0.7"):
        Mix(table(), seed=0, mixup_prob=0.7, cutmix_prob=0.5)
    with pytest.raises(InputError, match="--mixup-alpha"):
        Mix(table(), seed=0, mixup_prob=0.7, mixup_alpha=0)
