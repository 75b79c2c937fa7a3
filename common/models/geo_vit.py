"""Vision transformers trained on satellite bands: Prithvi and SatMAE, with the names of the authors' weight files."""

from functools import partial

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import nn

from common.errors import InputError

HLS = ("blue", "green", "red", "nir", "swir1", "swir2")  # Harmonised Landsat and Sentinel-2
SENTINEL = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir2", "swir1", "swir2")  # B2 … B12
GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))  # of SENTINEL: bands of a group become one token
PHOTO = ("red", "green", "blue")
GEO = {  # name -> size; grid: patches a side of the pictures it was trained on
    "prithvi_eo_v1_100m": {"width": 768, "depth": 12, "heads": 12, "patch": 16, "grid": 14, "names": HLS},
    "prithvi_eo_v2_tiny": {"width": 192, "depth": 12, "heads": 3, "patch": 16, "grid": 14, "names": HLS},
    "prithvi_eo_v2_100m": {"width": 768, "depth": 12, "heads": 12, "patch": 16, "grid": 14, "names": HLS},
    "prithvi_eo_v2_300m": {"width": 1024, "depth": 24, "heads": 16, "patch": 16, "grid": 14, "names": HLS},
    "prithvi_eo_v2_600m": {"width": 1280, "depth": 32, "heads": 16, "patch": 14, "grid": 16, "names": HLS},
    "satmae_rgb_large": {"width": 1024, "depth": 24, "heads": 16, "patch": 16, "grid": 14, "names": PHOTO},
    "satmae_sentinel_base": {"width": 768, "depth": 12, "heads": 12, "patch": 8, "grid": 12, "names": SENTINEL,
                             "groups": GROUPS, "group_width": 256},
    "satmae_sentinel_large": {"width": 1024, "depth": 24, "heads": 16, "patch": 8, "grid": 12, "names": SENTINEL,
                              "groups": GROUPS, "group_width": 256},
}  # fmt: skip
MLP_RATIO = 4
SOURCES = {  # where the authors keep the weights
    name: "https://" + ("huggingface.co/ibm-nasa-geospatial" if "pri" in name else "github.com/sustainlab-group/SatMAE")
    for name in GEO
}
NO_ENCODER = ("decoder", "mask_token", "head.", "temporal_embed", "location_embed")  # of pretraining, or left out here


class GeoViT(nn.Module):
    """Image (B,C,H,W), sides multiples of the patch -> maps (B,width,H/patch,W/patch) after the blocks asked for.

    Prithvi (Szwarcman et al. 2024, arXiv:2412.02732; its second version adds coordinates, which are left out here as
    its authors allow): one picture of a series, so patches of one frame and the position table of time 0. SatMAE (Cong
    et al. 2022, arXiv:2207.08051): every group of bands gives tokens of its own, told apart by an embedding of the
    group beside that of the place; a map is the mean over the groups. `bands`: names of the channels, needed where
    there are groups (else InputError); a band of no group goes to the first.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        grid: int,
        names: tuple[str, ...],
        groups: tuple[tuple[int, ...], ...] = (),
        group_width: int = 0,
        bands: tuple[str, ...] = (),
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.patch, self.grid, self.names = patch, grid, names
        self.feature_info = [{"num_chs": width, "reduction": patch}] * depth
        self.groups = {str(g): tuple(names[i] for i in group) for g, group in enumerate(groups)}
        self.members = members_of(self.groups, bands, channels)
        if groups:
            convolutions = {g: patches(len(m), width, patch) for g, m in self.members.items()}
            self.patch_embed = nn.ModuleDict(convolutions)
            self.register_buffer("channel_embed", waves(group_width, torch.arange(len(groups)))[None])
            self.register_buffer("channel_cls_embed", torch.zeros(1, 1, group_width))
        else:
            self.patch_embed = patches(channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", place_table(width - group_width, grid, names == HLS))
        norm = partial(nn.LayerNorm, eps=1e-6)
        rates = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(
            Block(width, heads, MLP_RATIO, qkv_bias=True, norm_layer=norm, drop_path=rate) for rate in rates
        )
        self.norm = norm(width)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward_intermediates(self, image: torch.Tensor, indices: list[int], norm: bool, **_) -> list[torch.Tensor]:
        """Maps after the blocks `indices`, in order; norm: through the last layer norm, as timm's models do it."""
        size = (image.shape[-2] // self.patch, image.shape[-1] // self.patch)
        place = resample_abs_pos_embed(self.pos_embed, list(size), num_prefix_tokens=1)
        first, place = place[:, :1], place[:, 1:]
        tokens = []
        for g, members in self.members.items():
            convolution = self.patch_embed[g] if self.groups else self.patch_embed
            seen = convolution["proj"](image[:, members]).flatten(2).transpose(1, 2)
            where = place
            if self.groups:
                group = self.channel_embed[:, int(g)][:, None].expand(-1, place.shape[1], -1)
                where = torch.cat([place, group], -1)
            tokens.append(seen + where)
        if self.groups:
            first = torch.cat([first, self.channel_cls_embed], -1)
        x = torch.cat([(self.cls_token + first).expand(len(image), -1, -1), *tokens], 1)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in indices:
                seen = (self.norm(x) if norm else x)[:, 1:].unflatten(1, (len(tokens), *size)).mean(1)
                maps.append(seen.permute(0, 3, 1, 2))
        return maps


def members_of(groups: dict, bands, channels: int) -> dict[str, list[int]]:
    """{group: channels that belong to it}, groups without one left out; one group "" of all where there are none."""
    if not groups:
        return {"": list(range(channels))}
    if len(bands) != channels:
        raise InputError(f"bands {', '.join(bands)}: a SatMAE encoder groups its {channels} bands by name; name each")
    group_of = {name: g for g, names in groups.items() for name in names}
    first = next(iter(groups))
    members = {g: [i for i, band in enumerate(bands) if group_of.get(band, first) == g] for g in groups}
    return {g: found for g, found in members.items() if found}


def patches(channels: int, width: int, patch: int) -> nn.ModuleDict:
    return nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, stride=patch)})


