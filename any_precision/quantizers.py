"""Quantizers for training at several bitwidths, built on ``fake_quantize``.

At 32 bits the range is mapped as at other bitwidths, but nothing is rounded: this is the limit of
many bits, so that outputs are continuous in the number of bits. Letters: n = 2^b - 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.errors import require_known
from quant.arithmetic.primitives import fake_quantize, quant_max

UNROUNDED = 32
FIRST_ALPHA, LEAST_ALPHA = 10.0, 1e-3
LEAST_STEP = 1e-8
WEIGHT_SCALES = ("none", "mean_abs", "sat")


def _round_to_levels(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """Round x, from 0 to n steps, to a multiple of ``step`` (straight-through); not at 32 bits."""
    return x if bits == UNROUNDED else fake_quantize(x, step, torch.zeros_like(step), bits)


class DoReFaWeight(nn.Module):
    """2 round(n u) / n - 1 with u = tanh(W) / (2 max|tanh(W)|) + 1/2.

    Zhou et al. 2016, arXiv:1606.06160, equation 9.

    Args:
        weight_scale: ``none``; ``mean_abs``: multiply by the mean of |W|; ``sat``: divide by the
            standard deviation of the result. Neither factor passes a gradient.
    """

    def __init__(self, weight_scale: str = "none"):
        super().__init__()
        self.weight_scale = require_known("weight_scale", weight_scale, WEIGHT_SCALES)

    def forward(self, weight: Tensor, bits: int) -> Tensor:
        bent = torch.tanh(weight)
        unit = bent / (2 * (bent.abs().max() + 1e-8)) + 0.5
        step = unit.new_tensor(1.0 / quant_max(min(bits, 24)))
        levels = 2 * _round_to_levels(unit, step, bits) - 1
        if self.weight_scale == "mean_abs":
            return levels * weight.detach().abs().mean()
        spread = levels.detach().std()
        return levels / spread if self.weight_scale == "sat" and spread > 0 else levels


class DoReFaActivation(nn.Module):
    """round(n clip(x, 0, 1)) / n, for inputs that are not negative."""

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return _round_to_levels(x.clamp(0, 1), x.new_tensor(1.0 / quant_max(min(bits, 24))), bits)


class PactActivation(nn.Module):
    """x clipped to [0, alpha] and rounded to n steps, where alpha is learned.

    Choi et al. 2018, arXiv:1805.06085, equations 2 and 3.

    Args:
        options: allowed bitwidths.
        switchable: learn one alpha per bitwidth instead of one for all.
    """

    def __init__(self, options: Sequence[int], switchable: bool = True):
        super().__init__()
        self.places = {bits: place if switchable else 0 for place, bits in enumerate(options)}
        self.alpha = nn.Parameter(torch.full((len(set(self.places.values())),), FIRST_ALPHA))

    def forward(self, x: Tensor, bits: int) -> Tensor:
        alpha = self.alpha[self.places[bits]].clamp(min=LEAST_ALPHA)
        clipped = torch.minimum(x.clamp(min=0), alpha)
        if bits == UNROUNDED:
            return clipped
        with torch.no_grad():
            rounded = _round_to_levels(clipped, alpha / quant_max(bits), bits)
        return clipped + (rounded - clipped).detach()


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class LsqQuantizer(nn.Module):
    """A learned step size per bitwidth (LSQ) and, optionally, a learned offset (LSQ+).

    LSQ: Esser et al. 2020, arXiv:1902.08153, equations 1 to 3, section 2.2. LSQ+: Bhalgat et al.
    2020, arXiv:2004.09576, equations 3 to 6. The first training batch sets the steps of all
    bitwidths; the buffer ``initialised`` records this.

    Args:
        options: allowed bitwidths.
        signed: codes start at -2^(b-1) (weights) instead of 0.
        offset: learn the start of the range as well.
    """

    initialised: Tensor

    def __init__(self, options: Sequence[int], signed: bool, offset: bool = False):
        super().__init__()
        self.options, self.signed = tuple(options), signed
        self.places = {bits: place for place, bits in enumerate(options)}
        self.step = nn.Parameter(torch.ones(len(options)))
        self.beta = nn.Parameter(torch.zeros(len(options))) if offset else None
        self.register_buffer("initialised", torch.zeros(len(options), dtype=torch.bool))

    def limits(self, bits: int) -> tuple[int, int]:
        """Number of codes below and above zero, Q_N and Q_P."""
        if self.signed:
            return 2 ** (bits - 1), 2 ** (bits - 1) - 1
        return 0, quant_max(bits)

    def forward(self, v: Tensor, bits: int) -> Tensor:
        place = self.places[bits]
        if not bool(self.initialised[place]):
            if not self.training:
                raise RuntimeError(
                    f"step of {bits} bits must be set by a training batch before evaluation"
                )
            self._initialise(v)
        below, above = self.limits(bits)
        features = v.numel() if self.signed else v[0].numel()
        factor = float(1.0 / (features * above) ** 0.5)
        step = _ScaledGradient.apply(self.step[place].abs().clamp(min=LEAST_STEP), factor)
        shift = 0.0 if self.beta is None else self.beta[place]
        shifted = v - shift
        clipped = torch.minimum(torch.maximum(shifted, -below * step), above * step)
        if bits == UNROUNDED:
            return clipped + shift
        zero = torch.full_like(step, below)
        return fake_quantize(clipped, step, zero, bits) + shift

    @torch.no_grad()
    def _initialise(self, v: Tensor) -> None:
        for bits, place in self.places.items():
            above = self.limits(bits)[1]
            if self.beta is None:
                self.step[place] = (2 * v.abs().mean() / above**0.5).clamp(min=LEAST_STEP)
            else:
                self.beta[place] = v.min()
                self.step[place] = ((v.max() - v.min()) / above).clamp(min=LEAST_STEP)
        self.initialised.fill_(True)
