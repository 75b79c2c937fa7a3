"""The dense CRF as options of infer.py and ensemble.py: which bands guide it, and how it is asked for a tile."""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import asdict, fields

import numpy as np
import pandas as pd

from common.datasets.band_tiles import available_bands, bands_of
from common.datasets.folds import TEST, UNUSED
from common.datasets.inputs import channel_statistics, valid_pixels
from common.datasets.tiles import Source
from common.errors import InputError
from common.post.crf import Crf, guide_of, refine
from common.tasks.segmentation_spec import few

FLAG = argparse.BooleanOptionalAction
CRF_OPTIONS = {field.name: field.name if field.name != "iterations" else "crf_iterations" for field in fields(Crf)}
USUAL = {"crf": False, "crf_bands": []} | {option: getattr(Crf, field) for field, option in CRF_OPTIONS.items()}


def add_crf_options(parser) -> None:
    crf = parser.add_argument_group("dense CRF")
    crf.add_argument("--crf", action=FLAG, help="classes follow the edges of bands (default: as the blend was judged, "
                     "which holds for all numbers, else off)")  # fmt: skip
    crf.add_argument("--crf-bands", nargs="+", default=[], metavar="BAND",
                     help="whose edges, by name (default: the first three)")  # fmt: skip
    crf.add_argument("--crf-iterations", type=int, help=f"of the mean field ({Crf.iterations})")
    crf.add_argument("--spatial-weight", type=float, metavar="PX",
                     help=f"reach of the Gaussian term ({Crf.spatial_weight:g})")  # fmt: skip
    crf.add_argument("--compat-spatial", type=float, help=f"strength of the Gaussian term ({Crf.compat_spatial:g})")
    crf.add_argument("--bilateral-sxy", type=float, metavar="PX",
                     help=f"reach of the bilateral term in pixels ({Crf.bilateral_sxy:g})")  # fmt: skip
    crf.add_argument("--bilateral-srgb", type=float, metavar="GREY", help="and in grey levels of a band, 32 to a "
                     f"standard deviation ({Crf.bilateral_srgb:g})")  # fmt: skip
    crf.add_argument("--compat-bilateral", type=float, help=f"its strength ({Crf.compat_bilateral:g})")


def crf_of(settings: dict) -> Crf | None:
    """The dense CRF that the options ask for; InputError for an option that says how, without --crf."""
    given = {field: getattr(Crf, field) if settings[option] is None else settings[option]
             for field, option in CRF_OPTIONS.items()}  # fmt: skip
    if settings["crf"] and given["iterations"] < 0:
        raise InputError(f"--crf-iterations {given['iterations']}: give a number of at least 0")
    if settings["crf"]:
        return Crf(**given)
    changed = [CRF_OPTIONS[field] for field in given if given[field] != getattr(Crf, field)]
    for option in [*changed, *(["crf_bands"] if settings["crf_bands"] else [])]:
        raise InputError(f"--{option.replace('_', '-')}: says how the CRF works, which is off; add --crf")
    return None


def judged_with(settings: dict, there: list[str]) -> dict:
    """{option: value} of the CRF of a judgement, for its blend; there: names of the bands."""
    crf = crf_of(settings)
    if crf is None:
        return {"crf": False}
    numbers = {option: getattr(crf, field) for field, option in CRF_OPTIONS.items()}
    return {"crf": True, "crf_bands": guide_bands(settings, there)} | numbers


def band_statistics(paths, source: Source, bands) -> dict[str, list[float]]:
    """{band: [mean, deviation]} over the pixels with data of at most 400 tiles."""
    tiles = (source.read_tile(path, bands) for path in few(pd.DataFrame({"path": list(paths)}))["path"])
    mean, deviation = channel_statistics((tile, valid_pixels(tile)) for tile in tiles)
    return {band: [mean[k], deviation[k]] for k, band in enumerate(bands)}


def training_bands(rows: pd.DataFrame, source: Source) -> dict[str, list[float]]:
    """`band_statistics` of the bands that rows were read with, over the tiles that some fold is trained on: neither
    test rows nor unused ones.

    Empty where the rows name no tiles.
    """
    used = rows[~rows["fold"].isin((TEST, UNUSED))] if "fold" in rows else rows
    if "path" not in rows or not len(used):
        return {}
    return band_statistics(used["path"], source, bands_of(used))


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
        guide, done = None, {}  # a judge asks for the same probabilities again

        def refined(prob: np.ndarray, valid: np.ndarray) -> np.ndarray:
            nonlocal guide
            if guide is None:
                tile = source.read_tile(paths[name], bands)
                guide = guide_of(tile, mean, deviation, valid_pixels(tile))
            key = hashlib.sha256(prob.tobytes() + valid.tobytes()).digest()
            if key not in done:
                done[key] = refine(prob, guide, valid, **asdict(crf))
            return done[key]

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
