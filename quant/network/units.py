"""Cut of a captured network into a chain of units, which reconstruction optimises one by one.

A node is a cut point if its output is the only value that later nodes use, with one row per image.
Pieces of many layers between two cut points are cut across several values (``crossings``).
Adjacent pieces of one block are merged; a piece without weights joins the piece before it. Only
the pooling that feeds the head joins the head, so that the last block is reconstructed before its
outputs are averaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import fx

from quant.network.blocks import Blocks
from quant.network.crossings import MOST_LAYERS, pack_crossings_
from quant.network.operations import (
    carries_values,
    has_rows,
    is_attention,
    is_number,
    is_pooling_or_shape,
    last_uses,
    makes_several,
    operation,
    source_of,
)
from quant.network.passes import SOURCE
from quant.network.placement import is_layer


@dataclass
class _Piece:
    """Consecutive nodes with one input value and one output value."""

    nodes: list[fx.Node] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)  # names of its layers
    block: str | None = None  # the block that holds all its layers

    def __add__(self, other: _Piece) -> _Piece:
        return _Piece(
            self.nodes + other.nodes,
            self.layers + other.layers,
            self.block if self.layers else other.block,
        )


def cut_into_units(
    network: fx.GraphModule, containers: Iterable[str]
) -> list[tuple[str, fx.GraphModule]]:
    """Name and graph of each unit, in order; their composition equals ``network``.

    Args:
        network: with or without quantizers; the units share its modules. It is changed.
        containers: paths of the modules of the network that only hold other modules.
    """
    pack_crossings_(network, _split_at_cuts(network))
    pieces = [_describe(network, nodes) for nodes in _split_at_cuts(network)]
    attention = (name for p in pieces if any(map(is_attention, p.nodes)) for name in p.layers)
    blocks = Blocks([piece.layers for piece in pieces if piece.layers], containers, attention)
    for piece in pieces:
        owners = {blocks.block_of(layer) for layer in piece.layers}
        piece.block = owners.pop() if len(owners) == 1 else None
    merged = _join_shared(_merge(_pooling_to_head(pieces)))
    names = _unique(
        [
            piece.block or piece.nodes[-1].meta.get(SOURCE) or piece.nodes[-1].name
            for piece in merged
        ]
    )
    graphs = [_subgraph(network, piece.nodes) for piece in merged]
    return list(zip(names, graphs, strict=True))


def _unique(names: list[str]) -> list[str]:
    return [
        name if names.index(name) == place else f"{name}_{names[:place].count(name) + 1}"
        for place, name in enumerate(names)
    ]


def _split_at_cuts(network: fx.GraphModule) -> list[list[fx.Node]]:
    nodes = [node for node in network.graph.nodes if carries_values(node)]
    entry, last = nodes[0], last_uses(network, nodes)
    alive: set[fx.Node] = {entry}
    pieces: list[list[fx.Node]] = [[]]
    for place, node in enumerate(nodes[1:], 1):
        alive.add(node)
        alive = {value for value in alive if last.get(value, -1) > place}
        pieces[-1].append(node)
        if alive == {node} and not makes_several(node) and _has_rows(node, entry):
            pieces.append([])
    return [piece for piece in pieces if piece]


def _has_rows(node: fx.Node, entry: fx.Node) -> bool:
    return has_rows(node.meta["val"], entry.meta["val"])


def _describe(network: fx.GraphModule, nodes: list[fx.Node]) -> _Piece:
    return _Piece(nodes, [str(node.target) for node in nodes if is_layer(network, node)])


def _pooling_to_head(pieces: list[_Piece]) -> list[_Piece]:
    """Join pieces that only pool or reshape, directly before the last piece with layers, to it."""
    head = max(index for index, piece in enumerate(pieces) if piece.layers)
    start = head
    while start > 0 and all(is_pooling_or_shape(node) for node in pieces[start - 1].nodes):
        start -= 1
    joined = _Piece()
    for piece in pieces[start : head + 1]:
        joined += piece
    return [*pieces[:start], joined, *pieces[head + 1 :]]


def _merge(pieces: list[_Piece]) -> list[_Piece]:
    merged: list[_Piece] = []
    for piece in pieces:
        if merged and _belongs(piece, merged[-1]):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _belongs(piece: _Piece, before: _Piece) -> bool:
    if not piece.layers or not before.layers:
        return True
    same = piece.block is not None and piece.block == before.block
    return same and len(before.layers) + len(piece.layers) <= MOST_LAYERS


def _join_shared(pieces: list[_Piece]) -> list[_Piece]:
    """Join all pieces between two that use the same layer, which has one set of codes."""
    joined: list[_Piece] = []
    for piece in pieces:
        first = next(
            (i for i, other in enumerate(joined) if set(other.layers) & set(piece.layers)), None
        )
        if first is None:
            joined.append(piece)
            continue
        whole = joined[first]
        for other in [*joined[first + 1 :], piece]:
            whole += other
        whole.block = None if whole.block != piece.block else whole.block
        joined[first:] = [whole]
    return joined


def _subgraph(network: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    unit = _UnitGraph()
    for node in nodes:
        for source in node.all_input_nodes:
            unit.add_source(source)
        unit.add(node)
    unit.graph.output(unit.copies[nodes[-1]])
    return fx.GraphModule(network, unit.graph)


class _UnitGraph:
    """The graph of one unit while its nodes are copied from that of the network."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.entry = self.graph.placeholder("x")
        self.copies: dict[fx.Node, fx.Node] = {}

    def add(self, node: fx.Node) -> None:
        self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)

    def add_source(self, source: fx.Node) -> None:
        """Make a value available: a constant, a number, a value of the unit, or else its input."""
        if source in self.copies:
            return
        if source.op == "get_attr":
            self.add(source)
        elif not is_number(source):
            self.copies[source] = self.entry
        elif operation(source) == "sym_size" and source_of(source).op == "placeholder":
            self.copies[source] = self._count(source)
        else:
            for part in source.all_input_nodes:
                self.add_source(part)
            self.add(source)

    def _count(self, node: fx.Node) -> fx.Node:
        """The number of images, which is that of the unit's own input."""
        count = self.graph.call_function(torch.ops.aten.sym_size.int, (self.entry, 0))
        count.meta = dict(node.meta)
        return count
