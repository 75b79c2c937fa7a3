"""The options of the segmentation family, declared once for the scripts that have them."""

import argparse
from collections.abc import Callable, Sequence

from common.datasets.inputs import INDICES, SCALES
from common.datasets.soft_targets import KINDS as SOFT
from common.datasets.synthetic_tiles import MODES
from common.datasets.texture import LEVELS, PROPERTIES, WINDOWS
from common.datasets.tile_transforms import DEFAULT_TILE_PROBABILITIES, TILE_AUGMENTATIONS
from common.errors import InputError
from common.losses.segmentation import LOSSES, PHASES
from common.models.segmenter import ARCHS, ATTENTIONS, DECODER, FUSIONS, SPATIAL, STEMS
from common.ordinal import HEADS
from common.tasks.augmentation import augmentation_type

FLAG = argparse.BooleanOptionalAction
SAMPLERS = ("balanced", "uniform")
RATIO = "ratio"  # the sampler of tasks with one rare class


def parse_factors(items: list[str], option: str) -> dict[str, float]:
    """`name=number` items as a dict. InputError for anything else."""
    factors = {}
    for item in items:
        name, _, number = item.rpartition("=")
        try:
            factors[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"{option} {item}: write NAME=NUMBER")
    return factors


def parse_pair(text: str, option: str) -> tuple[str, str]:
    """`CLASS-CLASS` as a pair of names. InputError for anything else."""
    names = tuple(text.split("-"))
    if len(names) != 2 or not all(names):
        raise InputError(f"{option} {text}: write two classes, like glacier-debris")
    return names


def parse_label_map(items: list[str]) -> dict[int, int] | None:
    """`raw=class` items as {raw value: class index}; None where there are none."""
    factors = parse_factors(items, "--label-map")
    try:
        return {int(raw): int(index) for raw, index in factors.items()} or None
    except ValueError:
        raise InputError(f"--label-map {' '.join(items)}: write RAW=CLASS in whole numbers, like 0=0 255=1") from None


def add_data_options(parser) -> None:
    data = parser.add_argument_group("tiles")
    data.add_argument("--label-map", nargs="+", default=[], metavar="RAW=CLASS",
                      help="class of every raw label value (default: by the values of the whole set)")  # fmt: skip


def add_input_options(parser, bands: tuple[str, ...]) -> None:
    inputs = parser.add_argument_group("what the model sees")
    inputs.add_argument("--scale", choices=SCALES, default="raw", help="digital numbers as they are, or log(1 + n)")
    inputs.add_argument("--relative", nargs="*", default=[], metavar="BAND",
                        help="bands that count from their mean in the window, as elevation may")  # fmt: skip
    inputs.add_argument("--indices", nargs="*", default=[], choices=usable_indices(bands), metavar="INDEX",
                        help=f"spectral indices as further bands: {', '.join(usable_indices(bands))}")  # fmt: skip
    inputs.add_argument("--texture", nargs="*", default=[], choices=PROPERTIES, metavar="PROPERTY",
                        help=f"GLCM texture as further bands: {', '.join(PROPERTIES)}")  # fmt: skip
    inputs.add_argument("--texture-band", default="swir1" if "swir1" in bands else bands[0], metavar="BAND",
                        help="band that it is computed of (default %(default)s)")  # fmt: skip
    inputs.add_argument("--texture-levels", type=int, choices=LEVELS, default=32, help="grey levels")
    inputs.add_argument("--texture-window", type=int, choices=WINDOWS, default=7, help="side in pixels")


def usable_indices(bands: tuple[str, ...]) -> list[str]:
    return [name for name, pair in INDICES.items() if set(pair) <= set(bands)]


