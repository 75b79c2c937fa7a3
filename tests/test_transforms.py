"""Augmentation: no draw repeats, transforms fire independently, both halves move alike."""

import itertools
import warnings

import albumentations as A
import cv2
import numpy as np
import pytest
from scipy import stats
from torch.utils.data import DataLoader, Dataset

from common.datasets import transforms
from common.datasets.stereo import init_worker
from common.datasets.transforms import (
    AUGMENTATIONS,
    DEFAULT_PROBABILITIES,
    GEOMETRIC,
    PHOTOMETRIC,
    ByteNoise,
    GreenJitter,
    StereoAugment,
)
from common.errors import InputError

# The library drops an argument that it does not know, with no more than a warning.
pytestmark = pytest.mark.filterwarnings("error")
ALL = dict.fromkeys(AUGMENTATIONS, 1.0)


def picture(height=48, width=64, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(30, 226, (height, width, 3), dtype=np.uint8)


def coordinates(mark: int, height=200, width=250) -> np.ndarray:
    """Row in the first channel, column in the second, the half in the third."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, mark)], -1).astype(np.uint8)


def test_the_library_warns_about_unknown_arguments():
    with pytest.warns(UserWarning, match="not valid"):
        A.Affine(rotation=3)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.5, 10.0])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_builds_and_changes_the_picture(name, strength):
    left, right = picture(seed=1), picture(seed=2)
    kept = left.copy(), right.copy()
    augment = StereoAugment({name: 1.0}, strengths={name: strength}, seed=3)
    changed = 0
    for index in range(6):
        pair = augment(left, right, epoch=0, index=index)
        assert all(half.dtype == np.uint8 and half.shape == left.shape for half in pair)
        changed += (pair[0] != left).any() and (pair[1] != right).any()
    assert changed >= 1 and (left == kept[0]).all() and (right == kept[1]).all()
    off = StereoAugment({name: 1.0}, strengths={name: 0})(left, right, epoch=0, index=0)
    assert off[0] is left and off[1] is right


def test_default_and_complete_sets_build():
    for probabilities, independent in itertools.product((DEFAULT_PROBABILITIES, ALL), (False, True)):
        augment = StereoAugment(probabilities, photometric_independent=independent)
        assert len(augment.transforms((48, 64))) == len(probabilities)
        augment(picture(), picture(seed=1), epoch=0, index=0)
    with pytest.raises(InputError, match="hflipp.*choose from hflip"):
        StereoAugment({"hflipp": 0.5})
    with pytest.raises(InputError, match="blur.*between 0 and 1"):
        StereoAugment({"blur": 1.5})
    with pytest.raises(InputError, match="strength 'blurr'"):
        StereoAugment({"blur": 0.5}, strengths={"blurr": 1})


def test_a_pure_function_of_seed_epoch_and_index():
    left, right = picture(), picture(seed=1)
    one = StereoAugment(ALL, seed=5)
    two = StereoAugment(ALL, seed=5)
    for key in reversed(range(6)):
        two(left, right, epoch=0, index=key)  # another history
    first = one(left, right, epoch=2, index=7)
    again = two(left, right, epoch=2, index=7)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    for other in (StereoAugment(ALL, seed=6)(left, right, epoch=2, index=7), one(left, right, epoch=3, index=7)):
        assert (other[0] != first[0]).any()
    # Switching one off does not change what the others draw.
    fewer = StereoAugment({"affine": 1.0}, seed=5)(left, right, epoch=2, index=7)
    more = StereoAugment({"hflip": 1e-9, "affine": 1.0, "blur": 1e-9}, seed=5)(left, right, epoch=2, index=7)
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
    """One picture over and over, so that equal outputs mean equal draws."""

    def __init__(self, augment):
        self.augment = augment

    def __getitem__(self, key):
        left, right = self.augment(picture(), picture(), epoch=key[0], index=key[1])
        return left.tobytes() + right.tobytes()


@pytest.mark.parametrize("persistent", [False, True])
def test_no_draw_repeats_over_epochs_and_workers(persistent):
    probabilities = {"affine": 1.0, "brightness-contrast": 1.0, "hue-saturation": 1.0}
    augment = StereoAugment(probabilities, seed=1)
    sampler = Epochs(40)
    loader = DataLoader(
        Same(augment),
        batch_size=5,
        sampler=sampler,
        num_workers=2,
        persistent_workers=persistent,
        collate_fn=list,
        worker_init_fn=init_worker,
        multiprocessing_context="fork",
    )
    seen = []
    for epoch in range(3):
        sampler.epoch = epoch
        seen += [one for batch in loader for one in batch]
    assert len(seen) == 120 and len(set(seen)) == 120
    here = [Same(augment)[epoch, i] for epoch in range(3) for i in range(40)]
    assert seen == here


def fired(augment: StereoAugment, samples=2000, part="index") -> np.ndarray:
    """bool (samples, transforms): what was applied to each sample."""
    small = picture(8, 8)
    rows = []
    for i in range(samples):
        augment(small, small, **{"epoch": 0, "index": 0, part: i})
        rows.append([bool(t.get_applied_params()) for _, _, t in augment.transforms((8, 8))])
    return np.array(rows)


def independence(flags: np.ndarray, p: float = 0.5) -> tuple[float, float]:
    """Smallest chi-square p-value over pairs of columns, and that of the row counts against the binomial."""
    pairs = []
    for a, b in itertools.combinations(flags.T, 2):
        table = np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]])
        pairs.append(1.0 if (table.sum(0) == 0).any() else stats.chi2_contingency(table).pvalue)
    count = flags.shape[1]
    seen = np.bincount(flags.sum(1), minlength=count + 1)
    wanted = stats.binom.pmf(np.arange(count + 1), count, p) * len(flags)
    return min(pairs), stats.chisquare(seen, wanted).pvalue


SIX = dict.fromkeys(("hflip", "vflip", "affine", "brightness-contrast", "noise", "dropout"), 0.5)


@pytest.mark.parametrize("part", ["index", "epoch"])
def test_transforms_fire_independently(part):
    flags = fired(StereoAugment(SIX, seed=2), part=part)
    assert np.abs(flags.mean(0) - 0.5).max() < 0.05
    pairs, counts = independence(flags)
    assert pairs > 1e-3 and counts > 1e-3
    successive = independence(np.stack([flags[:-1, 0], flags[1:, 0]], 1))
    assert successive[0] > 1e-3


def test_the_independence_test_sees_one_seed_for_all(monkeypatch):
    def one_seed(transform, seed, epoch, index, position, part=0):
        transform.set_random_seed(seed * 1_000_003 + epoch * 1_009 + index)

    monkeypatch.setattr(transforms, "seed_transform", one_seed)
    flags = fired(StereoAugment(SIX, seed=2), samples=500)
    pairs, counts = independence(flags)
    assert pairs < 1e-9 and counts < 1e-9


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_both_halves_move_alike(name, independent):
    augment = StereoAugment({name: 1.0}, strengths={name: 2.0}, seed=4, photometric_independent=independent)
    moves = set()
    for index in range(8):
        left, right = augment(coordinates(10), coordinates(200), epoch=1, index=index)
        assert (left[..., :2] == right[..., :2]).all()
        assert (left[..., 2] == 10).all() and (right[..., 2] == 200).all()
        moves.add(left.tobytes())
    assert len(moves) == (1 if name in ("hflip", "vflip") else 8)


def test_flips_are_those_of_each_half():
    left, right = picture(seed=1), picture(seed=2)
    pair = StereoAugment({"hflip": 1.0})(left, right, epoch=0, index=0)
    assert (pair[0] == left[:, ::-1]).all() and (pair[1] == right[:, ::-1]).all()
    pair = StereoAugment({"vflip": 1.0})(left, right, epoch=0, index=0)
    assert (pair[0] == left[::-1]).all() and (pair[1] == right[::-1]).all()


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_photometric_draws_are_shared_or_not(name):
    shared = StereoAugment({name: 1.0}, seed=3)
    free = StereoAugment({name: 1.0}, seed=3, photometric_independent=True)
    green = cv2.merge([picture()[..., 0] // 2, picture()[..., 1] // 4 + 128, picture()[..., 2] // 2])
    differ = 0
    for index in range(6):
        left, right = shared(green, green, epoch=0, index=index)
        assert (left == right).all()
        left, right = free(green, green, epoch=0, index=index)
        differ += (left != right).any()
    assert differ >= 5


def test_halves_fire_independently_when_asked():
    augment = StereoAugment({"noise": 0.5}, seed=2, photometric_independent=True)
    small = picture(8, 8)
    flags = []
    for index in range(2000):
        pair = augment(small, small, epoch=0, index=index)
        flags.append([(half != small).any() for half in pair])
    assert min(independence(np.array(flags))) > 1e-3


def test_noise_is_normal_and_fresh_for_each_pixel():
    grey = np.full((300, 300, 3), 128, np.uint8)
    noise = ByteNoise(std_range=(12, 12), p=1)
    noise.set_random_seed(0)
    drawn = noise(image=grey)["image"].astype(float) - 128
    assert abs(drawn.mean()) < 0.1 and abs(drawn.std() - 12) < 0.2
    limits = (6, 12, 24)  # whole grey levels: a value of 6 stands for 5.5 to 6.5
    inside = [(np.abs(drawn) <= limit).mean() for limit in limits]
    assert np.allclose(inside, [stats.norm.cdf((limit + 0.5) / 12) * 2 - 1 for limit in limits], atol=0.01)
    flat = drawn.reshape(-1, 3)
    assert np.abs(np.corrcoef(flat.T) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(drawn[:, 1:].ravel(), drawn[:, :-1].ravel())[0, 1]) < 0.02
    assert (noise(image=np.zeros((9, 9, 3), np.uint8))["image"] < 60).all()  # saturates, does not wrap


def test_green_jitter_leaves_other_colours_alone():
    green, soil, flower = (60, 150, 50), (120, 90, 60), (160, 60, 190)
    image = np.array([[green, soil, flower]], np.uint8).repeat(8, 0)
    jitter = GreenJitter(p=1)
    moved = []
    for seed in range(20):
        jitter.set_random_seed(seed)
        out = jitter(image=image)["image"].astype(int)
        moved.append(np.abs(out - image)[0].max(-1))
    moved = np.array(moved)
    assert moved[:, 1:].max() <= 4 and np.median(moved[:, 0]) > 8  # 4: rounding on the way to HSV and back


def test_import_does_not_ask_the_network_and_warnings_stay_on():
    import os

    assert os.environ["NO_ALBUMENTATIONS_UPDATE"]
    with pytest.raises(UserWarning):
        warnings.warn("still an error", UserWarning, stacklevel=1)
