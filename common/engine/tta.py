"""Test-time views: named transforms of the whole input, each with the inverse that brings a map back.

A view is written as parts joined by "+" ("hflip+swap"). Parts that only reorder the halves of a pair cost no pass of
a shared backbone: they act on the features as they act on the image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import interpolate

from common.errors import InputError


@dataclass(frozen=True)
class View:
    forward: Callable[[torch.Tensor], torch.Tensor]  # on the input: (B,C,H,W) or (B,2,C,H,W)
    inverse: Callable[[torch.Tensor, tuple], torch.Tensor]  # on an output map, and the (H,W) it had before the view
    on_features: bool = False  # acts on axis 1 alone: the same on features (B,2,N,D)
    turns: bool = False  # height and width change places


def _swap(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flip(1)


def _own_inverse(change: Callable, **facts) -> View:
    return View(change, lambda output, size: change(output), **facts)


def _turn(quarters: int) -> View:
    return View(
        lambda image: image.rot90(quarters, (-2, -1)),
        lambda output, size: output.rot90(-quarters, (-2, -1)),
        turns=quarters % 2 == 1,
    )


def _scale(factor: float) -> View:
    """The input at another size; maps come back at the size before, bilinear both ways.

    The size is given, not the factor: of a side that is no multiple of 4 a factor alone would lose the last pixels.
    """

    def forward(image):
        size = [max(1, round(side * factor)) for side in image.shape[-2:]]
        return interpolate(image, size=size, mode="bilinear", align_corners=False)

    return View(
        forward,
        lambda output, size: interpolate(output, size=size, mode="bilinear", align_corners=False),
    )


VIEWS = {
    "identity": _own_inverse(lambda image: image),
    "hflip": _own_inverse(lambda image: image.flip(-1)),
    "vflip": _own_inverse(lambda image: image.flip(-2)),
    "rot90": _turn(1),
    "rot180": _turn(2),
    "rot270": _turn(3),
    "scale0.75": _scale(0.75),
    "scale1.25": _scale(1.25),
    "swap": _own_inverse(_swap, on_features=True),
}


def check_views(views: list[str], legal: list[str]) -> list[str]:
    """The views, identity first and each once. InputError for a part that the model's spec does not allow."""
    for view in views:
        for part in view.split("+"):
            if part not in VIEWS or part not in legal:
                raise InputError(f"--tta {view}: not a legal view of this model; choose from {', '.join(legal)}")
    return list(dict.fromkeys(["identity", *views]))


def apply_view(view: str, image: torch.Tensor) -> torch.Tensor:
    for part in view.split("+"):
        image = VIEWS[part].forward(image)
    return image


def invert_view(view: str, output: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
    """The inverse of apply_view on a map: parts undone in reverse order.

    size: (H, W) of the input before the view; without it that of the output, right where no part changes the scale.
    """
    parts, sizes = view.split("+"), [size or tuple(output.shape[-2:])]
    if size is None and sum(VIEWS[part].turns for part in parts) % 2:
        sizes = [sizes[0][::-1]]
    for part in parts:
        sizes.append(sizes[-1][::-1] if VIEWS[part].turns else sizes[-1])
    for part, before in zip(reversed(parts), reversed(sizes[:-1]), strict=True):
        output = VIEWS[part].inverse(output, before)
    return output


def split_view(view: str) -> tuple[str, str]:
    """(part on the image, part on the features): what a shared backbone must see, and what is free afterwards."""
    parts = view.split("+")
    on_image = [part for part in parts if not VIEWS[part].on_features and part != "identity"]
    on_features = [part for part in parts if VIEWS[part].on_features]
    return "+".join(on_image) or "identity", "+".join(on_features) or "identity"
