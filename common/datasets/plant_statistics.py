"""Hand-made statistics of a vegetation photo: cover, colour, leaf size, texture energies, local binary patterns.

Wider than `statistics.py`: each set below is a fixed, label-free function of the pixels, so a classical head can be
fitted on a few dozen photos. The sets describe what an agronomist looks at: how much of the ground is green or dead
(cover), the hue of the plants (colour), how large the leaves are (granulometry), how deep the shadows between them
are (depth), and how regular the pattern is (energies, binary patterns).
"""

import cv2
import numpy as np

WORK_HEIGHT = 500
PERCENTILES = (2, 10, 25, 50, 75, 90, 98)
OPENING_RADII = (1, 2, 4, 8, 16, 32)
ENERGY_OCTAVES = 6
ORIENTATIONS = 4
PLANT_STATISTICS_VERSION = 2


def channel_maps(image: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 RGB (H,W,3) -> float32 maps (500 rows): Lab, green and red indices, chroma, hue in radians, ..."""
    size = round(WORK_HEIGHT * image.shape[1] / image.shape[0]), WORK_HEIGHT
    if image.shape[1::-1] != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    scaled = np.ascontiguousarray(image).astype(np.float32) / 255
    lab = cv2.cvtColor(scaled, cv2.COLOR_RGB2LAB)
    hsv = cv2.cvtColor(scaled, cv2.COLOR_RGB2HSV)
    total = scaled.sum(2) + 0.02
    red, green, blue = (scaled[..., k] / total for k in range(3))
    return {
        "light": lab[..., 0] / 100,
        "a": lab[..., 1] / 100,
        "b": lab[..., 2] / 100,
        "exg": 2 * green - red - blue,
        "exr": 1.4 * red - green,
        "chroma": np.hypot(lab[..., 1], lab[..., 2]) / 100,
        "hue": hsv[..., 0] * (np.pi / 180),
        "saturation": hsv[..., 1],
        "value": hsv[..., 2],
    }


def cover_maps(maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Soft ground classes in [0,1], of the size of the maps: green, deep green, yellow, brown, dark, glare, blueish."""

    def above(x, edge, width):
        return 1 / (1 + np.exp(-np.clip((x - edge) / width, -30, 30)))

    light, a, b, exg = maps["light"], maps["a"], maps["b"], maps["exg"]
    green = above(exg, 0.08, 0.03) * above(light, 0.12, 0.04)
    lit = above(light, 0.25, 0.05)
    return {
        "green": green,
        "deep_green": green * above(-light, -0.4, 0.05),
        "lime": green * above(light, 0.6, 0.05),
        "yellow": (1 - green) * above(b, 0.15, 0.03) * lit * above(light, 0.5, 0.05),
        "brown": (1 - green) * above(a, 0.03, 0.02) * lit,
        "grey": (1 - green) * above(-maps["chroma"], -0.1, 0.03) * lit,
        "dark": above(-light, -0.18, 0.04),
        "glare": above(light, 0.85, 0.03),
        "cold": above(-b, -0.08, 0.03) * lit,
    }


def cover_statistics(maps) -> np.ndarray:
    """Share of each ground class: mean, and the spread over a 4 x 8 grid of cells."""
    values = []
    for cover in cover_maps(maps).values():
        cells = cv2.resize(cover, (8, 4), interpolation=cv2.INTER_AREA)
        values += [cover.mean(), cells.std(), cells.min(), cells.max()]
    return np.array(values, np.float32)


def colour_distribution(maps) -> np.ndarray:
    """Mean, deviation and percentiles of each channel, plus the hue of the plants alone and a hue histogram."""
    values = []
    for name in ("light", "a", "b", "exg", "exr", "chroma", "saturation"):
        x = maps[name][::2, ::2]
        values += [x.mean(), x.std(), *np.percentile(x, PERCENTILES)]
    weight = maps["saturation"] * maps["value"]
    histogram, _ = np.histogram(maps["hue"], bins=18, range=(0, 2 * np.pi), weights=weight)
    values += list(histogram[:9] / (weight.sum() + 1e-6))
    green = cover_maps(maps)["green"]
    for name in ("light", "a", "b", "chroma"):
        mean = (maps[name] * green).sum() / (green.sum() + 1)
        values += [mean, np.sqrt(((maps[name] - mean) ** 2 * green).sum() / (green.sum() + 1))]
    return np.array(values, np.float32)


def granulometry(maps) -> np.ndarray:
    """Share of light, green index and darkness that openings of growing radius remove: sizes of leaves and gaps."""
    values = []
    for x in (maps["light"], np.clip(maps["exg"], 0, None), 1 - maps["light"]):
        small = cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        before = small.mean() + 1e-4
        for radius in OPENING_RADII:
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
            after = cv2.morphologyEx(small, cv2.MORPH_OPEN, kernel).mean()
            values.append((before - after) / before)
    return np.array(values, np.float32)


def band_energies(maps) -> np.ndarray:
    """Log energies of the Laplacian pyramid (6 octaves) of light, a, b and green index; slopes; skewness of light."""
    values = []
    for name in ("light", "a", "b", "exg"):
        current, energies = maps[name], []
        for _ in range(ENERGY_OCTAVES):
            lower = cv2.pyrDown(current)
            band = current - cv2.pyrUp(lower, dstsize=current.shape[::-1])
            energies.append(np.log(band.var() + 1e-7))
            if name == "light":
                deviation = band.std() + 1e-6
                skewness, kurtosis = ((band / deviation) ** 3).mean(), ((band / deviation) ** 4).mean()
                values += [skewness, np.log(max(kurtosis, 1.0))]  # 1 is the least there is; 0 for a flat photo
            current = lower
        values += [*energies, *np.diff(energies), np.log(current.var() + 1e-7)]
    return np.array(values, np.float32)


def orientation_statistics(maps) -> np.ndarray:
    """Coherence of the structure tensor at 4 scales (blades are oriented, clover leaves are not) and gradient size."""
    values, x = [], maps["light"]
    for _ in range(4):
        gx, gy = cv2.Sobel(x, cv2.CV_32F, 1, 0), cv2.Sobel(x, cv2.CV_32F, 0, 1)
        for width in (2.0, 6.0):
            xx, yy, xy = (cv2.GaussianBlur(v, (0, 0), width) for v in (gx * gx, gy * gy, gx * gy))
            coherence = np.sqrt((xx - yy) ** 2 + 4 * xy**2) / (xx + yy + 1e-5)
            values += [coherence.mean(), (coherence * (xx + yy)).sum() / (xx + yy + 1e-5).sum()]
        values.append(np.log(np.hypot(gx, gy).mean() + 1e-5))
        x = cv2.pyrDown(x)
    return np.array(values, np.float32)


def _uniform_table() -> np.ndarray:
    """Map of the 256 codes of 8 neighbours to 10 rotation-invariant uniform patterns (Ojala et al. 2002)."""
    table = np.full(256, 9, np.uint8)
    for code in range(256):
        bits = [(code >> k) & 1 for k in range(8)]
        if sum(bits[k] != bits[k - 1] for k in range(8)) <= 2:
            table[code] = sum(bits)
    return table


UNIFORM = _uniform_table()
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def binary_patterns(maps) -> np.ndarray:
    """Histograms (10 bins) of rotation-invariant uniform local binary patterns of light and green index, 4 scales."""
    values = []
    for name in ("light", "exg"):
        x = maps[name]
        for _ in range(4):
            code = np.zeros(x[1:-1, 1:-1].shape, np.uint8)
            for bit, (dy, dx) in enumerate(NEIGHBOURS):
                shifted = x[1 + dy : x.shape[0] - 1 + dy, 1 + dx : x.shape[1] - 1 + dx]
                code |= (shifted > x[1:-1, 1:-1]).astype(np.uint8) << bit
            values += list(np.bincount(UNIFORM[code].ravel(), minlength=10) / code.size)
            x = cv2.pyrDown(x)
    return np.array(values, np.float32)


def depth_statistics(maps) -> np.ndarray:
    """How deep the canopy looks: shares of shadow at several scales, dark-to-bright contrast over coarse cells."""
    light, values = maps["light"], []
    for size in (1, 5, 17, 51):
        smooth = cv2.blur(light, (size, size)) if size > 1 else light
        low, middle, high = np.percentile(smooth[::2, ::2], (5, 50, 95))
        values += [low / (middle + 0.02), high / (middle + 0.02), (smooth < 0.5 * middle).mean()]
    return np.array(values, np.float32)


def scattering(maps) -> np.ndarray:
    """Log means of second-order oriented wavelet moduli of light (Mallat's scattering, 4 orientations, averaged)."""
    values = []
    x = maps["light"] - maps["light"].mean()
    kernels = [
        cv2.getGaborKernel((11, 11), 2.0, np.pi * k / ORIENTATIONS, 5.0, 1.0, 0, cv2.CV_32F)
        for k in range(ORIENTATIONS)
    ]
    kernels = [kernel - kernel.mean() for kernel in kernels]
    for _ in range(4):
        moduli = [np.abs(cv2.filter2D(x, -1, kernel)) for kernel in kernels]
        values += [np.log(np.mean([m.mean() for m in moduli]) + 1e-5)]
        spread = np.std([m.mean() for m in moduli]) / (np.mean([m.mean() for m in moduli]) + 1e-6)
        values.append(spread)
        for step in (1, 2):
            second = []
            for modulus in moduli:
                lower = modulus
                for _ in range(step):
                    lower = cv2.pyrDown(lower)
                second.append(np.mean([np.abs(cv2.filter2D(lower, -1, k)).mean() for k in kernels]))
            values.append(np.log(np.mean(second) + 1e-5) - values[-1 - step])
        x = cv2.pyrDown(x)
    return np.array(values, np.float32)


PLANT_SETS = {
    "cover": (cover_statistics, 36),
    "distribution": (colour_distribution, 80),
    "granulometry": (granulometry, 18),
    "energies": (band_energies, 60),
    "orientation": (orientation_statistics, 20),
    "patterns": (binary_patterns, 80),
    "depth": (depth_statistics, 12),
    "scattering": (scattering, 16),
}
PLANT_NAMES = tuple(f"{name}_{k}" for name, (_, size) in PLANT_SETS.items() for k in range(size))


def plant_statistics(image: np.ndarray) -> np.ndarray:
    """All sets of one photo (or of a half), uint8 RGB (H, W, 3) -> float32 (322,), named by PLANT_NAMES.

    A photo is brought to 500 rows first, so that leaf sizes compare. .2 s a photo of 2000 x 1000.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"a photo is uint8 (H, W, 3), this one is {image.dtype} {image.shape}")
    maps = channel_maps(image)
    return np.concatenate([function(maps) for function, _ in PLANT_SETS.values()])
