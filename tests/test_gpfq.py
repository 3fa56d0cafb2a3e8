"""GPFQ: against a loop written from the paper, its alphabets, and what its options promise."""

import math

import pytest
import torch
from torch import nn

from common.errors import InputError
from quant import QuantizationManager, QuantModel, read_quantized_file, restore_quantized
from quant.methods.gpfq.alphabet import Sparsity, make_alphabet, radius
from quant.methods.gpfq.path_following import Grams, follow_path, patches
from quant.network.layers import QuantConv2d, QuantLinear
from quant.network.model import activation_quantizers, quant_layers
from tests.conftest import TinyResNet


def quantized(network, images, **settings) -> QuantModel:
    method = QuantizationManager().get_quantization_method("gpfq", **settings)
    return method.quantize_model(network, None, [images])


def paper_loop(
    w: list[float], x: torch.Tensor, y: torch.Tensor, step: float, top: int
) -> list[int]:
    """One neuron, from the recursion of the paper; levels -top .. top times step."""
    u, codes = torch.zeros(len(x), dtype=x.dtype), []
    for t, weight in enumerate(w):
        u = u + weight * x[:, t]
        power = y[:, t] @ y[:, t]
        v = (y[:, t] @ u) / power if power > 0 else torch.tensor(0.0)
        code = min(max(math.floor(float(v) / step + 0.5), -top), top)
        u = u - code * step * y[:, t]
        codes.append(code)
    return codes


def inputs(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer reads in the float network, and something near it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64).relu()
    return x, x + 0.1 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def grams_of(x: torch.Tensor, y: torch.Tensor) -> Grams:
    layer = QuantLinear(nn.Linear(x.shape[1], 1), 4, True)
    grams = Grams.empty(layer)
    for some_x, some_y in zip(x.split(7), y.split(7), strict=True):
        grams.add(some_x, some_y, layer)
    return grams


@pytest.mark.parametrize("columns", [5, 64, 150])
def test_the_choices_are_those_of_the_papers_loop(columns):
    x, y = inputs(90, columns)
    y[:, 3] = 0.0  # a column that is never read
    weight = torch.randn(6, columns, generator=torch.Generator().manual_seed(1)).double()
    alphabet = make_alphabet(radius(weight, "mean_max", 1.0), 3, "published", None, None)
    grams = grams_of(x, y)
    codes = follow_path(weight, grams.cross[0], grams.own[0], alphabet)
    step = alphabet.step.item()
    expected = [paper_loop(row.tolist(), x, y, step, 4) for row in weight]
    assert codes.long().tolist() == expected
    assert (codes[:, 3] == 0).all()


