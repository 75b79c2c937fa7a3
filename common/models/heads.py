"""Regression heads and the way from their raw outputs to grams; used by the stereo model and by its loss."""

import math

import torch
from torch import nn
from torch.nn import functional as F

LOG_LIMIT = 20.0  # log1p grams; above it expm1 would run out of float32 once squared
LOG_VAR_BOUND = 7.0  # log variance in units of the scale: standard deviations between 3 % and 33 times the scale
COVERAGE = 0.9


def head_scale(scale, log_mask) -> torch.Tensor:
    """Typical head-space value of each output, (T,) float32: `scale` in grams, log1p(scale) under `log_mask`."""
    scale = torch.as_tensor(scale, dtype=torch.float32)
    return torch.where(torch.as_tensor(log_mask, dtype=torch.bool), torch.log1p(scale), scale)


def invert(value: torch.Tensor, log_mask: torch.Tensor) -> torch.Tensor:
    """Head space -> grams: expm1 for the outputs (last axis) learnt as log1p grams, the others as they are."""
    return torch.where(log_mask, torch.expm1(value.clamp(max=LOG_LIMIT)), value)


def expected_grams(value: torch.Tensor, nonzero, log_mask: torch.Tensor, two_part: list[int]) -> torch.Tensor:
    """Grams (B,T): inverse log first, then for the outputs numbered in `two_part` probability times amount."""
    grams = invert(value, log_mask)
    if not two_part:
        return grams
    prob = torch.ones_like(grams)
    prob[:, two_part] = torch.sigmoid(nonzero)
    return grams * prob


def interval(value, log_var, nonzero, log_mask, two_part, coverage: float = COVERAGE):
    """Central interval in grams -> lo, hi (B,T), never below zero.

    Gaussian in head space; a two-part output is that Gaussian with probability p and zero with 1 - p, and its
    quantiles are those of the mixture.
    """
    prob = torch.ones_like(value)
    if two_part:
        prob[:, two_part] = torch.sigmoid(nonzero)
    deviation, bounds = torch.exp(0.5 * log_var), []
    for level in ((1 - coverage) / 2, (1 + coverage) / 2):
        inner = (level - (1 - prob)) / prob.clamp_min(1e-6)
        normal = math.sqrt(2) * torch.erfinv(2 * inner.clamp(1e-6, 1 - 1e-6) - 1)
        quantile = value + deviation * normal
        bounds.append(torch.where(inner > 0, invert(quantile, log_mask).clamp_min(0), torch.zeros_like(value)))
    return bounds


class RegressionHeads(nn.Module):
    """Hidden vector (B,H) -> {"value" (B,T), "log_var", "nonzero", "aux", "teacher"}: one linear head per number.

    `value` is softplus times the head scale, so that a head output near its initial value means a typical mass.
    `log_var` is the log variance in head space. Auxiliary heads and the teacher read the hidden vector and are read
    by the loss alone: no other output depends on them.
    """

    def __init__(self, hidden: int, scale: torch.Tensor, *, uncertainty: bool, two_part: int, aux: dict, distill: bool):
        super().__init__()
        count = len(scale)
        self.register_buffer("scale", scale, persistent=False)
        self.value = nn.Linear(hidden, count)
        self.log_var = nn.Linear(hidden, count) if uncertainty else None
        self.nonzero = nn.Linear(hidden, two_part) if two_part else None
        self.aux = nn.ModuleDict({name: nn.Linear(hidden, classes) for name, classes in aux.items()})
        self.teacher = None
        if distill:
            width = max(count, hidden // 2)
            self.teacher = nn.Sequential(
                nn.Linear(hidden + sum(aux.values()), width), nn.GELU(), nn.Linear(width, count)
            )
        self._start(self.value, math.log(math.e - 1))  # softplus of it is 1
        if uncertainty:
            self._start(self.log_var, math.log(0.25))
        if distill:
            self._start(self.teacher[-1], math.log(math.e - 1))

    @staticmethod
    def _start(layer: nn.Linear, bias: float):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(layer.bias, bias)

    def forward(self, hidden: torch.Tensor) -> dict:
        out = {"value": F.softplus(self.value(hidden)) * self.scale}
        if self.log_var is not None:
            raw = LOG_VAR_BOUND * torch.tanh(self.log_var(hidden) / LOG_VAR_BOUND)
            out["log_var"] = raw + 2 * torch.log(self.scale)
        if self.nonzero is not None:
            out["nonzero"] = self.nonzero(hidden)
        if len(self.aux):
            out["aux"] = {name: head(hidden) for name, head in self.aux.items()}
        if self.teacher is not None:
            soft = [torch.softmax(logits.detach(), -1) for logits in out["aux"].values()]
            out["teacher"] = F.softplus(self.teacher(torch.cat([hidden, *soft], -1))) * self.scale
        return out
