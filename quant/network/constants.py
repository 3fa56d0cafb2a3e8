"""Constant folding: what a captured graph computes without the image becomes a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from quant.network.building import ORIGIN, Builder, constant, fake_of
from quant.network.operations import FILLS, arguments, operation


@torch.no_grad()
def fold_constants_(network: fx.GraphModule) -> None:
    """Compute every operation whose inputs are all constants, such as a normalised weight.

    A tensor of one value, such as the first step of Swin's mask of shifted windows, is a constant
    too, though its data type and device are those of an activation.
    """
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    values: dict[fx.Node, Any] = {}
    for node in network.graph.nodes:
        if node.op == "get_attr":
            values[node] = constant(network, node)
            node.meta[ORIGIN] = str(node.target)
            node.meta["val"] = fake_of(network, values[node])
        elif _is_filled(node):
            values[node] = _filled(node)
        elif node.op == "call_function" and all(s in values for s in node.all_input_nodes):
            given, options = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*given, **options)
            origins = [s.meta[ORIGIN] for s in node.all_input_nodes if ORIGIN in s.meta]
            origins.sort(key=lambda name: name not in parameters)
            node.meta |= {ORIGIN: origins[0]} if origins else {}
    for node, value in values.items():
        used = any(user not in values for user in node.users)
        if node.op == "call_function" and isinstance(value, Tensor) and used:
            build = Builder(network, node)
            build.finish(build.constant(value, node.meta.get(ORIGIN)))
    network.graph.eliminate_dead_code()


def _is_filled(node: fx.Node) -> bool:
    """Whether the node makes a tensor of one known value, of the same shape for all batches."""
    if operation(node) not in FILLS:
        return False
    known = not isinstance(arguments(node).get("fill_value"), fx.Node)
    return known and all(isinstance(size, int) for size in node.meta["val"].shape)


def _filled(node: fx.Node) -> Tensor:
    fake, fill = node.meta["val"], arguments(node).get("fill_value", FILLS[operation(node)])
    return torch.full(fake.shape, fill, dtype=fake.dtype, device=fake.device)
