"""Augmentation of tiles: classes and no data move with the image, draws never repeat, values are what is said."""

import itertools
import warnings

import albumentations as A
import numpy as np
import pytest
from scipy import ndimage, stats
from torch.utils.data import DataLoader, Dataset

from common.datasets import tile_photometry, tile_transforms
from common.datasets.draws import generator
from common.datasets.tile_photometry import PHOTOMETRIC
from common.datasets.tile_transforms import (
    DEFAULT_TILE_PROBABILITIES,
    TILE_AUGMENTATIONS,
    TURNS,
    WARPS,
    TileAugment,
)
from common.errors import InputError

# The library drops an argument that it does not know, with no more than a warning.
pytestmark = pytest.mark.filterwarnings("error")
ALL = dict.fromkeys(TILE_AUGMENTATIONS, 1.0)
COLOURS = {"rgb": (3, 0, 2), "mean": [90, 7, 110, 100, -3], "std": [15, 2, 12, 18, 5]}  # of tile(), whose bands are 5


def tile(height=64, width=64, bands=5, seed=0):
    """Smooth bands, classes cut from the first of them, a slanting edge of no data."""
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.normal(size=(bands, height, width)), (0, 3, 3)).astype(np.float32)
    image /= image.std()
    target = np.digitize(image[0], (-0.7, 0, 0.7)).astype(np.int64)
    rows, columns = np.mgrid[:height, :width]
    valid = rows + columns / 2 > height / 4
    return np.where(valid, image, np.float32(0)), np.where(valid, target, 0), valid


def make(probabilities, bands=5, **options) -> TileAugment:
    """An augmentation that knows the colours of tile(), or of one with fewer or more bands than it."""
    colours = {"rgb": (0, 1, 2), "mean": [100] * bands, "std": [30] * bands} if bands >= 3 else {}
    return TileAugment(probabilities, **colours, **options)


def draws(seed=0) -> np.random.Generator:
    return generator(seed, 0, 0, 0)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.5, 10.0])
@pytest.mark.parametrize("name", TILE_AUGMENTATIONS)
def test_every_augmentation_builds_and_changes_the_tile(name, strength):
    given = tile()
    kept = [plane.copy() for plane in given]
    augment = make({name: 1.0}, strengths={name: strength}, seed=3)
    for index in range(3):
        image, target, valid = augment(*given, epoch=0, index=index)
        assert image.dtype == np.float32 and target.dtype == np.int64 and valid.dtype == bool
        assert image.shape == given[0].shape and target.shape == valid.shape == given[2].shape
        assert np.isfinite(image).all() and (image[:, ~valid] == 0).all() and (target[~valid] == 0).all()
        assert all(plane.flags.c_contiguous for plane in (image, target, valid))
        assert (image != given[0]).any()
    assert all((before == after).all() for before, after in zip(kept, given, strict=True))
    off = make({name: 1.0}, strengths={name: 0})(*given, epoch=0, index=0)
    assert all((before == after).all() for before, after in zip(given, off, strict=True))


def test_default_and_complete_sets_build_for_any_bands_and_sizes():
    assert set(DEFAULT_TILE_PROBABILITIES) < set(TILE_AUGMENTATIONS)
    for bands, height, width in ((1, 20, 33), (7, 40, 24), (9, 16, 16)):
        for probabilities in (DEFAULT_TILE_PROBABILITIES, *([ALL] if bands > 1 else [])):
            image, target, valid = make(probabilities, bands)(*tile(height, width, bands), epoch=0, index=0)
            assert image.shape == (bands, height, width) and target.shape == valid.shape == (height, width)
    with pytest.raises(InputError, match="hflipp.*choose from hflip, vflip, rot90"):
        TileAugment({"hflipp": 0.5})
    with pytest.raises(InputError, match="noise.*between 0 and 1"):
        TileAugment({"noise": 1.5})
    with pytest.raises(InputError, match="strength 'noisy'"):
        TileAugment({"noise": 0.5}, strengths={"noisy": 1})
    with pytest.raises(InputError, match="colour-jitter: the bands hold no red, green and blue"):
        TileAugment({"colour-jitter": 0.5})


