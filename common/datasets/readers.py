"""Photos from disk: decoded whole or refused, cut into halves, the orange date stamp painted over."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from common.datasets.limits import check_file, within
from common.errors import InputError

PHOTO_SIZE = (1000, 2000)
JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
JPEG_SCAN = b"\xff\xda"
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND"
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that carry the size of a JPEG
ALONE = {0x01, *range(0xD0, 0xD8)}  # markers that no segment follows; libjpeg steps over them as well


def read_photo(path: str | Path, size: tuple[int, int] | None = PHOTO_SIZE) -> np.ndarray:
    """Photo as uint8 RGB (H, W, 3). `size` (H, W) is required of it; None takes any.

    InputError, with the file and the remedy, where the file is missing, empty, cut short, no JPEG or PNG, of another
    size, or beyond LIMITS.
    """
    data = read_bytes(path)
    if data[:2] == JPEG_START and not is_whole_jpeg(data):
        raise InputError(f"{path}: truncated JPEG ({len(data)} bytes, no end marker); copy or download it again")
    if data.startswith(PNG_START) and PNG_END not in data[-64:]:
        raise InputError(f"{path}: truncated PNG ({len(data)} bytes, no end chunk); copy or download it again")
    height, width = declared_size(data)
    within(path, "photo", height * width)
    within(path, "scans", data.count(JPEG_SCAN, scan_start(data)) if data[:2] == JPEG_START else 0)
    image = decode(data) if height * width else None
    if image is None:
        raise InputError(f"{path}: cannot be decoded as a picture ({len(data)} bytes); copy or download it again")
    if size is not None and image.shape[:2] != tuple(size):
        found, wanted = f"{image.shape[1]}x{image.shape[0]}", f"{size[1]}x{size[0]}"
        raise InputError(f"{path}: picture of {found} pixels, wanted {wanted} (width x height); use the original photo")
    return image


def read_bytes(path: str | Path) -> bytes:
    try:
        within(path, "photo bytes", check_file(path))
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: photo is missing; check --data and the path column of the table") from error
    except OSError as error:
        raise InputError(
            f"{path}: photo cannot be read ({error.strerror or error}); check the file and its rights"
        ) from error
    if not data:
        raise InputError(f"{path}: photo is empty (0 bytes); copy or download it again")
    return data


def decode(data: bytes) -> np.ndarray | None:
    """uint8 RGB (H, W, 3), or None where OpenCV finds no picture or refuses it."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def is_whole_jpeg(data: bytes) -> bool:
    """Whether the end marker follows the first scan.

    OpenCV 4 fills what a cut file lacks with grey and says nothing. The marker cannot occur inside compressed data
    (0xff is escaped there), but it can inside a thumbnail of the header, so the header is walked over first.
    """
    start = scan_start(data)
    return start is not None and data.rfind(JPEG_END, start) >= 0


def declared_size(data: bytes) -> tuple[int, int]:
    """(H, W) that the header of a PNG or of a whole JPEG declares, known before a decoder takes memory; (0, 0) of
    anything else."""
    if data.startswith(PNG_START):
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data[:2] == JPEG_START:
        for at, marker in segments(data):
            if marker in FRAMES:
                return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
    return 0, 0


