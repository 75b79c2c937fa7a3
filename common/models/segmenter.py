"""The segmenter: bands of a tile -> logits per class, an architecture and encoder of smp (and timm) by name."""

import difflib

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from common.errors import InputError
from common.models.attention import FullResolution, channels_only
from common.models.foundation import PREFIX, dpt_net, is_vit, register_vit
from common.models.late_fusion import LateEncoder, check_late
from common.models.mask2former import mask2former_net
from common.models.net_facts import idle_weights, size_multiple
from common.models.ordinal import OrdinalHead, SpatialAttention
from common.models.stereo import split_decay
from common.ordinal import HEADS, head_outputs

DECODER = (256, 128, 64, 32, 16)
ATTENTIONS = ("none", "cse", "scse")
STEMS = ("half", "full")
FUSIONS = ("early", "late")
SPATIAL = ("none", "head", "bottleneck")
STEM_WIDTH = 32  # channels of the stem at full resolution: a convolution there costs 4 times one at half of it
ARCHS = {  # class in smp, and what it takes beside the common arguments; its own dropout is left to --dropout
    name: (getattr(smp, class_name), own)
    for name, class_name, own in (
        ("unet", "Unet", {}),
        ("unetplusplus", "UnetPlusPlus", {}),
        ("manet", "MAnet", {}),
        ("linknet", "Linknet", {}),
        ("fpn", "FPN", {"decoder_dropout": 0.0}),
        ("pspnet", "PSPNet", {"psp_dropout": 0.0}),
        ("deeplabv3", "DeepLabV3", {"decoder_aspp_dropout": 0.0}),
        ("deeplabv3plus", "DeepLabV3Plus", {"decoder_aspp_dropout": 0.0}),
        ("pan", "PAN", {}),
        ("upernet", "UPerNet", {}),
        ("segformer", "Segformer", {}),
    )
    if hasattr(smp, class_name)  # the newer ones came with smp 0.4 and 0.5
} | {"dpt": (dpt_net, {}), "mask2former": (mask2former_net, {})}
WITH_DECODER = ("unet", "unetplusplus", "manet")  # widths of the decoder can be chosen
WITH_ATTENTION = ("unet", "unetplusplus")
WITH_FULL_STEM = ("unet", "unetplusplus", "manet", "linknet")  # their decoders end at full resolution
LARGER_MULTIPLES = {"pan": 128}  # pools thrice below a stride of 16
NO_DECAY = ("relative_position_bias_table", "rel_pos.mlp", "pos_embed", "cls_token", "reg_token")  # as timm has it
FRESH = (".join.", ".pyramid.")  # parts of an encoder that no weight file has


