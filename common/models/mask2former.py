"""Mask2Former's decoder (of transformers, an extra) on any encoder, read as one logit per class and pixel."""

import segmentation_models_pytorch as smp
import torch
from torch import nn

from common.errors import InputError
from common.models.foundation import Parts

MASK2FORMER = {
    "hidden_dim": 256,
    "feature_size": 256,
    "mask_feature_size": 256,
    "num_queries": 100,
    "encoder_layers": 6,
    "decoder_layers": 10,
    "dim_feedforward": 2048,
    "encoder_feedforward_dim": 1024,
    "num_attention_heads": 8,
}  # fmt: skip  (those of the paper)
LEVELS = 4  # of the encoder, at strides 4, 8, 16 and 32
SMALLEST = 1e-6  # of a class at a pixel, so that its logarithm is finite


class QueryDecoder(nn.Module):
    """Features of an encoder -> scores (B,K,H/4,W/4): log of the sum over queries of class times mask.

    Mask2Former (Cheng et al. 2022, arXiv:2112.01527) gives queries, each with probabilities over K classes and none,
    and a mask; as in its semantic reading a class scores sum_q p_q(class) sigmoid(mask_q). The logarithm makes that a
    logit: softmax over the classes divides by the sum of the scores. So it is trained by the losses of pixels, not by
    the paper's matching of masks. Raises InputError without transformers.
    """

    def __init__(self, channels: list[int], classes: int):
        super().__init__()
        try:
            from transformers import Mask2FormerConfig
            from transformers.models.mask2former import modeling_mask2former as parts
        except ImportError as error:
            raise InputError("--arch mask2former needs transformers: pip install transformers") from error
        config = Mask2FormerConfig(**MASK2FORMER, feature_strides=[4, 8, 16, 32], common_stride=4)
        self.pixels = parts.Mask2FormerPixelDecoder(config, feature_channels=list(channels))
        self.queries = parts.Mask2FormerTransformerModule(config.feature_size, config)
        self.classes = nn.Linear(config.hidden_dim, classes + 1)
        nn.init.normal_(self.pixels.level_embed)  # not set by its class alone

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        seen = self.pixels(features[-LEVELS:], output_hidden_states=False, output_attentions=False, return_dict=True)
        found = self.queries(list(seen.multi_scale_features), seen.mask_features)
        shares = self.classes(found.intermediate_hidden_states[-1].transpose(0, 1)).float().softmax(-1)[..., :-1]
        masks = found.masks_queries_logits[-1].float().sigmoid()
        scores = torch.einsum("bqk,bqhw->bkhw", shares, masks)
        return scores.clamp_min(SMALLEST).log()


def mask2former_net(*, encoder_name: str, encoder_weights, in_channels: int, classes: int, **options) -> Parts:
    """Called as smp's classes are: the decoder on the last four levels of the encoder, logits of the picture's size."""
    encoder = smp.encoders.get_encoder(encoder_name, in_channels, weights=encoder_weights, **options)
    channels = list(encoder.out_channels[-LEVELS:])
    head = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)
    return Parts(encoder, QueryDecoder(channels, classes), head)
