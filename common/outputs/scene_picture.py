"""A picture of a scene to look at: false colour, made smaller by means, with the outlines of what was found."""

import math
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import shapely
from shapely.affinity import affine_transform

from common.files import atomic_write
from common.outputs.tile_pictures import false_colour, rgb

MOST = 2048  # pixels of the longer side
PIECE = (512, 8192)  # rows and columns of the scene that are read at a time, or one pixel of the picture
LINE = "#e6007e"  # a hue that no ground has
LEAST = 8  # pixels: what is smaller gets a ring, else it would not be seen


def draw_scene(scene, shapes: Iterable, path: str | Path, *, most: int = MOST) -> Path:
    """Picture (.jpg or .png) of an open Scene with shapes (shapely, in its CRS) drawn over it; returns the path."""
    picture, factor = overview(scene, most)
    a, b, c, d, e, f = (value / factor for value in tuple(~scene.transform)[:6])
    for shape in shapes:
        draw_outline(picture, affine_transform(shape, [a, b, d, e, c, f]))
    done, content = cv2.imencode(Path(path).suffix, picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not done:
        raise ValueError(f"{path}: OpenCV cannot write such a picture")
    return atomic_write(path, content.tobytes())


def overview(scene, most: int) -> tuple[np.ndarray, int]:
    """(uint8 RGB (h,w,3), how many pixels of the scene each of its pixels is wide), read piece by piece."""
    factor = math.ceil(max(scene.height, scene.width) / most)
    size = [math.ceil(side / factor) for side in (scene.height, scene.width)]
    steps = [max(1, side // factor) for side in PIECE]
    tile = np.zeros((len(scene.bands), *size), np.float32)
    for y in range(0, size[0], steps[0]):
        for x in range(0, size[1], steps[1]):
            part = tile[:, y : y + steps[0], x : x + steps[1]]
            rows, columns = part.shape[1:]
            part[:] = scene.read(y * factor, x * factor, rows * factor, columns * factor, size=(rows, columns))
    return false_colour(tile, scene.bands), factor


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
