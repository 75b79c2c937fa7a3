"""Whole scenes through trained models: calibrated GeoTIFF, polygons, and what is shared between processes."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.errors import RasterioError

from common.datasets.inputs import model_input
from common.datasets.prior import MODES, apply_prior, open_prior
from common.datasets.scenes import open_scene
from common.datasets.tiles import texture_maps
from common.engine.side_store import shared_jobs
from common.engine.tiling import plan_windows, predict_scene
from common.errors import InputError
from common.outputs.scene_files import write_raster
from common.outputs.scene_picture import draw_scene
from common.post.polygons import SIMPLIFY, trace, write_polygons
from common.tasks.scene_notes import known_damage, note_damage, notes_path, parts_path, remove_leftovers, say_damage
from common.tasks.scene_truth import say_truth

# settings that change a map, beside the models
DECIDING = ("scales", "overlap", "window", "window_weights", "spread", "scene_bands", "prior", "prior_mode",
            "prior_below", "threshold", "at_ratio", "clean", "min_area", "min_blob", "simplify")  # fmt: skip
SUFFIXES = (".tif", ".tiff", ".vrt")
BESIDE = (".xml", ".ovr")  # of a scene's files, those that viewers add
LEAST = 32  # pixels of a window's side
KEY = "LANDFOLD_KEY"  # tag of a map: what it was made with


def add_scene_options(parser, flag) -> None:
    """Options of infer.py --scene; flag: the action of on/off options."""
    scene = parser.add_argument_group("scenes")
    scene.add_argument("--scene-bands", type=int, nargs="+", metavar="NUMBER",
                       help="numbers of the model's bands in the file (default: by their names)")  # fmt: skip
    scene.add_argument("--window", type=int, default=512, help="side in pixels of what the model sees")
    scene.add_argument("--overlap", type=float, default=0.5, help="of neighbouring windows")
    scene.add_argument("--window-weights", choices=("hann", "gaussian"), default="hann", help="of overlapping windows")
    scene.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S",
                       help="resolutions to look at: .5 sees a window twice as wide")  # fmt: skip
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


class Standardised(torch.nn.Module):
    """A model that takes images standardised as the first model's: 0 in all channels where there is no data."""

    def __init__(self, model: torch.nn.Module, own: dict, first: dict):
        super().__init__()
        self.model, self.same = model, (own["mean"], own["std"]) == (first["mean"], first["std"])
        mean, std, its_mean, its_std = (
            torch.tensor(spec[name], dtype=torch.float64)[:, None, None]
            for spec in (first, own)
            for name in ("mean", "std")
        )
        self.register_buffer("factor", (std / its_std).float())
        self.register_buffer("shift", ((mean - its_mean) / its_std).float())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.same:
            return self.model(image)
        data = (image != 0).any(dim=1, keepdim=True)
        return self.model(torch.where(data, image * self.factor + self.shift, 0.0))


def one_reading(specs: list[dict]) -> dict:
    """The spec by which scenes are read. InputError where the models do not see the same channels."""
    for spec in specs[1:]:
        if any(spec[name] != specs[0][name] for name in ("bands", "inputs", "scaling", "outputs")):
            raise InputError(
                "--runs: the models see different bands or scalings; map each run, or fold (--fold), by itself"
            )
    return specs[0]


def list_scenes(paths: list[Path]) -> list[Path]:
    """The files of a list of files and folders. InputError for one that is not there, an empty folder, equal names."""
    found = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
        if not inside or not all(p.is_file() for p in inside):
            raise InputError(f"--scene {path}: {'no GeoTIFF in it' if path.is_dir() else 'no such file'}")
        found += inside
    first: dict[str, Path] = {}
    for path in found:
        if first.setdefault(path.stem, path) is not path:
            raise InputError(f"--scene: {first[path.stem]} and {path} would both become {path.stem}.tif; rename one, "
                             "or map them in two calls with an --out of their own")  # fmt: skip
    return found


def class_probs(model, outputs: torch.Tensor) -> torch.Tensor:
    """(B,2,h,w) probabilities of both outputs: a mean of either keeps its digits where the other is near 1."""
    return torch.softmax(outputs.float(), dim=1)


