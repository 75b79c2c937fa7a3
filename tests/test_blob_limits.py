"""Limits of blobs (common.post.detection_fit.with_blobs): fitted, left out honestly, applied to maps."""

import argparse
import json

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.special import expit
from test_detection_judge import World

from common.errors import InputError
from common.metrics.objects import Matches
from common.post.detection_fit import blob_limit, cut_of
from common.post.detection_judge import final_report, fit_post, judge
from common.post.detection_maps import Cut, cut_mask
from common.tasks import rare_class

RATIOS, TARGET = (2, 40), 0.7
SETTINGS = {"ratios": RATIOS, "main_ratio": 2, "target_precision": TARGET, "min_blob": 3}
EIGHT = np.ones((3, 3))
NEW = ("blob", "object_precision", "object_recall", "object_reachable")


def blobs_of(mask, least_pixels=1):
    label, count = ndimage.label(mask, EIGHT)
    blobs = (label == k for k in range(1, count + 1))
    return [blob for blob in blobs if blob.sum() >= least_pixels]


def slow_tile(tile, post, level, least=0.0):
    """(mean probability and hit of every predicted blob, number of true ones) of (logit, valid, target)."""
    logit, valid, target = tile
    prob = expit(logit.astype(float) / post["temperature"])
    pred = [blob for blob in blobs_of((prob > level) & valid, 3) if prob[blob].mean() >= least]
    truth = blobs_of((target == 1) & valid, 3)
    free, found = list(range(len(truth))), []
    for blob in sorted(pred, key=lambda blob: -prob[blob].mean()):
        scores = {k: (blob & truth[k]).sum() / (blob | truth[k]).sum() for k in free}
        best = max(scores, key=scores.get, default=None)
        hit = best is not None and scores[best] >= 0.3
        free = [k for k in free if not (hit and k == best)]
        found.append((prob[blob].mean(), hit))
    return found, len(truth)


def slow_scores(tiles, ratio):
    """(precision, recall, false blobs in tiles without the class) of [(blobs, true, positive)] of slow_tile."""
    positive = [one[2] for one in tiles]
    weight = ratio * sum(positive) / max(len(positive) - sum(positive), 1)
    hits = sum(hit for blobs, _, _ in tiles for _, hit in blobs)
    far = sum(len(blobs) for blobs, _, inside in tiles if not inside)
    near = sum(not hit for blobs, _, inside in tiles if inside for _, hit in blobs)
    total = hits + near + weight * far
    return hits / total if total else np.nan, hits / sum(true for _, true, _ in tiles), far


def slow_tiles(world, frame, post_of_tile, level_of, least_of):
    tiles = []
    for index, path in enumerate(frame["prob"]):
        tile, post = world.read(path), post_of_tile(index)
        blobs, true = slow_tile(tile, post, level_of(post), least_of(post))
        tiles.append((blobs, true, bool(tile[2][tile[1]].any())))
    return tiles


def slow_limits(tiles, ratio):
    """{limit: (precision, recall)} of every mean probability as the limit."""
    limits = sorted({score for blobs, _, _ in tiles for score, _ in blobs})
    kept = ([([b for b in blobs if b[0] >= least], *rest) for blobs, *rest in tiles] for least in limits)
    return {least: slow_scores(one, ratio)[:2] for least, one in zip(limits, kept, strict=True)}


@pytest.fixture(scope="module")
def world():
    return World(seed=5)


@pytest.fixture(scope="module")
def frame(world):
    return world.add("maps", noise=1.0)


@pytest.fixture(scope="module")
def judged(world, frame):
    return world.judge({"maps": frame}, **SETTINGS)


@pytest.fixture(scope="module")
def post(judged):
    return judged["blend"]["post"]


@pytest.fixture(scope="module")
def outlined(world, frame, post):
    """What slow_tile finds in every tile at the balanced threshold."""
    return slow_tiles(world, frame, lambda index: post, lambda p: p["balanced"], lambda p: 0)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("target", [TARGET, 0.3, 1.1])
