"""Rasters, terrain of an elevation model and land cover as one raster of named bands, read and written by window.

Of an elevation model alone the whole lies in memory, as water flows far.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from common.datasets.band_tiles import BAND_LIST, stamp, with_sidecars
from common.datasets.label_grids import profile_of
from common.datasets.raster_layers import Drawn, Layer, open_classes, pixel_metres, read_strips, values_in
from common.datasets.scenes import cache_limit
from common.datasets.terrain import TERRAIN, checked, terrain_strips, upslope_cells
from common.errors import InputError
from common.files import atomic_write
from common.text_files import read_json

VERSION = 1  # of what a stack holds, terrain included
MOST_CLASSES = 64  # of land cover
BLOCK = 256


def stack_bands(
    out: str | Path,
    *,
    rasters: Sequence[str | Path] = (),
    dem: str | Path | None = None,
    land_cover: str | Path | None = None,
    land_cover_values: Sequence[int] | None = None,
) -> Path:
    """Write one float32 GeoTIFF of named bands, NaN for no data, on the grid of the first raster; returns its path.

    The bands: those of `rasters` by their descriptions, else <file>_<number> (<file> where it has but one); of `dem`
    (one band, metres) `elevation` and the bands of `terrain.TERRAIN`; of `land_cover` (class numbers) a band of 0 and 1
    for each of land_cover_values, landcover_<value> (None: those it holds here; give them where several areas shall
    have the same bands). What lies on another grid is warped, bilinear, land cover by the nearest pixel, and said.
    Without rasters the grid is that of the DEM. InputError: unreadable, no CRS to warp by, not of the same area, a
    name twice, or `out` is one of the files.
    """
    sources = [*rasters, *([dem] if dem else []), *([land_cover] if land_cover else [])]
    if not sources:
        raise InputError("no raster to stack; give --raster or --dem")
    check_output(out, sources)
    with ExitStack() as opened:
        layers = [opened.enter_context(Layer(path, sources[0])) for path in rasters]
        names = [name for layer in layers for name in file_bands(layer)]
        parts = [read_strips(layer, BLOCK) for layer in layers]
        if dem:
            names += ["elevation", *TERRAIN]
            parts.append(dem_strips(opened.enter_context(Layer(dem, sources[0])), pixel_metres(sources[0])))
        if land_cover:
            cover = opened.enter_context(open_classes(land_cover, sources[0]))
            values = list(land_cover_values or values_in(cover, most=MOST_CLASSES))
            names += [f"landcover_{value}" for value in values]
            parts.append(cover_strips(cover, values))
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise InputError(f"{out}: two bands would be named {twice}; rename one of the files or of their bands")
        return write_stack(Path(out), profile_of(sources[0]), names, parts)


def keep_stack(out: str | Path, **sources) -> Path:
    """`stack_bands`, but a stack that was made of the same files, which have not changed since, is left as it is.

    What it was made of is in a file beside it, <out>.json: terrain of a large model takes long.
    """
    check_output(out, listed := [path for given in sources.values() for path in ([given] if is_path(given) else given)])
    lists = [path.parent / BAND_LIST for path in map(Path, listed) if (path.parent / BAND_LIST).is_file()]
    every = [file for path in listed for file in with_sidecars(path)] + lists
    made_of = {"version": VERSION, "kinds": {name: str(given) for name, given in sources.items()},
               "files": [[str(file.resolve()), *stamp(file)] for file in every]}  # fmt: skip
    facts, out = Path(f"{out}.json"), Path(out)
    before = read_json(facts, remedy="remove it, the bands are then stacked again") if facts.is_file() else {}
    if out.is_file() and before == made_of | {"stack": list(stamp(out))}:
        print(f"{out}: stacked before from the same files; left as it is")
        return out
    stack_bands(out, **sources)
    atomic_write(facts, json.dumps(made_of | {"stack": stamp(out)}, indent=1))
    return out


def is_path(given) -> bool:
    return isinstance(given, str | Path)


def check_output(out: str | Path, inputs: Sequence[str | Path]) -> None:
    """InputError where a file that is about to be written is one of those it is made from, by whatever name."""
    same = [path for path in inputs if Path(out).exists() and Path(path).exists() and Path(out).samefile(path)]
    if same:
        raise InputError(f"{out}: would be replaced by the stack of bands, and {same[0]} is that file; move it away")


def write_stack(out: Path, grid: dict, names: list[str], parts: list[Iterator[np.ndarray]]) -> Path:
    def write(temporary: Path) -> None:
        layout = {"driver": "GTiff", "dtype": "float32", "nodata": np.nan, "bigtiff": "IF_SAFER", "interleave": "band",
                  "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}  # fmt: skip
        with cache_limit(), rasterio.open(temporary, "w", count=len(names), **grid, **layout) as file:
            for y, strips in zip(range(0, grid["height"], BLOCK), zip(*parts, strict=True), strict=True):
                strip = np.concatenate(strips)
                file.write(strip, window=Window(0, y, grid["width"], strip.shape[1]))
            file.descriptions = tuple(names)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return atomic_write(out, write)
    except RasterioError as error:
        raise InputError(f"{out}: could not be written ({error}); is there room on the disk?") from error


def file_bands(layer: Layer) -> list[str]:
    """Names of a file's bands: its descriptions or bands.txt, else the file's own name and a number."""
    stem, own = layer.path.stem.lower().replace(" ", "_"), layer.names()
    if len(own) == 1 and own[0] == "band1":
        return [stem]
    numbers = zip(own, layer.numbers, strict=True)
    return [f"{stem}_{number}" if name == f"band{number}" else name for name, number in numbers]


def dem_strips(layer: Layer, pixel: tuple[float, float]) -> Iterator[np.ndarray]:
    """The elevation and its terrain bands, strip by strip."""
    if len(layer.numbers) != 1:
        raise InputError(f"{layer.path}: {len(layer.numbers)} bands; an elevation model has one: choose with --dem")
    dem = np.concatenate([strip[0] for strip in read_strips(layer, BLOCK)])
    if np.isnan(dem).all():
        raise InputError(f"{layer.path}: has no elevation in the area of the first raster; give a model that covers it")
    dem, valid = checked(dem, None)
    cells = upslope_cells(dem, valid, pixel=pixel)
    for y, bands in terrain_strips(dem, valid, cells, pixel=pixel, rows=BLOCK):
        yield np.concatenate([dem[None, y : y + bands.shape[1]], bands])


def cover_strips(layer: Layer | Drawn, values: list[int]) -> Iterator[np.ndarray]:
    for strip in read_strips(layer, BLOCK):
        yield np.where(np.isnan(strip), np.nan, strip == np.array(values)[:, None, None]).astype(np.float32)
