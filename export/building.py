"""Makes the nodes and initialisers of an ONNX graph that replace one of our own operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

CODES, SCALE, ZERO_POINT = "codes", "scale", "zero_point"


class Builder:
    """Makes the nodes and initialisers that replace one node."""

    def __init__(self, graph: ir.Graph, node: ir.Node, name: str):
        self.graph, self.node, self.name = graph, node, name
        self.nodes: list[ir.Node] = []

    def constant(self, what: str, values: np.ndarray, dtype: Any = np.float32) -> ir.Value:
        name = f"{self.name}.{what}"
        tensor = ir.Tensor(np.array(values, order="C").astype(dtype), name=name)
        value = ir.Value(
            name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
        )
        self.graph.register_initializer(value)
        return value

    def add(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        name = f"{self.name}.{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, inputs=inputs, attributes=attributes, name=name)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def finish(self, result: ir.Value) -> None:
        """Insert the new nodes and make ``result`` the output in place of the old node's.

        A node that only the old one read is removed as well.
        """
        former = self.node.outputs[0]
        result.shape, result.type = former.shape, former.type
        self.graph.insert_before(self.node, self.nodes)
        former.replace_all_uses_with(result, replace_graph_outputs=True)
        sources = [value.producer() for value in self.node.inputs if value is not None]
        self.graph.remove(self.node, safe=True)
        for source in sources:
            if source is not None and not any(value.uses() for value in source.outputs):
                self.graph.remove(source, safe=True)