def test_limit_is_the_best_of_all(world, frame, outlined, post, ratio, target):
    """Largest recall where the precision is reached, else the best F0.5; every limit tried by the slow version."""
    known = slow_limits(outlined, ratio)
    reached = [pair for pair in known.values() if pair[0] >= target]
    if target == TARGET:
        line = post["ratios"][str(ratio)]
    else:
        settings = SETTINGS | {"target_precision": target}
        line = fit_post(world.rows, frame, read_map=world.read, **settings)["ratios"][str(ratio)]
    assert line["object_reachable"] == bool(reached) == (target <= 1)
    scores = (line["object_precision"], line["object_recall"])
    if reached:
        assert scores == pytest.approx(max(reached, key=lambda pair: (pair[1], pair[0])))
    else:
        assert scores == pytest.approx(max(known.values(), key=lambda pair: 1.25 / (1 / pair[0] + 0.25 / pair[1])))
    assert scores == pytest.approx(known[min(score for score in known if score >= line["blob"])])


def test_limits_differ_and_drop_something(outlined, post):
    """The set is such that the tests say something: false blobs are dropped, true ones stay."""
    far = sum(len(blobs) for blobs, _, inside in outlined if not inside)
    line, other = post["ratios"]["2"], post["ratios"]["40"]
    assert far > 5 and 0.5 < other["object_recall"] < line["object_recall"] < 1
    assert post["blob"] == line["blob"] > post["balanced"] and other["blob"] > line["blob"] + 0.05


@pytest.mark.parametrize("ratio", RATIOS)
def test_honest_blobs_by_hand(world, frame, judged, ratio):
    """Tile by tile with what was fitted without its region; and only so."""
    nested = [one["post"] for one in judged["nested"]]
    tiles = slow_tiles(
        world, frame, lambda i: nested[i], lambda p: p["balanced"], lambda p: p["ratios"][str(ratio)]["blob"]
    )
    precision, recall, far = slow_scores(tiles, ratio)
    table = judged["tables"]["object"]
    line = table[(table["ratio"] == ratio) & (table["at"] == "blobs") & (table["iou"] == 0.3)].iloc[0]
    assert (line["precision"], line["recall"]) == pytest.approx((precision, recall))
    assert (line["predicted"], line["true"]) == (sum(len(one[0]) for one in tiles), sum(one[1] for one in tiles))
    assert set(table["at"]) == {"raw .5", "threshold", "blobs"}
    said = judged["tables"]["thresholds"].set_index("ratio").loc[ratio]
    assert (said["honest object precision"], said["honest object recall"]) == pytest.approx((precision, recall))
    assert said["false blobs"] == far
    fitted = judged["blend"]["post"]["ratios"][str(ratio)]
    assert [said[name.replace("_", " ")] for name in NEW] == [fitted[name] for name in NEW]
    metrics = judged["metrics"]
    assert metrics[f"object_precision_{ratio}"] == line["precision"]
    assert metrics[f"object_recall_{ratio}"] == line["recall"]


def test_limits_are_fitted_without_the_region(world, frame, judged):
    """What is moved in region a changes what a is scored by, not what was fitted for it."""
    settings = SETTINGS | {"read_map": world.read}
    posts = [judged["nested"][index]["post"] for index in (0, 12, 24)]
    for region, known in zip("abc", posts, strict=True):
        rows = world.rows[world.rows["group"] != region].reset_index(drop=True)
        alone = fit_post(rows, frame[frame["id"].isin(rows["id"])].reset_index(drop=True), **settings)
        assert alone == known
    assert len({one["blob"] for one in posts}) > 1


def test_limits_of_a_blend(world, frame):
    """Two sets: blobs are of the mean probability, weights and limits without the part."""
    both = {"maps": frame, "other": world.add("other", noise=1.6)}
    found = world.judge(both, **SETTINGS)
    post = found["nested"][0]["post"]
    assert found["nested"][0]["weights"] == [0.5, 0.5]
    tiles = []
    for index in range(12, 36):
        (one, valid, target), (two, _, _) = (world.read(one["prob"][index]) for one in both.values())
        prob = (expit(one.astype(float)) + expit(two.astype(float))) / 2
        mixed = np.log(prob) - np.log1p(-prob)
        tiles.append((*slow_tile((mixed, valid, target), post, post["balanced"]), bool(target[valid].any())))
    known = slow_limits(tiles, 2)
    line = post["ratios"]["2"]
    best = max((pair for pair in known.values() if pair[0] >= TARGET), key=lambda pair: (pair[1], pair[0]))
    assert (line["object_precision"], line["object_recall"]) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(40))