def test_the_error_is_below_that_of_rounding_to_nearest_and_within_its_bound():
    x, _ = inputs(300, 80)
    weight = torch.randn(10, 80, generator=torch.Generator().manual_seed(2)).double()
    alphabet = make_alphabet(2 * radius(weight, "per_channel", 1.0), 4, "published", None, None)
    grams = grams_of(x, x)
    levels = alphabet.levels(follow_path(weight, grams.cross[0], grams.own[0], alphabet))
    nearest = alphabet.levels(alphabet.codes(weight))
    errors = [(x @ (weight - q).T).square().sum(0) for q in (levels, nearest)]
    assert errors[0].sum() < 0.9 * errors[1].sum()
    bound = alphabet.step.flatten() ** 2 / 4 * x.square().sum()
    assert (errors[0] <= bound).all()  # the alphabet reaches twice the weights: none saturates


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding=2),
        nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.Conv2d(4, 6, (1, 3), padding="same"),
    ],
)
def test_patches_times_weights_are_what_the_convolution_computes(conv):
    layer = QuantConv2d(conv, 4, per_channel=True)
    images = torch.randn(3, 4, 7, 9)
    columns = patches(images, layer)
    weight = conv.weight.detach().flatten(1).reshape(conv.groups, -1, columns.shape[1])
    with torch.no_grad():
        expected = conv(images) - conv.bias.reshape(1, -1, 1, 1)
    got = (weight @ columns).reshape(conv.out_channels, 3, *expected.shape[2:]).transpose(0, 1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_the_number_of_levels(bits):
    reach, values = torch.tensor([[1.0]]), torch.linspace(-3, 3, 20001).double().reshape(1, -1)
    for kind, most in (("published", 2**bits + 1), ("bits", 2**bits)):
        alphabet = make_alphabet(reach, bits, kind, None, None)
        levels = alphabet.levels(alphabet.codes(values)).unique()
        assert len(levels) == most and 0 in levels
        if bits > 1:
            assert levels.max() <= 1 + 1e-6
        sparse = make_alphabet(reach, bits, kind, Sparsity("L0", 0.05), None)
        if bits > 1 or kind == "published":
            found = sparse.levels(sparse.codes(values)).unique()
            assert len(found) == (2**bits + 3 if kind == "published" else 2**bits - 1)


def test_sparse_rounding():
    reach = torch.tensor([[1.0]])
    soft = make_alphabet(reach, 3, "published", Sparsity("L1", 0.3), None)
    values = torch.tensor([[-1.0, -0.42, -0.4, 0.0, 0.44, 0.43, 0.9]]).double()
    shrunk = values.sign() * (values.abs() - 0.3).clamp(min=0)
    assert torch.equal(soft.codes(values), (shrunk / 0.25 + 0.5).floor())
    hard = make_alphabet(reach, 3, "published", Sparsity("L0", 0.2), None)
    levels = hard.levels(hard.codes(values)).flatten()
    torch.testing.assert_close(
        levels, torch.tensor([-1.0, -0.4, -0.4, 0.0, 0.4, 0.4, 0.8]).double(), rtol=0, atol=0.11
    )
    assert hard.levels(
        hard.codes(torch.tensor([[0.2, 0.21, -0.2001, 1.7]], dtype=torch.float64))
    ).abs().flatten().tolist() == (pytest.approx([0.0, 0.2, 0.2, 1.0], abs=1e-6))


def test_stochastic_rounding_is_unbiased_and_repeatable():
    make = lambda seed: make_alphabet(  # noqa: E731
        torch.tensor([[1.0]]), 3, "published", None, torch.Generator().manual_seed(seed)
    )
    values = torch.full((20000, 1), 0.33).double()
    one, same, other = (make(seed).codes(values) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert set(one.unique().tolist()) == {1.0, 2.0}
    assert (0.25 * one).mean().item() == pytest.approx(0.33, abs=0.003)


def test_radii():
    weight = torch.tensor([[1.0, -4.0], [2.0, 0.0], [0.5, -6.0]])
    assert radius(weight, "mean_max", 1.0).item() == 4.0
    assert radius(weight, "median_max", 1.0).item() == 4.0
    assert radius(weight, "per_channel", 1.0).flatten().tolist() == [4.0, 2.0, 6.0]
    assert radius(weight, "per_channel", 0.5).flatten().tolist() == [2.5, 1.0, 3.25]


def test_the_bias_takes_up_the_mean_residual(tiny_network, tiny_images):
    settings = {"n_bits_w": 2, "disable_8bit_head_stem": True}
    plain = quantized(tiny_network, tiny_images, **settings)
    shifted = quantized(tiny_network, tiny_images, gpfq_bias_correction=True, **settings)
    with torch.no_grad():
        expected = tiny_network(tiny_images).mean(0)
        got = [model(tiny_images).mean(0) for model in (plain, shifted)]
    assert (got[0] - expected).abs().max() > 5e-3
    torch.testing.assert_close(got[1], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"alphabet": "published", "n_bits_w": 8},
        {"alphabet": "published", "regularizer": "L0", "lambda_": 0.01},
        {"regularizer": "L1", "lambda_": 0.01, "stochastic_rounding": True},
        {"radius": "median_max", "act_order": True, "fold_bn": False, "n_bits_a": 4},
    ],
)
def test_every_option_is_saved_and_loaded(settings, tiny_network, tiny_images, tmp_path):
    model = quantized(tiny_network, tiny_images, **settings)
    model.save(tmp_path / "model.pt", {})
    loaded = restore_quantized(read_quantized_file(tmp_path / "model.pt"), TinyResNet())
    with torch.no_grad():
        assert torch.equal(loaded(tiny_images), model(tiny_images))
    for layer in quant_layers(model).values():
        assert int(layer.codes.max()) < 2 ** int(layer.bits)


