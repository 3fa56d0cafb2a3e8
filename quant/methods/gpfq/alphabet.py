"""The levels of GPFQ, and its rounding: to nearest, sparse or stochastic.

A level is a code from ``low`` to ``high`` times a step; a gap shifts the non-zero levels away from
zero. The published alphabet has the 2^bits + 1 codes -K to K with K = 2^(bits - 1); the default has
the two's complement codes -K to K - 1.

Letters: N neurons (output channels), d weights of each.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.arithmetic.primitives import MIN_SCALE

ALPHABETS = ("bits", "published")
RADII = ("mean_max", "median_max", "per_channel")
REGULARIZERS = ("L1", "L0")


@dataclass(frozen=True)
class Sparsity:
    """Rule that makes small weights zero (Zhang, Zhou & Saab 2023, arXiv:2201.11113, section 5).

    Attributes:
        regularizer: ``L1`` shifts values towards zero by ``threshold`` before they are rounded;
            ``L0`` sets values up to ``threshold`` to zero, and the smallest non-zero level is the
            threshold.
    """

    regularizer: str
    threshold: float


@dataclass(frozen=True)
class Alphabet:
    """Levels of a layer; ``step`` and ``gap`` are (N, 1) or (1, 1) float64 with float32 values."""

    step: Tensor
    gap: Tensor
    low: int
    high: int
    sparsity: Sparsity | None = None
    generator: torch.Generator | None = None  # for stochastic rounding, which is unbiased

    def with_steps(self, step: Tensor, gap: Tensor) -> Alphabet:
        """The same alphabet with the step and gap of other neurons."""
        return dataclasses.replace(self, step=step, gap=gap)

    def codes(self, values: Tensor) -> Tensor:
        """Round (N, columns) float64 values to codes."""
        size = values.abs()
        if self.sparsity is not None:
            size = size - self.sparsity.threshold
            if self.sparsity.regularizer == "L0":
                steps = 1 + self._rounded(size / self.step).clamp(0, self.high - 1)
                return values.sign() * torch.where(size > 0, steps, 0.0)
            values = values.sign() * size.clamp(min=0)
        return self._rounded(values / self.step).clamp(self.low, self.high)

    def levels(self, codes: Tensor) -> Tensor:
        """The levels of (N, columns) codes."""
        return codes * self.step + codes.sign() * self.gap

    def _rounded(self, values: Tensor) -> Tensor:
        if self.generator is None:
            return (values + 0.5).floor()
        chance = torch.rand(
            values.shape, generator=self.generator, device=values.device, dtype=values.dtype
        )
        return (values + chance).floor()


def radius(weight: Tensor, kind: str, percentile: float) -> Tensor:
    """The radius of an alphabet, from quantiles of |w|.

    Args:
        weight: (N, d).
        kind: mean or median over the neurons of their quantiles of |w|, or each neuron's own.
        percentile: the quantile of |w|, from 0 to 1; 1 is the maximum.

    Returns:
        (N, 1) for ``per_channel``, else (1, 1).
    """
    reach = weight.abs().quantile(percentile, dim=1, keepdim=True)
    if kind == "mean_max":
        return reach.mean().reshape(1, 1)
    if kind == "median_max":
        return reach.median().reshape(1, 1)
    return reach


def make_alphabet(
    reach: Tensor,
    bits: int,
    kind: str,
    sparsity: Sparsity | None,
    generator: torch.Generator | None,
) -> Alphabet:
    """Make the alphabet whose largest level is ``reach``.

    With two's complement codes ``reach`` is half a step above the largest level.

    Args:
        reach: (N, 1) or (1, 1).
        kind: one of ``ALPHABETS``.
        generator: for stochastic rounding; None rounds to nearest.
    """
    top = 2 ** (bits - 1)
    reach = reach.float().clamp(min=MIN_SCALE)
    gap = torch.zeros_like(reach)
    if sparsity is not None and sparsity.regularizer == "L0":
        high = top + 1 if kind == "published" else top - 1
        low, step = -high, reach
        if high > 1:
            step = (reach - sparsity.threshold) / (high - 1)
            gap = sparsity.threshold - step
    elif kind == "published":
        low, high, step = -top, top, reach / top
    else:
        low, high, step = -top, top - 1, reach / (top - 0.5)
    return Alphabet(step.double(), gap.double(), low, high, sparsity, generator)
