"""Ordered classes: what the raw outputs of a head mean, and one number from 0 to 1 for a pixel's place in the order.

An ordinal head answers for K classes with K - 1 levels, logits of "above class k":
  coral  level k is the logit of P(y > k); one weight vector for all levels, biases that fall with k, so that the
         probabilities fall too (Cao, Mirjalili & Raschka 2020, arXiv:1901.07884)
  corn   level k is the logit of P(y > k | y > k - 1); the product of the first ones is P(y > k)
         (Shi, Cao & Raschka 2023, arXiv:2111.08851)
"""

import numpy as np
import torch
from torch.nn import functional as F

from common.errors import InputError

HEADS = ("softmax", "coral", "corn")
MOST = 1e4  # size of a level beyond which nothing changes: sums of such logarithms stay finite
GAP = 1e-6  # of neighbouring levels at least, so that the class between them has a logarithm


def head_outputs(head: str, classes: int) -> int:
    """Number of raw outputs of a head for `classes` classes. InputError for an unknown head or fewer than 2 classes."""
    if head not in HEADS:
        raise InputError(f"--head {head}: choose one of {', '.join(HEADS)}")
    if classes < 2:
        raise InputError(f"--head {head}: {classes} class; at least 2 are needed")
    return classes if head == "softmax" else classes - 1


def class_logits(outputs: torch.Tensor, head: str) -> torch.Tensor:
    """Raw outputs (B,L,...) of a head -> (B,K,...) float32 whose softmax over axis 1 are the class probabilities.

    softmax: the logits themselves. coral, corn: logarithms of the probabilities, finite also for infinite levels; a
    NaN stays one. Levels of coral that do not fall (a bug, or rounding to half precision) count as GAP apart.
    """
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if head == "softmax":
        return outputs
    levels = outputs.clamp(-MOST, MOST)
    above, below = F.logsigmoid(levels), F.logsigmoid(-levels)  # of P and of 1 - P
    if head == "corn":
        none = torch.zeros_like(levels[:, :1])
        reached = torch.cat([none, above.cumsum(1)], 1)
        return reached + torch.cat([below, none], 1)
    # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), which keeps its digits where both are near 0 or near 1
    gap = (levels[:, :-1] - levels[:, 1:]).clamp_min(GAP)
    between = above[:, :-1] + below[:, 1:] + torch.log(-torch.expm1(-gap))
    return torch.cat([below[:, :1], between, above[:, -1:]], 1)


def susceptibility(prob, axis: int):
    """Mean class as a share of the highest: sum over k of k / (K - 1) P_k, 0..1; prob a tensor or an array.

    axis: that of the K classes, which the result lacks. Of three classes: .5 P_1 + P_2.
    """
    shape = [1] * prob.ndim
    shape[axis] = -1
    if isinstance(prob, torch.Tensor):
        prob = prob.to(torch.promote_types(prob.dtype, torch.float32))
        weight = torch.linspace(0, 1, prob.shape[axis], dtype=prob.dtype, device=prob.device)
        return (prob * weight.view(shape)).sum(axis)
    prob = np.asarray(prob)
    kind = np.promote_types(prob.dtype, np.float32)
    weight = np.linspace(0, 1, prob.shape[axis], dtype=kind).reshape(shape)
    return (prob.astype(kind, copy=False) * weight).sum(axis)
