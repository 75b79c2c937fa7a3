"""Drawing of the biomass demo photos: soil, straw, clover leaves and green blades seen from above by two eyes.

Every stroke carries its class in a fourth channel, so that the cover of each class is counted in the drawing itself.
Colours shift from group to group and mislead (soil like straw, clover like grass, white balance, exposure, shade);
shapes do not: blades are long, curved and have a pale midrib, straw is short and straight, clover has three round
leaflets with a pale V, soil is grainy.
"""

from dataclasses import dataclass

import cv2
import numpy as np

EYE = 1000
CLASSES = ("green", "dead", "clover")
SOIL, GREEN, DEAD, CLOVER = range(4)
LEVELS = 14
MARGIN = 150
LENGTHS = {"green": (220, 460), "dead": (80, 200)}
WIDTHS = {"green": (14, 24), "dead": (9, 15)}
LEAFLET = (26, 40)


@dataclass(frozen=True)
class Look:
    """How the photos of one group look: colours of the four materials as RGB 0 to 255, light and camera."""

    green: tuple
    dead: tuple
    clover: tuple
    soil: tuple
    gains: tuple
    exposure: float
    gamma: float
    shade: float
    grain: float
    disparity: float
    stamp: str


def colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB 0 to 255 as float of a hue in degrees, saturation and value 0 to 1."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    return 255 * value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))


def draw_look(rng: np.random.Generator, stamp: str) -> Look:
    """The look of one group, drawn at random; the ranges make colours of one group mean something else in another."""
    hue, saturation, value = rng.uniform(80, 112), rng.uniform(0.5, 0.75), rng.uniform(0.55, 0.8)
    straw = colour(rng.uniform(36, 48), rng.uniform(0.3, 0.5), rng.uniform(0.75, 0.9))
    soil = colour(rng.uniform(18, 48), rng.uniform(0.25, 0.5), rng.uniform(0.22, 0.4))
    return Look(
        green=tuple(colour(hue, saturation, value)),
        clover=tuple(colour(hue + rng.uniform(6, 22), saturation, value * rng.uniform(0.95, 1.15))),
        dead=tuple(straw),
        soil=tuple(soil),
        gains=tuple(np.exp(rng.normal(0, [0.24, 0.08, 0.24]))),
        exposure=float(np.exp(rng.uniform(-0.9, 0.2))),
        gamma=float(np.exp(rng.uniform(-0.15, 0.15))),
        shade=float(rng.uniform(0.1, 0.35)),
        grain=float(rng.uniform(2, 9)),
        disparity=float(rng.uniform(30, 90)),
        stamp=stamp,
    )


