"""Uniform affine quantization as pure functions.

    code = clamp(round(x / scale) + zero_point, 0, 2^bits - 1)
    xhat = (code - zero_point) * scale

Codes are unsigned, and with at least 1 bit zero is exactly representable. ``scale`` and
``zero_point`` are float tensors that broadcast against ``x``; zero points hold integers. ``bits``
is one number or, if channels differ, an int64 tensor of the shape of ``scale``; with 0 bits the
only code is 0. Every method uses these functions; none has its own rounding.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

Bits = TypeVar("Bits", int, Tensor)

MIN_SCALE = 1e-8


def quant_max(bits: Bits) -> Bits:
    """The largest code of ``bits`` bits."""
    return 2**bits - 1


def clamp_codes_(codes: Tensor, bits: Bits) -> Tensor:
    """Clamp float codes into 0 .. 2^bits - 1, in place."""
    if isinstance(bits, int):
        return codes.clamp_(0, quant_max(bits))
    return codes.clamp_(min=0).minimum(quant_max(bits))


def choose_qparams(x_min: Tensor, x_max: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Scale and zero point for the range [x_min, x_max], extended to include zero.

    Args:
        x_min, x_max: tensors of one shape, which is that of the results.
        bits: at least 1.
    """
    low = x_min.clamp(max=0.0)
    high = x_max.clamp(min=0.0)
    scale = ((high - low) / quant_max(bits)).clamp(min=MIN_SCALE)
    zero_point = clamp_codes_((-low / scale).round(), bits)
    return scale, zero_point


def constant_qparams(value: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point that map the code 0 to ``value``, for 0 bits."""
    return value.abs().clamp(min=MIN_SCALE), -value.sign()


def code_dtype(bits: Bits) -> torch.dtype:
    """The integer type that stores codes of ``bits`` bits."""
    most = bits if isinstance(bits, int) else int(bits.max())
    return torch.uint8 if most <= 8 else torch.int32


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: Bits) -> Tensor:
    """Integer codes of ``x``, rounded to nearest (ties to even), in the shape of ``x``."""
    return clamp_codes_((x / scale).round() + zero_point, bits).to(code_dtype(bits))


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The float values of ``codes``, in the dtype of ``scale``."""
    return (codes.to(scale.dtype) - zero_point) * scale


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize, with the gradients of ``fake_quantize``.

    The cost is memory traffic. Therefore the backward pass uses the distance of ``x`` to the result
    instead of codes: an element was clamped if it is more than half a step from its result.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: Bits, mask: Tensor | None
    ) -> Tensor:
        xhat = clamp_codes_((x / scale).round_().add_(zero_point), bits)
        xhat.sub_(zero_point).mul_(scale)
        ctx.save_for_backward(x, scale, xhat, mask)
        most = bits if isinstance(bits, int) else int(bits.max())
        ctx.half_step = 0.5 + 2**most * torch.finfo(torch.float32).eps * 2
        return xhat if mask is None else torch.lerp(x, xhat, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, scale, xhat, mask = ctx.saved_tensors
        kept = grad if mask is None else grad * mask
        error = (x - xhat).div_(scale)
        # One pass over memory for "kept where |error| < half_step, else 0".
        inside = torch.ops.aten.hardtanh_backward(kept, error, -ctx.half_step, ctx.half_step)
        clamped = kept - inside
        grad_scale = None
        if ctx.needs_input_grad[1]:
            grad_scale = _inner(clamped, xhat, scale) / scale - _inner(inside, error, scale)
        return grad - clamped, grad_scale, None, None, None


def _inner(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Sum of a * b over the elements that share an element of ``scale``."""
    if scale.numel() == 1 and a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.flatten(), b.flatten()).view_as(scale)
    return (a * b).sum_to_size(scale.shape)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: Bits, mask: Tensor | None = None
) -> Tensor:
    """``dequantize(quantize(x))``, differentiable in ``x`` and ``scale``.

    With u = x / scale and z the zero point, d xhat / d x is 1 where the code is not clamped and 0
    elsewhere (straight-through), and d xhat / d scale is round(u) - u where it is not clamped, -z
    where it is clamped below and 2^bits - 1 - z above (LSQ, Esser et al. 2020, eq. 3).

    Args:
        mask: ones and zeros in the shape of ``x``; an element with 0 passes unquantized, with
            gradient 1 in ``x`` and 0 in ``scale`` (QDrop, Wei et al. 2022, section 4.3).
    """
    return _FakeQuantize.apply(x, scale, zero_point, bits, mask)
