"""The terms that a segmentation loss is a sum of: functions of Pixels, in float32, over all processes' valid pixels.

Sums and masks instead of F.cross_entropy and gather: their CUDA kernels refuse deterministic mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from common.losses.reduce import all_sum, global_mean

EPSILON = 1.0  # pixels that are added to both sides of an index over the foreground
SMALL = 1e-6  # miss of a pixel below which a power of it has no gradient: that of x**.7 is infinite at 0


@dataclass(frozen=True)
class Pixels:
    """What a loss looks at; a pixel that is not valid is False in every class of `hot` and has logits of 0.

    Where labels are soft, cross-entropy, focal, dice and tversky look at `share`; boundary and mcc at `hot`.
    """

    logits: torch.Tensor  # (B,K,H,W) float32
    hot: torch.Tensor  # (B,K,H,W) bool, the true class of every valid pixel
    valid: torch.Tensor  # (B,H,W) float32, 1 or 0
    share: torch.Tensor | None = None  # (B,K,H,W) float32, of every class in a pixel's label; 0 where not valid

    @cached_property
    def log_prob(self) -> torch.Tensor:
        return torch.log_softmax(self.logits, 1)

    @cached_property
    def prob(self) -> torch.Tensor:
        return self.log_prob.exp()

    @cached_property
    def cross_entropy(self) -> torch.Tensor:
        """-log of the probability of the true class (B,H,W), 0 where not valid."""
        return -torch.where(self.hot, self.log_prob, 0.0).sum(1)

    @cached_property
    def miss(self) -> torch.Tensor:
        """1 - probability of the true class (B,H,W); expm1 keeps its digits where that is nearly 1."""
        return -torch.expm1(-self.cross_entropy)

    @cached_property
    def confusion(self) -> torch.Tensor:
        return soft_confusion(self.prob, self.hot if self.share is None else self.share)


def soft_confusion(prob: torch.Tensor, hot: torch.Tensor) -> torch.Tensor:
    """(K,K) sums over all processes: [t, p] is the probability of class p summed over the pixels of class t, or over
    all pixels times the share that t has in their labels."""
    rows = [(prob * hot[:, t : t + 1]).sum((0, 2, 3)) for t in range(hot.shape[1])]
    return all_sum(torch.stack(rows))


def cross_entropy_loss(pixels: Pixels) -> torch.Tensor:
    if pixels.share is not None:
        return global_mean(-(pixels.share * pixels.log_prob).sum(1), pixels.valid)
    return global_mean(pixels.cross_entropy, pixels.valid)


def focal_loss(pixels: Pixels, alpha: Sequence[float], gamma: float) -> torch.Tensor:
    """Mean of alpha_t (1 - p_t)^gamma (-log p_t), p_t the probability of the true class t.

    Lin et al. 2017, Focal Loss for Dense Object Detection, equation 5. Not divided by the alphas. Of a soft label it is
    the sum over the classes t, each times its share.
    """
    weight = torch.tensor(alpha, device=pixels.hot.device).view(1, -1, 1, 1)
    if pixels.share is not None:
        miss = -torch.expm1(pixels.log_prob)
        value = -weight * miss.clamp_min(SMALL) ** gamma * pixels.log_prob
        return global_mean((pixels.share * value).sum(1), pixels.valid)
    weight = (pixels.hot * weight).sum(1)
    return global_mean(weight * pixels.miss.clamp_min(SMALL) ** gamma * pixels.cross_entropy, pixels.valid)


def dice_loss(pixels: Pixels, foreground: bool = False) -> torch.Tensor:
    return tversky_loss(pixels, 0.5, 0.5, foreground)


def tversky_loss(pixels: Pixels, alpha: float, beta: float, foreground: bool = False) -> torch.Tensor:
    """1 - TP / (TP + alpha FN + beta FP) of the soft counts of the whole batch, mean over the classes that occur in it.

    Salehi et al. 2017, equation 4, and segmentation-models-pytorch call the weight of false positives alpha and that of
    false negatives beta; here it is the other way round. Half and half is Dice. A class without a true pixel is left
    out (smp counts it as 0): missing it is another class's error. foreground: the mean is over the classes after the
    first, absent ones too, and EPSILON is added above and below, so that false positives cost in a batch without the
    class. The optimum of a soft label is not the label but its nearest class: TP sums prob x share.
    """
    counts = pixels.confusion
    hit = counts.diagonal()
    row, column = counts.sum(1), counts.sum(0)
    if foreground:
        under = hit + alpha * (row - hit) + beta * (column - hit) + EPSILON
        return (1 - (hit + EPSILON) / under)[1:].mean()
    present = (row.detach() > 0).float()
    index = hit / (hit + alpha * (row - hit) + beta * (column - hit)).clamp_min(1e-12)
    return (present * (1 - index)).sum() / present.sum().clamp_min(1)


def mcc_loss(pixels: Pixels, phi: float) -> torch.Tensor:
    """1 - Gorodkin's R_K (multi-class Matthews correlation) of the soft confusion matrix of the whole batch.

    What a pixel of class t gives to another class is multiplied by (1 - p_t)^phi and the rest given back to t: rows
    still count pixels, a confident right pixel is worth a hard one, and phi = 0 is the plain soft matrix.
    Where the valid pixels hold one class only (or there are none) R_K is undefined and the loss 0.
    Gorodkin 2004, Comparing two K-category assignments by a K-category correlation coefficient, equation 8.
    """
    factor = pixels.miss.clamp_min(SMALL) ** phi
    kept = torch.where(pixels.hot, (1 - factor * pixels.miss).unsqueeze(1), factor.unsqueeze(1) * pixels.prob)
    counts = soft_confusion(kept, pixels.hot)
    several = (counts.detach().sum(1) > 0).sum() > 1
    mcc = correlation(counts / counts.detach().sum().clamp_min(1e-12))
    return torch.where(several, 1 - mcc, 0.0 * counts.sum())


def correlation(share: torch.Tensor) -> torch.Tensor:
    """R_K of a confusion matrix (K,K) whose entries sum to 1.

    Written without 1 - x: sums over the other classes keep the digits of a class of a few pixels in a million.
    """
    off = 1 - torch.eye(len(share), device=share.device)
    rest = (off[:, :, None] * off[:, None, :] * share).sum((1, 2))  # the matrix without row and column k
    covariance = (share.diagonal() * rest - (share * off).sum(1) * (share * off).sum(0)).sum()
    true, pred = share.sum(1).detach(), share.sum(0)
    spread = (true * (off * true).sum(1)).sum() * (pred * (off * pred).sum(1)).sum()
    return covariance / spread.clamp_min(1e-20).sqrt()


def boundary_loss(pixels: Pixels, **borders) -> torch.Tensor:
    """Cross entropy, mean weighted by border_weights."""
    weight = border_weights(pixels.hot, **borders) * pixels.valid
    return global_mean(pixels.cross_entropy, weight)


def border_weights(
    hot: torch.Tensor, *, border_weight: float, pair_weight: float, pairs: Sequence[tuple[int, int]], width: int
) -> torch.Tensor:
    """(B,H,W): 1 inside, border_weight within `width` px (diagonals too) of another class, pair_weight for `pairs`.

    hot (B,K,H,W) bool, False where not valid: the edge of no data is no border. A pixel is on the border of a pair of
    class indices when it is of one of them and the other is near.
    """
    near = F.max_pool2d(hot.float(), 2 * width + 1, stride=1, padding=width) > 0
    weight = torch.where(near.sum(1) > 1, border_weight, 1.0)
    for a, b in pairs:
        weight = torch.where((hot[:, a] & near[:, b]) | (hot[:, b] & near[:, a]), pair_weight, weight)
    return weight


LOSSES = {
    "cross-entropy": cross_entropy_loss,
    "focal": focal_loss,
    "dice": dice_loss,
    "tversky": tversky_loss,
    "boundary": boundary_loss,
    "mcc": mcc_loss,
}
