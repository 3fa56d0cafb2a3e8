from __future__ import annotations

import pytest
import torch

from quant.arithmetic.primitives import dequantize, quantize
from quant.arithmetic.ranges import weight_qparams
from quant.arithmetic.rounding import SoftRounding


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def soft_rounding(weight: torch.Tensor, bits: int = 4) -> SoftRounding:
    return SoftRounding(weight, *weight_qparams(weight, bits, True, "minmax"), bits)


def test_it_starts_at_the_float_weight_inside_the_range_and_at_its_end_outside(weight):
    rounding = soft_rounding(weight)
    low, high = -rounding.zero_point * rounding.scale, (15 - rounding.zero_point) * rounding.scale
    assert torch.allclose(rounding.weight(), weight.clamp(low, high), atol=1e-5)


def test_untouched_variables_round_to_nearest(weight):
    rounding = soft_rounding(weight)
    nearest = quantize(weight, rounding.scale, rounding.zero_point, 4)
    assert torch.equal(rounding.hard_codes(), nearest)


def test_saturated_variables_give_hard_codes_and_no_penalty(weight):
    rounding = soft_rounding(weight)
    up = torch.rand(weight.shape) < 0.5
    with torch.no_grad():
        rounding.logits.copy_(torch.where(up, 20.0, -20.0))
    hard = dequantize(rounding.hard_codes(), rounding.scale, rounding.zero_point)
    assert torch.allclose(rounding.weight(), hard)
    assert rounding.penalty(2.0).item() == 0.0


def test_penalty_by_hand(weight):
    rounding = soft_rounding(weight)
    with torch.no_grad():
        rounding.logits.zero_()
    rounding.weight()
    assert rounding.penalty(7.0).item() == pytest.approx(weight.numel())  # all at h = 1/2
    with torch.no_grad():
        rounding.logits.fill_(torch.logit(torch.tensor(0.85 / 1.2)).item())
    rounding.weight()
    assert rounding.penalty(3.0).item() == pytest.approx(weight.numel() * (1 - 0.5**3), rel=1e-4)


def test_gradient_is_that_of_finite_differences(weight):
    rounding = soft_rounding(weight[:1, :1])
    target = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    rounding.scale, rounding.zero_point = rounding.scale.double(), rounding.zero_point.double()
    rounding.floor_codes = rounding.floor_codes.double()

    def loss(logits: torch.Tensor) -> torch.Tensor:
        rounding.logits = logits
        return (rounding.weight() * target).sum() + 0.1 * rounding.penalty(4.0)

    start = rounding.logits.detach().double().clamp(-1, 1).requires_grad_(True)
    assert torch.autograd.gradcheck(loss, (start,))


def test_clipped_weights_stay_on_the_last_level(weight):
    scale, zero_point = torch.full((6, 1, 1, 1), 0.1), torch.full((6, 1, 1, 1), 7.0)
    rounding = SoftRounding(weight, scale, zero_point, 4)
    codes = rounding.hard_codes()
    assert codes.min() >= 0
    assert codes.max() <= 15
    assert torch.equal(codes[weight > 0.95], torch.full_like(codes[weight > 0.95], 15))
