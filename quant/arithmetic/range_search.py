"""Search for the range of the smallest |error|^norm.

The search follows ``MSEObserver`` of QDrop and PD-Quant, which minimises |error|^2.4 in spite of
its name: 100 widths for a one-sided tensor, 100 widths times all zero points for a two-sided one;
the first of equal candidates wins. There are two differences, which do not change the result in
practice (tested): above 4 bits the zero points of a two-sided tensor are searched from coarse to
fine instead of one by one, and activations are searched on a histogram of their non-zero values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.arithmetic.primitives import MIN_SCALE, choose_qparams, quant_max

NORM = 2.4  # default power of the error that the search minimises
NUM_WIDTHS = 100
FULL_SEARCH_BITS = 4
REFINED_WIDTHS = 8
TAIL_ELEMENTS = 8
COARSE = 10  # widths that are multiples of it are tried first
FINE_WIDTHS = 30  # tried at a time
MOST_CANDIDATES = 1 << 16  # looked at more closely at a time
MOST_ELEMENTS = 1 << 20  # of rows that are quantized at a time


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


class _Search:
    """The best range so far of every row; of equal ones that with the least width, then zero point.

    The error of a range is that of a grid without ends, which depends on the width alone, plus what
    clipping adds. A candidate is left out where less than its error is too much: the error of
    clipping the two extremes, then the error without ends and what clipping the tails adds. If
    nothing but elements of the tails is clipped, this is the whole error.
    """

    def __init__(self, sample: Sample, grid: Grid):
        rows, counts = sample.rows, sample.counts
        self.sample, self.grid = sample, grid
        self.top = quant_max(grid.bits)
        low, high = rows.amin(1).clamp(max=0.0), rows.amax(1).clamp(min=0.0)
        self.zeros = _first_zero_points(rows, grid)
        self.reach = high - low
        if grid.symmetric and rows.amin() < 0:
            self.reach = 2 * torch.maximum(high, -low)
        # The largest elements of each row in falling order, then the smallest in rising order.
        self.tail = max(1, min(TAIL_ELEMENTS, rows.shape[1] // 2))
        picks = [rows.topk(self.tail, dim=1, largest=largest).indices for largest in (True, False)]
        index = torch.cat(picks, dim=1)
        self.tails = rows.gather(1, index)
        self.tail_counts = torch.ones_like(self.tails) if counts is None else counts[index]
        self.ideal = rows.new_full((NUM_WIDTHS + 1, len(rows)), torch.nan)  # error without ends
        self.width = torch.full_like(self.reach, NUM_WIDTHS)
        self.zero = self._zero_of_all()
        everything = torch.arange(len(rows), device=rows.device)
        self.cost = self._errors(everything, self.width, self.zero)

    def _zero_of_all(self) -> Tensor:
        """For each row the one of ``zeros`` with which the largest range clips the least."""
        zeros = self.reach.new_tensor(self.zeros)
        candidates = zeros.unsqueeze(1).expand(-1, len(self.reach))
        widths = torch.full_like(candidates, NUM_WIDTHS)
        return zeros[self._extremes_cost(widths, candidates).argmin(0)]

    def offer(self, widths: Tensor, zeros: Tensor) -> None:
        """Try candidates, each (candidates, rows): widths from 1 to ``NUM_WIDTHS``, zero points."""
        place, row = (self._extremes_cost(widths, zeros) <= self.cost).nonzero(as_tuple=True)
        for part in (torch.stack([place, row])).split(MOST_CANDIDATES, dim=1):
            self._offer_open(widths[part[0], part[1]], zeros[part[0], part[1]], part[1])

    def _offer_open(self, width: Tensor, zero: Tensor, row: Tensor) -> None:
        """Try candidates, each (candidates,): width, zero point and row."""
        bound, is_exact = self._bounds(width, zero, row)
        self._keep_best(bound[is_exact], width[is_exact], zero[is_exact], row[is_exact])
        is_open = ~is_exact & (bound <= self.cost[row])
        bound, width, zero, row = (value[is_open] for value in (bound, width, zero, row))
        if len(row) > len(self.reach):  # first the best of each row, which may rule out others
            least = torch.full_like(self.cost, torch.inf).scatter_reduce_(0, row, bound, "amin")
            self._measure(width, zero, row, bound == least[row])
            is_open = (bound != least[row]) & (bound <= self.cost[row])
            width, zero, row = width[is_open], zero[is_open], row[is_open]
        self._measure(width, zero, row, torch.ones_like(row, dtype=torch.bool))

    def _measure(self, width: Tensor, zero: Tensor, row: Tensor, which: Tensor) -> None:
        width, zero, row = width[which], zero[which], row[which]
        self._keep_best(self._errors(row, width, zero), width, zero, row)

    def _keep_best(self, cost: Tensor, width: Tensor, zero: Tensor, row: Tensor) -> None:
        least = self.cost.scatter_reduce(0, row, cost, "amin")
        self.width[least < self.cost] = torch.inf
        self.cost = least
        is_best = cost == least[row]
        width, zero, row = width[is_best], zero[is_best], row[is_best]
        narrowest = self.width.scatter_reduce(0, row, width, "amin")
        self.zero[narrowest < self.width] = torch.inf
        self.width = narrowest
        is_best = width == narrowest[row]
        self.zero.scatter_reduce_(0, row[is_best], zero[is_best], "amin")

    def _extremes_cost(self, widths: Tensor, zeros: Tensor) -> Tensor:
        """Error of clipping the largest and the smallest element, in the shape of ``widths``."""
        step = self._step(widths, self.reach)
        above = (self.tails[:, 0] - (self.top - zeros) * step).clamp_(min=0.0)
        below = (-zeros * step - self.tails[:, self.tail]).clamp_(min=0.0)
        cost = above.pow_(self.grid.norm).mul_(self.tail_counts[:, 0])
        if self.sample.rows.shape[1] > 1:
            cost += below.pow_(self.grid.norm).mul_(self.tail_counts[:, self.tail])
        return cost

    def _bounds(self, width: Tensor, zero: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Lower bounds of errors, and whether they are the errors."""
        step = self._step(width, self.reach[row]).unsqueeze(1)
        tails, zero = self.tails[row], zero.unsqueeze(1)
        beyond = (tails - tails.clamp(-zero * step, (self.top - zero) * step)).abs_()
        inner = beyond[:, [self.tail - 1, 2 * self.tail - 1]]  # the last of each tail
        is_exact = (inner <= step / 2).all(1) & (self.sample.rows.shape[1] > 1)
        added = beyond.pow_(self.grid.norm) - self._rounding(tails, step)
        added = added.clamp_(min=0.0).mul_(self.tail_counts[row]).sum(1)
        if self.sample.rows.shape[1] == 1:
            added /= 2  # the only element is in both tails
        return self._ideal(width, row) + added, is_exact

    def _rounding(self, values: Tensor, step: Tensor) -> Tensor:
        """|error|^norm of rounding to a grid without ends."""
        error = (values / step).round_().mul_(step).sub_(values)
        return error.abs_().pow_(self.grid.norm)

    def _ideal(self, width: Tensor, row: Tensor) -> Tensor:
        """Errors of grids without ends, which are computed once."""
        index = width.long()
        wanted = torch.zeros_like(self.ideal, dtype=torch.bool)
        wanted[index, row] = True
        for part in (wanted & self.ideal.isnan()).nonzero().split(self._rows_at_once()):
            step = self._step(part[:, 0].to(width.dtype), self.reach[part[:, 1]])
            error = self._rounding(self.sample.rows[part[:, 1]], step.unsqueeze(1))
            self.ideal[part[:, 0], part[:, 1]] = self._total(error)
        return self.ideal[index, row]

    def _errors(self, row: Tensor, width: Tensor, zero: Tensor) -> Tensor:
        scale, zero_point = self.qparams(width, zero, self.reach[row])
        errors = [width[:0]]
        for part in torch.arange(len(row), device=row.device).split(self._rows_at_once()):
            sample = Sample(self.sample.rows[row[part]], self.sample.counts)
            errors.append(quantization_error(sample, scale[part], zero_point[part], self.grid))
        return torch.cat(errors)

    def _total(self, error: Tensor) -> Tensor:
        return error.sum(1) if self.sample.counts is None else error @ self.sample.counts

    def _rows_at_once(self) -> int:
        return max(1, MOST_ELEMENTS // self.sample.rows.shape[1])

    def _step(self, width: Tensor, reach: Tensor) -> Tensor:
        return (reach * width / NUM_WIDTHS / self.top).clamp(min=MIN_SCALE)

    def qparams(self, width: Tensor, zero: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of ranges of rows that reach so far, all (..., rows)."""
        step = reach * width / NUM_WIDTHS / self.top
        return choose_qparams(-zero * step, (self.top - zero) * step, self.grid.bits)


def search_qparams(sample: Sample, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each (rows,), that minimise ``quantization_error``."""
    search = _Search(sample, grid)
    zeros = search.reach.new_tensor(search.zeros)
    widths = torch.arange(NUM_WIDTHS, 0, -1).to(zeros)
    is_coarse = widths % COARSE == 0
    for some in (widths[is_coarse], *widths[~is_coarse].split(FINE_WIDTHS)):
        pairs = torch.cartesian_prod(some, zeros).unsqueeze(2)
        search.offer(*pairs.expand(-1, -1, len(search.reach)).unbind(1))
    stride = _zero_stride(grid.bits) if len(search.zeros) > 1 else 1
    while stride > 1:
        search.offer(*_refinements(search.width, search.zero, stride, grid.bits))
        stride //= 4
    return search.qparams(search.width, search.zero, search.reach)


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


def _refinements(width: Tensor, zero: Tensor, stride: int, bits: int) -> tuple[Tensor, Tensor]:
    """The neighbours of each row's best candidate, widths and zero points (candidates, rows).

    They are all widths within ``REFINED_WIDTHS`` and zero points within ``stride``, a quarter of it
    apart.
    """
    by_width = torch.arange(-REFINED_WIDTHS, REFINED_WIDTHS + 1).to(width)
    shifts = torch.arange(-stride, stride + 1, stride // 4).to(zero)
    widths, zeros = torch.cartesian_prod(by_width, shifts).unsqueeze(2).unbind(1)
    return (width + widths).clamp(1, NUM_WIDTHS), (zero + zeros).clamp(0, quant_max(bits))


def quantization_error(sample: Sample, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Sum over each row of counts * |fake_quantize(x) - x|^norm, (rows,).

    Args:
        scale, zero_point: (rows,).
    """
    scale, zero_point = scale.unsqueeze(1), zero_point.unsqueeze(1)
    error = (sample.rows / scale).round_().add_(zero_point).clamp_(0, quant_max(grid.bits))
    error.sub_(zero_point).mul_(scale).sub_(sample.rows).abs_().pow_(grid.norm)
    return error.sum(1) if sample.counts is None else error @ sample.counts
