"""A picture of a scene to look at: false colour, made smaller by means, with the outlines of what was found or beside
its classes."""

import math
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import shapely
from shapely.affinity import affine_transform

from common.files import atomic_write
from common.outputs.tile_pictures import NODATA, class_colours, combinations_of, false_colour, rgb

MOST = 2048  # pixels of the longer side
PIECE = (512, 8192)  # rows and columns of the scene that are read at a time, or one pixel of the picture
LINE = "#e6007e"  # a hue that no ground has
GAP = 12  # pixels between two pictures
LEAST = 8  # pixels: what is smaller gets a ring, else it would not be seen


def draw_scene(scene, shapes: Iterable, path: str | Path, *, most: int = MOST) -> Path:
    """Picture (.jpg or .png) of an open Scene with shapes (shapely, in its CRS) drawn over it; returns the path."""
    picture, factor = overview(scene, most)
    a, b, c, d, e, f = (value / factor for value in tuple(~scene.transform)[:6])
    for shape in shapes:
        draw_outline(picture, affine_transform(shape, [a, b, d, e, c, f]))
    return write_picture(path, picture)


def write_picture(path: str | Path, picture: np.ndarray) -> Path:
    """A picture (.jpg or .png) of uint8 RGB (h,w,3), atomically; returns the path."""
    done, content = cv2.imencode(Path(path).suffix, picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not done:
        raise ValueError(f"{path}: OpenCV cannot write such a picture")
    return atomic_write(path, content.tobytes())


def overview(scene, most: int) -> tuple[np.ndarray, int]:
    """(uint8 RGB (h,w,3), how many pixels of the scene each of its pixels is wide), read piece by piece."""
    factor, size = shrinking(scene.height, scene.width, most)
    steps = [max(1, side // factor) for side in PIECE]
    shown = list(next(iter(combinations_of(scene.bands).values())))
    places = [list(scene.bands).index(name) for name in shown]
    tile, valid = np.zeros((len(shown), *size), np.float32), np.zeros(size, bool)
    for y in range(0, size[0], steps[0]):
        for x in range(0, size[1], steps[1]):
            rows, columns = valid[y : y + steps[0], x : x + steps[1]].shape
            part = scene.read(y * factor, x * factor, rows * factor, columns * factor, size=(rows, columns))
            tile[:, y : y + rows, x : x + columns] = part[places]
            valid[y : y + rows, x : x + columns] = (part != 0).any(axis=0)
    return false_colour(tile, shown, shown, valid=valid), factor


def shrinking(height: int, width: int, most: int) -> tuple[int, tuple[int, int]]:
    """(pixels of a scene that one of its picture is wide, (h,w) of the picture)."""
    factor = math.ceil(max(height, width) / most)
    return factor, (math.ceil(height / factor), math.ceil(width / factor))


class ClassPicture:
    """Shares of the classes in each pixel of a picture of a scene, from strips of its class map."""

    def __init__(self, height: int, width: int, outputs, *, most: int = MOST):
        self.outputs, self.width = tuple(outputs), width
        self.factor, size = shrinking(height, width, most)
        self.counts = np.zeros((len(self.outputs), *size), np.int32)

    def add(self, y: int, classes: np.ndarray, valid: np.ndarray) -> None:
        """classes uint8 (h,W) and valid bool (h,W) of the rows from y on."""
        starts = np.arange(0, self.width, self.factor)
        rows = (y + np.arange(len(classes))) // self.factor
        for k, counts in enumerate(self.counts):
            np.add.at(counts, rows, np.add.reduceat((classes == k) & valid, starts, axis=1, dtype=np.int32))

    def picture(self) -> np.ndarray:
        """uint8 RGB (h,w,3): the colours of the classes mixed by their shares."""
        table = np.array([rgb(shade) for shade in class_colours(self.outputs).values()], np.float32)
        total = self.counts.sum(axis=0)[..., None]
        mixed = np.einsum("khw,kc->hwc", self.counts.astype(np.float32), table) / np.maximum(total, 1)
        return np.where(total > 0, np.round(mixed), rgb(NODATA)).astype(np.uint8)


def draw_classes(overview: np.ndarray, classes: ClassPicture, path: str | Path) -> Path:
    """Picture of a scene (uint8 RGB) and its classes, side by side or, of a wide one, one below the other, with the
    names of the classes; returns the path."""
    axis = 0 if overview.shape[1] > 2 * overview.shape[0] else 1
    gap = np.full((GAP, overview.shape[1], 3) if axis == 0 else (overview.shape[0], GAP, 3), 255, np.uint8)
    both = np.concatenate([overview, gap, classes.picture()], axis=axis)
    legend = np.full((2 * GAP, both.shape[1], 3), 255, np.uint8)
    for k, (name, shade) in enumerate(class_colours(classes.outputs).items()):
        x = GAP + k * max(1, both.shape[1] // len(classes.outputs))
        cv2.rectangle(legend, (x, GAP // 2), (x + GAP, GAP + GAP // 2), rgb(shade), cv2.FILLED)
        cv2.rectangle(legend, (x, GAP // 2), (x + GAP, GAP + GAP // 2), (90, 90, 90), 1)
        cv2.putText(legend, name, (x + GAP + 4, GAP + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return write_picture(path, np.concatenate([both, legend]))


def draw_outline(picture: np.ndarray, shape) -> None:
    """Shell and holes of a Polygon or MultiPolygon in pixels of the picture, drawn into it; a ring for a small one."""
    left, top, right, bottom = shapely.bounds(shape)
    colour = rgb(LINE)
    if max(right - left, bottom - top) < LEAST:
        middle = (round((left + right) / 2), round((top + bottom) / 2))
        cv2.circle(picture, middle, LEAST, colour, 1, cv2.LINE_AA)
        return
    for part in shapely.get_parts(shape):
        rings = [shapely.get_exterior_ring(part), *part.interiors]
        corners = [np.round(shapely.get_coordinates(ring) * 8).astype(np.int32)[:, None] for ring in rings]
        cv2.polylines(picture, corners, True, colour, 1, cv2.LINE_AA, shift=3)  # in eighths of a pixel
