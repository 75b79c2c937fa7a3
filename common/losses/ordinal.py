"""Losses of ordinal heads on their raw levels, and labels that lend a share to the neighbouring classes."""

import torch
from torch.nn import functional as F

from common.losses.reduce import global_mean
from common.precision import full_precision


def coral_loss(levels: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over the valid pixels of all processes of the sum over levels of the cross-entropy of "above class k".

    levels (B,K-1,H,W) logits of P(y > k), target integers (B,H,W), valid (B,H,W) bool; 0 where nothing is valid.
    Cao, Mirjalili & Raschka 2020 (arXiv:1901.07884), equation 4, with equal weights of the levels; as `coral_loss` of
    the package coral-pytorch on the valid pixels.
    """
    with full_precision(levels.device):
        terms = level_terms(levels, target, valid)
        return global_mean(terms.sum(1), valid.to(terms.dtype))


def corn_loss(levels: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over all questions asked of the cross-entropy of "above class k", asked of valid pixels of class >= k.

    levels (B,K-1,H,W) logits of P(y > k | y >= k); else as `coral_loss`. Shi, Cao & Raschka 2023 (arXiv:2111.08851),
    equation 8; as `corn_loss` of coral-pytorch.
    """
    with full_precision(levels.device):
        asked = valid.unsqueeze(1) & (target.unsqueeze(1) >= ranks(levels))
        terms = level_terms(levels, target, valid)
        return global_mean(terms, asked.to(terms.dtype))


def ranks(levels: torch.Tensor) -> torch.Tensor:
    """(1,K-1,1,1): 0, 1, .. of the levels."""
    return torch.arange(levels.shape[1], device=levels.device).view(1, -1, 1, 1)


def level_terms(levels: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(B,K-1,H,W) cross-entropy of every level, in float32 (float64 stays); 0 where not valid, whatever is there."""
    levels = torch.where(valid.unsqueeze(1), levels.to(torch.promote_types(levels.dtype, torch.float32)), 0.0)
    above = target.unsqueeze(1) > ranks(levels)
    terms = torch.where(above, -F.logsigmoid(levels), -F.logsigmoid(-levels))
    return torch.where(valid.unsqueeze(1), terms, 0.0)


def smoothed_shares(hot: torch.Tensor, smoothing: float) -> torch.Tensor:
    """(B,K,H,W) float32: 1 - smoothing of a pixel's own class, the rest in equal parts of the classes next to it.

    hot (B,K,H,W) bool; the first and the last class have one neighbour, which gets all of the rest. 0 where `hot` is
    False in every class, so shares of a valid pixel sum to 1.
    """
    classes = hot.shape[1]
    near = torch.eye(classes).diff(dim=0)  # a row for each pair of neighbours
    near = (near.T @ near < 0).float()
    table = (1 - smoothing) * torch.eye(classes) + smoothing * near / near.sum(1, keepdim=True)
    rows = table.to(hot.device)
    return sum(hot[:, k : k + 1] * rows[k].view(1, -1, 1, 1) for k in range(classes))


ORDINAL = {"coral": coral_loss, "corn": corn_loss}
