"""Test-time views: named transforms of the whole input, each with the inverse that brings a map back.

A view is written as parts joined by "+" ("hflip+swap"). Parts that only reorder the halves of a pair cost no pass of
a shared backbone: they act on the features as they act on the image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from common.errors import InputError


@dataclass(frozen=True)
class View:
    forward: Callable[[torch.Tensor], torch.Tensor]  # on the input: (B,C,H,W) or (B,2,C,H,W)
    inverse: Callable[[torch.Tensor], torch.Tensor]  # on an output map with the same last axes
    on_features: bool = False  # acts on axis 1 alone: the same on features (B,2,N,D)


def _swap(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flip(1)


VIEWS = {
    "identity": View(lambda image: image, lambda image: image),
    "hflip": View(lambda image: image.flip(-1), lambda image: image.flip(-1)),
    "vflip": View(lambda image: image.flip(-2), lambda image: image.flip(-2)),
    "swap": View(_swap, _swap, on_features=True),
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


def invert_view(view: str, output: torch.Tensor) -> torch.Tensor:
    """The inverse of apply_view on a map: parts undone in reverse order."""
    for part in reversed(view.split("+")):
        output = VIEWS[part].inverse(output)
    return output


def split_view(view: str) -> tuple[str, str]:
    """(part on the image, part on the features): what a shared backbone must see, and what is free afterwards."""
    parts = view.split("+")
    on_image = [part for part in parts if not VIEWS[part].on_features and part != "identity"]
    on_features = [part for part in parts if VIEWS[part].on_features]
    return "+".join(on_image) or "identity", "+".join(on_features) or "identity"
