"""Whole scenes through trained models: what any map has in common, a list of scenes shared between processes."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from rasterio.errors import RasterioError

from common.datasets.inputs import model_input
from common.datasets.rasters import open_checked
from common.datasets.scenes import Scene, open_scene
from common.datasets.tiles import texture_maps
from common.engine.side_store import shared_jobs
from common.engine.tiling import plan_windows, predict_scene
from common.errors import InputError
from common.ordinal import class_logits
from common.tasks.scene_notes import known_damage, note_damage, notes_path, parts_path, remove_leftovers, say_damage

LOOK = ("scales", "overlap", "window", "window_weights", "scene_bands")  # settings: how models look at a scene
SUFFIXES = (".tif", ".tiff", ".vrt")
BESIDE = (".xml", ".ovr")  # of a scene's files, those that viewers add
LEAST = 32  # pixels of a window's side
KEY = "LANDFOLD_KEY"  # tag of a map: what it was made with


@dataclass(frozen=True)
class MapKind:
    """What one kind of map differs by from another."""

    deciding: tuple[str, ...]  # settings that change a map, beside the models
    names: Callable[[str], list[str]]  # stem of a scene -> its rasters, the one first that is written last
    check_settings: Callable[[dict], None]  # InputError for numbers that make no sense
    check_scene: Callable[[Scene, dict], None]  # (scene, settings): InputError for what would stop the job at it
    write: Callable[..., None]  # (scene, target, predicted, spec, settings, made_with): files of a predicted scene
    say_truth: Callable[[Path, Path, dict, dict], None]  # (target, labels, spec, settings): how good a map is
    rasters: tuple[str, ...] = ()  # of the deciding settings, those that name a raster
    open_scene: Callable[..., Scene] = open_scene  # (path, bands, numbers=): by which rule a pixel has data


def add_window_options(group, *, window: int, overlap: float) -> None:
    """Options of infer.py --scene that any map has; window, overlap: the defaults."""
    group.add_argument("--scene-bands", type=int, nargs="+", metavar="NUMBER",
                       help="numbers of the model's bands in the file (default: by their names)")  # fmt: skip
    group.add_argument("--window", type=int, default=window, help="side in pixels of what the model sees")
    group.add_argument("--overlap", type=float, default=overlap, help="of neighbouring windows")
    group.add_argument("--window-weights", choices=("hann", "gaussian"), default="hann", help="of overlapping windows")
    group.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S",
                       help="resolutions to look at: .5 sees a window twice as wide")  # fmt: skip


class Standardised(torch.nn.Module):
    """A model that takes images standardised as the first model's: 0 in all channels where there is no data."""

    def __init__(self, model: torch.nn.Module, own: dict, first: dict):
        super().__init__()
        self.model, self.same = model, (own["mean"], own["std"]) == (first["mean"], first["std"])
        self.head = model.head  # says what the outputs mean
        self.train(model.training)
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
    """The files of a list of files and folders. InputError for one that is not there, and an empty folder."""
    found = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
        if not inside or not all(p.is_file() for p in inside):
            raise InputError(f"--scene {path}: {'no GeoTIFF in it' if path.is_dir() else 'no such file'}")
        found += inside
    return found


def files_of_maps(scenes: list[Path], folder: Path, kind: MapKind) -> list[list[Path]]:
    """For each scene the rasters of its map, see MapKind.names. InputError where two scenes have one of a name."""
    first: dict[str, Path] = {}
    for scene in scenes:
        for name in kind.names(scene.stem):
            if first.setdefault(name, scene) is not scene:
                raise InputError(f"--scene: {first[name]} and {scene} would both become {name}; rename one, "
                                 "or map them in two calls with an --out of their own")  # fmt: skip
    return [[folder / "scenes" / name for name in kind.names(scene.stem)] for scene in scenes]


def class_probs(model, outputs: torch.Tensor) -> torch.Tensor:
    """(B,K,h,w) probabilities of all classes: a mean of each keeps its digits where another is near 1."""
    return torch.softmax(class_logits(outputs, model.head), dim=1)


def check_windows(settings: dict, scenes: list[Path]) -> None:
    """InputError for numbers of `add_window_options` that make no sense, or labels of one scene for many."""
    if settings["window"] < LEAST:
        raise InputError(f"--window {settings['window']}: at least {LEAST} pixels")
    plan_windows(1, 1, overlap=settings["overlap"], scales=settings["scales"])
    if settings["truth"] and len(scenes) > 1:
        raise InputError(f"--truth: is of one scene, {len(scenes)} are given; name that one with --scene")


def grid_of(scene: Scene) -> dict:
    return {"height": scene.height, "width": scene.width, "crs": scene.crs, "transform": scene.transform}


def reader(scene: Scene, spec: dict, side: int, noted: Callable) -> Callable:
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
        with open_checked(path) as file:
            parts = {Path(name) for name in file.files if Path(name).suffix.lower() not in BESIDE}
    except (RasterioError, OSError, InputError):
        parts = set()  # its reader will say why
    facts = [(part.name, part.stat()) for part in sorted({path, *parts}) if part.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in facts]


