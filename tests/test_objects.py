import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve

from common.errors import InputError
from common.metrics import objects
from common.metrics.objects import Matches, match_objects, object_curve, object_scores

EIGHT = np.ones((3, 3), int)
LIMITS = (0.3, 0.5, 0.1)


def plain_match(pred, target, prob, iou=LIMITS, min_blob=0, valid=None):
    """The same by scipy's labels and loops over pixel sets."""
    valid = np.ones(pred.shape, bool) if valid is None else valid
    sides = []
    for mask in (pred & valid, target & valid):
        label, count = ndimage.label(mask, EIGHT)
        blobs = [frozenset(np.flatnonzero(label == k + 1).tolist()) for k in range(count)]
        sides.append(sorted((blob for blob in blobs if len(blob) >= min_blob), key=min))
    flat = prob.ravel().astype(np.float64)
    score = [flat[sorted(blob)].mean() for blob in sides[0]]
    order = sorted(range(len(sides[0])), key=lambda k: (-score[k], k))
    matched, found = np.zeros((len(iou), len(sides[0])), bool), np.zeros((len(iou), len(sides[1])), bool)
    for rank, k in enumerate(order):
        ious = [len(sides[0][k] & t) / len(sides[0][k] | t) for t in sides[1]]
        for limit, least in enumerate(iou):
            free = [(-ious[t], t) for t in range(len(ious)) if ious[t] >= least and not found[limit, t]]
            if free:
                matched[limit, rank] = found[limit, min(free)[1]] = True
    scores, areas = [score[k] for k in order], [len(sides[0][k]) for k in order]
    return Matches(tuple(iou), np.array(scores), np.array(areas), matched, np.array([len(t) for t in sides[1]]), found)


def assert_same(ours, plain):
    assert ours.iou == plain.iou
    np.testing.assert_allclose(ours.pred_score, plain.pred_score, rtol=1e-12)
    for name in ("pred_area", "matched", "target_area", "target_found"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(plain, name), err_msg=name)


def random_pair(rng):
    """Two masks of any small size and density that resemble each other more or less, and prob in 64ths (exact sums)."""
    shape = tuple(rng.integers(1, 25, 2))
    rough = rng.random(shape)
    field = ndimage.gaussian_filter(rough, rng.choice([0, 0.7, 1.5])) if rng.random() < 0.7 else rough
    other = field + rng.choice([0, 0.05, 0.5]) * rng.random(shape)
    pred = other > np.quantile(other, rng.random())
    target = field > np.quantile(field, rng.random())
    levels = rng.choice([2, 64])  # two levels: many blobs of equal mean
    return pred, target, (rng.integers(0, levels + 1, shape) / levels).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_thousands_of_random_masks_equal_the_plain_matching(seed):
    rng, blobs, hits = np.random.default_rng(seed), 0, np.zeros(3, int)
    for _ in range(1000):
        pred, target, prob = random_pair(rng)
        valid = rng.random(pred.shape) < 0.9 if rng.random() < 0.4 else None
        min_blob = int(rng.choice([0, 1, 2, 6]))
        ours = match_objects(pred, target, prob, min_blob=min_blob, valid=valid)
        assert_same(ours, plain_match(pred, target, prob, min_blob=min_blob, valid=valid))
        blobs, hits = blobs + ours.n_pred, hits + ours.matched.sum(1)
    assert blobs > 2500 and hits.min() > 500


def picture(*lines):
    return np.array([[mark == "#" for mark in line] for line in lines])


