"""Windows at a ratio of positive to negative tiles: counts, equal turns, what a window holds."""

import pickle

import numpy as np
import pytest

from common.datasets import ratio_plan as module
from common.datasets.ratio_plan import plan_ratio
from common.errors import InputError

CROP = 24


def drawn_labels(positives=7, negatives=23, side=64, seed=0):
    """Positive tiles (even blobs of 1 to 60 px) among negative ones, ignored rims, no data, one without any label."""
    rng = np.random.default_rng(seed)
    labels = []
    for number in range(positives + negatives):
        label = np.zeros((side, side + 8 * (number % 2)), np.uint8)
        if number % 5 == 0:
            label[: side // 2] = 255
        if number < positives:
            y, x, h, w = rng.integers(0, side - 10), rng.integers(0, side - 10), *rng.integers(1, 9, 2)
            label[y : y + h, x : x + w] = 1
            label[0, 0] = 1 if number == 3 else label[0, 0]  # a corner can be shown too
        labels.append(label)
    order = rng.permutation(len(labels))
    return [labels[i] for i in order] + [np.full((side, side), 255, np.uint8)]


@pytest.fixture(scope="module")
def labels():
    return drawn_labels()


def make(labels, **changes):
    return plan_ratio(labels, **{"crop": CROP, "ratio": (1, 10), "ratio_epochs": 4, **changes})


def cut(labels, draw):
    """The window, 255 beyond the tile."""
    tile, y, x, side = draw
    beyond = np.pad(labels[tile], side, constant_values=255)
    return beyond[y + side : y + 2 * side, x + side : x + 2 * side]


@pytest.mark.parametrize("count", [1, 50, 333])
@pytest.mark.parametrize(
    "ratio, epochs, wanted",
    [((1, 10), 4, [1, 3.25, 5.5, 7.75, 10, 10]), ((5, 5), 0, [5] * 6), ((10, 2), 0, [2] * 6), ((0, 3), 1, [0, 3, 3])],
)
def test_so_many_windows_of_an_epoch_are_positive(labels, ratio, epochs, wanted, count):
    plan = make(labels, ratio=ratio, ratio_epochs=epochs)
    for epoch, value in enumerate(wanted):
        held = [(cut(labels, plan.draw(5, epoch, index, count)) == 1).any() for index in range(count)]
        assert sum(held) == round(count / (1 + value)) == plan.positives_of(epoch, count)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 2.0)])
def test_a_positive_window_holds_the_class_and_a_negative_one_is_of_a_negative_tile(labels, scales):
    plan = make(labels, scales=scales)
    assert len(plan.positives) == 7 and len(plan.negatives) == 23
    sides = []
    for index in range(600):
        draw = plan.draw(1, 2, index, 600)
        tile, y, x, side = draw
        shape = labels[tile].shape
        assert 0 <= y <= shape[0] - side and 0 <= x <= shape[1] - side
        assert (cut(labels, draw) == 1).any() == (labels[tile] == 1).any()
        assert (cut(labels, draw) != 255).any()
        sides.append(side)
    assert set(sides) == {round(CROP / scale) for scale in scales}
    assert np.bincount(sides)[list(set(sides))].min() > 600 / len(scales) * 0.8


def test_a_window_wider_than_a_tile_holds_all_of_it_anywhere(labels):
    """Its scale is what was asked for: 96 px of tiles of 64x64 and 64x72."""
    plan = make(labels, crop=48, scales=(0.5,))
    draws = [plan.draw(0, 0, index, 2000) for index in range(2000)]
    assert {draw[3] for draw in draws} == {96}
    for tile, y, x, _ in draws:
        assert 0 >= y >= 64 - 96 and 0 >= x >= labels[tile].shape[1] - 96
    assert {draw[1] for draw in draws} == set(range(-32, 1)) and {draw[2] for draw in draws} == set(range(-32, 1))


def test_a_window_wider_than_a_tile_along_one_axis_holds_the_class_along_the_other():
    label = np.zeros((20, 90), np.uint8)
    label[3, 70] = 1
    plan = make([label, np.zeros((20, 90), np.uint8)], crop=20, ratio=(0, 0), scales=(0.5,))
    windows = {plan.draw(0, 0, index, 3000)[1:] for index in range(3000)}
    assert windows == {(y, x, 40) for y in range(-20, 1) for x in range(31, 51)}


def test_every_tile_of_a_kind_is_shown_equally_often(labels):
    """After any number of whole epochs, and the orders of two cycles and of two seeds differ."""
    plan = make(labels)
    shown = np.zeros(len(labels), int)
    orders = []
    for epoch in range(6):
        tiles = [plan.draw(3, epoch, index, 60)[0] for index in range(60)]
        np.add.at(shown, tiles, 1)
        orders += [tile for tile in tiles if tile in plan.positives]
        assert np.ptp(shown[plan.positives]) <= 1 and np.ptp(shown[plan.negatives]) <= 1
    assert shown[plan.positives].min() >= 10 and shown[plan.negatives].min() >= 8 and shown[-1] == 0
    cycles = {tuple(orders[at : at + 7]) for at in range(0, 70, 7)}
    assert len(cycles) > 5 and all(set(cycle) == set(plan.positives) for cycle in cycles)


@pytest.mark.parametrize("ratio", [1, 3, 10])
def test_positive_windows_are_spread_through_the_epoch_and_the_ranks(labels, ratio):
    plan = make(labels, ratio=(ratio, ratio))
    held = np.array([plan.draw(0, 1, index, 880)[0] in plan.positives for index in range(880)])
    for every in (1, 2, 4):
        for rank in range(every):
            mine = held[rank::every]
            for part in np.array_split(mine, 4):
                assert abs(part.mean() - 1 / (1 + ratio)) < 0.04