def waves(width: int, places: torch.Tensor) -> torch.Tensor:
    """(n,) places -> (n,width): sines, then cosines, of wavelengths rising from 2 pi to 10000 * 2 pi."""
    rate = 10000.0 ** (-torch.arange(width // 2) / (width / 2))
    angle = places.float()[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)


def place_table(width: int, grid: int, with_time: bool) -> torch.Tensor:
    """float32 (1, 1 + grid^2, width): waves of x, of y (a quarter: of time 0) after a row of zeros."""
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    each = width // 16 * 6 if with_time else width // 2
    parts = [waves(each, x.flatten()), waves(each, y.flatten())]
    if with_time:
        parts.append(waves(width // 16 * 4, torch.zeros(grid * grid)))
    return torch.cat([torch.zeros(1, width), torch.cat(parts, 1)])[None]


def geo_state(model: GeoViT, state: dict, bands, source: str) -> tuple[dict, str]:
    """Tensors of the authors' file (no prefix left) as `model` has them for the bands named; what went where, in words.

    Kernels go by the names of the bands, their mean to a band the file has none for. The position table of a series
    is cut to its first time. InputError for kernels of another number of bands or of several times at once.
    """
    state = {key: value for key, value in state.items() if not key.startswith(NO_ENCODER)}
    if "norm.weight" not in state:  # a classifier's, over the mean of the tokens
        state = {key.replace("fc_norm.", "norm."): value for key, value in state.items()}
    said = []
    for g, members in model.members.items():
        key = f"patch_embed.{g}.proj.weight" if g else "patch_embed.proj.weight"
        names = model.groups[g] if g else model.names
        kernels = state.get(key)
        if kernels is None:
            continue  # told with all else that is lacking
        if kernels.ndim == 5 and kernels.shape[2] == 1:
            kernels = kernels[:, :, 0]
        if kernels.ndim != 4 or kernels.shape[1] != len(names):
            raise InputError(
                f"--weights {source}: {key} is {tuple(kernels.shape)}, kernels of {', '.join(names)} are needed"
            )
        state[key], named, others = kernels_by_name(kernels, names, [bands[index] for index in members])
        said += [f"{', '.join(named)} by name"] if named else []
        said += [f"mean of {', '.join(names)} to {', '.join(others)}"] if others else []
    kept = tuple(f"patch_embed.{g}." for g in model.members) if model.groups else ("",)
    state = {key: value for key, value in state.items() if not key.startswith("patch_embed.") or key.startswith(kept)}
    if model.groups:
        state.setdefault("channel_cls_embed", model.channel_cls_embed)
    if "pos_embed" in state and state["pos_embed"].ndim == 3:
        state["pos_embed"] = state["pos_embed"][:, : 1 + model.grid**2]
    return state, f"patches: {'; '.join(said)}"


def kernels_by_name(weight: torch.Tensor, names, bands) -> tuple[torch.Tensor, list[str], list[str]]:
    """Kernels (N,C,h,w) of the bands `names` -> those of `bands`; which have one by name, which the mean of all."""
    kernels = dict(zip(names, weight.unbind(1), strict=True))
    adapted = torch.stack([kernels.get(band, weight.mean(1)) for band in bands], 1)
    return adapted, [band for band in bands if band in kernels], [band for band in bands if band not in kernels]
