"""What an ordinal segmenter has in place of a softmax head, attention to places, and a softmax head's prior."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

KERNEL = 7


class SpatialAttention(nn.Module):
    """x * sigmoid(7x7 convolution of the largest and of the mean channel): one factor per pixel.

    The spatial half of CBAM (Woo et al. 2018, arXiv:1807.06521, equation 5) without a norm; x (B,C,H,W).
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, KERNEL, padding=KERNEL // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.conv(seen))


class OrderedBiases(nn.Module):
    """One score (B,1,H,W) -> levels (B,L,H,W) = score + b_k, where b_k falls with k whatever the weights are.

    b_0 = first and b_k = b_{k-1} - softplus(steps_{k-1}); at the start those of classes of equal shares.
    """

    def __init__(self, levels: int):
        super().__init__()
        above = torch.arange(levels, 0, -1) / (levels + 1)
        biases = (above / (1 - above)).log()  # a score of 0 stands for equal shares
        self.first = nn.Parameter(biases[0].clone())
        inverse = (biases[:-1] - biases[1:]).expm1().log()  # of softplus
        self.steps = nn.Parameter(inverse) if levels > 1 else None

    def biases(self) -> torch.Tensor:
        """(L,) falling."""
        first = self.first[None]
        return first if self.steps is None else torch.cat([first, first - F.softplus(self.steps).cumsum(0)])

    def forward(self, score: torch.Tensor) -> torch.Tensor:
        return score + self.biases().view(1, -1, 1, 1)


class OrdinalHead(nn.Module):
    """Decoded features -> levels (B,K-1,H,W) at full size; `score` is a head of smp's for one output or for K - 1.

    coral: the last convolution of `score` gives one output (one weight vector for all levels) and has no bias of its
    own, `levels` has them. corn: `score` gives the levels, each with its own weights.
    """

    def __init__(self, score: nn.Module, head: str, classes: int):
        super().__init__()
        self.score = score
        if head == "coral":
            for part in last_convolution(score):
                part.bias = None
        self.levels = OrderedBiases(classes - 1) if head == "coral" else nn.Identity()

    def forward(self, decoded: torch.Tensor) -> torch.Tensor:
        return self.levels(self.score(decoded))


def last_convolution(module: nn.Module) -> list[nn.Conv2d]:
    """[the last convolution inside], [] where there is none."""
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)][-1:]


def start_at_prior(model, shares: Sequence[float]) -> None:
    """Biases of a Segmenter's softmax head by which the new model answers with these shares of its classes.

    Of a class of a few pixels in a thousand a model that begins at even odds first learns everything else, and then
    calls the class what shows nothing of that: its probability stays near .5 (Lin et al. 2017, section 3.3). Nothing
    changes where there is no such bias: mask2former answers by queries, ordinal heads begin at equal shares.
    """
    shares = torch.tensor(list(shares), dtype=torch.float64).clamp_min(1e-6)
    for part in last_convolution(model.net.segmentation_head):
        with torch.no_grad():
            part.bias.copy_((shares / shares.sum()).log())
