"""Forward passes over many images in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, fx, nn

from evaluation.batches import forward_batches
from quant.network.cached import ActivationCache
from quant.network.layers import ActivationQuantizer
from quant.network.operations import called_module, source_of

IN_MEMORY = ActivationCache()
RANGE_SAMPLES = 256  # images for activation ranges, as in QDrop and PD-Quant
MOST_IMAGES = 64  # in a batch

Visit = Callable[[fx.Node, Sequence[fx.Interpreter]], None]


def _pass_by(node: fx.Node, runs: Sequence[fx.Interpreter]) -> None:
    """Do nothing at a node."""


@torch.no_grad()
def run_unit(
    unit: nn.Module, inputs: Tensor, device: torch.device, cache: ActivationCache = IN_MEMORY
) -> Tensor:
    """Run a unit on (N, ...) inputs in batches.

    The output is on the device of ``inputs``, in pinned memory if they are.
    """
    batches = forward_batches(inputs, device, MOST_IMAGES)
    return cache.joined((unit(batch.to(device)) for batch in batches), inputs)


@torch.no_grad()
def run_front_to_back(
    unit: nn.Module,
    inputs: Tensor,
    device: torch.device,
    reach: Callable[[ActivationQuantizer, list[Tensor]], None],
    cache: ActivationCache = IN_MEMORY,
) -> Tensor:
    """Run a unit as ``run_unit`` does, but each of its operations on all batches before the next.

    Args:
        reach: called with each activation quantizer, before it is run, and its input of every
            batch; it may set the quantizer.
    """
    graph = cast(fx.GraphModule, unit)

    def before(node: fx.Node, runs: Sequence[fx.Interpreter]) -> None:
        quantizer = called_module(graph, node)
        if isinstance(quantizer, ActivationQuantizer):
            reach(quantizer, [run.env[source_of(node)] for run in runs])

    return cache.joined(run_in_step(graph, inputs, device, MOST_IMAGES, before), inputs)


@torch.no_grad()
def run_in_step(
    graph: fx.GraphModule,
    inputs: Tensor,
    device: torch.device,
    batch_size: int,
    before: Visit = _pass_by,
    after: Visit = _pass_by,
) -> Iterator[Tensor]:
    """Run each operation of a graph on all batches before the next; the outputs of the batches.

    Args:
        before, after: called with each node and the interpreters of all batches, before and after
            it is run.
    """
    batches = forward_batches(inputs, device, batch_size)
    runs = [fx.Interpreter(graph) for _ in batches]
    for run, batch in zip(runs, batches, strict=True):
        run.args_iter = iter([batch.to(device)])
    for node in graph.graph.nodes:
        if node.op == "output":
            break
        before(node, runs)
        for run in runs:
            run.env[node] = run.run_node(node)
        after(node, runs)
        for run in runs:
            for value in run.user_to_last_uses.get(node, []):
                del run.env[value]
    last = source_of(graph.graph.output_node())
    return (run.env.pop(last) for run in runs)
