import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, matthews_corrcoef, precision_score, recall_score

from common.errors import InputError
from common.metrics.gates import check_gates, mask_scores, meeting, say_gates
from common.metrics.segmentation import (
    MCC,
    class_mcc,
    class_table,
    confusion,
    count_columns,
    count_row,
    counts_of,
    mcc,
    mean_iou,
)

NAMES = ("background", "glacier", "debris", "lake")


def pixels(classes, seed, wrong=0.3, size=(40, 50)):
    """Truth with rare last classes, a prediction with `wrong` of it drawn anew, and a mask of valid pixels."""
    rng = np.random.default_rng(seed)
    share = 0.25 ** np.arange(classes)
    target = rng.choice(classes, size, p=share / share.sum()).astype(np.uint8)
    pred = np.where(rng.random(size) < wrong, rng.integers(0, classes, size), target)
    return target, pred, rng.random(size) > 0.2


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("wrong", [0.0, 0.3, 0.9])
def test_all_scores_equal_scikit_learns(classes, wrong):
    target, pred, valid = pixels(classes, 3, wrong)
    counts = confusion(target, pred, valid, classes)
    truth, said = target[valid], pred[valid]
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, confusion_matrix(truth, said, labels=range(classes)))
    assert mcc(counts) == pytest.approx(matthews_corrcoef(truth, said), abs=1e-12)
    for k, value in enumerate(class_mcc(counts)):
        assert value == pytest.approx(matthews_corrcoef(truth == k, said == k), abs=1e-12)
    table = class_table(counts, NAMES[:classes])
    for column, score in (
        ("iou", jaccard_score),
        ("dice", f1_score),
        ("f1", f1_score),
        ("precision", precision_score),
        ("recall", recall_score),
    ):
        np.testing.assert_allclose(table[column], score(truth, said, average=None), atol=1e-12)
    assert mean_iou(counts) == pytest.approx(jaccard_score(truth, said, average="macro"))
    np.testing.assert_array_equal(table["pixels"], np.bincount(truth))


def test_mcc_of_numbers_too_large_for_products_in_int64():
    """A mapped country: 4e10 pixels a class, whose products pass 2**63."""
    counts = np.array([[50, 3, 1], [2, 40, 5], [0, 4, 30]], np.int64)
    assert mcc(counts * 10**9) == pytest.approx(mcc(counts), abs=1e-12)


def test_undefined_scores():
    one = np.array([[7, 0], [0, 0]])
    assert mcc(one) == 0 == mcc(np.array([[5, 3], [0, 0]])) == mcc(np.array([[5, 0], [3, 0]])) == mcc(np.zeros((2, 2)))
    table = class_table(one, ("background", "lake")).set_index("class")
    assert table.loc["lake", ["iou", "dice", "precision", "recall", "f1", "mcc"]].isna().all()
    assert table.loc["background", "iou"] == 1
    assert mean_iou(one) == 1 and np.isnan(mean_iou(np.zeros((2, 2))))


def test_stacked_counts_are_scored_one_by_one():
    stack = np.stack([confusion(*pixels(4, seed), 4) for seed in range(6)])
    np.testing.assert_allclose(mcc(stack), [mcc(counts) for counts in stack], atol=0)
    np.testing.assert_allclose(class_mcc(stack)[2], class_mcc(stack[2]), atol=0)


def test_counts_travel_through_a_table_and_nodata_is_background():
    lines, truths, saids = [], [], []
    for seed in range(3):
        target, pred, valid = pixels(4, seed)
        lines.append(count_row(confusion(target, pred, valid, 4), (~valid).sum()) | {"id": str(seed)})
        truths.append(np.where(valid, target, 0).ravel())
        saids.append(np.where(valid, pred, 0).ravel())
    frame = pd.DataFrame(lines)
    assert list(frame.columns)[1:17] == count_columns(4)
    every = counts_of(frame, 4, nodata=True)
    expected = matthews_corrcoef(np.concatenate(truths), np.concatenate(saids))
    assert mcc(every.sum(0)) == pytest.approx(expected, abs=1e-12)
    assert mcc(counts_of(frame, 4).sum(0)) < expected  # no-data pixels are the easy ones
    with pytest.raises(InputError, match="no column n_0_0"):
        counts_of(frame.drop(columns="n_0_0"), 4)


def test_wrong_input_is_named():
    target, pred, valid = pixels(2, 0)
    with pytest.raises(InputError, match="have one shape"):
        confusion(target, pred[:-1], valid, 2)
    with pytest.raises(InputError, match="target has 0 to 255"):
        confusion(target * 255, pred, valid, 2)
    assert confusion(np.where(valid, target, 255), pred, valid, 2).sum() == valid.sum()


def test_gates():
    counts = confusion(*pixels(4, 1), 4)
    scores = mask_scores(counts, NAMES)
    table = class_table(counts, NAMES)
    assert scores["least_iou"] == table["iou"].min() and scores["recall_lake"] == table["recall"].iloc[3]
    gates = {"mcc": scores["mcc"], "recall_lake": scores["recall_lake"] + 1e-6, "mean_iou": 0.01}
    answer = check_gates(scores, gates)
    assert list(answer.columns) == ["gate", "needed", "reached", "passed"]
    assert answer["passed"].tolist() == [True, False, True]
    assert not check_gates({"recall_lake": float("nan")}, {"recall_lake": 0.0})["passed"].any()
    with pytest.raises(InputError, match="no score recall_snow"):
        check_gates(scores, {"recall_snow": 0.5})


def test_thresholds_within_the_gates():
    """The plain score where the gates are met with something to spare, far below it where they are not."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 900, (50, 3, 3))
    gates = {"mcc": 0.1, "precision_b": 0.4, "recall_c": 0.5, "rho": 0.9}  # counts tell nothing of rho
    aim = meeting(gates, MCC, ("a", "b", "c"), spare=0.05)
    for table, found in zip(counts, aim.of(counts), strict=True):
        precision, recall = table[1, 1] / table[:, 1].sum(), table[2, 2] / table[2].sum()
        short = max(0.15 - mcc(table), 0) + max(0.45 - precision, 0) + max(0.55 - recall, 0)
        assert found == pytest.approx(mcc(table) - 10 * short)
    assert aim.of(np.diag([5, 5, 5])) == 1 and aim.nodata and aim.key == "mcc"


def test_gates_in_words():
    table = check_gates({"kappa": 0.4, "rho": float("nan")}, {"kappa": 0.38, "rho": 0.5})
    first, second, verdict = say_gates(table, "production")
    assert first.startswith("PASS  kappa") and second.startswith("FAIL  rho") and "1 of 2 not met" in verdict
    assert say_gates(table[:1], "production")[-1].endswith("all met")
