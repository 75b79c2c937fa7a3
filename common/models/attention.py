"""What smp's decoders lack: squeeze-and-excitation of channels alone, and features at full resolution."""

import torch
from segmentation_models_pytorch.base.modules import SCSEModule
from torch import nn


class ChannelAttention(nn.Module):
    """x * gate(x): one factor per channel from the mean over the picture (cSE of Roy et al. 2018, arXiv:1803.02579).

    `gate` is the channel half of an smp SCSEModule, so the names of the weights are a subset of those of scSE.
    """

    def __init__(self, gate: nn.Module):
        super().__init__()
        self.cSE = gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.cSE(x)


def channels_only(decoder: nn.Module) -> int:
    """Turn every scSE module of an smp decoder into cSE; how many there were."""
    found = [module for module in decoder.modules() if isinstance(getattr(module, "attention", None), SCSEModule)]
    for module in found:
        module.attention = ChannelAttention(module.attention.cSE)
    return len(found)


def two_convolutions(wide: int, narrow: int) -> nn.Sequential:
    """VGG's block: twice 3x3 convolution, batch norm, ReLU; the size stays."""
    layers = []
    for width in (wide, narrow):
        layers += [nn.Conv2d(width, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class FullResolution(nn.Module):
    """Joins features of the whole picture's size to those of the decoder, whose last skip is at half of it.

    image_channels > 0: a VGG-like stem of two convolutions makes them from the image; 0: the encoder gives them
    (width `width`). Source (B,width or image_channels,H,W) and decoded (B,D,H,W) -> (B,D,H,W).
    """

    def __init__(self, *, image_channels: int, width: int, decoded: int):
        super().__init__()
        self.stem = two_convolutions(image_channels, width) if image_channels else nn.Identity()
        self.merge = two_convolutions(decoded + width, decoded)

    def forward(self, source: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        return self.merge(torch.cat([decoded, self.stem(source)], 1))
