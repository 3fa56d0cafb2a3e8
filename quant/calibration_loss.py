"""The loss of a quantized chain on fixed images, evaluated again and again while little changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SUB_BATCH = 64  # images at a time: what fits the caches of a CPU

Criterion = Callable[[Tensor, Tensor], Tensor]


class CalibrationLoss:
    """Mean loss of a chain of units; a call runs the units from the first changed one on.

    Args:
        units: the chain; it may change between calls.
        images: (N, channels, height, width).
        targets: (N, ...) what the logits are compared with.
        criterion: (logits, targets) of some images -> the sum of their losses.
        device: where the units compute; their kept inputs lie where ``images`` lie.
    """

    def __init__(
        self,
        units: Sequence[nn.Module],
        images: Tensor,
        targets: Tensor,
        criterion: Criterion,
        device: torch.device,
    ):
        self.units = units
        self.targets = targets.split(SUB_BATCH)
        self.criterion = criterion
        self.device = device
        self.count = len(images)
        self.inputs: list[list[Tensor]] = [list(images.split(SUB_BATCH))]
        self.inputs += [list(self.inputs[0]) for _ in units[1:]]

    @torch.no_grad()
    def __call__(self, first: int) -> float:
        """The mean loss.

        Args:
            first: the first unit that may have changed since the last call; 0 in the first call.
        """
        total = 0.0
        for index, target in enumerate(self.targets):
            value = self.inputs[first][index].to(self.device)
            for number, unit in enumerate(self.units[first:], first):
                value = unit(value)
                if number + 1 < len(self.units):
                    self.inputs[number + 1][index] = value.to(target.device)
            total += float(self.criterion(value, target.to(self.device)))
        return total / self.count


def cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Against the (N, C) probabilities of the float network: no label is used."""
    return F.cross_entropy(logits, probabilities, reduction="sum")


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Against the (N, C) logits of the float network, averaged over classes."""
    return F.mse_loss(logits, targets, reduction="sum") / logits.shape[1]


def label_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Against the (N,) labels."""
    return F.cross_entropy(logits, labels, reduction="sum")
