"""The analytic clips: derived again here, and compared with a brute-force search on samples."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from quant.arithmetic.primitives import choose_qparams, fake_quantize
from quant.methods.aciq.clipping import PRIORS, clip_factor, exact_clip, expected_error, paper_clip

BITS = range(2, 9)


def paper_error(prior: str, clip: float, bits: int) -> float:
    """The error model of the paper for a two-sided density of scale 1 and 2^bits cells."""
    inside = clip**2 / (3 * 4**bits)
    if prior == "laplace":
        return 2 * math.exp(-clip) + inside
    outside = 2 * stats.norm.expect(lambda x: (x - clip) ** 2, lb=clip)
    return outside + inside


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("bits", BITS)
def test_the_papers_clip_is_the_minimum_of_its_error_model(prior, bits):
    found = optimize.minimize_scalar(
        lambda clip: paper_error(prior, clip, bits), bounds=(0.5, 14), method="bounded"
    )
    assert paper_clip(prior, bits, one_sided=False) == pytest.approx(found.x, rel=1e-4)


@pytest.mark.parametrize("bits", range(1, 17))
def test_the_laplace_clip_solves_its_closed_form(bits):
    clip = paper_clip("laplace", bits, one_sided=False)
    assert clip * math.exp(clip) == pytest.approx(3 * 4**bits, rel=1e-12)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("bits", range(1, 16))
def test_one_side_has_the_clip_of_one_bit_more(prior, bits):
    assert paper_clip(prior, bits, True) == paper_clip(prior, bits + 1, False)


@pytest.mark.parametrize(("bits", "step"), [(1, 1.596), (2, 0.9957), (3, 0.5860), (4, 0.3352)])
def test_the_exact_gauss_clip_is_the_uniform_quantizer_of_max_1960(bits, step):
    clip = exact_clip("gauss", bits, one_sided=False)
    assert clip == pytest.approx(step * (2**bits - 1) / 2, rel=1e-3)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_the_expected_error_is_that_of_samples(bits, one_sided):
    samples = quantiles("laplace", 400_001)
    clip = 1.7 + bits
    error = sample_error(samples, clip, bits, one_sided) * (0.5 if not one_sided else 1)
    assert expected_error("laplace", bits, one_sided, clip) == pytest.approx(error, rel=1e-2)


@functools.cache
def quantiles(prior: str, count: int) -> torch.Tensor:
    """Evenly spread samples of a density of scale 1."""
    density = stats.laplace if prior == "laplace" else stats.norm
    return torch.from_numpy(density.ppf((np.arange(count) + 0.5) / count))


def sample_error(samples: torch.Tensor, clip: float, bits: int, one_sided: bool) -> float:
    """Mean squared error of the suite's quantizer on the clipped range.

    A two-sided range takes the even form, whose points lie on both ends.
    """
    if one_sided:
        samples = samples.clamp(min=0)
        pair = choose_qparams(torch.tensor(0.0), torch.tensor(clip), bits)
        rounded = fake_quantize(samples, *(x.double() for x in pair), bits)
        return float((rounded - samples).square().mean())
    step = 2 * clip / (2**bits - 1)
    codes = ((samples + clip) / step).round().clamp(0, 2**bits - 1)
    return float((codes * step - clip - samples).square().mean())


@pytest.mark.parametrize("one_sided", [False, True], ids=["signed", "relu"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("prior", PRIORS)
def test_the_clip_is_within_3_percent_of_the_brute_force_optimum(prior, bits, one_sided):
    samples = quantiles(prior, 200_001)
    clip = clip_factor(prior, bits, one_sided, "exact")
    candidates = clip * np.linspace(0.95, 1.05, 41)
    errors = [sample_error(samples, c, bits, one_sided) for c in candidates]
    best = candidates[int(np.argmin(errors))]
    assert abs(clip / best - 1) <= 0.03


@pytest.mark.parametrize("prior", PRIORS)
def test_the_tables_differ_up_to_3_bits_only(prior):
    for bits in range(1, 9):
        pair = [clip_factor(prior, bits, False, table) for table in ("exact", "paper")]
        assert (pair[0] == pair[1]) == (bits > 3)
