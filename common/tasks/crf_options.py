"""The dense CRF as options of infer.py and ensemble.py: which bands guide it, and how it is asked for a tile."""

import argparse
from collections.abc import Callable
from dataclasses import asdict, fields

import numpy as np
import pandas as pd

from common.datasets.band_tiles import available_bands
from common.datasets.folds import TEST, UNUSED
from common.datasets.inputs import channel_statistics, valid_pixels
from common.datasets.tiles import Source
from common.errors import InputError
from common.post.crf import Crf, guide_of, refine
from common.tasks.segmentation_spec import few

FLAG = argparse.BooleanOptionalAction
CRF_OPTIONS = {field.name: field.name if field.name != "iterations" else "crf_iterations" for field in fields(Crf)}


def add_crf_options(parser) -> None:
    crf = parser.add_argument_group("dense CRF")
    crf.add_argument("--crf", action=FLAG, default=False, help="classes follow the edges of bands")
    crf.add_argument("--crf-bands", nargs="+", default=[], metavar="BAND",
                     help="whose edges, by name (default: the first three)")  # fmt: skip
    crf.add_argument("--crf-iterations", type=int, default=Crf.iterations, help="of the mean field")
    crf.add_argument("--spatial-weight", type=float, default=Crf.spatial_weight, metavar="PX",
                     help="reach of the Gaussian term")  # fmt: skip
    crf.add_argument("--compat-spatial", type=float, default=Crf.compat_spatial, help="strength of the Gaussian term")
    crf.add_argument("--bilateral-sxy", type=float, default=Crf.bilateral_sxy, metavar="PX",
                     help="reach of the bilateral term in pixels")  # fmt: skip
    crf.add_argument("--bilateral-srgb", type=float, default=Crf.bilateral_srgb, metavar="GREY",
                     help="and in grey levels of a band, 32 to a standard deviation")  # fmt: skip
    crf.add_argument("--compat-bilateral", type=float, default=Crf.compat_bilateral, help="its strength")


def crf_of(settings: dict) -> Crf | None:
    """The dense CRF that the options ask for; InputError for an option that says how, without --crf."""
    given = {field: settings[option] for field, option in CRF_OPTIONS.items()}
    if settings["crf"] and settings["crf_iterations"] < 0:
        raise InputError(f"--crf-iterations {settings['crf_iterations']}: give a number of at least 0")
    if settings["crf"]:
        return Crf(**given)
    changed = [CRF_OPTIONS[field] for field in given if given[field] != getattr(Crf, field)]
    for option in [*changed, *(["crf_bands"] if settings["crf_bands"] else [])]:
        raise InputError(f"--{option.replace('_', '-')}: says how the CRF works, which is off; add --crf")
    return None


def band_statistics(paths, source: Source, bands) -> dict[str, list[float]]:
    """{band: [mean, deviation]} over the pixels with data of at most 400 tiles."""
    tiles = (source.read_tile(path, bands) for path in few(pd.DataFrame({"path": list(paths)}))["path"])
    mean, deviation = channel_statistics((tile, valid_pixels(tile)) for tile in tiles)
    return {band: [mean[k], deviation[k]] for k, band in enumerate(bands)}


def training_bands(rows: pd.DataFrame, source: Source) -> dict[str, list[float]]:
    """`band_statistics` of all bands, over the tiles that some fold is trained on: neither test rows nor unused ones.

    Empty where the rows name no tiles.
    """
    used = rows[~rows["fold"].isin((TEST, UNUSED))] if "fold" in rows else rows
    if "path" not in rows or not len(used):
        return {}
    return band_statistics(used["path"], source, available_bands(used["path"].iloc[0]))


def guide_bands(settings: dict, there: list[str]) -> list[str]:
    """The bands that guide the CRF. InputError for one that is not `there`."""
    bands = settings["crf_bands"] or there[:3]
    for band in set(bands) - set(there):
        raise InputError(f"--crf-bands {band}: no such band; there are {', '.join(there)}")
    return bands


def refiner(paths: dict[str, str], post: dict | None, settings: dict, source: Source) -> Callable | None:
    """refine(id) -> what finish_mask takes by that name; None without --crf.

    paths: {id: tile}. Bands are measured in deviations of the training tiles, and by default the first three of those
    are taken (the bands of `post`); where it is not known, of these tiles.
    """
    crf = crf_of(settings)
    if crf is None:
        return None
    known = (post or {}).get("bands", {})
    bands = guide_bands(settings, list(known) or available_bands(next(iter(paths.values()))))
    known = known or band_statistics(paths.values(), source, bands)
    mean, deviation = zip(*(known[band] for band in bands), strict=True)

    def of_tile(name: str) -> Callable:
        def refined(prob: np.ndarray, valid: np.ndarray) -> np.ndarray:
            tile = source.read_tile(paths[name], bands)
            return refine(prob, guide_of(tile, mean, deviation, valid_pixels(tile)), valid, **asdict(crf))

        return refined

    return of_tile


def row_refiner(rows: pd.DataFrame, known: dict, settings: dict, source: Source) -> Callable | None:
    """refine(row), for the judge. known: `training_bands` of the rows."""
    if crf_of(settings) is None:
        return None
    if "path" not in rows:
        raise InputError("--crf: needs the tiles; it works on --runs, or on --preds with --data")
    of_tile = refiner(dict(zip(rows["id"], rows["path"], strict=True)), {"bands": known}, settings, source)
    return lambda row: of_tile(row["id"])
