import itertools

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter
from scipy.optimize import linprog

from common.datasets.crop_weights import GIVE, nearest_shares, spread_weights
from common.datasets.crops import SLACK, draw_crop, plan_crops, shares_of
from common.datasets.demo_glacier import make_demo
from common.errors import InputError

CLASSES = ("background", "glacier", "debris", "lake")
TARGET = dict(zip(CLASSES, (0.10, 0.35, 0.40, 0.15), strict=True))


def smooth(rng, side, width):
    field = gaussian_filter(rng.normal(size=(side, side)), width)
    return field / field.std()


def drawn_tile(rng, side=160, lake=True):
    """Glaciers with debris at their rim, a lake of 5 to 9 pixels at times, and a strip without data."""
    height, rim = smooth(rng, side, side / 12), smooth(rng, side, side / 20)
    label = (height > 0.7).astype(np.uint8)
    label[(height > 0.3) & (height < 1.3) & (rim > 0.1)] = 2
    if lake:
        y, x = rng.integers(10, side - 10, 2)
        label[y - 4 : y + 5, x - 3 : x + 4] = 3
    label[:, : rng.integers(1, side // 4)] = 255
    return label


def drawn_tiles(count=12, seed=0, **options):
    rng = np.random.default_rng(seed)
    return [drawn_tile(rng, lake=index % 3 == 0, **options) for index in range(count)]


@pytest.fixture(scope="module")
def tiles():
    return drawn_tiles()


@pytest.fixture(scope="module")
def plan(tiles):
    return plan_crops(tiles, classes=CLASSES, crop=32, target=TARGET)


def counted(tiles, crop, stride):
    """(n, 4) class counts of every window of the grid, one by one."""
    rows = []
    for label in tiles:
        starts = sorted({*range(0, label.shape[0] - crop + 1, stride), label.shape[0] - crop})
        for y, x in itertools.product(starts, starts):
            rows.append(np.bincount(label[y : y + crop, x : x + crop].ravel(), minlength=256)[:4])
    rows = np.array(rows, float)
    return rows[rows.sum(axis=1) > 0]


def least_deviation(counts, target, most=1.0):
    """Least largest deviation from the target, by one linear programme over all windows."""
    shares, n = counts / counts.sum(axis=1, keepdims=True), len(counts)
    rows = np.vstack([np.column_stack([shares.T, -np.ones(4)]), np.column_stack([-shares.T, -np.ones(4)])])
    done = linprog([*np.zeros(n), 1], rows, [*target, *-target], [[*np.ones(n), 0]], [1], [(0, most)] * n + [(0, None)])
    return done.fun


def least_shortfalls(counts, target, largest):
    """Least sum of shortfalls as parts of their targets, no deviation above `largest`: one programme again."""
    shares, n = counts / counts.sum(axis=1, keepdims=True), len(counts)
    none = np.zeros((4, 4))
    rows = np.block([[shares.T, none], [-shares.T, none], [-shares.T, -np.eye(4)]])
    limits = [*(target + largest), *(largest - target), *-target]
    return linprog([*np.zeros(n), *(1 / target)], rows, limits, [[*np.ones(n), *np.zeros(4)]], [1]).fun


@pytest.mark.parametrize("crop, stride", [(32, 8), (48, 12), (64, 16)])
def test_attainable_is_the_optimum_over_all_windows(tiles, crop, stride):
    target, counts = np.array([*TARGET.values()]), counted(tiles, crop, stride)
    least = least_deviation(counts, target)
    assert np.abs(nearest_shares(counts, target, give=0) - target).max() == pytest.approx(least, abs=1e-7)
    found = plan_crops(tiles, classes=CLASSES, crop=crop, target=TARGET)
    assert np.abs(found.attainable - target).max() <= least + GIVE + 1e-6
    assert found.attainable.sum() == pytest.approx(1)
    hull = least_deviation(counts, found.attainable)
    assert hull < 1e-6  # some weights on the windows show these very shares
    short = (np.maximum(target - found.attainable, 0) / target).sum()
    assert short == pytest.approx(least_shortfalls(counts, target, least + GIVE), abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_both_optima_over_many_unlike_windows(seed):
    """Shares that no few windows span: columns have to be added in both programmes."""
    rng = np.random.default_rng(seed)
    counts = rng.dirichlet([3, 1, 0.8, 0.02], size=1500) * rng.uniform(50, 100, (1500, 1))
    counts, target = counts[counts[:, 2] < 0.3 * counts.sum(axis=1)], np.array([0.1, 0.35, 0.4, 0.15])
    least, found = least_deviation(counts, target), nearest_shares(counts, target)
    assert np.abs(found - target).max() <= least + GIVE + 1e-6
    short = (np.maximum(target - found, 0) / target).sum()
    assert short == pytest.approx(least_shortfalls(counts, target, least + GIVE), abs=1e-4)


def test_a_limit_on_repeats_is_kept(tiles):
    target, counts = np.array([*TARGET.values()]), counted(tiles, 48, 12)
    limited = nearest_shares(counts, target, give=0, windows=60)
    least = least_deviation(counts, target, most=1 / 60)
    assert np.abs(limited - target).max() == pytest.approx(least, abs=1e-7)
    assert least > least_deviation(counts, target) + 0.01
    free, kept = (plan_crops(tiles, classes=CLASSES, crop=48, target=TARGET, windows=n) for n in (1, 60))
    assert kept.effective > 2 * free.effective
    np.testing.assert_array_equal(kept.attainable, free.attainable)


def test_a_rare_class_is_not_given_up():
    """One corner of one window has it: the least largest deviation, of another class, is the same with and without."""
    counts = np.array([[90, 10, 0, 0], [80, 0, 20, 0], [100, 0, 0, 0], [79.5, 0, 20, 0.5]], float)
    target = np.array([0.1, 0.35, 0.4, 0.15])
    assert nearest_shares(counts, target)[3] > 0.002


def test_expected_shares_are_those_of_every_position_one_by_one(tiles, plan):
    """The plan's own expectation, jitter included, against a sum over all positions that its windows may move to."""
    total, before = np.zeros(4), (plan.jitter // 2, (plan.jitter - 1) // 2)
    assert plan.jitter > 1
    for (tile, y, x), weight in zip(plan.crops.tolist(), plan.weight, strict=True):
        ranges = [range(max(at - before[0], 0), min(at + before[1], 128) + 1) for at in (y, x)]
        here = np.zeros(4)
        for top, left in itertools.product(*ranges):
            here += np.bincount(tiles[tile][top : top + 32, left : left + 32].ravel(), minlength=256)[:4]
        total += weight * here / (len(ranges[0]) * len(ranges[1]))
    np.testing.assert_allclose(plan.expected, total / total.sum(), atol=1e-9)


@pytest.mark.parametrize("crop", [24, 32, 48, 64])
def test_shown_shares_come_near_the_attainable_ones(tiles, crop):
    """Within 3 points for every class, over an epoch of 300 crops and over the half of it that one of two ranks has."""
    plan = plan_crops(tiles, classes=CLASSES, crop=crop, target=TARGET)
    assert np.abs(plan.expected - plan.attainable).max() <= SLACK + 1e-3
    for seed, epoch in ((0, 0), (0, 1), (7, 30)):
        draws = [draw_crop(plan, seed, epoch, index) for index in range(300)]
        for part in (draws, draws[::2], draws[1::2]):
            assert np.abs(shares_of(plan, tiles, part) - plan.attainable).max() < 0.03
    natural = plan_crops(tiles, classes=CLASSES, crop=crop, target=None).expected
    assert np.abs(natural - plan.attainable).max() > 0.2


def test_half_a_point_of_a_rare_class_stays(tiles):
    plan = plan_crops(tiles, classes=CLASSES, crop=64, target=TARGET)
    assert 0 < plan.attainable[3] < 0.03 and plan.expected[3] > 0.7 * plan.attainable[3]


def test_uniform_plan_is_a_draw_of_positions_by_their_labelled_pixels(tiles):
    """Weights beside a count of the labelled pixels of all positions that a window stands for."""
    tiles = tiles[:3]
    plan = plan_crops(tiles, classes=CLASSES, crop=64, target=None, stride=16)
    wanted = np.zeros(len(plan.crops))
    for row, (tile, y, x) in enumerate(plan.crops.tolist()):
        for top in range(max(y - 8, 0), min(y + 7, 96) + 1):
            for left in range(max(x - 8, 0), min(x + 7, 96) + 1):
                wanted[row] += (tiles[tile][top : top + 64, left : left + 64] != 255).sum()
    np.testing.assert_allclose(plan.weight, wanted / wanted.sum(), rtol=1e-9)
    shown = counted(tiles, 64, 16).sum(axis=0)
    np.testing.assert_allclose(plan.target, shown / shown.sum())


def test_weights_are_the_most_even_ones():
    """Least relative entropy of all weights within the slack: a linear programme finds no direction that lowers it."""
    rng = np.random.default_rng(3)
    counts = rng.dirichlet([2, 1, 0.6, 0.3], size=14) * rng.uniform(30, 60, (14, 1))
    start = rng.dirichlet(np.ones(14))
    aim = nearest_shares(counts, np.array([0.3, 0.3, 0.3, 0.1]))
    held = (counts[:, 3:] > 8).astype(float)

    labelled = counts.sum(axis=1)
    share = np.vstack([counts.T - np.outer(aim + 0.02, labelled), np.outer(aim - 0.02, labelled) - counts.T])
    near, none = (aim - 0.02, aim + 0.02), np.zeros((14, 0))
    most = -linprog(-held[:, 0], share, np.zeros(8), np.ones((1, 14)), [1]).fun
    before = (spread_weights(counts, start, near=near, held=none, wish=np.zeros(0)) @ held)[0]
    assert most > before + 0.02
    wish = np.array([(most + before) / 2])
    weight = spread_weights(counts, start, near=near, held=held, wish=wish)
    slope = np.log(weight / start)  # of the entropy; its least value over all allowed weights is that at the optimum
    best = linprog(slope, np.vstack([share, -held.T]), [*np.zeros(8), *-wish], np.ones((1, 14)), [1])
    assert (share @ weight).max() < 1e-3 and weight @ held >= wish - 1e-4
    assert best.success and 0.05 < slope @ weight == pytest.approx(best.fun, abs=2e-3)


def test_draws_are_a_pure_function_and_follow_the_weights(tiles, plan):
    assert draw_crop(plan, 3, 5, 7) == draw_crop(plan, 3, 5, 7)
    again = plan_crops(iter(tiles), classes=CLASSES, crop=32, target=TARGET)
    np.testing.assert_array_equal(plan.cumulative, again.cumulative)
    runs = itertools.product((0, 1), range(9))
    assert len({tuple(draw_crop(plan, *run, index) for index in range(20)) for run in runs}) == 18
    fixed = plan_crops(tiles[:2], classes=CLASSES, crop=64, target=TARGET, stride=1)
    seen = [draw_crop(fixed, 0, epoch, index) for epoch in range(2) for index in range(800)]
    places = {tuple(crop): row for row, crop in enumerate(fixed.crops.tolist())}
    frequency = np.bincount([places[draw] for draw in seen], minlength=len(places)) / len(seen)
    assert np.abs(np.cumsum(frequency) - fixed.cumulative).max() < 0.003
    assert len(places) > 1000


def test_jitter_reaches_every_position_around_a_window():
    label = np.zeros((40, 40), np.uint8)
    plan = plan_crops([label], classes=("background",), crop=32, target=None, stride=8)
    draws = {draw_crop(plan, 0, 0, index)[1:] for index in range(1500)}
    assert plan.jitter == 8 and draws == set(itertools.product(range(9), range(9)))


def test_boosts_show_so_many_times_more(tiles):
    """Counted in the crops: a lake 4 times as often, a border of glacier and debris 2 times."""
    plain = plan_crops(tiles, classes=CLASSES, crop=24, target=None)
    more = plan_crops(tiles, classes=CLASSES, crop=24, target=None, boost_classes={"lake": 4},
                      boost_borders={("glacier", "debris"): 2})  # fmt: skip

    def share(plan):
        found = np.zeros(2)
        for index in range(800):
            tile, y, x = draw_crop(plan, 0, 0, index)
            cut = tiles[tile][y : y + 24, x : x + 24].astype(int)
            sides = np.concatenate([(cut[1:] * 10 + cut[:-1]).ravel(), (cut[:, 1:] * 10 + cut[:, :-1]).ravel()])
            found += (cut == 3).any(), np.isin(sides, (12, 21)).any()
        return found / 800

    before, after = share(plain), share(more)
    assert after[0] > 3.5 * before[0] and after[1] > 1.8 * before[1]
    told = more.boosts["lake"]
    assert told["asked"] == 4 and told["reached"] == pytest.approx(4 * told["before"], rel=1e-3)
    assert set(more.boosts) == {"lake", "glacier-debris"}


def test_the_target_wins_over_a_boost(tiles, plan):
    boosted = plan_crops(tiles, classes=CLASSES, crop=32, target=TARGET, boost_classes={"lake": 10})
    np.testing.assert_array_equal(boosted.attainable, plan.attainable)
    assert np.abs(boosted.expected - boosted.attainable).max() <= SLACK + 1e-3
    assert boosted.boosts["lake"]["reached"] > boosted.boosts["lake"]["before"]


def test_windows_without_a_label_are_never_drawn():
    label = np.full((64, 64), 255, np.uint8)
    label[:8, :8] = 1
    plan = plan_crops([np.full((64, 64), 255, np.uint8), label], classes=CLASSES[:2], crop=16, target=None)
    for index in range(500):
        tile, y, x = draw_crop(plan, 0, 0, index)
        assert tile == 1 and y < 16 and x < 16


def test_tiles_of_different_sizes_and_an_absent_class():
    rng = np.random.default_rng(5)
    tiles = [drawn_tile(rng, side=side, lake=False) for side in (72, 100)]
    plan = plan_crops(tiles, classes=CLASSES, crop=64, target=TARGET)
    assert plan.expected[3] == 0 and plan.attainable[3] == 0
    plan = plan_crops(tiles, classes=CLASSES, crop=64, target=None)
    assert {draw_crop(plan, 0, 0, i)[0] for i in range(100)} == {0, 1}
    for index in range(100):
        tile, y, x = draw_crop(plan, 0, 0, index)
        assert tiles[tile][y : y + 64, x : x + 64].shape == (64, 64)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"crop": 200}, "crop 200: tile 0 is 160x160; choose a crop of at most its shorter side"),
        ({"target": {"background": 0.5, "glacier": 0.5}}, "one share for each of background, glacier, debris, lake"),
        ({"target": dict.fromkeys(CLASSES, 0.5)}, "add up to 1"),
        ({"target": dict(zip(CLASSES, (-0.1, 0.5, 0.5, 0.1), strict=True))}, "at least 0"),
        ({"boost_classes": {"river": 2}}, "boost river: the classes are background, glacier"),
        ({"boost_classes": {"lake": 0.5}}, "boost lake: factor 0.5 is below 1"),
        ({"boost_borders": {("lake", "lake"): 2}}, "boost lake-lake"),
        ({"stride": 0}, "stride 0: give 1 or more"),
    ],
)
def test_what_cannot_be_is_an_error(tiles, wrong, said):
    with pytest.raises(InputError, match=said):
        plan_crops(tiles, **({"classes": CLASSES, "crop": 32, "target": TARGET} | wrong))


