"""Pictures of tiles to look at: false colour from named bands, classes in colours, errors, and sheets of them.

Colours are those that common colour-vision deficiencies leave apart (after Okabe and Ito, "Color universal design",
2008, and Tol's indigo), each with its own lightness; they are the same in light and dark pages, being photographs.
"""

import math
from pathlib import Path

import cv2
import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Patch

from common.errors import InputError
from common.files import atomic_write
from common.outputs.figures import colour, new_figure, picture_bytes

# name -> bands shown as red, green and blue. In "infrared" ice is cyan, rock and debris brown, water black.
COMBINATIONS = {
    "infrared": ("swir1", "red", "green"),
    "natural": ("red", "green", "blue"),
    "vegetation": ("nir", "red", "green"),
    "heat": ("thermal", "swir1", "red"),
}
STRETCH = (2, 98)  # percentiles of a tile's valid pixels that become black and white
FIRST_CLASS = "#efefe9"  # the background: pale, so that what lies on it stands out
CLASSES = ("#56b4e9", "#d55e00", "#332288", "#f0e442", "#009e73", "#cc79a7")
NODATA = "#4a504d"
ERRORS = {"right": "#bfc4c1", "missed": "#b2182b", "added": "#2166ac", "confused": "#e0a800"}
TILE_PX = 230
SHEET_PX = 330  # a tile with more pixels is shrunk to this


def combinations_of(bands) -> dict[str, tuple[str, str, str]]:
    """Names and bands of the COMBINATIONS that these bands allow; "bands": the first three, where they allow none."""
    bands = list(bands)
    found = {name: wanted for name, wanted in COMBINATIONS.items() if set(wanted) <= set(bands)}
    first = (bands * 3)[:3] if len(bands) < 3 else bands[:3]
    return found or {"bands": tuple(first)}


def false_colour(tile, bands, combination=None, *, valid=None) -> np.ndarray:
    """Picture of a tile: uint8 RGB (H, W, 3), each channel stretched between the percentiles STRETCH of valid pixels.

    tile: (C, H, W), raw or standardised; bands: C names; combination: a name of `combinations_of(bands)` or three
    names of bands, by default the first that the bands allow; valid: bool (H, W), default where any band is not zero.
    InputError where a band is not there.
    """
    tile, bands = np.asarray(tile, np.float32), list(bands)
    known = combinations_of(bands)
    names = next(iter(known.values())) if combination is None else combination
    names = known.get(names, ()) if isinstance(names, str) else tuple(names)
    if len(names) != 3 or not set(names) <= set(bands):
        raise InputError(f"false colour {combination}: there are only the bands {', '.join(bands)}; name three of them")
    valid = (tile != 0).any(0) if valid is None else np.asarray(valid, bool)
    channels = [stretched(tile[bands.index(name)], valid) for name in names]
    picture = np.stack(channels, -1)
    picture[~valid] = rgb(NODATA)
    return picture


