"""Bits per channel under an average: Banner et al. (ACIQ), NeurIPS 2019, arXiv:1810.05723, section 3."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_BITS = 8
EXPONENT = 2 / 3  # the bins of a channel are proportional to spread^(2/3)


def bin_shares(spread: Tensor, mix_ratio: float) -> Tensor:
    """The share of all bins that each channel gets, (C,) float64 with sum 1.

    The sum of (spread_c / B_c)^2 under a fixed sum of the bins B_c is least for B_c ~
    spread_c^(2/3) (paper, eq. 11); ``mix_ratio`` scales the exponent: 0 gives equal shares.
    """
    power = spread.double() ** (EXPONENT * mix_ratio)
    return power / power.sum()


def allocate_bits(spread: Tensor, bits: int, mix_ratio: float) -> Tensor:
    """Whole bits of each channel, 0 .. MAX_BITS, whose mean is ``bits`` or, where equal channels
    would have to differ, as little below it as they allow.

    log2 of the published bins, shifted by one number for all channels and rounded: the published
    code iterates the shift until the mean is within 0.01, here it is the largest one whose mean does
    not exceed ``bits``. Channels change places as their spreads do.

    Args:
        spread: (C,) standard deviation or mean absolute deviation, not negative.
        bits: the average, 1 .. MAX_BITS.
        mix_ratio: 0 (all channels get ``bits``) .. 1 (the published allocation).

    Returns:
        (C,) int64.
    """
    levels = torch.log2(bin_shares(spread, mix_ratio))
    steps = torch.arange(1, MAX_BITS + 1, dtype=levels.dtype, device=levels.device)
    shifts = steps - levels.unsqueeze(1)  # (C, MAX_BITS): where each further bit comes in
    shifts = shifts.nan_to_num(nan=torch.inf, posinf=torch.inf)
    ordered = shifts.flatten().sort().values
    budget = bits * len(spread)
    last = ordered[budget - 1]
    fits = budget == len(ordered) or last < ordered[budget]
    taken = (shifts <= last) if fits else (shifts < last)
    return (taken & shifts.isfinite()).sum(1)
