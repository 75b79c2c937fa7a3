"""Models whose weights no construction gives, so that a weight that is not taken over, or taken twice, is seen."""

import torch


def shaken(model: torch.nn.Module, seed: int = 5, by: float = 0.05) -> torch.nn.Module:
    """The model itself in eval mode, all parameters and batch statistics moved by noise of deviation `by` (gamma too).

    Running variances only grow: below 0 they would give NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator) * by
                value.add_(noise.abs() if key.endswith("running_var") else noise)
    return model.eval()
