"""Choosing scale and zero point from data: min-max, and the search for the smallest |error|^2.4.

The search follows QDrop's and PD-Quant's ``MSEObserver`` (which minimises |error|^2.4 in spite of
its name): 100 widths for a one-sided tensor, 100 widths times all zero points for a two-sided one;
the first of equals wins. Above 4 bits the zero points of a two-sided tensor are searched from
coarse to fine instead of one by one, and activations are searched on a histogram of their non-zero
values. Neither changes the result in practice (tested).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common import RunError
from quant.primitives import choose_qparams, quant_max

RANGE_MODES = ("mse", "minmax", "minmax_scale")
NORM = 2.4
NUM_WIDTHS = 100
NUM_BINS = 32768
FULL_SEARCH_BITS = 4
REFINED_WIDTHS = 8
TAIL_ELEMENTS = 8
MAX_EXACT_COUNT = 1 << 24  # elements up to which a float32 histogram counts exactly


def weight_qparams(
    weight: Tensor, bits: int, per_channel: bool, mode: str
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a weight, shaped (O, 1, ...) per output channel or (1, 1, ...) per
    tensor.
    """
    rows = (
        weight.detach().flatten(1) if per_channel else weight.detach().reshape(1, -1)
    )  # (O or 1, elements)
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
    if not (low.isfinite() and high.isfinite()):
        raise RunError(
            f"activations must be finite, got a range from {float(low)} to {float(high)}"
        )
    if mode != "mse":
        return choose_qparams(*_scaled_min_max(low, high, bits, mode), bits)
    centres, counts = _histogram(batches, low, high)
    best_low, best_high = _search_range(centres.unsqueeze(0), counts, bits)
    return choose_qparams(best_low[0], best_high[0], bits)


def _scaled_min_max(low: Tensor, high: Tensor, bits: int, mode: str) -> tuple[Tensor, Tensor]:
    """The observed range; ``minmax_scale`` shrinks it by (bits + 2) / 8, BRECQ's rule for few
    bits.
    """
    factor = (bits + 2) / 8 if mode == "minmax_scale" else 1.0
    return low * factor, high * factor