def fingerprint(
    weights: str, post: dict | None, views: list[str], settings: dict, amp, scene: Path, kind: MapKind
) -> tuple[dict, str]:
    """(what the probabilities of a scene depend on, hash of that and of what is made of them).

    Without the folders, which other machines may call otherwise.
    """
    key = {"weights": weights, "scene": files_of(scene), "bands": settings["scene_bands"], "views": views}
    made = {name: str(settings[name]) for name in kind.deciding if name not in kind.rasters}
    made |= {name: files_of(Path(settings[name])) if settings[name] else None for name in kind.rasters}
    made |= {"amp": str(amp)}
    text = json.dumps([key, made, post], sort_keys=True, default=str)
    return key, hashlib.sha256(text.encode()).hexdigest()[:16]


def map_tags(scene: Scene, spec: dict, settings: dict, made_with: str) -> dict[str, str]:
    """Tags of a map: by what it was made, and the parts of the scene that could not be read so far."""
    damaged = json.dumps(list(scene.damaged.values()))
    return {KEY: made_with, "run": settings["run"], "bands": " ".join(spec["bands"]), "damaged": damaged}


def map_scene(path: Path, target: Path, models: list, kind: MapKind, views, settings, machine,
              key: dict, made_with: str) -> None:  # fmt: skip
    """One scene to `target` (GeoTIFF) and what its kind of map writes beside it."""
    spec = one_reading([spec for _, spec in models])
    wrapped = [Standardised(model, own, spec) for model, own in models]
    names = ("window", "overlap", "scales", "batch_size")
    notes = notes_path(target)
    with kind.open_scene(path, spec["bands"], numbers=settings["scene_bands"]) as scene:
        scene.damaged |= known_damage(notes, key["scene"])
        read = reader(scene, spec, settings["window"], lambda damaged: note_damage(notes, key["scene"], damaged))
        result = predict_scene(
            wrapped, read, scene.height, scene.width, to_values=class_probs, channels=len(spec["outputs"]), key=key,
            device=machine.device, store=parts_path(target), amp=machine.amp, weights=settings["window_weights"],
            spread=settings.get("spread", False), views=views, progress=path.name,
            **{name: settings[name] for name in names},
        )  # fmt: skip
        kind.write(scene, target, result.strips, spec, settings, made_with)
    result.close()
    notes.unlink(missing_ok=True)


def tags_of(path: Path) -> dict:
    try:
        with open_checked(path) as file:
            return file.tags()
    except (RasterioError, OSError) as error:
        raise InputError(f"{path}: is in the way and cannot be read ({error}); remove it") from error


def check_targets(scenes: list[Path], maps: list[list[Path]], prints: list[tuple]) -> None:
    """InputError where a map would be written over a scene, or one of other settings, or a part of one, is there."""
    originals = {scene.resolve() for scene in scenes}
    for (target, *others), (_, made_with) in zip(maps, prints, strict=True):
        for path in (target, *others):
            if path.resolve() in originals:
                raise InputError(f"{path}: is a scene itself; give another --out for the maps")
        if not target.is_file():
            continue
        if tags_of(target).get(KEY) != made_with:
            raise InputError(f"{target}: is a map of other models or settings; remove it or give another --out")
        for path in others:
            if not path.is_file():
                raise InputError(f"{target}: is there without {path.name}; remove it, so that both are made again")


def map_scenes(paths, models, post, views, settings, machine, folder: Path, *, kind: MapKind) -> bool:
    """Every scene that is not mapped yet and nobody else is mapping; whether a part of any could not be read.

    InputError where a map of other settings is in the way; what can be said of all scenes beforehand is.
    """
    scenes = list_scenes(paths)
    maps = files_of_maps(scenes, folder, kind)
    targets = [files[0] for files in maps]
    check_windows(settings, scenes)
    kind.check_settings(settings)
    spec, weights = one_reading([spec for _, spec in models]), hash_models(models)
    prints = [fingerprint(weights, post, views, settings, machine.amp, scene, kind) for scene in scenes]
    check_targets(scenes, maps, prints)
    for scene, target in zip(scenes, targets, strict=True):
        if not target.is_file():
            with kind.open_scene(scene, spec["bands"], numbers=settings["scene_bands"]) as opened:
                kind.check_scene(opened, settings)
    damaged, own = False, set()
    # looked at twice: who had a scene in hand the first time may have been killed since
    for position in chain(shared_jobs(targets), shared_jobs(targets)):
        own.add(position)
        map_scene(scenes[position], targets[position], models, kind, views, settings, machine,
                  *prints[position])  # fmt: skip
    for position, (scene, target) in enumerate(zip(scenes, targets, strict=True)):
        if not target.is_file():
            print(f"{scene.name}: another process is mapping it")
            continue
        check_targets(scenes, [maps[position]], [prints[position]])  # another process may have mapped it meanwhile
        remove_leftovers(target)
        if position not in own:
            print(f"{scene.name}: mapped before ({target})")
        damaged |= say_damage(scene.name, json.loads(tags_of(target)["damaged"]))
        if settings["truth"]:
            kind.say_truth(target, Path(settings["truth"]), spec, settings)
    if missing := sum(not target.is_file() for target in targets):
        print(f"{missing} of {len(targets)} scenes are not mapped: another process has them in hand; start again then")
    return damaged
