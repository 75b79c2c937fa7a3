"""A timm model as the shared encoder of all cells: pooled features, freezing, layers by depth."""

import difflib
import hashlib
import os

import timm
import torch
from timm.models import group_parameters
from torch import nn

from common.errors import InputError

POOLS = ("cls", "mean", "cls+mean")
FINAL = ("norm.", "fc_norm.", "attn_pool.", "head.")  # what timm may count as a layer above the last block


def create_net(name: str, *, cell_size: int, drop_path: float) -> nn.Module:
    """Untrained timm model without classifier for cell_size x cell_size pixels; never downloads."""
    kwargs = {"drop_path_rate": drop_path} if drop_path else {}
    create = {"pretrained": False, "num_classes": 0, **kwargs}
    if not timm.is_model(name):  # asked first, since timm fetches the settings of an `hf-hub:` name
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), 3)
        raise InputError(f"--backbone {name}: timm does not know it; did you mean {', '.join(near) or '?'}")
    try:
        try:
            return timm.create_model(name, img_size=cell_size, **create)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, **create)  # a convolutional net: any size will do
    except TypeError as error:
        raise InputError(f"--backbone {name}: {error}; leave out --drop-path") from error
    except RuntimeError as error:
        raise InputError(f"--backbone {name}: {error}") from error
    except AssertionError as error:
        raise InputError(f"--backbone {name} with cells of {cell_size} px: {error}; change --cell-size") from error


def normalisation(name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel (of pixels in 0..1) that the timm model was trained with."""
    cfg = timm.models.get_pretrained_cfg(name)
    if cfg is None:
        return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return [float(m) for m in cfg.mean], [float(s) for s in cfg.std]


class Backbone(nn.Module):
    """Images (n,3,S,S) -> features (n, width).

    `pool` for a model with a class token: "cls" the class token, "mean" the mean of the patch tokens, "cls+mean" both,
    joined, all after the final norm. A model without a class token (ConvNeXt, ResNet, SigLIP …) uses its own pooled
    output for "cls" and "mean" alike; "cls+mean" is refused there. `blocks` (0-based; stages for a convolutional net)
    joins the features of several depths instead and cuts off what lies above the last one.
    """

    def __init__(self, name: str, *, cell_size: int, pool: str = "cls", blocks=(), drop_path: float = 0.0):
        super().__init__()
        if pool not in POOLS:
            raise InputError(f"--pool {pool}: choose one of {', '.join(POOLS)}")
        self.name, self.cell_size, self.pool, self.blocks = name, cell_size, pool, sorted(int(b) for b in blocks)
        self.net = create_net(name, cell_size=cell_size, drop_path=drop_path)
        self.frozen = False
        self.resting: frozenset[str] = frozenset()  # names of parameters that stay as they are when thawed
        self.class_token = isinstance(getattr(self.net, "cls_token", None), nn.Parameter)
        self._check_patches()
        if pool == "cls+mean" and not self.class_token:
            raise InputError(f"--pool cls+mean: {name} has no class token to join; use --pool cls (its own pooling)")
        self.whole_names = frozenset(self.net.state_dict())
        self.width = self._cut_above_blocks() if self.blocks else int(self.net.num_features)
        if not self.blocks and not self.class_token:
            self.width = int(getattr(self.net, "head_hidden_size", None) or self.net.num_features)
        self.width *= 2 if pool == "cls+mean" else 1

    def _check_patches(self):
        patch = getattr(getattr(self.net, "patch_embed", None), "patch_size", None)
        if isinstance(patch, tuple) and any(self.cell_size % p for p in patch):
            raise InputError(
                f"--cell-size {self.cell_size}: {self.name} needs a multiple of its patch of {patch[0]} px"
            )

    def _cut_above_blocks(self) -> int:
        depth = len(self.net.feature_info)
        if self.blocks[0] < 0 or self.blocks[-1] >= depth or len(set(self.blocks)) < len(self.blocks):
            raise InputError(f"--blocks {self.blocks}: {self.name} has blocks 0 to {depth - 1}, each to be named once")
        widths = [self.net.feature_info[b]["num_chs"] for b in self.blocks]
        self.net.prune_intermediate_layers(self.blocks, prune_norm=False, prune_head=True)
        return sum(widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.blocks:
            return torch.cat(self._depths(x), -1)
        features = self.net.forward_features(x)
        if not self.class_token:
            return self.net.forward_head(features, pre_logits=True)
        prefix = self.net.num_prefix_tokens
        norm = getattr(self.net, "fc_norm", None) or nn.Identity()
        return norm(self._choose(features[:, 0], features[:, prefix:].mean(1)))

    def _choose(self, token: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return {"cls": token, "mean": mean}[self.pool] if self.pool != "cls+mean" else torch.cat([token, mean], -1)

    def _depths(self, x: torch.Tensor) -> list[torch.Tensor]:
        settings = {"indices": self.blocks, "norm": True, "intermediates_only": True, "output_fmt": "NCHW"}
        if not self.class_token:
            return [level.mean((2, 3)) for level in self.net.forward_intermediates(x, **settings)]
        levels = self.net.forward_intermediates(x, return_prefix_tokens=True, **settings)
        return [self._choose(prefix[:, 0], level.mean((2, 3))) for level, prefix in levels]

    def train(self, mode: bool = True):
        super().train(mode and not self.frozen)
        rest_frozen(self.net)  # frozen blocks stay as they were trained: no drop path, batch statistics fixed
        return self

    def freeze(self, frozen: bool = True):
        """All parameters without gradient and the module in eval mode, whatever train() says; or the reverse.

        Thawing leaves alone what `rest` named. The caller sets the mode afterwards with train(), as a frozen module
        does not know its parent's.
        """
        self.frozen = frozen
        for key, parameter in self.net.named_parameters():
            parameter.requires_grad_(not frozen and key not in self.resting)

    def rest(self, keys):
        """Take the gradient from the parameters named, now and after every thawing; the others get it back."""
        self.resting = frozenset(keys)
        self.freeze(self.frozen)

    def layers(self) -> list[tuple[str, list[tuple[str, nn.Parameter]]]]:
        """Named groups of parameters from the stem to the last block (the final norm goes with the last block)."""
        ids = group_parameters(self.net, self.net.group_matcher(coarse=False), reverse=True)
        groups: dict[int, list] = {}
        for key, parameter in self.net.named_parameters():
            groups.setdefault(ids[key], []).append((key, parameter))
        layers = [groups[i] for i in sorted(groups)]
        if len(layers) > 1 and all(key.startswith(FINAL) for key, _ in layers[-1]):
            layers[-2:] = [layers[-2] + layers[-1]]
        return [(layer_name(i, [key for key, _ in layer]), layer) for i, layer in enumerate(layers)]

    def content_hash(self) -> str:
        """sha256 of settings that shape the features and of every tensor's name, type, shape and bytes."""
        digest = hashlib.sha256(repr((self.name, self.cell_size, self.pool, self.blocks)).encode())
        for key, value in sorted(self.net.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def layer_name(depth: int, keys: list[str]) -> str:
    """`blocks.3` for the parameters of one block, `stem` for the first layer, its number where they share no prefix."""
    keys = [key for key in keys if not key.startswith(FINAL)] or keys
    return ".".join(os.path.commonprefix([key.split(".")[:-1] for key in keys])) or (
        "stem" if not depth else str(depth)
    )


def rest_frozen(module: nn.Module):
    """Put every submodule whose parameters are all without gradient into eval mode."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    for child in module.children():
        rest_frozen(child)
