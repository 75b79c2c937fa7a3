"""Whole scenes of ordered classes: a raster of the classes, one of the susceptibility, and one of that in steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from common.datasets.inputs import channel_statistics, valid_pixels
from common.datasets.label_grids import VECTORS, grid_difference
from common.datasets.whole_scenes import WholeScene, open_whole_scene
from common.errors import InputError
from common.outputs.scene_files import write_raster
from common.outputs.scene_picture import MOST, ClassPicture, draw_classes, overview
from common.outputs.tile_pictures import class_colours, rgb
from common.post.crf import Crf, guide_of, refine, refine_large
from common.post.susceptibility import BREAKS, WAYS, calibrated, susceptibility_classes
from common.post.thresholds import over_thresholds
from common.tasks import scene_jobs
from common.tasks.crf_options import CRF_OPTIONS, crf_of, guide_bands
from common.tasks.ordered import settled, thresholds_of
from common.tasks.ordered_truth import say_truth
from common.tasks.scene_jobs import LOOK, MapKind, add_window_options, grid_of, map_tags

# settings that change a map, beside the models
DECIDING = (*LOOK, "thresholds", "crf", "crf_bands", *CRF_OPTIONS.values(), "susceptibility", "breaks")
NODATA = 255
WHOLE = 2048 * 2048  # pixels up to which the CRF sees a scene at once
CRF_TILE = 1024
SAMPLE = 64  # windows of SIDE pixels that the spread of a guide's bands is taken from
SIDE = 256


def add_map_options(parser) -> None:
    """Options of infer.py --scene."""
    scene = parser.add_argument_group("scenes")
    add_window_options(scene, window=1024, overlap=0.25)
    scene.add_argument("--susceptibility", choices=WAYS, default=WAYS[0], help="as it is, or calibrated as fitted")
    scene.add_argument("--breaks", type=float, nargs=2, default=list(BREAKS), metavar="S",
                       help="susceptibility from which on the second and the third step are reached")  # fmt: skip
    scene.add_argument("--truth", type=Path, metavar="FILE", help="raster of the classes, with the values of the "
                       "labels, that the map of the one scene is scored by")  # fmt: skip


def check_settings(settings: dict, *, classes: int, post: dict | None) -> None:
    """InputError for numbers that make no sense, what was not fitted, and options that say nothing about scenes."""
    thresholds_of(settings, post, classes)
    crf_of(settings)
    even = np.full((classes, 1), 1 / classes, np.float32)
    susceptibility_classes(calibrated(even, post, settings["susceptibility"]), settings["breaks"])
    for name, given in (("min-area", any(settings["min_area"])), ("fill-holes", settings["fill_holes"])):
        if given:
            raise InputError(f"--{name}: is for the masks of tiles, maps of scenes keep every pixel; leave it out")


def check_scene(scene: WholeScene, settings: dict, *, post: dict | None) -> None:
    """InputError for what would stop the job at this scene after hours: bands of the CRF, labels of another place."""
    if settings["crf"]:
        open_guide(scene, settings, post).close()
    if settings["truth"]:
        if Path(settings["truth"]).suffix.lower() in VECTORS:
            raise InputError(f"--truth {settings['truth']}: polygons tell no ordered classes; give a raster of them")
        grid_difference(settings["truth"], scene.path)


# probabilities to classes


def open_guide(scene: WholeScene, settings: dict, post: dict | None) -> WholeScene:
    """The scene by the bands that guide the CRF: by default the first three of the tiles that were trained on.

    InputError where it lacks one, or --scene-bands leaves open which it is.
    """
    bands = guide_bands(settings, list((post or {}).get("bands", scene.bands)))
    if settings["scene_bands"] is None:
        return open_whole_scene(scene.path, bands)
    known = dict(zip(scene.bands, scene.numbers, strict=True))
    for band in bands:
        if band not in known:
            raise InputError(
                f"--crf-bands {band}: --scene-bands gives the numbers of {', '.join(known)}; name one of them"
            )
    return open_whole_scene(scene.path, bands, numbers=[known[band] for band in bands])


def guide_statistics(guide: WholeScene, post: dict | None) -> tuple[list, list]:
    """(mean, deviation) of the guide's bands: as the training tiles have them (post.json), else of windows spread over
    the scene; 0 and 1 where it has no data at all."""
    known = (post or {}).get("bands", {})
    if set(guide.bands) <= set(known):
        mean, deviation = zip(*(known[band] for band in guide.bands), strict=True)
        return list(mean), list(deviation)
    corners = [(y, x) for y in range(0, guide.height, SIDE) for x in range(0, guide.width, SIDE)]
    order, seen = np.random.default_rng(0).permutation(len(corners)), []
    for index in order:
        tile = guide.read(*corners[index], SIDE, SIDE)
        if tile.any():
            seen.append((tile, valid_pixels(tile)))
        if len(seen) == SAMPLE:
            break
    return channel_statistics(seen) if seen else ([0.0] * len(guide.bands), [1.0] * len(guide.bands))


class Parts:
    """Any part of what comes in strips: (values float32 (K,h,w), valid bool (h,w)). The rows asked for last are held.

    strips(begin, end): those that touch these rows, as engine.tiling.SceneMap has them.
    """

    def __init__(self, strips: Callable[[int, int], Iterator]):
        self.strips, self.rows, self.held = strips, None, None

    def __call__(self, y: int, x: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        if self.rows != (y, height):
            self.held = None  # before the next rows are there, lest both are in memory
            pieces = [(values[:, max(y - top, 0) : y + height - top], valid[max(y - top, 0) : y + height - top])
                      for top, values, valid in self.strips(y, y + height)]  # fmt: skip
            values, valid = zip(*pieces, strict=True)
            self.rows, self.held = (y, height), (np.concatenate(values, axis=1), np.concatenate(valid))
        values, valid = self.held
        return values[:, :, x : x + width], valid[:, x : x + width]


def refined_strips(strips: Callable, guide: WholeScene, post: dict | None, crf: Crf) -> Iterator:
    """(first row, probabilities float32 (K,h,W), valid) after the CRF, whose guide is the scene."""
    mean, deviation = guide_statistics(guide, post)
    parts, height, width = Parts(strips), guide.height, guide.width

    def read_guide(y: int, x: int, h: int, w: int) -> np.ndarray:
        tile = guide.read(y, x, h, w)
        return guide_of(tile, mean, deviation, valid_pixels(tile))

    if height * width <= WHOLE:
        prob, valid = parts(0, 0, height, width)
        yield 0, refine(prob, read_guide(0, 0, height, width), valid, **asdict(crf)), valid
        return
    done = refine_large(lambda *part: parts(*part)[0], read_guide, lambda *part: parts(*part)[1], height, width,
                        tile=CRF_TILE, **asdict(crf))  # fmt: skip
    for y, prob in done:
        yield y, prob, parts(y, 0, prob.shape[1], width)[1]


@contextmanager
def class_strips(scene: WholeScene, predicted: Callable, settings: dict, post: dict | None):
    """A function that gives fresh (first row, classes uint8 (1,h,W), valid), by thresholds and, if asked, the CRF."""

    def scaled(*rows: int) -> Iterator:
        for y, prob, valid in predicted(*rows):
            yield y, over_thresholds(prob, thresholds_of(settings, post, len(prob))), valid

    def largest(strips: Iterator) -> Iterator:
        for y, prob, valid in strips:
            yield y, prob.argmax(0)[None].astype(np.uint8), valid

    crf = crf_of(settings)
    if crf is None:
        yield lambda: largest(scaled())
        return
    with open_guide(scene, settings, post) as guide:
        yield lambda: largest(refined_strips(scaled, guide, post, crf))


# what is written


def map_files(stem: str) -> list[str]:
    return [f"{stem}{kind}.tif" for kind in ("_class", "_susceptibility", "_susceptibility_class")]


def colour_table(classes: int) -> dict[int, tuple]:
    """{class: (red, green, blue, alpha)}, the colours that the pictures have; nothing is transparent but no data."""
    return {k: (*rgb(shade), 255) for k, shade in class_colours(range(classes)).items()} | {NODATA: (0, 0, 0, 0)}


def drawn(strips: Iterator, picture: ClassPicture, finish: Callable) -> Iterator:
    """The strips as they are, with their classes in the picture; finish() after the last one."""
    for y, classes, valid in strips:
        picture.add(y, classes[0], valid)
        yield y, classes, valid
    finish()


def write_map(scene: WholeScene, target: Path, predicted: Callable, spec: dict, settings: dict, made_with: str, *,
              post: dict | None) -> None:  # fmt: skip
    """Rasters and picture of a predicted scene; that of the classes last: a map that is there is whole."""
    grid, outputs = grid_of(scene), spec["outputs"]
    _, values_file, steps_file = (target.with_name(name) for name in map_files(target.stem.removesuffix("_class")))
    image = target.with_name(f"{target.stem.removesuffix('_class')}.jpg")

    def values() -> Iterator:
        for y, prob, valid in predicted():
            yield y, calibrated(prob, post, settings["susceptibility"])[None], valid

    steps = lambda: ((y, susceptibility_classes(one, settings["breaks"]), valid) for y, one, valid in values())  # noqa: E731
    picture, view = ClassPicture(scene.height, scene.width, outputs), overview(scene, MOST)[0]
    tags = map_tags(scene, spec, settings, made_with)
    tags |= {"susceptibility": settings["susceptibility"], "breaks": " ".join(map(str, settings["breaks"]))}
    write_raster(values_file, values, names=["susceptibility"], tags=tags, **grid)
    write_raster(steps_file, steps, names=["susceptibility class"], tags=tags, nodata=NODATA,
                 colours=colour_table(len(settings["breaks"]) + 1), **grid)  # fmt: skip
    with class_strips(scene, predicted, settings, post) as strips:
        seen = lambda: drawn(strips(), picture, lambda: draw_classes(view, picture, image))  # noqa: E731
        write_raster(target, seen, names=["class"], tags=tags | {"classes": " ".join(outputs)}, nodata=NODATA,
                     colours=colour_table(len(outputs)), **grid)  # fmt: skip
    pixels = picture.counts.sum(axis=(1, 2), dtype=np.int64)
    shares = ", ".join(f"{name} {n / max(pixels.sum(), 1):.1%}" for name, n in zip(outputs, pixels, strict=True))
    beside = ", ".join(path.name for path in (values_file, steps_file, image))
    print(f"{scene.path.name}: {shares} of {pixels.sum():,} pixels with data -> {target}, {beside}")


def map_scenes(paths, models, post, views, settings, machine, folder: Path) -> bool:
    """scene_jobs.map_scenes of ordered classes: per scene <stem>_class.tif (uint8, NODATA where there is none),
    <stem>_susceptibility.tif (float32 0..1, NaN), <stem>_susceptibility_class.tif (uint8, steps at --breaks) and a
    picture <stem>.jpg, in <folder>/scenes. Susceptibility is of the probabilities before thresholds and CRF."""
    settings = settled(settings, post)
    if relative := models[0][1]["scaling"].get("relative"):
        print(f"{', '.join(relative)}: relative to the mean of a window, in training to that of a tile; best is a "
              "--window of their side")  # fmt: skip
    kind = MapKind(
        deciding=DECIDING,
        names=map_files,
        check_settings=partial(check_settings, classes=len(models[0][1]["outputs"]), post=post),
        check_scene=partial(check_scene, post=post),
        write=partial(write_map, post=post),
        say_truth=say_truth,
        open_scene=open_whole_scene,
    )
    return scene_jobs.map_scenes(paths, models, post, views, settings, machine, folder, kind=kind)
