"""Bias correction: correction of the mean and the standard deviation of quantized weights.

Banner et al. (ACIQ), NeurIPS 2019, arXiv:1810.05723, section 4, eq. 12 and 13.

Letters: O output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def moment_correction(
    weight: Tensor, rounded: Tensor, *, mean: bool, variance: bool
) -> tuple[Tensor, Tensor]:
    """Factor and offset per channel that match a quantized weight's moments to the float weight's.

    Args:
        weight, rounded: the float and the quantized weight, (O, ...) float32.
        mean: match the mean of each output channel.
        variance: match its standard deviation.

    Returns:
        (O, 1, ...) stretch and offset: the corrected weight is stretch * rounded + offset.
    """
    dims = tuple(range(1, weight.dim()))
    target = weight.mean(dims, keepdim=True)
    centre = rounded.mean(dims, keepdim=True)
    stretch = torch.ones_like(target)
    if variance:
        spread = _spread(rounded, centre, dims)
        stretch = torch.where(spread > 0, _spread(weight, target, dims) / spread, stretch)
    return stretch, (target if mean else centre) - stretch * centre


def _spread(weight: Tensor, centre: Tensor, dims: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(weight - centre, dim=dims, keepdim=True)