def scan_start(data: bytes) -> int | None:
    """Offset of the first start-of-scan marker of a JPEG; None where the header ends early."""
    return next((at for at, marker in segments(data) if marker == 0xDA), None)


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(offset, marker) of the segments of a JPEG's header, up to the first start of scan or what is no marker."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in ALONE:
            at += 2
        elif marker == 0:
            return
        else:
            yield at, marker
            if marker == 0xDA:
                return
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def split_halves(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left and right half of a photo (H, W, ...): columns up to W // 2, and from there on. Views, no copies."""
    middle = image.shape[1] // 2
    return image[:, :middle], image[:, middle:]


# Orange of a camera's date stamp in OpenCV's HSV (hue 0..179): seeds must be vivid, what touches them may be paler.
STAMP_SEED = ((5, 170, 170), (25, 255, 255))
STAMP_EDGE = ((3, 90, 110), (30, 255, 255))
GLYPH_HEIGHT = (12, 70)
GLYPHS = 5


def find_stamp(image: np.ndarray) -> np.ndarray:
    """bool (H, W): the glyphs of an orange date stamp in a uint8 RGB photo, all False where there is none.

    A stamp is a line of at least GLYPHS vivid orange marks of like height, side by side in the outer fifth (top or
    bottom) of the photo. Dry grass has the colour, but not the line.
    """
    height, width = image.shape[:2]
    found = np.zeros((height, width), bool)
    if height < 5:
        return found
    for top, bottom in ((0, height // 5), (height - height // 5, height)):
        hsv = cv2.cvtColor(image[top:bottom], cv2.COLOR_RGB2HSV)
        line = stamp_line(cv2.inRange(hsv, *STAMP_SEED))
        if line is not None:
            edge = cv2.inRange(hsv, *STAMP_EDGE) & cv2.dilate(line, np.ones((9, 9), np.uint8))
            found[top:bottom] |= cv2.dilate(edge | line, np.ones((5, 5), np.uint8)) > 0
    return found


def stamp_line(seeds: np.ndarray) -> np.ndarray | None:
    """uint8 mask: what `seeds` holds along the longest line of glyph-like marks; None where none is long enough."""
    joined = cv2.morphologyEx(seeds, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, _, stats, centres = cv2.connectedComponentsWithStats(joined, connectivity=8)
    tall = (stats[:, cv2.CC_STAT_HEIGHT] >= GLYPH_HEIGHT[0]) & (stats[:, cv2.CC_STAT_HEIGHT] <= GLYPH_HEIGHT[1])
    narrow = stats[:, cv2.CC_STAT_WIDTH] <= 1.5 * stats[:, cv2.CC_STAT_HEIGHT]
    glyphs = np.flatnonzero(tall & narrow & (np.arange(count) > 0))
    best = np.array([], int)
    for glyph in glyphs:
        h = stats[glyph, cv2.CC_STAT_HEIGHT]
        like = glyphs[
            (np.abs(stats[glyphs, cv2.CC_STAT_HEIGHT] - h) <= 0.2 * h)
            & (np.abs(centres[glyphs, 1] - centres[glyph, 1]) <= 0.2 * h)
        ]
        line = run_of_neighbours(like[np.argsort(centres[like, 0])], centres, reach=2.5 * h)
        best = line if len(line) > len(best) else best
    if len(best) < GLYPHS:
        return None
    # Slashes, ones and glyphs that run into each other differ in shape: everything as vivid in the line's box counts.
    h = int(np.median(stats[best, cv2.CC_STAT_HEIGHT]))
    top, bottom = centres[best, 1].min() - 0.8 * h, centres[best, 1].max() + 0.8 * h
    start, end = centres[best, 0].min() - 5 * h, centres[best, 0].max() + 5 * h
    line = np.zeros_like(seeds)
    box = slice(max(int(top), 0), int(bottom) + 1), slice(max(int(start), 0), int(end) + 1)
    line[box] = seeds[box]
    return line


def run_of_neighbours(ordered: np.ndarray, centres: np.ndarray, reach: float) -> np.ndarray:
    """Longest run of components (ordered by column) whose centres are no further apart than `reach`."""
    breaks = np.flatnonzero(np.diff(centres[ordered, 0]) > reach) + 1
    return max(np.split(ordered, breaks), key=len)


def inpaint_stamp(image: np.ndarray) -> np.ndarray:
    """The photo (uint8 RGB) with its date stamp painted over from the surroundings; itself where there is none."""
    mask = find_stamp(image)
    if not mask.any():
        return image
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    margin = 8
    area = (
        slice(max(rows[0] - margin, 0), rows[-1] + 1 + margin),
        slice(max(columns[0] - margin, 0), columns[-1] + 1 + margin),
    )
    painted = image.copy()
    painted[area] = cv2.inpaint(np.ascontiguousarray(image[area]), mask[area].astype(np.uint8), 3, cv2.INPAINT_TELEA)
    return painted
