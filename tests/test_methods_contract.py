"""What every registered method must do; a new method is tested by being registered."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch
from torch import nn

from common.errors import InputError
from pipeline.flags import build_parser
from quant import (
    BaseQuantizationMethod,
    QuantizationManager,
    QuantModel,
    read_quantized_file,
    register_method,
    restore_quantized,
)
from quant.arithmetic.spec import NOT_QUANTIZED
from quant.network.model import FLOAT_SPEC, activation_quantizers, quant_layers, set_state
from quant.network.targets import bias_steps
from quant.registry import method_settings
from quant.settings import RESERVED_NAMES, MethodSettings, check_setting, flag_name, setting
from tests.conftest import TinyResNet, chain_of, make_tiny_images, make_tiny_network

METHODS = QuantizationManager().list_available_methods()
SEARCHED = {"init_wmode": "mse", "init_amode": "mse"}
QUICK = {
    **dict.fromkeys(SEARCHED, "minmax"),
    "p_steps": 1,
    "powell_maxfev": 12,
    "gradient_steps": 3,
    "iters_w": 10,
    "lr_round": 0.3,
    "batch_size_recon": 16,
    "num_samples": 48,
}
QUICK_DISTILL = {"distill_steps": 10, "distill_batch": 16}  # of a method that always distils
QUICK_CORRECTION = {"dc_steps": 3}  # where the distribution correction is on


def fields_of(name: str) -> dict[str, dataclasses.Field]:
    cls = QuantizationManager().get_method_class(name)
    return {field.name: field for field in dataclasses.fields(cls.settings_class)}


def leaves_activations_in_float(name: str) -> bool:
    return fields_of(name)["n_bits_a"].metadata["choices"] == (NOT_QUANTIZED,)


def known_to(name: str, settings: dict) -> dict:
    """Those of the settings that the method has."""
    return {key: value for key, value in settings.items() if key in fields_of(name)}


def make(name: str, **settings) -> BaseQuantizationMethod:
    """The method in a quick form; bits of activations are dropped where it leaves them in float."""
    own = fields_of(name)
    quick = known_to(name, QUICK)
    if "lamb_c" in own and own["lamb_c"].default is not None:
        quick |= QUICK_CORRECTION
    if own["distill_steps"].default > 0:
        quick |= QUICK_DISTILL
    if leaves_activations_in_float(name):
        settings.pop("n_bits_a", None)
    return QuantizationManager().get_quantization_method(name, **{**quick, **settings})


MADE: dict[tuple[str, MethodSettings], QuantModel] = {}


def shared(name: str, **settings) -> QuantModel:
    """The quantized tiny network, made once for each setting; tests must not change it."""
    method = make(name, **settings)
    key = name, method.settings
    if key not in MADE:
        MADE[key] = method.quantize_model(make_tiny_network(), None, [make_tiny_images()])
    return MADE[key]


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


@pytest.mark.parametrize(
    ("bits", "channel_wise"), [(2, True), (3, True), (4, True), (2, False), (4, False)]
)
def test_dequantized_weights_have_at_most_2_to_the_bits_values(name, bits, channel_wise):
    layers = quant_layers(shared(name, n_bits_w=bits, channel_wise=channel_wise))
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
    if leaves_activations_in_float(name):
        with pytest.raises(InputError, match="leaves the activations in float"):
            QuantizationManager().get_quantization_method(name, n_bits_a=bits)
        return
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
    first = shared(name)
    second = make(name).quantize_model(tiny_network, None, [tiny_images])
    one, other = first.state_dict(), second.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)
    with torch.no_grad():
        assert torch.isfinite(first(tiny_images)).all()


def test_the_batching_of_the_loader_plays_no_part(name, tiny_network, tiny_images):
    whole = shared(name).state_dict()
    labels = torch.zeros(48, dtype=torch.int64)
    batches = list(zip(tiny_images.split(10), labels.split(10), strict=True))
    parts = make(name).quantize_model(tiny_network, None, batches).state_dict()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_eight_bits_are_close_to_the_float_network(name, tiny_network, tiny_images):
    result = shared(name, n_bits_w=8, n_bits_a=8)
    with torch.no_grad():
        expected, got = tiny_network(tiny_images), result(tiny_images)
    assert (got - expected).abs().max() < 0.05 * expected.std()


def test_sixteen_bits_are_closer_than_eight(name, tiny_network, tiny_images):
    with torch.no_grad():
        expected = tiny_network(tiny_images)
        errors = [
            (shared(name, n_bits_w=bits, n_bits_a=bits)(tiny_images) - expected).abs().max().item()
            for bits in (8, 12, 16)
        ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("bits", "vnni"), [(4, False), (8, False), (8, True)])
def test_for_a_runtime_weights_are_small_integers_and_the_image_is_quantized(name, bits, vnni):
    settings = {"n_bits_w": bits, "n_bits_a": 8, "quant_target": "openvino", "target_vnni": vnni}
    if leaves_activations_in_float(name):
        with pytest.raises(InputError, match="n_bits_a must be 8 with quant_target"):
            make(name, **settings)
        return
    model = shared(name, **settings)
    levels = [layer.codes - layer.zero_point for layer in quant_layers(model).values()]
    assert max(float(level.abs().max()) for level in levels) <= (128 if vnni else 64)
    assert all(layer.offset is None and layer.gap is None for layer in quant_layers(model).values())
    quantizers = activation_quantizers(model)
    assert len(quantizers) == len(activation_quantizers(shared(name, n_bits_a=8))) + 1
    assert all(q.quantized and int(q.bits) == 8 for q in quantizers.values())
    for layer, step in bias_steps(list(model.units)).items():
        if layer.bias is not None:
            steps = (layer.bias / step)[step > 0]
            assert torch.allclose(steps, steps.round(), atol=1e-3, rtol=1e-6)
            assert len(steps) > 0


def test_symmetric_weights_have_the_middle_code_as_zero_point(name):
    model = shared(name, n_bits_w=4, symmetric=True, **known_to(name, {"mix_weights": False}))
    for layer in quant_layers(model).values():
        middle = 2.0 ** (layer.bits - 1)
        assert torch.equal(layer.zero_point, middle.expand_as(layer.zero_point))


def test_saved_and_loaded_it_gives_the_same_bits(name, tiny_images, tmp_path):
    result = shared(name, n_bits_w=3)
    result.save(tmp_path / "model.pt", {"arch": "tiny"})
    content = read_quantized_file(tmp_path / "model.pt")
    torch.manual_seed(99)
    loaded = restore_quantized(content, TinyResNet())
    assert content["metadata"] == {"arch": "tiny"}
    assert isinstance(loaded, QuantModel)
    with torch.no_grad():
        assert torch.equal(loaded(tiny_images), result(tiny_images))
    assert "weight" not in {key.split(".")[-1] for key in content["state_dict"]}


def test_without_weight_bits_only_the_activations_differ_from_the_float_network(
    name, tiny_network, tiny_images
):
    result = make(name, n_bits_w=32).quantize_model(tiny_network, None, [tiny_images])
    assert quant_layers(result) == {}
    set_state(result, weights=True, activations=False)
    with torch.no_grad():
        expected = tiny_network(tiny_images)
        assert torch.allclose(result(tiny_images), expected, atol=1e-5 * float(expected.std()))


def test_without_activation_bits_only_the_weights_differ_from_the_float_network(
    name, tiny_network, tiny_images
):
    result = make(name, n_bits_a=32).quantize_model(tiny_network, None, [tiny_images])
    assert activation_quantizers(result) == {}
    plain = chain_of(tiny_network, dataclasses.replace(FLOAT_SPEC, fold=result.spec.fold))
    for key, layer in quant_layers(result).items():
        origin = plain.get_submodule(key)
        origin.weight.data = layer.effective_weight()
        origin.bias = None if layer.bias is None else nn.Parameter(layer.bias)
    with torch.no_grad():
        expected = plain(tiny_images)
        assert torch.allclose(result(tiny_images), expected, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize(
    "claimant",
    [name for name in METHODS if QuantizationManager().get_method_class(name).beats_rtn],
)
def test_a_method_that_claims_it_is_not_worse_than_rtn_on_the_calibration_images(
    claimant, tiny_network, tiny_images
):
    longer = {"iters_w": 60, "lr_round": 0.05, **SEARCHED}
    with torch.no_grad():
        expected = tiny_network(tiny_images)
        errors = []
        for method in ("rtn", claimant):
            result = shared(method, n_bits_w=2, n_bits_a=4, **known_to(method, longer))
            errors.append((result(tiny_images) - expected).square().mean().item())
    assert errors[1] <= errors[0]


def test_printing_the_model_shows_the_bits(name):
    text = str(shared(name, n_bits_w=3))
    assert "(conv1): QuantConv2d(weight 8x8x3x3, 3" in text and "8 bits" in text


def test_name_params_and_a_default_configuration(name):
    method = QuantizationManager().get_quantization_method(name)
    assert method.get_method_name() == name
    params = method.get_quantization_params()
    assert params["n_bits_w"] == 4
    assert method.summary


def test_every_default_is_valid(name):
    for field in fields_of(name).values():
        assert check_setting(field, field.default) == field.default


def test_bits_of_activations_beyond_the_rule_are_named(name):
    must = re.escape(fields_of(name)["n_bits_a"].metadata["must"])
    with pytest.raises(InputError, match=f"n_bits_a must be {must}, got 17"):
        QuantizationManager().get_quantization_method(name, n_bits_a=17)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"n_bits_w": 0}, r"n_bits_w must be between 1 and 16, or 32 \(not quantized\), got 0"),
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


def register(settings: type[MethodSettings], taken: str = "newcomer") -> None:
    """Register a method with these settings."""

    class Newcomer(BaseQuantizationMethod):
        name = taken
        summary = "another"
        settings_class = settings

        def _quantize(self, *arguments):
            """Never called."""

    register_method(Newcomer)


def with_setting(name: str, kind: object, default: object) -> type[MethodSettings]:
    """Settings of a method with one more, whose annotation is ``kind``."""
    return dataclasses.make_dataclass(
        "Settings", [(name, kind, default)], bases=(MethodSettings,), frozen=True
    )


def test_a_taken_name_cannot_be_registered_again():
    with pytest.raises(ValueError, match="method name 'rtn' is taken by RoundToNearest"):
        register(MethodSettings, "rtn")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            with_setting("lr", "str", setting("fast", "speed", choices=("fast", "slow"))),
            "setting 'lr' of method 'newcomer' must have the type that it has in 'adaround', "
            "'float', got 'str'; another meaning needs another name",
        ),
        (
            with_setting("lr", "float", setting(1.0, "length of the ride")),
            "must have the help text that it has in 'adaround'",
        ),
        (
            with_setting(
                "act_points",
                "str",
                setting(
                    "a",
                    method_settings()["act_points"]["aciq_mix"].metadata["help"],
                    choices=("a", "b"),
                ),
            ),
            r"must have the choices that it has in 'aciq_mix', \['inputs', 'outputs'\], "
            r"got \['a', 'b'\]",
        ),
        (
            with_setting("compression", "int", setting(1, "something")),
            "setting 'compression' of method 'newcomer' must not have the name of a flag of "
            "main_imagenet.py, got one",
        ),
        (
            with_setting("device", "str", setting("x", "something", choices=("x",))),
            "setting 'device' of method 'newcomer' must not have the name of a flag",
        ),
        (
            with_setting("power", int, setting(1, "something")),
            "setting 'power' of method 'newcomer' must have its type as text: begin the file with "
            "'from __future__ import annotations', got <class 'int'>",
        ),
        (
            with_setting("power", "list[int]", setting(None, "something")),
            r"must be of type int, float, bool, str or one of these with '\| None', "
            r"got 'list\[int\]'",
        ),
        (
            with_setting("power", "int", 1),
            r"must be made by quant\.settings\.setting\(default, help\), got none",
        ),
    ],
)
def test_settings_that_cannot_be_flags_are_refused_when_the_method_registers(settings, text):
    with pytest.raises(ValueError, match=text):
        register(settings)
    assert QuantizationManager().list_available_methods() == METHODS


def test_the_reserved_names_are_the_flags_of_the_main_script():
    own = set(build_parser().flags()) | {action.dest for action in build_parser()._actions}
    methods = {name for name in method_settings()} | {flag_name(name) for name in method_settings()}
    assert own - methods == RESERVED_NAMES
