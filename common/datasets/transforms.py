"""Augmentation of stereo pairs: albumentations, seeded so that neither samples, epochs nor transforms repeat a draw."""

import os
from collections.abc import Callable, Mapping
from statistics import NormalDist

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for newer versions otherwise

import albumentations as A
import cv2
import numpy as np
from albumentations.core.transforms_interface import BaseTransformInitSchema

from common.datasets.draws import generator, python_random
from common.errors import InputError


class ByteNoise(A.ImageOnlyTransform):
    """Additive Gaussian noise of a standard deviation drawn from `std_range` (grey levels), for uint8 pictures.

    A random byte picks one of 256 equally likely quantiles of the normal distribution, so that adding noise is two
    table look-ups and two saturating additions: 7 times as fast as A.GaussNoise. Rounded to whole grey levels.
    """

    class InitSchema(BaseTransformInitSchema):
        std_range: tuple[float, float]

    def __init__(self, std_range: tuple[float, float] = (4.0, 16.0), p: float = 0.5):
        super().__init__(p=p)
        self.std_range = std_range

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        std = self.py_random.uniform(*self.std_range)
        shape = params["shape"]
        drawn = np.frombuffer(self.random_generator.bytes(int(np.prod(shape))), np.uint8).reshape(shape)
        levels = np.rint(std * QUANTILES)
        lighter, darker = np.clip(levels, 0, 255).astype(np.uint8), np.clip(-levels, 0, 255).astype(np.uint8)
        return {"lighter": cv2.LUT(drawn, lighter), "darker": cv2.LUT(drawn, darker)}

    def apply(self, img: np.ndarray, lighter: np.ndarray, darker: np.ndarray, **params) -> np.ndarray:
        return cv2.subtract(cv2.add(img, lighter), darker)


class GreenJitter(A.ImageOnlyTransform):
    """Shift hue, saturation and value of green pixels only, fading out towards yellow and cyan, for uint8 RGB.

    Limits in OpenCV's units (hue 0..179, the others 0..255); each shift is drawn uniformly from (-limit, limit).
    Soil, dead matter and flowers keep their colours.
    """

    class InitSchema(BaseTransformInitSchema):
        hue_limit: float
        sat_limit: float
        val_limit: float

    def __init__(self, hue_limit: float = 10.0, sat_limit: float = 40.0, val_limit: float = 30.0, p: float = 0.5):
        super().__init__(p=p)
        self.hue_limit, self.sat_limit, self.val_limit = hue_limit, sat_limit, val_limit

    def get_params(self) -> dict:
        limits = {"hue": self.hue_limit, "sat": self.sat_limit, "val": self.val_limit}
        return {name: self.py_random.uniform(-limit, limit) for name, limit in limits.items()}

    def apply(self, img: np.ndarray, hue: float, sat: float, val: float, **params) -> np.ndarray:
        planes = cv2.split(cv2.cvtColor(img, cv2.COLOR_RGB2HSV))
        shifted = [cv2.LUT(planes[0], np.uint8(np.rint(np.arange(256) + hue * GREENNESS) % 180))]
        for plane, shift in zip(planes[1:], (sat, val), strict=True):
            step = cv2.LUT(planes[0], np.uint8(np.rint(abs(shift) * GREENNESS)))
            shifted.append(cv2.add(plane, step) if shift > 0 else cv2.subtract(plane, step))
        return cv2.cvtColor(cv2.merge(shifted), cv2.COLOR_HSV2RGB)


QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
# 1 at OpenCV's green (hue 60), 0 from 25 degrees of its scale away on.
GREENNESS = np.cos(np.clip((np.arange(256) - 60) / 25, -1, 1) * np.pi / 2) ** 2


def affine(p: float, strength: float, size: tuple[int, int]) -> A.Affine:
    return A.Affine(
        scale=(1 - 0.1 * strength, 1 + 0.1 * strength),
        translate_percent=(-0.05 * strength, 0.05 * strength),
        rotate=(-15 * strength, 15 * strength),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )


def dropout(p: float, strength: float, size: tuple[int, int]) -> A.CoarseDropout:
    side = (0.05 * min(strength, 5), 0.15 * min(strength, 5))
    return A.CoarseDropout(num_holes_range=(1, 6), hole_height_range=side, hole_width_range=side, fill=0, p=p)


