"""Placement of quantizers: quantized layers and activation quantizers in a captured network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import fx, nn

from common.errors import InputError
from quant.arithmetic.spec import LOG2, NO_TARGET, NOT_QUANTIZED, ONNXRUNTIME, QuantSpec
from quant.network.layers import (
    ActivationQuantizer,
    Log2Quantizer,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    is_depthwise,
)
from quant.network.operations import (
    PADS,
    PRODUCTS,
    arguments,
    called_module,
    has_attention,
    is_average,
    is_number,
    is_pooling_or_shape,
    is_relu,
    is_softmax,
    operation,
    owner,
)

LAYERS = (nn.Conv2d, nn.Linear)


def is_layer(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node is a convolution or linear layer, quantized or not."""
    return isinstance(called_module(network, node), (*LAYERS, QuantLayer))


@dataclass(frozen=True)
class _Layers:
    """The layers of a network in order, and its ends.

    A stem is a layer that the image reaches without passing another layer; a head is one whose
    output reaches the logits so.
    """

    all: list[fx.Node]
    stems: frozenset[fx.Node]
    heads: frozenset[fx.Node]
    behind: frozenset[fx.Node]  # the nodes that depend on the output of a layer


def insert_quantizers_(network: fx.GraphModule, spec: QuantSpec) -> None:
    """Replace layers by quantized ones and insert activation quantizers, as given by ``spec``.

    Raises:
        InputError: the network has no convolution or linear layer, or ``spec`` would leave nearly
            all of it in float.
    """
    _require_convolutional(network, spec)
    layers = _find_layers(network)
    weights = {node: node in layers.stems | layers.heads for node in layers.all}
    if spec.target != NO_TARGET:
        activations = _points_of_target(network, layers, spec)
    else:
        find = _layer_outputs if spec.act_points == "outputs" else _layer_inputs
        activations = find(network, layers)
    if spec.float_ends:
        convolutions = [node for node in layers.all if _is_convolution(network, node)]
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


def _require_convolutional(network: fx.GraphModule, spec: QuantSpec) -> None:
    """Refuse choices that were made for convolutional networks where there is attention."""
    if not has_attention(network):
        return
    rest = "which leaves the linear layers and products of a network with attention in float"
    if spec.act_points == "outputs":
        raise InputError(f"act_points must be inputs, got outputs, {rest}")
    if spec.float_ends:
        raise InputError(f"first_last must be another than fp32, got fp32, {rest}")


def _find_layers(network: fx.GraphModule) -> _Layers:
    layers = [node for node in network.graph.nodes if is_layer(network, node)]
    if not layers:
        raise InputError("network must have at least one convolution or linear layer, got none")
    behind = _dependent(network, layers)
    seeing = _dependent(network, [n for n in network.graph.nodes if n.op == "placeholder"])
    stems = [node for node in layers if node in seeing and not behind & set(_values(node))]
    heads = _heads(network) or layers[-1:]
    return _Layers(layers, frozenset(stems), frozenset(heads), frozenset(behind))


