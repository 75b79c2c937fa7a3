"""A batch of one row whose features are one pixel has no statistics: batch norm takes those of the batches before."""

import contextlib

import torch
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from common.errors import InputError


@contextlib.contextmanager
def lone_row(model: torch.nn.Module, rows: int, *, seldom: bool):
    """For the forward pass of a batch of `rows` rows: of a single one, where a channel has one value.

    Torch refuses those in training. seldom: whether other batches have more rows; else there would be no statistics of
    any batch, which is an InputError. Batches that torch takes are left alone.
    """
    changed, hooks = [], []

    def look(norm, inputs):
        if norm.training and inputs[0].numel() == inputs[0].shape[1]:
            if not seldom:
                raise InputError("batch norm has one value a channel in every batch of one row; give a larger "
                                 "--batch-size or --crop")  # fmt: skip
            changed.append(norm.eval())

    if rows == 1:
        norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
        hooks = [part.register_forward_pre_hook(look) for part in norms if not isinstance(part, SyncBatchNorm)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm in changed:
            norm.train()
