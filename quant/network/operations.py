"""Operations of a captured graph: their names, arguments and kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

# Moves, selects or pools values, so that its input may be quantized instead of its output.
POOLING_OR_SHAPE = frozenset(
    "view reshape _unsafe_view flatten unflatten permute transpose t squeeze unsqueeze expand "
    "chunk split split_with_sizes tensor_split unbind select slice narrow index_select "
    "flip roll pad constant_pad_nd reflection_pad2d replication_pad2d getitem "
    "max_pool1d max_pool2d max_pool2d_with_indices avg_pool1d avg_pool2d "
    "adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d "
    "adaptive_max_pool1d adaptive_max_pool2d mean "
    "pixel_shuffle pixel_unshuffle channel_shuffle upsample_nearest2d".split()
)
AVERAGES = frozenset(
    "avg_pool1d avg_pool2d mean "
    "adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d".split()
)
RELUS = frozenset(["relu", "relu6"])
CLAMPS = frozenset(["hardtanh", "clamp", "clamp_min"])  # a ReLU where the minimum is 0
SEVERAL_OUTPUTS = frozenset("chunk split split_with_sizes tensor_split unbind".split())
IDENTITIES = frozenset(
    "dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout "
    "clone alias detach lift_fresh_copy contiguous".split()
)
CASTS = frozenset("to _to_copy type_as".split())
# Tensors of one value, with the shape or the data type of another tensor.
FILLS = {
    "new_zeros": 0,
    "zeros_like": 0,
    "new_ones": 1,
    "ones_like": 1,
    "new_full": 0,  # or what its argument says
    "full_like": 0,
}
PADS = frozenset(["pad", "constant_pad_nd"])
CHECKS = frozenset("_assert_tensor_metadata _assert_scalar sym_constrain_range_for_size".split())
SOFTMAXES = frozenset("softmax _softmax _safe_softmax".split())
# Sums of products of two tensors.
PRODUCTS = frozenset(
    "matmul mm bmm linear addmm baddbmm einsum conv1d conv2d conv_transpose2d".split()
)
UNSUPPORTED = frozenset(
    "conv3d conv_transpose1d conv_transpose3d bilinear embedding embedding_bag lstm gru rnn_tanh "
    "rnn_relu deform_conv2d".split()
)


def operation(node: fx.Node) -> str:
    """The name of the function that ``node`` calls, without namespace and overload, or ""."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.partition("::")[2]
    return getattr(node.target, "__name__", "")


def calls_graph(node: fx.Node) -> bool:
    """Whether the node runs a graph of its own, as control flow and contexts do."""
    return isinstance(node.target, torch._ops.HigherOrderOperator)


def source_of(node: fx.Node) -> fx.Node:
    """The node that computes the first argument."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of an ATen call by name, with their defaults."""
    assert isinstance(node.target, torch._ops.OpOverload)
    declared = node.target._schema.arguments
    values = {argument.name: argument.default_value for argument in declared}
    names = [argument.name for argument in declared]
    return values | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def called_module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, or None."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def place_(network: fx.GraphModule, device: torch.device) -> None:
    """Let the operations that name a device create their tensors on ``device``."""

    def placed(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in network.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), placed)
    network.recompile()


def is_pooling_or_shape(node: fx.Node) -> bool:
    """Whether the node only moves, selects or pools values."""
    return operation(node) in POOLING_OR_SHAPE


def is_average(node: fx.Node) -> bool:
    """Whether the node averages values, so that they leave the grid of a quantizer."""
    return operation(node) in AVERAGES


def is_relu(node: fx.Node) -> bool:
    """Whether the node is a ReLU, a ReLU6 or another clamp with minimum 0."""
    name = operation(node)
    if name in CLAMPS:
        given = arguments(node)
        return given.get("min_val", given.get("min")) == 0
    return name in RELUS


def is_softmax(node: fx.Node) -> bool:
    """Whether the values of the node are probabilities that a softmax computes."""
    return operation(node) in SOFTMAXES


def has_attention(network: fx.GraphModule) -> bool:
    """Whether the network multiplies two activations, as attention does."""
    return any(map(is_attention, network.graph.nodes))


def makes_several(node: fx.Node) -> bool:
    """Whether the value of the node is a tuple of tensors, which cannot be reconstructed."""
    return operation(node) in SEVERAL_OUTPUTS or isinstance(node.meta.get("val"), (tuple, list))


def is_attention(node: fx.Node) -> bool:
    """Whether the node multiplies two tensors that are computed from the image."""
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return operation(node) in PRODUCTS and len(sources) > 1


def is_number(node: fx.Node) -> bool:
    """Whether the value of the node is a number, such as the number of images."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt, torch.SymFloat, torch.SymBool))


def reads_values(node: fx.Node) -> bool:
    """Whether the node reads the values of its inputs, not only their shape or data type."""
    return not is_number(node) and operation(node) not in FILLS


def carries_values(node: fx.Node) -> bool:
    """Whether the node computes tensors that depend on the image, or is the image."""
    return node.op not in ("get_attr", "output") and not is_number(node)


def last_uses(network: fx.GraphModule, nodes: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """Place of the last of ``nodes`` that uses each value; the output is behind the last."""
    last: dict[fx.Node, int] = {}
    for place, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[source] = place
    last[network.graph.output_node().all_input_nodes[0]] = len(nodes)
    return last


def has_rows(value: Tensor, images: Tensor) -> bool:
    """Whether a value has one row per image."""
    return value.dim() > 0 and str(value.shape[0]) == str(images.shape[0])


def owner(node: fx.Node) -> str:
    """Path of the innermost module whose code computes the node; "" for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0].partition("@")[0] if stack else ""
