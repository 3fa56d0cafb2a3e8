"""Changes of a captured graph: new operations and constants, each with the value it would have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

ORIGIN = "origin"  # key of a constant's meta: name of the parameter or buffer that it comes from
FOLDED = "folded"  # prefix of the names of computed constants


class Builder:
    """Adds nodes to a graph before ``place``, and gives them its module and their fake value."""

    def __init__(self, network: fx.GraphModule, place: fx.Node):
        self.network = network
        self.place = place

    def __call__(self, target: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> fx.Node:
        """Add the call of an ATen operation."""
        with self.network.graph.inserting_before(self.place):
            node = self.network.graph.call_function(target, args, kwargs)
        given, options = fx.node.map_arg((args, kwargs), lambda source: source.meta["val"])
        node.meta = dict(self.place.meta) | {"val": target(*given, **options)}
        return node

    def constant(self, value: Tensor, origin: str | None) -> fx.Node:
        """Add a tensor that the network holds from now on."""
        name = f"{FOLDED}_{self.place.name}"
        while hasattr(self.network, name):
            name += "_"
        self.network.register_buffer(name, value.detach().clone().contiguous())
        with self.network.graph.inserting_before(self.place):
            node = self.network.graph.get_attr(name)
        node.meta = dict(self.place.meta) | {"val": fake_of(self.network, value)}
        if origin is not None:
            node.meta[ORIGIN] = origin
        return node

    def finish(self, node: fx.Node) -> None:
        """Use ``node`` where ``place`` was used, and remove ``place``."""
        self.place.replace_all_uses_with(node)
        self.network.graph.erase_node(self.place)


def fake_of(network: fx.GraphModule, value: Tensor) -> Tensor:
    """A tensor of the same shape, which is fixed, that holds no values, of the same export."""
    entry = next(node for node in network.graph.nodes if node.op == "placeholder")
    return entry.meta["val"].fake_mode.from_tensor(value, static_shapes=True)


def constant(network: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor of a ``get_attr`` node, or None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = network
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None
