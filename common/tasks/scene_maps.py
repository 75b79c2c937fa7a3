"""Whole scenes through trained models: calibrated GeoTIFF, polygons, and what is shared between processes."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rasterio
import torch

from common.datasets.inputs import make_channels, valid_pixels
from common.datasets.prior import MODES, apply_prior, open_prior
from common.datasets.scenes import open_scene
from common.datasets.tiles import texture_maps
from common.engine.side_store import shared_jobs
from common.engine.tiling import predict_scene
from common.errors import InputError
from common.outputs.scene_files import write_raster
from common.post.polygons import SIMPLIFY, trace, write_polygons

# settings that change a map, beside the models
DECIDING = ("scales", "overlap", "window", "window_weights", "spread", "scene_bands", "prior", "prior_mode",
            "prior_below", "threshold", "at_ratio", "min_area", "min_blob", "simplify")  # fmt: skip
SUFFIXES = (".tif", ".tiff", ".vrt")
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


class Standardised(torch.nn.Module):
    """A model that takes channels not yet standardised, 0 in all of them where there is no data: each fold its own."""

    def __init__(self, model: torch.nn.Module, mean, std):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(self, channels: torch.Tensor) -> torch.Tensor:
        data = (channels != 0).any(dim=1, keepdim=True)
        return self.model(torch.where(data, (channels - self.mean) / self.std, 0.0))


def one_reading(specs: list[dict]) -> dict:
    """The spec by which scenes are read. InputError where the models do not see the same channels."""
    for spec in specs[1:]:
        if any(spec[name] != specs[0][name] for name in ("bands", "inputs", "scaling", "outputs")):
            raise InputError("--runs: the models see different bands or scalings; map each run by itself")
    return specs[0]


def list_scenes(paths: list[Path]) -> list[Path]:
    """The files of a list of files and folders. InputError for one that is not there, an empty folder, equal names."""
    found = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside or not all(p.is_file() for p in inside):
            raise InputError(f"--scene {path}: {'no GeoTIFF in it' if path.is_dir() else 'no such file'}")
        found += inside
    return found


def class_probs(model, outputs: torch.Tensor) -> torch.Tensor:
    """(B, K-1, h, w) probabilities of all classes but the first."""
    return torch.softmax(outputs.float(), dim=1)[:, 1:]


def reader(scene, spec: dict, side: int) -> Callable:
    """read(window) for engine.tiling: channels (C',side,side) not standardised, and where there is data."""

    def read(window) -> tuple[np.ndarray, np.ndarray]:
        tile = scene.read(window.y, window.x, window.side, window.side, size=(side, side))
        scaling = spec["scaling"]
        channels = make_channels(tile, bands=spec["bands"], scale=scaling["scale"], indices=scaling["indices"],
                                 texture_maps=texture_maps(tile, spec))  # fmt: skip
        valid = valid_pixels(tile)
        return np.where(valid, channels, np.float32(0)), valid

    return read


def fingerprint(models: list, post: dict | None, views: list[str], settings: dict, scene: Path) -> tuple[dict, str]:
    """(what the probabilities of a scene depend on, hash of that and of what is made of them)."""
    weights = hashlib.sha256()
    for model, spec in models:
        for name, value in model.state_dict().items():
            weights.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        weights.update(json.dumps([spec["mean"], spec["std"], spec["scaling"], spec["bands"]]).encode())
    facts = scene.stat()
    key = {"weights": weights.hexdigest(), "scene": [str(scene.resolve()), facts.st_size, facts.st_mtime_ns]}
    key |= {"bands": settings["scene_bands"], "views": views}
    text = json.dumps([key, {name: str(settings[name]) for name in DECIDING}, post], sort_keys=True, default=str)
    return key, hashlib.sha256(text.encode()).hexdigest()[:16]


def calibrated(prob: np.ndarray, temperature: float) -> np.ndarray:
    """prob with its logit divided by the temperature; probabilities of 0 and 1 stay."""
    if temperature == 1.0:
        return prob
    with np.errstate(divide="ignore"):
        odds = (np.log(prob) - np.log1p(-prob)) / np.float32(temperature)
    return (1 / (1 + np.exp(-odds))).astype(np.float32)


def finished_strips(strips: Iterator, temperature: float, prior, settings: dict) -> Iterator:
    """(first row, values (1[+1],h,W), valid) with calibrated probabilities, after the prior."""
    for y, values, valid in strips:
        prob = calibrated(values[0], temperature)
        if prior is not None:
            area = prior.read(y, 0, *prob.shape)
            prob = apply_prior(prob, area, mode=settings["prior_mode"], below=settings["prior_below"])
        yield y, np.concatenate([prob[None], values[1:]]).astype(np.float32), valid


def map_scene(path: Path, target: Path, models: list, post: dict | None, threshold: float, views, settings, machine,
              key: dict, made_with: str) -> bool:  # fmt: skip
    """One scene to `target` (GeoTIFF) and polygons beside it; whether a part of it could not be read."""
    spec = one_reading([spec for _, spec in models])
    temperature = post["temperature"] if post else 1.0
    wrapped = [Standardised(model, own["mean"], own["std"]) for model, own in models]
    names = ("window", "overlap", "scales", "spread", "batch_size")
    with open_scene(path, spec["bands"], numbers=settings["scene_bands"]) as scene:
        grid = {"height": scene.height, "width": scene.width, "crs": scene.crs, "transform": scene.transform}
        prior = open_prior(settings["prior"], **grid) if settings["prior"] else None
        result = predict_scene(
            wrapped, reader(scene, spec, settings["window"]), scene.height, scene.width, to_values=class_probs,
            store=target.with_name(f".{target.stem}.parts"), key=key, device=machine.device, amp=machine.amp,
            weights=settings["window_weights"], views=views, progress=path.name,
            **{name: settings[name] for name in names},
        )  # fmt: skip
        damaged = dict(scene.damaged)
        strips = lambda: finished_strips(result.strips(), temperature, prior, settings)  # noqa: E731
        found = trace(((y, (values[0] > threshold) & valid, values[0]) for y, values, valid in strips()),
                      transform=scene.transform, crs=scene.crs, min_area_m2=settings["min_area"],
                      min_pixels=settings["min_blob"], simplify=settings["simplify"])  # fmt: skip
        written = write_polygons(target.with_suffix(""), found, scene.crs)
        tags = {KEY: made_with, "run": settings["run"], "threshold": f"{threshold:.6g}",
                "temperature": f"{temperature:.6g}", "bands": " ".join(spec["bands"]),
                "damaged": json.dumps(list(damaged.values()))}  # fmt: skip
        names = [spec["outputs"][1], *(["spread"] if settings["spread"] else [])]
        write_raster(target, strips, names=names, tags=tags, **grid)  # last: a map that is there is whole
    result.close()
    print(f"{path.name}: {len(found)} polygons, {found['area_m2'].sum() / 1e6:.3f} km2 -> {target}, "
          f"{', '.join(p.name for p in written)}")  # fmt: skip
    for y, x, height, width in damaged.values():
        print(f"{path.name}: rows {y} to {y + height - 1}, columns {x} to {x + width - 1} could not be read: no data")
    return bool(damaged)


def tags_of(path: Path) -> dict:
    with rasterio.open(path) as file:
        return file.tags()


def map_scenes(paths, models, post, views, settings, machine, folder: Path, *, threshold_of: Callable) -> bool:
    """Every scene that is not mapped yet and nobody else is mapping; whether a part of any could not be read.

    threshold_of(post, settings) -> calibrated probability above which a pixel is of the class.
    InputError where a map of other settings is in the way.
    """
    scenes, threshold = list_scenes(paths), threshold_of(post, settings)
    targets = [folder / "scenes" / f"{scene.stem}.tif" for scene in scenes]
    damaged, own = False, set()
    prints = [fingerprint(models, post, views, settings, scene) for scene in scenes]
    for position in shared_jobs(targets):
        own.add(position)
        damaged |= map_scene(scenes[position], targets[position], models, post, threshold, views, settings, machine,
                             *prints[position])  # fmt: skip
    for position in sorted(set(range(len(scenes))) - own):
        scene, target = scenes[position], targets[position]
        if not target.is_file():
            print(f"{scene.name}: another process is mapping it")
        elif (tags := tags_of(target)).get(KEY) != prints[position][1]:
            raise InputError(f"{target}: is a map of other models or settings; remove it or give another --out")
        else:
            print(f"{scene.name}: mapped before ({target})")
            damaged |= tags.get("damaged", "[]") != "[]"
    return damaged
