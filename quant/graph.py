"""From a float network to a traced one that is ready for quantization: torch.fx, no per-model code.

The traced network has its batch norms folded, its identities removed and its in-place operations
made functional. ``insert_quantizers_`` then replaces convolutions and linear layers and places the
activation quantizers.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from common.errors import InputError
from quant.layers import ActivationQuantizer, QuantConv2d, QuantLayer, QuantLinear

NOT_QUANTIZED = 32
HEAD_STEM_BITS = 8
ACT_POINTS = ("inputs", "outputs")

LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
DROPPED_FUNCTIONS = ("dropout", "stochastic_depth")
DROPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

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
INPLACE_METHODS = ("add_", "sub_", "mul_", "div_", "relu_", "clamp_", "sigmoid_", "tanh_")
OUT_OF_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul}


@dataclass(frozen=True)
class QuantSpec:
    """What is quantized to how many bits; 32 bits means that it is left in float.

    The weights of the layers fed by the image (stem) and of the last layer (head), and the tensor
    that feeds the head, take at least 8 bits while ``head_stem_8bit`` holds.

    Attributes:
        float_ends: the first and the last convolution, all linear layers, the first and the last
            quantized tensor stay in float (LAPQ, code of Nahshan et al.).
        act_points: ``inputs``: the tensor that feeds a layer is quantized, once, where it is
            produced; ``outputs``: the output of each convolution, behind its ReLU where one follows
            directly, so that sums are not quantized, and that of the stem with at least 8 bits while
            ``head_stem_8bit`` holds (ACIQ, code of Banner et al.).
        fold: batch norms are folded into the layers before them.
    """

    n_bits_w: int
    n_bits_a: int
    channel_wise: bool = True
    head_stem_8bit: bool = True
    float_ends: bool = False
    act_points: str = "inputs"
    fold: bool = True

    def weight_bits(self, is_end: bool) -> int:
        """Bits of a weight; ``is_end``: it belongs to the stem or the head."""
        return (
            max(self.n_bits_w, HEAD_STEM_BITS) if is_end and self.head_stem_8bit else self.n_bits_w
        )

    def activation_bits(self, is_end: bool) -> int:
        """Bits of an activation; ``is_end``: it feeds the head, or the stem made it where outputs
        are quantized.
        """
        return (
            max(self.n_bits_a, HEAD_STEM_BITS) if is_end and self.head_stem_8bit else self.n_bits_a
        )


def trace(model: nn.Module, fold: bool = True) -> fx.GraphModule:
    """Trace a copy of ``model`` in evaluation mode; fold batch norms unless told not to, drop
    identities, undo in-place operations.

    Raises:
        InputError: the network cannot be traced, uses a layer twice, or has weights in a module
            that is neither a 2-d convolution nor a linear layer nor a normalisation.
    """
    model = copy.deepcopy(model).eval()
    try:
        network = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise InputError(
            f"network must be traceable by torch.fx, got {type(model).__name__}: {str(error).splitlines()[0]}"
        ) from error
    _refuse_unsupported(network)
    _undo_inplace(network)
    _drop_identities(network)
    if fold:
        _fold_norms(network)
    network.delete_all_unused_submodules()
    network.recompile()
    return network


def called_module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, or None."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_layer(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node is a convolution or linear layer, quantized or not."""
    return isinstance(called_module(network, node), (*LAYERS, QuantLayer))


