"""Augmentation of tiles and their classes: any number of bands, no data kept out, draws that never repeat."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for newer versions otherwise

import albumentations as A
import cv2
import numpy as np

from common.datasets.draws import generator, python_random
from common.datasets.tile_photometry import PHOTOMETRIC
from common.datasets.transforms import check_option
from common.errors import InputError

FIRST_POSITION = 100  # of the draws: below it are those of the sampler and of the stereo pairs
ELASTIC_CELL = 32  # pixels between the knots of the elastic field
ALPHA, SIGMA, FINE_CELL = 120, 6, 3  # of elastic-fine: as in A.ElasticTransform, and pixels between its knots


def quarter_turn(plane: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """One, two or three quarter turns of the last two axes; two where height and width differ."""
    turns = int(draws.integers(1, 4))
    return np.rot90(plane, turns if plane.shape[-1] == plane.shape[-2] else 2, axes=(-2, -1))


def library(make: Callable[[float], A.BasicTransform]) -> Callable:
    """A warp of the coordinates by a transform of albumentations, which is built for a strength."""

    def warp(coordinates: np.ndarray, draws: np.random.Generator, strength: float) -> np.ndarray:
        transform = make(strength)
        transform.set_random_state(draws, python_random(draws))
        return transform(image=coordinates)["image"]

    return warp


def affine(strength: float, shift: float = 0.0625) -> A.Affine:
    return A.Affine(
        scale=(1 / (1 + 0.2 * strength), 1 + 0.2 * strength),
        translate_percent=(-shift * strength, shift * strength),
        rotate=(-min(180, 45 * strength), min(180, 45 * strength)),
        keep_ratio=True,
        border_mode=cv2.BORDER_CONSTANT,
        p=1,
    )


def grid_distortion(strength: float) -> A.GridDistortion:
    limit = min(0.9, 0.3 * strength)
    return A.GridDistortion(num_steps=5, distort_limit=(-limit, limit), p=1)


def optical_distortion(strength: float) -> A.OpticalDistortion:
    return A.OpticalDistortion(distort_limit=(-0.3 * strength, 0.3 * strength), p=1)


def elastic(coordinates: np.ndarray, draws: np.random.Generator, strength: float) -> np.ndarray:
    """Random shifts of 3 px (standard deviation) at knots 32 px apart, smooth between them.

    A.ElasticTransform blurs noise of full size instead, which takes four times as long at 512 px.
    """
    height, width = coordinates.shape[:2]
    knots = draws.normal(0, 3 * strength, (2 + height // ELASTIC_CELL, 2 + width // ELASTIC_CELL, 2))
    return shifted(coordinates, knots)


def elastic_fine(coordinates: np.ndarray, draws: np.random.Generator, strength: float) -> np.ndarray:
    """Shifts of the size and smoothness of A.ElasticTransform(alpha=120, sigma=6): 3.3 px (standard deviation).

    White noise blurred by a Gaussian of 6 px, made on every third pixel and interpolated.
    """
    sigma = SIGMA / FINE_CELL
    size = [2 + side // FINE_CELL + 2 * int(4 * sigma) for side in coordinates.shape[:2]]
    # Noise of -1..1 blurred by sigma has a deviation of 1 / sqrt(3) / (2 sqrt(pi) sigma).
    std = ALPHA / 3**0.5 / FINE_CELL * strength
    knots = cv2.GaussianBlur(std * draws.standard_normal((*size, 2), np.float32), (0, 0), sigma)
    margin = int(4 * sigma)  # where the blur has looked beyond the noise
    return shifted(coordinates, knots[margin:-margin, margin:-margin])


def shifted(coordinates: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Coordinates (H,W,3) moved by the shifts (h,w,2) of columns and rows at knots, cubic between them."""
    height, width = coordinates.shape[:2]
    shift = cv2.resize(knots.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return cv2.remap(coordinates, columns + shift[..., 0], rows + shift[..., 1], cv2.INTER_LINEAR)


# In the order of application; strength 1 is the default of the ranges above, 0 is off.
TURNS = {
    "hflip": lambda plane, draws: plane[..., ::-1],
    "vflip": lambda plane, draws: plane[..., ::-1, :],
    "rot90": quarter_turn,
}
WARPS = {
    "affine": library(affine),
    "elastic": elastic,
    "grid": library(grid_distortion),
    "optical": library(optical_distortion),
    "shift-scale-rotate": library(partial(affine, shift=0.1)),
    "elastic-fine": elastic_fine,
}
LATER = ("shift-scale-rotate", "elastic-fine", "colour-jitter")  # behind the others, whose draws so stay what they were
TILE_AUGMENTATIONS: dict[str, Callable] = dict(
    sorted((TURNS | WARPS | PHOTOMETRIC).items(), key=lambda item: item[0] in LATER)
)
# rot90 at .75 makes the four directions equally likely. Dropping a band is an option.
DEFAULT_TILE_PROBABILITIES = {
    "hflip": 0.5,
    "vflip": 0.5,
    "rot90": 0.75,
    "affine": 0.5,
    "elastic": 0.2,
    "grid": 0.2,
    "optical": 0.2,
    "noise": 0.3,
    "gamma": 0.3,
    "brightness": 0.3,
    "contrast": 0.3,
    "band-jitter": 0.3,
}


class TileAugment:
    """Augmentation of a tile or crop as a pure function of (seed, epoch, index).

    probabilities {name of TILE_AUGMENTATIONS: p}; strengths {name: factor on the default ranges}, 1 where not given.
    Every transform has its own stream of draws, as in StereoAugment. All warps of a sample are composed first and the
    tile is interpolated once. rgb: channels of red, green, blue, with mean and std of all channels, for colour-jitter;
    photometric: channels that the photometric ones may change (None: all). InputError for what is not known.
    """

    def __init__(
        self,
        probabilities: Mapping[str, float] = DEFAULT_TILE_PROBABILITIES,
        *,
        strengths: Mapping[str, float] | None = None,
        seed: int = 0,
        rgb: tuple[int, int, int] | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        photometric: Sequence[int] | None = None,
    ):
        self.channels = None if photometric is None else list(photometric)
        self.rgb = None if rgb is None else list(rgb)
        self.scale = None if rgb is None else [np.array(v, np.float32)[self.rgb, None, None] for v in (mean, std)]
        self.probabilities = dict(probabilities)
        self.strengths = dict(strengths or {})
        self.seed = seed
        for name, p in self.probabilities.items():
            check_option("augmentation", name, p, 0, 1, TILE_AUGMENTATIONS)
        for name, strength in self.strengths.items():
            check_option("augmentation strength", name, strength, 0, 10, TILE_AUGMENTATIONS)
        if rgb is None and self.probabilities.get("colour-jitter", 0) > 0:
            raise InputError("augmentation colour-jitter: the bands hold no red, green and blue; choose band-jitter")

    def __call__(
        self, image: np.ndarray, target: np.ndarray, valid: np.ndarray, *, epoch: int, index: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """image (C,H,W) float32, standardised (0 is a band's mean) and 0 where not valid; target (H,W); valid (H,W).

        Returns the same shapes and types, target and image 0 where not valid; the inputs are not written to. Turns
        are those of the picture; what a warp brings in from outside is not valid; photometric ones leave no data at 0.
        """
        fired = self.fired(epoch, index)
        for name, draws in fired.items():
            if name in TURNS:
                state = draws.bit_generator.state
                planes = []
                for plane in (image, target, valid):
                    draws.bit_generator.state = state  # the same turn for all three
                    planes.append(TURNS[name](plane, draws))
                image, target, valid = planes
        warps = {name: draws for name, draws in fired.items() if name in WARPS}
        if warps:
            image, target, valid = resample(image, target, valid, self.coordinates(valid.shape, warps))
        for name, draws in fired.items():
            if name in PHOTOMETRIC and valid.any():
                image = np.where(valid, self.repaint(name, image, valid, draws), np.float32(0))
        return tuple(np.ascontiguousarray(plane) for plane in (image, target, valid))

    def repaint(self, name: str, image: np.ndarray, valid: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """The image after one photometric transform of the channels that it may change."""
        strength = self.strengths.get(name, 1.0)
        if name == "colour-jitter":
            mean, std = self.scale
            raw = PHOTOMETRIC[name](image[self.rgb] * std + mean, valid, draws, strength)
            return replaced(image, self.rgb, (raw - mean) / std)
        if self.channels is None:
            return PHOTOMETRIC[name](image, valid, draws, strength)
        return replaced(image, self.channels, PHOTOMETRIC[name](image[self.channels], valid, draws, strength))

    def fired(self, epoch: int, index: int) -> dict[str, np.random.Generator]:
        """The transforms that a sample gets, with what each has left to draw; independent of what else is on."""
        chosen = {}
        for position, name in enumerate(TILE_AUGMENTATIONS, FIRST_POSITION):
            p = self.probabilities.get(name, 0)
            if p > 0 and self.strengths.get(name, 1.0) > 0:
                draws = generator(self.seed, epoch, index, position)
                if draws.random() < p:
                    chosen[name] = draws
        return chosen

    def coordinates(self, size: tuple[int, int], warps: Mapping[str, np.random.Generator]) -> np.ndarray:
        """(H,W,3): column and row of the source times weight, and weight, which is 0 outside of the tile."""
        rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
        coordinates = np.stack([columns, rows, np.ones_like(rows)], -1)
        for name, draws in warps.items():
            coordinates = WARPS[name](coordinates, draws, self.strengths.get(name, 1.0))
        return coordinates


def replaced(image: np.ndarray, channels: Sequence[int], values: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[channels] = values
    return image


def resample(
    image: np.ndarray, target: np.ndarray, valid: np.ndarray, coordinates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """image linearly from its valid pixels alone, target and valid from the nearest pixel; 0 where not valid."""
    weight = coordinates[..., 2]
    columns, rows = (coordinates[..., axis] / np.maximum(weight, 1e-6) for axis in (0, 1))
    near_column, near_row = np.rint(columns).astype(int), np.rint(rows).astype(int)
    height, width = valid.shape
    inside = (weight > 0.5) & (near_row >= 0) & (near_row < height) & (near_column >= 0) & (near_column < width)
    near_row, near_column = near_row.clip(0, height - 1), near_column.clip(0, width - 1)
    moved_valid = inside & valid[near_row, near_column]
    known = valid.astype(np.float32)
    planes = [np.where(valid, band, np.float32(0)) for band in image]
    share = cv2.remap(known, columns, rows, cv2.INTER_LINEAR)
    share = np.where(moved_valid, share, 1).clip(0.1)  # the nearest pixel is valid and holds a quarter or more
    moved = np.stack([cv2.remap(plane, columns, rows, cv2.INTER_LINEAR) / share for plane in planes])
    moved = np.where(moved_valid, moved, np.float32(0))
    return moved, np.where(moved_valid, target[near_row, near_column], 0).astype(target.dtype), moved_valid
