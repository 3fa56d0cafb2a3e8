"""Bytes that a walk over the chain of units takes, from the shapes in its graphs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, fx

from quant.network.forward import RANGE_SAMPLES
from quant.network.model import QuantModel
from quant.network.operations import last_uses, source_of

FLOAT_BYTES = 4
SETS = 2  # a walk caches the activations of the float and of the quantized network


def cached_bytes(model: QuantModel, count: int) -> int:
    """Most bytes of cached activations of ``count`` images: inputs and outputs of one unit."""
    pairs = zip(_input_values(model), map(_output_values, _graphs(model)), strict=True)
    return FLOAT_BYTES * count * SETS * max(before + after for before, after in pairs)


def kept_bytes(model: QuantModel, count: int) -> int:
    """Most bytes of the inputs of all units and of the values inside one, of ``count`` images."""
    return FLOAT_BYTES * count * (sum(_input_values(model)) + _most_alive_anywhere(model))


def passing_bytes(model: QuantModel, count: int) -> int:
    """Most bytes of activations inside a unit in a pass over at most ``RANGE_SAMPLES`` images."""
    return FLOAT_BYTES * min(count, RANGE_SAMPLES) * _most_alive_anywhere(model)


def _graphs(model: QuantModel) -> Iterator[fx.GraphModule]:
    return (cast(fx.GraphModule, unit) for unit in model.units)


def _input_values(model: QuantModel) -> list[int]:
    """Values per image of the input of each unit."""
    return [math.prod(model.image_shape), *map(_output_values, _graphs(model))][:-1]


def _output_values(unit: fx.GraphModule) -> int:
    return _values(source_of(unit.graph.output_node()))


def _most_alive_anywhere(model: QuantModel) -> int:
    pairs = zip(_graphs(model), _input_values(model), strict=True)
    return max(_most_alive(unit, size) for unit, size in pairs)


def _most_alive(unit: fx.GraphModule, size: int) -> int:
    """Most values per image that exist at a time while the unit runs node by node.

    Args:
        size: values per image of its input.
    """
    nodes = [node for node in unit.graph.nodes if node.op != "output"]
    last = last_uses(unit, nodes)
    alive: dict[fx.Node, int] = {}
    most = 0
    for place, node in enumerate(nodes):
        alive[node] = size if node.op == "placeholder" else _values(node)
        most = max(most, sum(alive.values()))
        alive = {value: size for value, size in alive.items() if last.get(value, -1) > place}
    return most


def _values(node: fx.Node) -> int:
    """Values per image of the tensors that a node computes."""
    if node.op == "get_attr":
        return 0
    value = node.meta.get("val")
    parts = value if isinstance(value, (tuple, list)) else [value]
    return sum(_per_image(part) for part in parts if isinstance(part, torch.Tensor))


def _per_image(value: Tensor) -> int:
    return int(math.prod(value.shape[1:])) if value.dim() > 0 else 0