def _histogram(batches: Sequence[Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and counts of the filled bins over [low, high], without the exact zeros, which cost
    nothing.
    """
    ends = (float(low), float(high))
    counts = torch.zeros(NUM_BINS, dtype=torch.float64, device=low.device)
    zeros = 0
    for batch in batches:
        zeros += batch.numel() - int(batch.count_nonzero())
        for part in batch.flatten().split(MAX_EXACT_COUNT):
            counts += torch.histc(part, NUM_BINS, *ends)
    counts[torch.histc(low.new_zeros(1), NUM_BINS, *ends) > 0] -= zeros
    filled = counts.nonzero().flatten()
    if filled.numel() == 0:
        return low.new_zeros(1), low.new_ones(1)
    return low + (filled + 0.5) * ((high - low) / NUM_BINS), counts[filled].to(low.dtype)


@dataclass
class _Search:
    """The cheapest range so far of every row.

    Candidates come with the largest width and zero point first and the later of equals wins, so
    that of equals the one with the smallest width, then zero point, is chosen.
    """

    rows: Tensor  # (rows, elements)
    counts: Tensor | None  # (elements,) how often each element occurs
    bits: int

    def __post_init__(self) -> None:
        blank = self.rows.new_zeros(self.rows.shape[0])
        self.cost = torch.full_like(blank, torch.inf)
        self.width = blank.clone()  # in units of 1 / NUM_WIDTHS of the reach
        self.zero = blank.clone()  # zero point
        self.reach = self.rows.amax(1).clamp(min=0.0) - self.rows.amin(1).clamp(max=0.0)
        tails = min(TAIL_ELEMENTS, self.rows.shape[1])
        picks = [self.rows.topk(tails, dim=1, largest=largest).indices for largest in (True, False)]
        index = torch.cat(picks, dim=1)  # the extremes, which pay first for a narrow range
        self.tails = self.rows.gather(1, index)
        counts = torch.ones_like(self.tails) if self.counts is None else self.counts[index]
        self.tail_counts = counts / 2  # halved, for an element may be in both tails

    def offer(self, width: Tensor, zero: Tensor) -> None:
        """Try one candidate per row; rows whose extremes alone cost too much are not evaluated."""
        scale, zero_point = choose_qparams(*self.ends(width, zero), self.bits)
        low, high = -zero_point * scale, (quant_max(self.bits) - zero_point) * scale
        clipped = self.tails - self.tails.clamp(low.unsqueeze(1), high.unsqueeze(1))
        bound = (clipped.abs_().pow_(NORM) * self.tail_counts).sum(1)
        open_rows = (bound <= self.cost).nonzero().flatten()
        if len(open_rows) == 0:
            return
        rows = self.rows if len(open_rows) == len(self.rows) else self.rows[open_rows]
        cost = _cost(rows, self.counts, scale[open_rows], zero_point[open_rows], self.bits)
        better = cost <= self.cost[open_rows]
        chosen = open_rows[better]
        self.cost[chosen] = cost[better]
        self.width[chosen] = width[chosen]
        self.zero[chosen] = zero[chosen]

    def ends(self, width: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        """Low and high end, each (rows,), of ranges given by width and zero point."""
        step = self.reach * width / NUM_WIDTHS / quant_max(self.bits)
        return -zero * step, (quant_max(self.bits) - zero) * step


def _search_range(rows: Tensor, counts: Tensor | None, bits: int) -> tuple[Tensor, Tensor]:
    """Low and high end, each (rows,), that minimise the sum over the row of counts * |error|^2.4."""
    search = _Search(rows, counts, bits)
    if rows.amin() >= 0:
        zeros = [0]
    elif rows.amax() <= 0:
        zeros = [quant_max(bits)]
    else:
        zeros = list(range(0, quant_max(bits) + 1, _zero_stride(bits)))
    for i in range(NUM_WIDTHS, 0, -1):
        for code in reversed(zeros):
            search.offer(torch.full_like(search.reach, i), torch.full_like(search.reach, code))
    stride = _zero_stride(bits) if len(zeros) > 1 else 1
    while stride > 1:
        for width, zero in _refinements(search.width, search.zero, stride, bits):
            search.offer(width, zero)
        stride //= 4
    return search.ends(search.width, search.zero)


def _zero_stride(bits: int) -> int:
    """Distance of the zero points tried first: at most 2^FULL_SEARCH_BITS of them, a power of 4."""
    stride = 1
    while 2**bits > stride * 2**FULL_SEARCH_BITS:
        stride *= 4
    return stride


def _refinements(
    width: Tensor, zero: Tensor, stride: int, bits: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Neighbours of each row's best: widths within REFINED_WIDTHS, zero points at a quarter of the
    stride.
    """
    width, zero = width.clone(), zero.clone()
    for by_width in range(REFINED_WIDTHS, -REFINED_WIDTHS - 1, -1):
        for by_zero in range(stride, -stride - 1, -stride // 4):
            yield (
                (width + by_width).clamp(1, NUM_WIDTHS),
                (zero + by_zero).clamp(0, quant_max(bits)),
            )


def _cost(
    rows: Tensor, counts: Tensor | None, scale: Tensor, zero_point: Tensor, bits: int
) -> Tensor:
    """Sum over each row of counts * |fake_quantize(x) - x|^2.4, shape (rows,)."""
    scale, zero_point = scale.unsqueeze(1), zero_point.unsqueeze(1)
    error = (rows / scale).round_().add_(zero_point).clamp_(0, quant_max(bits)).sub_(zero_point)
    error.mul_(scale).sub_(rows).abs_().pow_(NORM)
    return error.sum(1) if counts is None else error @ counts