def check_settings(settings: dict, scenes: list[Path]) -> None:
    """InputError for numbers that make no sense, and for options that say nothing about scenes."""
    if settings["window"] < LEAST:
        raise InputError(f"--window {settings['window']}: at least {LEAST} pixels")
    plan_windows(1, 1, overlap=settings["overlap"], scales=settings["scales"])
    for name in ("min_area", "simplify", "min_blob"):
        if not settings[name] >= 0:
            raise InputError(f"--{name.replace('_', '-')} {settings[name]}: 0 (none) or more")
    if not 0 <= settings["prior_below"] <= 1:
        raise InputError(f"--prior-below {settings['prior_below']}: a probability, 0 to 1")
    if settings["fill_holes"]:
        raise InputError("--fill-holes: is for the masks of tiles, polygons of scenes keep their holes; leave it out")
    if settings["truth"] and len(scenes) > 1:
        raise InputError(f"--truth: is of one scene, {len(scenes)} are given; name that one with --scene")


def check_scene(path: Path, spec: dict, settings: dict) -> None:
    """InputError for what would stop the job at this scene after hours on others: bands, the prior, no CRS."""
    with open_scene(path, spec["bands"], numbers=settings["scene_bands"]) as scene:
        if scene.crs is None and settings["min_area"]:
            raise InputError(f"{path}: has no CRS, which --min-area needs; georeference it or give --min-blob instead")
        if settings["prior"]:
            open_prior(settings["prior"], **grid_of(scene)).close()


def grid_of(scene) -> dict:
    return {"height": scene.height, "width": scene.width, "crs": scene.crs, "transform": scene.transform}


def reader(scene, spec: dict, side: int, noted: Callable) -> Callable:
    """read(window) for engine.tiling: an image as the model of `spec` takes it, and where there is data.

    noted(damaged) is called when more of the scene turns out to be damaged, before anything made of it is stored.
    """

    def read(window) -> tuple[np.ndarray, np.ndarray]:
        known = len(scene.damaged)
        tile = scene.read(window.y, window.x, window.side, window.side, size=(side, side))
        if len(scene.damaged) > known:
            noted(scene.damaged)
        return model_input(tile, spec, texture_maps(tile, spec))

    return read


def hash_models(models: list) -> str:
    weights = hashlib.sha256()
    for model, spec in models:
        for name, value in model.state_dict().items():
            weights.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
        facts = [spec[name] for name in ("model", "mean", "std", "scaling", "bands")]
        weights.update(json.dumps(facts, sort_keys=True).encode())
    return weights.hexdigest()


def files_of(path: Path) -> list:
    """[name, size, time of change] of a raster and of what it is made of (a .vrt's parts, a mask beside it)."""
    try:
        with rasterio.open(path) as file:
            parts = {Path(name) for name in file.files if Path(name).suffix.lower() not in BESIDE}
    except RasterioError:
        parts = set()  # its reader will say why
    facts = [(part.name, part.stat()) for part in sorted({path, *parts}) if part.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in facts]


def fingerprint(
    weights: str, post: dict | None, views: list[str], settings: dict, amp, scene: Path
) -> tuple[dict, str]:
    """(what the probabilities of a scene depend on, hash of that and of what is made of them).

    Without the folders, which other machines may call otherwise.
    """
    key = {"weights": weights, "scene": files_of(scene), "bands": settings["scene_bands"], "views": views}
    prior = files_of(Path(settings["prior"])) if settings["prior"] else None
    made = {name: str(settings[name]) for name in DECIDING if name != "prior"}
    made |= {"prior": prior, "amp": str(amp)}
    text = json.dumps([key, made, post], sort_keys=True, default=str)
    return key, hashlib.sha256(text.encode()).hexdigest()[:16]


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


