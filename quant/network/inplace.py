"""In-place operations of an exported graph as functions of their inputs."""

from __future__ import annotations

import torch
from torch import fx

from quant.network.operations import IDENTITIES, operation

aten = torch.ops.aten


def writes_in_place(node: fx.Node) -> bool:
    """Whether the operation changes one of its inputs."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def make_functional_(graph: fx.Graph) -> bool:
    """Replace in-place operations by their functions where no other tensor shares the memory.

    Later readers of the changed tensor read the result instead. Returns whether no in-place
    operation is left; ``torch.export`` resolves the others, which takes as long as the export.
    """
    for node in list(graph.nodes):
        if writes_in_place(node) and _is_alone(node):
            changed = node.args[0]
            node.target = _function(node)
            changed.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: node < user)
    return not any(writes_in_place(node) for node in graph.nodes)


def _function(node: fx.Node) -> torch._ops.OpOverload | None:
    """The operation that computes the same without writing to its input."""
    assert isinstance(node.target, torch._ops.OpOverload)
    packet = getattr(aten, operation(node).removesuffix("_"), None)
    return getattr(packet, node.target._overloadname, None)


def _is_alone(node: fx.Node) -> bool:
    """Whether the changed tensor is the result of an operation, and nothing else is part of it."""
    changed = node.args[0]
    if not isinstance(changed, fx.Node) or changed.op != "call_function":
        return False
    if not operation(node).endswith("_") or _function(node) is None:
        return False
    earlier = [user for user in changed.users if user < node]
    return not _shares_memory(changed) and not any(map(_shares_memory, earlier))


def _shares_memory(node: fx.Node) -> bool:
    """Whether the result may be a part of an input, or the input itself."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    returns = node.target._schema.returns
    is_same = operation(node) in IDENTITIES and operation(node) != "clone"
    return is_same or any(value.alias_info for value in returns)
