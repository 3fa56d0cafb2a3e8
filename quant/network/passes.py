"""Passes over a captured network before quantizers are placed.

They fold batch norms, remove identities and make in-place operations functional.
"""

from __future__ import annotations

import operator

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from quant.network.capture import LAYERS, called_module, capture

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
DROPPED_FUNCTIONS = ("dropout", "stochastic_depth")
DROPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
INPLACE_METHODS = ("add_", "sub_", "mul_", "div_", "relu_", "clamp_", "sigmoid_", "tanh_")
OUT_OF_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul}


def trace(model: nn.Module, fold: bool = True) -> fx.GraphModule:
    """Capture a copy of ``model`` and apply the passes.

    Args:
        fold: fold batch norms into the layers before them.

    Raises:
        InputError: as ``capture``.
    """
    network = capture(model)
    _undo_inplace(network)
    _drop_identities(network)
    if fold:
        _fold_norms(network)
    network.delete_all_unused_submodules()
    network.recompile()
    return network


def _undo_inplace(network: fx.GraphModule) -> None:
    for module in network.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010  (the type of module does not declare it)
    for node in network.graph.nodes:
        if node.op == "call_function" and node.target in OUT_OF_PLACE:
            node.target = OUT_OF_PLACE[node.target]
        elif node.op == "call_method" and node.target in INPLACE_METHODS:
            node.target = node.target.removesuffix("_")
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}


def _drop_identities(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        function_name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        is_dropped_module = isinstance(called_module(network, node), DROPPED)
        if is_dropped_module or function_name in DROPPED_FUNCTIONS:
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)


def _fold_norms(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        norm = called_module(network, node)
        if not isinstance(norm, NORMS):
            continue
        before = node.args[0]
        layer = called_module(network, before)
        if not isinstance(layer, LAYERS) or len(before.users) > 1:
            continue
        network.set_submodule(str(before.target), _fused(layer, norm))
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)


def _fused(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return fuse_conv_bn_eval(layer, norm)
    return fuse_linear_bn_eval(layer, norm)
