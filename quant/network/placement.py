"""Placement of quantizers: quantized layers and activation quantizers in a captured network."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from common.errors import InputError
from quant.arithmetic.spec import NOT_QUANTIZED, QuantSpec
from quant.network.capture import called_module, is_layer
from quant.network.layers import ActivationQuantizer, QuantConv2d, QuantLinear

POOLING_MODULES = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.ZeroPad2d,
)
POOLING_FUNCTIONS = {
    operator.getitem,
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.chunk,
    torch.split,
    torch.mean,
    F.pad,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
    torch.max_pool2d,
}
POOLING_METHODS = {
    "view",
    "reshape",
    "flatten",
    "permute",
    "transpose",
    "contiguous",
    "squeeze",
    "unsqueeze",
    "chunk",
    "split",
    "mean",
}
RELU_TARGETS = {"relu", F.relu, torch.relu, F.relu6}


def is_pooling_or_shape(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node only moves, selects or pools values; then its input is quantized instead."""
    if node.op == "call_module":
        return isinstance(called_module(network, node), POOLING_MODULES)
    if node.op == "call_method":
        return node.target in POOLING_METHODS
    return node.op == "call_function" and node.target in POOLING_FUNCTIONS


def insert_quantizers_(network: fx.GraphModule, spec: QuantSpec) -> None:
    """Replace layers by quantized ones and insert activation quantizers, as given by ``spec``.

    Raises:
        InputError: the network has no convolution or linear layer.
    """
    layers = [node for node in network.graph.nodes if is_layer(network, node)]
    if not layers:
        raise InputError("network must have at least one Conv2d or Linear layer, got none")
    weights = _weights(network, layers)
    find = _layer_outputs if spec.act_points == "outputs" else _layer_inputs
    activations = find(network, layers)
    if spec.float_ends:
        convolutions = [node for node in layers if _is_convolution(network, node)]
        inner = set(convolutions[1:-1])
        weights = {node: is_end for node, is_end in weights.items() if node in inner}
        activations = dict(list(activations.items())[1:-1])
    if spec.n_bits_w != NOT_QUANTIZED:
        for node, is_end in weights.items():
            _replace_layer(network, node, spec, is_end)
    if spec.n_bits_a != NOT_QUANTIZED:
        for node, is_end in activations.items():
            _insert_activation_quantizer(network, node, spec, is_end)
    network.graph.lint()
    network.recompile()


def _weights(network: fx.GraphModule, layers: list[fx.Node]) -> dict[fx.Node, bool]:
    """Each layer, and whether it is an end: it reads the image, or is the last layer."""
    return {node: node is layers[-1] or _is_stem(network, node) for node in layers}


def _layer_inputs(network: fx.GraphModule, layers: list[fx.Node]) -> dict[fx.Node, bool]:
    """Each node that computes the input of a layer, and whether it feeds the last layer.

    The nodes are in the order of the layers, without the image.
    """
    found: dict[fx.Node, bool] = {}
    for node in layers:
        producer = _producer(network, node.all_input_nodes[0])
        if producer.op != "placeholder":
            found[producer] = found.get(producer, False) or node is layers[-1]
    return found


def _layer_outputs(network: fx.GraphModule, layers: list[fx.Node]) -> dict[fx.Node, bool]:
    """Each convolution, or the ReLU that is its only reader, and whether it is the stem's."""
    found: dict[fx.Node, bool] = {}
    for node in layers:
        if not _is_convolution(network, node):
            continue
        readers = list(node.users)
        last = readers[0] if len(readers) == 1 and is_relu(network, readers[0]) else node
        found[last] = _is_stem(network, node)
    return found


def _is_stem(network: fx.GraphModule, layer: fx.Node) -> bool:
    """Whether the layer reads the image."""
    return _producer(network, layer.all_input_nodes[0]).op == "placeholder"


def _is_convolution(network: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(called_module(network, node), (nn.Conv2d, QuantConv2d))


def is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node is a ReLU, a ReLU6 or another Hardtanh with minimum 0."""
    module = called_module(network, node)
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return module.min_val == 0
    if module is not None:
        return isinstance(module, nn.ReLU)
    return node.target in RELU_TARGETS


def _producer(network: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The node that computes the values of ``node``, before any pooling and reshaping."""
    while is_pooling_or_shape(network, node):
        node = node.all_input_nodes[0]
    return node


def _replace_layer(network: fx.GraphModule, node: fx.Node, spec: QuantSpec, is_end: bool) -> None:
    layer = called_module(network, node)
    bits = spec.weight_bits(is_end)
    if isinstance(layer, nn.Conv2d):
        network.set_submodule(str(node.target), QuantConv2d(layer, bits, spec.channel_wise, is_end))
    elif isinstance(layer, nn.Linear):
        network.set_submodule(str(node.target), QuantLinear(layer, bits, spec.channel_wise, is_end))


def _insert_activation_quantizer(
    network: fx.GraphModule, producer: fx.Node, spec: QuantSpec, is_end: bool
) -> None:
    name = f"quantizer_{producer.name}"
    network.add_submodule(name, ActivationQuantizer(spec.activation_bits(is_end), is_end))
    with network.graph.inserting_after(producer):
        quantizer = network.graph.call_module(name, (producer,))
    quantizer.meta = dict(producer.meta)
    producer.replace_all_uses_with(quantizer, delete_user_cb=lambda user: user is not quantizer)