# name: maker(probability, strength, (height, width)) in the order of application; strength 1 is the default, 0 is off.
GEOMETRIC = {
    "hflip": lambda p, strength, size: A.HorizontalFlip(p=p),
    "vflip": lambda p, strength, size: A.VerticalFlip(p=p),
    "crop": lambda p, s, size: A.RandomResizedCrop(size=size, scale=(1 - 0.4 * min(s, 2), 1), ratio=(0.9, 1.1), p=p),
    "affine": affine,
}
PHOTOMETRIC = {
    "brightness-contrast": lambda p, s, size: A.RandomBrightnessContrast(
        brightness_limit=0.2 * s, contrast_limit=0.2 * s, p=p
    ),
    "hue-saturation": lambda p, s, size: A.HueSaturationValue(
        hue_shift_limit=10 * s, sat_shift_limit=20 * s, val_shift_limit=10 * s, p=p
    ),
    "green-jitter": lambda p, s, size: GreenJitter(hue_limit=10 * s, sat_limit=40 * s, val_limit=30 * s, p=p),
    "blur": lambda p, s, size: A.GaussianBlur(blur_limit=0, sigma_limit=(0.1 * s, 1.5 * s), p=p),
    "noise": lambda p, s, size: ByteNoise(std_range=(4 * s, 16 * s), p=p),
    "dropout": dropout,
}
AUGMENTATIONS: dict[str, Callable[[float, float, tuple[int, int]], A.BasicTransform]] = GEOMETRIC | PHOTOMETRIC
# The recipe's set. RandomResizedCrop and the green jitter are options: they change what a gram looks like.
DEFAULT_PROBABILITIES = {
    "hflip": 0.5,
    "vflip": 0.5,
    "affine": 0.5,
    "brightness-contrast": 0.5,
    "hue-saturation": 0.3,
    "blur": 0.2,
    "noise": 0.2,
    "dropout": 0.3,
}


class StereoAugment:
    """Augmentation of a pair of halves as a pure function of (seed, epoch, index).

    probabilities {name of AUGMENTATIONS: p}; strengths {name: factor on the default ranges}, 1 where not given.
    Geometry is the same on both halves; photometric transforms too, unless `photometric_independent`, where each half
    draws by itself whether and how. Every transform has its own stream: albumentations' own seeding repeats draws
    over workers and epochs, and Compose.set_random_seed makes all transforms fire together or not at all.
    """

    def __init__(
        self,
        probabilities: Mapping[str, float] = DEFAULT_PROBABILITIES,
        *,
        strengths: Mapping[str, float] | None = None,
        seed: int = 0,
        photometric_independent: bool = False,
    ):
        self.probabilities = dict(probabilities)
        self.strengths = dict(strengths or {})
        self.seed = seed
        self.photometric_independent = photometric_independent
        self.built: dict[tuple[int, int], list] = {}
        for name, p in self.probabilities.items():
            check_option("augmentation", name, p, 0, 1)
        for name, strength in self.strengths.items():
            check_option("augmentation strength", name, strength, 0, 10)

    def __call__(self, left: np.ndarray, right: np.ndarray, *, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Two uint8 (H, W, 3) halves of equal size in, two out; the inputs are not written to."""
        for position, name, transform in self.transforms(left.shape[:2]):
            if self.photometric_independent and name in PHOTOMETRIC:
                seed_transform(transform, self.seed, epoch, index, position, part=0)
                left = transform(image=left)["image"]
                seed_transform(transform, self.seed, epoch, index, position, part=1)
                right = transform(image=right)["image"]
            else:
                seed_transform(transform, self.seed, epoch, index, position)
                pair = transform(image=left, right=right)
                left, right = pair["image"], pair["right"]
        return left, right

    def transforms(self, size: tuple[int, int]) -> list[tuple[int, str, A.BasicTransform]]:
        """(position, name, transform) of what is switched on; positions do not depend on what else is."""
        if size not in self.built:
            self.built[size] = []
            for position, (name, make) in enumerate(AUGMENTATIONS.items()):
                p, strength = self.probabilities.get(name, 0), self.strengths.get(name, 1.0)
                if p > 0 and strength > 0:
                    transform = make(p, strength, size)
                    transform.add_targets({"right": "image"})
                    self.built[size].append((position, name, transform))
        return self.built[size]


def seed_transform(transform: A.BasicTransform, seed: int, epoch: int, index: int, position: int, part: int = 0):
    draws = generator(seed, epoch, index, position, part)
    transform.set_random_state(draws, python_random(draws))


def check_option(what: str, name: str, value: float, low: float, high: float, table: Mapping = AUGMENTATIONS) -> None:
    if name not in table:
        raise InputError(f"{what} '{name}' is unknown; choose from {', '.join(table)}")
    if not low <= value <= high:
        raise InputError(f"{what} '{name}' is {value}; it must lie between {low} and {high}")