def test_a_window_lies_at_random_around_its_pixel():
    """One positive pixel: every window that holds it equally often; whole tiles without it: every window."""
    positive, negative = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    positive[3, 14] = 1
    plan = plan_ratio([positive, negative], crop=8, ratio=(1, 1), ratio_epochs=0)
    draws = [plan.draw(0, 0, index, 6000) for index in range(6000)]
    places = {kind: [draw[1:3] for draw in draws if draw[0] == kind] for kind in (0, 1)}
    wanted = {0: [(y, x) for y in range(4) for x in range(7, 15)], 1: [(y, x) for y in range(13) for x in range(23)]}
    for kind, windows in wanted.items():
        assert set(places[kind]) == set(windows)
        counts = np.array([places[kind].count(window) for window in windows])
        assert ((counts - 3000 / len(windows)) ** 2 / (3000 / len(windows))).sum() < 1.5 * len(windows)


def test_every_positive_pixel_is_equally_likely_to_be_drawn():
    """With windows of one pixel what is drawn is the pixel."""
    label = np.zeros((12, 12), np.uint8)
    label[2, 3:9] = label[5:9, 11] = label[11, 0] = 1
    plan = plan_ratio([label], crop=1, ratio=(0, 0), ratio_epochs=0)
    seen = np.zeros(label.shape, int)
    for index in range(2200):
        seen[plan.draw(0, 0, index, 2200)[1:3]] += 1
    assert ((seen > 0) == (label == 1)).all()
    assert np.abs(seen[label == 1] - 200).max() < 50


def test_draws_are_a_pure_function(labels):
    plan, again = make(labels), make(iter(labels))
    other = pickle.loads(pickle.dumps(again))
    keys = [(seed, epoch, index) for seed in (0, 1) for epoch in (3, 0) for index in range(40)]
    first = [plan.draw(*key, 40) for key in keys]
    assert first == [other.draw(*key, 40) for key in keys] == [plan.draw(*key, 40) for key in keys]
    for start in (0, 80):
        assert first[start : start + 40] != first[start + 40 : start + 80]
    assert first[:80] != first[80:]


def test_expected_shares_are_those_shown(labels, monkeypatch):
    """Over many windows, wider ones than the tiles among them; an estimate from more windows than usual."""
    monkeypatch.setattr(module, "TRIES", 100)
    plan = make(labels, ratio=(1, 4), scales=(0.25, 0.5, 1))
    for epoch in (0, 4):
        total = np.zeros(2)
        for index in range(3000):
            draw = plan.draw(9, epoch, index, 3000)
            total += np.bincount(cut(labels, draw).ravel(), minlength=2)[:2] / draw[3] ** 2
        assert plan.expected_at(epoch)[1] == pytest.approx(total[1] / total.sum(), rel=0.06)
    assert plan.expected[1] == plan.expected_at(4)[1] < plan.expected_at(0)[1] / 2
    pixels = sum(np.bincount(label.ravel(), minlength=2)[:2] for label in labels)
    assert plan.natural == pytest.approx(pixels / pixels.sum())


def test_the_report_tells_the_numbers(labels):
    lines = make(labels).report(60, 6)
    assert lines[0].startswith("7 positive and 23 negative tiles (1:3.29), windows of 24 px at scales 1")
    assert "epoch 0: 30 positive and 30 negative windows (1:1)" in lines[1] and "pixels positive" in lines[1]
    assert "epoch 2: 9 positive" in lines[2] and "epoch 4: 5 positive and 55 negative windows (1:10)" in lines[3]
    shown = 30 + 14 + 9 + 7 + 5 + 5
    assert lines[4].endswith(f"shown {shown / 7:.1f} times, a negative {(360 - shown) / 23:.1f}")
    assert len(make(labels, ratio=(2, 2)).report(60, 6)) == 3


def test_positives_alone_are_enough_for_a_ratio_of_nought(labels):
    only = [label for label in labels if (label == 1).any()]
    plan = make(only, ratio=(0, 0))
    assert {plan.draw(0, 0, index, 50)[0] for index in range(50)} == set(range(7))
    assert plan.report(50, 2)[-1].endswith("a negative 0.0")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"crop": 65}, "--crop 65: tile 0 is 64x.*choose a crop"),
        ({"crop": 65, "names": ["a/b.tif"] * 31}, "--crop 65: a/b.tif is 64x"),
        ({"crop": 0}, "--crop 0"),
        ({"ratio": (-1, 2)}, "--ratio -1 2: .*from 0 up"),
        ({"ratio": (1, float("nan"))}, "ratio .*from 0 up"),
        ({"ratio_epochs": -1}, "--ratio-epochs -1"),
        ({"scales": ()}, "scales"),
        ({"scales": (1, 0)}, "--scales-train 1 0: .*above 0"),
    ],
)
def test_what_cannot_be_is_an_error(labels, changes, words):
    with pytest.raises(InputError, match=words):
        make(labels, **changes)


def test_a_missing_kind_or_an_unknown_value_is_an_error(labels):
    with pytest.raises(InputError, match="no tile has a pixel of positive"):
        make([label for label in labels if not (label == 1).any()])
    with pytest.raises(InputError, match="no tile is without positive"):
        make([label for label in labels if (label == 1).any()])
    with pytest.raises(InputError, match="no tile has a pixel"):
        make([])
    with pytest.raises(InputError, match="tile 0: the label has values other than 0, 1 and 255"):
        make([np.full((64, 64), 2, np.uint8)])
