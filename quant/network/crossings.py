"""Cuts across several values: parts of blocks that keep many values alive, such as DenseNet's.

Where several values cross a cut, they are packed into one tensor in front of it and unpacked
behind it, so that a unit still has one input and one output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from quant.network.building import Builder
from quant.network.operations import carries_values, has_rows, last_uses
from quant.network.placement import is_layer

MOST_LAYERS = 12  # of a unit
FEWEST_LAYERS = 6  # of a part that is cut off

aten = torch.ops.aten


def pack_crossings_(network: fx.GraphModule, pieces: Sequence[Sequence[fx.Node]]) -> None:
    """Pack the values that cross cuts inside the pieces of more than ``MOST_LAYERS`` layers.

    Args:
        pieces: the nodes between cuts that one value crosses.
    """
    alive = _Alive(network)
    unpacked: dict[fx.Node, fx.Node] = {}
    for piece in pieces:
        for place in _chosen(alive, [node for node in piece if is_layer(network, node)]):
            values = alive.before(place)
            parts = _pack_(network, place, [unpacked.get(value, value) for value in values])
            unpacked |= dict(zip(values, parts, strict=True))
    network.graph.lint()
    network.recompile()


def _chosen(alive: _Alive, layers: list[fx.Node]) -> list[fx.Node]:
    """The nodes in front of which to cut, where the fewest numbers cross."""
    chosen, start = [], 0
    while len(layers) - start > MOST_LAYERS:
        counts = range(start + FEWEST_LAYERS, start + MOST_LAYERS + 1)
        places = {count: alive.narrowest(layers[count - 1], layers[count]) for count in counts}
        sizes = {count: alive.numbers(place) for count, place in places.items()}
        start = min(counts, key=lambda count: (sizes[count], -count))
        if math.isinf(sizes[start]):
            break
        chosen.append(places[start])
    return chosen


class _Alive:
    """The values that cross each place of a graph."""

    def __init__(self, network: fx.GraphModule):
        self.nodes = [node for node in network.graph.nodes if carries_values(node)]
        self.places = {node: place for place, node in enumerate(self.nodes)}
        self.last = last_uses(network, self.nodes)

    def before(self, node: fx.Node) -> list[fx.Node]:
        """The values that are computed in front of a node and used by it or behind it."""
        place = self.places[node]
        return [one for one in self.nodes[:place] if self.last.get(one, -1) >= place]

    def narrowest(self, start: fx.Node, end: fx.Node) -> fx.Node:
        """The last node behind ``start``, up to ``end``, in front of which the fewest cross."""
        nodes = self.nodes[self.places[start] + 1 : self.places[end] + 1]
        return min(reversed(nodes), key=self.numbers)

    def numbers(self, node: fx.Node) -> float:
        """How many numbers per image cross the place in front of a node; infinite: no cut there."""
        values = [one.meta["val"] for one in self.before(node)]
        entry = self.nodes[0].meta["val"]
        usable = all(isinstance(v, Tensor) and v.is_floating_point() for v in values)
        if not usable or not all(has_rows(value, entry) for value in values):
            return math.inf
        return sum(math.prod(map(int, value.shape[1:])) for value in values)


def _pack_(network: fx.GraphModule, place: fx.Node, values: list[fx.Node]) -> list[fx.Node]:
    """Replace the values behind ``place`` by parts of one tensor, (images, channels, positions).

    Its positions are the most that divide those of every value, so that the error of the tensor is
    a sum over channels and a mean over positions as elsewhere.
    """
    build = Builder(network, place)
    shapes = [[int(size) for size in value.meta["val"].shape[1:]] for value in values]
    positions = math.gcd(*(math.prod(shape[1:]) for shape in shapes))
    rows = [
        build(aten.reshape.default, v, [-1, math.prod(s) // positions, positions])
        for v, s in zip(values, shapes, strict=True)
    ]
    packed = build(aten.cat.default, rows, 1)
    parts, start = [], 0
    for value, shape in zip(values, shapes, strict=True):
        channels = math.prod(shape) // positions
        part = build(aten.slice.Tensor, packed, 1, start, start + channels)
        whole = build(aten.reshape.default, part, [-1, *shape])
        start += channels
        _use_behind_(value, whole)
        parts.append(whole)
    return parts


def _use_behind_(value: fx.Node, replacement: fx.Node) -> None:
    value.replace_all_uses_with(replacement, delete_user_cb=lambda user: replacement < user)
