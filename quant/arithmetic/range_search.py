"""Search for the range of the smallest |error|^norm.

The search follows ``MSEObserver`` of QDrop and PD-Quant, which minimises |error|^2.4 in spite of
its name: 100 widths for a one-sided tensor, 100 widths times all zero points for a two-sided one;
the first of equal candidates wins. There are two differences, which do not change the result in
practice (tested): above 4 bits the zero points of a two-sided tensor are searched from coarse to
fine instead of one by one, and activations are searched on a histogram of their non-zero values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.arithmetic.primitives import choose_qparams, quant_max

NORM = 2.4  # default power of the error that the search minimises
NUM_WIDTHS = 100
FULL_SEARCH_BITS = 4
REFINED_WIDTHS = 8
TAIL_ELEMENTS = 8


@dataclass(frozen=True)
class Grid:
    """The quantization grid of a range search, and the power of its error.

    Attributes:
        norm: power of the error.
        symmetric: whether a two-sided range has the zero point 2^(bits - 1).
    """

    bits: int
    norm: float = NORM
    symmetric: bool = False


@dataclass(frozen=True)
class Sample:
    """Values to search ranges for, one range per row.

    Attributes:
        rows: (rows, elements).
        counts: (elements,) number of occurrences of each element; None means one.
    """

    rows: Tensor
    counts: Tensor | None = None


@dataclass
class _Search:
    """The best range so far of every row.

    Candidates come in order of decreasing width and zero point, and of equal ones the later wins;
    thus of equal ones that with the smallest width, then the smallest zero point, is chosen.
    """

    sample: Sample
    grid: Grid

    def __post_init__(self) -> None:
        rows, counts = self.sample.rows, self.sample.counts
        blank = rows.new_zeros(rows.shape[0])
        self.cost = torch.full_like(blank, torch.inf)
        self.width = blank.clone()  # in units of reach / NUM_WIDTHS
        self.zero = blank.clone()  # zero point
        low, high = rows.amin(1).clamp(max=0.0), rows.amax(1).clamp(min=0.0)
        self.zeros = _first_zero_points(rows, self.grid)
        self.reach = high - low
        if self.grid.symmetric and rows.amin() < 0:
            self.reach = 2 * torch.maximum(high, -low)
        tails = min(TAIL_ELEMENTS, rows.shape[1])
        picks = [rows.topk(tails, dim=1, largest=largest).indices for largest in (True, False)]
        index = torch.cat(picks, dim=1)  # the extremes, which a narrow range clips first
        self.tails = rows.gather(1, index)
        tail_counts = torch.ones_like(self.tails) if counts is None else counts[index]
        self.tail_counts = tail_counts / 2  # halved, because an element may be in both tails

    def offer(self, widths: Tensor, zeros: Tensor) -> None:
        """Try candidates in order; skip rows whose error at the extremes alone is too large.

        Args:
            widths, zeros: (candidates, rows).
        """
        scales, zero_points = choose_qparams(*self.ends(widths, zeros), self.grid.bits)
        bounds = self._least_costs(scales, zero_points)
        for i in (bounds <= self.cost).any(dim=1).nonzero().flatten().tolist():
            open_rows = (bounds[i] <= self.cost).nonzero().flatten()
            if len(open_rows) == 0:
                continue
            cost = self._costs(open_rows, scales[i], zero_points[i])
            better = cost <= self.cost[open_rows]
            chosen = open_rows[better]
            self.cost[chosen] = cost[better]
            self.width[chosen] = widths[i, chosen]
            self.zero[chosen] = zeros[i, chosen]

    def _least_costs(self, scales: Tensor, zero_points: Tensor) -> Tensor:
        """Error of clipping the extremes, a lower bound of the cost, in the shape of ``scales``."""
        low, high = -zero_points * scales, (quant_max(self.grid.bits) - zero_points) * scales
        clipped = self.tails - self.tails.clamp(low.unsqueeze(-1), high.unsqueeze(-1))
        return (clipped.abs_().pow_(self.grid.norm) * self.tail_counts).sum(-1)

    def _costs(self, open_rows: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        rows = self.sample.rows
        part = Sample(rows if len(open_rows) == len(rows) else rows[open_rows], self.sample.counts)
        return quantization_error(part, scale[open_rows], zero_point[open_rows], self.grid)

    def ends(self, width: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        """Low and high end of ranges given by width and zero point, all (..., rows)."""
        top = quant_max(self.grid.bits)
        step = self.reach * width / NUM_WIDTHS / top
        return -zero * step, (top - zero) * step


def search_qparams(sample: Sample, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each (rows,), that minimise ``quantization_error``."""
    search = _Search(sample, grid)
    zeros = search.reach.new_tensor(search.zeros[::-1]).unsqueeze(1).repeat(1, len(search.reach))
    for i in range(NUM_WIDTHS, 0, -1):
        search.offer(torch.full_like(zeros, i), zeros)
    stride = _zero_stride(grid.bits) if len(search.zeros) > 1 else 1
    while stride > 1:
        for widths, zeros in _refinements(search.width, search.zero, stride, grid.bits):
            search.offer(widths, zeros)
        stride //= 4
    return choose_qparams(*search.ends(search.width, search.zero), grid.bits)


def full_qparams(sample: Sample, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each (rows,), of the range from the smallest to the largest value."""
    rows = sample.rows
    low, high = rows.amin(1), rows.amax(1)
    if grid.symmetric and rows.amin() < 0:
        step = 2 * torch.maximum(high, -low) / quant_max(grid.bits)
        low, high = -(2 ** (grid.bits - 1)) * step, (2 ** (grid.bits - 1) - 1) * step
    return choose_qparams(low, high, grid.bits)


def _first_zero_points(rows: Tensor, grid: Grid) -> list[int]:
    """The zero points that are tried with every width."""
    if rows.amin() >= 0:
        return [0]
    if grid.symmetric:
        return [2 ** (grid.bits - 1)]
    if rows.amax() <= 0:
        return [quant_max(grid.bits)]
    return list(range(0, quant_max(grid.bits) + 1, _zero_stride(grid.bits)))


def _zero_stride(bits: int) -> int:
    """Stride of the zero points tried first, a power of 4: at most 2^FULL_SEARCH_BITS are left."""
    stride = 1
    while 2**bits > stride * 2**FULL_SEARCH_BITS:
        stride *= 4
    return stride


def _refinements(
    width: Tensor, zero: Tensor, stride: int, bits: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the neighbours of each row's best candidate, (zero points, rows) for each width.

    They are all widths within ``REFINED_WIDTHS`` and zero points within ``stride``, a quarter of it
    apart.
    """
    shifts = torch.arange(stride, -stride - 1, -stride // 4, device=zero.device).unsqueeze(1)
    width, zeros = width.clone(), (zero + shifts).clamp(0, quant_max(bits))
    for by_width in range(REFINED_WIDTHS, -REFINED_WIDTHS - 1, -1):
        yield (width + by_width).clamp(1, NUM_WIDTHS).expand_as(zeros), zeros


def quantization_error(sample: Sample, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Sum over each row of counts * |fake_quantize(x) - x|^norm, (rows,).

    Args:
        scale, zero_point: (rows,).
    """
    scale, zero_point = scale.unsqueeze(1), zero_point.unsqueeze(1)
    error = (sample.rows / scale).round_().add_(zero_point).clamp_(0, quant_max(grid.bits))
    error.sub_(zero_point).mul_(scale).sub_(sample.rows).abs_().pow_(grid.norm)
    return error.sum(1) if sample.counts is None else error @ sample.counts
