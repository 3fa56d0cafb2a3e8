"""Quantized layers; their quantized state is in buffers: codes, scale, zero_point, bits, ...

Letters: O output channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError
from quant.arithmetic.log2 import fake_quantize_log2, log2_qparams
from quant.arithmetic.moments import moment_correction
from quant.arithmetic.primitives import code_dtype, dequantize, fake_quantize, quantize
from quant.arithmetic.ranges import activation_qparams, histogram, weight_qparams
from quant.arithmetic.rounding import Rounding


def bits_text(bits: Tensor) -> str:
    """Bits of a tensor in words; their mean and ends if its channels differ."""
    if bits.dim() == 0:
        return f"{int(bits)} bits"
    low, high = int(bits.min()), int(bits.max())
    return f"{float(bits.double().mean()):.2f} bits ({low} to {high})"


class QuantLayer(nn.Module):
    """A convolution or linear layer whose weight is stored as integer codes.

    ``quantized`` switches between the quantized and the full-precision weight. The latter and
    ``float_bias`` exist only while a network is being quantized; they are not in the
    ``state_dict``, and a loaded layer has none. While ``rounding`` is set, it computes the
    quantized weight. ``is_end`` is true for the stem and the head; ``symmetric`` where ranges are
    chosen around the middle code. ``gain`` exists only while a network is being quantized too, and
    in the states of its units.
    """

    codes: Tensor  # shape of the weight, uint8 up to 8 bits, else int32
    scale: Tensor  # (O, 1, ...) or (1, 1, ...), float32
    zero_point: Tensor  # shape of scale, float32 with integer values
    bits: Tensor  # scalar, or (O, 1, ...) if channels differ; int64
    offset: Tensor | None  # (O, 1, ...) float32, added to the dequantized weight
    gap: Tensor | None  # shape of scale; shift of the non-zero levels away from zero
    gain: Tensor | None  # shape of scale; its factor since the codes were chosen
    weight: Tensor | None
    float_bias: Tensor | None  # (O,), of the float network
    bias: Tensor | None

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, bits: int, per_channel: bool, is_end: bool = False
    ):
        super().__init__()
        weight = layer.weight.detach().clone()
        channels = weight.shape[0] if per_channel else 1
        shape = (channels,) + (1,) * (weight.dim() - 1)
        self.per_channel = per_channel
        self.is_end = is_end
        self.symmetric = False
        self.quantized = False
        self.rounding: Rounding | None = None
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("float_bias", _copied(layer.bias), persistent=False)
        self.register_buffer("bias", _copied(layer.bias))
        self.register_buffer("codes", torch.zeros_like(weight, dtype=code_dtype(bits)))
        self.register_buffer("scale", weight.new_ones(shape))
        self.register_buffer("zero_point", weight.new_zeros(shape))
        self.register_buffer("bits", torch.tensor(bits))
        self.register_buffer("offset", None)
        self.register_buffer("gap", None)
        self.register_buffer("gain", None)

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.codes.shape))
        scales = "per channel" if self.per_channel else "per tensor"
        return f"weight {shape}, {bits_text(self.bits)}, {scales}"

    def full_precision_weight(self) -> Tensor:
        """The weight before quantization.

        Raises:
            InputError: the layer was loaded from a file, which holds only codes.
        """
        if self.weight is None:
            raise InputError(
                "a loaded quantized layer must stay quantized: its file holds no float weights"
            )
        return self.weight

    def quantize_to_nearest(self, mode: str) -> None:
        """Choose the range of the weight by ``mode`` (of ``RANGE_MODES``) and round to nearest."""
        scale, zero_point = weight_qparams(
            self.full_precision_weight(), int(self.bits), self.per_channel, mode, self.symmetric
        )
        self.round_to(scale, zero_point)

    def round_to(self, scale: Tensor, zero_point: Tensor, bits: Tensor | None = None) -> None:
        """Round the weight to nearest with the given scale and zero point; remove offset and gap.

        Args:
            scale, zero_point: (O, 1, ...) or (1, 1, ...).
            bits: (O, 1, ...) int64 if channels differ; None keeps the current bits.
        """
        bits = self.bits if bits is None else bits
        codes = quantize(self.full_precision_weight(), scale, zero_point, bits)
        self.set_codes(codes, scale, zero_point, bits)

    def set_codes(
        self,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: Tensor,
        gap: Tensor | None = None,
    ) -> None:
        """Quantize the weight with the given codes, which have its shape; remove the offset."""
        self.codes, self.scale, self.zero_point, self.bits = codes, scale, zero_point, bits
        self.offset, self.gap, self.gain = None, gap, None
        self.quantized = True

    def match_moments(self, *, mean: bool, variance: bool = False) -> None:
        """Match the moments of each output channel to the float weight: mean, standard deviation.

        The codes do not change. The shift becomes the offset: an integer implementation adds it
        times the sum of the inputs. The stretch multiplies the scale, which must then be one per
        output channel.
        """
        rounded = dequantize(self.codes, self.scale, self.zero_point)
        stretch, self.offset = moment_correction(
            self.full_precision_weight(), rounded, mean=mean, variance=variance
        )
        if variance:
            self.scale = self.scale * stretch

    def stretch(self, gain: Tensor) -> None:
        """Multiply the weight of each output channel by its gain, (O,); the codes do not change."""
        gain = gain.reshape(-1, *(1,) * (self.scale.dim() - 1))
        self.scale = self.scale * gain
        self.gain = gain if self.gain is None else self.gain * gain
        self.offset = None if self.offset is None else self.offset * gain
        self.gap = None if self.gap is None else self.gap * gain

    def shift_bias(self, shift: Tensor) -> None:
        """Add ``shift`` (O,) to the bias."""
        self.bias = shift if self.bias is None else self.bias + shift

    def effective_weight(self) -> Tensor:
        """The weight that the layer uses in its current state."""
        if not self.quantized:
            return self.full_precision_weight()
        if self.rounding is not None:
            return self.rounding.weight()
        weight = dequantize(self.codes, self.scale, self.zero_point)
        if self.gap is not None:
            weight = weight + self.gap * weight.sign()
        return weight if self.offset is None else weight + self.offset

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        rows = len(self.codes)
        per_channel = (rows,) + (1,) * (self.codes.dim() - 1)
        shapes = {
            "bits": per_channel,
            "offset": per_channel,
            "bias": (rows,),
            "gap": self.scale.shape,
            "gain": self.scale.shape,
            "codes": self.codes.shape,
        }
        for name, shape in shapes.items():
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape == shape:
                setattr(self, name, torch.empty_like(stored, device=self.codes.device))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _copied(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().clone()


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution with one input and one output channel in each group."""
    if not isinstance(layer, (nn.Conv2d, QuantConv2d)):
        return False
    outputs, inputs = (layer.weight if isinstance(layer, nn.Conv2d) else layer.codes).shape[:2]
    return inputs == 1 and 1 < layer.groups == outputs


