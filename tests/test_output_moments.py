"""Outputs of layers that have the moments of the float network after quantization."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import InputError
from quant import QuantizationManager, QuantModel, UnitStates
from quant.arithmetic.spec import QuantSpec
from quant.distillation.latent import LatentWeight
from quant.network.model import make_chain, quant_layers
from quant.network.observe import watch
from quant.network.output_moments import Moments, gains
from quant.network.states import STAGE_FILE
from tests.conftest import captured_once, chain_of


def quantized(network: nn.Module, images: Tensor, name: str = "rtn", **settings: Any) -> QuantModel:
    settings = {"n_bits_w": 3, "n_bits_a": 4, "output_moments": True, **settings}
    method = QuantizationManager().get_quantization_method(name, **settings)
    return method.quantize_model(network, None, [images])


def outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The output of each layer by its name, (N, O, ...)."""
    names = {layer: name for name, layer in quant_layers(model).items()}
    found: dict[str, Tensor] = {}

    def note(module: nn.Module, output: Tensor) -> None:
        found[names[module]] = output.double()

    with torch.no_grad(), watch(names, note, outputs=True):
        model(images)
    return found


def moments(output: Tensor) -> tuple[Tensor, Tensor]:
    columns = output.transpose(0, 1).flatten(1)
    return columns.mean(1), columns.std(1, correction=0)


@pytest.mark.parametrize("name", ["rtn", "gpfq"])
def test_each_output_has_mean_and_deviation_of_the_float_one(name, tiny_network, tiny_images):
    model = quantized(tiny_network, tiny_images, name)
    plain = make_chain(captured_once(tiny_network, tiny_images), model.spec)
    wanted, got = outputs(plain, tiny_images), outputs(model, tiny_images)
    assert len(wanted) == len(quant_layers(model)) == 7
    for layer, output in wanted.items():
        for expected, found in zip(moments(output), moments(got[layer]), strict=True):
            assert torch.allclose(found, expected, atol=1e-5 * float(output.std())), layer


def test_channels_that_share_a_scale_get_the_mean_alone(tiny_network, tiny_images):
    model = quantized(tiny_network, tiny_images, channel_wise=False)
    plain = make_chain(captured_once(tiny_network, tiny_images), model.spec)
    unchanged = quantized(tiny_network, tiny_images, channel_wise=False, output_moments=False)
    got = outputs(model, tiny_images)
    for name, output in outputs(plain, tiny_images).items():
        found = moments(got[name])[0]
        assert torch.allclose(found, moments(output)[0], atol=1e-5 * float(output.std())), name
        layers = (quant_layers(model)[name], quant_layers(unchanged)[name])
        assert torch.equal(layers[0].scale, layers[1].scale)


def test_the_codes_stay_and_no_scale_moves_far(tiny_network, tiny_images):
    model = quantized(tiny_network, tiny_images, n_bits_w=2)
    unchanged = quantized(tiny_network, tiny_images, n_bits_w=2, output_moments=False)
    for name, layer in quant_layers(model).items():
        other = quant_layers(unchanged)[name]
        assert torch.equal(layer.codes, other.codes)
        gain = layer.scale / other.scale
        assert gain.min() >= 0.5 * (1 - 1e-6) and gain.max() <= 2 * (1 + 1e-6)


def test_a_channel_without_spread_keeps_its_scale(tiny_network, tiny_images):
    tiny_network.stem[0].weight.data[2] = 0.0
    model = quantized(tiny_network, tiny_images)
    unchanged = quantized(tiny_network, tiny_images, output_moments=False)
    first, other = (next(iter(quant_layers(each).values())) for each in (model, unchanged))
    assert torch.equal(first.scale[2], other.scale[2])
    assert torch.isfinite(model(tiny_images)).all()


@pytest.mark.parametrize("name", ["rtn", "gpfq", "distill"])
def test_it_is_refused_where_no_weight_is_quantized(name):
    text = "output_moments must be off with n_bits_w 32, got on"
    with pytest.raises(InputError, match=text):
        QuantizationManager().get_quantization_method(name, n_bits_w=32, output_moments=True)


def test_a_gain_within_the_error_of_the_sums_is_left_out():
    exact = Moments(torch.tensor([300.0]).double(), torch.tensor([900.0]).double(), 100)
    noisy = Moments(torch.tensor([300.0]).double(), torch.tensor([900.0003]).double(), 100)
    assert noisy.variance > 0 and gains(exact, noisy) == gains(noisy, exact) == 1.0


def test_latent_codes_lie_where_the_stretched_float_weights_are(tiny_network, tiny_images):
    layer = next(iter(quant_layers(chain_of(tiny_network, QuantSpec(3, 4))).values()))
    layer.quantize_to_nearest("minmax")
    before = LatentWeight(layer).codes.detach().clone()
    layer.stretch(torch.linspace(0.6, 1.7, len(layer.scale)))
    assert torch.allclose(LatentWeight(layer).codes, before, atol=1e-5)


def test_a_unit_restored_in_the_middle_gives_the_same_trained_network(
    tiny_network, tiny_images, tmp_path
):
    settings = {"n_bits_w": 3, "n_bits_a": 4, "distill_steps": 4, "distill_batch": 8}
    settings |= {"output_moments": True}
    method = QuantizationManager().get_quantization_method("distill", **settings)
    whole = method.quantize_model(tiny_network, None, [tiny_images])
    states = UnitStates(tmp_path, method.get_quantization_params())
    states.open(resume=False)
    method.quantize_model(tiny_network, None, [tiny_images], states=states)
    (tmp_path / STAGE_FILE).unlink()
    resumed = method.quantize_model(tiny_network, None, [tiny_images], states=states)
    assert list(resumed.state_dict()) == list(whole.state_dict())
    assert not any(name.endswith(".gain") for name in resumed.state_dict())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