def test_masks_without_faint_blobs(seed):
    """Against scipy's labels: touching at corners, at the border, split by pixels that are not valid, none at all."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(30, 41)), rng.uniform(0, 2))
    logit = (6 * noise / noise.std() - rng.uniform(0, 6)).astype(np.float32)
    valid = rng.random(logit.shape) > 0.1
    temperature, level, small = rng.uniform(0.5, 3), rng.uniform(0.05, 0.95), int(rng.integers(0, 6))
    prob = expit(logit.astype(float) / temperature)
    least = float(level + (1 - level) * rng.random())
    known = np.zeros(logit.shape, bool)
    for blob in blobs_of((prob > level) & valid, max(small, 1)):
        known |= blob if prob[blob].mean() >= least else False
    found = cut_mask(logit, valid, Cut(level, temperature, small, least))
    np.testing.assert_array_equal(found, known)
    assert not cut_mask(logit, valid & False, Cut(level, temperature, small, least)).any()


def tile_matches(scores, hits, true):
    hits = np.array([hits], bool)
    found = np.arange(true)[None] < hits.sum()
    return Matches((0.3,), np.array(scores, float), np.full(len(scores), 9), hits, np.full(true, 9), found)


def test_limit_lies_half_way():
    """Of equal recall the fewest blobs; half way to the next one, 0 where all are kept."""
    positive = np.array([True, False])
    tiles = [tile_matches([0.9, 0.7, 0.6], [1, 1, 0], 2), tile_matches([0.5], [0], 0)]
    answer = blob_limit(tiles, positive, 1, 0.5)
    assert answer == {
        "blob": pytest.approx(0.65),
        "object_precision": 1,
        "object_recall": 1,
        "object_reachable": True,
    }
    tiles = [tile_matches([0.9, 0.6], [1, 1], 2), tile_matches([0.7], [0], 0)]
    assert blob_limit(tiles, positive, 10, 0.1)["blob"] == 0
    assert blob_limit(tiles, positive, 10, 0.2) == {
        "blob": pytest.approx(0.8),
        "object_precision": 1,
        "object_recall": 0.5,
        "object_reachable": True,
    }
    close = np.nextafter(0.9, 0)
    tiles = [tile_matches([0.9], [1], 1), tile_matches([close], [0], 0)]
    assert close < blob_limit(tiles, positive, 10, 0.8)["blob"] <= 0.9


def test_nothing_is_reachable_where_all_blobs_are_wrong():
    nothing = {"blob": 0, "object_precision": pytest.approx(np.nan, nan_ok=True), "object_reachable": False}
    for tiles in (
        [tile_matches([0.9], [0], 1), tile_matches([0.8], [0], 0)],
        [tile_matches([], [], 1), tile_matches([], [], 0)],
        [tile_matches([0.9], [0], 0), tile_matches([0.8], [0], 0)],
    ):
        answer = blob_limit(tiles, np.array([True, False]), 20, 0.5)
        assert {name: answer[name] for name in nothing} == nothing


def test_without_negatives_no_precision_is_told():
    world = World(regions=("a", "b"), positives=3, negatives=0)
    frame = world.add("maps", noise=1.5)
    found = world.judge({"maps": frame}, **SETTINGS)
    post = found["blend"]["post"]
    line = post["ratios"]["2"]
    assert [line[name] for name in NEW[1:]] == [None, None, False]
    tiles = slow_tiles(world, frame, lambda index: post, lambda p: p["balanced"], lambda p: 0)
    known = slow_limits(tiles, 1)
    best = max(known, key=lambda score: 1.25 / (1 / known[score][0] + 0.25 / known[score][1]))
    assert line["blob"] <= best and not any(line["blob"] <= score < best for score in known)
    table = found["tables"]["thresholds"]
    assert table[["object precision", "honest object precision", "honest object recall"]].isna().all(axis=None)
    json.dumps(post, allow_nan=False)


def test_a_part_left_without_the_class_drops_nothing():
    world = World(regions=("a", "b"), positives=3, negatives=3)
    for tile, (_, target) in world.truth.items():
        target[:] = 0 if tile.startswith("a") else target
    found = judge(world.rows, {"maps": world.add("maps")}, read_map=world.read)
    line = found["nested"][-1]["post"]["ratios"]["200"]
    assert [line[name] for name in NEW] == [0, None, None, False] and found["nested"][-1]["post"]["blob"] == 0


def test_cut_of_the_two_ways(post):
    t, lines = post["temperature"], post["ratios"]
    assert cut_of(post, by="blobs") == Cut(post["balanced"], t, 3, post["blob"])
    assert cut_of(post, ratio=40, by="blobs") == Cut(post["balanced"], t, 3, lines["40"]["blob"])
    assert cut_of(post, ratio=40) == Cut(lines["40"]["threshold"], t, 3) != cut_of(post, ratio=40, by="blobs")
    assert cut_of(post, ratio=1, by="blobs") == cut_of(post, ratio=1) == Cut(post["balanced"], t, 3)
    assert cut_of(post, threshold=0.3, min_blob=7, by="blobs") == Cut(0.3, t, 7)
    old = {name: value for name, value in post.items() if name != "blob"}
    old["ratios"] = {key: {n: v for n, v in line.items() if n not in NEW} for key, line in lines.items()}
    for ratio in (None, 1, 2, 40):
        assert cut_of(old, ratio=ratio, by="blobs") == cut_of(post, ratio=ratio)
    assert json.loads(json.dumps(post, allow_nan=False)) == post
    with pytest.raises(InputError, match="fitted for 2, 40"):
        cut_of(post, ratio=500, by="blobs")
    with pytest.raises(InputError, match="--clean tiles: a mask is cleaned by blobs or pixels"):
        cut_of(post, by="tiles")


def test_final_report_with_limits_and_without(world, frame, post):
    report = final_report(world.rows, frame, post, read_map=world.read, ratio=40)
    tiles = slow_tiles(world, frame, lambda i: post, lambda p: p["balanced"], lambda p: p["ratios"]["40"]["blob"])
    metrics, (precision, recall, _) = report["metrics"], slow_scores(tiles, 40)
    assert (metrics["object_precision_40"], metrics["object_recall_40"]) == pytest.approx((precision, recall))
    line = post["ratios"]["40"]
    assert (precision, recall) == pytest.approx((line["object_precision"], line["object_recall"]))
    pixels = report["tables"]["pixel"]
    cut = cut_of(post, ratio=40, by="blobs")
    truth = [(cut_mask(*world.read(path)[:2], cut), *world.read(path)) for path in frame["prob"]]
    hit, missed = (sum(((mask == said) & valid & (y == 1)).sum() for mask, _, valid, y in truth) for said in (1, 0))
    assert pixels[pixels["at"] == "blobs"]["recall"].tolist() == [pytest.approx(hit / (hit + missed))]
    old = {name: value for name, value in post.items() if name != "blob"}
    before = final_report(world.rows, frame, old, read_map=world.read, ratio=40)
    table = before["tables"]["object"]
    assert "blobs" not in set(table["at"]) | set(before["tables"]["pixel"]["at"])
    kept = table[(table["at"] == "threshold") & (table["iou"] == 0.3)].iloc[0]
    assert before["metrics"]["object_recall_40"] == kept["recall"] != recall


def options(*given):
    parser = argparse.ArgumentParser()
    rare_class.add_post(parser)
    return vars(parser.parse_args(given))


def test_options_clean_the_masks_of_a_set(world, frame, post, tmp_path):
    """--clean blobs unless something else is said; --threshold is one of pixels; nothing fitted: .5."""
    logit, valid, target = world.read("maps/a0")
    np.savez_compressed(tmp_path / "a0.npz", logit=logit.astype(np.float16), valid=valid, target=target)
    table = pd.DataFrame({"id": ["a0"], "nodata": [0], "prob": [str(tmp_path / "a0.npz")]})
    prob = expit(logit.astype(float) / post["temperature"])

    def known(level, least=0.0, small=3):
        blobs = [blob for blob in blobs_of((prob > level) & valid, small) if prob[blob].mean() >= least]
        return np.any([np.zeros_like(valid), *blobs], axis=0)

    lines, level = post["ratios"], post["balanced"]
    cases = {
        (): known(level, lines["2"]["blob"]),
        ("--at-ratio", "40"): known(level, lines["40"]["blob"]),
        ("--at-ratio", "1", "--min-blob", "12"): known(level, small=12),
        ("--clean", "pixels"): known(post["threshold"]),
        ("--clean", "pixels", "--at-ratio", "40"): known(lines["40"]["threshold"]),
        ("--threshold", ".3", "--min-blob", "0"): known(0.3, small=1),
    }
    for given, mask in cases.items():
        found = rare_class.apply_post(table, post, options(*given), values=[0, 1])
        np.testing.assert_array_equal(found["mask"][0], mask, err_msg=str(given))
    assert not np.array_equal(cases[()], cases["--clean", "pixels"]) and cases[()].any()
    assert not np.array_equal(cases[()], known(level))
    assert rare_class.cut_of_settings(None, options()) == Cut(0.5)
    with pytest.raises(InputError, match="--threshold 1.5: give a probability"):
        rare_class.cut_of_settings(post, options("--threshold", "1.5"))