def map_scene(path: Path, target: Path, models: list, cut, views, settings, machine,
              key: dict, made_with: str) -> None:  # fmt: skip
    """One scene to `target` (GeoTIFF), polygons and a picture beside it."""
    spec = one_reading([spec for _, spec in models])
    wrapped = [Standardised(model, own, spec) for model, own in models]
    names = ("window", "overlap", "scales", "spread", "batch_size")
    notes = notes_path(target)
    with open_scene(path, spec["bands"], numbers=settings["scene_bands"]) as scene:
        scene.damaged |= known_damage(notes, key["scene"])
        read = reader(scene, spec, settings["window"], lambda damaged: note_damage(notes, key["scene"], damaged))
        result = predict_scene(
            wrapped, read, scene.height, scene.width, to_values=class_probs, channels=2, key=key, device=machine.device,
            store=parts_path(target), amp=machine.amp, weights=settings["window_weights"],
            views=views, progress=path.name, **{name: settings[name] for name in names},
        )  # fmt: skip
        write_map(scene, target, result.strips, spec, cut, settings, made_with)
    result.close()
    notes.unlink(missing_ok=True)


def write_map(scene, target: Path, predicted: Callable, spec: dict, cut, settings: dict, made_with: str):
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
        tags = {KEY: made_with, "run": settings["run"], "threshold": repr(float(cut.threshold)),
                "blob_mean": repr(float(cut.least)), "temperature": repr(float(cut.temperature)),
                "bands": " ".join(spec["bands"]), "damaged": json.dumps(list(scene.damaged.values()))}  # fmt: skip
        names = [spec["outputs"][1], *(["spread"] if settings["spread"] else [])]
        rounded = lambda: ((y, values.astype(np.float32), valid) for y, values, valid in strips())  # noqa: E731
        write_raster(target, rounded, names=names, tags=tags, **grid)
    area = f", {found['area_m2'].sum() / 1e6:.3f} km2" if scene.crs is not None else ""
    print(f"{scene.path.name}: {len(found)} polygons{area} -> {target}, {', '.join(p.name for p in written)}")


def tags_of(path: Path) -> dict:
    try:
        with rasterio.open(path) as file:
            return file.tags()
    except RasterioError as error:
        raise InputError(f"{path}: is in the way and cannot be read ({error}); remove it") from error


def check_targets(scenes: list[Path], targets: list[Path], prints: list[tuple]) -> None:
    """InputError where a map would be written over a scene, or one of other settings is in the way."""
    originals = {scene.resolve() for scene in scenes}
    for target, (_, made_with) in zip(targets, prints, strict=True):
        if target.resolve() in originals:
            raise InputError(f"{target}: is a scene itself; give another --out for the maps")
        if target.is_file() and tags_of(target).get(KEY) != made_with:
            raise InputError(f"{target}: is a map of other models or settings; remove it or give another --out")


def map_scenes(paths, models, post, views, settings, machine, folder: Path, *, cut_of: Callable) -> bool:
    """Every scene that is not mapped yet and nobody else is mapping; whether a part of any could not be read.

    cut_of(post, settings) -> post.detection_maps.Cut, by which probabilities become blobs.
    InputError where a map of other settings is in the way; what can be said of all scenes beforehand is.
    """
    scenes, cut = list_scenes(paths), cut_of(post, settings)
    check_settings(settings, scenes)
    spec, weights = one_reading([spec for _, spec in models]), hash_models(models)
    targets = [folder / "scenes" / f"{scene.stem}.tif" for scene in scenes]
    prints = [fingerprint(weights, post, views, settings, machine.amp, scene) for scene in scenes]
    check_targets(scenes, targets, prints)
    for scene, target in zip(scenes, targets, strict=True):
        if not target.is_file():
            check_scene(scene, spec, settings)
    damaged, own = False, set()
    # looked at twice: who had a scene in hand the first time may have been killed since
    for position in chain(shared_jobs(targets), shared_jobs(targets)):
        own.add(position)
        map_scene(scenes[position], targets[position], models, cut, views, settings, machine,
                  *prints[position])  # fmt: skip
    for position, (scene, target) in enumerate(zip(scenes, targets, strict=True)):
        if not target.is_file():
            print(f"{scene.name}: another process is mapping it")
            continue
        check_targets(scenes, [target], [prints[position]])  # another process may have mapped it meanwhile
        remove_leftovers(target)
        if position not in own:
            print(f"{scene.name}: mapped before ({target})")
        damaged |= say_damage(scene.name, json.loads(tags_of(target)["damaged"]))
        if settings["truth"]:
            say_truth(target, Path(settings["truth"]), cut)
    if missing := sum(not target.is_file() for target in targets):
        print(f"{missing} of {len(targets)} scenes are not mapped: another process has them in hand; start again then")
    return damaged
