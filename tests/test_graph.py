"""Folding, cutting and placing quantizers, on our networks and on torchvision's."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from models import get_entry
from models.expert import Expert
from models.zoo import list_zoo
from quant import CapturedNetwork, capture
from quant.arithmetic.spec import QuantSpec
from quant.network.layers import ActivationQuantizer, QuantLayer
from quant.network.model import activation_quantizers, make_chain, quant_layers, set_state
from quant.network.passes import prepared
from quant.network.placement import insert_quantizers_
from quant.network.units import cut_into_units
from tests.conftest import captured_once, chain_of, settle_norms

UNITS = {
    "resnet18": 10,
    "mobilenet_v2": 20,
    "googlenet": 13,
    "convnext_tiny": 23,
    "shufflenet_v2_x0_5": 19,
}
UNUSED = {"googlenet": 6, "inception_v3": 3}  # layers of auxiliary heads, for training only
W4A4 = QuantSpec(4, 4)


@functools.cache
def torchvision_captured(name: str) -> tuple[nn.Module, CapturedNetwork]:
    """A network of torchvision and its capture; tests must not change them."""
    torch.manual_seed(0)
    network = get_entry(name).build(100).eval()
    settle_norms(network)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return network, capture(network, images)


def graph_of(network: nn.Module):
    """The captured graph of a network with folded norms."""
    return prepared(captured_once(network, torch.zeros(2, 3, 8, 8)), fold=True)


@pytest.mark.parametrize("name", UNITS)
def test_the_chain_equals_the_network_on_torchvision(name):
    network, captured = torchvision_captured(name)
    chain = make_chain(captured, W4A4)
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = network(images), chain(images)
        value = images
        for part, unit in chain.named_units():
            value = unit(value)
            assert isinstance(value, torch.Tensor), part
    assert len(chain.units) == UNITS[name]
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(quant_layers(chain)) == len(layers) - UNUSED.get(name, 0)
    assert (expected - got).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())


def test_a_backbone_is_no_block():
    """A network around a network: its blocks are the units, not the whole backbone."""
    torch.manual_seed(0)
    expert = Expert(10).eval()
    names = chain_of(expert, W4A4, 32).unit_names
    blocks = [f"backbone.layer{stage}.{block}" for stage in (1, 2, 3) for block in range(5)]
    assert names == ["backbone.conv1", *blocks, "fc"]


def test_cifar_resnet20_has_eleven_units_named_after_its_blocks():
    chain = chain_of(get_entry("cifar_resnet20").build(10), W4A4, 32)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert chain.unit_names == ["conv1", *blocks, "linear"]


def test_the_pooling_before_the_head_belongs_to_the_head():
    chain = make_chain(torchvision_captured("resnet18")[1], W4A4)
    operations = [node.name for node in chain.units[-1].graph.nodes]
    assert operations == ["x", "avgpool", "flatten", "fc", "output"]


def test_stem_head_and_the_tensor_that_feeds_the_head_take_eight_bits(tiny_network):
    chain = chain_of(tiny_network, QuantSpec(3, 2))
    bits = {
        name.split(".", 1)[1]: int(layer.bits) for name, layer in quant_layers(chain.units).items()
    }
    assert bits["stem.0"] == bits["head"] == 8
    assert {bits[name] for name in bits if name not in ("stem.0", "head")} == {3}
    names = list(activation_quantizers(chain.units).values())
    assert [q.num_bits for q in names] == [2, 2, 2, 2, 8]
    everywhere = chain_of(tiny_network, QuantSpec(3, 2, head_stem_8bit=False))
    assert {int(layer.bits) for layer in quant_layers(everywhere).values()} == {3}
    assert {q.num_bits for q in activation_quantizers(everywhere).values()} == {2}


def test_more_than_eight_bits_are_not_lowered_at_the_ends():
    assert QuantSpec(12, 16).weight_bits(True) == 12
    assert QuantSpec(12, 16).activation_bits(True) == 16


def test_32_bits_leave_weights_or_activations_in_float(tiny_network):
    weights_only = chain_of(tiny_network, QuantSpec(4, 32))
    assert not activation_quantizers(weights_only)
    assert len(quant_layers(weights_only)) == 7
    activations_only = chain_of(tiny_network, QuantSpec(32, 4))
    assert not quant_layers(activations_only)
    assert len(activation_quantizers(activations_only)) == 5


def test_a_tensor_used_by_block_and_shortcut_has_one_quantizer(tiny_network):
    network = graph_of(tiny_network)
    insert_quantizers_(network, W4A4)
    quantizers = [
        node
        for node in network.graph.nodes
        if node.op == "call_module"
        and isinstance(network.get_submodule(node.target), ActivationQuantizer)
    ]
    consumers = [sorted(user.name for user in node.users) for node in quantizers]
    assert consumers[0] == ["add", "first_conv1"]
    assert consumers[2] == ["second_conv1", "second_project"]


def test_the_image_and_the_logits_are_not_quantized(tiny_network):
    network = graph_of(tiny_network)
    insert_quantizers_(network, W4A4)
    nodes = list(network.graph.nodes)
    assert nodes[1].name == "stem_0"
    assert nodes[-2].name == "head"


def test_concatenated_and_shuffled_tensors_are_quantized_where_they_are_produced():
    network = prepared(torchvision_captured("shufflenet_v2_x0_5")[1], fold=True)
    insert_quantizers_(network, W4A4)
    producers = {
        node.args[0].name.rstrip("_0123456789")
        for node in network.graph.nodes
        if node.op == "call_module" and str(node.target).startswith("quantizer_")
    }
    assert "cat" in producers
    assert not producers & {"getitem", "chunk", "view", "reshape", "transpose", "maxpool"}


def test_norms_are_folded_and_the_given_network_is_left_alone(tiny_network):
    before = copy.deepcopy(tiny_network.state_dict())
    network = graph_of(tiny_network)
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    after = tiny_network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert tiny_network.stem[2].inplace


def test_a_pre_activation_norm_is_kept():
    parts = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))
    chain = chain_of(nn.Sequential(*parts).eval(), W4A4)
    assert [m for m in chain.modules() if isinstance(m, nn.BatchNorm2d)]


def test_units_compose_to_the_network_when_values_cross_several_operations(
    tiny_network, tiny_images
):
    network = graph_of(tiny_network)
    insert_quantizers_(network, W4A4)
    x = tiny_images
    with torch.no_grad():
        for _, unit in cut_into_units(network, {"stem"}):
            x = unit(x)
        assert torch.allclose(x, tiny_network(tiny_images), atol=1e-5)


def test_states_switch_weights_and_activations_separately(tiny_network, tiny_images):
    chain = chain_of(tiny_network, QuantSpec(2, 2))
    for layer in quant_layers(chain).values():
        layer.quantize_to_nearest("minmax")
    outputs = []
    with torch.no_grad():
        for weights, activations in ((False, False), (True, False), (False, True)):
            set_state(chain, weights=weights, activations=activations)
            outputs.append(chain(tiny_images))
        expected = tiny_network(tiny_images)
    assert torch.allclose(outputs[0], expected, atol=1e-5)
    assert not torch.allclose(outputs[1], expected, atol=1e-2)
    assert not torch.allclose(outputs[2], expected, atol=1e-2)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def test_conv_variants_compute_what_torch_computes():
    images = torch.randn(2, 3, 9, 9)
    for options in (
        {"stride": 2, "padding": 1},
        {"groups": 3, "dilation": 2},
        {"padding": "same"},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": (1, 2), "padding_mode": "circular", "bias": False},
    ):
        network = nn.Sequential(nn.Conv2d(3, 6, 3, **options), Mean())
        chain = chain_of(network, W4A4, 9)
        assert isinstance(next(iter(quant_layers(chain).values())), QuantLayer)
        assert torch.allclose(chain(images), network(images), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_zoo())
def test_every_listed_network_can_be_cut(name):
    entry = get_entry(name)
    network, size = entry.build(10).eval(), entry.preprocess.crop or 32
    chain = chain_of(network, W4A4, size)
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(quant_layers(chain)) == len(layers) - UNUSED.get(name, 0)
    assert len(chain.units) > 5
    assert chain_of(network, QuantSpec(4, 4, fold=False), size).unit_names == chain.unit_names
