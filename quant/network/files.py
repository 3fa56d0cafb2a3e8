"""The graphs of a quantized chain as plain values, so that a file needs no code of the user's.

A value is a dict, list, string, number or None. Tensors are in the state dict.
"""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from common.errors import InputError
from quant.network.layers import (
    ActivationQuantizer,
    Log2Quantizer,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
)

# Python's own functions in a graph: parts of tuples, and arithmetic with the number of images.
FUNCTIONS: dict[str, Callable] = {
    name: getattr(operator, name) for name in ("getitem", "mul", "add", "sub", "floordiv")
}
REFUSED = ("from_file",)  # ATen operations that reach beyond tensors
TORCH_VALUES = {
    torch.dtype: "dtype",
    torch.memory_format: "memory_format",
    torch.layout: "layout",
}
CONVOLUTION = ("stride", "padding", "dilation", "groups")
NORM = ("num_features", "eps")
NODE, DEVICE = "node", "device"
OPERATIONS = ("placeholder", "get_attr", "call_module", "call_function", "output")
INPUT = "x"
PATH = re.compile(r"[\w-]+(\.[\w-]+)*")  # of a module or a tensor; nothing that is code elsewhere
DEEPEST = 8  # nesting of arguments


def describe_unit(unit: fx.GraphModule) -> dict[str, Any]:
    """A unit as plain values, from which ``build_unit`` makes an equal one."""
    return {
        "modules": {
            name: _describe_module(module)
            for name, module in unit.named_modules()
            if isinstance(module, (QuantLayer, ActivationQuantizer, *FLOAT_MODULES.values()))
        },
        "nodes": [_describe_node(node) for node in unit.graph.nodes],
    }