def stretched(band: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Band (H, W) as uint8 between the percentiles STRETCH of its valid, finite pixels; black where there are none."""
    known = valid & np.isfinite(band)
    if not known.any():
        return np.zeros(band.shape, np.uint8)
    low, high = np.percentile(band[known], STRETCH)
    shares = np.clip((np.where(known, band, low) - low) / max(high - low, 1e-12), 0, 1)
    return np.round(255 * shares).astype(np.uint8)


def rgb(shade: str) -> tuple[int, int, int]:
    return tuple(round(255 * part) for part in to_rgb(shade))


def class_colours(outputs) -> dict[str, str]:
    """Hexadecimal colour of each class; the first is the pale ground. More classes than CLASSES get turned hues."""
    more = [to_hex(turned(i)) for i in range(len(CLASSES), len(outputs) - 1)]
    return dict(zip(outputs, (FIRST_CLASS, *CLASSES, *more), strict=False))


def turned(place: int) -> np.ndarray:
    """Colour (3,) in 0..1 number `place`, of hues a golden angle apart, so that no two are alike."""
    hsv = np.array([[[(137.508 * place) % 360, 0.65, 0.5 + 0.35 * (place % 2)]]], np.float32)
    return np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0], 0, 1)


def class_picture(classes, outputs, valid=None) -> np.ndarray:
    """Classes (H, W) of ints as uint8 RGB (H, W, 3), no data in its own colour."""
    table = np.array([rgb(shade) for shade in class_colours(outputs).values()], np.uint8)
    picture = table[np.asarray(classes, np.int64)]
    if valid is not None:
        picture[~np.asarray(valid, bool)] = rgb(NODATA)
    return picture


def error_picture(target, pred, valid=None) -> np.ndarray:
    """Where prediction and truth (H, W) differ: uint8 RGB (H, W, 3) in the colours of ERRORS.

    missed: predicted as the first class and is another; added: the other way round; confused: among the others.
    """
    target, pred = np.asarray(target), np.asarray(pred)
    picture = np.empty((*target.shape, 3), np.uint8)
    picture[:] = rgb(FIRST_CLASS)
    picture[(target == pred) & (target > 0)] = rgb(ERRORS["right"])
    picture[(target != pred) & (target > 0) & (pred > 0)] = rgb(ERRORS["confused"])
    picture[(target > 0) & (pred == 0)] = rgb(ERRORS["missed"])
    picture[(target == 0) & (pred > 0)] = rgb(ERRORS["added"])
    if valid is not None:
        picture[~np.asarray(valid, bool)] = rgb(NODATA)
    return picture


def error_names(outputs) -> dict[str, str]:
    """Words for each colour of `error_picture`, confused left out where only one class can be found."""
    first, others = outputs[0], outputs[1] if len(outputs) == 2 else "another class"
    names = {FIRST_CLASS: f"right, {first}", ERRORS["right"]: f"right, {others}"}
    names |= {ERRORS["missed"]: f"missed: {first} predicted", ERRORS["added"]: f"added: {first} is true"}
    return names if len(outputs) == 2 else names | {ERRORS["confused"]: "taken for another class"}


def shares_text(classes, outputs, valid) -> str:
    """`glacier 24.8 %  lake .05 %`: shares of the classes after the first among the valid pixels."""
    known = np.asarray(classes)[np.asarray(valid, bool)]
    if not known.size:
        return "no valid pixel"
    shares = 100 * np.bincount(known.astype(np.int64), minlength=len(outputs)) / known.size
    return "   ".join(f"{name} {share:.2g} %" for name, share in zip(outputs[1:], shares[1:], strict=True))


def shrunk(picture: np.ndarray, most: int = SHEET_PX) -> np.ndarray:
    """The picture with its longer side at most `most` px: means over areas, so that a small patch does not vanish."""
    high, wide = picture.shape[:2]
    scale = most / max(high, wide)
    if scale >= 1:
        return picture
    return cv2.resize(picture, (max(1, round(wide * scale)), max(1, round(high * scale))), interpolation=cv2.INTER_AREA)


def draw_panels(lines: list[dict], legend: dict[str, str], title: str, path, *, columns: int = 1) -> Path:
    """Picture file with a group of panels per item of `lines`, `columns` groups side by side, and a legend.

    lines: {"name", "caption", "panels": [(words, uint8 RGB)]}, all with the same number of panels; legend: colour ->
    words.
    """
    each = len(lines[0]["panels"])
    count = math.ceil(len(lines) / columns)
    figure = new_figure(columns * each * TILE_PX + 20, count * (TILE_PX + 44) + 60)
    axes = figure.subplots(count, columns * each, squeeze=False).reshape(count * columns, each)
    for axis in axes.ravel():
        axis.set_axis_off()
    look = {"color": colour("ink"), "loc": "left", "pad": 4, "parse_math": False}
    for group, line in zip(axes, lines, strict=False):
        for axis, (words, picture) in zip(group, line["panels"], strict=True):
            axis.imshow(shrunk(picture))
            axis.set_title(words, fontsize=8, **look)
        group[0].set_title(line["name"], fontsize=9, fontweight="bold", **look)
        words = {"fontsize": 8, "color": colour("muted"), "va": "top", "parse_math": False}
        group[0].text(0, -0.03, line["caption"], transform=group[0].transAxes, **words)
    figure.suptitle(title, fontsize=10, color=colour("muted"), x=0.01, ha="left", parse_math=False)
    patches = [Patch(facecolor=shade, edgecolor=colour("muted"), linewidth=0.5) for shade in legend]
    key = {"loc": "outside lower left", "ncols": max(1, columns * each), "frameon": False, "fontsize": 8}
    figure.legend(patches, list(legend.values()), labelcolor=colour("ink"), **key)
    return atomic_write(path, picture_bytes(figure, dpi=110, kind=Path(path).suffix))


def class_legend(outputs) -> dict[str, str]:
    """Colour -> name of each class, and of no data."""
    return {shade: name for name, shade in class_colours(outputs).items()} | {NODATA: "no data"}


def draw_tile_sheet(images, targets, valid, ids, *, bands, outputs, path: str | Path) -> Path:
    """Picture (.png or .jpg) of augmented inputs as the model gets them, each beside its target and class shares.

    images: float (n, C, H, W), standardised or raw, array or CPU tensor; targets: int (n, H, W); valid: bool (n, H,
    W); ids: n names; bands: names of the C channels.
    """
    names, lines = next(iter(combinations_of(bands).values())), []
    for image, target, known, name in zip(*map(np.asarray, (images, targets, valid)), ids, strict=True):
        panels = [("", false_colour(image, bands, valid=known)), ("target", class_picture(target, outputs, known))]
        lines.append({"name": str(name), "caption": shares_text(target, outputs, known), "panels": panels})
    high, wide = np.shape(images)[-2:]
    title = f"{len(lines)} inputs of {len(bands)} x {high} x {wide} px, {', '.join(names)} shown as red, green, blue"
    return draw_panels(lines, class_legend(outputs), title, path, columns=2)


def draw_tile_samples(images, targets, preds, valid, ids, *, bands, outputs, path: str | Path) -> Path:
    """Picture (.png or .jpg) with image, truth, prediction and error of each tile; arguments of `draw_tile_sheet`.

    preds: int (n, H, W), the class predicted. Tiles of different sizes are given as lists.
    """
    names, lines = next(iter(combinations_of(bands).values())), []
    for *arrays, name in zip(images, targets, preds, valid, ids, strict=True):
        image, target, pred, known = map(np.asarray, arrays)  # one by one: tiles may be of different sizes
        panels = [("", false_colour(image, bands, valid=known)), ("truth", class_picture(target, outputs, known))]
        panels += [("prediction", class_picture(pred, outputs, known)), ("error", error_picture(target, pred, known))]
        lines.append({"name": str(name), "caption": f"true: {shares_text(target, outputs, known)}", "panels": panels})
    legend = class_legend(outputs) | {shade: words for shade, words in error_names(outputs).items() if words[0] != "r"}
    legend |= {ERRORS["right"]: "right"}
    title = f"{len(lines)} tiles, {', '.join(names)} shown as red, green, blue"
    return draw_panels(lines, legend, title, path)
