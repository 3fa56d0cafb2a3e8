"""Layers and batch norms from calls: each becomes a module, named after the owner of its weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from common.errors import InputError
from quant.network.building import ORIGIN, constant
from quant.network.operations import PRODUCTS, arguments, operation, owner

NORMS = frozenset("batch_norm _native_batch_norm_legit_no_training native_batch_norm".split())
STATELESS_NORMS = frozenset(["_native_batch_norm_legit"])
CONVOLUTIONS = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv_transpose2d": nn.ConvTranspose2d,
}


def modules_from_calls_(network: fx.GraphModule) -> None:
    """Replace calls of convolutions, linear layers and batch norms by calls of modules.

    Calls with equal arguments, weights included, become calls of one module. The modules have
    names of no meaning; ``quant.network.names`` renames them.

    Raises:
        InputError: a matrix of weights is in another operation, or a batch norm has no stored
            statistics.
    """
    known: dict[Any, str] = {}
    for node in list(network.graph.nodes):
        made = _module_of(network, node)
        if made is None:
            _refuse_other_weights(network, node)
            continue
        module, weight, key = made
        name = known.setdefault(key, f"layer_{len(known)}")
        if name not in network._modules:
            network.add_module(name, module)
        _call_instead_(network, node, name, weight)
    network.graph.eliminate_dead_code()


def _module_of(network: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, fx.Node, Any] | None:
    """The module that does what the node does, the node of its weight, and what it depends on."""
    name = operation(node)
    if name in STATELESS_NORMS or name in NORMS:
        return _norm(network, node)
    if name not in CONVOLUTIONS and name != "linear":
        return None
    given = arguments(node)
    weight, bias = constant(network, given["weight"]), constant(network, given["bias"])
    if weight is None or (bias is None and given["bias"] is not None):
        return None
    if weight.dtype != torch.float32:
        kind = str(weight.dtype).removeprefix("torch.")
        raise InputError(f"layers must compute in float32, got {kind} in module {owner(node)!r}")
    layer: Any = (
        _linear(weight) if name == "linear" else _convolution(CONVOLUTIONS[name], given, weight)
    )
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    given.pop("input")
    return layer.eval(), given["weight"], (name, repr(sorted(given.items())))


def _linear(weight: Tensor) -> nn.Module:
    return nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")


def _convolution(kind: type, given: dict[str, Any], weight: Tensor) -> nn.Module:
    axes = weight.dim() - 2
    groups = given["groups"]
    is_transposed = kind is nn.ConvTranspose2d
    options = {} if not is_transposed else {"output_padding": _each(given["output_padding"], axes)}
    ends = (weight.shape[0], weight.shape[1] * groups)
    inputs, outputs = ends if is_transposed else reversed(ends)
    padding = given["padding"]
    return kind(
        inputs,
        outputs,
        tuple(weight.shape[2:]),
        stride=_each(given["stride"], axes),
        padding=padding if isinstance(padding, str) else _each(padding, axes),
        dilation=_each(given["dilation"], axes),
        groups=groups,
        bias=False,
        device="meta",
        **options,
    )


def _each(values: list[int] | int, axes: int) -> tuple[int, ...]:
    values = [values] if isinstance(values, int) else list(values)
    return tuple(values * axes if len(values) == 1 else values)


def _norm(network: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, fx.Node, Any] | None:
    given = arguments(node)
    mean, variance = (constant(network, given.get(k)) for k in ("running_mean", "running_var"))
    if mean is None or variance is None or given.get("training"):
        raise InputError(
            "batch norms must have stored statistics, got none in module "
            f"{owner(node)!r}: its output depends on the other images of a batch"
        )
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    kind = kinds.get(given["input"].meta["val"].dim())
    if kind is None:
        return None
    norm = kind(len(mean), given["eps"], affine=False)
    norm.running_mean, norm.running_var = mean, variance
    for name in ("weight", "bias"):
        value = constant(network, given[name])
        if value is not None:
            setattr(norm, name, nn.Parameter(value.detach(), requires_grad=False))
    given.pop("input")
    return norm.eval(), given["running_mean"], ("norm", repr(sorted(given.items())))


def _call_instead_(network: fx.GraphModule, node: fx.Node, name: str, weight: fx.Node) -> None:
    with network.graph.inserting_before(node):
        call = network.graph.call_module(name, (arguments(node)["input"],))
    call.meta = dict(node.meta) | {"weight": weight}
    if isinstance(node.meta["val"], (tuple, list)):  # decomposed batch norms return statistics too
        call.meta["val"] = node.meta["val"][0]
        for user in list(node.users):
            user.replace_all_uses_with(call)
            network.graph.erase_node(user)
    else:
        node.replace_all_uses_with(call)
    network.graph.erase_node(node)


def _refuse_other_weights(network: fx.GraphModule, node: fx.Node) -> None:
    name = operation(node)
    parameters = {key for key, _ in network.named_parameters(remove_duplicate=False)}
    constants = [s for s in node.all_input_nodes if s.meta.get(ORIGIN) in parameters]
    matrices = [s for s in constants if s.meta["val"].dim() > 1]
    if name in PRODUCTS and matrices:
        raise InputError(
            "weights must be in convolutions, linear layers or products of two matrices, got "
            f"operation {name} in module {owner(node)!r}"
        )
