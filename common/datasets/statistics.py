"""Plain statistics of a photo, in two sets: colour and texture.

They serve the ridge baseline, adversarial validation and scikit-learn heads without pretrained weights. Photos are
first reduced to WIDTH pixels, so that the figures do not depend on the size of the file.
"""

import cv2
import numpy as np
from tqdm import tqdm

WIDTH = 1000
PERCENTILES = (5, 25, 50, 75, 95)
CHANNELS = ("red", "green", "blue", "hue", "saturation", "value", "lightness", "a", "b", "excess_green", "excess_red")
MOMENTS = ("mean", "sd", *(f"p{q}" for q in PERCENTILES))
HUE_BINS = 12
SCALES = (1, 2, 4)
OFFSETS = ((0, 1), (1, 0), (0, 3), (3, 0))
LBP_BINS = 10

COLOUR_NAMES = (
    *(f"{channel}_{moment}" for channel in CHANNELS for moment in MOMENTS),
    *(f"hue_share_{bin}" for bin in range(HUE_BINS)),
    "green_share",
    "straw_share",
    "dark_share",
)
TEXTURE_NAMES = tuple(
    f"scale{scale}_{name}"
    for scale in SCALES
    for name in (
        "contrast",
        "gradient_mean",
        "gradient_sd",
        "laplacian",
        "coherence",
        "orientation_entropy",
        *(f"correlation_{dy}_{dx}" for dy, dx in OFFSETS),
        *(f"lbp_{bin}" for bin in range(LBP_BINS)),
        "green_contrast",
        "green_correlation",
    )
)