class QuantConv2d(QuantLayer):
    """``nn.Conv2d`` with a quantized weight."""

    def __init__(self, layer: nn.Conv2d, bits: int, per_channel: bool, is_end: bool = False):
        super().__init__(layer, bits, per_channel, is_end)
        self.stride = layer.stride
        self.padding = layer.padding
        self.dilation = layer.dilation
        self.groups = layer.groups
        self.pad_sides = layer._reversed_padding_repeated_twice

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective_weight()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class QuantLinear(QuantLayer):
    """``nn.Linear`` with a quantized weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight(), self.bias)


class ActivationQuantizer(nn.Module):
    """Fake-quantizes one tensor, per tensor or per channel; identity until ``quantized`` is set.

    ``num_bits`` is the number of bits, the largest one if channels differ. ``is_end`` is true for
    the tensor that feeds the head or, if outputs are quantized, for that of the stem. While
    ``mask`` is set (only during reconstruction), elements with 0 pass unquantized (QDrop, Wei et
    al. 2022, section 4.3). The arithmetic is float32, also under autocast.
    """

    scale: Tensor  # scalar or (1, C, 1, ...), float32
    zero_point: Tensor  # shape of scale, float32 with integer values
    bits: Tensor  # scalar, or the shape of scale if channels differ; int64

    def __init__(self, bits: int, is_end: bool = False):
        super().__init__()
        self.num_bits = bits
        self.is_end = is_end
        self.quantized = False
        self.mask: Tensor | None = None
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0.0))
        self.register_buffer("bits", torch.tensor(bits))

    def extra_repr(self) -> str:
        return bits_text(self.bits)

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantized:
            return x
        if self.bits.dim():
            return fake_quantize(x.float(), self.scale, self.zero_point, self.bits, self.mask)
        return fake_quantize(x.float(), self.scale, self.zero_point, self.num_bits, self.mask)

    def best_qparams(self, batches: Sequence[Tensor], mode: str) -> tuple[Tensor, Tensor]:
        """Scale and zero point, 0-dimensional, of the input that is given in batches.

        Args:
            mode: one of ``quant.arithmetic.ranges.RANGE_MODES``.
        """
        return activation_qparams(batches, self.num_bits, mode)

    def set_qparams(self, scale: Tensor, zero_point: Tensor, bits: Tensor | None = None) -> None:
        """Quantize with the given scale and zero point; ``bits`` None keeps the current bits."""
        self.scale, self.zero_point = scale, zero_point
        if bits is not None:
            self.bits = bits
            self.num_bits = int(bits.max())
        self.quantized = True

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        for name in ("scale", "zero_point", "bits"):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.dim() > 1 and stored.numel() == stored.shape[1]:
                setattr(self, name, torch.empty_like(stored, device=self.scale.device))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.num_bits = int(self.bits.max())


class Log2Quantizer(ActivationQuantizer):
    """Fake-quantizes a softmax output, per tensor, to powers of two (``quant.arithmetic.log2``)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantized:
            return x
        return fake_quantize_log2(x.float(), self.scale, self.num_bits, self.mask)

    def best_qparams(self, batches: Sequence[Tensor], mode: str) -> tuple[Tensor, Tensor]:
        """The scale of least error and the zero point 0; the rule for uniform grids is not used."""
        return log2_qparams(histogram(batches), self.num_bits)


def is_uniform(module: nn.Module | None) -> TypeGuard[ActivationQuantizer]:
    """Whether a module is an activation quantizer whose levels have equal distances."""
    return isinstance(module, ActivationQuantizer) and not isinstance(module, Log2Quantizer)
