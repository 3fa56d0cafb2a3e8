"""Gradient descent on the factors of the steps."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from quant.arithmetic.primitives import fake_quantize
from quant.methods.lapq.descent import DescentData, NearestRounding, descend
from quant.methods.lapq.loss import squared_error
from quant.methods.lapq.powell import LIMIT
from quant.network.layers import ActivationQuantizer, QuantConv2d


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conv(bits: int, per_channel: bool) -> QuantConv2d:
    torch.manual_seed(4)
    layer = QuantConv2d(nn.Conv2d(5, 6, 3, bias=False), bits, per_channel)
    layer.quantize_to_nearest("mse")
    return layer


@pytest.mark.parametrize("keep_mean", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.7, 1.3])
def test_the_rounding_is_that_of_the_layer_with_the_scale(keep_mean, per_channel, factor):
    layer = conv(3, per_channel)
    scale = layer.scale * factor
    found = NearestRounding(layer, scale, keep_mean).weight()
    layer.round_to(scale, layer.zero_point)
    if keep_mean:
        layer.match_moments(mean=True)
    torch.testing.assert_close(found, layer.effective_weight(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("keep_mean", [False, True])
def test_its_gradient_is_the_published_one(keep_mean):
    """LSQ, eq. 3: per element round(u) - u inside and the clamped code outside.

    With means kept, the mean of these over the channel is subtracted.
    """
    layer = conv(3, per_channel=False)
    scale = (0.6 * layer.scale).requires_grad_(True)
    upstream = torch.randn(layer.codes.shape, generator=generator())
    (NearestRounding(layer, scale, keep_mean).weight() * upstream).sum().backward()
    ratio = layer.full_precision_weight() / scale.detach()
    low, high = -layer.zero_point, 7 - layer.zero_point
    inside = (ratio.round() >= low) & (ratio.round() <= high)
    each = torch.where(inside, ratio.round() - ratio, ratio.round().clamp(low, high))
    if keep_mean:
        each = each - each.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(scale.grad.sum(), (each * upstream).sum(), rtol=1e-4, atol=1e-4)


def one_quantizer(bits: int, scale: float) -> tuple[ActivationQuantizer, DescentData]:
    quantizer = ActivationQuantizer(bits)
    quantizer.set_qparams(torch.tensor(scale), torch.tensor(0.0))
    images = torch.randn(256, 200, generator=generator(1)).relu()
    return quantizer, DescentData([quantizer], images, images, squared_error, torch.device("cpu"))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("start", [0.5, 2.0])
def test_it_finds_the_step_of_least_squared_error(bits, start):
    """Of values after a ReLU; beside the best of a fine grid of steps."""
    quantizer, data = one_quantizer(bits, 1.0)
    zero = torch.tensor(0.0)
    steps = np.exp(np.linspace(-4, 0.5, 400))

    def error(step: float) -> float:
        codes = fake_quantize(data.images, torch.tensor(step), zero, bits)
        return float((codes - data.images).square().mean())

    best = min(map(error, steps))
    initial = start * steps[int(np.argmin([error(step) for step in steps]))]
    quantizer.set_qparams(torch.tensor(initial, dtype=torch.float32), zero)
    (logarithm,) = descend(data, [quantizer], 300, 0.05, generator())
    assert error(initial) > 1.2 * best
    assert error(initial * math.exp(logarithm)) < 1.02 * best


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = conv(4, per_channel=True), ActivationQuantizer(2)
        self.conv.match_moments(mean=True)
        self.act.set_qparams(torch.tensor(0.3), torch.tensor(0.0))

    def forward(self, x):
        return self.act(self.conv(x).relu()).mean((2, 3))


def two_modules() -> tuple[Network, DescentData]:
    network = Network()
    images = torch.randn(40, 5, 6, 6, generator=generator(2))
    weight = network.conv.full_precision_weight()
    targets = nn.functional.conv2d(images, weight).relu().mean((2, 3)).detach()
    return network, DescentData([network], images, targets, squared_error, torch.device("cpu"))


def test_the_modules_stay_as_they_were_also_behind_an_error():
    network, data = two_modules()
    modules = [network.conv, network.act]
    before = [module.scale for module in modules]
    first = descend(data, modules, 20, 0.02, generator(3))
    assert first == descend(data, modules, 20, 0.02, generator(3))
    assert first != descend(data, modules, 20, 0.02, generator(4))
    assert all(number != 0 for number in first)
    broken = DescentData([network, nn.Linear(2, 2)], *list(vars(data).values())[1:])
    with pytest.raises(RuntimeError):
        descend(broken, modules, 20, 0.02, generator())
    assert network.conv.rounding is None
    assert all(module.scale is scale for module, scale in zip(modules, before, strict=True))


def test_tensors_that_are_not_given_do_not_move_and_factors_have_a_limit():
    network, data = two_modules()
    (alone,) = descend(data, [network.act], 20, 0.02, generator())
    assert 0 < abs(alone) < LIMIT
    (far,) = descend(data, [network.act], 40, 5.0, generator())
    assert abs(far) <= LIMIT
    assert descend(data, [network.conv, network.act], 0, 0.02, generator()) == [0.0, 0.0]
