"""What can be told of a network before it has seen a picture: sizes it needs, weights it does not use."""

import copy

import torch
from torch import nn

from common.errors import InputError

KNOWN: dict[tuple, frozenset[str]] = {}  # idle weights of what was built before in this process


def size_multiple(encoder: nn.Module) -> int:
    """Height and width must be multiples of it: the deepest stride, times the attention window where it is fixed."""
    windows = [max(m.partition_size) for m in encoder.modules() if hasattr(m, "partition_size")]  # MaxViT, CoAtNet
    return int(encoder.output_stride) * max(windows, default=1)


def idle_weights(net: nn.Module, encoder: str, channels: int, multiple: int) -> frozenset[str]:
    """Names of the parameters that no logit depends on; shapes alone are computed, no numbers, and once for each
    architecture: the folds of a run are all built alike.

    InputError for an encoder that takes one size of picture only.
    """
    key = (repr(net), encoder, channels, multiple)
    if key not in KNOWN:
        KNOWN[key] = found_idle(net, encoder, channels, multiple)
    return KNOWN[key]


def found_idle(net: nn.Module, encoder: str, channels: int, multiple: int) -> frozenset[str]:
    shadow = copy.deepcopy(net).to("meta").eval().requires_grad_()
    try:
        logits = shadow.segmentation_head(
            shadow.decoder(shadow.encoder(torch.empty(1, channels, multiple, 2 * multiple, device="meta")))
        )
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--encoder {encoder}: takes pictures of one size only ({str(error)[:120]}); "
            "use a convolutional one, mit_b0 … mit_b5 or a MaxViT"
        ) from error
    logits.sum().backward()
    return frozenset(name for name, parameter in shadow.named_parameters() if parameter.grad is None)
