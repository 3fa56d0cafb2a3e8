"""Uniform affine quantization as pure functions.

    code = clamp(round(x / scale) + zero_point, 0, 2^bits - 1)        xhat = (code - zero_point) *
    scale

Codes are unsigned and zero is always exactly representable. ``scale`` and ``zero_point`` are float
tensors that broadcast against ``x``; zero points hold integers. Every method uses these functions;
none has its own rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MIN_SCALE = 1e-8


def quant_max(bits: int) -> int:
    """The largest code of ``bits`` bits."""
    return 2**bits - 1


def choose_qparams(x_min: Tensor, x_max: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each of the shape of ``x_min``, for the range [x_min, x_max] widened to
    hold zero.
    """
    low = x_min.clamp(max=0.0)
    high = x_max.clamp(min=0.0)
    scale = ((high - low) / quant_max(bits)).clamp(min=MIN_SCALE)
    zero_point = (-low / scale).round().clamp(0, quant_max(bits))
    return scale, zero_point


def code_dtype(bits: int) -> torch.dtype:
    """The integer type that stores codes of ``bits`` bits."""
    return torch.uint8 if bits <= 8 else torch.int32


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Integer codes of ``x``, rounded to nearest (ties to even), of the shape of ``x``."""
    return ((x / scale).round() + zero_point).clamp(0, quant_max(bits)).to(code_dtype(bits))


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The floats that ``codes`` stand for, of the dtype of ``scale``."""
    return (codes.to(scale.dtype) - zero_point) * scale


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize with the straight-through gradient in x and the LSQ gradient in the
    scale; where ``mask`` is 0 the element stays x and gives no gradient to the scale.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, top: int, mask: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point, mask)
        ctx.top = top
        codes = (x / scale).round_().add_(zero_point).clamp_(0, top)
        xhat = codes.sub_(zero_point).mul_(scale)
        return xhat if mask is None else torch.lerp(x, xhat, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, scale, zero_point, mask = ctx.saved_tensors
        kept = grad if mask is None else grad * mask
        ratio = x / scale
        steps = ratio.round()
        clamped = (steps + zero_point).clamp_(0, ctx.top).sub_(zero_point)
        # Float masks: multiplying by a bool tensor takes 25 times as long on a CPU.
        inside = (steps - clamped).abs_().clamp_(max=1.0).neg_().add_(1.0)
        grad_x = inside.mul_(kept)
        grad_scale = None
        if ctx.needs_input_grad[1]:
            grad_scale = clamped.mul_(kept).addcmul_(grad_x, ratio, value=-1)
            grad_scale = grad_scale.sum_to_size(scale.shape)
        if mask is not None:
            grad_x.add_(grad).sub_(kept)
        return grad_x, grad_scale, None, None, None


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, mask: Tensor | None = None
) -> Tensor:
    """``dequantize(quantize(x))``, differentiable in ``x`` and ``scale``.

    With u = x / scale and z the zero point, d xhat / d x is 1 where the code is not clamped, else
    0, and d xhat / d scale is round(u) - u inside, -z below, 2^bits - 1 - z above (LSQ, Esser et
    al. 2020, eq. 3).

    Args:
        mask: ones and zeros of the shape of ``x``; where 0 the element passes unquantized, with
            gradient 1 in ``x`` and 0 in ``scale`` (QDrop, Wei et al. 2022, section 4.3).
    """
    return _FakeQuantize.apply(x, scale, zero_point, quant_max(bits), mask)
