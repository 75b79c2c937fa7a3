"""Losses of the stereo regressor. All of them work in float32, over the valid entries of all processes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn import functional as F

from common.errors import InputError
from common.losses.reduce import all_sum, global_mean
from common.models.heads import expected_grams, head_scale
from common.precision import full_precision

TARGET_WEIGHTS = {
    "equal": {},
    "total-heavy": {"Dry_Green_g": 0.1, "Dry_Dead_g": 0.1, "Dry_Clover_g": 0.1, "GDM_g": 0.2, "Dry_Total_g": 0.5},
}
IDENTITIES = (("GDM_g", ("Dry_Green_g", "Dry_Clover_g")), ("Dry_Total_g", ("GDM_g", "Dry_Dead_g")))
SMOOTH_BETA = 0.1  # of the scale: nearly the absolute error
HUBER_DELTA = 1.0  # of the scale: squared up to a typical mass, linear for the outliers


class Entries(NamedTuple):
    """What a loss compares, each (B,T) float32 unless said otherwise."""

    value: torch.Tensor  # head space: grams, or log1p grams
    grams: torch.Tensor  # expected mass
    target: torch.Tensor  # grams, zero where not valid
    head_target: torch.Tensor
    head_scale: torch.Tensor  # (T,)
    weight: torch.Tensor  # target weight where valid, else 0
    amount_weight: torch.Tensor  # the same, also 0 where a two-part target is zero


def _pointwise(element: Callable) -> Callable:
    """Weighted mean of element(error / scale) over the valid entries, in head space."""

    def loss(entries: Entries) -> torch.Tensor:
        error = (entries.value - entries.head_target) / entries.head_scale
        return global_mean(element(error), entries.amount_weight)

    return loss


def _smooth_l1(error: torch.Tensor) -> torch.Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=SMOOTH_BETA)


def _huber(error: torch.Tensor) -> torch.Tensor:
    return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=HUBER_DELTA)


def r2_loss(entries: Entries) -> torch.Tensor:
    """1 - R2 of the global batch, in grams: one weighted mean over all valid entries of all targets.

    The variance in the denominator is held at 1 g^2 or more, for a batch whose targets are all alike.
    """
    weight, target = entries.weight, entries.target
    total, mass = all_sum(torch.stack([weight.sum(), (weight * target).sum()]))
    mean = mass / total.clamp_min(1e-12)
    residual, spread = all_sum(
        torch.stack([(weight * (entries.grams - target) ** 2).sum(), (weight * (target - mean) ** 2).sum()])
    )
    return residual / torch.maximum(spread, total).detach().clamp_min(1e-12)


LOSSES = {
    "mse": _pointwise(torch.square),
    "smooth-l1": _pointwise(_smooth_l1),
    "huber": _pointwise(_huber),
    "r2": r2_loss,
}


def resolve_weights(target_weights, outputs) -> list[float]:
    """Weights of the outputs, summing to 1, from "equal", "total-heavy" or as many numbers as outputs."""
    if isinstance(target_weights, (list, tuple)) and len(target_weights) == 1 and target_weights[0] in TARGET_WEIGHTS:
        target_weights = target_weights[0]
    if target_weights == "equal":
        weights = [1.0] * len(outputs)
    elif isinstance(target_weights, str) and target_weights in TARGET_WEIGHTS:
        weights = [TARGET_WEIGHTS[target_weights].get(name) for name in outputs]
    else:
        try:
            weights = [float(number) for number in target_weights]
        except (TypeError, ValueError):
            weights = []
    if len(weights) != len(outputs) or any(w is None or not 0 <= w < float("inf") for w in weights) or not sum(weights):
        raise InputError(
            f"--target-weights {target_weights}: give one of {', '.join(TARGET_WEIGHTS)} or {len(outputs)} numbers "
            f"for {', '.join(outputs)}"
        )
    return [w / sum(weights) for w in weights]


def build_loss(
    *,
    kind: str,
    outputs,
    target_weights="equal",
    scale=None,
    constraint_weight: float = 0.0,
    log_targets=(),
    uncertainty: bool = False,
    two_part=(),
    aux_weights: dict[str, float] | None = None,
    distill_weight: float = 0.0,
    distill_warmup: int = 5,
) -> "RegressionLoss":
    """The loss of a run: loss(outputs of the model, batch) -> {"loss": scalar with gradient, parts without}.

    kind            one of LOSSES. Pointwise kinds divide each error by the output's `scale` (typical grams; log1p of
                    it for log targets), so that an untrained head's error is about 1 whatever the target; "r2" is in
                    grams.
    constraint_weight  times the mean squared violation of the two identities, in grams over the scale of the sum.
    uncertainty     adds the Gaussian negative log likelihood in head space; it trains mean and variance.
    two_part        adds the cross entropy of zero or not; the amount is then learnt on non-zero targets only.
    aux_weights     adds soft cross entropies against batch["aux"][name]; a row of zeros is an unknown label.
    distill_weight  needs batch["epoch"] (int): below distill_warmup only the auxiliary heads and the teacher learn;
                    afterwards the biomass heads learn from the targets and from the teacher's value.
    """
    outputs = list(outputs)
    if kind not in LOSSES:
        raise InputError(f"--loss {kind}: choose one of {', '.join(LOSSES)}")
    if constraint_weight and not all({whole, *parts} <= set(outputs) for whole, parts in IDENTITIES):
        raise InputError(
            f"--constraint-weight {constraint_weight}: the outputs {', '.join(outputs)} have no identities"
        )
    scale = [1.0] * len(outputs) if scale is None else [float(s) for s in scale]
    if len(scale) != len(outputs) or min(scale) <= 0:
        raise InputError(f"scale of the loss: {len(outputs)} numbers above zero are needed, got {scale}")
    return RegressionLoss(
        kind=kind,
        outputs=outputs,
        weights=resolve_weights(target_weights, outputs),
        scale=scale,
        constraint_weight=constraint_weight,
        log_mask=[name in log_targets for name in outputs],
        uncertainty=uncertainty,
        two_part=[outputs.index(name) for name in two_part],
        aux_weights=dict(aux_weights or {}),
        distill_weight=distill_weight,
        distill_warmup=distill_warmup,
    )


@dataclass(frozen=True)
class RegressionLoss:
    """See build_loss. Numbers in the returned dict are of all processes, not of this one."""

    kind: str
    outputs: list
    weights: list
    scale: list
    constraint_weight: float
    log_mask: list
    uncertainty: bool
    two_part: list
    aux_weights: dict = field(default_factory=dict)
    distill_weight: float = 0.0
    distill_warmup: int = 5

    def __call__(self, outputs: dict, batch: dict) -> dict:
        with full_precision(outputs["value"].device):
            entries = self.entries(outputs, batch)
            terms = {"main": (1.0, LOSSES[self.kind](entries))}
            if self.uncertainty:
                terms["nll"] = (1.0, gaussian_nll(entries, outputs["log_var"].float()))
            if self.two_part:
                terms["nonzero"] = (1.0, self.nonzero(entries, outputs["nonzero"].float()))
            if self.constraint_weight:
                terms["constraint"] = (self.constraint_weight, self.constraint(entries.grams, batch["valid"]))
            if self.distill_weight:
                terms = self.distilled(terms, entries, outputs["teacher"].float(), int(batch["epoch"]))
            for name, weight in self.aux_weights.items():
                terms[f"aux_{name}"] = (weight, soft_cross_entropy(outputs["aux"][name], batch["aux"][name]))
            loss = sum(weight * term for weight, term in terms.values()) + untouched(outputs)
        return {"loss": loss, **{name: term.detach() for name, (_, term) in terms.items()}}

    def entries(self, outputs: dict, batch: dict) -> Entries:
        value = outputs["value"].float()
        device, valid = value.device, batch["valid"].to(value.device)
        target = torch.where(valid, batch["target"].to(device).float(), 0.0)
        log_mask = torch.tensor(self.log_mask, device=device)
        weight = valid * torch.tensor(self.weights, device=device)
        present = torch.ones_like(valid)
        present[:, self.two_part] = target[:, self.two_part] > 0
        nonzero = outputs["nonzero"].float() if self.two_part else None
        return Entries(
            value=value,
            grams=expected_grams(value, nonzero, log_mask, self.two_part),
            target=target,
            head_target=torch.where(log_mask, torch.log1p(target), target),
            head_scale=head_scale(self.scale, self.log_mask).to(device),
            weight=weight,
            amount_weight=weight * present,
        )

    def nonzero(self, entries: Entries, logits: torch.Tensor) -> torch.Tensor:
        known = (entries.target[:, self.two_part] > 0).float()
        element = F.binary_cross_entropy_with_logits(logits, known, reduction="none")
        return global_mean(element, entries.weight[:, self.two_part])

    def constraint(self, grams: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Over the rows of which anything is known: a row that only pads a batch must not count."""
        column = {name: grams[:, i] for i, name in enumerate(self.outputs)}
        gaps = [
            (column[whole] - sum(column[part] for part in parts)) / self.scale[self.outputs.index(whole)]
            for whole, parts in IDENTITIES
        ]
        squared = torch.stack(gaps) ** 2
        known = valid.to(grams.device).any(-1).float()
        return global_mean(squared, known.expand_as(squared))

    def distilled(self, terms: dict, entries: Entries, teacher: torch.Tensor, epoch: int) -> dict:
        learning = 0.0 if epoch < self.distill_warmup else 1.0
        terms = {name: (weight * learning, term) for name, (weight, term) in terms.items()}
        as_teacher = entries._replace(value=teacher, grams=teacher)
        terms["teacher"] = (1.0, LOSSES["mse"](as_teacher))
        towards = entries._replace(head_target=teacher.detach())
        terms["guidance"] = (self.distill_weight * learning, LOSSES["mse"](towards))
        return terms


def untouched(outputs: dict) -> torch.Tensor:
    """Zero with a gradient of zero for every output: DDP must see one for heads that no term looks at, too."""
    flat = [t for value in outputs.values() for t in (value.values() if isinstance(value, dict) else [value])]
    return 0.0 * sum(t.float().sum() for t in flat)


def gaussian_nll(entries: Entries, log_var: torch.Tensor) -> torch.Tensor:
    """Mean of (error^2 / variance + log variance) / 2 in head space, the variance in units of the scale."""
    squared = (entries.value - entries.head_target) ** 2
    element = 0.5 * (squared * torch.exp(-log_var) + log_var - 2 * torch.log(entries.head_scale))
    return global_mean(element, entries.amount_weight)


def soft_cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean over rows of -sum label * log softmax(logits), label (B,K) soft; rows of zeros are left out."""
    label = label.to(logits.device).float()
    element = -(label * torch.log_softmax(logits.float(), -1)).sum(-1)
    return global_mean(element, (label.sum(-1) > 0).float())