def test_nothing_to_draw_from_is_an_error():
    with pytest.raises(InputError, match="no labelled tile"):
        plan_crops([], classes=CLASSES, crop=32, target=None)
    with pytest.raises(InputError, match="no tile has a labelled pixel"):
        plan_crops([np.full((40, 40), 255, np.uint8)], classes=CLASSES, crop=32, target=None)


@pytest.mark.parametrize("seed", range(8))
def test_expected_shares_keep_to_what_was_aimed_at(seed):
    """Also where one class is hard to come by: the optimiser of the weights must not stop before it is there."""
    tiles = drawn_tiles(9, seed=seed, side=96)
    for shares in ((0.40, 0.30, 0.25, 0.05), (0.55, 0.27, 0.14, 0.04), (0.10, 0.35, 0.40, 0.15)):
        plan = plan_crops(tiles, classes=CLASSES, crop=48, target=dict(zip(CLASSES, shares, strict=True)))
        assert np.abs(plan.expected - plan.aim).max() < SLACK + 1e-4
        assert plan.expected[3] > 0.7 * plan.aim[3]


@pytest.mark.soak
def test_shares_on_the_demo_set(tmp_path):
    """An epoch that covers the demo tiles once, or a few times, shows every class within 3 points of the attainable."""
    make_demo(tmp_path)
    classes = np.full(256, 255, np.uint8)
    classes[[0, 85, 170, 255]] = range(4)
    tiles = []
    for path in sorted((tmp_path / "Train" / "label").glob("*.tif")):
        bands = [next((tmp_path / "Train" / f"Band{k}").glob(f"*{path.stem[-5:]}.tif")) for k in range(1, 6)]
        known = np.any([tifffile.imread(band).squeeze() != 0 for band in bands], axis=0)
        tiles.append(np.where(known, classes[tifffile.imread(path).squeeze().astype(int)], 255).astype(np.uint8))
    for crop in (64, 128):
        plan = plan_crops(tiles, classes=CLASSES, crop=crop, target=TARGET)
        assert np.abs(plan.attainable - [*TARGET.values()]).max() < 0.2
        for seed, count in itertools.product(range(6), (len(tiles) * (256 // crop) ** 2, 500)):
            shown = shares_of(plan, tiles, [draw_crop(plan, seed, 3, index) for index in range(count)])
            assert np.abs(shown - plan.attainable).max() < 0.03