def smooth_noise(rng: np.random.Generator, size: int, step: int) -> np.ndarray:
    """Noise of mean 0 and standard deviation about 1 whose blobs are `step` pixels wide, float32 (size, size)."""
    few = rng.standard_normal((size // step + 2, size // step + 2), dtype=np.float32)
    return cv2.resize(few, (size, size), interpolation=cv2.INTER_CUBIC)


def strokes(rng: np.random.Generator, count: int, length: tuple, bend: float) -> tuple[np.ndarray, np.ndarray]:
    """Curved centre lines in pixels, float (count, 5, 2), and their heights above the ground, (count, 5), 0 to 1."""
    start = rng.uniform(-MARGIN, EYE + MARGIN, (count, 1, 2))
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) + rng.normal(0, bend, (count, 1)) * np.linspace(0, 1, 5)
    step = rng.uniform(*length, (count, 1)) / 4
    legs = step[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    legs[:, 0] = 0
    rise = np.sin(np.linspace(0.1, 2.4, 5)) * rng.uniform(0.3, 1, (count, 1))
    return start + legs.cumsum(1), rise


def leaves(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clover: centres of three leaflets (count, 3, 2), their outward directions (count, 3, 2), heights (count, 1)."""
    turn = rng.uniform(0, 2 * np.pi, (count, 1)) + np.arange(3) * 2 * np.pi / 3 + rng.normal(0, 0.15, (count, 3))
    out = np.stack([np.cos(turn), np.sin(turn)], -1)
    centre = rng.uniform(-MARGIN / 2, EYE + MARGIN / 2, (count, 1, 2))
    return centre, out, rng.uniform(0.2, 0.9, (count, 1))


def shift(points: np.ndarray, height: np.ndarray, eye: int, disparity: float) -> np.ndarray:
    """Points as seen by an eye (-1 left, +1 right): what stands higher moves further. int32, same shape."""
    moved = points.copy()
    moved[..., 0] -= eye * disparity * (0.35 + 0.3 * height)
    return np.round(moved).astype(np.int32)


def paint(canvas: np.ndarray, lines: np.ndarray, rgb, label: int, width: int) -> None:
    """Draw open lines, int32 (n, points, 2), of one colour into the canvas (H, W, 4), its class into channel 3."""
    if len(lines):
        cv2.polylines(canvas, list(lines), False, (*np.clip(rgb, 0, 255).tolist(), label), width, cv2.LINE_8)


def paint_blades(canvas, lines, rgb, label: int, width: int, level: float) -> None:
    """Blades that taper to the tip; green ones with a pale midrib. `level` 0 (ground, dark) to 1 (top, light)."""
    light = np.asarray(rgb) * (0.5 + 0.6 * level)
    paint(canvas, lines[:, :4], light * 0.85, label, width)
    paint(canvas, lines[:, 3:], light, label, max(2, width // 2))
    if label == GREEN:
        paint(canvas, lines[:, :4], light * 1.2 + 18, label, max(1, width // 5))
    else:
        paint(canvas, lines[:, 1:], light * 1.1, label, max(1, width // 3))


def paint_leaves(canvas, centre, out, size: int, rgb, level: float) -> None:
    """Trifoliate leaves, centre int32 (n, 1, 2), out (n, 3, 2): round leaflets, dark rims, a pale V on each."""
    light = np.asarray(rgb) * (0.6 + 0.5 * level)
    side = np.stack([-out[..., 1], out[..., 0]], -1)
    ends = [centre + size * (0.85 * out + k * side) for k in (-0.28, 0.28)]
    body = np.round(np.stack(ends, 2)).astype(np.int32).reshape(-1, 2, 2)
    paint(canvas, body, light * 0.62, CLOVER, round(size * 1.25))
    paint(canvas, body, light, CLOVER, round(size * 1.02))
    mark = [centre + size * (a * out + b * side) for a, b in ((0.7, -0.5), (1.05, 0.0), (0.7, 0.5))]
    marks = np.round(np.stack(mark, 2)).astype(np.int32).reshape(-1, 3, 2)
    paint(canvas, marks, light * 0.5 + 120, CLOVER, max(2, size // 7))


def plan_scene(rng: np.random.Generator, loads: dict) -> list:
    """What lies where, from the ground up: (class name, level 0 to 1, width or size, tint, geometry) per batch.

    `loads` is the optical depth of each class: the summed area of its parts over the area of the ground.
    """
    area = (EYE + 2 * MARGIN) ** 2
    batches = []
    for level in range(LEVELS):
        for name in ("dead", "clover", "green"):
            if loads[name] <= 0:
                continue
            share = loads[name] / LEVELS
            if name == "clover":
                size = int(rng.integers(*LEAFLET))
                count = rng.poisson(share * (EYE + MARGIN) ** 2 / (5.2 * size**2))
                geometry = leaves(rng, count)
            else:
                width = int(rng.integers(*WIDTHS[name]))
                count = rng.poisson(share * area / (0.85 * width * np.mean(LENGTHS[name])))
                geometry = strokes(rng, count, LENGTHS[name], 0.9 if name == "green" else 0.15)
                size = width
            batches.append((name, (level + 0.5) / LEVELS, size, rng.normal(1, 0.07, 3), geometry))
    return batches


def draw_soil(rng: np.random.Generator, look: Look) -> np.ndarray:
    """Grainy ground wider than the eyes, uint8 (EYE, EYE + 2 * MARGIN, 4), label SOIL."""
    size = EYE + 2 * MARGIN
    grain = 0.06 * smooth_noise(rng, size, 60) + 0.07 * smooth_noise(rng, size, 12) + 0.1 * smooth_noise(rng, size, 4)
    ground = np.clip((0.85 + grain[:EYE, :, None]) * np.asarray(look.soil, np.float32), 0, 255).astype(np.uint8)
    return np.dstack([ground, np.full((EYE, size), SOIL, np.uint8)])


def draw_eye(batches: list, soil: np.ndarray, look: Look, eye: int) -> np.ndarray:
    """The scene as one eye (-1 or +1) sees it: uint8 (EYE, EYE, 4), RGB and class."""
    left = round(MARGIN + eye * 0.35 * look.disparity)
    canvas = np.ascontiguousarray(soil[:, left : left + EYE])
    for name, level, size, tint, geometry in batches:
        rgb = np.asarray(getattr(look, name)) * tint
        if name == "clover":
            centre, out, height = geometry
            paint_leaves(canvas, shift(centre, height, eye, look.disparity), out, size, rgb, level)
        else:
            label = GREEN if name == "green" else DEAD
            paint_blades(canvas, shift(*geometry, eye, look.disparity), rgb, label, size, level)
    return canvas


def develop(rng: np.random.Generator, rgb: np.ndarray, light: np.ndarray, look: Look, exposure: float) -> np.ndarray:
    """What the camera makes of the drawing: shade, white balance, exposure, gamma and grain; uint8 (H, W, 3)."""
    soft = cv2.GaussianBlur(rgb, (0, 0), 1.0).astype(np.float32)
    soft *= light[..., None] * (np.asarray(look.gains, np.float32) * np.float32(exposure / 255))
    cv2.pow(soft, look.gamma, soft)
    noise = rng.standard_normal((EYE // 2, EYE // 2), dtype=np.float32)
    soft = soft * 255 + look.grain * cv2.resize(noise, (EYE, EYE))[..., None]
    return np.clip(soft, 0, 255).astype(np.uint8)


def draw_photo(rng: np.random.Generator, loads: dict, look: Look) -> tuple[np.ndarray, dict]:
    """A photo of two overlapping views, uint8 (EYE, 2 * EYE, 3) RGB, and the true covers {class: share of pixels}.

    `loads`: optical depth per class (0 for absent). The covers are counted over both views before the camera.
    """
    batches, soil = plan_scene(rng, loads), draw_soil(rng, look)
    shade = np.tanh(1.5 * smooth_noise(rng, EYE, EYE // 3) + rng.normal(0, 0.5))
    light = (1 - look.shade * (0.5 + 0.5 * shade)).astype(np.float32)
    exposure = look.exposure * float(np.exp(rng.normal(0, 0.08)))
    views, counts = [], np.zeros(4)
    for eye in (-1, 1):
        view = draw_eye(batches, soil, look, eye)
        counts += np.bincount(view[..., 3].ravel(), minlength=4)
        moved = np.roll(light, -eye * round(0.35 * look.disparity), 1)
        views.append(develop(rng, np.ascontiguousarray(view[..., :3]), moved, look, exposure))
    photo = np.hstack(views)
    if look.stamp:
        cv2.putText(photo, look.stamp, (1560, 950), cv2.FONT_HERSHEY_DUPLEX, 2, (255, 140, 20), 5, cv2.LINE_AA)
    return photo, {name: float(counts[k + 1] / counts.sum()) for k, name in enumerate(CLASSES)}
