"""ACIQ-Mix: its moments, clipped ranges, allocated bits and corrected weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import InputError
from quant import QuantizationManager, QuantModel, read_quantized_file, restore_quantized
from quant.arithmetic.primitives import constant_qparams, dequantize, fake_quantize, quantize
from quant.arithmetic.spec import QuantSpec
from quant.methods.aciq.clipping import clip_factor
from quant.methods.aciq.density import Density, find_sources, measure_densities
from quant.methods.aciq.method import clipped_qparams
from quant.network.layers import QuantConv2d
from quant.network.model import activation_quantizers, quant_layers
from tests.conftest import TinyResNet, chain_of


def quantized(network, images, **settings) -> QuantModel:
    method = QuantizationManager().get_quantization_method("aciq_mix", **settings)
    return method.quantize_model(network, None, [images])


def fitted_density(one_sided: bool, **values) -> Density:
    defaults = {"low": -4.0, "high": 6.0, "mean": 0.5, "centre": 0.25}
    defaults |= {"mean_deviation": 0.5, "deviation": 0.75}
    numbers = {key: torch.tensor(value).double() for key, value in (defaults | values).items()}
    return Density(one_sided, **numbers)


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_moments_are_those_of_what_the_relu_reads(tiny_network, tiny_images, per_channel):
    model = chain_of(tiny_network, QuantSpec(4, 4))
    stem = model.units[0]
    found = measure_densities(stem, tiny_images, torch.device("cpu"), per_channel)
    ((quantizer, density),) = found.items()
    with torch.no_grad():
        before = tiny_network.stem[1](tiny_network.stem[0](tiny_images)).double()
    dims, keep = ((0, 2, 3), True) if per_channel else ((0, 1, 2, 3), False)
    centre = before.mean(dims, keepdim=keep)
    expected = {
        "centre": centre,
        "mean_deviation": (before - centre).abs().mean(dims, keepdim=keep),
        "deviation": (before - centre).square().mean(dims, keepdim=keep).sqrt(),
        "high": before.relu().amax(dims, keepdim=keep),
        "mean": before.relu().mean(dims, keepdim=keep),
    }
    assert quantizer in activation_quantizers(stem).values() and density.one_sided
    for name, value in expected.items():
        torch.testing.assert_close(getattr(density, name), value, rtol=1e-4, atol=1e-5)
    assert (density.low >= 0).all()


class Sums(nn.Module):
    """A tensor that is never negative without a ReLU, and one that is two-sided."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(4, 4, 1)
        self.c = nn.Linear(4, 2)

    def forward(self, x):
        return self.c((self.b(self.a(x).abs()) - 1.0).mean((2, 3)))


def test_values_that_are_never_negative_are_measured_where_they_are_positive(tiny_images):
    torch.manual_seed(0)
    network = Sums()
    model = chain_of(network, QuantSpec(4, 4))
    found = {}
    value = tiny_images
    for unit in model.units:
        found |= measure_densities(unit, value, torch.device("cpu"), False)
        value = unit(value)
    first, second = found.values()
    positive = network.a(tiny_images).abs()
    assert first.one_sided and not second.one_sided
    torch.testing.assert_close(first.mean_deviation.float(), positive.mean(), rtol=1e-4, atol=0)
    assert first.centre == 0


@pytest.mark.parametrize("method", ["laplace", "gauss"])
def test_the_range_of_a_one_sided_density_ends_at_centre_plus_clip(method):
    density = fitted_density(True, low=0.0, high=100.0)
    scale, zero_point = clipped_qparams(density, torch.tensor(4), method, "exact")
    spread = 0.5 if method == "laplace" else 0.75
    clip = spread * clip_factor(method, 4, True, "exact")
    assert zero_point == 0
    assert 15 * scale.item() == pytest.approx(0.25 + clip, rel=1e-6)


def test_a_centre_below_zero_adds_nothing_and_the_range_ends_with_the_data():
    clip = 0.5 * clip_factor("laplace", 4, True, "exact")
    below = fitted_density(True, low=0.0, high=100.0, centre=-3.0)
    scale, _ = clipped_qparams(below, torch.tensor(4), "laplace", "exact")
    assert 15 * scale.item() == pytest.approx(clip, rel=1e-6)
    short = fitted_density(True, low=0.0, high=1.0)
    scale, _ = clipped_qparams(short, torch.tensor(4), "laplace", "exact")
    assert 15 * scale.item() == pytest.approx(1.0, rel=1e-6)


