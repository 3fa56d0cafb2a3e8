"""Clipping values that minimise the expected quantization error of a Laplace or Gauss density.

Banner et al., "Post training 4-bit quantization of convolutional networks for rapid-deployment",
NeurIPS 2019, arXiv:1810.05723, section 2.

All clipping values are multiples of the density's scale: b = E|x - mu| for Laplace, the standard
deviation for Gauss. ``one_sided`` means that a ReLU cuts the density at its centre, and all codes
are used for the positive half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import scipy

PRIORS = ("laplace", "gauss")
TABLES = ("exact", "paper")
EXACT_BITS = 3  # above these, the paper's clip has less than 0.3 % more error
WIDEST = 40.0  # upper bound of all optimal clips up to 16 bits

Moments = tuple[np.ndarray, np.ndarray, np.ndarray]


@cache
def clip_factor(prior: str, bits: int, one_sided: bool, table: str) -> float:
    """The clipping value, in multiples of the density's scale.

    Args:
        prior: one of ``PRIORS``.
        bits: at least 1.
        table: ``paper`` takes the stationary point of the paper's error model, with 2^bits cells;
            ``exact`` takes, up to ``EXACT_BITS`` bits, the minimum for the quantizer in use, 2^bits
            points with both ends on the clip, and above the value of the paper.
    """
    if table == "exact" and bits <= EXACT_BITS:
        return exact_clip(prior, bits, one_sided)
    return paper_clip(prior, bits, one_sided)


def paper_clip(prior: str, bits: int, one_sided: bool) -> float:
    """The clipping value at which the derivative of the paper's error is zero.

    With c = 3 * 4^bits, it is the root u of

        u * exp(u) = c    for Laplace, which is Lambert's W0(c),
        sqrt(2 / pi) * exp(-u^2 / 2) = u * (erfc(u / sqrt(2)) + 1 / c)    for Gauss.

    A one-sided density has all cells on one side, which counts as one bit more.
    """
    c = 3.0 * 4.0 ** (bits + one_sided)
    if prior == "laplace":
        return float(scipy.special.lambertw(c).real)

    def slope(u: float) -> float:
        return u * (math.erfc(u / math.sqrt(2)) + 1 / c) - _gauss_density(u) * 2

    return float(scipy.optimize.brentq(slope, 1e-3, WIDEST))


def exact_clip(prior: str, bits: int, one_sided: bool) -> float:
    """The clipping value with the smallest ``expected_error``, found numerically."""
    result = scipy.optimize.minimize_scalar(
        lambda clip: expected_error(prior, bits, one_sided, clip),
        bounds=(0.05, WIDEST),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(result.x)


def expected_error(prior: str, bits: int, one_sided: bool, clip: float) -> float:
    """E (x - Q(x))^2 over the positive half of the density.

    The first and the last of the 2^bits points of Q are 0 and ``clip`` if one-sided, else
    -``clip`` and ``clip``.
    """
    step = clip / (2**bits - 1) * (1 if one_sided else 2)
    points = np.arange(clip, -step / 4, -step)[::-1]
    edges = np.concatenate([[0.0], (points[1:] + points[:-1]) / 2])
    zeroth, first, second = (_cells(part) for part in _TAILS[prior](edges))
    return float((second - 2 * points * first + points**2 * zeroth).sum())


def _cells(tail: np.ndarray) -> np.ndarray:
    """Moments between adjacent edges, from the moments above each edge."""
    return tail - np.append(tail[1:], 0.0)


def _laplace_tails(x: np.ndarray) -> Moments:
    """Integrals of f, x f and x^2 f from ``x`` to infinity, f = exp(-|x|) / 2."""
    half = np.exp(-x) / 2
    return half, (x + 1) * half, (x**2 + 2 * x + 2) * half


def _gauss_tails(x: np.ndarray) -> Moments:
    """Integrals of f, x f and x^2 f from ``x`` to infinity, f the standard normal density."""
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    above = scipy.special.erfc(x / math.sqrt(2)) / 2
    return above, density, x * density + above


def _gauss_density(u: float) -> float:
    return math.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)


_TAILS: dict[str, Callable[[np.ndarray], Moments]] = {
    "laplace": _laplace_tails,
    "gauss": _gauss_tails,
}
