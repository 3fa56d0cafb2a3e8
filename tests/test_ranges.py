from __future__ import annotations

import pytest
import torch

from quant.arithmetic.primitives import choose_qparams, fake_quantize, quant_max
from quant.arithmetic.range_search import NORM
from quant.arithmetic.ranges import NUM_BINS, activation_qparams, histogram, weight_qparams


def brute_force(row: torch.Tensor, bits: int) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The published search, candidate by candidate: cost, scale, zero point; first of equals."""
    low, high = min(row.min().item(), 0.0), max(row.max().item(), 0.0)
    if low < 0 < high:
        zeros = range(quant_max(bits) + 1)
    else:
        zeros = [0] if low == 0 else [quant_max(bits)]
    best = (torch.inf, None, None)
    for i in range(1, 101):
        width = (high - low) * i / 100
        for zero in zeros:
            end = -zero * width / quant_max(bits)
            qparams = choose_qparams(torch.tensor(end), torch.tensor(end + width), bits)
            cost = (fake_quantize(row, *qparams, bits) - row).abs().pow(NORM).sum().item()
            if cost < best[0]:
                best = (cost, *qparams)
    return best


def cost_of(row, scale, zero_point, bits) -> float:
    return (fake_quantize(row, scale, zero_point, bits) - row).abs().pow(NORM).sum().item()


def rows_of(kind: str) -> torch.Tensor:
    rows = torch.randn(4, 60, generator=torch.Generator().manual_seed(5))
    return {"two-sided": rows, "positive": rows.abs(), "negative": -rows.abs(), "heavy": rows**3}[
        kind
    ]


@pytest.mark.parametrize("kind", ["two-sided", "positive", "negative", "heavy"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weight_search_equals_the_full_search(kind, bits):
    rows = rows_of(kind)
    scale, zero_point = weight_qparams(rows, bits, True, "mse")
    assert scale.shape == (4, 1)
    for i, row in enumerate(rows):
        cost, best_scale, best_zero = brute_force(row, bits)
        assert cost_of(row, scale[i], zero_point[i], bits) == pytest.approx(cost, rel=1e-4)
        assert scale[i].item() == pytest.approx(best_scale.item(), rel=1e-5)
        assert zero_point[i].item() == best_zero.item()


@pytest.mark.parametrize("elements", [1, 2, 9, 17])
@pytest.mark.parametrize("bits", [1, 3])
def test_rows_of_few_elements_have_the_error_of_the_full_search(elements, bits):
    """Fewer elements than the search looks at first, or one more."""
    for row in torch.randn(3, elements, generator=torch.Generator().manual_seed(9)):
        scale, zero_point = weight_qparams(row[None], bits, True, "mse")
        found, least = cost_of(row, scale[0], zero_point[0], bits), brute_force(row, bits)[0]
        assert found == pytest.approx(least, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("kind", ["two-sided", "positive", "heavy"])
def test_each_row_is_searched_as_if_it_were_alone(kind):
    rows = torch.cat([rows_of(kind), 100 * rows_of("two-sided"), rows_of("two-sided") / 100])
    together = weight_qparams(rows, 8, True, "mse")
    alone = [weight_qparams(row[None], 8, True, "mse") for row in rows]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("shift", [-3.0, 0.0, 0.5, 3.0])
def test_a_histogram_counts_every_value_but_exact_zeros(shift):
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(100_003, generator=generator) + shift
    values[torch.rand(len(values), generator=generator) < 0.3] = 0.0
    found = histogram([values[:70_000], values[70_000:]])
    used = values[values != 0]
    assert int(found.counts.sum()) == len(used)
    width = (values.max() - values.min()) / NUM_BINS
    below = torch.searchsorted(used.sort().values, found.rows[0] + width / 2)
    assert (found.counts.cumsum(0) - below).abs().max() <= 3  # values at the border of two bins


@pytest.mark.parametrize("bits", [5, 6])
def test_coarse_to_fine_search_is_within_two_percent_of_the_full_one(bits):
    for row in rows_of("heavy")[:2]:
        scale, zero_point = weight_qparams(row[None], bits, True, "mse")
        assert cost_of(row, scale[0], zero_point[0], bits) <= 1.02 * brute_force(row, bits)[0]


def test_scaling_the_weights_scales_the_result():
    rows = rows_of("two-sided")
    scale, zero_point = weight_qparams(rows, 4, True, "mse")
    scaled, same_zero = weight_qparams(8 * rows, 4, True, "mse")
    assert torch.allclose(scaled, 8 * scale)
    assert torch.equal(zero_point, same_zero)


def test_per_tensor_is_one_row_of_all():
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(2))
    scale, zero_point = weight_qparams(weight, 3, False, "mse")
    row_scale, row_zero = weight_qparams(weight.reshape(1, -1), 3, True, "mse")
    assert scale.shape == (1, 1, 1, 1)
    assert scale.item() == row_scale.item()
    assert zero_point.item() == row_zero.item()


@pytest.mark.parametrize("kind", ["two-sided", "positive"])
@pytest.mark.parametrize("bits", [2, 4])
def test_activation_histogram_finds_the_scale_of_the_full_search(kind, bits):
    values = rows_of(kind).reshape(2, 120).clone()
    values[:, ::3] = 0.0
    scale, zero_point = activation_qparams(list(values), bits, "mse")
    _, best_scale, best_zero = brute_force(values.flatten(), bits)
    assert scale.shape == ()
    assert scale.item() == pytest.approx(best_scale.item(), rel=1e-4)
    assert zero_point.item() == best_zero.item()


def test_search_is_not_worse_than_min_max():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) ** 3
    for bits in (2, 4, 8):
        found = activation_qparams([values], bits, "mse")
        plain = activation_qparams([values], bits, "minmax")
        assert cost_of(values, *found, bits) <= cost_of(values, *plain, bits) * 1.001


def test_min_max_modes_by_hand():
    weight = torch.tensor([[-1.0, 2.0], [0.5, 3.0]])
    scale, zero_point = weight_qparams(weight, 2, True, "minmax")
    assert torch.allclose(scale, torch.tensor([[1.0], [1.0]]))
    assert zero_point.flatten().tolist() == [1.0, 0.0]
    shrunk, _ = weight_qparams(weight, 2, True, "minmax_scale")
    assert torch.allclose(shrunk, torch.tensor([[0.5], [0.5]]))
    scale, zero_point = activation_qparams(
        [torch.tensor([0.0, 1.0]), torch.tensor([4.5])], 4, "minmax"
    )
    assert (scale.item(), zero_point.item()) == (pytest.approx(0.3), 0.0)


@pytest.mark.parametrize("mode", ["mse", "minmax", "minmax_scale"])
def test_constant_and_zero_tensors_are_quantized_without_nan(mode):
    for value in (0.0, 2.5, -2.5):
        weight = torch.full((2, 9), value)
        scale, zero_point = weight_qparams(weight, 4, True, mode)
        assert torch.isfinite(fake_quantize(weight, scale, zero_point, 4)).all()
        pair = activation_qparams([weight], 4, mode)
        result = fake_quantize(weight, *pair, 4)
        assert torch.isfinite(result).all()
        if mode != "minmax_scale":
            assert torch.allclose(result, weight, rtol=1e-4)
