"""Bands of GeoTIFFs by description or number, never by a reader's idea of RGBA."""

import re
from pathlib import Path

import rasterio

from common.datasets.label_grids import open_raster
from common.errors import InputError

RGB = ("red", "green", "blue")
EXTRA = "EXTRA"
SUFFIXES = (".tif", ".tiff")
NUMBERED = re.compile(r"band[ _:]?(\d+)$", re.IGNORECASE)
MASKS = {"", "mask", "alpha", "label", "labels"}  # a band tagged as alpha is no input unless its name says otherwise


def names_in(file: rasterio.DatasetReader, *, image: bool) -> list[str]:
    """Names of an open file's bands: their descriptions in lower case, "" where there is none.

    image: the bands of a file without any description are named by their colours where red, green and blue are among
    them; else the first three are these.
    """
    names = [(text or "").strip().lower().replace(" ", "_") for text in file.descriptions]
    if image and not any(names):
        names = [color.name if color.name in RGB else "" for color in file.colorinterp]
        if not set(RGB) <= set(names):
            names = [*RGB, *[""] * len(names)][: len(names)]
    return names


def described(path: Path, *, image: bool) -> tuple[list[str], list[bool]]:
    """(names, whether tagged as alpha) of a file's bands, see `names_in`."""
    with open_raster(path) as file:
        return names_in(file, image=image), [color.name == "alpha" for color in file.colorinterp]


def colour_numbers(names: list[str]) -> list[int]:
    """Numbers (from 1) of red, green and blue, which tell no data; of the first three bands where they lack."""
    if set(RGB) <= set(names):
        return [names.index(name) + 1 for name in RGB]
    return list(range(1, min(len(names), 3) + 1))


def input_bands(path: Path, *, image: bool) -> list[str]:
    """Names of the bands that may be inputs (bandN where there is none): not what is tagged alpha and named so."""
    names, alpha = described(path, image=image)
    bands = zip(names, alpha, strict=True)
    return [name or f"band{k}" for k, (name, tagged) in enumerate(bands, 1) if not (tagged and name in MASKS)]


def band_number(name: str, names: list[str]) -> int | None:
    """Number (from 1) of a band by its name (of `described`), or as bandN; None if the file has none such."""
    if name.lower() in names:
        return names.index(name.lower()) + 1
    number = NUMBERED.match(name)
    return int(number[1]) if number and 1 <= int(number[1]) <= len(names) else None


def extra_of(path: str | Path) -> Path | None:
    """The EXTRA file of an image, if there is one."""
    path = Path(path)
    beside = [path.parent.parent / EXTRA / f"{path.stem}{suffix}" for suffix in SUFFIXES]
    return next((file for file in beside if file.is_file()), None)


def bands_of(path: str | Path) -> list[str]:
    """Names of the bands of a tile: of the image, then of its EXTRA file."""
    extra, names = extra_of(path), input_bands(Path(path), image=True)
    return names + [name for name in (input_bands(extra, image=False) if extra else []) if name not in names]


def find_bands(path: str | Path, bands) -> list[tuple[Path, int]]:
    """(file, number) of every band. InputError: a band that neither the image nor its EXTRA file has."""
    path, extra, found = Path(path), extra_of(path), []
    names, more = described(path, image=True)[0], None
    for name in bands:
        number, file = band_number(name, names), path
        if number is None and extra is not None:
            more = more or described(extra, image=False)[0]
            number, file = band_number(name, more), extra
        if number is None:
            raise InputError(f"{path}: has no band {name}; there are {', '.join(bands_of(path))}: choose with --bands")
        found.append((file, number))
    return found
