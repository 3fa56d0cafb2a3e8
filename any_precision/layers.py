"""Convolutions, linear layers and batch norms that work at several bitwidths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from any_precision.quantizers import DoReFaActivation, DoReFaWeight, LsqQuantizer, PactActivation
from common.errors import require_known
from quant.bitwidth.assignments import require_option, require_options

WEIGHT_QUANTIZERS = ("dorefa", "lsq")
ACTIVATION_QUANTIZERS = ("dorefa", "pact", "lsq", "lsqplus")


@dataclass(frozen=True)
class LayerSpec:
    """How the quantized layers of a network quantize.

    Attributes:
        options: allowed bitwidths, ascending.
        weight, activation: kinds of quantizers.
        switchable_clipping: one clipping value per bitwidth (PACT).
        weight_scale: scale of the quantized weights (DoReFa).
    """

    options: tuple[int, ...] = (2, 4, 8)
    weight: str = "dorefa"
    activation: str = "dorefa"
    switchable_clipping: bool = True
    weight_scale: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", require_options(self.options))
        require_known("weight_quantization", self.weight, WEIGHT_QUANTIZERS)
        require_known("activation_quantization", self.activation, ACTIVATION_QUANTIZERS)

    def weight_quantizer(self) -> nn.Module:
        if self.weight == "lsq":
            return LsqQuantizer(self.options, signed=True)
        return DoReFaWeight(self.weight_scale)

    def act_quantizer(self) -> nn.Module:
        if self.activation == "pact":
            return PactActivation(self.options, self.switchable_clipping)
        if self.activation == "dorefa":
            return DoReFaActivation()
        return LsqQuantizer(self.options, signed=False, offset=self.activation == "lsqplus")


class AnyBitwidth(nn.Module):
    """Base of the quantized layers, whose bits only ``set_bitwidth`` changes.

    Attributes:
        quantization_enabled: if False, the layer works as a float layer.
        macs: multiply-adds per sample; None until measured.
    """

    weight: Tensor

    def _quantize_with(self, spec: LayerSpec | None) -> None:
        spec = spec or LayerSpec()
        self.bitwidth_options = spec.options
        self.weight_quantizer, self.act_quantizer = spec.weight_quantizer(), spec.act_quantizer()
        self.quantization_enabled = True
        self.macs: int | None = None
        self.set_highest_bitwidth()

    @property
    def num_weights(self) -> int:
        return self.weight.numel()

    def set_bitwidth(self, bitwidth: int, act: int | None = None) -> None:
        """Set the bits of the weight and of the input (``act``; default: those of the weight).

        Raises:
            ValueError: they are not among the options of the layer.
        """
        for bits in (bitwidth, bitwidth if act is None else act):
            require_option(bits, self.bitwidth_options)
        self.curr_bitwidth = bitwidth
        self.curr_act_bitwidth = bitwidth if act is None else act

    def get_bitwidth(self) -> int:
        return self.curr_bitwidth

    def set_highest_bitwidth(self) -> None:
        self.set_bitwidth(self.bitwidth_options[-1])

    def set_lowest_bitwidth(self) -> None:
        self.set_bitwidth(self.bitwidth_options[0])

    def set_random_bitwidth(self, rng) -> None:
        """Set random bits, drawn with a ``numpy.random.Generator``."""
        self.set_bitwidth(self.bitwidth_options[rng.integers(len(self.bitwidth_options))])

    def _quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight, quantized at the present bits."""
        if not self.quantization_enabled:
            return x, self.weight
        weight = self.weight_quantizer(self.weight, self.curr_bitwidth)
        return self.act_quantizer(x, self.curr_act_bitwidth), weight


class QuantConv2d(nn.Conv2d, AnyBitwidth):
    """``nn.Conv2d`` whose weight and input are quantized at bits that can be changed.

    Args:
        spec: how to quantize; the other arguments are those of ``nn.Conv2d``.
    """

    def __init__(self, *arguments, spec: LayerSpec | None = None, **options):
        super().__init__(*arguments, **options)
        self._quantize_with(spec)

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self._quantized(x)
        return self._conv_forward(x, weight, self.bias)


class QuantLinear(nn.Linear, AnyBitwidth):
    """``nn.Linear`` whose weight and input are quantized at bits that can be changed."""

    def __init__(self, *arguments, spec: LayerSpec | None = None, **options):
        super().__init__(*arguments, **options)
        self._quantize_with(spec)

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self._quantized(x)
        return F.linear(x, weight, self.bias)


class SwitchableBatchNorm2d(nn.Module):
    """A batch norm per bitwidth, chosen by the bits of the convolution in front.

    Jin et al. 2020, arXiv:1912.09666; Yu et al. 2021, arXiv:1911.07346, section 3.2.

    Args:
        channels: number of channels of the input.
        source: the convolution whose output is normalised.
    """

    def __init__(self, channels: int, source: AnyBitwidth):
        super().__init__()
        self.banks = nn.ModuleDict(
            {str(bits): nn.BatchNorm2d(channels) for bits in source.bitwidth_options}
        )
        self.source: Sequence[AnyBitwidth] = (source,)  # in a tuple, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        return self.banks[str(self.source[0].curr_bitwidth)](x)


def norm_for(convolution: AnyBitwidth, channels: int, switchable: bool) -> nn.Module:
    """The batch norm that follows a quantized convolution."""
    return SwitchableBatchNorm2d(channels, convolution) if switchable else nn.BatchNorm2d(channels)
