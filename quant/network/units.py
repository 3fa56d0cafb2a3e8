"""Cut of a traced network into a chain of units, which reconstruction optimises one by one.

A node is a cut point if its output is the only value that later nodes use. Adjacent pieces of one
block module are merged; a piece without weights joins the piece before it. Only the pooling that
feeds the head joins the head, so that the last block is reconstructed before its outputs are
averaged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx, nn

from common.errors import InputError
from quant.network.capture import LAYERS, is_layer
from quant.network.layers import QuantLayer
from quant.network.placement import is_pooling_or_shape

TUPLE_MAKERS = ("chunk", "split", "tensor_split", "unbind")


@dataclass
class _Piece:
    """Consecutive nodes with one input value and one output value."""

    nodes: list[fx.Node] = field(default_factory=list)
    block: str | None = None  # the block module whose layers it holds
    has_layer: bool = False


def cut_into_units(network: fx.GraphModule, model: nn.Module) -> list[tuple[str, fx.GraphModule]]:
    """Name and graph of each unit, in order; their composition equals ``network``.

    Args:
        network: traced from ``model``, with or without quantizers; the units share its modules.
        model: the original network; its module types determine the block that a layer belongs to.

    Raises:
        InputError: the network has several layers but no cut point.
    """
    pieces = [_describe(network, model, nodes) for nodes in _split_at_cuts(network)]
    layers = sum(is_layer(network, node) for node in network.graph.nodes)
    if len(pieces) == 1 and layers > 1:
        raise InputError(_no_cut_text(network))
    merged = _merge(_pooling_to_head(network, pieces))
    return [
        (piece.block or piece.nodes[-1].name, _subgraph(network, piece.nodes)) for piece in merged
    ]


def _last_uses(network: fx.GraphModule) -> dict[fx.Node, int]:
    """Position of the last node that uses each value."""
    last: dict[fx.Node, int] = {}
    for position, node in enumerate(network.graph.nodes):
        for source in node.all_input_nodes:
            last[source] = position
    return last


def _split_at_cuts(network: fx.GraphModule) -> list[list[fx.Node]]:
    last = _last_uses(network)
    alive: set[fx.Node] = set()
    pieces: list[list[fx.Node]] = [[]]
    for position, node in enumerate(network.graph.nodes):
        if node.op in ("placeholder", "call_module", "call_function", "call_method"):
            alive.add(node)
        alive = {value for value in alive if last.get(value, -1) > position}
        if not node.op.startswith("call_"):
            continue
        pieces[-1].append(node)
        if alive == {node} and not _makes_several(node):
            pieces.append([])
    return [nodes for nodes in pieces if nodes]


def _makes_several(node: fx.Node) -> bool:
    """Whether the value of the node is a tuple of tensors, which cannot be reconstructed."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in TUPLE_MAKERS


def _describe(network: fx.GraphModule, model: nn.Module, nodes: list[fx.Node]) -> _Piece:
    blocks = {_block_of(str(node.target), model) for node in nodes if is_layer(network, node)}
    block = blocks.pop() if len(blocks) == 1 else None
    return _Piece(nodes, block, has_layer=any(is_layer(network, node) for node in nodes))


def _block_of(layer: str, model: nn.Module) -> str:
    """The outermost ancestor of the layer that is not a container of blocks, else the layer."""
    parts = layer.split(".")
    for depth in range(1, len(parts)):
        ancestor = ".".join(parts[:depth])
        if not _is_container(model.get_submodule(ancestor), model):
            return ancestor
    return layer


def _is_container(module: nn.Module, model: nn.Module) -> bool:
    """Whether a module is a container of blocks: an ``nn.Sequential`` or a backbone.

    A backbone holds more than half of all layers, and a block of several layers.
    """
    if isinstance(module, nn.Sequential):
        return True
    inner = (part for part in module.modules() if part is not module)
    return 2 * _count_layers(module) > _count_layers(model) and any(
        _count_layers(part) > 1 for part in inner if not isinstance(part, nn.Sequential)
    )


def _count_layers(module: nn.Module) -> int:
    return sum(isinstance(part, (*LAYERS, QuantLayer)) for part in module.modules())


def _pooling_to_head(network: fx.GraphModule, pieces: list[_Piece]) -> list[_Piece]:
    """Join pieces that only pool or reshape, directly before the last piece with layers, to it."""
    head = max(index for index, piece in enumerate(pieces) if piece.has_layer)
    start = head
    while start > 0 and _only_pools(network, pieces[start - 1]):
        start -= 1
    nodes = [node for piece in pieces[start : head + 1] for node in piece.nodes]
    return [*pieces[:start], _Piece(nodes, pieces[head].block, has_layer=True), *pieces[head + 1 :]]


def _only_pools(network: fx.GraphModule, piece: _Piece) -> bool:
    return all(is_pooling_or_shape(network, node) for node in piece.nodes)


def _merge(pieces: list[_Piece]) -> list[_Piece]:
    merged: list[_Piece] = []
    for piece in pieces:
        joins = merged and (
            not piece.has_layer
            or not merged[-1].has_layer
            or (piece.block is not None and piece.block == merged[-1].block)
        )
        if not joins:
            merged.append(piece)
            continue
        merged[-1].nodes += piece.nodes
        if not merged[-1].has_layer:
            merged[-1].block, merged[-1].has_layer = piece.block, piece.has_layer
    return merged


def _subgraph(network: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    inside = set(nodes)
    copies: dict[fx.Node, fx.Node] = {}
    entry = graph.placeholder("x")
    for node in nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in copies:
                copies[source] = graph.node_copy(source)
            elif source not in inside and source not in copies:
                copies[source] = entry
        copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output(copies[nodes[-1]])
    return fx.GraphModule(network, graph)


def _no_cut_text(network: fx.GraphModule) -> str:
    """Error text that names the value used the longest way back, and the operation that uses it."""
    nodes = list(network.graph.nodes)
    last = _last_uses(network)
    values = [node for node in nodes if node.op not in ("get_attr", "output") and node in last]
    held = max(values, key=lambda node: last[node] - nodes.index(node))
    user = nodes[last[held]]
    stack = user.meta.get("nn_module_stack") or {}
    where = next(reversed(stack), type(network).__name__)
    return (
        f"network must be a chain of blocks, got operation {user.name!r} in module {where!r}, "
        f"which needs {held.name!r} up to there"
    )