def _values(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node reads and that depend on the image or on the number of images."""
    return [s for s in node.all_input_nodes if s.op != "get_attr" and not is_number(s)]


def _dependent(network: fx.GraphModule, sources: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that are among ``sources`` or depend on the value of one."""
    found = set(sources)
    for node in network.graph.nodes:
        if found & set(_values(node)):
            found.add(node)
    return found


def _heads(network: fx.GraphModule) -> list[fx.Node]:
    heads, seen = [], set()
    waiting = list(network.graph.output_node().all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_layer(network, node):
            heads.append(node)
        else:
            waiting += _values(node)
    return heads


def _layer_inputs(
    network: fx.GraphModule, layers: _Layers, through_averages: bool = True
) -> dict[fx.Node, bool]:
    """Each node that computes the input of a layer, and whether it feeds a head.

    Both operands of a product of two activations count as well. The nodes are in the order of
    their readers. The image, and what is computed from it without a layer, stays in float.
    """
    found: dict[fx.Node, bool] = {}
    for node in network.graph.nodes:
        if is_layer(network, node) and node not in layers.stems:
            through = through_averages or not _is_convolution(network, node)
            passes = is_pooling_or_shape if through else _keeps_grid
            producer = _producer(_values(node)[0], passes)
            found[producer] = found.get(producer, False) or node in layers.heads
        elif operation(node) in PRODUCTS:
            for operand in _values(node):
                if operand in layers.behind:
                    found.setdefault(operand, False)
    return found


def _points_of_target(
    network: fx.GraphModule, layers: _Layers, spec: QuantSpec
) -> dict[fx.Node, bool]:
    """As ``_layer_inputs``, and the inputs of stems.

    An average that a convolution reads is quantized itself, since OpenVINO rounds it.
    For ONNX Runtime, whose integer convolutions give integers only, also what convolutions give to
    other operations than a ReLU or a quantized concatenation.
    """
    found = {
        _producer(_values(node)[0]): True for node in network.graph.nodes if node in layers.stems
    }
    found |= _layer_inputs(network, layers, through_averages=False)
    if spec.target == ONNXRUNTIME:
        outputs = {
            node: False
            for node in _layer_outputs(network, layers)
            if node not in found and node not in layers.heads and not _is_joined(node, found)
        }
        found |= outputs
    return found


def _is_joined(node: fx.Node, found: dict[fx.Node, bool]) -> bool:
    """Whether the node feeds concatenations alone that are quantized."""
    return all(operation(user) == "cat" and user in found for user in node.users)


def _layer_outputs(network: fx.GraphModule, layers: _Layers) -> dict[fx.Node, bool]:
    """Each convolution, or the ReLU that is its only reader, and whether it is the stem's."""
    found: dict[fx.Node, bool] = {}
    for node in layers.all:
        if not _is_convolution(network, node):
            continue
        readers = list(node.users)
        last = readers[0] if len(readers) == 1 and is_relu(readers[0]) else node
        found[last] = node in layers.stems
    return found


def _is_convolution(network: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(called_module(network, node), (nn.Conv2d, QuantConv2d))


def _producer(node: fx.Node, passes: Callable[[fx.Node], bool] = is_pooling_or_shape) -> fx.Node:
    """The node that computes the values of ``node``, before all that ``passes`` is true of.

    Of a constant that is repeated for each image it is the repetition.
    """
    while passes(node) and node.all_input_nodes[0].op != "get_attr":
        node = node.all_input_nodes[0]
    return node


def _keeps_grid(node: fx.Node) -> bool:
    return is_pooling_or_shape(node) and not is_average(node)


def _keeps_probabilities(node: fx.Node) -> bool:
    """Whether values from 0 to 1 stay so; a padding may add zeros."""
    is_other_pad = operation(node) in PADS and arguments(node).get("value") not in (None, 0)
    return _keeps_grid(node) and not is_other_pad


def _replace_layer(network: fx.GraphModule, node: fx.Node, spec: QuantSpec, is_end: bool) -> None:
    layer = called_module(network, node)
    depthwise = layer is not None and is_depthwise(layer)
    bits = spec.weight_bits(is_end, depthwise)
    quantized: QuantLayer
    if isinstance(layer, nn.Conv2d):
        quantized = QuantConv2d(layer, bits, spec.channel_wise, is_end)
    elif isinstance(layer, nn.Linear):
        quantized = QuantLinear(layer, bits, spec.channel_wise, is_end)
    else:
        return  # called twice, it is replaced already
    quantized.symmetric = spec.is_symmetric(bits, depthwise)
    network.set_submodule(str(node.target), quantized)


def _insert_activation_quantizer(
    network: fx.GraphModule, producer: fx.Node, spec: QuantSpec, is_end: bool
) -> None:
    name = f"quantizer_{producer.name}"
    while hasattr(network, name):  # a module of the user's
        name += "_"
    value = producer.meta.get("val")
    if value is not None and value.dtype != torch.float32:
        raise InputError(
            "activations must be float32 to be quantized, got "
            f"{str(value.dtype).removeprefix('torch.')} in module {owner(producer)!r}"
        )
    has_log2 = spec.softmax_quantizer == LOG2 and is_softmax(
        _producer(producer, _keeps_probabilities)
    )
    kind = Log2Quantizer if has_log2 else ActivationQuantizer
    network.add_submodule(name, kind(spec.activation_bits(is_end), is_end))
    has_float = spec.target == NO_TARGET and spec.act_points == "inputs"
    spared = _float_readers(network, producer) if has_float else set()
    with network.graph.inserting_after(producer):
        quantizer = network.graph.call_module(name, (producer,))
    quantizer.meta = dict(producer.meta)
    spared.add(quantizer)
    producer.replace_all_uses_with(
        quantizer, delete_user_cb=lambda user: user not in spared and not is_number(user)
    )


def _float_readers(network: fx.GraphModule, producer: fx.Node) -> set[fx.Node]:
    """The readers of a transformer's residual stream that are no layers or products.

    They read it in float: where a LayerNorm comes last in a branch, as in Swin V2, linear layers
    read the stream itself. Readers of what a convolution or an average reads too are none of them.
    """
    others, layers = set(), []
    for user in producer.users:
        found = _quantized_readers(network, user)
        layers += found
        if not found:
            others.add(user)
    is_stream = all(not _is_convolution(network, node) and not is_average(node) for node in layers)
    return others if is_stream else set()


def _quantized_readers(network: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The layers, products and averages that read a node or what reshapes it."""
    if is_layer(network, node) or operation(node) in PRODUCTS or is_average(node):
        return [node]
    if not is_pooling_or_shape(node):
        return []
    return [found for user in node.users for found in _quantized_readers(network, user)]
