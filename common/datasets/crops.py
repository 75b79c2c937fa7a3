"""Crops whose pixels meet a target share of every class: which windows of the training tiles to show, and how often.

Candidates are the windows of a grid, each moved at random by less than a stride. Weights w show the classes in shares
sum(w c) / sum(w n), c the class counts and n the labelled pixels of the windows: a convex combination of their share
vectors. The point nearest to the target is a linear programme with three rows a class, solved exactly by column
generation however many windows there are. Of all weights that come within SLACK of it, those of least relative entropy
to a uniform draw are taken, so that as many different windows are shown as the target allows.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from common.datasets.crop_weights import nearest_shares, spread_weights
from common.datasets.draws import generator
from common.errors import InputError

IGNORED = 255  # value of a label pixel that is not valid
CROP = 2_000  # the decision of common.datasets.draws that this file takes
GOLDEN = (5**0.5 - 1) / 2
SLACK = 0.01  # how far from the best attainable share a plan may be, so that it shows more windows,
SLACK_PART = 0.25  # and as a part of that share: a class of half a point may not vanish
WALK_DEPTH = 10  # halvings of the order that draws step through
MOST = 0.95  # share of draws that a boost asks for at most


@dataclass(frozen=True)
class CropPlan:
    """What `plan_crops` found. Shares are over labelled pixels, in the order of `classes`.

    crops: (n, 3) int32 tile, y, x; weight: (n,) probabilities; jitter: positions per axis that a crop is moved over;
    last: (tiles, 2) largest y and x of a crop; target, attainable (best of the linear programme over the unmoved grid),
    aim (the same with the limit on repeats), expected (of this plan): (K,); boosts: {what:
    {"asked": factor, "before", "reached": shares of the draws that hold it in a uniform plan and in this one}}.
    """

    crops: np.ndarray
    weight: np.ndarray
    cumulative: np.ndarray
    crop: int
    jitter: int
    last: np.ndarray
    classes: tuple[str, ...]
    target: np.ndarray
    attainable: np.ndarray
    aim: np.ndarray
    expected: np.ndarray
    boosts: dict[str, dict[str, float]]

    def draw(self, seed: int, epoch: int, index: int, count: int) -> tuple[int, int, int, int]:
        """(tile, y, x, side) of crop `index` of an epoch; `count`, the crops of an epoch, decides nothing here."""
        return (*draw_crop(self, seed, epoch, index), self.crop)

    @property
    def effective(self) -> float:
        """Number of windows that a uniform draw of the same entropy would have."""
        weight = self.weight[self.weight > 0]
        return float(np.exp(-(weight * np.log(weight)).sum()))


def plan_crops(
    labels: Iterable[np.ndarray],
    *,
    classes: tuple[str, ...],
    crop: int,
    target: Mapping[str, float] | None,
    stride: int | None = None,
    boost_classes: Mapping[str, float] | None = None,
    boost_borders: Mapping[tuple[str, str], float] | None = None,
    slack: float = SLACK,
    windows: int = 1,
) -> CropPlan:
    """Plan of crops over tiles `labels`: uint8 (H, W) class indices, 255 where not valid; read once, in order.

    classes: names by index; crop: side in pixels; target: wanted share of every class (None: a uniform draw of windows,
    each as often as it has labelled pixels); stride: of the grid (a quarter of the crop); boost_classes {class: factor}
    and boost_borders {(class, class): factor}: at least factor times as many draws as a uniform one hold that class or
    a border of the two, as far as the target allows; slack: in shares; windows: no window may show more than 1/windows
    of the pixels of the shares aimed at (1: no limit; more keep a target that few windows come near from showing these
    few over and over). InputError for a target, crop or boost that cannot be. Deterministic: counts are sums of
    integers, the same on any number of threads.
    """
    stride = max(crop // 4, 1) if stride is None else stride
    if stride < 1:
        raise InputError(f"stride {stride}: give 1 or more pixels")
    wanted = _target_vector(target, classes)
    asked = _boosts(boost_classes or {}, boost_borders or {}, classes)
    jitters = sorted({stride, max(stride // 2, 1), 1}, reverse=True)
    pairs = [what for what, _ in asked if isinstance(what, tuple)]
    crops, last, counts, ways = _count_windows(labels, classes=len(classes), pairs=pairs, crop=crop, stride=stride,
                                               jitters=jitters)  # fmt: skip
    k = len(classes)
    natural = counts[1][:, :k].sum(axis=0) / counts[1][:, :k].sum()
    attainable = natural if wanted is None else nearest_shares(counts[1][:, :k], wanted)
    aim = attainable if wanted is None or windows == 1 else nearest_shares(counts[1][:, :k], wanted, windows=windows)
    room = np.clip(SLACK_PART * aim, min(slack, 1e-4), slack)
    jitter = stride if wanted is None else _choose_jitter(counts, jitters, aim, room, windows)
    counts, start = counts[jitter], counts[jitter][:, :k].sum(axis=1) * ways[jitter]
    start, held = start / start.sum(), _held(counts, [what for what, _ in asked], pairs, k)
    before = start @ held
    wish = np.minimum([factor for _, factor in asked] * before, np.maximum(before, MOST))
    near = None if wanted is None else (aim - room, aim + room)
    weight = spread_weights(counts[:, :k], start, near=near, held=held, wish=wish)
    boosts = _reached(asked, before, weight @ held, classes)
    order = _walk(counts[:, :k], weight)
    weight = weight[order] / weight[order].sum()
    total = weight @ counts[order, :k]
    return CropPlan(crops=crops[order], weight=weight, cumulative=np.cumsum(weight), crop=crop, jitter=jitter,
                    last=last, classes=tuple(classes), target=natural if wanted is None else wanted,
                    attainable=attainable, aim=aim, expected=total / total.sum(), boosts=boosts)  # fmt: skip


def draw_crop(plan: CropPlan, seed: int, epoch: int, index: int) -> tuple[int, int, int]:
    """Tile number, y and x of the crop at `index` of an epoch: a pure function of (plan, seed, epoch, index).

    The draws of an epoch are spaced by the golden ratio along the plan (a start of its own for every epoch), so that
    any run of them, and any rank's every N-th, shows the shares of the plan more closely than independent draws would.
    """
    start = generator(seed, epoch, 0, CROP).random()
    place = np.searchsorted(plan.cumulative, (start + index * GOLDEN) % 1.0, side="right")
    tile, y, x = plan.crops[min(int(place), len(plan.crops) - 1)].tolist()
    move = generator(seed, epoch, index, CROP, 1)
    y, x = (_moved(move, at, int(end), plan.jitter) for at, end in zip((y, x), plan.last[tile], strict=True))
    return tile, y, x


def shares_of(plan: CropPlan, labels, draws: Iterable[tuple[int, int, int]]) -> np.ndarray:
    """(K,) shares of the labelled pixels that the crops `draws` (tile, y, x) of tiles `labels` show, counted."""
    counts = np.zeros(IGNORED + 1, np.int64)
    for tile, y, x in draws:
        counts += np.bincount(labels[tile][y : y + plan.crop, x : x + plan.crop].ravel(), minlength=IGNORED + 1)
    return counts[: len(plan.classes)] / counts[: len(plan.classes)].sum()


def _target_vector(target, classes) -> np.ndarray | None:
    if target is None:
        return None
    if set(target) != set(classes):
        raise InputError(f"target shares name {sorted(target)}; give one share for each of {', '.join(classes)}")
    values = np.array([float(target[name]) for name in classes])
    if not (values >= 0).all() or abs(values.sum() - 1) > 1e-3:
        raise InputError(f"target shares {values.tolist()}: give shares of at least 0 that add up to 1")
    return values / values.sum()


def _boosts(boost_classes, boost_borders, classes) -> list[tuple[int | tuple[int, int], float]]:
    """(class index or pair of them, factor) of each boost."""
    named = [((name,), factor) for name, factor in boost_classes.items()] + list(boost_borders.items())
    asked = []
    for names, factor in named:
        if not set(names) <= set(classes) or len(set(names)) != len(names):
            raise InputError(f"boost {'-'.join(names)}: the classes are {', '.join(classes)}")
        if not factor >= 1:
            raise InputError(f"boost {'-'.join(names)}: factor {factor} is below 1; give 1 or more")
        index = tuple(classes.index(name) for name in names)
        asked.append((index if len(index) == 2 else index[0], float(factor)))
    return asked


def _count_windows(labels, *, classes: int, pairs, crop: int, stride: int, jitters):
    """Crops (n, 3), last (tiles, 2), {jitter: (n, K + pairs) mean counts} and {jitter: (n,) positions of the window}.

    Sums over windows are products with matrices of zeros and ones, jitter included: R M C' for a mask M.
    """
    crops, last, counts, ways = [], [], {j: [] for j in jitters}, {j: [] for j in jitters}
    axis = functools.cache(lambda length: _axis(length, crop, stride, jitters))
    for tile, label in enumerate(labels):
        height, width = label.shape
        if crop > min(height, width):
            raise InputError(f"crop {crop}: tile {tile} is {height}x{width}; choose a crop of at most its shorter side")
        (ys, down), (xs, across) = axis(height), axis(width)
        masks = np.stack([label == k for k in range(classes)] + [_border(label, pair) for pair in pairs])
        grid = np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)
        crops.append(np.column_stack([np.full(len(grid), tile), grid]).astype(np.int32))
        last.append((height - crop, width - crop))
        masks = masks.astype(np.float32)  # exact: a row of a window sums to at most crop * stride, below 2 ** 24
        for j in jitters:
            sums = (down[j].astype(np.float32) @ masks).astype(np.float64) @ across[j].T
            area = np.multiply.outer(down[j].sum(axis=1), across[j].sum(axis=1)) / crop**2
            counts[j].append((sums / area).reshape(len(masks), -1).T)
            ways[j].append(area.ravel())
    if not crops:
        raise InputError("no labelled tile to cut crops from; check the folds and the data folder")
    crops, ways = np.concatenate(crops), {j: np.concatenate(ways[j]) for j in jitters}
    counts = {j: np.concatenate(counts[j]) for j in jitters}
    known = counts[1][:, :classes].sum(axis=1) > 0
    if not known.any():
        raise InputError("no tile has a labelled pixel of these classes; check the labels and the label map")
    counts = {j: counts[j][known] for j in jitters}
    return crops[known], np.array(last), counts, {j: ways[j][known] for j in jitters}


def _axis(length: int, crop: int, stride: int, jitters):
    """Starts of the windows along an axis (edges included), and {jitter: (windows, length) float64 how many of its
    positions cover a pixel}."""
    end = length - crop
    starts = np.unique(np.append(np.arange(0, end + 1, stride), end))
    pixel, cover = np.arange(length), {}
    for j in jitters:
        low, high = np.maximum(starts - j // 2, 0), np.minimum(starts + (j - 1) // 2, end)
        first = np.maximum(low[:, None], pixel - crop + 1)
        cover[j] = np.maximum(np.minimum(high[:, None], pixel) - first + 1, 0).astype(np.float64)
    return starts, cover


def _moved(draws: np.random.Generator, at: int, end: int, jitter: int) -> int:
    return int(draws.integers(max(at - jitter // 2, 0), min(at + (jitter - 1) // 2, end) + 1))


def _border(label: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: pixels of either class that touch one of the other (4 neighbours)."""
    first, second = label == pair[0], label == pair[1]
    found = np.zeros(label.shape, bool)
    for one, other in ((first, second), (second, first)):
        found[1:] |= one[1:] & other[:-1]
        found[:-1] |= one[:-1] & other[1:]
        found[:, 1:] |= one[:, 1:] & other[:, :-1]
        found[:, :-1] |= one[:, :-1] & other[:, 1:]
    return found