def test_more_sparse_with_a_larger_threshold(tiny_network, tiny_images):
    shares = []
    for threshold in (0.0, 0.02, 0.1):
        model = quantized(tiny_network, tiny_images, regularizer="L1", lambda_=threshold)
        weights = [layer.effective_weight() for layer in quant_layers(model).values()]
        shares.append(sum(int((w == 0).sum()) for w in weights))
    assert shares[0] < shares[1] < shares[2]


def test_a_threshold_of_zero_changes_nothing(tiny_network, tiny_images):
    plain = quantized(tiny_network, tiny_images).state_dict()
    soft = quantized(tiny_network, tiny_images, regularizer="L1", lambda_=0.0).state_dict()
    assert all(torch.equal(plain[key], soft[key]) for key in plain)


def test_separate_scalars(tiny_network, tiny_images):
    base = quantized(tiny_network, tiny_images, scalar=1.0)
    other = quantized(tiny_network, tiny_images, scalar=1.0, mlp_scalar=1.5)
    for (name, one), two in zip(
        quant_layers(base).items(), quant_layers(other).values(), strict=True
    ):
        factor = 1.5 if isinstance(one, QuantLinear) else 1.0
        torch.testing.assert_close(two.scale, factor * one.scale, msg=name)


def test_activations_are_float_unless_asked_for(tiny_network, tiny_images):
    assert not activation_quantizers(quantized(tiny_network, tiny_images))
    model = quantized(tiny_network, tiny_images, n_bits_a=4)
    assert len(activation_quantizers(model)) == 5


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"n_bits_w": 0}, "n_bits_w must be between 1 and 16"),
        ({"scalar": 0.0}, r"scalar must be above 0 \(1e-9\.\.1e6\), got 0\.0"),
        ({"scalar": -1.0}, r"scalar must be above 0 \(1e-9\.\.1e6\), got -1\.0"),
        ({"regularizer": "L1", "lambda_": -0.1}, r"lambda must be at least 0, got -0\.1"),
        ({"regularizer": "L1"}, "must be given together, got only regularizer"),
        ({"lambda_": 0.1}, "must be given together, got only lambda"),
        (
            {"regularizer": "L0", "lambda_": 0.1, "n_bits_w": 1},
            "n_bits_w must be at least 2 with regularizer L0, got 1",
        ),
        (
            {"radius": "mean_max", "channel_wise": True},
            "channel_wise must be left out or agree with radius = mean_max, got True",
        ),
    ],
)
def test_a_bad_setting_is_named(settings, text):
    with pytest.raises(InputError, match=text):
        QuantizationManager().get_quantization_method("gpfq", **settings)


def test_more_groups_than_channels_are_named(tiny_network, tiny_images):
    tiny_network.first.conv1.groups = 9
    with pytest.raises(
        InputError, match=r"must run on images .* groups=9.*in module 'first.conv1'"
    ):
        quantized(tiny_network, tiny_images)


def test_a_threshold_beyond_the_alphabet_is_named(tiny_network, tiny_images):
    with pytest.raises(InputError, match=r"lambda must be below the reach .* in stem\.0"):
        quantized(tiny_network, tiny_images, regularizer="L0", lambda_=50.0)
