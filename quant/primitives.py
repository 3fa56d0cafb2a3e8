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

    Memory traffic is what it costs, so the backward works on the distance to the result instead of
    on codes: an element is clamped where it lies further than half a step from its result.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, top: int, mask: Tensor | None
    ) -> Tensor:
        xhat = (x / scale).round_().add_(zero_point).clamp_(0, top)
        xhat.sub_(zero_point).mul_(scale)
        ctx.save_for_backward(x, scale, xhat, mask)
        ctx.half_step = 0.5 + (top + 1) * torch.finfo(torch.float32).eps * 2
        return xhat if mask is None else torch.lerp(x, xhat, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, scale, xhat, mask = ctx.saved_tensors
        kept = grad if mask is None else grad * mask
        error = (x - xhat).div_(scale)
        # hardtanh's backward is one pass of "the gradient where |error| < half_step, else 0".
        inside = torch.ops.aten.hardtanh_backward(kept, error, -ctx.half_step, ctx.half_step)
        clamped = kept - inside
        grad_scale = None
        if ctx.needs_input_grad[1]:
            grad_scale = _inner(clamped, xhat, scale) / scale - _inner(inside, error, scale)
        return grad - clamped, grad_scale, None, None, None


def _inner(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Sum of a * b over what shares an element of ``scale``."""
    if scale.numel() == 1 and a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.flatten(), b.flatten()).view_as(scale)
    return (a * b).sum_to_size(scale.shape)


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
