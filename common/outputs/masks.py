"""What is handed in for a mask task: one uint8 GeoTIFF per tile; and the class probabilities that masks are made of.

A mask carries the name and the georeference of the file that its row names (a first band, or an npy slice).
"""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from rasterio.errors import RasterioError

from common.datasets.arrays import FAULTS, array_names, read_npy, read_npz, short
from common.datasets.limits import check_file
from common.datasets.rasters import open_checked, read_whole
from common.errors import InputError
from common.files import atomic_write
from common.outputs.predictions import listed

TIFF = {".tif", ".tiff"}
# of a TIFF that is damaged: what tifffile's parser of tags ends with
TIFF_FAULTS = (*FAULTS, struct.error, IndexError, AttributeError, ArithmeticError, AssertionError)
MOST_LOGIT = 60.0  # e^-60 is a probability that float32 still tells from 0
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)  # pixel scale, tie points, matrix, keys, doubles, text


def geo_tags(page: tifffile.TiffPage) -> list[tuple]:
    """The georeference of a TIFF page as `extratags` of tifffile.imwrite; empty where it has none.

    The no-data value is not part of it: 0 is a class of a mask.
    """
    tags = [page.tags[code] for code in GEO_TAGS if code in page.tags]
    return [(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags]


def mask_name(path: str | Path) -> str:
    """File name of the mask of the tile whose first band (or npy slice) is `path`."""
    path = Path(path)
    return path.name if path.suffix.lower() in TIFF else f"{path.stem}.tif"


def read_frame(path: str | Path) -> tuple[tuple[int, int], list[tuple]]:
    """((H, W), georeference tags) of a tile's file: TIFF (H,W) or (1,H,W), or npy (C,H,W); InputError naming it."""
    path = Path(path)
    try:
        if path.suffix.lower() not in TIFF:
            height, width = read_npy(path, mapped=True).shape[-2:]
            return (height, width), []
        check_file(path)
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            return (page.imagelength, page.imagewidth), geo_tags(page)
    except TIFF_FAULTS as error:
        raise InputError(
            f"{path}: not a readable tile ({short(error)}); restore the file that its row names"
        ) from error


def write_mask(path: Path, mask: np.ndarray, tags: list[tuple]) -> None:
    """One uint8 (H,W) GeoTIFF of raw values; deflate is what every TIFF reader has."""
    tifffile.imwrite(path, mask, photometric="minisblack", compression="zlib", metadata=None, extratags=tags)


def write_masks(
    folder: str | Path, masks: Iterable[tuple[str, np.ndarray, str | Path]], *, values: Sequence[int]
) -> list[Path]:
    """Write a uint8 GeoTIFF per tile to `folder`, each atomically; returns the paths in the order given.

    masks: (id, classes uint8 (H,W), path of the tile's first band): the mask takes that file's name and georeference.
    values: the raw value of every class, as (0, 85, 170, 255). InputError naming the tile where the size is not the
    tile's, a class has no value, or two tiles have one file name; that tile is then not written.
    """
    lookup = np.asarray(values, np.uint8)
    written: dict[str, str] = {}
    for tile, mask, source in masks:
        size, tags = read_frame(source)
        name = mask_name(source)
        if mask.shape != size:
            raise InputError(f"{tile}: the mask is {mask.shape}, {source} is {size}; predict this tile again")
        if mask.max(initial=0) >= len(lookup) or mask.min(initial=0) < 0:
            raise InputError(f"{tile}: the mask holds class {mask.max()}, values are given for {len(lookup)} classes")
        if name in written:
            raise InputError(f"{tile}: its mask would replace that of {written[name]} ({name}); give each its folder")
        raw = lookup[mask]
        atomic_write(Path(folder) / name, lambda path, raw=raw, tags=tags: write_mask(path, raw, tags))
        written[name] = tile
    return [Path(folder) / name for name in written]


def check_mask(path: Path, source: str | Path, values: Sequence[int]) -> None:
    """InputError naming the file where it is not the mask of the tile at `source`; see `validate_masks`."""
    size, tags = read_frame(source)
    try:
        with open_checked(path) as file:  # GDAL unpacks block by block, tifffile whatever a block makes of itself
            if file.count > 1 or file.subdatasets:
                raise InputError(f"{path}: {file.count} bands, or several pages; a mask is one band: write it again")
            mask = read_whole(file, 1)
    except (RasterioError, OSError) as error:
        raise InputError(f"{path}: not a readable TIFF ({short(error)}); write the masks again") from error
    if mask.dtype != np.uint8 or mask.shape != size:
        raise InputError(f"{path}: is {mask.dtype} {mask.shape}, a mask of this tile is uint8 {size}")
    stray = sorted(set(np.unique(mask).tolist()) - set(values))
    if stray:
        raise InputError(f"{path}: holds values {listed(stray)}; a mask holds {listed(values)} only")
    if read_frame(path)[1] != tags:
        raise InputError(f"{path}: its georeference is not that of {source}; write the masks again")


def validate_masks(folder: str | Path, rows: pd.DataFrame, *, values: Sequence[int]) -> int:
    """Number of masks of a folder that is right for `rows` (id, path); InputError naming the file otherwise.

    Right: one TIFF for every row and no other; uint8 of the tile's size; no value outside `values`; the georeference
    of the file that the row names.
    """
    folder = Path(folder)
    wanted = {mask_name(path): path for path in rows["path"]}
    if len(wanted) != len(rows):
        names = pd.Series([mask_name(path) for path in rows["path"]])
        raise InputError(f"{folder}: tiles share a mask name: {listed(names[names.duplicated()])}; rename the files")
    have = {path.name for path in folder.glob("*") if path.suffix.lower() in TIFF and not path.name.startswith(".")}
    missing, extra = sorted(set(wanted) - have), sorted(have - set(wanted))
    if missing:
        raise InputError(f"{folder}: lacks masks: {listed(missing)}; predict every tile")
    if extra:
        raise InputError(f"{folder}: holds masks of no tile: {listed(extra)}; remove them")
    for name, source in wanted.items():
        check_mask(folder / name, source, values)
    return len(wanted)


def write_probs(
    path: str | Path, prob: np.ndarray, *, valid: np.ndarray | None = None, target=None, as_logit: bool = False
) -> Path:
    """Write class probabilities (K,H,W) of one tile as float16 under the key "prob" of an npz, atomically.

    Kept beside it where given: valid, bool (H,W), where there is data; target, uint8 (H,W) of classes, the truth of a
    valid pixel: an out-of-fold set then knows its truth wherever it is moved. as_logit (two classes): instead of "prob"
    the key "logit" (H,W) of the second class, which keeps its digits where probabilities crowd near 0 and 1.

    These are values before thresholds and morphology. InputError where they are not finite or outside [0, 1].
    """
    if prob.ndim != 3:
        raise ValueError(f"probabilities are (K,H,W), got {prob.shape}")
    if not (np.isfinite(prob).all() and prob.min(initial=0) >= 0 and prob.max(initial=1) <= 1.001):
        raise InputError(f"{path}: probabilities are not finite or not within 0 and 1; predict this tile again")
    beside = {"valid": valid, "target": target}
    stored = {"logit": logit_of(prob)} if as_logit else {"prob": prob.astype(np.float16)}
    arrays = stored | {name: array for name, array in beside.items() if array is not None}
    return atomic_write(path, lambda temporary: np.savez_compressed(temporary, **arrays))


def logit_of(prob: np.ndarray) -> np.ndarray:
    """float16 (H,W): log p1 - log p0 of probabilities (2,H,W), each with its own digits; within +-MOST_LOGIT."""
    low, high = np.log(np.maximum(prob, np.finfo(np.float32).tiny).astype(np.float32))
    return np.clip(high - low, -MOST_LOGIT, MOST_LOGIT).astype(np.float16)


def read_logit(path: str | Path) -> np.ndarray:
    """float32 (H,W), the logit of the second class that `write_probs` stored; InputError where there is none."""
    return read_beside(path, "logit").astype(np.float32)


def read_probs(path: str | Path, classes: int | None = None) -> np.ndarray:
    """float32 (K,H,W), the probabilities that `write_probs` stored; InputError naming a file that does not hold them.

    classes: the K expected; a file of another number of classes is an error.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; predict this tile again (training with --no-oof keeps counts only)")
    try:
        found = read_npz(path, ("logit", "prob"))
        if "logit" in found:
            prob = both_of(found.pop("logit").astype(np.float32))
        else:
            prob = found["prob"].astype(np.float32)
    except FAULTS as error:
        raise InputError(f"{path}: holds no array prob ({short(error)}); predict this tile again") from error
    if prob.ndim != 3 or (classes is not None and len(prob) != classes):
        raise InputError(f"{path}: prob is {prob.shape}, wanted ({classes or 'K'},H,W); is it of another task?")
    return prob


def both_of(logit: np.ndarray) -> np.ndarray:
    """(2,H,W) probabilities of a class and its rest from the logits (H,W), float32; in place, since a map is large."""
    prob = np.empty((2, *logit.shape), np.float32)
    for half, sign in zip(prob, (1, -1), strict=True):
        np.exp(np.multiply(logit, sign, out=half), out=half)
        half += 1
        np.divide(1, half, out=half)
    return prob


def holds_logit(path: str | Path) -> bool:
    """Whether a file of `write_probs` was written as_logit; InputError where it cannot be read."""
    try:
        return "logit" in array_names(path)
    except FAULTS as error:
        raise InputError(f"{path}: not a readable map ({short(error)}); predict this tile again") from error


def read_beside(path: str | Path, name: str) -> np.ndarray:
    """(H,W) "valid", "target" or "logit" of a file of `write_probs`; InputError where there is none."""
    try:
        return read_npz(path, (name,))[name]
    except FAULTS as error:
        raise InputError(f"{path}: holds no array {name} ({short(error)}); predict this set again") from error
