"""The baselines of single pixels: equal to scikit-learn fold by fold, blind to neighbours, nothing of the held fold."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef, precision_score, recall_score

from common.errors import InputError
from common.metrics.ordered_scores import KAPPA
from common.metrics.pixel_baselines import constant_score, logistic_counts, logistic_judgement, logistic_score


def draw_tiles(count=6, size=24, classes=3, seed=0, spread=0.25):
    """Tiles whose classes have different bands, a strip without data and pixels that are 0 in one band only."""
    rng = np.random.default_rng(seed)
    tiles, targets = [], []
    for _ in range(count):
        target = rng.integers(0, classes, (size, size)).astype(np.uint8)
        base = np.array([[8000, 20000, 12000], [12000, 9000, 30000]])[:, :classes]
        tile = base[:, target] * np.exp(rng.normal(0, spread, (2, size, size)))
        tile[0][rng.random((size, size)) < 0.03] = 0
        tile[:, :3] = 0
        target[:3] = 0
        tiles.append(tile.astype(np.float32))
        targets.append(target)
    rows = pd.DataFrame({"path": range(count), "label": range(count), "fold": np.arange(count) % 3})
    return (
        rows,
        {"read_tile": tiles.__getitem__, "read_target": targets.__getitem__, "classes": classes},
        tiles,
        targets,
    )


def columns(tiles):
    values = np.concatenate([tile.reshape(2, -1)[:, (tile != 0).any(0).ravel()].T for tile in tiles]).astype(np.float64)
    return np.concatenate([values, np.log1p(values)], 1)


def known(tiles, targets):
    return np.concatenate([target[(tile != 0).any(0)] for tile, target in zip(tiles, targets, strict=True)])


def test_counts_equal_a_regression_written_out():
    rows, reads, tiles, targets = draw_tiles()
    counts = logistic_counts(rows, **reads, pixels=10**6)
    for k in range(3):
        here, there = np.flatnonzero(rows["fold"] == k), np.flatnonzero(rows["fold"] != k)
        train = columns([tiles[n] for n in there])
        mean, std = train.mean(0), train.std(0)
        model = LogisticRegression(max_iter=2000)
        model.fit(np.clip((train - mean) / std, -4, 4), known([tiles[n] for n in there], [targets[n] for n in there]))
        for n in here:
            said = model.predict(np.clip((columns([tiles[n]]) - mean) / std, -4, 4))
            expected = pd.crosstab(known([tiles[n]], [targets[n]]), said).to_numpy().copy()
            expected[0, 0] += 3 * 24
            assert np.abs(counts[n] - expected).sum() <= 4, (n, counts[n], expected)


def test_score_counts_every_pixel_once():
    rows, reads, tiles, targets = draw_tiles()
    counts = logistic_counts(rows, **reads)
    assert (counts.sum((1, 2)) == 24 * 24).all()
    assert np.array_equal(counts.sum((0, 2)), np.bincount(np.ravel(targets), minlength=3))
    truth, said = (np.repeat(index.ravel(), counts.sum(0).ravel()) for index in np.indices((3, 3)))
    score = logistic_score(rows, **reads)
    assert score == pytest.approx(matthews_corrcoef(truth, said), abs=1e-12) and 0.6 < score < 0.999


def test_held_fold_is_not_learnt_from():
    """Classes of fold 0 exchanged: its score turns bad, and the tiles of the other folds are not what decides that."""
    rows, reads, _, targets = draw_tiles(spread=0.05)
    assert logistic_score(rows, **reads) > 0.95
    for n in np.flatnonzero(rows["fold"] == 0):
        targets[n][3:] = (targets[n][3:] + 1) % 3
    counts = logistic_counts(rows, **reads)[rows["fold"] == 0].sum(0)
    counts[0, 0] -= 3 * 24 * 2
    assert np.trace(counts) < 0.1 * counts.sum()


def test_neighbours_do_not_count():
    """Pixels of each tile in another order: the same score, so nothing but the pixel itself is looked at."""
    rows, reads, tiles, targets = draw_tiles()
    rng, before = np.random.default_rng(5), logistic_score(rows, **reads, pixels=10**6)
    for n in range(len(tiles)):
        order = rng.permutation(24 * 24)
        tiles[n] = tiles[n].reshape(2, -1)[:, order].reshape(2, 24, 24)
        targets[n] = targets[n].ravel()[order].reshape(24, 24)
    assert logistic_score(rows, **reads, pixels=10**6) == pytest.approx(before, abs=0.003)


def test_sample_is_of_the_size_asked_and_drawn_by_the_seed():
    rows, reads, *_ = draw_tiles(spread=0.6)
    few = [logistic_score(rows, **reads, pixels=60, seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]


def test_one_class_in_training_and_a_tile_without_data_are_no_error():
    rows, reads, tiles, targets = draw_tiles()
    for target in targets:
        target[:] = 1
    tiles[2][:] = 0
    targets[2][:] = 0
    counts = logistic_counts(rows, **reads)
    assert counts[2, 0, 0] == 24 * 24 and counts[0, 1, 1] == 24 * 21


def test_constant_is_the_best_class_of_the_other_folds():
    """Against scikit-learn on whole maps: one class where there is data, the first elsewhere."""
    rows, reads, tiles, targets = draw_tiles()
    for target in targets:
        target[12:, 8:] = 1
    truths, preds = [], []
    for k in range(3):
        maps = {part: np.flatnonzero((rows["fold"] == k) == here) for part, here in (("held", True), ("rest", False))}
        scores = []
        for chosen in range(3):
            filled = [np.where((tiles[n] != 0).any(0), chosen, 0) for n in maps["rest"]]
            scores.append(matthews_corrcoef(np.ravel([targets[n] for n in maps["rest"]]), np.ravel(filled)))
        truths += [targets[n] for n in maps["held"]]
        preds += [np.where((tiles[n] != 0).any(0), np.argmax(scores), 0) for n in maps["held"]]
    wanted = matthews_corrcoef(np.ravel(truths), np.ravel(preds))
    assert constant_score(rows, **reads) == pytest.approx(wanted) and wanted > 0.1


def test_folds_are_needed():
    rows, reads, _, _ = draw_tiles()
    for fold in (0, [-1, 0, 1, 0, 1, 0]):
        for score in (logistic_score, constant_score):
            with pytest.raises(InputError, match="two folds or more"):
                score(rows.assign(fold=fold), **reads)


def test_a_constant_has_no_kappa():
    """Pixels without data are right with MCC, which counts them; kappa leaves them out and is 0."""
    rows, reads, tiles, _ = draw_tiles()
    for tile in tiles:
        tile[:, :12] = 0
    assert constant_score(rows, **reads, metric=KAPPA) == 0
    assert constant_score(rows, **reads) != 0


def test_kappa_of_the_regression_is_that_of_pixels_with_data():
    rows, reads, tiles, targets = draw_tiles()
    counts = logistic_counts(rows, **reads).sum(0)
    counts[0, 0] -= 6 * 3 * 24
    truth, said = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices((3, 3)))
    assert np.bincount(truth).tolist() == np.bincount(known(tiles, targets)).tolist()
    score = logistic_score(rows, **reads, metric=KAPPA)
    assert score == pytest.approx(cohen_kappa_score(truth, said), abs=1e-12)
    assert score != pytest.approx(logistic_score(rows, **reads), abs=1e-3)


def test_ignored_pixels_count_nowhere():
    """A label that counts nowhere is as good as no such pixel: neither fitted on, nor scored, nor background."""
    rows, reads, tiles, targets = draw_tiles(spread=0.05)
    wrong = [target.copy() for target in targets]
    for target in wrong:
        target[12:] = (target[12:] + 1) % 3  # half of the labels are wrong …
    mixed = reads | {"read_target": wrong.__getitem__}
    assert logistic_score(rows, **mixed) < 0.7
    for target in targets:
        target[12:] = 255  # … or not known
        target[:3, :4] = 255
    counts = logistic_counts(rows, **reads)
    assert (counts.sum((1, 2)) == 12 * 24 - 3 * 4).all()
    assert logistic_score(rows, **reads) > 0.95
    targets[0][:] = 255
    assert logistic_counts(rows, **reads)[0].sum() == 0
    assert -1 < constant_score(rows, **reads) < 1


def test_judgement_of_the_regression_is_that_of_scikit_learn():
    rows, reads, tiles, targets = draw_tiles(spread=0.6)
    for target in targets:
        target[20:] = 255
    found = logistic_judgement(rows, **reads, outputs=["low", "medium", "high"], pixels=10**6)
    truth, said, order = [], [], []
    for k in range(3):
        here, there = np.flatnonzero(rows["fold"] == k), np.flatnonzero(rows["fold"] != k)
        labelled = [
            [target[(tile != 0).any(0)] < 255 for tile, target in zip(tiles, targets, strict=True)][n] for n in there
        ]
        train = columns([tiles[n] for n in there])[np.concatenate(labelled)]
        mean, std = train.mean(0), train.std(0)
        label = known([tiles[n] for n in there], [targets[n] for n in there])
        model = LogisticRegression(max_iter=2000).fit(np.clip((train - mean) / std, -4, 4), label[label < 255])
        held = known([tiles[n] for n in here], [targets[n] for n in here])
        prob = model.predict_proba(np.clip((columns([tiles[n] for n in here]) - mean) / std, -4, 4)[held < 255])
        truth.append(held[held < 255])
        said.append(prob.argmax(1))
        order.append(prob @ [0, 0.5, 1])
    truth, said, order = (np.concatenate(values) for values in (truth, said, order))
    metrics = found["metrics"]
    assert list(metrics) == ["kappa", "precision_medium", "recall_high", "rho"]
    assert metrics["kappa"] == pytest.approx(cohen_kappa_score(truth, said), abs=3e-3)
    assert metrics["precision_medium"] == pytest.approx(precision_score(truth == 1, said == 1), abs=3e-3)
    assert metrics["recall_high"] == pytest.approx(recall_score(truth == 2, said == 2), abs=3e-3)
    assert metrics["rho"] == pytest.approx(spearmanr(truth, order).statistic, abs=3e-3)
    assert found["counts"].sum() == found["hist"].sum() == len(truth)
    plain = logistic_counts(rows, **reads, pixels=10**6, nodata=False)
    assert np.array_equal(found["counts"], plain)


def test_judgement_where_training_lacks_a_class():
    rows, reads, _, targets = draw_tiles()
    for n in np.flatnonzero(rows["fold"] != 0):
        targets[n][targets[n] == 1] = 2
    found = logistic_judgement(rows, **reads, outputs=["low", "medium", "high"])
    assert found["counts"][rows["fold"] == 0].sum((0, 1))[1] == 0 < found["counts"][rows["fold"] == 0].sum((0, 2))[1]
    for target in targets:
        target[:] = 2
    assert logistic_judgement(rows, **reads, outputs=["low", "medium", "high"])["hist"][2, -1] == 6 * 21 * 24
