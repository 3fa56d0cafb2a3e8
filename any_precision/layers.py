"""Convolutions, linear layers and batch norms that work at any of several bitwidths."""

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
    """How the quantized layers of a network quantize."""

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
    """What the quantized layers share: bits that only ``set_bitwidth`` changes.

    Attributes:
        quantization_enabled: False: a plain layer.
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
        """Set the bits of the weight and those of the input, which are the same unless given.

        Raises:
            ValueError: no option of the layer.
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
        """Draw the bits with a ``numpy.random.Generator``."""
        self.set_bitwidth(self.bitwidth_options[rng.integers(len(self.bitwidth_options))])

    def _quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight at the present bits."""
        if not self.quantization_enabled:
            return x, self.weight
        weight = self.weight_quantizer(self.weight, self.curr_bitwidth)
        return self.act_quantizer(x, self.curr_act_bitwidth), weight


class QuantConv2d(nn.Conv2d, AnyBitwidth):
    """``nn.Conv2d`` whose weight and input are quantized at bits that can be changed.

    Args:
        spec: how; the other arguments are those of ``nn.Conv2d``.
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
    """A batch norm per option, chosen by the bits of the convolution in front (Jin et al. 2020,
    arXiv:1912.09666; Yu et al. 2021, arXiv:1911.07346, section 3.2).

    Args:
        channels: of the input.
        source: the convolution.
    """

    def __init__(self, channels: int, source: AnyBitwidth):
        super().__init__()
        self.banks = nn.ModuleDict(
            {str(bits): nn.BatchNorm2d(channels) for bits in source.bitwidth_options}
        )
        self.source: Sequence[AnyBitwidth] = (source,)  # no child: its parameters are its own

    def forward(self, x: Tensor) -> Tensor:
        return self.banks[str(self.source[0].curr_bitwidth)](x)


def norm_for(convolution: AnyBitwidth, channels: int, switchable: bool) -> nn.Module:
    """The batch norm behind a quantized convolution."""
    return SwitchableBatchNorm2d(channels, convolution) if switchable else nn.BatchNorm2d(channels)
