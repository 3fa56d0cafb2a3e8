"""Choosing scale and zero point from data: min-max, and the search for the smallest |error|^2.4.

The search follows QDrop's and PD-Quant's ``MSEObserver`` (which minimises |error|^2.4 in spite of its name): 100
widths for a one-sided tensor, 100 widths times all zero points for a two-sided one; the first of equals wins. Above
4 bits the zero points of a two-sided tensor are searched from coarse to fine instead of one by one, and activations
are searched on a histogram of their non-zero values. Neither changes the result in practice (tested).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.primitives import choose_qparams, quant_max

RANGE_MODES = ("mse", "minmax", "minmax_scale")
NORM = 2.4
NUM_WIDTHS = 100
NUM_BINS = 32768
FULL_SEARCH_BITS = 4


def weight_qparams(weight: Tensor, bits: int, per_channel: bool, mode: str) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a weight, shaped (O, 1, ...) per output channel or (1, 1, ...) per tensor."""
    rows = weight.detach().flatten(1) if per_channel else weight.detach().reshape(1, -1)  # (O or 1, elements)
    if mode == "mse":
        low, high = _search_range(rows, None, bits)
    else:
        low, high = _scaled_min_max(rows.amin(1), rows.amax(1), bits, mode)
    shape = (-1,) + (1,) * (weight.dim() - 1)
    scale, zero_point = choose_qparams(low, high, bits)
    return scale.reshape(shape), zero_point.reshape(shape)


def activation_qparams(batches: Sequence[Tensor], bits: int, mode: str) -> tuple[Tensor, Tensor]:
    """One scale and zero point (0-dimensional) for an activation seen as a sequence of batches."""
    low = torch.stack([batch.amin() for batch in batches]).amin()
    high = torch.stack([batch.amax() for batch in batches]).amax()
    if mode != "mse":
        return choose_qparams(*_scaled_min_max(low, high, bits, mode), bits)
    centres, counts = _histogram(batches, low, high)
    best_low, best_high = _search_range(centres.unsqueeze(0), counts, bits)
    return choose_qparams(best_low[0], best_high[0], bits)


def _scaled_min_max(low: Tensor, high: Tensor, bits: int, mode: str) -> tuple[Tensor, Tensor]:
    """The observed range; ``minmax_scale`` shrinks it by (bits + 2) / 8, BRECQ's rule for few bits."""
    factor = (bits + 2) / 8 if mode == "minmax_scale" else 1.0
    return low * factor, high * factor


def _histogram(batches: Sequence[Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and counts of the filled bins over [low, high]; exact zeros, which cost nothing, are left out."""
    width = ((high - low) / NUM_BINS).clamp(min=torch.finfo(low.dtype).tiny)
    counts = torch.zeros(NUM_BINS, dtype=torch.int64, device=low.device)
    for batch in batches:
        values = batch[batch != 0]
        index = ((values - low) / width).long().clamp_(0, NUM_BINS - 1)
        counts += torch.bincount(index, minlength=NUM_BINS)
    filled = counts.nonzero().flatten()
    if filled.numel() == 0:
        return torch.zeros(1, device=low.device), torch.ones(1, device=low.device)
    return low + (filled + 0.5) * width, counts[filled].to(low.dtype)


@dataclass
class _Best:
    """The cheapest candidate so far of every row."""

    cost: Tensor  # (rows,)
    width: Tensor  # (rows,) in units of 1 / NUM_WIDTHS
    zero: Tensor  # (rows,) zero point

    @classmethod
    def none(cls, rows: Tensor) -> _Best:
        blank = rows.new_zeros(rows.shape[0])
        return cls(torch.full_like(blank, torch.inf), blank.clone(), blank.clone())

    def offer(self, cost: Tensor, width: Tensor, zero: Tensor) -> None:
        better = cost < self.cost
        self.cost = torch.where(better, cost, self.cost)
        self.width = torch.where(better, width, self.width)
        self.zero = torch.where(better, zero, self.zero)


def _search_range(rows: Tensor, counts: Tensor | None, bits: int) -> tuple[Tensor, Tensor]:
    """Low and high end, each (rows,), with the smallest sum over the row of counts * |error|^2.4."""
    if rows.amin() >= 0 or rows.amax() <= 0:
        return _search_one_sided(rows, counts, bits)
    return _search_two_sided(rows, counts, bits)


def _search_one_sided(rows: Tensor, counts: Tensor | None, bits: int) -> tuple[Tensor, Tensor]:
    sign = 1.0 if rows.amin() >= 0 else -1.0
    reach = rows.abs().amax(1)
    zero = torch.full_like(reach, 0.0 if sign > 0 else quant_max(bits))
    best = _Best.none(rows)
    for i in range(1, NUM_WIDTHS + 1):
        width = torch.full_like(reach, i)
        best.offer(_cost(rows, counts, reach * i / NUM_WIDTHS, zero, bits), width, zero)
    end = sign * reach * best.width / NUM_WIDTHS
    return end.clamp(max=0.0), end.clamp(min=0.0)


def _search_two_sided(rows: Tensor, counts: Tensor | None, bits: int) -> tuple[Tensor, Tensor]:
    reach = rows.amax(1).clamp(min=0.0) - rows.amin(1).clamp(max=0.0)
    best = _Best.none(rows)
    for width, zero in _first_candidates(reach, bits):
        best.offer(_cost(rows, counts, reach * width / NUM_WIDTHS, zero, bits), width, zero)
    stride = _zero_stride(bits)
    while stride > 1:
        for width, zero in _refinements(best.width, best.zero, stride, bits):
            best.offer(_cost(rows, counts, reach * width / NUM_WIDTHS, zero, bits), width, zero)
        stride //= 4
    step = reach * best.width / NUM_WIDTHS / quant_max(bits)
    return -best.zero * step, (quant_max(bits) - best.zero) * step


def _zero_stride(bits: int) -> int:
    """Distance of the zero points tried first: at most 2^FULL_SEARCH_BITS of them, a power of 4."""
    stride = 1
    while 2**bits > stride * 2**FULL_SEARCH_BITS:
        stride *= 4
    return stride


def _first_candidates(reach: Tensor, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
    for i in range(1, NUM_WIDTHS + 1):
        for zero in range(0, quant_max(bits) + 1, _zero_stride(bits)):
            yield torch.full_like(reach, i), torch.full_like(reach, zero)


def _refinements(width: Tensor, zero: Tensor, stride: int, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Neighbours of each row's best: widths within 8 hundredths, zero points at a quarter of the stride."""
    finer = stride // 4
    for by_width in range(-8, 9):
        for by_zero in range(-stride, stride + 1, max(finer, 1)):
            yield (
                (width + by_width).clamp(1, NUM_WIDTHS),
                (zero + by_zero).clamp(0, quant_max(bits)),
            )


def _cost(rows: Tensor, counts: Tensor | None, width: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Sum over each row of counts * |fake_quantize(x) - x|^2.4, shape (rows,)."""
    scale, zero_point = choose_qparams(
        (-zero * (width / quant_max(bits))).unsqueeze(1),
        ((quant_max(bits) - zero) * (width / quant_max(bits))).unsqueeze(1),
        bits,
    )
    error = (rows / scale).round_().add_(zero_point).clamp_(0, quant_max(bits)).sub_(zero_point)
    error.mul_(scale).sub_(rows).abs_().pow_(NORM)
    return error.sum(1) if counts is None else error @ counts
