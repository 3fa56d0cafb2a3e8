"""Allocation of bits to channels for a given average.

Banner et al. (ACIQ), NeurIPS 2019, arXiv:1810.05723, section 3.

Letters: C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_BITS = 8
EXPONENT = 2 / 3  # the bins of a channel are proportional to spread^(2/3)


def bin_shares(spread: Tensor, mix_ratio: float) -> Tensor:
    """The share of each channel in all quantization bins, (C,) float64 with sum 1.

    For a fixed sum of the bins B_c, the sum of (spread_c / B_c)^2 is smallest with B_c ~
    spread_c^(2/3) (paper, eq. 11). ``mix_ratio`` multiplies the exponent; with 0 all shares are
    equal.
    """
    power = spread.double() ** (EXPONENT * mix_ratio)
    return power / power.sum()


def allocate_bits(spread: Tensor, bits: int, mix_ratio: float) -> Tensor:
    """Bits of each channel, integers from 0 to MAX_BITS with mean ``bits``.

    The mean is slightly below ``bits`` if channels of equal spread would otherwise get different
    bits. The bits are log2 of the published bins, shifted by one number for all channels and
    rounded. The published code iterates the shift until the mean is within 0.01; here it is the
    largest shift whose mean does not exceed ``bits``. A permutation of the channels permutes the
    result.

    Args:
        spread: (C,) standard deviation or mean absolute deviation, not negative.
        bits: the average, from 1 to MAX_BITS.
        mix_ratio: from 0 (all channels get ``bits``) to 1 (the published allocation).

    Returns:
        (C,) int64.
    """
    levels = torch.log2(bin_shares(spread, mix_ratio))
    steps = torch.arange(1, MAX_BITS + 1, dtype=levels.dtype, device=levels.device)
    # (C, MAX_BITS): the shift from which on a channel has 1, 2, ... bits.
    shifts = steps - levels.unsqueeze(1)
    shifts = shifts.nan_to_num(nan=torch.inf, posinf=torch.inf)
    ordered = shifts.flatten().sort().values
    budget = bits * len(spread)
    last = ordered[budget - 1]
    fits = budget == len(ordered) or last < ordered[budget]
    taken = (shifts <= last) if fits else (shifts < last)
    return (taken & shifts.isfinite()).sum(1)