def test_the_range_of_a_two_sided_density_is_centred_and_none_takes_the_ends():
    clip = 0.5 * clip_factor("laplace", 4, False, "exact")
    scale, zero_point = clipped_qparams(fitted_density(False), torch.tensor(4), "laplace", "exact")
    assert 15 * scale.item() == pytest.approx(2 * clip, rel=1e-6)
    assert zero_point == round((clip - 0.25) / scale.item())
    scale, _ = clipped_qparams(fitted_density(False), torch.tensor(4), "none", "exact")
    assert 15 * scale.item() == pytest.approx(10.0)


@pytest.mark.parametrize("value", [-2.5, -1e-3, 0.0, 0.7])
def test_zero_bits_give_the_mean(value):
    mean = torch.tensor(value)
    scale, zero_point = constant_qparams(mean)
    codes = quantize(torch.randn(50), scale, zero_point, torch.tensor(0))
    assert codes.unique().tolist() == [0]
    torch.testing.assert_close(dequantize(codes[0], scale, zero_point), mean, rtol=0, atol=2e-8)
    density = fitted_density(False, mean=value)
    pair = clipped_qparams(density, torch.tensor(0), "laplace", "exact")
    assert torch.allclose(fake_quantize(torch.randn(50), *pair, torch.tensor(0)), mean, atol=2e-8)


def test_channels_of_one_tensor_may_have_different_bits():
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    bits = torch.tensor([2, 4, 8]).reshape(1, 3, 1)
    scale = torch.tensor([1.0, 0.25, 0.01]).reshape(1, 3, 1)
    zero_point = torch.tensor([1.0, 8.0, 128.0]).reshape(1, 3, 1)
    whole = fake_quantize(x, scale, zero_point, bits)
    for channel, number in enumerate((2, 4, 8)):
        alone = fake_quantize(
            x[:, channel], scale[0, channel, 0], zero_point[0, channel, 0], number
        )
        assert torch.equal(whole[:, channel], alone)


def test_corrected_weights_have_the_mean_and_the_spread_of_the_float_ones(tiny_network):
    for variance in (False, True):
        layer = QuantConv2d(tiny_network.second.conv1, 3, per_channel=True)
        layer.quantize_to_nearest("minmax")
        codes = layer.codes.clone()
        before = layer.effective_weight()
        layer.match_moments(mean=True, variance=variance)
        weight, after = layer.weight.flatten(1), layer.effective_weight().flatten(1)
        assert torch.equal(layer.codes, codes)
        assert (weight.mean(1) - before.flatten(1).mean(1)).abs().max() > 1e-4
        torch.testing.assert_close(after.mean(1), weight.mean(1), rtol=0, atol=1e-7)
        same = torch.allclose(after.std(1), weight.std(1), rtol=1e-5)
        assert same == variance


def test_biases_take_up_the_shift_of_the_mean_outputs(tiny_network, tiny_images):
    outputs = {}
    for corrected in (False, True):
        model = quantized(
            tiny_network,
            tiny_images,
            num_bits=2,
            output_correction=corrected,
            bias_correction=False,
        )
        with torch.no_grad():
            outputs[corrected] = model(tiny_images).mean(0)
    expected = tiny_network(tiny_images).mean(0).detach()
    assert (outputs[False] - expected).abs().max() > 0.01
    torch.testing.assert_close(outputs[True], expected, rtol=1e-4, atol=1e-5)


def test_a_layer_without_bias_gets_one_and_is_loaded_with_it(tiny_images, tmp_path):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, bias=False)
            self.head = nn.Linear(4, 2, bias=False)

        def forward(self, x):
            return self.head(F.relu(self.conv(x)).mean((2, 3)))

    model = quantized(Bare(), tiny_images, num_bits=3)
    assert all(layer.bias is not None for layer in quant_layers(model).values())
    model.save(tmp_path / "model.pt", {})
    loaded = restore_quantized(read_quantized_file(tmp_path / "model.pt"), Bare())
    with torch.no_grad():
        assert torch.equal(loaded(tiny_images), model(tiny_images))


