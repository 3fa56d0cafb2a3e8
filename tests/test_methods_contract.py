"""What every registered method must do; a new method is tested by being registered."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from common.errors import InputError
from quant import (
    BaseQuantizationMethod,
    QuantizationManager,
    QuantModel,
    read_quantized_file,
    register_method,
    restore_quantized,
)
from quant.network.model import activation_quantizers, quant_layers
from quant.settings import check_setting
from tests.conftest import TinyResNet

METHODS = QuantizationManager().list_available_methods()
QUICK = {
    "powell_maxfev": 40,
    "iters_w": 60,
    "lr_round": 5e-2,
    "batch_size_recon": 16,
    "num_samples": 48,
}


def make(name: str, **settings) -> BaseQuantizationMethod:
    cls = QuantizationManager().get_method_class(name)
    own = {field.name for field in dataclasses.fields(cls.settings_class)}
    quick = {key: value for key, value in QUICK.items() if key in own}
    return QuantizationManager().get_quantization_method(name, **{**quick, **settings})


@pytest.fixture(params=METHODS)
def name(request) -> str:
    return request.param


def test_the_given_networks_are_unchanged(name, tiny_network, tiny_images):
    fp_model = copy.deepcopy(tiny_network)
    before = copy.deepcopy(tiny_network.state_dict())
    make(name).quantize_model(tiny_network, fp_model, [tiny_images])
    for network in (tiny_network, fp_model):
        after = network.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("channel_wise", [True, False])
def test_dequantized_weights_have_at_most_2_to_the_bits_values(
    name, bits, channel_wise, tiny_network, tiny_images
):
    method = make(name, n_bits_w=bits, channel_wise=channel_wise)
    result = method.quantize_model(tiny_network, None, [tiny_images])
    layers = quant_layers(result)
    assert len(layers) == 7
    for layer in layers.values():
        weight = layer.effective_weight()
        per_row = channel_wise or layer.offset is not None  # an offset moves a channel's levels
        groups = weight.flatten(1) if per_row else weight.reshape(1, -1)
        assert layer.scale.numel() == (len(weight) if channel_wise else 1)
        allowed = 2 ** layer.bits.flatten().expand(len(groups))
        assert all(
            len(row.unique()) <= most for row, most in zip(groups, allowed.tolist(), strict=True)
        )
    averages = [layer.bits.double().mean().item() for layer in layers.values()]
    assert averages == [8, bits, bits, bits, bits, bits, 8]


@pytest.mark.parametrize("bits", [2, 4])
def test_quantized_activations_have_at_most_2_to_the_bits_values(
    name, bits, tiny_network, tiny_images
):
    method = make(name, n_bits_a=bits, disable_8bit_head_stem=True)
    result = method.quantize_model(tiny_network, None, [tiny_images])
    seen = []
    for quantizer in activation_quantizers(result).values():
        quantizer.register_forward_hook(lambda *arguments: seen.append(arguments[-1].unique()))
    with torch.no_grad():
        result(tiny_images)
    assert len(seen) == 5
    assert all(len(values) <= 2**bits for values in seen)


def test_same_seed_same_bytes_and_finite_output(name, tiny_network, tiny_images):
    states = [
        make(name, seed=7).quantize_model(tiny_network, None, [tiny_images]).state_dict()
        for _ in range(2)
    ]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    result = make(name).quantize_model(tiny_network, None, [tiny_images])
    with torch.no_grad():
        assert torch.isfinite(result(tiny_images)).all()


def test_the_batching_of_the_loader_plays_no_part(name, tiny_network, tiny_images):
    whole = make(name).quantize_model(tiny_network, None, [tiny_images]).state_dict()
    labels = torch.zeros(48, dtype=torch.int64)
    batches = list(zip(tiny_images.split(10), labels.split(10), strict=True))
    parts = make(name).quantize_model(tiny_network, None, batches).state_dict()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_eight_bits_are_close_to_the_float_network(name, tiny_network, tiny_images):
    result = make(name, n_bits_w=8, n_bits_a=8).quantize_model(tiny_network, None, [tiny_images])
    with torch.no_grad():
        expected, got = tiny_network(tiny_images), result(tiny_images)
    assert (got - expected).abs().max() < 0.05 * expected.std()


def test_sixteen_bits_are_closer_than_eight(name, tiny_network, tiny_images):
    with torch.no_grad():
        expected = tiny_network(tiny_images)
        errors = [
            (
                make(name, n_bits_w=bits, n_bits_a=bits).quantize_model(
                    tiny_network, None, [tiny_images]
                )(tiny_images)
                - expected
            )
            .abs()
            .max()
            .item()
            for bits in (8, 12, 16)
        ]
    assert errors[0] > errors[1] > errors[2]


def test_saved_and_loaded_it_gives_the_same_bits(name, tiny_network, tiny_images, tmp_path):
    result = make(name, n_bits_w=3).quantize_model(tiny_network, None, [tiny_images])
    result.save(tmp_path / "model.pt", {"arch": "tiny"})
    content = read_quantized_file(tmp_path / "model.pt")
    torch.manual_seed(99)
    loaded = restore_quantized(content, TinyResNet())
    assert content["metadata"] == {"arch": "tiny"}
    assert isinstance(loaded, QuantModel)
    with torch.no_grad():
        assert torch.equal(loaded(tiny_images), result(tiny_images))
    assert "weight" not in {key.split(".")[-1] for key in content["state_dict"]}


def test_weights_only_and_activations_only(name, tiny_network, tiny_images):
    for bits in ({"n_bits_w": 32}, {"n_bits_a": 32}):
        result = make(name, **bits).quantize_model(tiny_network, None, [tiny_images])
        with torch.no_grad():
            assert torch.isfinite(result(tiny_images)).all()


def test_not_worse_than_round_to_nearest_on_the_calibration_images(name, tiny_network, tiny_images):
    with torch.no_grad():
        expected = tiny_network(tiny_images)
        errors = []
        for method in ("rtn", name):
            result = make(method, n_bits_w=2, n_bits_a=4).quantize_model(
                tiny_network, None, [tiny_images]
            )
            errors.append((result(tiny_images) - expected).square().mean().item())
    assert errors[1] <= errors[0]


def test_name_params_and_a_default_configuration(name):
    method = QuantizationManager().get_quantization_method(name)
    assert method.get_method_name() == name
    params = method.get_quantization_params()
    assert params["n_bits_w"] == 4
    assert method.summary


def test_every_setting_has_a_help_text_and_a_valid_default(name):
    for field in dataclasses.fields(QuantizationManager().get_method_class(name).settings_class):
        assert field.metadata["help"]
        assert str(field.type) in (
            *("int", "float", "bool", "str"),
            *("int | None", "float | None", "bool | None", "str | None"),
        )
        assert check_setting(field, field.default) == field.default


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"n_bits_w": 0}, r"n_bits_w must be between 1 and 16, or 32 \(not quantized\), got 0"),
        ({"n_bits_a": 17}, r"n_bits_a must be between 1 and 16, or 32 \(not quantized\), got 17"),
        ({"n_bits_w": 4.0}, r"n_bits_w must be of type int, got 4\.0"),
        ({"channel_wise": 1}, "channel_wise must be of type bool, got 1"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"seed": -1}, "seed must be between 0 and 2\\^32 - 1, got -1"),
        ({"iters": 3}, "setting of .* must be a known name, got 'iters'; closest: "),
    ],
)
def test_a_bad_setting_is_named(name, settings, text):
    with pytest.raises(InputError, match=text):
        QuantizationManager().get_quantization_method(name, **settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"prob": 1.5}, "prob must be at most 1, got 1.5"),
        ({"warmup": float("nan")}, "warmup must be finite, got nan"),
        ({"lr": float("inf")}, "lr must be finite, got inf"),
        ({"lr": -1}, "lr must be at least 0, got -1.0"),
        ({"init_wmode": "max"}, "init_wmode must be one of mse, minmax, minmax_scale, got 'max'"),
    ],
)
def test_a_bad_setting_of_the_reconstruction_is_named(settings, text):
    with pytest.raises(InputError, match=text):
        QuantizationManager().get_quantization_method("adaround", **settings)


def test_an_unknown_method_is_answered_with_the_known_ones():
    with pytest.raises(InputError) as caught:
        QuantizationManager().get_quantization_method("adaruond")
    text = str(caught.value)
    assert text.startswith("quant_method must be a known name, got 'adaruond'; closest: adaround")
    assert all(method in text for method in METHODS)


def test_the_manager_of_the_main_script_is_this_one():
    from main_imagenet import QuantizationManager as Given

    assert Given().list_available_methods() == METHODS == sorted(METHODS)


def test_a_taken_name_cannot_be_registered_again():
    class Impostor(BaseQuantizationMethod):
        name = "rtn"
        summary = "another"

        def _quantize(self, *arguments):
            """Never called."""

    with pytest.raises(ValueError, match="method name 'rtn' is taken by RoundToNearest"):
        register_method(Impostor)
