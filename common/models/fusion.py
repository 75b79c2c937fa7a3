"""How the cells of the two halves inform each other, and how the cells of a half become one vector."""

import torch
from torch import nn


class Film(nn.Module):
    """Each half modulated by the other (Perez et al. 2018): x * (1 + gamma) + beta, gamma and beta from the mean cell
    of the other half. left, right (B,N,D) -> the same. Starts as the identity. The two directions share weights."""

    def __init__(self, width: int):
        super().__init__()
        inner = max(8, width // 4)
        self.net = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, 2 * width))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def modulate(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        gamma, beta = self.net(other.mean(1, keepdim=True)).chunk(2, -1)
        return x * (1 + gamma) + beta

    def forward(self, left: torch.Tensor, right: torch.Tensor):
        return self.modulate(left, right), self.modulate(right, left)


class CrossAttention(nn.Module):
    """Cells of one half attend to the cells of the other, added to what they were. left, right (B,N,D) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        heads = next(n for n in (8, 6, 4, 3, 2, 1) if width % n == 0)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)

    def attend(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        keys = self.norm(other)
        return x + self.attention(self.norm(x), keys, keys, need_weights=False)[0]

    def forward(self, left: torch.Tensor, right: torch.Tensor):
        return self.attend(left, right), self.attend(right, left)


class Concat(nn.Module):
    """Each cell joined with the mean cell of the other half, projected and added. left, right (B,N,D) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.project = nn.Linear(2 * width, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def combine(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        mean = other.mean(1, keepdim=True).expand_as(x)
        return x + self.project(self.norm(torch.cat([x, mean], -1)))

    def forward(self, left: torch.Tensor, right: torch.Tensor):
        return self.combine(left, right), self.combine(right, left)


class AttentionPool(nn.Module):
    """Cells (B,N,D) -> (B,D), their mean weighted by a learnt softmax over the cells (Ilse et al. 2018)."""

    def __init__(self, width: int):
        super().__init__()
        inner = max(8, width // 4)
        self.score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.Tanh(), nn.Linear(inner, 1))

    def weights(self, cells: torch.Tensor) -> torch.Tensor:
        """(B,N), each row sums to 1."""
        return torch.softmax(self.score(cells).squeeze(-1), -1)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bn,bnd->bd", self.weights(cells), cells)


FUSIONS = {"film": Film, "cross-attention": CrossAttention, "concat": Concat}