def reduce_photo(image: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """uint8 (H, W, 3), W reduced to `width` by area averaging; a smaller photo is returned as it is."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"a photo is uint8 (H, W, 3), this one is {image.dtype} {image.shape}")
    if image.shape[1] <= width:
        return image
    height = max(8, round(image.shape[0] * width / image.shape[1]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def excess(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Excess green 2g-r-b and excess red 1.4r-g of the chromatic coordinates (Woebbecke 1995, Meyer 1998), float32."""
    red, green, blue = (image[..., k].astype(np.float32) for k in range(3))
    total = np.maximum(red + green + blue, 1.0)
    return (2 * green - red - blue) / total, (1.4 * red - green) / total


def moments(values: np.ndarray) -> np.ndarray:
    """Mean, standard deviation and the PERCENTILES of an array, float32 (7,)."""
    mean, sd = cv2.meanStdDev(values)
    sample = np.percentile(values, PERCENTILES)
    return np.concatenate([mean.ravel(), sd.ravel(), sample]).astype(np.float32)


def colour_statistics(image: np.ndarray) -> np.ndarray:
    """Statistics of the colours of a photo, uint8 (H, W, 3) RGB -> float32 (len(COLOUR_NAMES),).

    Moments and percentiles of RGB, HSV (hue 0 to 179), Lab and the excess indices, the histogram of hue weighted by
    saturation, and the shares of green, straw-coloured and dark pixels.
    """
    small = reduce_photo(image, WIDTH // 2)
    hsv, lab = cv2.cvtColor(small, cv2.COLOR_RGB2HSV), cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    green, red = excess(small)
    planes = [*cv2.split(small), *cv2.split(hsv), *cv2.split(lab), green, red]
    hue, saturation, value = (hsv[..., k].astype(np.float32) for k in range(3))
    weight = saturation + 1e-3
    bins = np.minimum(hue * HUE_BINS / 180, HUE_BINS - 1).astype(int)
    shares = np.bincount(bins.ravel(), weight.ravel(), HUE_BINS) / weight.sum()
    straw = (hue > 10) & (hue < 30) & (saturation > 40) & (value > 90)
    last = [(green > 0.1).mean(), straw.mean(), (value < 50).mean()]
    return np.concatenate([*(moments(plane) for plane in planes), shares, last]).astype(np.float32)


def correlation(plane: np.ndarray, dy: int, dx: int) -> float:
    """Correlation of a plane with itself moved by (dy, dx) pixels: the GLCM's correlation without the binning."""
    here, there = plane[dy:, dx:], plane[: plane.shape[0] - dy, : plane.shape[1] - dx]
    a, b = here - here.mean(), there - there.mean()
    return float((a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean() + 1e-12))


def local_patterns(plane: np.ndarray) -> np.ndarray:
    """Histogram of uniform, rotation-invariant local binary patterns of the 8 neighbours (Ojala 2002), (10,).

    Bins 0 to 8: patterns with at most two changes around the circle and so many neighbours at or above the centre;
    bin 9: all others.
    """
    height, width = plane.shape
    ring = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    centre = plane[1:-1, 1:-1]
    above = [(plane[y : y + height - 2, x : x + width - 2] >= centre).astype(np.uint8) for y, x in ring]
    count = sum(above[1:], above[0].copy())
    changes = sum((above[k] ^ above[k - 1] for k in range(1, 8)), above[0] ^ above[7])
    code = np.where(changes <= 2, count, LBP_BINS - 1)
    return np.bincount(code.ravel(), minlength=LBP_BINS) / code.size


def magnitude(gx: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """Length of the gradient of each pixel. That of OpenCV differs in its last digit with the address of the result."""
    return np.sqrt(gx * gx + gy * gy)


def orientation(gx: np.ndarray, gy: np.ndarray) -> tuple[float, float]:
    """Coherence of the structure tensor (mean over pixels, 0 to 1) and entropy of the gradient directions (nats)."""
    size = (9, 9)
    xx, yy, xy = (cv2.blur(product, size) for product in (gx * gx, gy * gy, gx * gy))
    coherence = np.sqrt((xx - yy) ** 2 + 4 * xy**2) / (xx + yy + 1e-6)
    angle = cv2.phase(gx, gy) % np.float32(np.pi)
    bins = np.minimum(angle * 8 / np.pi, 7).astype(int)
    share = np.bincount(bins.ravel(), magnitude(gx, gy).ravel(), 8)
    share = share / max(share.sum(), 1e-6)
    return float(coherence.mean()), float(-(share * np.log(share + 1e-12)).sum())


def texture_at(image: np.ndarray) -> list[float]:
    """Texture statistics of a photo at one scale; gradients are relative to the standard deviation of the grey."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    spread = max(float(grey.std()), 1.0)
    contrast, grey = spread / max(float(grey.mean()), 1.0), grey / spread
    gx, gy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    size = magnitude(gx, gy)
    laplacian = float(np.abs(cv2.Laplacian(grey, cv2.CV_32F)).mean())
    green = excess(image)[0]
    return [
        contrast,
        float(size.mean()),
        float(size.std()),
        laplacian,
        *orientation(gx, gy),
        *(correlation(grey, dy, dx) for dy, dx in OFFSETS),
        *local_patterns(grey),
        float(np.abs(cv2.Laplacian(green, cv2.CV_32F)).mean()),
        correlation(green, 0, 3),
    ]


def texture_statistics(image: np.ndarray) -> np.ndarray:
    """Texture of a photo at three scales, uint8 (H, W, 3) RGB -> float32 (len(TEXTURE_NAMES),).

    Per scale: contrast, gradient energy, Laplacian, coherence and entropy of the directions, autocorrelation at short
    distances, local binary patterns of the grey, contrast and autocorrelation of excess green. All but the contrast
    are free of a gain or an offset of the exposure.
    """
    small = reduce_photo(image)
    figures = [texture_at(reduce_photo(small, max(8, small.shape[1] // scale))) for scale in SCALES]
    return np.concatenate(figures).astype(np.float32)


def all_statistics(image: np.ndarray) -> np.ndarray:
    """Colour then texture statistics, float32 (len(COLOUR_NAMES) + len(TEXTURE_NAMES),)."""
    return np.concatenate([colour_statistics(image), texture_statistics(image)])


STATISTICS = {
    "colour": (colour_statistics, COLOUR_NAMES),
    "texture": (texture_statistics, TEXTURE_NAMES),
    "colour+texture": (all_statistics, COLOUR_NAMES + TEXTURE_NAMES),
}


def statistics_table(paths, kind: str, read) -> tuple[np.ndarray, tuple[str, ...]]:
    """Statistics of many photos: ((n, D) float32, D column names).

    `kind` is a key of STATISTICS, `read(path)` gives uint8 (H, W, 3) RGB; its errors are passed on.
    """
    function, names = STATISTICS[kind]
    table = np.empty((len(paths), len(names)), np.float32)
    for k, path in enumerate(tqdm(paths, desc=f"{kind} statistics", leave=False, mininterval=2)):
        table[k] = function(read(path))
    return table, names
