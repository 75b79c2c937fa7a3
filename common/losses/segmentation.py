"""The loss of a segmenter: weighted sums of the terms beside this file, and the settings of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from common.errors import InputError
from common.losses.ordinal import ORDINAL, smoothed_shares
from common.losses.segmentation_terms import LOSSES, Pixels
from common.ordinal import class_logits, head_outputs
from common.precision import full_precision

# Settings of a whole training phase, by name: A for pretraining, B for what is handed in.
PHASES = {
    "A": {"focal": 0.6, "dice": 0.4},
    "B": {"focal": 0.25, "dice": 0.25, "mcc": 0.35, "boundary": 0.15},
}
# {part: (share of its weight in epoch 0, epochs until all of it)}; parts that are not named have all of it at once.
RAMP = {"boundary": (0.05, 30)}


def resolve_parts(loss: str | Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    """{name of LOSSES: weight} from a phase ("B"), a loss ("dice"), a list ("focal=.6", "dice=.4") or such a table."""
    if isinstance(loss, Mapping):
        parts = dict(loss)
    else:
        words = [loss] if isinstance(loss, str) else list(loss)
        if len(words) == 1 and words[0] in PHASES:
            return dict(PHASES[words[0]])
        parts = dict(word.partition("=")[::2] for word in words)
        parts = {name: weight if weight else 1.0 for name, weight in parts.items()}
    try:
        parts = {name: float(weight) for name, weight in parts.items()}
        right = all(name in LOSSES and 0 < weight < float("inf") for name, weight in parts.items())
    except (TypeError, ValueError):
        right = False
    if not parts or not right:
        said = (
            loss if isinstance(loss, str) else " ".join(map(str, loss.items() if isinstance(loss, Mapping) else loss))
        )
        raise InputError(
            f"--loss {said}: give a phase ({', '.join(PHASES)}) or NAME=WEIGHT with weights above zero and names out "
            f"of {', '.join(LOSSES)}"
        )
    return parts


def build_loss(
    *,
    loss: str | Sequence[str] | Mapping[str, float],
    outputs: Sequence[str],
    focal_alpha: Sequence[float] | None = None,
    focal_gamma: float = 2.0,
    border_weight: float = 3.0,
    pair_weight: float = 5.0,
    border_pairs: Sequence[tuple[str, str]] = (),
    border_width: int = 1,
    mcc_phi: float = 0.7,
    tversky: tuple[float, float] = (0.7, 0.3),
    foreground: bool = False,
    ramp: Mapping[str, tuple[float, int]] = RAMP,
    head: str = "softmax",
    ordinal_weight: float = 0.3,
    ordinal_smoothing: float = 0.0,
) -> "SegmentationLoss":
    """The loss of a run: loss(outputs (B,L,H,W), batch) -> {"loss": scalar with gradient, parts without}.

    outputs are what `head` gives: logits (L = K), or levels (L = K - 1) of an ordinal head, see common/ordinal.py.

    batch: "target" integers (B,H,W), "valid" bool (B,H,W), "epoch"; "soft" float (B,H,W), where there is one: the
    confidence in 0..1 that a pixel is of class 1, which stands for the target in cross-entropy, focal, dice and tversky
    (two outputs only); boundary and mcc keep to the target.
    loss            see resolve_parts; the weighted sum of the parts is the loss.
    focal_alpha     a weight for each of the outputs, or for two outputs that of the second, the first having the rest
                    to 1; None is 1, 2, 3, .. K.
    border_weight   of pixels within border_width px of another class, pair_weight where the classes are one of
                    border_pairs (names of outputs), in "boundary".
    mcc_phi         see mcc_loss.
    tversky         weights of false negatives (alpha) and of false positives (beta): beta > alpha favours precision.
    foreground      dice and tversky over the outputs after the first, in batches without them too; see tversky_loss.
    ramp            {part: (share of its weight in epoch 0, epochs until all of it)}, linear; needs batch["epoch"].
    head            "coral", "corn": the parts look at the class probabilities of the levels, and ordinal_weight times
                    the head's own loss is added (the part "coral" or "corn"; 0 leaves it out).
    ordinal_smoothing   share of a label that goes to the neighbouring classes, of any head; it stands for the target
                    where soft labels would.
    """
    outputs = list(outputs)
    numbers = {
        "--focal-gamma": focal_gamma,
        "--mcc-phi": mcc_phi,
        "--border-weight": border_weight,
        "--pair-weight": pair_weight,
        "--tversky": min(tversky),
        "--ordinal-weight": ordinal_weight,
    }
    check_numbers(numbers, border_width)
    head_outputs(head, len(outputs))
    if not 0 <= ordinal_smoothing < 1:
        raise InputError(f"--ordinal-smoothing {ordinal_smoothing}: it must be a number from 0 up to below 1")
    options = {
        "focal": {"alpha": class_weights(focal_alpha, outputs), "gamma": focal_gamma},
        "dice": {"foreground": foreground},
        "tversky": {"alpha": tversky[0], "beta": tversky[1], "foreground": foreground},
        "boundary": {
            "border_weight": float(border_weight),
            "pair_weight": float(pair_weight),
            "pairs": class_pairs(border_pairs, outputs),
            "width": border_width,
        },
        "mcc": {"phi": mcc_phi},
    }
    parts = resolve_parts(loss)
    own = {"head": head, "ordinal_weight": float(ordinal_weight), "smoothing": float(ordinal_smoothing)}
    return SegmentationLoss(classes=len(outputs), parts=parts, options=options, ramp=dict(ramp), **own)


def check_numbers(numbers: Mapping[str, float], border_width: int) -> None:
    for name, value in numbers.items():
        if not 0 <= value < float("inf"):
            raise InputError(f"{name} {value}: it must be a number from 0 up")
    if border_width < 1:
        raise InputError(f"--border-width {border_width}: it must be at least 1 pixel")


def class_weights(alpha: Sequence[float] | None, outputs: Sequence[str]) -> list[float]:
    """A weight for each of the outputs; 1, 2, 3, .. where none are given; (1 - a, a) where a alone is, for two."""
    weights = [float(a) for a in (range(1, len(outputs) + 1) if alpha is None else alpha)]
    if len(weights) == 1 and len(outputs) == 2:
        if not 0 <= weights[0] <= 1:
            raise InputError(f"--focal-alpha {weights[0]:g}: one number is the weight of {outputs[1]}, from 0 to 1")
        return [1 - weights[0], weights[0]]
    if len(weights) != len(outputs) or not all(0 <= a < float("inf") for a in weights) or not sum(weights):
        raise InputError(f"--focal-alpha {weights}: give {len(outputs)} numbers from 0 up, for {', '.join(outputs)}")
    return weights


def class_pairs(pairs: Sequence[tuple[str, str]], outputs: Sequence[str]) -> list[tuple[int, int]]:
    for name in [name for pair in pairs for name in pair]:
        if name not in outputs:
            raise InputError(f"--border-pairs: '{name}' is no output; choose from {', '.join(outputs)}")
    return [(outputs.index(a), outputs.index(b)) for a, b in pairs]


def ramp_share(ramp: Mapping[str, tuple[float, int]], name: str, epoch: int) -> float:
    """Share of its weight that a part has in an epoch (from 0 on)."""
    start, epochs = ramp[name]
    return start + (1 - start) * min(1.0, epoch / max(1, epochs))


@dataclass(frozen=True)
class SegmentationLoss:
    """See build_loss. Numbers in the returned dict are of all processes, not of this one."""

    classes: int
    parts: dict[str, float]
    options: dict[str, dict]
    ramp: dict[str, tuple[float, int]]
    head: str = "softmax"
    ordinal_weight: float = 0.0
    smoothing: float = 0.0

    def __call__(self, outputs: torch.Tensor, batch: dict) -> dict:
        with full_precision(outputs.device):
            valid = batch["valid"].to(outputs.device)
            outputs = torch.where(valid.unsqueeze(1), outputs.float(), 0.0)
            pixels = self.pixels(self.class_logits(outputs), valid, batch)
            terms = {name: evaluate(name, pixels, self.options) for name in self.parts}
            loss = sum(self.weight(name, batch) * term for name, term in terms.items())
            if self.head in ORDINAL and self.ordinal_weight:
                terms[self.head] = ORDINAL[self.head](outputs, batch["target"].to(outputs.device), valid)
                loss = loss + self.ordinal_weight * terms[self.head]
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def class_logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """What the head gives -> (B,K,H,W) float32 whose softmax are the class probabilities."""
        return class_logits(outputs, self.head)

    def pixels(self, logits: torch.Tensor, valid: torch.Tensor, batch: dict) -> Pixels:
        target = batch["target"].to(logits.device)
        classes = torch.arange(self.classes, device=logits.device).view(1, -1, 1, 1)
        hot = (target.unsqueeze(1) == classes) & valid.unsqueeze(1)
        share = smoothed_shares(hot, self.smoothing) if self.smoothing else None
        if "soft" in batch:
            if self.classes != 2:
                raise InputError(f"soft labels are for 2 outputs, not for {self.classes}; leave them off")
            if self.smoothing:
                raise InputError("--ordinal-smoothing: these labels are soft already; leave one of the two off")
            share = shares_of(batch["soft"].to(logits.device), valid)
        return Pixels(logits=logits, hot=hot, valid=valid.float(), share=share)

    def weight(self, name: str, batch: dict) -> float:
        share = ramp_share(self.ramp, name, int(batch["epoch"])) if name in self.ramp else 1.0
        return self.parts[name] * share


def shares_of(soft: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(B,2,H,W) float32 shares of the two classes in soft labels (B,H,W), 0 where not valid."""
    return torch.where(valid.unsqueeze(1), torch.stack([1 - soft, soft], 1).float(), 0.0)


def evaluate(name: str, pixels: Pixels, options: dict[str, dict]) -> torch.Tensor:
    loss: Callable = LOSSES[name]
    return loss(pixels, **options.get(name, {}))
