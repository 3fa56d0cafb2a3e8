"""Batches for forward passes."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_VALUES = 1 << 20  # in a batch on the CPU, where larger tensors are slow: no cache holds them


def forward_batches(inputs: Tensor, device: torch.device, most: int) -> tuple[Tensor, ...]:
    """Split (N, ...) inputs into batches for a forward pass on ``device``.

    Args:
        most: number of images of a batch at most.
    """
    if device.type == "cpu":
        most = max(1, min(most, MOST_VALUES // max(1, inputs[0].numel())))
    return inputs.split(most)
