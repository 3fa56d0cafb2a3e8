"""Quantizers and layers that are trained for several bitwidths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from any_precision.layers import LayerSpec, QuantConv2d, QuantLinear, SwitchableBatchNorm2d
from any_precision.networks import VARIANTS, AnyPrecisionResNet
from any_precision.quantizers import DoReFaActivation, DoReFaWeight, LsqQuantizer, PactActivation
from common.errors import InputError
from quant.bitwidth import quantized_layers
from quant.bitwidth.assignments import set_configuration, stream


def test_dorefa_weights_are_the_formula():
    torch.manual_seed(0)
    weight = torch.randn(50)
    for bits in (2, 3, 8):
        n = 2**bits - 1
        unit = torch.tanh(weight) / (2 * torch.tanh(weight).abs().max()) + 0.5
        expected = 2 * torch.round(n * unit) / n - 1
        got = DoReFaWeight()(weight, bits)
        assert torch.allclose(got, expected, atol=1e-6)
        assert len(got.unique()) <= n + 1
        assert got.abs().max() <= 1
    scaled = DoReFaWeight("mean_abs")(weight, 2)
    assert torch.allclose(scaled, DoReFaWeight()(weight, 2) * weight.abs().mean())
    assert float(DoReFaWeight("sat")(weight, 4).std()) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(InputError, match="weight_scale must be a known name"):
        DoReFaWeight("max")


def test_dorefa_activations_pass_gradients_inside():
    x = torch.tensor([-0.5, 0.2, 0.7, 1.5], requires_grad=True)
    out = DoReFaActivation()(x, 2)
    assert torch.allclose(out.detach(), torch.tensor([0, 1 / 3, 2 / 3, 1]))
    out.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("activation", ["dorefa", "pact"])
def test_sixteen_bits_are_nearly_unrounded(activation):
    torch.manual_seed(0)
    layer = QuantConv2d(3, 4, 3, spec=LayerSpec((16, 32), activation=activation))
    x = torch.rand(2, 3, 8, 8)
    at_32 = layer(x)
    layer.set_bitwidth(16)
    assert (layer(x) - at_32).abs().max() < 1e-3


@pytest.mark.parametrize("offset", [False, True])
def test_a_learned_step_at_32_bits_only_clips(offset):
    quantizer = LsqQuantizer((2, 32), signed=False, offset=offset).train()
    x = torch.rand(4, 3)
    out = quantizer(x, 32)
    assert torch.allclose(out, x, atol=1e-6) if offset else bool((out <= x + 1e-6).all())
    with torch.no_grad():
        quantizer.step[1] = 1.0
    assert torch.allclose(quantizer(x, 32), x, atol=1e-6)


def test_pact_clips_rounds_and_learns_where_it_clips():
    pact = PactActivation((3, 8))
    with torch.no_grad():
        pact.alpha[0] = 2.0
    x = torch.linspace(-1, 3, 41, requires_grad=True)
    out = pact(x, 3)
    assert len(out.unique()) <= 8
    assert float(out.detach().max()) == 2.0
    out.sum().backward()
    inside = (x.detach() > 0) & (x.detach() < 2)
    assert torch.equal(
        x.grad[(x.detach() != 2) & (x.detach() != 0)] == 1,
        inside[(x.detach() != 2) & (x.detach() != 0)],
    )
    above = int((x.detach() >= 2).sum())
    assert float(pact.alpha.grad[0]) == pytest.approx(above, abs=0.5 + 1e-6)  # half at the border
    assert float(pact.alpha.grad[1]) == 0.0
    shared = PactActivation((3, 8), switchable=False)
    assert shared.alpha.shape == (1,)
    assert torch.equal(shared(20 * x, 3).detach().max(), shared(20 * x, 8).detach().max())


@pytest.mark.parametrize(
    ("values", "gradient"), [((0.26, -0.4, 0.8), 0.2667), ((0.26, -0.4, 0.8, 4, -2), -0.0516)]
)
def test_the_gradient_of_a_learned_step(values, gradient):
    quantizer = LsqQuantizer((3,), signed=True)
    quantizer.initialised.fill_(True)
    with torch.no_grad():
        quantizer.step.fill_(0.3)
    v = torch.tensor(values, requires_grad=True)
    quantizer(v, 3).sum().backward()
    assert float(quantizer.step.grad) == pytest.approx(gradient, abs=1e-3)
    assert v.grad.tolist() == [1.0 if -4 < x / 0.3 < 3 else 0.0 for x in values]


def test_steps_begin_at_the_first_training_batch():
    quantizer = LsqQuantizer((2, 4), signed=False)
    x = torch.rand(4, 3)
    quantizer.eval()
    with pytest.raises(RuntimeError, match="step of 2 bits must be set by a training batch"):
        quantizer(x, 2)
    quantizer.train()(x, 2)
    expected = [2 * float(x.mean()) / above**0.5 for above in (3, 15)]
    assert quantizer.step.tolist() == pytest.approx(expected)
    again = LsqQuantizer((2, 4), signed=False)
    again.load_state_dict(quantizer.state_dict())
    before = again.step.tolist()
    again.train()(10 * x, 4)
    assert again.step.tolist() == before


def test_lsqplus_learns_its_offset():
    quantizer = LsqQuantizer((3,), signed=False, offset=True).train()
    x = (torch.rand(8, 5) - 0.3).requires_grad_()
    out = quantizer(x, 3)
    assert float(quantizer.beta.detach()) == pytest.approx(float(x.detach().min()))
    assert len(out.unique()) <= 8
    with torch.no_grad():
        quantizer.step.mul_(0.5)  # now half of the values are clipped
    x.grad = None
    quantizer(x, 3).sum().backward()
    clipped = (x.detach() - quantizer.beta.detach()) / quantizer.step.detach() > 7
    assert x.grad.bool().tolist() == (~clipped).tolist()
    assert float(quantizer.beta.grad) == pytest.approx(float(clipped.sum()), abs=1.01)


def test_layers_change_bits_through_one_setter():
    layer = QuantLinear(4, 3, spec=LayerSpec((8, 2, 4)))
    assert (layer.bitwidth_options, layer.curr_bitwidth) == ((2, 4, 8), 8)
    layer.set_lowest_bitwidth()
    assert (layer.get_bitwidth(), layer.curr_act_bitwidth) == (2, 2)
    layer.set_bitwidth(8, act=4)
    assert (layer.curr_bitwidth, layer.curr_act_bitwidth) == (8, 4)
    layer.set_random_bitwidth(stream(0, 1))
    assert layer.curr_bitwidth in (2, 4, 8)
    for arguments in ((3,), (4, 3)):
        with pytest.raises(ValueError, match="got 3"):
            layer.set_bitwidth(*arguments)
    layer.quantization_enabled = False
    x = torch.rand(2, 4)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_batch_norms_switch_with_the_convolution():
    layer = QuantConv2d(2, 3, 1, spec=LayerSpec((2, 8)))
    norm = SwitchableBatchNorm2d(3, layer)
    assert len(list(norm.parameters())) == 4  # none of the convolution's
    norm.train()
    layer.set_bitwidth(2)
    norm(torch.randn(8, 3, 4, 4) + 5)
    assert float(norm.banks["2"].running_mean.mean()) > 0.3
    assert not norm.banks["8"].running_mean.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_networks_of_every_variant(variant):
    size = 32 if variant in ("resnet8", "resnet20", "resnet32") else 64
    network = AnyPrecisionResNet(variant, 7, image_size=size, spec=LayerSpec((2, 8))).eval()
    out = network(torch.rand(1, 3, size, size))
    assert out.shape == (1, 7)
    names = [name for name, _ in quantized_layers(network)]
    assert "conv1" not in names
    assert "fc" not in names
    expected = {
        "resnet8": 8,
        "resnet20": 20,
        "resnet32": 32,
        "resnet18": 19,
        "resnet34": 35,
        "resnet50": 52,
    }
    assert len(names) == expected[variant]


def test_the_small_network_has_the_stated_size():
    network = AnyPrecisionResNet("resnet8", 10, image_size=8)
    assert sum(layer.num_weights for _, layer in quantized_layers(network)) == 76_288
    set_configuration(network, 2)
    low = network.eval()(torch.rand(2, 3, 8, 8))
    set_configuration(network, 8)
    assert not torch.equal(low, network(torch.rand(2, 3, 8, 8)))


def test_unknown_quantizers_are_refused():
    with pytest.raises(InputError, match="weight_quantization must be a known name, got 'pact'"):
        LayerSpec(weight="pact")
    with pytest.raises(InputError, match="model_variant must be a known name, got 'resnet9'"):
        AnyPrecisionResNet("resnet9", 10)
