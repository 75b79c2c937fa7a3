"""A drawn hill country for the landslide demo set: relief with valleys, soil, plants, land cover, and risk classes.

    risk = what slope, wetness, curvature and soil say together as means over a neighbourhood of SCALE pixels
    class = where risk + noise lies among two levels; a part (HELD) of the ground is low whatever its risk

Ground slips where it is steep and has soil that lies deep and wet, in hollows: both are needed at once, and a single
pixel shows each through the roughness of the ground and the noise of the images. Of curvature it takes what lies at
some ten pixels, which topographic position shows.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.special import ndtr

from common.datasets.demo_terrain import blobs, fractal
from common.datasets.terrain import terrain_bands

CELL = 10.0  # metres a pixel
SHARES = (0.8535, 0.0265, 0.12)
VALLEYS = ((200, 220), (95, 100))  # pixels between valleys, metres they are cut in; then those of their tributaries
SCALE = 4.0  # pixels: standard deviation of the neighbourhood that decides
HELD = 0.05  # of the ground is held by what no band shows
NOISE = 0.04  # of the risk's standard deviation
NOISE_STEP, HELD_STEP = 8, 20  # pixels over which noise and what holds the ground wander
HILLS = 4.6  # power of the spectrum of hills
ROUGH = 0.5  # metres: a pixel's own height
GRAIN = 0.35  # of the standard deviation of soil and plants: noise of their bands
BEST_SLOPE = 0.9  # standard deviations above the mean slope where most ground slips: what is steeper holds no soil
FOREST, GRASS, BARE, WATER = COVERS = (10, 20, 30, 40)
FACTORS = ("slope", "wetness", "tpi", "soil")


@dataclass(frozen=True)
class Ground:
    """What instruments see of a country: float32 (H, W) each but cover, uint8. All known everywhere."""

    dem: np.ndarray  # metres
    ndvi: np.ndarray
    soil: np.ndarray  # depth in metres, as an index of an image shows it
    cover: np.ndarray  # a number of COVERS


@dataclass(frozen=True)
class Rule:
    """How risk is read off a country: mean and deviation of each of FACTORS, levels between the classes, noise."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: tuple[float, float]
    noise: float


def spectral(rng: np.random.Generator, shape: tuple[int, int], power: float, longest: float) -> np.ndarray:
    """Noise of a spectrum that falls with frequency**-power, waves up to `longest` pixels, standard deviation 1.

    Spectral synthesis (Saupe 1988, in Peitgen & Saupe, The Science of Fractal Images, section 2.6).
    """
    size = [cv2.getOptimalDFTSize(side + side // 4) for side in shape]  # the whole repeats itself at its edges
    wave = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1]))
    spectrum = np.fft.rfft2(rng.standard_normal(size, dtype=np.float32))
    drawn = np.fft.irfft2(spectrum * (wave**2 + longest**-2.0) ** (-power / 4), size)[: shape[0], : shape[1]]
    return ((drawn - drawn.mean()) / drawn.std()).astype(np.float32)


def draw_dem(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Height in metres, float32 (H, W): fractal hills, valleys and their tributaries cut in as water would."""
    hills = 60 * spectral(rng, shape, HILLS, 250)
    for step, depth in VALLEYS:
        line = fractal(rng, shape, (step, step / 3), (1, 0.25))  # water runs where it crosses 0
        hills += depth * np.minimum(np.sqrt(line**2 + 0.02), 1.6)
    return (700 + hills + ROUGH * rng.standard_normal(shape, dtype=np.float32)).astype(np.float32)


def draw_ground(rng: np.random.Generator, shape: tuple[int, int]) -> Ground:
    dem = draw_dem(rng, shape)
    soil = fractal(rng, shape, (140, 60), (1, 0.6))
    plants = 0.5 * soil + fractal(rng, shape, (40, 12), (0.8, 0.4))
    grain = rng.standard_normal((2, *shape), dtype=np.float32) * GRAIN
    low = cv2.GaussianBlur(dem, (0, 0), 3) < np.quantile(dem, 0.03)
    cover = np.select([low, plants > 0.35, plants > -0.9], [WATER, FOREST, GRASS], BARE).astype(np.uint8)
    return Ground(dem, 0.45 + 0.12 * (plants + grain[0]), 1.5 + 0.4 * (soil + grain[1]), cover)


def around(values: np.ndarray, scale: float = SCALE) -> np.ndarray:
    """Mean over the neighbourhood of each pixel of those values that are known (not NaN), Gaussian weights."""
    known = np.isfinite(values)
    blurred = [cv2.GaussianBlur(part.astype(np.float32), (0, 0), scale) for part in (np.where(known, values, 0), known)]
    return blurred[0] / np.maximum(blurred[1], 1e-6)


def factors_of(dem: np.ndarray, soil: np.ndarray) -> np.ndarray:
    """float32 (4, H, W) in the order of FACTORS: means over the neighbourhood. NaN in dem and soil: not known."""
    bands = terrain_bands(dem, pixel=(CELL, CELL))
    means = [around(bands["slope"]), around(bands["wetness"]), around(bands["tpi"], SCALE / 3), around(soil)]
    return np.stack(means)


def risk_of(factors: np.ndarray, mean, std) -> np.ndarray:
    """Risk, float32 (H, W): as much as the least of what it takes allows, a soft minimum."""
    slope, wetness, position, soil = ((factor - m) / s for factor, m, s in zip(factors, mean, std, strict=True))
    steep = 1 - (slope - BEST_SLOPE) ** 2
    parts = np.stack([steep, 0.7 * soil + 0.5 * wetness - 0.2 * position])
    return -np.log(np.exp(-2 * parts).sum(0)) / 2


def learn_rule(factors: np.ndarray, shares: tuple = SHARES) -> Rule:
    """The rule by which the classes of this country have `shares`, on average over the noise."""
    mean, std = factors.mean((1, 2)).tolist(), factors.std((1, 2)).tolist()
    risk = risk_of(factors, mean, std)
    noise = NOISE * float(risk.std())
    rng = np.random.default_rng(0)
    noisy = risk + noise * rng.standard_normal(risk.shape, dtype=np.float32)
    levels = np.quantile(noisy, [1 - (shares[1] + shares[2]) / (1 - HELD), 1 - shares[2] / (1 - HELD)])
    return Rule(tuple(mean), tuple(std), tuple(levels.tolist()), noise)


def class_probs(risk: np.ndarray, rule: Rule) -> np.ndarray:
    """Probability of each class where the risk is `risk`, float64 (3, ...): the rule that nothing can beat."""
    above = [(1 - HELD) * ndtr((risk - level) / rule.noise) for level in rule.levels]
    return np.stack([1 - above[0], above[0] - above[1], above[1]])


def draw_classes(rng: np.random.Generator, risk: np.ndarray, rule: Rule) -> np.ndarray:
    """uint8 (H, W): 0 low, 1 medium, 2 high."""
    drift = ranked(blobs(rng, risk.shape, NOISE_STEP) + 0.3 * rng.standard_normal(risk.shape, dtype=np.float32))
    held = blobs(rng, risk.shape, HELD_STEP)
    classes = np.digitize(risk + rule.noise * drift, rule.levels).astype(np.uint8)
    classes[held > np.quantile(held, 1 - HELD)] = 0
    return classes


def ranked(values: np.ndarray) -> np.ndarray:
    """The values brought to mean 0 and standard deviation 1, float32."""
    return ((values - values.mean()) / values.std()).astype(np.float32)
