"""Quantization to powers of two, for values from 0 to 1 of which most are small.

    code = clamp(round(-log2(x / scale)), 0, 2^bits - 1)
    xhat = scale * 2^-code, and 0 for the last code

Softmax outputs are such values: a uniform grid of few levels rounds most of them to 0 (FQ-ViT, Lin
et al., IJCAI 2022, arXiv:2111.13824, section 3.3; RepQ-ViT, Li et al., ICCV 2023, arXiv:2212.08254,
section 3.3). The published codes set what is below the last power to 0, which makes 2^bits + 1
levels; here the last code is that zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from quant.arithmetic.primitives import MIN_SCALE, quant_max
from quant.arithmetic.range_search import NORM, Sample

NUM_SCALES = 50  # from half of the largest value up; half the scale has the same powers
LAST_POWER = 149  # 2^-149 is the smallest number of float32
LARGEST_RATIO = math.sqrt(2)  # x / scale above it is clamped


def log2_levels(scale: Tensor, bits: int) -> Tensor:
    """The values of the codes 0, 1, ... in falling order, (min(2^bits, 151),) float32."""
    powers = torch.arange(min(quant_max(bits), LAST_POWER + 1), device=scale.device)
    levels = torch.ldexp(scale.expand(powers.shape), -powers)
    return torch.cat([levels, levels.new_zeros(1)])


def log2_codes(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Integer codes of ``x``, which is at least 0, as int64 in its shape."""
    last = min(quant_max(bits), LAST_POWER + 1)
    return (x / scale).log2_().neg_().round_().clamp_(0, last).long()


class _FakeQuantizeLog2(torch.autograd.Function):
    """Quantize and dequantize, with the gradients of ``fake_quantize_log2``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bits: int, mask: Tensor | None) -> Tensor:
        xhat = log2_levels(scale, bits)[log2_codes(x, scale, bits)]
        ctx.save_for_backward(x, scale, xhat, mask)
        return xhat if mask is None else torch.lerp(x, xhat, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, scale, xhat, mask = ctx.saved_tensors
        kept = grad if mask is None else grad * mask
        clamped = kept * (x > scale * LARGEST_RATIO)
        grad_scale = None
        if ctx.needs_input_grad[1]:
            inside = (kept - clamped) * (xhat - x)
            grad_scale = ((clamped * xhat + inside).sum() / scale).reshape(scale.shape)
        return grad - clamped, grad_scale, None, None


def fake_quantize_log2(x: Tensor, scale: Tensor, bits: int, mask: Tensor | None = None) -> Tensor:
    """The values of the codes of ``x``, differentiable in ``x`` and ``scale``.

    As for the uniform grid, the exponent passes gradients as if it were not rounded: d xhat / d x
    is 1, and d xhat / d scale is (xhat - x) / scale; where the code is clamped to 0 they are 0
    and 1.

    Args:
        x: at least 0, any shape.
        scale: one element, the largest level.
        mask: as in ``fake_quantize``.
    """
    return _FakeQuantizeLog2.apply(x, scale, bits, mask)


def log2_qparams(sample: Sample, bits: int, norm: float = NORM) -> tuple[Tensor, Tensor]:
    """The scale, 0-dimensional, of the smallest sum of |error|^norm, and the zero point 0.

    Args:
        sample: one row of values, at least 0.
        norm: power of the error; infinity is the largest value as the scale.
    """
    (row,) = sample.rows
    counts = torch.ones_like(row) if sample.counts is None else sample.counts
    most = row.amax().clamp(min=MIN_SCALE)
    shares = torch.arange(2 * NUM_SCALES, NUM_SCALES, -1, device=row.device) / (2 * NUM_SCALES)
    scales = most * (shares if math.isfinite(norm) else shares[:1])
    errors = [
        (fake_quantize_log2(row, scale, bits) - row).abs_().pow_(norm) @ counts for scale in scales
    ]
    best = torch.stack(errors).argmin() if len(scales) > 1 else 0
    return scales[best], torch.zeros_like(most)
