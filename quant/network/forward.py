"""Forward passes over many images in batches."""

from __future__ import annotations

from collections.abc import Callable
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
    batches = forward_batches(inputs, device, MOST_IMAGES)
    runs = [fx.Interpreter(graph) for _ in batches]
    for run, batch in zip(runs, batches, strict=True):
        run.args_iter = iter([batch.to(device)])
    for node in graph.graph.nodes:
        if node.op == "output":
            break
        quantizer = called_module(graph, node)
        if isinstance(quantizer, ActivationQuantizer):
            reach(quantizer, [run.env[source_of(node)] for run in runs])
        for run in runs:
            run.env[node] = run.run_node(node)
            for value in run.user_to_last_uses.get(node, []):
                del run.env[value]
    last = source_of(graph.graph.output_node())
    return cache.joined((run.env.pop(last) for run in runs), inputs)
