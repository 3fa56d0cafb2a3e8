"""Forward passes over many images in batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FORWARD_BATCH = 64


@torch.no_grad()
def run_unit(unit: nn.Module, inputs: Tensor, device: torch.device) -> Tensor:
    """Run a unit on (N, ...) inputs in batches.

    The output is on the device of ``inputs``, in pinned memory if they are.
    """
    outputs = [unit(batch.to(device)).to(inputs.device) for batch in inputs.split(FORWARD_BATCH)]
    whole = torch.cat(outputs)
    return whole.pin_memory() if inputs.is_pinned() else whole
