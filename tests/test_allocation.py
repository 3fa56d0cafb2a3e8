"""Bits per channel: the quota, the symmetry, and a brute-force search."""

import itertools

import pytest
import torch

from quant.methods.aciq.allocation import MAX_BITS, allocate_bits, bin_shares

RATIOS = (0.0, 0.25, 0.5, 0.9, 1.0)


def spreads(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).exp()


@pytest.mark.parametrize("bits", range(1, MAX_BITS + 1))
def test_ratio_0_gives_all_channels_the_same_bits(bits):
    assert (allocate_bits(spreads(17), bits, 0.0) == bits).all()


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("count", [1, 4, 16, 65])
def test_the_quota_is_kept(ratio, bits, count):
    given = allocate_bits(spreads(count, seed=bits), bits, ratio)
    assert given.sum() == bits * count  # no two spreads are equal, so it is met exactly
    assert given.min() >= 0 and given.max() <= MAX_BITS


@pytest.mark.parametrize("ratio", RATIOS)
def test_equal_channels_get_equal_bits_and_the_quota_is_not_exceeded(ratio):
    spread = torch.tensor([1.0, 1.0, 1.0, 8.0, 8.0])
    given = allocate_bits(spread, 3, ratio)
    assert len(given[:3].unique()) == len(given[3:].unique()) == 1
    assert given.double().mean() <= 3


@pytest.mark.parametrize("ratio", RATIOS)
def test_permuting_channels_permutes_their_bits(ratio):
    spread = spreads(33)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        allocate_bits(spread[order], 4, ratio), allocate_bits(spread, 4, ratio)[order]
    )


def test_a_wider_channel_never_gets_fewer_bits_and_scaling_all_changes_nothing():
    spread = spreads(40).sort().values
    given = allocate_bits(spread, 4, 1.0)
    assert (given.diff() >= 0).all()
    assert torch.equal(given, allocate_bits(1000 * spread, 4, 1.0))


def test_the_spread_of_bits_grows_with_the_ratio():
    spread = spreads(64)
    widths = [float(allocate_bits(spread, 4, ratio).double().std()) for ratio in RATIOS]
    assert widths == sorted(widths) and widths[0] == 0 < widths[-1]


def test_constant_channels_get_no_bits_and_the_others_share_them():
    assert allocate_bits(torch.tensor([0.0, 1.0, 1.0]), 2, 1.0).tolist() == [0, 3, 3]
    assert allocate_bits(torch.zeros(3), 4, 1.0).tolist() == [0, 0, 0]
    assert allocate_bits(torch.tensor([0.0, 1.0]), 8, 1.0).tolist() == [0, 8]


@pytest.mark.parametrize("seed", range(5))
def test_the_bins_are_those_of_a_brute_force_search(seed):
    spread = spreads(3, seed)
    total = 48
    bins = bin_shares(spread, 1.0) * total
    splits = ((a, b, total - a - b) for a in range(1, total - 1) for b in range(1, total - a))
    best = min(
        splits, key=lambda s: sum(float(r) ** 2 / n**2 for r, n in zip(spread, s, strict=True))
    )
    assert (bins - torch.tensor(best)).abs().max() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_the_bits_are_the_rounded_bins_of_some_common_shift(seed):
    """The published rule, by brute force over the shift that it iterates."""
    spread = spreads(4, seed).double()
    levels = torch.log2(bin_shares(spread, 1.0))
    shifts = torch.arange(-10, 30, 0.001, dtype=torch.float64)
    bits = (levels + shifts[:, None]).round().clamp(0, MAX_BITS)
    allowed = bits[bits.mean(1) <= 3]
    assert torch.equal(allocate_bits(spread, 3, 1.0), allowed[-1].long())


def test_no_other_bits_under_the_quota_have_a_lower_error_by_much():
    """Rounding to whole bits costs at most the factor 4^(1/2) per channel on either side."""
    spread = spreads(4, 7).double()
    given = allocate_bits(spread, 3, 1.0)
    error = lambda bits: float((spread.square() * 4.0 ** -torch.as_tensor(bits).double()).sum())  # noqa: E731
    best = min(
        (b for b in itertools.product(range(MAX_BITS + 1), repeat=4) if sum(b) <= 12), key=error
    )
    assert error(best) <= error(given) <= 2 * error(best)