DRAWN = {
    "diagonal touch is one blob": (picture("#...", ".#..", "..#.", "...#"), 1),
    "and the other way": (picture("...#", "..#.", ".#..", "#..."), 1),
    "one pixel apart is two": (picture("##.##", "##.##"), 2),
    "blob within a ring": (picture("#####", "#...#", "#.#.#", "#...#", "#####"), 2),
    "comb joined at the end": (picture("#.#.#.#.#", "#.#.#.#.#", "#########"), 1),
    "comb joined at the start": (picture("#########", "#.#.#.#.#", "#.#.#.#.#"), 1),
    "spiral": (picture("#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######"), 1),
    "row ends do not join the next row": (picture("......##", "........", "##......"), 2),
    "not even the next one": (picture("......##", "##......"), 2),
    "along all borders": (picture("##########", "#........#", "##########"), 1),
    "all": (np.ones((3, 17), bool), 1),
    "none": (np.zeros((3, 17), bool), 0),
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("over", [0, 1, 5, 8])
def test_drawn_blobs_are_counted_and_meet_themselves(name, over):
    """At every place within words of eight pixels."""
    mask, count = DRAWN[name]
    mask = np.pad(mask, ((1, 0), (over, 3))) if over else mask
    result = match_objects(mask, mask, mask.astype(np.float32))
    assert (result.n_pred, result.n_target) == (count, count)
    assert result.matched.all() and result.target_found.all()
    assert result.pred_area.sum() == mask.sum() and (result.pred_score == 1).all()


def test_one_to_one_by_score_and_then_by_largest_iou():
    """A true blob of ten pixels: two predicted ones both reach .3, the surer one takes it though it overlaps less."""
    target = picture("##########")
    pred = picture("######.###")
    prob = np.where(np.arange(10) < 6, 0.6, 0.9).astype(np.float32)[None]
    result = match_objects(pred, target, prob, iou=(0.3, 0.5))
    np.testing.assert_allclose(result.pred_score, [0.9, 0.6], atol=1e-6)
    assert result.pred_area.tolist() == [3, 6]
    assert result.matched.tolist() == [[True, False], [False, True]]  # 3 / 10 is at least .3, exactly
    assert result.target_found.tolist() == [[True], [True]]


def test_ignored_pixels_count_on_neither_side_and_may_split():
    pred, target = picture("#####"), picture(".####")
    valid = picture("##.##")
    result = match_objects(pred, target, np.ones((1, 5), np.float32), iou=(0.5,), valid=valid)
    assert result.pred_area.tolist() == [2, 2] and result.target_area.tolist() == [1, 2]
    assert result.matched.tolist() == [[True, True]]
    nowhere = match_objects(pred, target, np.full((1, 5), np.nan, np.float32), valid=np.zeros((1, 5), bool))
    assert nowhere.n_pred == nowhere.n_target == 0


def test_number_of_threads_changes_nothing(monkeypatch):
    import numba

    rng = np.random.default_rng(3)
    field = ndimage.gaussian_filter(rng.normal(size=(301, 530)), 2)
    pred, target, prob = field > 0.1, field + 0.05 * rng.normal(size=field.shape) > 0.1, rng.random(field.shape)
    monkeypatch.setattr(objects, "THREADED", 0)
    found = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(objects._compiled(), "threads", lambda threads=threads: threads)
        found.append(match_objects(pred, target, prob, min_blob=3))
        assert found[-1].pred_score.tobytes() == found[0].pred_score.tobytes()
        assert_same(found[-1], found[0])
    assert found[0].n_pred > 100 and numba.get_num_threads() >= 1
    assert_same(found[0], plain_match(pred, target, prob.astype(np.float32), min_blob=3))


def test_strided_and_read_only_input_is_read_as_it_lies():
    rng = np.random.default_rng(4)
    pred, target, prob = rng.random((40, 60)) > 0.6, rng.random((40, 60)) > 0.6, rng.random((40, 60)).astype(np.float32)
    prob.flags.writeable = False
    assert_same(
        match_objects(pred[::2, 3:40], target[::2, 3:40], prob[::2, 3:40]),
        plain_match(pred[::2, 3:40], target[::2, 3:40], prob[::2, 3:40]),
    )
    assert_same(match_objects(pred.T, target.T.astype(np.uint8), prob.T), plain_match(pred.T, target.T, prob.T))


def many_tiles(seed=0, count=40):
    """Matches of tiles with blobs of various luck, some of them empty on one side."""
    rng, tiles = np.random.default_rng(seed), []
    for k in range(count):
        field = ndimage.gaussian_filter(rng.normal(size=(40, 48)), 2)
        noisy = field + rng.choice([0.02, 0.1]) * ndimage.gaussian_filter(rng.normal(size=field.shape), 1)
        prob = 1 / (1 + np.exp(-20 * (noisy - 0.2)))
        tiles.append(match_objects((prob > 0.5) & (k % 7 != 1), (field > 0.2) & (k % 5 != 2), np.round(prob, 2)))
    return tiles, rng.choice([1.0, 3.0, 0.5], count)


def test_scores_are_shares_of_weighted_blobs():
    tiles, weights = many_tiles()
    scores = object_scores(tiles, weights)
    for k, limit in enumerate(LIMITS):
        tp = sum(w * m.matched[k].sum() for m, w in zip(tiles, weights, strict=True))
        said = sum(w * len(m.pred_area) for m, w in zip(tiles, weights, strict=True))
        true = sum(w * len(m.target_area) for m, w in zip(tiles, weights, strict=True))
        found = scores[limit]
        assert (found["tp"], found["fp"], found["fn"]) == pytest.approx((tp, said - tp, true - tp))
        assert found["precision"] == pytest.approx(tp / said) and found["recall"] == pytest.approx(tp / true)
        assert found["f1"] == pytest.approx(2 / (said / tp + true / tp))
    assert scores[0.1]["recall"] > scores[0.3]["recall"] > scores[0.5]["recall"] > 0
    assert object_scores(tiles)[0.3]["tp"] == sum(m.matched[0].sum() for m in tiles)


def test_scores_of_nothing_are_undefined():
    empty = match_objects(np.zeros((4, 4), bool), np.zeros((4, 4), bool), np.zeros((4, 4)))
    assert all(np.isnan(object_scores([empty])[0.3][name]) for name in ("precision", "recall", "f1"))
    assert np.isnan(object_curve([empty]).average_precision) and len(object_curve([empty]).score) == 0
    assert np.isnan(object_scores([])[0.3]["f1"]) and np.isnan(object_curve([]).average_precision)
    missed = match_objects(np.zeros((4, 4), bool), np.eye(4, dtype=bool), np.zeros((4, 4)))
    assert object_scores([missed])[0.3]["recall"] == 0 == object_scores([missed])[0.3]["f1"]
    assert object_curve([missed]).average_precision == 0


@pytest.mark.parametrize("limit", LIMITS)
def test_curve_equals_scikit_learns(limit):
    """Missed blobs are positives below every score; scikit-learn's last step, which finds them, is taken off again."""
    tiles, weights = many_tiles(1)
    weights[3] = 0
    curve = object_curve(tiles, weights, limit)
    k = LIMITS.index(limit)
    hit = np.concatenate([m.matched[k] for m in tiles])
    score = np.concatenate([m.pred_score for m in tiles])
    weight = np.concatenate([np.full(m.n_pred, w) for m, w in zip(tiles, weights, strict=True)])
    missed = sum(w * (m.n_target - m.matched[k].sum()) for m, w in zip(tiles, weights, strict=True))
    truth, ranked = np.append(hit, True), np.append(score, -1.0)
    weight = np.append(weight, missed)
    whole = average_precision_score(truth, ranked, sample_weight=weight)
    last = missed / weight[truth].sum() * weight[truth].sum() / weight.sum()
    assert curve.average_precision == pytest.approx(whole - last, abs=1e-12)
    precision, recall, threshold = precision_recall_curve(truth, ranked, sample_weight=weight)
    at = np.searchsorted(threshold, curve.score)
    np.testing.assert_allclose(threshold[at], curve.score)
    np.testing.assert_allclose(curve.precision, precision[at], atol=1e-12)
    np.testing.assert_allclose(curve.recall, recall[at], atol=1e-12)
    assert (np.diff(curve.score) < 0).all() and (curve.recall[-1] < 1) == (missed > 0)


def test_a_prefix_of_the_curve_is_the_score_of_the_surer_blobs():
    tiles, weights = many_tiles(2)
    curve = object_curve(tiles, weights)
    middle = len(curve.score) // 2
    kept = []
    for m in tiles:
        sure = m.pred_score >= curve.score[middle]
        kept.append(Matches(m.iou, m.pred_score[sure], m.pred_area[sure], m.matched[:, sure], m.target_area, None))
    scores = object_scores(kept, weights)[0.3]
    assert scores["precision"] == pytest.approx(curve.precision[middle])
    assert scores["recall"] == pytest.approx(curve.recall[middle])


WRONG = {
    "one size": lambda mask, prob: match_objects(mask, mask[1:], prob),
    "images": lambda mask, prob: match_objects(mask[None], mask[None], prob[None]),
    "limits": lambda mask, prob: match_objects(mask, mask, prob, iou=(0,)),
    "not finite": lambda mask, prob: match_objects(mask, mask, prob * np.nan),
    "one, at least 0, per tile": lambda mask, prob: object_scores([match_objects(mask, mask, prob)], [1, 2]),
    "at least 0": lambda mask, prob: object_curve([match_objects(mask, mask, prob)], [-1]),
    "no matches at IoU 0.4": lambda mask, prob: object_curve([match_objects(mask, mask, prob)], iou=0.4),
    "at the same": lambda mask, prob: object_scores(
        [match_objects(mask, mask, prob), match_objects(mask, mask, prob, iou=(0.2,))]
    ),
}


@pytest.mark.parametrize("told", WRONG)
def test_what_is_wrong_is_told(told):
    mask, prob = np.ones((4, 5), bool), np.ones((4, 5), np.float32)
    with pytest.raises(InputError, match=told):
        WRONG[told](mask, prob)
