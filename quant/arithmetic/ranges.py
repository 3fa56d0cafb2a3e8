"""Choice of scale and zero point from data: min-max, or a search (``range_search``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import RunError
from quant.arithmetic.primitives import MIN_SCALE, choose_qparams
from quant.arithmetic.range_search import Grid, Sample, search_qparams

RANGE_MODES = ("mse", "minmax", "minmax_scale")
NUM_BINS = 32768
# Values of a histogram: few, which a cache holds, and not more than float32 counts exactly.
VALUES_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 24}


def weight_qparams(
    weight: Tensor, bits: int, per_channel: bool, mode: str, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a weight.

    Args:
        weight: (O, ...) float, O output channels.
        mode: one of ``RANGE_MODES``.
        symmetric: whether the zero point is 2^(bits - 1), the middle code.

    Returns:
        Each (O, 1, ...) if ``per_channel``, else (1, 1, ...).
    """
    # The rows are the output channels, or the whole tensor.
    rows = weight.detach().flatten(1) if per_channel else weight.detach().reshape(1, -1)
    if symmetric:
        scale, zero_point = _symmetric_qparams(rows, bits, mode)
    elif mode == "mse":
        scale, zero_point = search_qparams(Sample(rows), Grid(bits))
    else:
        ends = _scaled_min_max(rows.amin(1), rows.amax(1), bits, mode)
        scale, zero_point = choose_qparams(*ends, bits)
    shape = (-1,) + (1,) * (weight.dim() - 1)
    return scale.reshape(shape), zero_point.reshape(shape)


def _symmetric_qparams(rows: Tensor, bits: int, mode: str) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each (rows,), of ranges around the middle code."""
    middle = 2 ** (bits - 1)
    if mode == "mse" and bits > 1:
        if rows.amin() < 0:
            return search_qparams(Sample(rows), Grid(bits, symmetric=True))
        scale, _ = search_qparams(Sample(rows), Grid(bits - 1))  # the codes from the middle on
        return scale, torch.full_like(scale, middle)
    low, high = _scaled_min_max(rows.amin(1), rows.amax(1), bits, mode)
    scale = torch.maximum(-low / middle, high / max(1, middle - 1)).clamp(min=MIN_SCALE)
    return scale, torch.full_like(scale, middle)


def activation_qparams(batches: Sequence[Tensor], bits: int, mode: str) -> tuple[Tensor, Tensor]:
    """Scale and zero point, 0-dimensional, of an activation given as a sequence of batches.

    Raises:
        RunError: a value is not finite.
    """
    if mode != "mse":
        return choose_qparams(*_scaled_min_max(*finite_ends(batches), bits, mode), bits)
    scale, zero_point = search_qparams(histogram(batches), Grid(bits))
    return scale[0], zero_point[0]


def finite_ends(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value, 0-dimensional.

    Raises:
        RunError: one of them is not finite.
    """
    lows, highs = zip(*(batch.aminmax() for batch in batches), strict=True)
    low, high = torch.stack(lows).amin(), torch.stack(highs).amax()
    if not (low.isfinite() and high.isfinite()):
        raise RunError(
            f"activations must be finite, got a range from {float(low)} to {float(high)}"
        )
    return low, high


def _scaled_min_max(low: Tensor, high: Tensor, bits: int, mode: str) -> tuple[Tensor, Tensor]:
    """The observed range; ``minmax_scale`` multiplies it by (bits + 2) / 8, BRECQ's rule."""
    factor = (bits + 2) / 8 if mode == "minmax_scale" else 1.0
    return low * factor, high * factor


def histogram(batches: Sequence[Tensor]) -> Sample:
    """Histogram of an activation as one row: centres and counts of the non-empty bins.

    Exact zeros are left out, because their error is 0 in every range.

    Raises:
        RunError: a value is not finite.
    """
    low, high = finite_ends(batches)
    per_width = NUM_BINS / (high - low)

    def bins(values: Tensor) -> Tensor:
        return ((values - low) * per_width).int().clamp_(0, NUM_BINS - 1)

    counts = torch.zeros(NUM_BINS, dtype=torch.int64, device=low.device)
    zeros = torch.zeros_like(counts[0])
    for batch in batches:
        for part in batch.flatten().split(VALUES_AT_ONCE[low.device.type]):
            counts += torch.bincount(bins(part), minlength=NUM_BINS)
            zeros += part.numel() - part.sign().abs_().sum().long()  # faster than a comparison
    counts[bins(low.new_zeros(1))] -= zeros
    filled = counts.nonzero().flatten()
    if filled.numel() == 0:
        return Sample(low.new_zeros(1, 1), low.new_ones(1))
    centres = low + (filled + 0.5) * ((high - low) / NUM_BINS)
    return Sample(centres.unsqueeze(0), counts[filled].to(low.dtype))
