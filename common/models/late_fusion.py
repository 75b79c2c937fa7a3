"""Late fusion: one encoder for red, green and blue, one for all other bands, joined at every level."""

import torch
import torch.nn.functional as F
from torch import nn

WINDOW = 8  # side of the windows inside which a pixel of one modality looks at the other
HEAD_WIDTH, MOST_HEADS = 32, 8


class LateEncoder(nn.Module):
    """Two encoders of smp's form as one: image (B,C,H,W) -> features per level, of the photo encoder's shapes.

    photo, rest   encoders of 3 and of C - 3 channels; rgb: which channels are red, green and blue, in this order.
    Each level is that of `photo` with what it lacks from `rest` (`CrossModality`). A level that is the picture itself
    stays the whole picture, and one without channels (smp's stand-in at stride 2 for transformers) stays empty.
    """

    def __init__(self, photo: nn.Module, rest: nn.Module, *, channels: int, rgb):
        super().__init__()
        self.photo, self.rest = photo, rest
        self.rgb = list(rgb)
        self.others = [index for index in range(channels) if index not in self.rgb]
        self.whole = photo.out_channels[0] == len(self.rgb)  # level 0 is the picture, not features of it
        self.out_channels = [channels if self.whole else photo.out_channels[0], *photo.out_channels[1:]]
        self.output_stride = photo.output_stride
        widths = dict(enumerate(zip(photo.out_channels, rest.out_channels, strict=True)))
        widths = {level: pair for level, pair in widths.items() if all(pair) and (level or not self.whole)}
        self.join = nn.ModuleDict({str(level): CrossModality(*pair) for level, pair in widths.items()})
        self.used = set(self.join)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        photos, rests = (
            encoder(image[:, seen].contiguous(memory_format=torch.channels_last))  # which indexing gives up
            for encoder, seen in ((self.photo, self.rgb), (self.rest, self.others))
        )
        levels = []
        for level, (photo, rest) in enumerate(zip(photos, rests, strict=True)):
            levels.append(self.join[str(level)](photo, rest) if str(level) in self.used else photo)
        return [image, *levels[1:]] if self.whole else levels

    def spare(self, idle) -> None:
        """Levels whose joint is among the idle weights (a decoder that does not read them) are not joined."""
        self.used = {level for level in self.join if f"encoder.join.{level}.gamma" not in idle}


class CrossModality(nn.Module):
    """x + gamma * attention: residual attention across modalities, gamma one number per channel, 0 at the start.

    x (B,C,H,W) asks (queries), other (B,D,H,W) answers (keys and values); the result has the shape of x. After the
    residual cross-modality attention fusion of Li et al. 2025 (arXiv:2504.17822). Ours are: windows of 8 by 8, so
    that the cost grows with the pixels and not with their square; a learnt bias by relative position that starts as a
    bell of one pixel's width, as the bands of a tile lie on one grid; and gamma (Touvron et al. 2021,
    arXiv:2103.17239), with which training starts from the model that sees red, green and blue alone.
    """

    def __init__(self, width: int, other: int, window: int = WINDOW):
        super().__init__()
        self.heads = min(MOST_HEADS, max(1, width // HEAD_WIDTH))
        inner = self.heads * HEAD_WIDTH
        self.window = window
        self.norm, self.norm_other = nn.LayerNorm(width), nn.LayerNorm(other)
        self.query, self.answer = nn.Linear(width, inner), nn.Linear(other, 2 * inner)
        self.project = nn.Linear(inner, width)
        self.gamma = nn.Parameter(torch.zeros(width))
        steps = torch.arange(1 - window, window)
        bell = -(steps[:, None].square() + steps.square()) / 2
        self.relative_position_bias_table = nn.Parameter(bell.flatten()[:, None].repeat(1, self.heads).float())
        self.register_buffer("pairs", relative_places(window), persistent=False)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        margin = (0, -width % self.window, 0, -height % self.window)
        asking = self.norm(windows(F.pad(x, margin), self.window))
        answering = self.norm_other(windows(F.pad(other, margin), self.window))
        query = self._heads(self.query(asking))
        key, value = (self._heads(part) for part in self.answer(answering).chunk(2, -1))
        bias = self.relative_position_bias_table[self.pairs].permute(2, 0, 1)[None]
        if any(margin):
            inside = windows(F.pad(torch.ones_like(x[:, :1]), margin), self.window)[:, None, None, :, 0] > 0
            bias = bias.masked_fill(~inside, float("-inf"))  # nothing is asked of the padding
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        found = self.project(found.transpose(1, 2).flatten(2)) * self.gamma
        padded = (height + margin[3], width + margin[1])
        return x + together(found, padded, self.window)[..., :height, :width].to(x.dtype)

    def _heads(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (self.heads, HEAD_WIDTH)).transpose(1, 2)


def relative_places(window: int) -> torch.Tensor:
    """int64 (n,n), n = window^2: for two places of a window the row of the table of their difference (dy, dx)."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    dy, dx = (axis.flatten()[:, None] - axis.flatten() + window - 1 for axis in (y, x))
    return dy * (2 * window - 1) + dx


def windows(x: torch.Tensor, side: int) -> torch.Tensor:
    """(B,C,H,W), H and W multiples of side -> (B * windows, side^2, C)."""
    batch, channels, height, width = x.shape
    cut = x.reshape(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, channels)


def together(tokens: torch.Tensor, size: tuple[int, int], side: int) -> torch.Tensor:
    """Back from `windows`: (B * windows, side^2, C) -> (B,C,H,W) of the size (H, W)."""
    down, across = size[0] // side, size[1] // side
    whole = tokens.reshape(-1, down, across, side, side, tokens.shape[-1])
    return whole.permute(0, 5, 1, 3, 2, 4).reshape(-1, tokens.shape[-1], *size)


def check_late(fusion: str, channels: int, rgb) -> str:
    """What is wrong with the channels of a late fusion, "" where nothing is."""
    if fusion != "late":
        return ""
    if rgb is None or len(set(rgb)) != 3 or not all(0 <= index < channels for index in rgb):
        return "needs red, green and blue among the bands; choose them, or take --fusion early"
    if channels < 4:
        return "needs a band beside red, green and blue; choose one, or take --fusion early"
    return ""