def build_unit(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> fx.GraphModule:
    """The unit of a description; its quantized layers hold no float weights.

    Args:
        tensors: state dict of the unit, for the shapes of its layers and its constants.

    Raises:
        InputError: an operation is unknown or refused.
    """
    for name in described["modules"]:
        _require_path(name)
    parts: dict[str, Any] = {
        name: _build_module(form, name, tensors) for name, form in described["modules"].items()
    }
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for row in described["nodes"]:
        _require_safe(row, first=not nodes)
        op, name, target, arguments, options = row
        found = _function(target, options) if op == "call_function" else target
        if op == "get_attr":
            parts[target] = torch.zeros_like(tensors[target])
        named = {key: _decoded(value, nodes) for key, value in options.items()}
        nodes[name] = graph.create_node(op, found, tuple(_decoded(arguments, nodes)), named, name)
    unit = fx.GraphModule(parts, graph)
    unit.graph.lint()
    return unit


def _require_safe(row: list[Any], first: bool) -> None:
    """Check what would become a part of Python code, which torch.fx makes of a graph.

    Raises:
        InputError: it is more than a name, or the operation may run code of the file.
    """
    op, name, target, _, options = row
    if op not in OPERATIONS or (op == "placeholder") != first:
        raise InputError(f"nodes must be one input, then operations, got {op!r}")
    for word in (name, *options):
        if not isinstance(word, str) or not word.isidentifier() or keyword.iskeyword(word):
            raise InputError(f"names of nodes and arguments must be identifiers, got {word!r}")
    if op == "placeholder" and target != INPUT:
        raise InputError(f"the input must be named {INPUT!r}, got {target!r}")
    if op in ("call_module", "get_attr"):
        _require_path(target)


def _require_path(name: Any) -> None:
    if not isinstance(name, str) or PATH.fullmatch(name) is None:
        raise InputError(f"modules and tensors must have plain names, got {name!r}")


def _describe_node(node: fx.Node) -> list[Any]:
    target: Any = node.target
    if node.op == "call_function":
        target = _function_name(node)
    return [node.op, node.name, target, _encoded(list(node.args)), _encoded(dict(node.kwargs))]


def _function_name(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return str(node.target)
    names = [name for name, function in FUNCTIONS.items() if function is node.target]
    if not names:
        raise InputError(f"operations must be torch's own (aten), got {node.target} ({node.name})")
    return names[0]


def _function(name: Any, options: dict[str, Any]) -> Callable:
    if name in FUNCTIONS and not options:
        return FUNCTIONS[name]
    space, _, rest = str(name).partition(".")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if space != "aten" or packet in REFUSED or not isinstance(found, torch._ops.OpOverload):
        raise InputError(f"operation must be one of torch {torch.__version__}, got {name!r}")
    if found._schema.is_mutable:
        raise InputError(f"operation must not write to its inputs, got {name!r}")
    known = {argument.name for argument in found._schema.arguments}
    if not known.issuperset(options):
        raise InputError(f"arguments of {name} must be among {sorted(known)}, got {list(options)}")
    return found


def _encoded(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {NODE: value.name}
    if isinstance(value, (list, tuple)):
        return [_encoded(part) for part in value]
    if isinstance(value, dict):
        return {key: _encoded(part) for key, part in value.items()}
    if isinstance(value, torch.device):
        return {DEVICE: value.type}
    for kind, key in TORCH_VALUES.items():
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"operations must have plain arguments, got {type(value).__name__}")


def _decoded(value: Any, nodes: dict[str, fx.Node], depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise InputError(f"arguments must be nested at most {DEEPEST} deep, got more")
    if isinstance(value, list):
        return [_decoded(part, nodes, depth + 1) for part in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (key, name), *_ = value.items()
        if key == NODE:
            return nodes[name]
        if key == DEVICE:
            return torch.device("cpu")  # where a network is read to, wherever it was saved
        for kind, known in TORCH_VALUES.items():
            if key == known:
                return _torch_value(kind, name)
    return {key: _decoded(part, nodes, depth + 1) for key, part in value.items()}


def _torch_value(kind: type, name: Any) -> Any:
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, kind):
        raise InputError(f"arguments must name a {kind.__name__} of torch, got {name!r}")
    return found


QUANTIZERS = {kind.__name__: kind for kind in (ActivationQuantizer, Log2Quantizer)}
FLOAT_MODULES: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
}


def _describe_module(module: Any) -> dict[str, Any]:
    form: dict[str, Any] = {"type": type(module).__name__}
    if isinstance(module, ActivationQuantizer):
        return form | {"bits": module.num_bits, "is_end": module.is_end}
    if isinstance(module, QuantLayer):
        form |= {"per_channel": module.per_channel, "is_end": module.is_end}
    kept: tuple[str, ...] = CONVOLUTION if isinstance(module, (QuantConv2d, nn.Conv2d)) else ()
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        kept = NORM
    return form | {name: _encoded(getattr(module, name)) for name in kept}


def _build_module(form: dict[str, Any], name: str, tensors: dict[str, torch.Tensor]) -> nn.Module:
    kind = form["type"]
    if kind in QUANTIZERS:
        return QUANTIZERS[kind](form["bits"], form["is_end"])
    if kind in ("BatchNorm1d", "BatchNorm2d"):
        affine = f"{name}.weight" in tensors
        return FLOAT_MODULES[kind](form["num_features"], form["eps"], affine=affine).eval()
    is_quantized = kind in (QuantConv2d.__name__, QuantLinear.__name__)
    shape = tensors[f"{name}.codes" if is_quantized else f"{name}.weight"].shape
    has_bias = f"{name}.bias" in tensors
    if kind.endswith("Linear"):
        layer: Any = nn.Linear(shape[1], shape[0], has_bias)
    else:
        options: dict[str, Any] = {key: _tuple(form[key]) for key in CONVOLUTION}
        layer = nn.Conv2d(
            shape[1] * form["groups"], shape[0], (shape[2], shape[3]), bias=has_bias, **options
        )
    if not is_quantized:
        return layer
    quantized = (QuantLinear if kind.endswith("Linear") else QuantConv2d)(
        layer, 8, form["per_channel"], form["is_end"]
    )
    quantized.weight = quantized.float_bias = None
    return quantized


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
