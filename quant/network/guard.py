"""The guard: the float chain computes what the user's network computes, or nothing is quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from common.errors import InputError, first_line
from quant.network.capture import CapturedNetwork
from quant.network.difference import TOLERANCE, relative_difference
from quant.network.passes import SOURCE


@torch.no_grad()
def require_equal(
    network: CapturedNetwork, named_units: Sequence[tuple[str, fx.GraphModule]]
) -> None:
    """Compare a chain of float units with the network that it was made from, on a few images.

    Raises:
        InputError: their logits differ; the text holds the difference and the first unit with it.
    """
    value = network.images
    for name, unit in named_units:
        try:
            value = unit(value)
        except RuntimeError as error:
            reason = first_line(error)
            raise InputError(f"unit {name!r} must run on its input, got {reason}") from error
    share = relative_difference(value, network.logits)
    if share <= TOLERANCE:
        return
    raise InputError(
        "network must be captured exactly, got logits that differ by "
        f"{100 * share:.3g} % of the largest logit; {_first_different(network, named_units)}"
    )


def _first_different(
    network: CapturedNetwork, named_units: Sequence[tuple[str, fx.GraphModule]]
) -> str:
    watcher = _Values(network.graph)
    captured = watcher.run(network.images)
    if relative_difference(captured, network.logits) > TOLERANCE:
        return "the graph of torch.export differs already"
    value = network.images
    for name, unit in named_units:
        value = unit(value)
        end = unit.graph.output_node().all_input_nodes[0]
        expected = watcher.seen.get(end.meta.get(SOURCE))
        if expected is not None and relative_difference(value, expected) > TOLERANCE:
            return f"the first unit that differs is {name!r}"
    return "no single unit differs by as much"


class _Values(fx.Interpreter):
    """An interpreter that keeps the value of every node by name."""

    def __init__(self, network: nn.Module):
        super().__init__(network)
        self.seen: dict[Any, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.seen[n.name] = value
        return value