class Segmenter(nn.Module):
    """Logits of K classes (or K - 1 levels) for every pixel of an image of C channels; any height and width.

    All arguments are plain types: `Segmenter(**spec["model"])` rebuilds the model and never downloads.

    arch       one of ARCHS; encoder: a name of smp (`resnet34`, `mit_b0`, `vgg16_bn`), `tu-` and a name of timm, or
               `vit-` and a plain vision transformer (of timm, of models/geo_vit.py, `sam3`), see models/foundation.py
    attention  in the decoder's blocks: "cse" channels, "scse" channels and pixels
    decoder    its widths from deep to shallow; as many as the encoder has stages (four: a shallower, faster model)
    stem       "full": features at full resolution join the decoder's last block, the encoder's own where it has some
               (VGG), else of two convolutions on the image
    dropout    of whole channels before the head; drop_path: of residual branches, rising with the depth
    fusion     "late": one encoder for the channels `rgb` (indices of red, green, blue) and one for the others, see
               models/late_fusion.py; bands: names of the channels, which SatMAE's encoders need
    head       "softmax": K logits; "coral", "corn": K - 1 levels of ordered classes, see common/ordinal.py
    spatial_attention   on the features before the "head", or on the deepest of the encoder ("bottleneck")

    `net` is the smp model with smp's names: for arch unet with attention none or scse, stem half, head softmax and no
    spatial attention the state dict is that of smp.Unet under `net.`. Raises InputError for names and combinations
    that cannot be built.
    """

    def __init__(
        self,
        *,
        arch: str = "unet",
        encoder: str = "resnet34",
        channels: int = 5,
        classes: int = 4,
        attention: str = "none",
        decoder=DECODER,
        stem: str = "half",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        fusion: str = "early",
        rgb=None,
        bands=(),
        head: str = "softmax",
        spatial_attention: str = "none",
    ):
        super().__init__()
        self.arch, self.encoder_name, self.channels, self.classes = arch, encoder, int(channels), int(classes)
        decoder = tuple(int(width) for width in decoder)
        self.head, self.spatial_attention = head, spatial_attention
        check_options(
            arch, encoder, attention, decoder, stem, dropout, fusion, self.channels, rgb, head, spatial_attention
        )
        common = {"attention": attention, "decoder": decoder, "drop_path": drop_path}
        build = late_net if fusion == "late" else build_net
        levels = head_outputs(head, self.classes)
        scores = 1 if head == "coral" else levels
        self.net = build(arch, encoder, self.channels, scores, **common, rgb=rgb, bands=tuple(bands))
        self.full = self._full_stem() if stem == "full" else None
        self.ordinal = None if head == "softmax" else OrdinalHead(self.net.segmentation_head, head, self.classes)
        if self.ordinal is not None:
            self.net.segmentation_head = nn.Identity()  # so that --init takes no softmax head for it
        self.spatial = None if spatial_attention == "none" else SpatialAttention()
        self.dropout = nn.Dropout2d(dropout)
        self.multiple = LARGER_MULTIPLES.get(arch) or size_multiple(self.net.encoder)
        self.idle = idle_weights(self.net, encoder, self.channels, self.multiple)
        if fusion == "late":
            self.net.encoder.spare(self.idle)
        self.frozen = False
        self._rest()
        self.backbone_key = None  # its features are not shared with other models, see engine.predict

    def _full_stem(self) -> FullResolution:
        own = self.net.encoder.out_channels[0]
        ours = own == self.channels  # smp's encoders without a stage at full resolution give the image itself
        decoded = self.net.segmentation_head[0].in_channels
        return FullResolution(
            image_channels=self.channels if ours else 0, width=STEM_WIDTH if ours else own, decoded=decoded
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B,C,H,W) -> logits (B,K,H,W), of an ordinal head levels (B,K-1,H,W).

        Padded by reflection to what the encoder needs, and cut back.

        Raises InputError for another number of channels.
        """
        if image.ndim != 4 or image.shape[1] != self.channels:
            raise InputError(f"image of shape {tuple(image.shape)}: the model needs (B,{self.channels},H,W)")
        height, width = image.shape[-2:]
        # channels last: a step of a ResNet18 U-Net on a CPU takes .47 s instead of .62
        padded = reflected(image, self.multiple).contiguous(memory_format=torch.channels_last)
        features = self.net.encoder(padded)
        if self.spatial_attention == "bottleneck":
            features = [*features[:-1], self.spatial(features[-1])]
        decoded = self.net.decoder(features)
        if self.full is not None:
            decoded = self.full(features[0], decoded)
        if self.spatial_attention == "head":
            decoded = self.spatial(decoded)
        answer = self.ordinal or self.net.segmentation_head
        return answer(self.dropout(decoded))[..., :height, :width]

    def _rest(self):
        for name, parameter in self.net.named_parameters():  # DDP waits for every parameter that wants a gradient
            held = self.frozen and self.part_of(f"net.{name}") == "backbone"
            parameter.requires_grad_(name not in self.idle and not held)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.frozen:
            self.net.encoder.eval()  # its batch statistics stay as they are
        return self

    def freeze_backbone(self, frozen: bool = True):
        """The encoder without gradient and in eval mode, also after train(); False takes it back.

        What no output depends on (stages below a shorter decoder) never wants a gradient.
        """
        self.frozen = frozen
        self._rest()
        self.train(self.training)

    def part_of(self, name: str) -> str:
        """ "backbone" (the encoder, as far as weight files fill it) or "head" (all else) for a parameter's name."""
        return "backbone" if name.startswith("net.encoder.") and not any(p in name for p in FRESH) else "head"

    def param_groups(self, *, lr: float, backbone_lr: float, weight_decay: float) -> list[dict]:
        """Groups for the optimizer: {"name", "part", "params", "lr", "weight_decay"}.

        Biases, norms and position tables get no weight decay. A frozen encoder is left out, and what is idle.
        """
        members = [(name, p) for name, p in self.named_parameters() if name.removeprefix("net.") not in self.idle]
        never = {name for name, _ in members if any(part in name for part in NO_DECAY)}
        groups = []
        for part, rate in (("head", lr), ("backbone", backbone_lr)):
            chosen = [(name, p) for name, p in members if self.part_of(name) == part]
            if part == "head" or not self.frozen:
                groups += split_decay(part, part, chosen, rate, weight_decay, never)
        return groups

    def image_weights(self) -> list[str]:
        """Names of the weights that see the bands: (out, channels, h, w), one of the encoder, one of a full stem."""
        stems = [("net.encoder", self.net.encoder), *([("full.stem", self.full.stem)] if self.full else [])]
        return [f"{prefix}.{name}" for prefix, module in stems for name in first_convolution(module, self.channels)]

    def stems(self) -> dict[str, list[int]]:
        """{name of a weight that sees bands: the channels it sees}: those of `image_weights`, or of both encoders."""
        found = {name: list(range(self.channels)) for name in self.image_weights()}
        parts = {"photo": "rgb", "rest": "others"} if isinstance(self.net.encoder, LateEncoder) else {}
        for part, which in parts.items():
            seen = getattr(self.net.encoder, which)
            names = first_convolution(getattr(self.net.encoder, part), len(seen))
            found |= {f"net.encoder.{part}.{name}": seen for name in names}
        return found


