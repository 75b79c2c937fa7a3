"""Whole scenes of one rare class: calibrated GeoTIFF of its probability, polygons of what is above a threshold."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from common.datasets.prior import MODES, apply_prior, open_prior
from common.errors import InputError
from common.outputs.scene_files import write_raster
from common.outputs.scene_picture import draw_scene
from common.post.detection_maps import Cut
from common.post.polygons import SIMPLIFY, trace, write_polygons
from common.tasks import scene_jobs
from common.tasks.scene_jobs import LOOK, MapKind, add_window_options, grid_of, map_tags
from common.tasks.scene_truth import say_truth

# settings that change a map, beside the models
DECIDING = (*LOOK, "spread", "prior", "prior_mode", "prior_below", "threshold", "at_ratio", "clean", "min_area",
            "min_blob", "simplify")  # fmt: skip


def add_scene_options(parser, flag) -> None:
    """Options of infer.py --scene; flag: the action of on/off options."""
    scene = parser.add_argument_group("scenes")
    add_window_options(scene, window=512, overlap=0.5)
    scene.add_argument("--spread", action=flag, default=False, help="a second band: deviation over the models")
    scene.add_argument("--prior", type=Path, metavar="TIF", help="susceptibility 0 to 1 that confines what is found")
    scene.add_argument("--prior-mode", choices=list(MODES), default="limit", help="limit: nothing under --prior-below; "
                       "odds: the prior multiplies the odds")  # fmt: skip
    scene.add_argument("--prior-below", type=float, default=0.05, help="limit: where the prior is under it, nothing is")
    scene.add_argument("--min-area", type=float, default=0.0, metavar="M2", help="smaller polygons are dropped")
    scene.add_argument(
        "--simplify", type=float, default=SIMPLIFY, metavar="PX", help="tolerance of polygons (0 = none)"
    )
    scene.add_argument("--truth", type=Path, metavar="FILE",
                       help="labels of the one scene, a raster or polygons, that its map is scored by")  # fmt: skip


def check_settings(settings: dict) -> None:
    """InputError for numbers that make no sense, and for options that say nothing about scenes."""
    for name in ("min_area", "simplify", "min_blob"):
        if not settings[name] >= 0:
            raise InputError(f"--{name.replace('_', '-')} {settings[name]}: 0 (none) or more")
    if not 0 <= settings["prior_below"] <= 1:
        raise InputError(f"--prior-below {settings['prior_below']}: a probability, 0 to 1")
    if settings["fill_holes"]:
        raise InputError("--fill-holes: is for the masks of tiles, polygons of scenes keep their holes; leave it out")


def check_scene(scene, settings: dict) -> None:
    """InputError for what would stop the job at this scene after hours on others: the prior, no CRS."""
    if scene.crs is None and settings["min_area"]:
        raise InputError(
            f"{scene.path}: has no CRS, which --min-area needs; georeference it or give --min-blob instead"
        )
    if settings["prior"]:
        open_prior(settings["prior"], **grid_of(scene)).close()


def calibrated(probs: np.ndarray, temperature: float) -> np.ndarray:
    """The second of the probabilities (2,h,w), its logit divided by the temperature: float64 (h,w), since thresholds of
    clean maps lie so near to 1 that float32 rounds them to it."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        low, high = np.log(probs.astype(np.float64))
        prob = 1 / (1 + np.exp((low - high) / temperature))
    return np.nan_to_num(prob, nan=0.0)  # both are 0 where there is no data


def finished_strips(strips: Iterator, temperature: float, prior, settings: dict) -> Iterator:
    """(first row, values float64 (1[+1],h,W), valid) with calibrated probabilities, after the prior."""
    for y, values, valid in strips:
        prob = calibrated(values[:2], temperature)
        if prior is not None:
            area = prior.read(y, 0, *prob.shape)
            prob = apply_prior(prob, area, mode=settings["prior_mode"], below=settings["prior_below"])
        yield y, np.concatenate([prob[None], values[2:]]), valid


def write_map(scene, target: Path, predicted: Callable, spec: dict, settings: dict, made_with: str, *, cut: Cut):
    """Polygons, picture and raster of a predicted scene; the raster last: a map that is there is whole."""
    grid = grid_of(scene)
    with open_prior(settings["prior"], **grid) if settings["prior"] else nullcontext() as prior:
        strips = lambda: finished_strips(predicted(), cut.temperature, prior, settings)  # noqa: E731
        found = trace(((y, (values[0] > cut.threshold) & valid, values[0].astype(np.float32))
                       for y, values, valid in strips()),
                      transform=scene.transform, crs=scene.crs, min_area_m2=settings["min_area"],
                      min_pixels=cut.min_blob, simplify=settings["simplify"])  # fmt: skip
        found = found[found["mean_prob"] >= cut.least].reset_index(drop=True)
        found["id"] = found.index + 1
        written = write_polygons(target.with_suffix(""), found, scene.crs)
        written.append(draw_scene(scene, found["geometry"], target.with_name(f"{target.stem}.jpg")))
        tags = map_tags(scene, spec, settings, made_with) | {
            "threshold": repr(float(cut.threshold)),
            "blob_mean": repr(float(cut.least)),
            "temperature": repr(float(cut.temperature)),
        }
        names = [spec["outputs"][1], *(["spread"] if settings["spread"] else [])]
        rounded = lambda: ((y, values.astype(np.float32), valid) for y, values, valid in strips())  # noqa: E731
        write_raster(target, rounded, names=names, tags=tags, **grid)
    area = f", {found['area_m2'].sum() / 1e6:.3f} km2" if scene.crs is not None else ""
    print(f"{scene.path.name}: {len(found)} polygons{area} -> {target}, {', '.join(p.name for p in written)}")


def kind_of(cut: Cut) -> MapKind:
    """Maps of one rare class, blobs by `cut`."""
    return MapKind(
        deciding=DECIDING,
        names=lambda stem: [f"{stem}.tif"],
        check_settings=check_settings,
        check_scene=check_scene,
        write=partial(write_map, cut=cut),
        say_truth=lambda target, truth, _spec, _settings: say_truth(target, truth, cut),
        rasters=("prior",),
    )


def map_scenes(paths, models, post, views, settings, machine, folder: Path, *, cut_of: Callable) -> bool:
    """scene_jobs.map_scenes of one rare class.

    cut_of(post, settings) -> post.detection_maps.Cut, by which probabilities become blobs.
    """
    cut = cut_of(post, settings)
    return scene_jobs.map_scenes(paths, models, post, views, settings, machine, folder, kind=kind_of(cut))
