"""Capture of a float network as a graph of operations by torch.export.

The graph holds its convolutions, linear layers and batch norms as modules, whoever wrote the call,
and everything else as ATen operations.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from common.errors import InputError
from common.torch_setup import full_float32
from quant.network.attention import decompose_attention_
from quant.network.calls import modules_from_calls_
from quant.network.constants import fold_constants_
from quant.network.difference import TOLERANCE, relative_difference
from quant.network.inplace import make_functional_
from quant.network.names import name_parts
from quant.network.operations import (
    CASTS,
    CHECKS,
    IDENTITIES,
    PADS,
    UNSUPPORTED,
    arguments,
    calls_graph,
    operation,
    owner,
    source_of,
)
from quant.network.outputs import OneOutput, chosen_output, named_outputs
from quant.network.own_copy import attributes_of, device_of, own_copy, settle_attributes, unwrapped
from quant.network.products import linear_from_products_

EXAMPLES = 8  # images on which a network and its graph are compared
FEWEST = 2  # torch.export takes a single image for a fixed number of images
LARGEST = 65_535  # images at once for which cuDNN has a batch norm; the graph takes more

aten = torch.ops.aten


@dataclass(frozen=True)
class CapturedNetwork:
    """A float network as a graph, and what it computes on a few images.

    Attributes:
        graph: layers and batch norms as modules, named after the owners of their weights.
        containers: paths of the ``nn.Sequential`` and ``nn.ModuleList``.
        images: (B, channels, height, width), at most ``EXAMPLES`` of them.
        logits: (B, classes), the outputs of the network itself on these images.
    """

    graph: fx.GraphModule
    containers: frozenset[str]
    images: Tensor
    logits: Tensor


@full_float32()
def capture(model: nn.Module, images: Tensor) -> CapturedNetwork:
    """Capture a copy of ``model`` in evaluation mode.

    Args:
        model: float32; a ``OneOutput`` if it has several outputs.
        images: (N, channels, height, width) float32; the first few are used.

    Raises:
        InputError: the network cannot run on the images, has several outputs, depends on the
            number of images, or cannot be captured; the text holds the reason of torch.export.
    """
    model, output = _without_choice(unwrapped(model))
    model = own_copy(model)
    examples = images[:EXAMPLES].clone().to(device_of(model))
    if len(examples) < FEWEST:
        examples = examples.repeat(FEWEST, *[1] * (images.dim() - 1))
    before = attributes_of(model)
    logits = _logits(model, examples, output)
    settle_attributes(model, before)
    graph = _exported(model, examples[:FEWEST], output)
    _simplify_(graph)
    decompose_attention_(graph)
    _refuse_random(graph)
    fold_constants_(graph)
    _refuse_unsupported(graph)
    linear_from_products_(graph)
    modules_from_calls_(graph)
    graph = name_parts(graph)
    _require_alone(graph, examples, logits)
    containers = (nn.Sequential, nn.ModuleList)
    paths = (path for path, part in model.named_modules() if isinstance(part, containers))
    return CapturedNetwork(graph, frozenset(paths), examples, logits)


def _without_choice(model: nn.Module) -> tuple[nn.Module, str | None]:
    if isinstance(model, OneOutput):
        return unwrapped(model.network), model.output
    return model, None


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor, output: str | None) -> Tensor:
    """The outputs of the network itself, which must be one row per image."""
    try:
        value = model(images.clone())  # which the network may write to
    except Exception as error:
        raise InputError(
            f"network must run on images of shape {_shape(images)}, got {_reason(error, model)}"
        ) from error
    logits = chosen_output(named_outputs(value), output)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        form = _shape(logits) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"network must return logits of shape ({len(images)}, classes) for {len(images)} "
            f"images, got {form}"
        )
    if not torch.isfinite(logits).all():
        raise InputError("network must return finite logits, got NaN or Inf on calibration images")
    return logits.float()


@torch.no_grad()
def _require_alone(graph: fx.GraphModule, images: Tensor, logits: Tensor) -> None:
    """Check that the logits of an image do not depend on the other images of its batch."""
    fewer = graph(images[:FEWEST])
    if not torch.isfinite(fewer).all():
        raise InputError(
            "captured network must return finite logits, as the network itself does, got NaN or "
            "Inf (a float mask of attention with a whole row of -inf does this, one of bool does "
            "not)"
        )
    share = relative_difference(fewer, logits[:FEWEST])
    if not share <= TOLERANCE:  # NaN is a difference
        raise InputError(
            "network must compute the logits of each image alone, got logits that differ by "
            f"{100 * share:.3g} % with other images in the batch or in another run"
        )


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _exported(model: nn.Module, images: Tensor, output: str | None) -> fx.GraphModule:
    """The network as a graph without in-place operations, of one input and one output."""
    from torch.export import Dim, export

    model.register_forward_pre_hook(lambda _, images: (images[0].clone(),))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = Dim("batch", max=LARGEST)
            program = export(model, (images,), dynamic_shapes=({0: batch},), strict=False)
            network = _without_effects(program.module())
            if not make_functional_(network.graph) or any(map(calls_graph, network.graph.nodes)):
                network = _without_effects(program.run_decompositions({}).module())
    except Exception as error:
        raise InputError(
            f"network must be captured by torch.export, got {type(model).__name__}: "
            f"{_reason(error, model)}"
        ) from error
    names = list(
        named_outputs(
            torch.utils._pytree.tree_unflatten(
                list(range(len(_outputs(network)))), program.call_spec.out_spec
            )
        )
    )
    return _single_output(network, names, output)


def _without_effects(network: fx.GraphModule) -> fx.GraphModule:
    """Erase the checks of inputs, and the last copies of computed values to attributes."""
    for node in reversed(list(network.graph.nodes)):
        if not node.users and (node.op == "call_module" or _is_last_copy(node)):
            network.graph.erase_node(node)
    return network


def _is_last_copy(node: fx.Node) -> bool:
    """Whether the node copies a value to an attribute that nothing reads afterwards."""
    if operation(node) != "copy_":
        return False
    goal = source_of(node)
    return goal.op == "get_attr" and not any(node < user for user in goal.users)


def _outputs(network: fx.GraphModule) -> list[Any]:
    result = network.graph.output_node().args[0]
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _single_output(network: fx.GraphModule, names: list[str], output: str | None) -> fx.GraphModule:
    """A graph of our own with one placeholder and one output; what neither uses is left out."""
    logits = chosen_output(dict(zip(names, _outputs(network), strict=True)), output)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output(copies[logits])
    graph.eliminate_dead_code()
    return fx.GraphModule(network, graph)


def _simplify_(network: fx.GraphModule) -> None:
    """Remove assertions and what changes nothing in evaluation; reshape tensors of any layout."""
    for node in list(network.graph.nodes):
        name = operation(node)
        if name in CHECKS:
            network.graph.erase_node(node)
        elif _changes_nothing(node):
            node.replace_all_uses_with(source_of(node))
            network.graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default


def _changes_nothing(node: fx.Node) -> bool:
    """Whether the node is the identity, such as a pad by 0 (of windows that divide the image).

    A cast is one if it leaves data type and device as they are.
    """
    name = operation(node)
    if name in PADS:
        return not any(arguments(node)["pad"])
    if name in CASTS:
        before, after = (n.meta.get("val") for n in (source_of(node), node))
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return False
        return before.dtype == after.dtype and before.device == after.device
    return name in IDENTITIES and not _is_active_dropout(node)


def _is_active_dropout(node: fx.Node) -> bool:
    """Whether a dropout drops values in evaluation too; of ``native_dropout``, None trains."""
    return "dropout" in operation(node) and node.args[2] is not False and bool(node.args[1])


def _refuse_unsupported(network: fx.GraphModule) -> None:
    """Refuse weights that cannot be quantized; what no image changes is a constant by now."""
    for node in network.graph.nodes:
        if operation(node) in UNSUPPORTED:
            raise InputError(
                "weights must be in convolutions, linear layers or products of two matrices, got "
                f"operation {operation(node)} in module {owner(node)!r}"
            )


def _refuse_random(network: fx.GraphModule) -> None:
    """Refuse random operations, and graphs called from graphs, in which they may be."""
    for node in network.graph.nodes:
        if calls_graph(node):
            raise InputError(
                f"network must be one graph of operations, got {node.target} in module "
                f"{owner(node)!r}"
            )
        tags = getattr(node.target, "tags", ())
        is_random = torch.Tag.nondeterministic_seeded in tags  # a recurrence only while it trains
        if node.op == "call_function" and is_random and operation(node) not in UNSUPPORTED:
            raise InputError(
                "network must compute the same logits for the same images, got the random "
                f"operation {operation(node)} in module {owner(node)!r}{_remedy(node)}"
            )


def _remedy(node: fx.Node) -> str:
    of_dropout = "dropout" in operation(node)
    return " (F.dropout needs training=self.training)" if of_dropout else ""


def _reason(error: BaseException, model: nn.Module) -> str:
    """The first line of an error, and the module whose code raised it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if reason.startswith("Constraints violated (batch)"):
        reason = "its code depends on the number of images"
    paths = {id(module): path for path, module in model.named_modules() if path}
    where, trace = "", error.__traceback__
    while trace is not None:
        where = paths.get(id(trace.tb_frame.f_locals.get("self")), where)
        trace = trace.tb_next
    return f"{reason} (in module {where!r})" if where else reason
