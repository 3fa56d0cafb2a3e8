"""The loss of a quantized chain on fixed images, for many evaluations with few changes between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.methods.lapq.partial_unit import PartialUnit, Values

SUB_BATCH = 64  # images whose activations fit in CPU caches
LAYOUT = torch.channels_last  # of images; convolutions on a CPU then need no reordering

Criterion = Callable[[Tensor, Tensor], Tensor]


class CalibrationLoss:
    """Mean loss of a chain of units; a call runs the chain only from the first changed module on.

    Args:
        units: the chain; its modules may change between calls.
        images: (N, channels, height, width).
        targets: (N, ...), for ``criterion``.
        criterion: (logits, targets) of some images -> sum of their losses.
        device: device of the units; stored activations are on the device of ``images``.
    """

    def __init__(
        self,
        units: Sequence[nn.Module],
        images: Tensor,
        targets: Tensor,
        criterion: Criterion,
        device: torch.device,
    ):
        self.units = [PartialUnit(cast(fx.GraphModule, unit)) for unit in units]
        self.targets = targets.split(SUB_BATCH)
        self.criterion = criterion
        self.device = device
        self.count = len(images)
        if images.dim() == 4:
            images = images.contiguous(memory_format=LAYOUT)
        self.inputs: list[list[Tensor]] = [list(images.split(SUB_BATCH))]
        self.inputs += [list(self.inputs[0]) for _ in units[1:]]
        self.cut = (0, 0)  # unit and position whose values are stored; 0: none
        self.values: list[Values] = [{} for _ in self.targets]

    @torch.no_grad()
    def __call__(self, first: int, changed: Iterable[nn.Module] | None = None) -> float:
        """Compute the mean loss.

        Args:
            first: the first unit that may have changed since the last call; 0 in the first call.
            changed: the modules that may have changed; None: any from unit ``first`` on.
        """
        known = self.cut[1] if self.cut[0] == first else 0
        stop = 1 if changed is None else self.units[first].first_of(changed)
        start = known if known <= stop else 0
        total = 0.0
        for index, target in enumerate(self.targets):
            value = self._run_first(first, index, start, stop)
            for number in range(first + 1, len(self.units)):
                self.inputs[number][index] = value.to(target.device)
                value = self.units[number].unit(value)
            total += float(self.criterion(value, target.to(self.device)))
        self.cut = (first, stop)
        return total / self.count

    def _run_first(self, number: int, index: int, start: int, stop: int) -> Tensor:
        """Output of unit ``number`` for sub-batch ``index``, from the values stored at ``start``.

        The values at ``stop`` are then stored instead.
        """
        unit = self.units[number]
        if start == 0:
            values = unit.begin(self.inputs[number][index].to(self.device))
        else:
            values = _moved(self.values[index], self.device)
        values = unit.advance(values, max(start, 1), stop)
        home = self.targets[index].device
        self.values[index] = _moved(values, home)
        return unit.finish(values, stop)


def _moved(values: Values, device: torch.device) -> Values:
    """The values on a device; numbers, such as the number of images, stay as they are."""
    return {
        node: value.to(device) if isinstance(value, Tensor) else value
        for node, value in values.items()
    }


def cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy to the (N, C) probabilities of the float network, summed; uses no labels."""
    return F.cross_entropy(logits, probabilities, reduction="sum")


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Squared error to the (N, C) logits of the float network, averaged over classes, summed."""
    return F.mse_loss(logits, targets, reduction="sum") / logits.shape[1]


def label_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy to the (N,) labels, summed."""
    return F.cross_entropy(logits, labels, reduction="sum")


LOSSES: Mapping[str, Criterion] = {
    "ce": cross_entropy,
    "mse": squared_error,
    "ce_labels": label_cross_entropy,
}
