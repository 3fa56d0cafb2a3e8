"""Gradient descent on the network's loss over one factor per tensor, which multiplies its scale.

The gradient is LSQ's (Esser et al., ICLR 2020, arXiv:1902.08153, eq. 3), summed over the elements
of a tensor. If activations have few levels, the loss on few images is not smooth, and a search that
compares losses picks points that are good by chance; the summed gradient is not affected by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.console import progress
from quant.arithmetic.optim import FusedAdam
from quant.arithmetic.primitives import fake_quantize
from quant.methods.lapq.loss import Criterion
from quant.methods.lapq.powell import LIMIT
from quant.network.layers import ActivationQuantizer, QuantLayer
from quant.reconstruction.step import cosine

BATCH = 32

Module = QuantLayer | ActivationQuantizer


@dataclass(frozen=True)
class NearestRounding:
    """Rounds the weight of a layer to nearest with a trainable scale.

    Attributes:
        scale: (O, 1, ...) or (1, 1, ...).
        keep_mean: whether each output channel keeps the mean of the float weight
            (``match_moments``).
    """

    layer: QuantLayer
    scale: Tensor
    keep_mean: bool

    def weight(self) -> Tensor:
        """The rounded weight, differentiable in the scale."""
        layer = self.layer
        weight = layer.full_precision_weight()
        rounded = fake_quantize(weight, self.scale, layer.zero_point, int(layer.bits))
        if not self.keep_mean:
            return rounded
        dims = tuple(range(1, weight.dim()))
        return rounded + (weight - rounded).mean(dims, keepdim=True)


@dataclass(frozen=True)
class DescentData:
    """The network, the calibration images and the targets of the loss.

    Attributes:
        units: the chain of units.
        images: (N, channels, height, width).
        targets: (N, ...), for ``criterion``.
        device: device of the units.
    """

    units: Sequence[nn.Module]
    images: Tensor
    targets: Tensor
    criterion: Criterion
    device: torch.device

    def loss(self, picks: Tensor) -> Tensor:
        """Mean loss of the images with the indices ``picks``, (B,) int64 on the CPU."""
        value = self.images[picks].to(self.device)
        for unit in self.units:
            value = unit(value)
        return self.criterion(value, self.targets[picks].to(self.device)) / len(picks)


@torch.enable_grad()
def descend(
    data: DescentData, modules: Sequence[Module], steps: int, lr: float, generator: torch.Generator
) -> list[float]:
    """Optimise one factor on the scale of each module by Adam; the modules stay unchanged.

    The learning rate falls from ``lr`` along half a cosine.

    Args:
        generator: draws the images of every step; on the CPU.

    Returns:
        The logarithms of the factors.
    """
    scales = [module.scale for module in modules]
    logarithms = torch.zeros(len(modules), device=data.device, requires_grad=True)
    optimizer = FusedAdam([logarithms], lr)
    picks = torch.randint(len(data.images), (steps, BATCH), generator=generator)
    try:
        for step, batch in enumerate(progress(picks, "gradient descent"), 1):
            _scale(modules, scales, logarithms)
            optimizer.set_lr(cosine(step, steps, lr))
            optimizer.zero_grad()
            data.loss(batch).backward()
            optimizer.step()
            with torch.no_grad():
                logarithms.clamp_(-LIMIT, LIMIT)
    finally:
        for module, scale in zip(modules, scales, strict=True):
            if isinstance(module, QuantLayer):
                module.rounding = None
            else:
                module.scale = scale
    return logarithms.tolist()


def _scale(modules: Sequence[Module], scales: Sequence[Tensor], logarithms: Tensor) -> None:
    factors = logarithms.exp().unbind()
    for module, scale, factor in zip(modules, scales, factors, strict=True):
        if isinstance(module, QuantLayer):
            module.rounding = NearestRounding(module, scale * factor, module.offset is not None)
        else:
            module.scale = scale * factor