def is_pooling_or_shape(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node only moves, selects or pools values, so that its input is quantized in its
    stead.
    """
    if node.op == "call_module":
        return isinstance(called_module(network, node), POOLING_MODULES)
    if node.op == "call_method":
        return node.target in POOLING_METHODS
    return node.op == "call_function" and node.target in POOLING_FUNCTIONS


def _refuse_unsupported(network: fx.GraphModule) -> None:
    calls: dict[str, int] = {}
    for node in network.graph.nodes:
        if node.op == "call_function" and node.target in (F.conv2d, F.linear, torch.conv2d):
            raise InputError(
                f"layers must be nn.Conv2d or nn.Linear modules, got a call of {node.target.__name__} ({node.name})"
            )
        module = called_module(network, node)
        if module is None:
            continue
        calls[node.target] = calls.get(node.target, 0) + 1
        has_matrix = any(parameter.dim() > 1 for parameter in module.parameters())
        if has_matrix and not isinstance(module, (*LAYERS, nn.LayerNorm)):
            raise InputError(
                f"weights must be in Conv2d or Linear layers, got module {node.target!r} ({type(module).__name__})"
            )
        if isinstance(module, nn.Conv2d) and module.groups > module.in_channels:
            raise InputError(
                f"groups must be at most the {module.in_channels} channels, got {module.groups} in {node.target!r}"
            )
        if isinstance(module, LAYERS) and calls[node.target] > 1:
            raise InputError(
                f"a layer must be used once per forward, got module {node.target!r} used again"
            )


def _undo_inplace(network: fx.GraphModule) -> None:
    for module in network.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010  (the type of module does not declare it)
    for node in network.graph.nodes:
        if node.op == "call_function" and node.target in OUT_OF_PLACE:
            node.target = OUT_OF_PLACE[node.target]
        elif node.op == "call_method" and node.target in INPLACE_METHODS:
            node.target = node.target.removesuffix("_")
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}


def _drop_identities(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        function_name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        is_dropped_module = isinstance(called_module(network, node), DROPPED)
        if is_dropped_module or function_name in DROPPED_FUNCTIONS:
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)


def _fold_norms(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        norm = called_module(network, node)
        if not isinstance(norm, NORMS):
            continue
        before = node.args[0]
        layer = called_module(network, before)
        if not isinstance(layer, LAYERS) or len(before.users) > 1:
            continue
        network.set_submodule(str(before.target), _fused(layer, norm))
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)


def _fused(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return fuse_conv_bn_eval(layer, norm)
    return fuse_linear_bn_eval(layer, norm)


def insert_quantizers_(network: fx.GraphModule, spec: QuantSpec) -> None:
    """Replace the layers by quantized ones and place the activation quantizers where ``spec`` says."""
    layers = [node for node in network.graph.nodes if is_layer(network, node)]
    if not layers:
        raise InputError("network must have at least one Conv2d or Linear layer, got none")
    weights = _weight_bits(network, layers, spec)
    activations = _input_bits(network, layers, spec)
    if spec.act_points == "outputs":
        activations = _output_bits(network, layers, spec)
    if spec.float_ends:
        convolutions = [node for node in layers if _is_convolution(network, node)]
        inner = set(convolutions[1:-1])
        weights = {node: bits for node, bits in weights.items() if node in inner}
        activations = dict(list(activations.items())[1:-1])
    for node, bits in weights.items():
        _replace_layer(network, node, bits, spec.channel_wise)
    for node, bits in activations.items():
        _insert_activation_quantizer(network, node, bits)
    network.graph.lint()
    network.recompile()


def _weight_bits(
    network: fx.GraphModule, layers: list[fx.Node], spec: QuantSpec
) -> dict[fx.Node, int]:
    """Bits of the layers whose weights are quantized."""
    if spec.n_bits_w == NOT_QUANTIZED:
        return {}
    ends = {node for node in layers if _is_stem(network, node)} | {layers[-1]}
    return {node: spec.weight_bits(node in ends) for node in layers}


def _input_bits(
    network: fx.GraphModule, layers: list[fx.Node], spec: QuantSpec
) -> dict[fx.Node, int]:
    """Bits of the nodes that compute what a layer reads, the image left out, in the order of the
    layers.
    """
    bits: dict[fx.Node, int] = {}
    if spec.n_bits_a == NOT_QUANTIZED:
        return bits
    for node in layers:
        producer = _producer(network, node.all_input_nodes[0])
        if producer.op != "placeholder":
            bits[producer] = max(bits.get(producer, 0), spec.activation_bits(node is layers[-1]))
    return bits


def _output_bits(
    network: fx.GraphModule, layers: list[fx.Node], spec: QuantSpec
) -> dict[fx.Node, int]:
    """Bits of the outputs of the convolutions, or of the ReLU that alone reads such an output."""
    bits: dict[fx.Node, int] = {}
    if spec.n_bits_a == NOT_QUANTIZED:
        return bits
    for node in layers:
        if not _is_convolution(network, node):
            continue
        readers = list(node.users)
        last = readers[0] if len(readers) == 1 and is_relu(network, readers[0]) else node
        bits[last] = spec.activation_bits(_is_stem(network, node))
    return bits


def _is_stem(network: fx.GraphModule, layer: fx.Node) -> bool:
    """Whether the layer reads the image."""
    return _producer(network, layer.all_input_nodes[0]).op == "placeholder"


def _is_convolution(network: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(called_module(network, node), (nn.Conv2d, QuantConv2d))


def is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node is a ReLU, or a ReLU6 or another clamp at 0 from below."""
    module = called_module(network, node)
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return module.min_val == 0
    if module is not None:
        return isinstance(module, nn.ReLU)
    return node.target in RELU_TARGETS


def _producer(network: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The node that computes the values of ``node``, looking through shape-only operations and
    pooling.
    """
    while is_pooling_or_shape(network, node):
        node = node.all_input_nodes[0]
    return node


def _replace_layer(network: fx.GraphModule, node: fx.Node, bits: int, per_channel: bool) -> None:
    layer = called_module(network, node)
    if isinstance(layer, nn.Conv2d):
        network.set_submodule(str(node.target), QuantConv2d(layer, bits, per_channel))
    elif isinstance(layer, nn.Linear):
        network.set_submodule(str(node.target), QuantLinear(layer, bits, per_channel))


def _insert_activation_quantizer(network: fx.GraphModule, producer: fx.Node, bits: int) -> None:
    name = f"quantizer_{producer.name}"
    network.add_submodule(name, ActivationQuantizer(bits))
    with network.graph.inserting_after(producer):
        quantizer = network.graph.call_module(name, (producer,))
    quantizer.meta = dict(producer.meta)
    producer.replace_all_uses_with(quantizer, delete_user_cb=lambda user: user is not quantizer)