@pytest.mark.parametrize(
    "make", [getattr(tile_transforms, n) for n in ("affine", "grid_distortion", "optical_distortion")]
)
def test_the_library_knows_every_argument(make):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        A.Affine(rotation=3)  # so it would be said
        make(1.0)
    assert [str(w.message) for w in seen if "rotation" in str(w.message)] == [str(w.message) for w in seen] != []


@pytest.mark.parametrize("name", [*TURNS, *WARPS, *PHOTOMETRIC])
def test_a_tile_without_data_stays_so(name):
    image, target, _ = tile()
    nothing = np.zeros(target.shape, bool)
    image, target, valid = make({name: 1.0})(image * 0, target * 0, nothing, epoch=0, index=0)
    assert not valid.any() and not image.any() and not target.any()


def test_a_pure_function_of_seed_epoch_and_index():
    given = tile()
    one, two = make(ALL, seed=5), make(ALL, seed=5)
    for key in reversed(range(3)):
        two(*given, epoch=0, index=key)  # another history
    first, again = one(*given, epoch=2, index=7), two(*given, epoch=2, index=7)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    for other in (make(ALL, seed=6)(*given, epoch=2, index=7), one(*given, epoch=3, index=7)):
        assert (other[0] != first[0]).any()
    # Switching one off does not change what the others draw.
    fewer = TileAugment({"affine": 1.0}, seed=5)(*given, epoch=2, index=7)
    more = TileAugment({"hflip": 1e-9, "affine": 1.0, "noise": 1e-9}, seed=5)(*given, epoch=2, index=7)
    assert (fewer[0] == more[0]).all()


class Epochs:
    """Sampler of (epoch, index) whose epoch the test sets, as the project's own does."""

    def __init__(self, count):
        self.count, self.epoch = count, 0

    def __iter__(self):
        return iter([(self.epoch, i) for i in range(self.count)])

    def __len__(self):
        return self.count


class Same(Dataset):
    """One tile over and over, so that equal outputs mean equal draws."""

    def __init__(self, augment):
        self.augment, self.given = augment, tile(32, 32)

    def __getitem__(self, key):
        return self.augment(*self.given, epoch=key[0], index=key[1])[0].tobytes()


@pytest.mark.parametrize("persistent", [False, True])
def test_no_draw_repeats_over_epochs_and_workers(persistent):
    augment = TileAugment({"affine": 1.0, "elastic": 1.0, "brightness": 1.0}, seed=1)
    sampler = Epochs(20)
    loader = DataLoader(
        Same(augment),
        batch_size=5,
        sampler=sampler,
        num_workers=2,
        persistent_workers=persistent,
        collate_fn=list,
        multiprocessing_context="fork",
    )
    seen = []
    for epoch in range(3):
        sampler.epoch = epoch
        seen += [one for batch in loader for one in batch]
    assert len(set(seen)) == 60
    assert seen == [Same(augment)[epoch, i] for epoch in range(3) for i in range(20)]


@pytest.mark.parametrize("name", [name for name in TILE_AUGMENTATIONS if name not in ("hflip", "vflip")])
def test_what_a_transform_draws_is_fresh_for_each_sample(name):
    augment = make({name: 1.0}, seed=1)
    given = tile(32, 32)
    keys = list(itertools.product(range(3), range(8)))
    seen = {augment(*given, epoch=epoch, index=index)[0].tobytes() for epoch, index in keys}
    assert len(seen) == {"rot90": 3, "band-drop": 5}.get(name, len(keys))


def fired(augment: TileAugment, part: str, samples=2000) -> np.ndarray:
    """bool (samples, transforms): what was applied to each sample."""
    keys = [{"epoch": 0, "index": 0, part: i} for i in range(samples)]
    return np.array([[name in augment.fired(**key) for name in augment.probabilities] for key in keys])


def independence(flags: np.ndarray) -> tuple[float, float]:
    """Smallest chi-square p-value over pairs of columns, and that of the row counts against the binomial."""
    pairs = []
    for a, b in itertools.combinations(flags.T, 2):
        table = np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]])
        pairs.append(1.0 if (table.sum(0) == 0).any() else stats.chi2_contingency(table).pvalue)
    count = flags.shape[1]
    seen = np.bincount(flags.sum(1), minlength=count + 1)
    wanted = stats.binom.pmf(np.arange(count + 1), count, 0.5) * len(flags)
    return min(pairs), stats.chisquare(seen, wanted).pvalue


