"""Places that must compute in float32, whatever autocast says around them."""

import contextlib

import torch


def full_precision(device: torch.device):
    """A context without autocast. Older torch has none for some devices (mps in 2.4): nothing to switch off."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
