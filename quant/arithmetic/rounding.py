"""AdaRound's learned rounding.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020,
arXiv:2004.10568, section 3.3.

    h(v) = clamp(sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0, 1)
    what = (clamp(floor(w / scale) + h(v) + zero_point, 0, 2^bits - 1) - zero_point) * scale
    penalty(v) = sum of 1 - |2 h(v) - 1|^exponent
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from quant.arithmetic.primitives import code_dtype, quant_max

GAMMA = -0.1
ZETA = 1.1


class Rounding(Protocol):
    """The rounding of a weight while it is being optimised."""

    def weight(self) -> Tensor: ...


class SoftRounding:
    """The rounding variables of one weight; at first the soft weight equals the float weight.

    ``logits`` (v in the paper) is the trainable leaf tensor, in the shape of the weight.
    """

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int):
        ratio = weight / scale
        remainder = ratio - ratio.floor()
        self.scale = scale
        self.zero_point = zero_point
        self.bits = bits
        self.floor_codes = ratio.floor() + zero_point
        self.logits = -torch.log((ZETA - GAMMA) / (remainder - GAMMA) - 1.0)
        self.logits.requires_grad_(True)
        self._soft = self.logits

    def weight(self) -> Tensor:
        """The soft weight, differentiable in the rounding variables."""
        self._soft = (torch.sigmoid(self.logits) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)
        codes = (self.floor_codes + self._soft).clamp(0, quant_max(self.bits))
        return (codes - self.zero_point) * self.scale

    def penalty(self, exponent: float | Tensor) -> Tensor:
        """The rounding penalty at the h(v) of the last ``weight()``; 0 if every h(v) is 0 or 1."""
        return (1.0 - (2.0 * self._soft - 1.0).abs().pow(exponent)).sum()

    def hard_codes(self) -> Tensor:
        """Integer codes with every weight rounded up if h(v) >= 0.5, else down."""
        codes = self.floor_codes + (self.logits.detach() >= 0)
        return codes.clamp(0, quant_max(self.bits)).to(code_dtype(self.bits))
