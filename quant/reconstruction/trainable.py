"""A unit while it is optimised: soft rounding, and step sizes that require gradients."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from quant.arithmetic.primitives import MIN_SCALE
from quant.arithmetic.rounding import SoftRounding
from quant.network.model import activation_quantizers, quant_layers


class TrainableUnit:
    """Makes a quantized unit trainable while the block runs, and rounds it hard at the end.

    Attributes:
        roundings: soft roundings of the weights; their ``logits`` are trained.
        quantizers: activation quantizers; their ``scale`` is trained.
    """

    def __init__(self, unit: nn.Module):
        self.unit = unit
        self.layers = list(quant_layers(unit).values())
        self.quantizers = list(activation_quantizers(unit).values())
        self.roundings: list[SoftRounding] = []

    def __enter__(self) -> TrainableUnit:
        for layer in self.layers:
            weight = layer.full_precision_weight()
            rounding = SoftRounding(weight, layer.scale, layer.zero_point, int(layer.bits))
            layer.rounding = rounding
            self.roundings.append(rounding)
        for quantizer in self.quantizers:
            quantizer.scale.requires_grad_(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for layer, rounding in zip(self.layers, self.roundings, strict=True):
            layer.codes = rounding.hard_codes()
            layer.rounding = None
        for quantizer in self.quantizers:
            quantizer.scale = quantizer.scale.detach()
            quantizer.mask = None

    def __bool__(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.layers or self.quantizers)

    def set_masks(self, masks: Sequence[Tensor]) -> None:
        """Set one mask per quantizer; elements with 0 then pass unquantized."""
        for quantizer, mask in zip(self.quantizers, masks, strict=True):
            quantizer.mask = mask

    def penalty(self, exponent: float | Tensor) -> list[Tensor]:
        """The rounding penalty of each weight at its last soft rounding, 0-dimensional."""
        return [rounding.penalty(exponent) for rounding in self.roundings]

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Clamp the step sizes of the activations to positive values."""
        for quantizer in self.quantizers:
            quantizer.scale.clamp_(min=MIN_SCALE)
