"""Capture of a float network as a graph of operations by torch.fx, without model-specific code."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import fx, nn

from common.errors import InputError
from quant.network.layers import QuantLayer

LAYERS = (nn.Conv2d, nn.Linear)


def capture(model: nn.Module) -> fx.GraphModule:
    """Trace a copy of ``model`` in evaluation mode.

    Raises:
        InputError: the network cannot be traced, uses a layer twice, or has weights outside
            modules of 2-d convolution, linear layer and normalisation.
    """
    model = copy.deepcopy(model).eval()
    try:
        network = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise InputError(
            f"network must be traceable by torch.fx, got {type(model).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    _refuse_unsupported(network)
    return network


def called_module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, or None."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_layer(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node is a convolution or linear layer, quantized or not."""
    return isinstance(called_module(network, node), (*LAYERS, QuantLayer))


def _refuse_unsupported(network: fx.GraphModule) -> None:
    calls: dict[str, int] = {}
    for node in network.graph.nodes:
        if node.op == "call_function" and node.target in (F.conv2d, F.linear, torch.conv2d):
            raise InputError(
                "layers must be nn.Conv2d or nn.Linear modules, got a call of "
                f"{node.target.__name__} ({node.name})"
            )
        module = called_module(network, node)
        if module is None:
            continue
        calls[node.target] = calls.get(node.target, 0) + 1
        has_matrix = any(parameter.dim() > 1 for parameter in module.parameters())
        if has_matrix and not isinstance(module, (*LAYERS, nn.LayerNorm)):
            raise InputError(
                f"weights must be in Conv2d or Linear layers, got module {node.target!r} "
                f"({type(module).__name__})"
            )
        if isinstance(module, nn.Conv2d) and module.groups > module.in_channels:
            raise InputError(
                f"groups must be at most the {module.in_channels} channels, "
                f"got {module.groups} in {node.target!r}"
            )
        if isinstance(module, LAYERS) and calls[node.target] > 1:
            raise InputError(
                f"a layer must be used once per forward, got module {node.target!r} used again"
            )
