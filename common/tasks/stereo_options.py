"""The options of the stereo family, declared once for the scripts that have them."""

import argparse
from pathlib import Path

from common.datasets.transforms import AUGMENTATIONS, DEFAULT_PROBABILITIES
from common.losses.regression import LOSSES
from common.models.backbone import POOLS
from common.models.classical import HEADS
from common.models.fusion import FUSIONS
from common.tasks.augmentation import augmentation_type

FLAG = argparse.BooleanOptionalAction


def add_data_options(parser) -> None:
    data = parser.add_argument_group("photos")
    data.add_argument("--mask-stamp", action=FLAG, default=False, help="inpaint the orange date stamp")
    data.add_argument("--photo-size", type=int, nargs=2, default=[1000, 2000], metavar=("H", "W"),
                      help="size every photo must have, pixels (0 0 = any)")  # fmt: skip
    data.add_argument("--drop-ids", type=Path, help="text file of ids to leave out, one a line")
    data.add_argument("--allow-missing-targets", action=FLAG, default=False, help="mask missing targets")
    data.add_argument("--shuffle-images", action=FLAG, default=False,
                      help="exchange photos between rows at random: the score must fall to a constant's")  # fmt: skip


def add_model_options(parser, outputs: tuple[str, ...]) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--backbone", default="vit_base_patch14_reg4_dinov2.lvd142m", help="any timm model")
    model.add_argument("--grid", type=int, nargs=2, default=[2, 2], metavar=("R", "C"), help="cells of each half")
    model.add_argument("--cell-size", type=int, default=252, help="pixels of a cell's side")
    model.add_argument("--pool", choices=POOLS, default="cls", help="tokens to features")
    model.add_argument("--blocks", type=int, nargs="*", default=[], help="join class tokens of these blocks (6 9 11)")
    model.add_argument("--fusion", choices=sorted(FUSIONS), default="film", help="how the halves inform each other")
    model.add_argument("--hidden-ratio", type=float, default=0.5, help="hidden units over joined features")
    model.add_argument("--dropout", type=float, default=0.2, help="in the heads")
    model.add_argument("--drop-path", type=float, default=0.0, help="stochastic depth of the backbone")
    model.add_argument("--standardise", action=FLAG, default=False, help="every photo at mean 0 and deviation 1")
    model.add_argument("--uncertainty", action=FLAG, default=False, help="heads give a 90 %% interval too")
    model.add_argument("--two-part", nargs="*", choices=outputs, default=[], metavar="OUTPUT",
                       help="outputs learnt as zero-or-not times how much")  # fmt: skip
    model.add_argument("--head", choices=["mlp", *sorted(HEADS)], default="mlp",
                       help="mlp by gradient, or scikit-learn on features or statistics")  # fmt: skip


def add_aux_options(parser, aux_classes: dict[str, int]) -> None:
    aux = parser.add_argument_group("auxiliary heads (training only)")
    aux.add_argument("--use-aux-heads", action=FLAG, default=False, help="learn metadata beside the targets")
    for name, weight in zip(aux_classes, (3.0, 5.0, 2.0), strict=False):
        aux.add_argument(f"--aux-{name}-weight", type=float, default=weight, help=f"weight of the {name} loss")
    aux.add_argument("--distill", action=FLAG, default=False, help="a teacher that sees the auxiliary outputs guides")
    aux.add_argument("--distill-weight", type=float, default=0.5, help="weight of the guidance")
    aux.add_argument("--distill-warmup", type=int, default=5, help="epochs for the auxiliary heads alone")


def add_training_options(parser, outputs: tuple[str, ...]) -> None:
    loss = parser.add_argument_group("loss")
    loss.add_argument("--loss", choices=sorted(LOSSES), default="smooth-l1", help="of the five targets")
    loss.add_argument("--target-weights", nargs="+", default=["total-heavy"], help="equal, total-heavy or numbers")
    loss.add_argument("--constraint-weight", type=float, default=0.0, help="weight of the identities (0 = off)")
    loss.add_argument("--log-targets", nargs="*", choices=outputs, default=[], metavar="OUTPUT",
                      help="outputs learnt in log1p space")  # fmt: skip
    stages = parser.add_argument_group("stages")
    stages.add_argument("--two-stage", action=FLAG, default=False, help="heads first, then everything")
    stages.add_argument("--freeze-epochs", type=int, default=10, help="epochs of the first stage")
    stages.add_argument("--head-lr-stage1", type=float, default=1e-3, help="learning rate of the first stage")
    stages.add_argument("--backbone-lr", type=float, default=1e-5, help="learning rate of the backbone")
    stages.add_argument("--freeze-backbone", action=FLAG, default=False, help="train the heads only")
    stages.add_argument("--store-views", type=int, default=4,
                        help="augmented views embedded once for a frozen backbone (0 = embed anew)")  # fmt: skip
    stages.add_argument("--unfreeze-blocks", type=int, default=0, help="train the last N blocks only (0 = all)")
    stages.add_argument("--layer-decay", type=float, default=1.0, help="learning rate factor from block to block")
    mixing = parser.add_argument_group("augmentation")
    mixing.add_argument("--augment", nargs="*", type=augmentation_type(AUGMENTATIONS, DEFAULT_PROBABILITIES),
                        metavar="NAME[=P[:STRENGTH]]",
                        default=[f"{name}={p}" for name, p in DEFAULT_PROBABILITIES.items()],
                        help=f"the same geometry on both halves; names: {', '.join(AUGMENTATIONS)}")  # fmt: skip
    mixing.add_argument("--photometric-independent", action=FLAG, default=False, help="colours of the halves apart")
    mixing.add_argument("--swap-prob", type=float, default=0.5, help="chance that the halves change places")
    mixing.add_argument("--mixup-alpha", type=float, default=0.4, help="lambda ~ Beta(alpha, alpha)")
    mixing.add_argument("--mixup-prob", type=float, default=0.0, help="share of rows mixed by MixUp (0 = off)")
    mixing.add_argument("--cutmix-alpha", type=float, default=1.0, help="lambda ~ Beta(alpha, alpha)")
    mixing.add_argument("--cutmix-prob", type=float, default=0.0, help="share of rows mixed by CutMix (0 = off)")
    mixing.add_argument("--mix-within", nargs="*", default=[], metavar="COLUMN", help="partners share these columns")


def add_options(parser, script: str, outputs: tuple[str, ...], aux_classes: dict[str, int]) -> None:
    """What each script knows of the family: all of them the photos, train.py the model and its training."""
    if script in ("folds", "train"):
        add_data_options(parser)
    if script == "train":
        add_model_options(parser, outputs)
        if aux_classes:
            add_aux_options(parser, aux_classes)
        add_training_options(parser, outputs)