def first_convolution(module: nn.Module, channels: int) -> list[str]:
    """[name of its weight] where the first convolution of `module` sees all `channels` at once, else []."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            return [f"{name}.weight"] if child.in_channels == channels and child.groups == 1 else []
    return []


def check_options(arch, encoder, attention, decoder: tuple, stem, dropout, fusion, channels: int, rgb, head, spatial):
    """Names that exist and options the architecture has, else InputError."""
    for option, value, known in (
        ("--arch", arch, ARCHS),
        ("--attention", attention, ATTENTIONS),
        ("--stem", stem, STEMS),
        ("--fusion", fusion, FUSIONS),
        ("--head", head, HEADS),
        ("--spatial-attention", spatial, SPATIAL),
    ):
        if value not in known:
            raise InputError(f"{option} {value}: choose one of {', '.join(known)}")
    known = list(smp.encoders.encoders)
    if not (encoder in known or is_vit(encoder) or (encoder.startswith("tu-") and timm.is_model(encoder[3:]))):
        known += [f"tu-{name}" for name in timm.list_models()]
        near = difflib.get_close_matches(encoder, known, 3, cutoff=0.5)
        raise InputError(f"--encoder {encoder}: neither smp nor timm (tu-…) knows it; did you mean {', '.join(near)}")
    for option, wanted, having in (
        (f"--attention {attention}", attention != "none", WITH_ATTENTION),
        (f"--decoder {' '.join(map(str, decoder))}", decoder != DECODER, WITH_DECODER),
        (f"--stem {stem}", stem == "full", WITH_FULL_STEM),
    ):
        if wanted and arch not in having:
            raise InputError(f"{option}: --arch {arch} has no such choice; it is one of {', '.join(having)}")
    if not 3 <= len(decoder) <= 5 or min(decoder) < 1:
        raise InputError(f"--decoder {' '.join(map(str, decoder))}: three to five widths above 0 are needed")
    if attention != "none" and min(decoder) < 16:
        raise InputError(f"--attention {attention}: needs widths of --decoder of at least 16, got {min(decoder)}")
    if dropout and arch == "mask2former":
        raise InputError(f"--dropout {dropout}: would drop whole classes of --arch mask2former; say --dropout 0")
    if spatial == "head" and arch == "mask2former":
        raise InputError("--spatial-attention head: --arch mask2former has no features there; say bottleneck or none")
    wrong = check_late(fusion, channels, rgb)
    if wrong:
        raise InputError(f"--fusion {fusion}: {wrong}")


def build_net(arch, encoder, channels, classes, *, attention, decoder, drop_path, bands=(), rgb=None) -> nn.Module:
    """The smp model at random, as `Segmenter` describes it. Raises InputError where smp or timm cannot build it."""
    if encoder.startswith(PREFIX):
        register_vit(encoder, channels, bands, drop_path)
    kind, own = ARCHS[arch]
    kwargs = dict(own)
    if arch in WITH_DECODER:
        kwargs |= {"encoder_depth": len(decoder), "decoder_channels": list(decoder)}
    if attention != "none":
        kwargs["decoder_attention_type"] = "scse"
    if encoder.startswith("tu-swin"):
        kwargs["strict_img_size"] = False
    if drop_path and encoder.startswith("tu-"):
        kwargs["drop_path_rate"] = drop_path
    try:
        net = kind(encoder_name=encoder, encoder_weights=None, in_channels=channels, classes=classes, **kwargs)
    except (
        AssertionError,
        AttributeError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        first = str(error).split("\n")[0][:200]
        first += f"; a plain ViT goes by --encoder {PREFIX}…" if "downsampling" in first else ""
        raise InputError(f"--arch {arch} --encoder {encoder}: cannot be built together ({first})") from error
    if attention == "cse":
        channels_only(net.decoder)
    if not encoder.startswith(("tu-", PREFIX)):
        set_drop_path(net.encoder, drop_path, encoder)
    return net


def late_net(arch, encoder, channels, classes, *, rgb, bands=(), **common) -> nn.Module:
    """The model for red, green and blue, its encoder joined with one for the other channels."""
    others = [band for index, band in enumerate(bands) if index not in rgb]
    photo = [bands[index] for index in rgb] if bands else ()
    net = build_net(arch, encoder, len(rgb), classes, **common, bands=photo)
    rest = build_net(arch, encoder, channels - len(rgb), classes, **common, bands=others).encoder
    net.encoder = LateEncoder(net.encoder, rest, channels=channels, rgb=rgb)
    return net


def set_drop_path(encoder: nn.Module, rate: float, name: str):
    """Rates rising evenly to `rate` over the residual blocks of an encoder of smp's own."""
    branches = [m for m in encoder.modules() if hasattr(m, "drop_prob") and type(m).__name__ == "DropPath"]
    if rate and not branches:
        raise InputError(f"--drop-path {rate}: {name} has no such branches; try --encoder tu-{name} or leave it out")
    for branch, share in zip(branches, torch.linspace(0, 1, len(branches) + 1)[1:].tolist(), strict=True):
        branch.drop_prob = rate * share


def reflected(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Image (B,C,H,W) continued by reflection below and to the right up to the next multiple; any size of image."""
    for axis in (2, 3):
        size = image.shape[axis]
        if size % multiple:
            index = torch.arange(-(-size // multiple) * multiple, device=image.device)
            turn = max(1, 2 * (size - 1))  # back and forth over a picture smaller than its margin
            index = index % turn
            image = image.index_select(axis, torch.minimum(index, turn - index))
    return image
