"""A unit run in two parts, so that nodes before a changed module are not computed again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx, nn

Values = dict[fx.Node, Any]  # values of earlier nodes that later nodes of a unit use


class PartialUnit:
    """A unit whose nodes can be run from any position on.

    Args:
        unit: a graph of one input and one output.
    """

    def __init__(self, unit: fx.GraphModule):
        self.unit = unit
        self.nodes = list(unit.graph.nodes)
        self.places = {node: place for place, node in enumerate(self.nodes)}
        self.runner = fx.Interpreter(unit, garbage_collect_values=False)

    def first_of(self, modules: Iterable[nn.Module]) -> int:
        """Position of the first node that calls one of the modules; without one, the node count."""
        wanted = set(modules)
        for place, node in enumerate(self.nodes):
            if node.op == "call_module" and self.unit.get_submodule(str(node.target)) in wanted:
                return place
        return len(self.nodes)

    def begin(self, value: Tensor) -> Values:
        """The values at position 1, after the input."""
        return {self.nodes[0]: value}

    def advance(self, values: Values, start: int, stop: int) -> Values:
        """The values at position ``stop``, from those at ``start``."""
        self._run(values, start, stop)
        return {node: value for node, value in self.runner.env.items() if self._used(node, stop)}

    def finish(self, values: Values, start: int) -> Tensor:
        """The output, from the values at position ``start``."""
        end = len(self.nodes) - 1
        self._run(values, start, end)
        output = self.nodes[end].args[0]
        assert isinstance(output, fx.Node)
        return self.runner.env[output]

    def _run(self, values: Values, start: int, stop: int) -> None:
        self.runner.env = dict(values)
        for node in self.nodes[start:stop]:
            self.runner.env[node] = self.runner.run_node(node)

    def _used(self, node: fx.Node, stop: int) -> bool:
        return any(self.places[user] >= stop for user in node.users)