def add_model_options(parser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--arch", choices=sorted(ARCHS), default="unet", help="of segmentation-models-pytorch")
    model.add_argument("--encoder", default="resnet34", help="name of an smp encoder, or tu- and a timm name")
    model.add_argument("--attention", choices=ATTENTIONS, default="none", help="in the decoder")
    model.add_argument("--spatial-attention", choices=SPATIAL, default="none",
                       help="one factor a pixel, on the deepest features or before the head")  # fmt: skip
    model.add_argument("--decoder", type=int, nargs="+", default=list(DECODER), help="channels of its blocks")
    model.add_argument("--stem", choices=STEMS, default="half", help="full: keeps full resolution in the first stage")
    model.add_argument("--dropout", type=float, default=0.0, help="before the head")
    model.add_argument("--fusion", choices=FUSIONS, default="early",
                       help="late: an encoder for red, green, blue, one for the other bands")  # fmt: skip
    model.add_argument("--drop-path", type=float, default=0.0, help="stochastic depth of the encoder")


def add_loss_options(parser) -> None:
    loss = parser.add_argument_group("loss")
    loss.add_argument("--loss", nargs="+", default=["cross-entropy=.5", "dice=.5"], metavar="NAME[=WEIGHT]",
                      help=f"a phase ({', '.join(PHASES)}) or any of {', '.join(sorted(LOSSES))}")  # fmt: skip
    loss.add_argument("--focal-alpha", type=float, nargs="+", help="weight of every class (default 1 2 3 …)")
    loss.add_argument("--focal-gamma", type=float, default=2.0, help="focus on what is hard")
    loss.add_argument("--border-weight", type=float, default=3.0, help="boundary: on the borders of classes")
    loss.add_argument("--pair-weight", type=float, default=5.0, help="boundary: on the borders of --border-pairs")
    loss.add_argument("--border-pairs", nargs="*", default=[], metavar="CLASS-CLASS", help="borders that matter more")
    loss.add_argument("--border-width", type=int, default=1, help="boundary: pixels on each side")
    loss.add_argument("--mcc-phi", type=float, default=0.7, help="mcc: weight (1 - p)^phi")
    loss.add_argument("--tversky", type=float, nargs=2, default=[0.7, 0.3], metavar=("ALPHA", "BETA"),
                      help="tversky: alpha weighs false negatives, beta false positives")  # fmt: skip
    loss.add_argument("--foreground", action=FLAG, default=False,
                      help="dice, tversky: over all classes but the first, absent ones too")  # fmt: skip
    loss.add_argument("--ramp-epochs", type=int, default=30, help="boundary: epochs from 5 %% of its weight to all")
    loss.add_argument("--ignore-rim", type=int, default=0, metavar="PX",
                      help="pixels so near to the edge of a class are not trained on")  # fmt: skip
    loss.add_argument("--backbone-lr", type=float, help="learning rate of the encoder (default: as --lr)")


def add_sampling_options(parser, binary: bool) -> None:
    crops = parser.add_argument_group("crops")
    crops.add_argument("--crop", type=int, default=256, help="side in pixels")
    crops.add_argument("--crops-per-epoch", type=int, default=0, help="0: as many as cover all tiles once")
    crops.add_argument("--sampler", choices=(*SAMPLERS, RATIO) if binary else SAMPLERS, default="uniform",
                       help="balanced: the pixels shown meet --target-shares")  # fmt: skip
    if binary:
        add_ratio_options(crops)
    crops.add_argument("--target-shares", type=float, nargs="+", default=[], help="balanced: a share for every class")
    crops.add_argument("--boost", nargs="*", default=[], metavar="CLASS[-CLASS]=FACTOR",
                       help="at least FACTOR times as many crops that hold a class or a border of two")  # fmt: skip
    crops.add_argument("--augment", nargs="*", type=augmentation_type(TILE_AUGMENTATIONS, DEFAULT_TILE_PROBABILITIES),
                       metavar="NAME[=P[:STRENGTH]]",
                       default=[f"{name}={p}" for name, p in DEFAULT_TILE_PROBABILITIES.items()],
                       help=f"names: {', '.join(TILE_AUGMENTATIONS)}")  # fmt: skip
    crops.add_argument("--shuffle-images", action=FLAG, default=False,
                       help="exchange labels between tiles at random: the score must fall to a constant's")  # fmt: skip
    crops.add_argument("--oof", action=FLAG, default=True, help="keep out-of-fold maps (off: their counts only)")


def add_ratio_options(crops) -> None:
    """What only tasks with one rare class have."""
    crops.add_argument("--ratio", type=float, nargs="+", default=[10.0], metavar="R",
                       help="sampler ratio: negative tiles a positive; two: from the first to the second")  # fmt: skip
    crops.add_argument("--ratio-epochs", type=int, default=0, help="epochs from the first --ratio to the second")
    crops.add_argument("--scales-train", type=float, nargs="+", default=[1.0], metavar="S",
                       help="sampler ratio: windows of crop / S pixels, resampled to the crop")  # fmt: skip
    crops.add_argument("--soft-labels", choices=("none", *SOFT), default="none",
                       help="confidence that falls across the edge of the class")  # fmt: skip
    crops.add_argument("--soft-width", type=float, default=2.0, help="of soft labels, in pixels")


def add_ordered_options(parser) -> None:
    """What only tasks with ordered classes have."""
    ordered = parser.add_argument_group("ordered classes")
    ordered.add_argument("--head", choices=HEADS, default="softmax",
                         help="coral: one score against ordered limits; corn: a question after the other")  # fmt: skip
    ordered.add_argument("--ordinal-weight", type=float, help="of the loss of coral or corn (default .3)")
    ordered.add_argument("--ordinal-smoothing", type=float, default=0.0, metavar="SHARE",
                         help="of a label, for the classes next to it")  # fmt: skip
    ordered.add_argument("--oversample-target", type=float, default=0.0, metavar="SHARE", help="of the labelled pixels "
                         "that --oversample-class shall have: tiles rich in it are repeated (0: none)")  # fmt: skip
    ordered.add_argument("--oversample-class", metavar="CLASS", help="default: the second")
    ordered.add_argument("--smote", action=FLAG, default=False, help="synthetic tiles where that does not suffice")
    ordered.add_argument("--smote-k", type=int, default=5, help="neighbours that a synthetic sample may go towards")
    ordered.add_argument("--smote-mode", choices=MODES, default="windows",
                         help="windows keep what lies around a pixel; pixels are packed row by row")  # fmt: skip


def add_post_options(parser, levels: Sequence[str] = ()) -> None:
    """levels: gates of the task that thresholds can be fitted for, by name."""
    post = parser.add_argument_group("post-processing")
    words, aimed = "|".join([*levels, "fitted", "argmax", "T"]), f" (for gates: {', '.join(levels)})" if levels else ""
    post.add_argument("--thresholds", nargs="+", default=["fitted"], metavar=words, help="of the classes: fitted on "
                      f"out-of-fold predictions{aimed}, none, or a number for each")  # fmt: skip
    post.add_argument("--min-area", type=int, nargs="+", metavar="PX", help="components under it are dropped; one "
                      "number, or one per class but the first (default: as the blend was judged, else 0)")  # fmt: skip
    post.add_argument("--fill-holes", type=int, metavar="PX",
                      help="holes under so many pixels are filled (default likewise)")  # fmt: skip


def add_options(parser, script: str, bands: tuple[str, ...], *, binary: bool, ordered: bool, post: Callable) -> None:
    """What each script knows of the family; binary: one class beside the background; ordered: see add_ordered_options;
    post: adds its own."""
    if script in ("folds", "train"):
        add_data_options(parser)
    if script == "train":
        add_input_options(parser, bands)
        add_model_options(parser)
        add_loss_options(parser)
        add_sampling_options(parser, binary)
        if ordered:
            add_ordered_options(parser)
    if script in ("infer", "ensemble"):
        post(parser)
