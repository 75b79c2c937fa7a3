"""The image encoder of SAM 3, as transformers (an extra) has it, in the form of timm's vision transformers."""

import torch
from torch import nn

from common.errors import InputError

SAM3 = {
    "sam3": {"hidden_size": 1024, "intermediate_size": 4736, "num_hidden_layers": 32, "num_attention_heads": 16,
             "patch_size": 14, "window_size": 24, "global_attn_indexes": [7, 15, 23, 31], "pretrain_image_size": 336},
}  # fmt: skip
SAM3_SOURCE = "https://huggingface.co/facebook/sam3"


class Sam3ViT(nn.Module):
    """Image (B,C,H,W), sides multiples of the patch -> maps (B,D,H/patch,W/patch) after the layers asked for.

    `sam3` is transformers' Sam3ViTModel, with its names. That takes pictures of one size, because the layers that see
    the whole picture hold the places of its patches; here they get those of the picture at hand, as far apart as in
    pretraining. There is no norm after the last layer. Raises InputError without a transformers that has SAM 3.
    """

    def __init__(self, channels: int, **size):
        super().__init__()
        try:
            from transformers import Sam3ViTConfig, Sam3ViTModel
        except ImportError as error:
            raise InputError("--encoder vit-sam3 needs transformers 5: pip install -U transformers") from error
        self.patch = size["patch_size"]
        self.feature_info = [{"num_chs": size["hidden_size"], "reduction": self.patch}] * size["num_hidden_layers"]
        config = Sam3ViTConfig(num_channels=channels, **size)
        self.sam3 = Sam3ViTModel(config)
        self.step = config.window_size / (config.image_size // config.patch_size)

    def forward_intermediates(self, image: torch.Tensor, indices: list[int], **_) -> list[torch.Tensor]:
        self.place(image.shape[-2] // self.patch, image.shape[-1] // self.patch, image.device)
        maps, hooks = {}, []
        for index in indices:

            def keep(module, inputs, output, index=index):
                maps[index] = output

            hooks.append(self.sam3.layers[index].register_forward_hook(keep))
        try:
            self.sam3(image)
        finally:
            for hook in hooks:
                hook.remove()
        return [maps[index].permute(0, 3, 1, 2) for index in indices]

    def place(self, height: int, width: int, device):
        """Give the layers without windows the places (x, y) of a grid of height x width patches."""
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = (torch.stack([x.flatten(), y.flatten()], -1) * self.step).to(device)
        for layer in self.sam3.layers:
            if not layer.window_size:
                layer.position_ids = places


def sam3_state(state: dict) -> dict:
    """Of a file of the whole SAM 3 (names of transformers) the image encoder alone, as `Sam3ViT` names it."""
    mark = "vision_encoder.backbone."
    found = {key.split(mark, 1)[1]: value for key, value in state.items() if mark in key}
    return {f"sam3.{key.removeprefix('sam3.')}": value for key, value in (found or state).items()}