def test_the_average_bits_of_every_layer_stay_within_the_budget(tiny_network, tiny_images):
    for ratio in (0.0, 0.5, 1.0):
        model = quantized(
            tiny_network, tiny_images, num_bits=3, per_channel_act=True, mix_ratio=ratio
        )
        inner = [layer for layer in quant_layers(model).values() if layer.bits.dim()]
        acts = [q for q in activation_quantizers(model).values() if q.bits.dim()]
        assert len(inner) == 5 and len(acts) == 4
        for part in [*inner, *acts]:
            assert part.bits.double().mean() <= 3
            assert (len(part.bits.unique()) == 1) or ratio > 0


def test_the_bits_of_each_channel_are_in_the_saved_model(tiny_network, tiny_images, tmp_path):
    model = quantized(tiny_network, tiny_images, num_bits=3, per_channel_act=True)
    model.save(tmp_path / "model.pt", {})
    loaded = restore_quantized(read_quantized_file(tmp_path / "model.pt"), TinyResNet())
    for before, after in zip(
        quant_layers(model).values(), quant_layers(loaded).values(), strict=True
    ):
        assert torch.equal(before.bits, after.bits)
    with torch.no_grad():
        assert torch.equal(loaded(tiny_images), model(tiny_images))


def test_auto_is_not_worse_than_any_of_its_three_on_the_tensor_it_chooses_for(
    tiny_network, tiny_images
):
    stem_output = F.relu(tiny_network.stem[1](tiny_network.stem[0](tiny_images))).detach()
    errors = {}
    for method in ("laplace", "gauss", "none", "auto"):
        model = quantized(tiny_network, tiny_images, aciq_method=method, n_bits_a=3)
        quantizer = find_sources(model.units[0])[0].quantizer
        errors[method] = float((quantizer(stem_output) - stem_output).square().mean())
    assert errors["auto"] == pytest.approx(min(errors.values()), rel=1e-5)
    assert len({round(error, 9) for error in errors.values()}) == 3


def test_the_density_of_a_convolutional_network_is_the_published_one(tiny_network, tiny_images):
    plain = quantized(tiny_network, tiny_images).state_dict()
    laplace = quantized(tiny_network, tiny_images, aciq_method="laplace").state_dict()
    assert all(torch.equal(plain[key], value) for key, value in laplace.items())


def test_labels_and_order_of_images_play_no_part(tiny_network, tiny_images):
    plain = quantized(tiny_network, tiny_images).state_dict()
    flipped = quantized(tiny_network, tiny_images.flip(0)).state_dict()
    for key, value in plain.items():
        torch.testing.assert_close(flipped[key], value, rtol=1e-5, atol=1e-7)


def test_outputs_of_convolutions_are_quantized_and_sums_are_not(tiny_network, tiny_images):
    model = quantized(tiny_network, tiny_images, act_points="outputs")
    quantizers = activation_quantizers(model)
    assert len(quantizers) == 6  # stem, two per block, the projection
    assert [q.num_bits for q in quantizers.values()] == [8, 4, 4, 4, 4, 4]
    sides = [bool(source.has_relu) for unit in model.units for source in find_sources(unit)]
    assert sorted(sides) == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"mix_weights": True, "channel_wise": False},
            "channel_wise must be on for mix_weights, got channel_wise off",
        ),
        ({"mix_acts": True}, "per_channel_act must be on for mix_acts, got per_channel_act off"),
        (
            {"variance_correction": True, "channel_wise": False},
            "channel_wise must be on for variance_correction, got channel_wise off",
        ),
        ({"mix_weights": True, "n_bits_w": 5}, "bits must be at most 4 for mix_weights, got 5"),
        ({"aciq_method": "mix"}, "aciq_method must be one of laplace, gauss, auto, none"),
        ({"mix_ratio": 1.5}, "mix_ratio must be at most 1, got 1.5"),
        ({"num_bits": 3, "n_bits_a": 4}, "n_bits_a must be left out or agree with num_bits = 3"),
    ],
)
def test_a_bad_setting_is_named(settings, text):
    with pytest.raises(InputError, match=text):
        QuantizationManager().get_quantization_method("aciq_mix", **settings)
