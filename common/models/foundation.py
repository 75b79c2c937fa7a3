"""Plain vision transformers (`vit-` and a name of timm, of geo_vit or `sam3`) as encoders for smp's decoders; DPT."""

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn

from common.errors import InputError
from common.models.geo_vit import GEO, GeoViT
from common.models.sam3 import SAM3, Sam3ViT

PREFIX = "vit-"
PYRAMID = 256  # channels of every level of the pyramid
STRIDE = 16  # pictures for patches of 14 are scaled by 14/16, so that a token stands for 16 pixels
LEVELS = 4
DPT = {"intermediate_channels": (256, 512, 1024, 1024), "fusion_channels": 256}  # those of the paper


class Tokens(nn.Module):
    """A plain ViT: image (B,C,H,W) -> maps (B,D,H/stride,W/stride) of `count` depths evenly apart (`maps`).

    `model` keeps the names of the weight files. The last map is of the last block; one alone is taken after the last
    norm (of a SAM encoder: after its neck), several before it. Raises InputError for what is no plain ViT.
    """

    def __init__(self, name: str, channels: int, *, count: int, bands=(), drop_path: float = 0.0):
        super().__init__()
        self.model = make_vit(name.removeprefix(PREFIX), channels, bands, drop_path)
        info = self.model.feature_info
        if count > len(info):
            raise InputError(f"--encoder {name}: has {len(info)} blocks, maps of {count} depths are asked for")
        self.indices = [len(info) * (k + 1) // count - 1 for k in range(count)]
        self.norm = count == 1
        self.patch = patch_of(self.model)
        self.stride = STRIDE if self.patch == 14 else self.patch
        self.width = info[-1].get("num_chs_norm", info[-1]["num_chs"]) if self.norm else info[-1]["num_chs"]

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        if self.patch != self.stride:
            size = [side * self.patch // self.stride for side in image.shape[-2:]]
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        found = self.model.forward_intermediates(
            image, indices=self.indices, norm=self.norm, intermediates_only=True, output_fmt="NCHW"
        )
        return list(found)


def is_vit(encoder: str) -> bool:
    """Whether `vit-…` names a transformer that is known here; whether it is a plain one is seen when it is made."""
    name = encoder.removeprefix(PREFIX)
    return encoder.startswith(PREFIX) and (name in GEO or name in SAM3 or timm.is_model(name))


def make_vit(name: str, channels: int, bands, drop_path: float) -> nn.Module:
    """The transformer at random, for pictures of any size."""
    if name in GEO:
        return GeoViT(channels, **GEO[name], bands=tuple(bands), drop_path=drop_path)
    if name in SAM3:
        if drop_path:
            raise InputError(f"--drop-path {drop_path:g}: {PREFIX}{name} has no stochastic depth; leave it out")
        return Sam3ViT(channels, **SAM3[name])
    options = {"pretrained": False, "in_chans": channels, "num_classes": 0, "drop_path_rate": drop_path}
    try:
        model = timm.create_model(name, **options, dynamic_img_size=True)
    except TypeError:  # SAM's takes any size without being asked
        model = timm.create_model(name, **options)
    reductions = {info["reduction"] for info in model.feature_info} if hasattr(model, "forward_intermediates") else ()
    if len(reductions) != 1 or patch_of(model) not in (8, 14, 16, 32):
        raise InputError(f"--encoder {PREFIX}{name}: no plain ViT of patches of 8, 14, 16 or 32; try tu-{name}")
    return model


def patch_of(model: nn.Module) -> int:
    if hasattr(model, "patch"):
        return model.patch
    size = getattr(getattr(model, "patch_embed", None), "patch_size", 0)
    return int(size[0] if isinstance(size, (tuple, list)) else size)


class PyramidEncoder(Tokens):
    """A plain ViT in the form of smp's encoders: levels at strides 1 (the picture), 2 (empty), 4, 8, 16, 32.

    The simple feature pyramid of ViTDet (Li et al. 2022, arXiv:2203.16527): every level is made of the last map
    alone, by transposed convolutions or max pooling, then a 1x1 and a 3x3 convolution with layer norm.
    """

    def __init__(self, name: str, channels: int, *, bands=(), drop_path=0.0, depth: int = 5, output_stride: int = 32):
        super().__init__(name, channels, count=1, bands=bands, drop_path=drop_path)
        strides = [min(2**k, output_stride) for k in range(2, depth + 1)]
        self.pyramid = nn.ModuleList(pyramid_level(self.width, self.stride, stride) for stride in strides)
        self.out_channels = [channels, 0, *[PYRAMID] * len(strides)]
        self.output_stride = max(self.stride, *strides)

    def set_in_channels(self, channels: int, pretrained: bool = False):
        """Part of smp's form; the transformer has been made for its channels."""

    def make_dilated(self, output_stride: int):
        """Part of smp's form; the levels have been made for the stride."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        (last,) = self.maps(image)
        empty = image.new_empty(len(image), 0, image.shape[-2] // 2, image.shape[-1] // 2)
        return [image, empty, *(level(last) for level in self.pyramid)]


def pyramid_level(width: int, stride: int, target: int) -> nn.Sequential:
    """Maps of the stride -> PYRAMID channels at the target stride, both powers of two."""
    layers = []
    while stride > target:
        narrow = max(PYRAMID // 4, width // 2)
        layers += [nn.ConvTranspose2d(width, narrow, 2, stride=2), LayerNorm2d(narrow), nn.GELU()]
        width, stride = narrow, stride // 2
    while stride < target:
        layers.append(nn.MaxPool2d(2))
        stride *= 2
    layers += [nn.Conv2d(width, PYRAMID, 1, bias=False), LayerNorm2d(PYRAMID)]
    layers += [nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1, bias=False), LayerNorm2d(PYRAMID)]
    return nn.Sequential(*layers)


def register_vit(name: str, channels: int, bands, drop_path: float) -> None:
    """Tell smp of the encoder `name` (its way for encoders of others), made for these channels from now on."""
    smp.encoders.encoders[name] = {
        "encoder": PyramidEncoder,
        "params": {"name": name, "channels": channels, "bands": tuple(bands), "drop_path": drop_path},
        "pretrained_settings": {},
    }


class Parts(nn.Module):
    """encoder, decoder and head under the names that smp's models have."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.decoder, self.segmentation_head = encoder, decoder, head


class DptEncoder(Tokens):
    """Four maps of a plain ViT, of depths evenly apart, all of one stride."""

    def __init__(self, name: str, channels: int, *, bands=(), drop_path: float = 0.0):
        super().__init__(name, channels, count=LEVELS, bands=bands, drop_path=drop_path)
        self.out_channels = [self.width] * LEVELS
        self.output_stride = 32  # the decoder halves the last map

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.maps(image)


class DptDecoder(nn.Module):
    """smp's DPT decoder (Ranftl et al. 2021, arXiv:2103.13413) on the last four maps; class tokens are left out."""

    def __init__(self, channels: list[int], strides: list[int]):
        super().__init__()
        from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder

        widths = {"encoder_out_channels": channels, "encoder_output_strides": strides}
        self.dpt = DPTDecoder(**widths, encoder_has_prefix_tokens=False, readout="ignore", **DPT)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.dpt(features[-LEVELS:], [None] * LEVELS)


def dpt_net(*, encoder_name: str, encoder_weights, in_channels: int, classes: int, **options) -> Parts:
    """DPT, called as smp's classes are: on four depths of a plain ViT, or on the last four levels of an encoder."""
    try:
        from segmentation_models_pytorch.decoders.dpt.decoder import DPTSegmentationHead
    except ImportError as error:
        raise InputError("--arch dpt needs segmentation-models-pytorch 0.5 or later: pip install -U it") from error
    if encoder_name.startswith(PREFIX):
        given = {key: smp.encoders.encoders[encoder_name]["params"][key] for key in ("bands", "drop_path")}
        encoder = DptEncoder(encoder_name, in_channels, **given)
        strides = [encoder.stride] * LEVELS
    else:
        encoder = smp.encoders.get_encoder(encoder_name, in_channels, weights=encoder_weights, **options)
        strides = [4, 8, 16, 32]
    head = DPTSegmentationHead(DPT["fusion_channels"], classes)
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # left to --dropout
    return Parts(encoder, DptDecoder(list(encoder.out_channels[-LEVELS:]), strides), head)
