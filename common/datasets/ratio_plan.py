"""Windows of tiles few of which hold the class: positive and negative tiles in a chosen ratio, each in its turn."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from common.datasets.crops import GOLDEN, IGNORED
from common.datasets.draws import generator
from common.errors import InputError

RATIO = 3_000  # the decisions of common.datasets.draws that this file takes
TRIES = 4  # windows of a tile, at least, that the expected shares are estimated from
MOST_RUNS = 64  # runs of labelled pixels that are kept of a negative tile with no data; enough to place a window by


@dataclass(frozen=True)
class RatioPlan:
    """What `plan_ratio` found; the class is index 1 of `classes`.

    positives, negatives: tile numbers (a tile without a labelled pixel is neither); sizes: (tiles, 2); runs: (n, 3)
    int32 row, first column, column behind the last, of the pixels one of which a window of the tile holds, those of a
    tile from runs[first[tile]] to runs[first[tile + 1]] (none: a window may lie anywhere); ratio: negatives per
    positive (at the start, after ratio_epochs); scales: of the windows; natural: (2,) shares of the labelled pixels of
    all tiles; shown: (2, 2) mean shares of the pixels of a window [negative, positive tile] that are of each class.
    """

    positives: np.ndarray
    negatives: np.ndarray
    sizes: np.ndarray
    runs: np.ndarray
    first: np.ndarray
    crop: int
    ratio: tuple[float, float]
    ratio_epochs: int
    scales: tuple[float, ...]
    classes: tuple[str, ...]
    natural: np.ndarray
    shown: np.ndarray

    @property
    def expected(self) -> np.ndarray:
        """(2,) shares of the labelled pixels that an epoch shows on average once the ratio has its last value."""
        return self.expected_at(self.ratio_epochs)

    def expected_at(self, epoch: int) -> np.ndarray:
        """(2,) shares of the labelled pixels that an epoch shows on average."""
        total = self.shown[1] + self.ratio_of(epoch) * self.shown[0]
        return total / total.sum()

    def ratio_of(self, epoch: int) -> float:
        return ratio_at(self.ratio, self.ratio_epochs, epoch)

    def draw(self, seed: int, epoch: int, index: int, count: int) -> tuple[int, int, int, int]:
        """Tile number, y, x and side of the window at `index` of the `count` windows of an epoch.

        A pure function of (plan, seed, epoch, index, count). `positives_of` of the count come from positive tiles, at
        indices evenly spread through the epoch, and hold a pixel of the class; the others come from negative tiles.
        Tiles of a kind are walked through in a new order each time, from epoch to epoch, so that none is shown more
        than one time more often than another. side: of the square to be resampled to `crop` pixels; where it is longer
        than the tile the window lies around all of that axis, from y or x <= 0 on.
        """
        positive, turn = epoch_turns(self.ratio, self.ratio_epochs, seed, epoch, count)
        kind = int(positive[index])
        tiles = self.positives if kind else self.negatives
        cycle, place = divmod(int(turn[index]), len(tiles))
        tile = int(tiles[tile_order(len(tiles), seed, cycle, kind)[place]])
        draws = generator(seed, epoch, index, RATIO, 1)
        side = window_side(self.crop, self.scales[int(draws.integers(len(self.scales)))])
        y, x = place_window(self.runs[self.first[tile] : self.first[tile + 1]], self.sizes[tile], side, draws)
        return tile, y, x, side

    def positives_of(self, epoch: int, count: int) -> int:
        return positive_count(self.ratio, self.ratio_epochs, epoch, count)

    def report(self, count: int, epochs: int) -> list[str]:
        """Lines to print: tiles of each kind, the ratio of each epoch, how often a tile is shown in `epochs` epochs."""
        shown = sum(self.positives_of(epoch, count) for epoch in range(epochs))
        often = [shown / len(self.positives), (epochs * count - shown) / max(len(self.negatives), 1)]
        natural = len(self.negatives) / len(self.positives)
        lines = [f"{len(self.positives)} positive and {len(self.negatives)} negative tiles (1:{natural:.3g}), windows "
                 f"of {self.crop} px at scales {', '.join(f'{scale:g}' for scale in self.scales)}"]  # fmt: skip
        ramp = self.ratio_epochs if self.ratio[0] != self.ratio[1] else 0
        for epoch in sorted({0, ramp // 2, ramp}):
            here = self.positives_of(epoch, count)
            lines.append(f"  epoch {epoch}: {here} positive and {count - here} negative windows "
                         f"(1:{self.ratio_of(epoch):.3g}), "
                         f"{self.expected_at(epoch)[1]:.2%} of the pixels {self.classes[1]}")  # fmt: skip
        lines.append(f"  in {epochs} epochs a positive tile is shown {often[0]:.1f} times, a negative {often[1]:.1f}")
        return lines


def plan_ratio(
    labels: Iterable[np.ndarray],
    *,
    crop: int,
    ratio: tuple[float, float],
    ratio_epochs: int,
    scales: Sequence[float] = (1.0,),
    seed: int = 0,
    classes: tuple[str, str] = ("background", "positive"),
    names: Sequence[str] = (),
) -> RatioPlan:
    """Plan of windows over tiles `labels`: uint8 (H, W), 0, 1 or 255 where not valid; read once, in order.

    crop: pixels that a window is resampled to; ratio: negatives per positive in epoch 0 and from epoch ratio_epochs on,
    linear between; scales: a window of scale s is crop / s pixels wide, each scale equally often; seed: of the windows
    that the expected shares are estimated from; names: of the tiles, for messages. InputError for a crop larger than a
    tile, a ratio or scale that cannot be, and where there are no positive tiles, or none for the negatives asked for.
    """
    scales = check_numbers(ratio, ratio_epochs, scales)
    kinds, sizes, runs, counts = [], [], [], np.zeros(2)
    shown = [[], []]
    for tile, label in enumerate(labels):
        name = names[tile] if len(names) else f"tile {tile}"
        if crop < 1 or crop > min(label.shape):
            raise InputError(f"--crop {crop}: {name} is {label.shape[0]}x{label.shape[1]}; choose a crop of 1 to its "
                             "shorter side")  # fmt: skip
        pixels = count_values(label, (0, 1, IGNORED))  # np.bincount of bytes takes ten times as long
        if pixels.sum() != label.size:
            raise InputError(f"{name}: the label has values other than 0, 1 and {IGNORED}; check --label-map")
        kind = int(pixels[1] > 0) if pixels[:2].any() else -1
        kinds.append(kind)
        sizes.append(label.shape)
        runs.append(anchor_runs(label, kind))
        counts += pixels[:2]
        if kind >= 0:
            shown[kind].append(estimate_shares(label, runs[-1], crop, scales, generator(seed, tile, 0, RATIO, 3)))
    kinds = np.array(kinds, int)
    if not (kinds == 1).any():
        raise InputError(f"no tile has a pixel of {classes[1]}; check the labels, --label-map and the folds")
    if max(ratio) > 0 and not (kinds == 0).any():
        raise InputError(f"--ratio {max(ratio):g}: no tile is without {classes[1]}; give --ratio 0")
    means = np.array([np.mean(rows, axis=0) if rows else np.zeros(2) for rows in shown])
    first = np.cumsum([0, *(len(run) for run in runs)])
    return RatioPlan(np.flatnonzero(kinds == 1), np.flatnonzero(kinds == 0), np.array(sizes), np.concatenate(runs),
                     first, crop, tuple(map(float, ratio)), ratio_epochs, scales, tuple(classes),
                     counts / counts.sum(), means)  # fmt: skip


def check_numbers(ratio, ratio_epochs: int, scales: Sequence[float]) -> tuple[float, ...]:
    if len(ratio) != 2 or not all(0 <= value < float("inf") for value in ratio):
        raise InputError(f"--ratio {' '.join(f'{value:g}' for value in ratio)}: give negatives per positive, from 0 up")
    if ratio_epochs < 0:
        raise InputError(f"--ratio-epochs {ratio_epochs}: give 0 or more")
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise InputError(f"--scales-train {' '.join(map(str, scales))}: give numbers above 0")
    return tuple(map(float, scales))


def ratio_at(ratio: tuple[float, float], ratio_epochs: int, epoch: int) -> float:
    """Negatives per positive in an epoch (from 0 on)."""
    share = min(1.0, epoch / ratio_epochs) if ratio_epochs else 1.0
    return ratio[0] + (ratio[1] - ratio[0]) * share


def positive_count(ratio: tuple[float, float], ratio_epochs: int, epoch: int, count: int) -> int:
    return round(count / (1 + ratio_at(ratio, ratio_epochs, epoch)))


@functools.lru_cache(maxsize=8)
def epoch_turns(ratio, ratio_epochs: int, seed: int, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count,) bool, positive windows of an epoch, and (count,) how many of its kind came before, all epochs counted.

    The positive ones are those of the least parts of start + index * golden ratio: any run of indices, and any rank's
    every N-th, holds nearly its share of them, which equal spacing would not give (at 1:1 and N = 2: all or none).
    """
    wanted = positive_count(ratio, ratio_epochs, epoch, count)
    start = generator(seed, epoch, 0, RATIO).random()
    positive = np.zeros(count, bool)
    positive[np.argsort((start + np.arange(count) * GOLDEN) % 1.0, kind="stable")[:wanted]] = True
    before = sum(positive_count(ratio, ratio_epochs, past, count) for past in range(epoch))
    turn = np.where(positive, before + np.cumsum(positive), epoch * count - before + np.cumsum(~positive)) - 1
    return positive, turn


