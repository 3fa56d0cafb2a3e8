from __future__ import annotations

import pytest
import torch

from quant.arithmetic.primitives import (
    choose_qparams,
    code_dtype,
    dequantize,
    fake_quantize,
    quantize,
)


def reference(x, scale, zero_point, top):
    """Straight-through rounding by autograd alone; a code on the bound counts as inside.

    (In recent versions of torch ``clamp`` has gradient 0 on its bounds, hence the ``where``.)
    """
    ratio = x / scale
    codes = ratio.detach().round() + (ratio - ratio.detach()) + zero_point
    inside = (codes >= 0) & (codes <= top)
    return (torch.where(inside, codes, codes.detach().clamp(0, top)) - zero_point) * scale


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_quantize_by_hand(bits):
    top = 2**bits - 1
    scale, zero_point = torch.tensor(0.5), torch.tensor(1.0)
    x = torch.tensor([-100.0, -0.5, 0.0, 0.2, 1e6])
    codes = quantize(x, scale, zero_point, bits)
    assert codes.dtype == code_dtype(bits)
    assert codes.tolist() == [0, 0, 1, 1, top]
    expected = torch.tensor([-0.5, -0.5, 0.0, 0.0, (top - 1) * 0.5])
    assert torch.equal(dequantize(codes, scale, zero_point), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_equal_to_the_operator_of_torch(bits):
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(bits))
    scale, zero_point = choose_qparams(x.amin(1), x.amax(1), bits)
    theirs = torch.fake_quantize_per_channel_affine(
        x, scale, zero_point.to(torch.int32), 0, 0, 2**bits - 1
    )
    ours = fake_quantize(x, scale[:, None], zero_point[:, None], bits)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_zero_is_exact_for_every_range():
    low = torch.tensor([-3.0, 0.5, -2.0, 0.0, -1.0])
    high = torch.tensor([1.0, 2.0, -1.0, 0.0, 1e-12])
    scale, zero_point = choose_qparams(low, high, 4)
    assert (scale > 0).all()
    assert torch.equal(zero_point, zero_point.round())
    assert torch.equal(fake_quantize(torch.zeros(5), scale, zero_point, 4), torch.zeros(5))


def test_gradients_are_those_of_lsq():
    bits, z = 3, 2.0
    x = torch.tensor([-5.0, -0.9, 0.3, 0.74, 9.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    fake_quantize(x, scale, torch.tensor(z), bits).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    u = x.detach() / 0.5
    inside = (u.round() - u)[1:4].sum()
    assert scale.grad.item() == pytest.approx(float(-z + inside + (7 - z)), abs=1e-6)


def test_gradient_equals_autograd_through_straight_through_rounding():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 2
    zero_point = torch.tensor(5.0)
    grads = []
    for function in (
        lambda a, s: fake_quantize(a, s, zero_point, 4),
        lambda a, s: reference(a, s, zero_point, 15),
    ):
        a, s = x.clone().requires_grad_(True), torch.tensor(0.31, requires_grad=True)
        (function(a, s) * torch.arange(1000)).sum().backward()
        grads.append((a.grad, s.grad))
    assert torch.allclose(grads[0][0], grads[1][0], rtol=1e-4)
    assert torch.allclose(grads[0][1], grads[1][1], rtol=1e-4)


def test_per_channel_scale_has_a_gradient_per_channel():
    x = torch.randn(6, 50)
    scale = torch.full((6, 1), 0.2, requires_grad=True)
    fake_quantize(x, scale, torch.full((6, 1), 7.0), 4).sum().backward()
    single = torch.tensor(0.2, requires_grad=True)
    fake_quantize(x[3], single, torch.tensor(7.0), 4).sum().backward()
    assert scale.grad.shape == (6, 1)
    assert scale.grad[3].item() == pytest.approx(single.grad.item(), abs=1e-4)


def test_where_the_mask_is_zero_the_element_passes_with_its_gradient_and_none_for_the_scale():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, generator=generator) * 2
    mask = (torch.rand(1000, generator=generator) < 0.5).float()
    weights, zero_point = torch.arange(1000.0), torch.tensor(5.0)
    results = []
    for function in (
        lambda a, s: fake_quantize(a, s, zero_point, 3, mask),
        lambda a, s: torch.where(mask > 0, reference(a, s, zero_point, 7), a),
    ):
        a, s = x.clone().requires_grad_(True), torch.tensor(0.31, requires_grad=True)
        out = function(a, s)
        (out * weights).sum().backward()
        results.append((out.detach(), a.grad, s.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4)
    assert torch.equal(results[0][0][mask == 0], x[mask == 0])
    assert torch.equal(results[0][1][mask == 0], weights[mask == 0])
