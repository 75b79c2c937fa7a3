"""Sums over all processes, so that N processes train as one."""

import contextlib

import torch
import torch.distributed as dist

_alone = False


def world_size() -> int:
    """Number of processes in the training group; 1 where none was set up, and within `alone`."""
    if _alone:
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def alone():
    """Losses inside are of this process's rows only: for what processes do at their own pace."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        total = value.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return grad * dist.get_world_size()


def all_sum(value: torch.Tensor) -> torch.Tensor:
    """Sum of `value` (any shape, the same everywhere) over all processes; `value` itself where there is one.

    The gradient is multiplied by the number of processes, because DistributedDataParallel averages gradients where a
    sum is meant. A loss that is any function of such sums is then the same number in every process, and its averaged
    gradient equals that of one process holding the whole batch. Every process must call it equally often.
    """
    return _AllSum.apply(value) if world_size() > 1 else value


def global_mean(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean of `value` weighted by `weight` (same shape, >= 0) over the entries of all processes; 0 without any weight.

    Entries of weight 0 may hold anything, also NaN: they are taken out before the product and get no gradient.
    """
    value = torch.where(weight > 0, value, torch.zeros_like(value))
    total, count = all_sum(torch.stack([(value * weight).sum(), weight.sum()]))
    return total / count.detach().clamp_min(1e-12)