@functools.lru_cache(maxsize=8)
def tile_order(count: int, seed: int, cycle: int, kind: int) -> np.ndarray:
    return generator(seed, cycle, kind, RATIO, 2).permutation(count)


def window_side(crop: int, scale: float) -> int:
    return max(round(crop / scale), 1)


def place_window(runs: np.ndarray, size, side: int, draws: np.random.Generator) -> tuple[int, int]:
    """y and x of a window in a tile of `size`, anywhere, or at random around a random pixel of `runs` (n, 3).

    Along an axis that is shorter than the window it holds all of the tile, anywhere in it.
    """
    spare = [int(length) - side for length in size]
    low, high = tuple(min(value, 0) for value in spare), tuple(max(value, 0) for value in spare)
    if len(runs):
        behind = np.cumsum(runs[:, 2] - runs[:, 1])
        pixel = int(draws.integers(behind[-1]))
        run = int(np.searchsorted(behind, pixel, side="right"))
        held = int(runs[run, 0]), int(runs[run, 2] - behind[run] + pixel)
        low = tuple(max(at - side + 1, start) for at, start in zip(held, low, strict=True))
        high = tuple(min(at, end) for at, end in zip(held, high, strict=True))
    y, x = (int(draws.integers(a, b + 1)) for a, b in zip(low, high, strict=True))
    return y, x