def _choose_jitter(counts, jitters, aim, room, windows: int) -> int:
    """The widest jitter whose windows still come within half the room (K,) around the shares aimed at."""
    for jitter in jitters[:-1]:
        reached = nearest_shares(counts[jitter][:, : len(aim)], aim, give=0, windows=windows)
        if (np.abs(reached - aim) <= room / 2).all():
            return jitter
    return jitters[-1]


def _reached(asked, before, reached, classes) -> dict[str, dict[str, float]]:
    names = ["-".join(classes[i] for i in (what if isinstance(what, tuple) else (what,))) for what, _ in asked]
    return {name: {"asked": factor, "before": float(b), "reached": float(r)}
            for name, (_, factor), b, r in zip(names, asked, before, reached, strict=True)}  # fmt: skip


def _held(counts, what, pairs, k: int) -> np.ndarray:
    """(n, boosts) float64 0 or 1: windows that hold a pixel of the class or border on average over their positions."""
    columns = [k + pairs.index(item) if isinstance(item, tuple) else item for item in what]
    return (counts[:, columns] >= 1).astype(np.float64)


def _walk(counts, weight) -> np.ndarray:
    """Order of the windows that keep all but a millionth of the weight, such that neighbours show alike counts (n, K):
    halves of equal weight, split where the counts differ most, and so on. Evenly spaced draws then see every kind."""

    def split(rows, depth: int) -> list[np.ndarray]:
        if depth == 0 or len(rows) < 2:
            return [rows]
        spread = np.sqrt(np.cov(counts[rows].T, aweights=weight[rows], ddof=0).reshape(counts.shape[1], -1).diagonal())
        rows = rows[np.argsort(counts[rows, spread.argmax()], kind="stable")]
        mass = np.cumsum(weight[rows])
        half = int(np.clip(np.searchsorted(mass, mass[-1] / 2) + 1, 1, len(rows) - 1))
        return split(rows[:half], depth - 1) + split(rows[half:], depth - 1)

    return np.concatenate(split(np.flatnonzero(weight > 1e-6 / len(weight)), WALK_DEPTH))
