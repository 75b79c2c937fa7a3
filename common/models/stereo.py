"""The stereo regressor: cells of two halves -> one shared backbone -> fusion -> heads in grams."""

import torch
from torch import nn

from common.errors import InputError
from common.models.backbone import Backbone
from common.models.fusion import FUSIONS, AttentionPool
from common.models.heads import RegressionHeads, expected_grams, head_scale, interval
from common.precision import full_precision


def cut_cells(image: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B,2,3,R*S,C*S) -> (B*2*R*C, 3, S, S): photo by photo, half by half, cells row by row."""
    rows, cols = grid
    batch, halves, channels, height, width = image.shape
    cells = image.reshape(batch, halves, channels, rows, height // rows, cols, width // cols)
    cells = cells.permute(0, 1, 3, 5, 2, 4, 6)
    return cells.reshape(-1, channels, height // rows, width // cols)


def standardised(image: torch.Tensor) -> torch.Tensor:
    """(B,2,3,H,W) -> the same, every channel of a photo at mean 0 and deviation 1 over both halves."""
    axes = (1, 3, 4)
    image = image.float()
    return (image - image.mean(axes, keepdim=True)) / (image.std(axes, keepdim=True) + 1e-2)


class StereoRegressor(nn.Module):
    """Masses of one photo from its two halves.

    The fusion and the pooling over cells share their weights between the halves; joining [left, right] does not, so
    the model is not symmetric under a swap of the halves and learns it from the stereo-swap augmentation.
    All arguments are plain types: `StereoRegressor(**spec["model"])` rebuilds the model and never downloads.

    `scale`: a typical mass of each output in grams (means of the training rows; default ones). A head's softplus is
    multiplied by it (by log1p(scale) for an output in `log_targets`), so every head starts at its typical mass.
    `standardise`: take light and white balance out of every photo by itself, for backbones that start at random.
    """

    def __init__(
        self,
        *,
        outputs,
        backbone: str = "vit_base_patch14_reg4_dinov2.lvd142m",
        grid=(2, 2),
        cell_size: int = 252,
        pool: str = "cls",
        blocks=(),
        fusion: str = "film",
        hidden_ratio: float = 0.5,
        dropout: float = 0.2,
        drop_path: float = 0.0,
        scale=None,
        log_targets=(),
        uncertainty: bool = False,
        two_part=(),
        aux: dict[str, int] | None = None,
        distill: bool = False,
        standardise: bool = False,
    ):
        super().__init__()
        self.outputs, self.grid, self.cell_size = list(outputs), tuple(int(n) for n in grid), int(cell_size)
        self.log_targets, self.two_part = list(log_targets), list(two_part)
        self.standardise = standardise
        self._check(fusion, scale, distill, aux)
        self.backbone = Backbone(backbone, cell_size=self.cell_size, pool=pool, blocks=blocks, drop_path=drop_path)
        width = self.backbone.width
        hidden = max(8, int(2 * width * hidden_ratio))
        self.fusion = FUSIONS[fusion](width)
        self.cell_pool = AttentionPool(width)
        self.trunk = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, hidden), nn.GELU(), nn.Dropout(dropout)
        )
        log_mask = torch.tensor([name in self.log_targets for name in self.outputs])
        self.register_buffer("log_mask", log_mask, persistent=False)
        self.two_part_index = [self.outputs.index(name) for name in self.two_part]
        self.head = RegressionHeads(
            hidden,
            head_scale(scale if scale is not None else [1.0] * len(self.outputs), log_mask),
            uncertainty=uncertainty,
            two_part=len(self.two_part),
            aux=aux or {},
            distill=distill,
        )

    def _check(self, fusion, scale, distill, aux):
        if fusion not in FUSIONS:
            raise InputError(f"--fusion {fusion}: choose one of {', '.join(FUSIONS)}")
        for option, names in (("--log-targets", self.log_targets), ("--two-part", self.two_part)):
            unknown = [name for name in names if name not in self.outputs]
            if unknown:
                raise InputError(f"{option} {' '.join(unknown)}: not among the outputs {', '.join(self.outputs)}")
        if scale is not None and (len(scale) != len(self.outputs) or min(scale) <= 0):
            raise InputError(
                f"scale of the model: {len(self.outputs)} numbers above zero are needed, got {list(scale)}"
            )
        if distill and not aux:
            raise InputError("--distill needs the auxiliary heads: add --use-aux-heads")

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B,2,3,R*S,C*S) -> features (B,2,N,D), N = R*C cells row by row, in one backbone call.

        Behind a frozen backbone they carry no gradient. Raises InputError if the image is not R*S x C*S.
        """
        rows, cols = self.grid
        if image.ndim != 5 or tuple(image.shape[-2:]) != (rows * self.cell_size, cols * self.cell_size):
            raise InputError(
                f"image of shape {tuple(image.shape)}: grid {rows} x {cols} with cells of {self.cell_size} px needs "
                f"(B,2,3,{rows * self.cell_size},{cols * self.cell_size})"
            )
        cells = cut_cells(standardised(image) if self.standardise else image, self.grid)
        features = self.backbone(cells.contiguous(memory_format=torch.channels_last))
        return features.reshape(image.shape[0], 2, rows * cols, -1)

    def heads(self, features: torch.Tensor) -> dict:
        """Features (B,2,N,D), any float type -> dict of raw outputs, float32.

        "value" (B,T) head space: grams, or log1p grams for `log_targets`; with the options also "log_var" (B,T),
        "nonzero" logits (B, number of two-part outputs), "aux" {name: logits}, "teacher" (B,T).
        """
        left, right = self.fusion(*features.float().unbind(1))
        joined = torch.cat([self.cell_pool(left), self.cell_pool(right)], -1)
        hidden = self.trunk(joined)
        with full_precision(hidden.device):  # grams in half precision would step by .1
            return self.head(hidden.float())

    def forward(self, x: torch.Tensor) -> dict:
        """Images (5 axes) or stored features (4 axes) -> dict of raw outputs, see `heads`."""
        return self.heads(x if x.ndim == 4 else self.embed(x))

    def to_grams(self, outputs: dict) -> dict:
        """Raw outputs -> {"pred" (B,T) grams} and, with uncertainty, the 90 % interval "lo", "hi"; float32.

        The logarithm is inverted first, then a two-part amount is multiplied by its probability. Neither auxiliary
        heads nor the teacher are looked at.
        """
        value = outputs["value"].float()
        nonzero = outputs["nonzero"].float() if self.two_part_index else None
        grams = {"pred": expected_grams(value, nonzero, self.log_mask, self.two_part_index)}
        if "log_var" in outputs:
            log_var = outputs["log_var"].float()
            grams["lo"], grams["hi"] = interval(value, log_var, nonzero, self.log_mask, self.two_part_index)
        return grams

    def freeze_backbone(self, frozen: bool = True):
        """Heads only: the backbone without gradient and in eval mode, also after train(); False takes it back."""
        self.backbone.freeze(frozen)
        self.backbone.train(self.training)

    def backbone_hash(self) -> str:
        """Equal for two models whose features of the same image are equal."""
        return self.backbone.content_hash()

    def part_of(self, name: str) -> str:
        """ "backbone" or "head" for the name of a parameter."""
        return "backbone" if name.startswith("backbone.") else "head"

    def param_groups(
        self,
        *,
        lr: float,
        backbone_lr: float,
        weight_decay: float,
        layer_decay: float = 1.0,
        unfreeze_blocks: int = 0,
    ) -> list[dict]:
        """Groups for the optimizer: {"name", "part", "params", "lr", "weight_decay"}.

        Biases, norms, tokens and everything else of one dimension get no weight decay. `layer_decay` multiplies the
        rate of a block for each block above it. `unfreeze_blocks` N > 0 trains the last N blocks (with the final
        norm) and takes the gradient from the rest; 0 trains all. A frozen backbone is left out.
        """
        head = [(name, p) for name, p in self.named_parameters() if self.part_of(name) == "head"]
        groups = split_decay("head", "head", head, lr, weight_decay, never=())
        if self.backbone.frozen:
            return groups
        layers = self.backbone.layers()
        first = max(0, len(layers) - unfreeze_blocks) if unfreeze_blocks else 0
        self.backbone.rest(key for _, members in layers[:first] for key, _ in members)
        self.backbone.train(self.training)
        layers = [(name, members, layer_decay ** (len(layers) - 1 - i)) for i, (name, members) in enumerate(layers)]
        layers = layers[first:]
        if layer_decay == 1:
            layers = [("", [member for _, members, _ in layers for member in members], 1.0)]
        never = getattr(self.backbone.net, "no_weight_decay", set)()
        for name, members, factor in layers:
            name = f"backbone.{name}" if name else "backbone"
            groups += split_decay(name, "backbone", members, backbone_lr * factor, weight_decay, never)
        return groups


def split_decay(name: str, part: str, members, lr: float, weight_decay: float, never) -> list[dict]:
    """One or two groups: what weight decay applies to, and what it does not (one dimension, or named in `never`)."""
    plain = [p for key, p in members if p.ndim > 1 and key not in never]
    exempt = [p for key, p in members if p.ndim <= 1 or key in never]
    groups = [(name, plain, weight_decay), (f"{name}.no_decay", exempt, 0.0)]
    return [
        {"name": n, "part": part, "params": params, "lr": lr, "weight_decay": decay}
        for n, params, decay in groups
        if params
    ]
