"""Changes of the values of a tile: image (C,H,W) float32, inside (H,W) bool (valid), draws, strength -> image.

Images are standardised (0 is a band's mean); colour_jitter is given raw units. What is not valid has no say.
"""

from collections.abc import Callable

import numpy as np

GREY = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]  # luma of red, green, blue (ITU-R BT.601)


def noise(image: np.ndarray, inside: np.ndarray, draws: np.random.Generator, strength: float) -> np.ndarray:
    std = np.float32(draws.uniform(0.02, 0.1) * strength)
    return image + std * draws.standard_normal(image.shape, np.float32)


def gamma(image: np.ndarray, inside: np.ndarray, draws: np.random.Generator, strength: float) -> np.ndarray:
    """A power of each band, between the least and the greatest value that the tile has in it; one power for all."""
    power = np.float32(np.exp(draws.uniform(-0.3, 0.3) * strength))
    low = image.min((1, 2), where=inside, initial=np.inf, keepdims=True)
    spread = image.max((1, 2), where=inside, initial=-np.inf, keepdims=True) - low
    spread = np.where(spread > 0, spread, np.float32(1))
    return low + spread * (((image - low) / spread).clip(0, 1) ** power)


def brightness(image: np.ndarray, inside: np.ndarray, draws: np.random.Generator, strength: float) -> np.ndarray:
    return image + np.float32(draws.uniform(-0.2, 0.2) * strength)


def contrast(image: np.ndarray, inside: np.ndarray, draws: np.random.Generator, strength: float) -> np.ndarray:
    """Distance from the tile's own mean of each band, times one factor for all bands."""
    mean = image.mean((1, 2), where=inside, keepdims=True)
    return mean + (image - mean) * np.float32(np.exp(draws.uniform(-0.2, 0.2) * strength))


def band_jitter(image: np.ndarray, inside: np.ndarray, draws: np.random.Generator, strength: float) -> np.ndarray:
    """Factor and offset of every band by itself: another sensor gain, haze, season or region."""
    factor = np.exp(draws.uniform(-0.15, 0.15, (len(image), 1, 1)) * strength).astype(np.float32)
    return image * factor + (draws.uniform(-0.3, 0.3, (len(image), 1, 1)) * strength).astype(np.float32)


def band_drop(image: np.ndarray, inside: np.ndarray, draws: np.random.Generator, strength: float) -> np.ndarray:
    """Some bands (`strength` of them, at least one kept) become their mean over the training set, which is 0."""
    count = min(max(1, round(strength)), len(image) - 1)
    image = image.copy()
    image[draws.permutation(len(image))[:count]] = 0
    return image


def colour_jitter(image: np.ndarray, inside: np.ndarray, draws: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, contrast and saturation of red, green, blue in raw units, each times 1 +- .2 at most; hue is kept.

    As in torchvision's and albumentations' ColorJitter: towards black, the tile's mean grey, each pixel's own grey.
    """
    limit = min(1.0, 0.2 * strength)
    brightness, contrast, saturation = draws.uniform(1 - limit, 1 + limit, 3).astype(np.float32)
    image = image * brightness
    middle = (GREY * image).sum(0).mean(where=inside)
    image = middle + contrast * (image - middle)
    grey = (GREY * image).sum(0)
    return np.maximum(grey + saturation * (image - grey), 0)


# In the order of application; strength 1 is the default of the ranges above, 0 is off.
PHOTOMETRIC: dict[str, Callable] = {
    "noise": noise,
    "gamma": gamma,
    "brightness": brightness,
    "contrast": contrast,
    "band-jitter": band_jitter,
    "band-drop": band_drop,
    "colour-jitter": colour_jitter,
}
