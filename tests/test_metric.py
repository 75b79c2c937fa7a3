import numpy as np
import pytest
from published import OUTPUTS, load_published
from sklearn.metrics import r2_score

from common.errors import InputError
from common.metrics.regression import WEIGHTS, score_by, target_table, weighted_r2

PUBLISHED = {
    "2025-12-29_01_32_32_vit_base": 0.8095,
    "2025-12-30_20_20_41_vit_base": 0.8443,
    "2026-01-13_01_13_57_vit_base": 0.8427,
    "2026-01-14_01_18_11_vit_small": 0.8335,
    "2026-01-14_13_39_06_vit_base": 0.8436,
    "2026-01-14_19_15_08_vit_huge": 0.8578,
    "2026-01-15_14_30_30_convnextv2": 0.8049,
    "2026-01-15_20_19_30_vit_large": 0.8511,
    "2026-01-15_23_00_56_vit_large": 0.8610,
    "2026-01-20_17_58_18_vit_large": 0.8520,
    "2026-01-23_23_15_57_vit_large": -0.2213,
    "oof_gbdt": 0.8412,
}


def slow_r2(target, pred, weights, valid):
    """The definition, one entry at a time."""
    rows = [
        (weights[t], target[i][t], pred[i][t]) for i in range(len(target)) for t in range(len(weights)) if valid[i][t]
    ]
    mean = sum(w * y for w, y, _ in rows) / sum(w for w, _, _ in rows)
    return 1 - sum(w * (y - p) ** 2 for w, y, p in rows) / sum(w * (y - mean) ** 2 for w, y, _ in rows)


@pytest.fixture
def example():
    rng = np.random.default_rng(3)
    target = rng.gamma(1.5, 20, (40, 5)) * [1, 0.5, 0.2, 1.2, 2]
    return target, target + rng.normal(0, 9, (40, 5)), rng.random((40, 5)) > 0.2


def test_equals_the_definition_and_scikit_learn(example):
    target, pred, valid = example
    everything = np.ones_like(valid)
    assert weighted_r2(target, pred) == pytest.approx(slow_r2(target, pred, WEIGHTS, everything), abs=1e-12)
    assert weighted_r2(target, pred, valid=valid) == pytest.approx(slow_r2(target, pred, WEIGHTS, valid), abs=1e-12)
    other = (0.3, 0.1, 0.0, 1.0, 2.0)
    assert weighted_r2(target, pred, weights=other) == pytest.approx(slow_r2(target, pred, other, everything))
    weight = np.tile(WEIGHTS, len(target))
    assert weighted_r2(target, pred) == pytest.approx(r2_score(target.ravel(), pred.ravel(), sample_weight=weight))


def test_order_of_the_weights_is_that_of_the_outputs(example):
    target, _, _ = example
    losses = []
    for column in range(5):
        pred = target.copy()
        pred[:, column] += 1
        losses.append(1 - weighted_r2(target, pred))
    assert np.array(losses) / losses[0] == pytest.approx([1, 1, 1, 2, 5])


def test_is_not_clipped_and_ignores_what_is_not_valid(example):
    target, pred, valid = example
    assert weighted_r2(target, pred + 1000) < -10
    assert weighted_r2(target, target) == 1
    hidden_target, hidden_pred = np.where(valid, target, np.nan), np.where(valid, pred, np.inf)
    assert weighted_r2(hidden_target, hidden_pred, valid=valid) == weighted_r2(target, pred, valid=valid)
    assert np.isnan(weighted_r2(np.ones((4, 5)), np.ones((4, 5))))
    assert np.isnan(weighted_r2(target, pred, valid=np.zeros_like(valid)))


def test_errors_are_one_line(example):
    target, pred, valid = example
    broken = pred.copy()
    broken[7, 3] = np.nan
    cases = {
        "pred has 1 non-finite values, the first in row 7 column 3": (target, broken, {}),
        "must be the same": (target, pred[:, :4], {}),
        "5 weights": (target, pred, {"weights": (1, 1)}),
        "at or above zero": (target, pred, {"weights": (1, 1, 1, 1, -1)}),
        "valid": (target, pred, {"valid": valid[:3]}),
    }
    for message, (y, p, options) in cases.items():
        with pytest.raises(InputError, match=message) as error:
            weighted_r2(y, p, **options)
        assert "\n" not in str(error.value)


def test_target_table_equals_scikit_learn(example):
    target, pred, valid = example
    table = target_table(target, pred, OUTPUTS, valid=valid).set_index("target")
    for column, name in enumerate(OUTPUTS):
        keep = valid[:, column]
        y, p = target[keep, column], pred[keep, column]
        assert table.loc[name, "rows"] == keep.sum()
        assert table.loc[name, "r2"] == pytest.approx(r2_score(y, p))
        assert table.loc[name, "rmse"] == pytest.approx(np.sqrt(np.mean((y - p) ** 2)))
        assert table.loc[name, "bias"] == pytest.approx(np.mean(p - y))
    assert np.isnan(target_table(np.ones((3, 5)), np.zeros((3, 5)), OUTPUTS)["r2"]).all()


def test_score_by_equals_the_metric_on_each_part(example):
    target, pred, valid = example
    column = np.array(["Tas", "WA", "Vic", "NSW"])[np.arange(40) % 4]
    table = score_by(target, pred, column, valid=valid).set_index("part")
    assert list(table.index) == ["NSW", "Tas", "Vic", "WA"]
    for part in table.index:
        keep = column == part
        weight = valid[keep] * np.array(WEIGHTS)
        error = pred[keep] - target[keep]
        assert table.loc[part, "rows"] == 10
        assert table.loc[part, "score"] == pytest.approx(weighted_r2(target[keep], pred[keep], valid=valid[keep]))
        assert table.loc[part, "rmse"] == pytest.approx(np.sqrt((weight * error**2).sum() / weight.sum()))
        assert table.loc[part, "bias"] == pytest.approx((weight * error).sum() / weight.sum())
    assert table["error_share"].sum() == pytest.approx(1)
    with pytest.raises(InputError, match="column to group by"):
        score_by(target, pred, column[:5])


@pytest.mark.data
def test_published_sets_score_as_published(biomass_data):
    ids, target, preds, groups = load_published(biomass_data)
    assert len(ids) == 357 and len(set(groups)) == 30
    assert (target @ WEIGHTS).mean() / sum(WEIGHTS) == pytest.approx(33.846, abs=5e-4)
    assert weighted_r2(target, np.tile(target.mean(0), (357, 1))) == pytest.approx(0.240, abs=5e-4)
    assert len(preds) == len(PUBLISHED) == 12
    for start, score in PUBLISHED.items():
        (name,) = [name for name in preds if name.startswith(start)]
        assert round(weighted_r2(target, preds[name]), 4) == score, name