SIX = dict.fromkeys(("hflip", "rot90", "affine", "elastic", "noise", "gamma"), 0.5)


@pytest.mark.parametrize("part", ["index", "epoch"])
def test_transforms_fire_independently(part):
    flags = fired(TileAugment(SIX, seed=2), part)
    assert np.abs(flags.mean(0) - 0.5).max() < 0.05
    assert min(independence(flags)) > 1e-3
    assert independence(np.stack([flags[:-1, 0], flags[1:, 0]], 1))[0] > 1e-3


def test_the_independence_test_sees_one_stream_for_all(monkeypatch):
    monkeypatch.setattr(tile_transforms, "generator", lambda seed, epoch, index, position: draws(index))
    assert max(independence(fired(TileAugment(SIX, seed=2), "index", 500))) < 1e-9


def test_an_amount_does_not_follow_from_firing():
    """The draw that decides whether is not the draw that decides how much."""
    image, target, valid = tile(16, 16)
    augment = TileAugment({"brightness": 0.1}, seed=1)
    shifts = []
    for index in range(1500):
        moved = augment(image, target, valid, epoch=0, index=index)[0]
        if (moved != image).any():
            shifts.append((moved - image)[0, valid].mean())
    assert 100 < len(shifts) < 200
    assert stats.kstest(shifts, stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-3


def test_turns_are_those_of_numpy_for_all_three():
    given = tile()
    flips = {"hflip": lambda plane: plane[..., ::-1], "vflip": lambda plane: plane[..., ::-1, :]}
    for name, flip in flips.items():
        out = TileAugment({name: 1.0})(*given, epoch=0, index=0)
        assert all((a == flip(b)).all() for a, b in zip(out, given, strict=True))
    turned = [np.rot90(given[0], k, axes=(1, 2)).tobytes() for k in range(4)]
    seen = []
    for index in range(300):
        image, target, valid = TileAugment({"rot90": 0.75})(*given, epoch=0, index=index)
        seen.append(turned.index(image.tobytes()))
        assert (target == np.rot90(given[1], seen[-1])).all() and (valid == np.rot90(given[2], seen[-1])).all()
    assert stats.chisquare(np.bincount(seen, minlength=4)).pvalue > 1e-3
    given = tile(30, 50)
    image, target, valid = TileAugment({"rot90": 1.0})(*given, epoch=0, index=0)
    assert (image == given[0][:, ::-1, ::-1]).all() and (target == given[1][::-1, ::-1]).all()


def coordinate_tile(size=96):
    """Row and column in bands, both coded in the target: whatever moves, they must agree."""
    rows, columns = np.mgrid[:size, :size]
    return np.stack([rows, columns]).astype(np.float32), rows * size + columns, np.ones((size, size), bool)


@pytest.mark.parametrize("combination", [*[(name,) for name in WARPS], tuple(WARPS), (*TURNS, *WARPS)])
def test_target_and_valid_move_with_the_image(combination):
    image, target, valid = coordinate_tile()
    moves = set()
    for index in range(4):
        augment = TileAugment(dict.fromkeys(combination, 1.0), seed=4)
        moved, classes, inside = augment(image, target, valid, epoch=1, index=index)
        rows, columns = np.divmod(classes, 96)
        gap = np.maximum(np.abs(moved[0] - rows), np.abs(moved[1] - columns))[inside]
        assert gap.max() <= 0.6 and inside.mean() > 0.35  # half a pixel to the nearest, 1/32 steps of OpenCV
        moves.add(moved.tobytes())
        assert np.abs(moved - image).max(0)[inside].mean() > 0.5
    assert len(moves) == 4


@pytest.mark.parametrize("name", WARPS)
def test_no_data_does_not_leak_into_the_image(name):
    """Of a constant picture all that is valid stays at the constant, next to no data too."""
    _, target, valid = tile(96, 96)
    valid[30:33, 20:70] = False
    image = np.where(valid, np.float32([[[3.0]], [[-2.0]]]), np.float32(0))
    garbage = np.where(valid, image, np.float32(99))
    for index in range(4):
        moved, _, inside = TileAugment({name: 1.0})(image, target, valid, epoch=0, index=index)
        assert np.allclose(moved[0][inside], 3, atol=1e-4) and np.allclose(moved[1][inside], -2, atol=1e-4)
        again = TileAugment({name: 1.0})(garbage, target, valid, epoch=0, index=index)[0]
        assert (again == moved).all()
        assert 0.5 < inside.mean() / valid.mean() < 1.5


def test_affine_brings_in_nothing_from_outside():
    image, target, valid = coordinate_tile()
    shares = []
    for index in range(20):
        augment = TileAugment({"affine": 1.0}, seed=1)
        moved, _, inside = augment(image + 1000, target, valid, epoch=0, index=index)
        assert (moved[:, inside] >= 999.9).all() and (moved[:, ~inside] == 0).all()
        shares.append(inside.mean())
    assert min(shares) < 0.85 and max(shares) > 0.9


def test_elastic_shifts_have_the_size_said_and_are_smooth():
    image, target, valid = coordinate_tile(256)
    shifts = []
    for index in range(6):
        moved, _, inside = TileAugment({"elastic": 1.0})(image, target, valid, epoch=0, index=index)
        shift = np.where(inside, moved - image, np.nan)[:, 20:-20, 20:-20]
        assert np.isfinite(shift).all()
        assert np.abs(np.diff(shift, axis=2)).mean() < 0.3
        shifts.append(shift)
    assert 2.0 < np.std(shifts) < 3.5


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_photometric_ones_leave_classes_and_no_data_alone(name):
    given = tile()
    image, target, valid = make({name: 1.0})(*given, epoch=0, index=0)
    assert (target == given[1]).all() and (valid == given[2]).all() and (image[:, ~valid] == 0).all()
    hidden = np.where(given[2], given[0], np.float32(50))  # what no data holds must not count either
    assert (make({name: 1.0})(hidden, *given[1:], epoch=0, index=0)[0] == image).all()


def test_photometric_values():
    image, _, valid = tile(128, 128)
    drawn = tile_photometry.noise(image, valid, draws(), 1.0) - image
    assert 0.02 <= drawn.std() <= 0.1 and abs(drawn.mean()) < 0.002
    assert np.abs(np.corrcoef(drawn.reshape(5, -1)) - np.eye(5)).max() < 0.03
    shifted = tile_photometry.brightness(image, valid, draws(), 1.0) - image
    assert 0 < np.abs(shifted).max() <= 0.2 and np.ptp(shifted) < 1e-5
    mine = image[:, valid]
    out = tile_photometry.contrast(image, valid, draws(), 1.0)[:, valid]
    factor = out.std(1) / mine.std(1)
    assert np.allclose(out.mean(1), mine.mean(1), atol=1e-5) and np.ptp(factor) < 1e-5
    assert np.exp(-0.2) < factor[0] < np.exp(0.2) and factor[0] != 1
    jittered = tile_photometry.band_jitter(image, valid, draws(), 1.0)
    fits = np.array([np.polyfit(a.ravel(), b.ravel(), 1) for a, b in zip(image, jittered, strict=True)])
    assert np.abs(np.log(fits[:, 0])).max() < 0.15 and np.abs(fits[:, 1]).max() < 0.3
    assert len(set(fits[:, 0].round(4))) == len(set(fits[:, 1].round(4))) == 5


def test_gamma_is_a_power_between_the_extremes():
    image, _, valid = tile(128, 128)
    mine, out = image[:, valid], tile_photometry.gamma(image, valid, draws(), 1.0)[:, valid]
    assert np.allclose(out.min(1), mine.min(1), atol=1e-5) and np.allclose(out.max(1), mine.max(1), atol=1e-5)
    share, bent = ((a - a.min(1, keepdims=True)) / np.ptp(a, axis=1, keepdims=True) for a in (mine, out))
    inner = (share > 0.1) & (share < 0.9)
    power = np.log(bent[inner]) / np.log(share[inner])
    assert np.ptp(power) < 1e-2 and np.exp(-0.3) < power.mean() < np.exp(0.3) and abs(power.mean() - 1) > 0.005
    flat = np.full((2, 8, 8), 3.0, np.float32)
    assert (tile_photometry.gamma(flat, np.ones((8, 8), bool), draws(), 1.0) == 3).all()


def test_dropped_bands_become_the_mean_and_one_is_kept():
    image, target, valid = tile()
    for strength, count in ((0.5, 1), (1.0, 1), (2.0, 2), (10.0, 4)):
        augment = TileAugment({"band-drop": 1.0}, strengths={"band-drop": strength})
        for index in range(5):
            out = augment(image, target, valid, epoch=0, index=index)[0]
            gone = ~out.any((1, 2))
            assert gone.sum() == count and (out[~gone] == image[~gone]).all()
    assert (TileAugment({"band-drop": 1.0})(image[:1], target, valid, epoch=0, index=0)[0] == image[:1]).all()


def test_the_order_of_probabilities_does_not_matter():
    given = tile()
    forth = TileAugment(DEFAULT_TILE_PROBABILITIES, seed=1)
    back = TileAugment(dict(reversed(DEFAULT_TILE_PROBABILITIES.items())), seed=1)
    for index in range(6):
        pair = forth(*given, epoch=0, index=index), back(*given, epoch=0, index=index)
        assert all((a == b).all() for a, b in zip(*pair, strict=True))


OLD = ("hflip", "vflip", "rot90", "affine", "elastic", "grid", "optical", "noise", "gamma", "brightness", "contrast",
       "band-jitter", "band-drop")  # fmt: skip


def test_the_streams_of_the_first_transforms_stay_where_they_were():
    assert tuple(TILE_AUGMENTATIONS)[: len(OLD)] == OLD
    for position, name in enumerate(TILE_AUGMENTATIONS, 100):
        given = make({name: 1.0}, seed=8).fired(4, 9)[name]
        expected = generator(8, 4, 9, position)
        expected.random()
        assert given.random() == expected.random()


def raw_colours(image, channels=COLOURS["rgb"]):
    """(H,W,3) in raw units."""
    mean, std = (np.array(COLOURS[key])[list(channels)] for key in ("mean", "std"))
    return image[list(channels)].transpose(1, 2, 0) * std + mean


def grey_of(raw):
    return raw @ [0.299, 0.587, 0.114]


def fitted_jitter(before, after) -> tuple:
    """Brightness, contrast, saturation of one jitter of colours (n,3), by least squares of its two linear steps."""
    grey, new_grey = grey_of(before), grey_of(after)
    slope, offset = np.polyfit(grey, new_grey, 1)  # brightness x contrast, and brightness (1 - contrast) mean
    brightness = slope + offset / grey.mean()
    chroma, new_chroma = before - grey[:, None], after - new_grey[:, None]
    whole = (chroma * new_chroma).sum() / (chroma**2).sum()
    assert np.abs(new_chroma - whole * chroma).max() < 0.01 and np.abs(new_grey - slope * grey - offset).max() < 0.01
    return brightness, slope / brightness, whole / slope


def test_colour_jitter_is_brightness_contrast_and_saturation_of_the_raw_colours():
    """Three uniform factors within .2 of 1, the hue kept, the other bands left alone."""
    given = tile(64, 64)
    image, _, valid = given
    found = []
    for index in range(150):
        out = TileAugment({"colour-jitter": 1.0}, seed=2, **COLOURS)(*given, epoch=0, index=index)[0]
        assert (out[[1, 4]] == image[[1, 4]]).all() and out.dtype == np.float32
        before, after = raw_colours(image)[valid], raw_colours(out)[valid]
        if after.min() > 0.1:  # none was cut off at 0
            found.append(fitted_jitter(before, after))
    found = np.array(found)
    assert len(found) > 100
    for column in found.T:
        assert stats.kstest(column, stats.uniform(0.8, 0.4).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.3


def test_colour_jitter_steps_are_those_of_albumentations():
    """One at a time, on floating-point colours; strength 2.5 draws from 0.5 to 1.5."""
    rng = np.random.default_rng(0)
    raw = rng.uniform(60, 150, (3, 32, 32)).astype(np.float32)
    inside = np.ones(raw.shape[1:], bool)

    class Fixed:
        def __init__(self, factors):
            self.factors = factors

        def uniform(self, low, high, size):
            assert (low, high, size) == (0.5, 1.5, 3)
            return np.array(self.factors)

    for place, name in enumerate(("brightness", "contrast", "saturation")):
        factors = np.ones(3)
        factors[place] = 0.75
        ranges = {key: (1.0, 1.0) for key in ("brightness", "contrast", "saturation")} | {name: (0.75, 0.75)}
        theirs = (
            A.Compose([A.ColorJitter(**ranges, hue=(0, 0), p=1)])(image=raw.transpose(1, 2, 0) / 255)["image"] * 255
        )
        mine = tile_photometry.colour_jitter(raw, inside, Fixed(factors), 2.5).transpose(1, 2, 0)
        np.testing.assert_allclose(mine, theirs, atol=0.6 if name == "contrast" else 0.05)
        assert np.abs(mine - raw.transpose(1, 2, 0)).max() > 3


def test_colour_jitter_keeps_above_black():
    given = tile()
    dark = COLOURS | {"mean": [5] * 5}
    out = TileAugment({"colour-jitter": 1.0}, strengths={"colour-jitter": 5}, seed=2, **dark)(*given, epoch=0, index=1)[
        0
    ]
    raw = out[[3, 0, 2]] * np.array(COLOURS["std"])[[3, 0, 2], None, None] + 5
    assert raw[:, given[2]].min() > -1e-4 and (raw[:, given[2]] < 1e-4).any()


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_only_the_photometric_channels_change(name):
    given = tile()
    channels = (3, 0, 2)
    augment = TileAugment({name: 1.0}, strengths={name: 2}, seed=1, photometric=channels, **COLOURS)
    image = augment(*given, epoch=0, index=0)[0]
    changed = (image != given[0]).any((1, 2))
    assert not changed[[1, 4]].any() and changed.any()
    alone = PHOTOMETRIC[name](given[0][[3, 0, 2]], given[2], augment.fired(0, 0)[name], 2.0)
    if name != "colour-jitter":
        assert (image[[3, 0, 2]] == np.where(given[2], alone, 0)).all()


def test_a_warp_moves_all_channels_whatever_is_photometric():
    given = tile()
    everything = {"shift-scale-rotate": 1.0, "elastic-fine": 1.0}
    some = TileAugment(everything, seed=1, photometric=(0, 1, 2))(*given, epoch=0, index=0)
    whole = TileAugment(everything, seed=1)(*given, epoch=0, index=0)
    assert all((a == b).all() for a, b in zip(some, whole, strict=True))


def test_the_fine_elastic_field_is_that_of_blurred_noise():
    """Its deviation, and how shifts of pixels some way apart are alike, beside noise blurred at full size."""
    image, target, valid = coordinate_tile(256)
    rng = np.random.default_rng(0)
    mine, wanted = [], []
    for index in range(6):
        moved, _, inside = TileAugment({"elastic-fine": 1.0})(image, target, valid, epoch=0, index=index)
        assert inside[16:-16, 16:-16].all()
        mine.append((moved - image)[:, 16:-16, 16:-16])
        wanted.append(ndimage.gaussian_filter(rng.uniform(-1, 1, (2, 256, 256)), (0, 6, 6))[:, 16:-16, 16:-16] * 120)
    mine, wanted = np.array(mine), np.array(wanted)
    assert mine.std() == pytest.approx(wanted.std(), rel=0.06) and 3.0 < mine.std() < 3.5
    for lag in (3, 6, 12, 24):
        alike = [(field[..., lag:] * field[..., :-lag]).mean() / field.var() for field in (mine, wanted)]
        assert alike[0] == pytest.approx(alike[1], abs=0.06)


def test_a_shift_goes_up_to_a_tenth_of_the_side():
    shifts = []
    for index in range(300):
        made = TileAugment({"shift-scale-rotate": 1.0}, seed=5)
        moved = made.coordinates((101, 101), made.fired(0, index))[50, 50]
        assert moved[2] == 1
        shifts.append(np.linalg.norm(moved[:2] - 50))  # the middle turns about itself
    diagonal = 2**0.5 * 101 * 1.2  # scaled by at most 1.2
    assert 0.0625 * diagonal + 1 < max(shifts) <= 0.1 * diagonal + 1