def count_values(label: np.ndarray, values: Sequence[int]) -> np.ndarray:
    return np.array([np.count_nonzero(label == value) for value in values])


def anchor_runs(label: np.ndarray, kind: int) -> np.ndarray:
    """(n, 3) int32 runs of the pixels by which a window of the tile is placed: those of the class in a positive tile,
    labelled ones in a negative tile with no data, else none."""
    mask = label == 1 if kind == 1 else label != IGNORED
    if kind < 0 or (kind == 0 and mask.all()):
        return np.zeros((0, 3), np.int32)
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (row, start), (_, end) = np.nonzero(steps == 1), np.nonzero(steps == -1)
    runs = np.column_stack([row, start, end]).astype(np.int32)
    if kind == 0 and len(runs) > MOST_RUNS:
        runs = runs[np.linspace(0, len(runs) - 1, MOST_RUNS).astype(int)]
    return runs


def estimate_shares(label: np.ndarray, runs: np.ndarray, crop: int, scales, draws: np.random.Generator) -> np.ndarray:
    """(2,) mean shares of the pixels of a few windows of a tile that are of each class; the rest is not valid."""
    shares = []
    for scale in scales * -(-TRIES // len(scales)):  # each scale as often as the others
        side = window_side(crop, scale)
        y, x = place_window(runs, label.shape, side, draws)
        inside = label[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)]
        shares.append(count_values(inside, (0, 1)) / side**2)
    return np.mean(shares, axis=0)
