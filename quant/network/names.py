"""Names of a captured graph: layers after the owners of their weights, nodes after modules."""

from __future__ import annotations

from typing import Any

from torch import fx

from quant.network.building import ORIGIN, constant
from quant.network.operations import operation, owner

PARAMETRIZED = ".parametrizations."
# A weight, with its names under weight and spectral normalisation, pruning and batch norms.
WEIGHT_NAMES = frozenset("weight weight_v weight_g weight_orig running_mean".split())


def name_parts(network: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph whose layers, constants and nodes have names that users know.

    A layer is named after the module that holds its weight; a node after the module of torch.nn
    that computes it, or after its operation.
    """
    layers = _layer_names(network)
    parts: dict[str, Any] = {new: network.get_submodule(old) for old, new in layers.items()}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        target = node.target
        if node.op == "call_module":
            target = layers[str(target)]
        elif node.op == "get_attr":
            target = f"constants.{node.name}"
            parts[target] = constant(network, node)
        name = str(target) if node.op == "call_module" else _name(node)
        copies[node] = graph.create_node(
            node.op,
            target,
            fx.node.map_arg(node.args, copies.__getitem__),
            fx.node.map_arg(node.kwargs, copies.__getitem__),
            name.replace(".", "_"),
        )
        copies[node].meta = dict(node.meta)
        copies[node].meta.pop("weight", None)
    return fx.GraphModule(parts, graph).eval()


def _layer_names(network: fx.GraphModule) -> dict[str, str]:
    """Present name -> new name of each layer and batch norm."""
    found: dict[str, str] = {}
    for node in network.graph.nodes:
        if node.op == "call_module" and node.target not in found:
            found[str(node.target)] = _wanted(node)
    names: dict[str, str] = {}
    taken: set[str] = set()
    for old, wanted in found.items():
        if any(other.startswith(wanted + ".") for other in found.values()):
            wanted += ".weight"  # a module may not be part of a layer
        new, count = wanted, 1
        while new in taken:
            new, count = f"{wanted}_{count}", count + 1
        taken.add(new)
        names[old] = new
    return names


def _wanted(node: fx.Node) -> str:
    origin = node.meta["weight"].meta.get(ORIGIN, "")
    if PARAMETRIZED in origin:
        return origin.partition(PARAMETRIZED)[0]
    holder, _, name = origin.rpartition(".")
    if name in WEIGHT_NAMES and holder:
        return holder
    return origin.removesuffix("_weight") or owner(node) or node.name


def _name(node: fx.Node) -> str:
    """Name of the module of torch.nn whose result the node is, else of the operation."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if stack and operation(node):
        path, kind = stack[-1]
        is_module = str(kind).startswith("torch.nn.modules.") and path
        if is_module and all(owner(user) != owner(node) for user in node.users):
            return owner(node)
    return operation(node).rstrip("_") or node.name
