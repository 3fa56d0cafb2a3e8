"""Moments of activations, measured before their ReLU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from common.errors import InputError
from evaluation.batches import forward_batches
from quant.network.forward import MOST_IMAGES
from quant.network.layers import ActivationQuantizer, QuantLayer, is_uniform
from quant.network.operations import (
    PRODUCTS,
    called_module,
    carries_values,
    is_relu,
    operation,
)

Batches = Iterator[dict[fx.Node, Tensor]]


@dataclass(frozen=True)
class Source:
    """The nodes that compute the input of an activation quantizer."""

    quantizer: ActivationQuantizer
    output: fx.Node  # input of the quantizer
    before: fx.Node  # input of the ReLU that computes ``output``; without a ReLU the same node

    @property
    def has_relu(self) -> bool:
        return self.before is not self.output


@dataclass
class Density:
    """Moments of an activation over images and positions.

    Each is float64, () for the tensor or (1, C, 1, ...) for its channels.

    ``one_sided`` means that no value is negative. After a ReLU, centre and deviations are those of
    the input of the ReLU. For other one-sided activations the centre is 0, and the deviations are
    those of the positive values.
    """

    one_sided: bool
    low: Tensor
    high: Tensor
    mean: Tensor
    centre: Tensor
    mean_deviation: Tensor  # E |x - centre|: Laplace's b
    deviation: Tensor  # standard deviation

    def scale(self, prior: str) -> Tensor:
        """The scale that multiplies the clipping values of a prior (``clipping.PRIORS``)."""
        return self.mean_deviation if prior == "laplace" else self.deviation


def find_sources(unit: fx.GraphModule) -> list[Source]:
    """The sources of all activation quantizers of a uniform grid, in the order of the network."""
    sources = []
    for node in unit.graph.nodes:
        quantizer = called_module(unit, node)
        if is_uniform(quantizer):
            output = node.args[0]
            before = output.args[0] if is_relu(output) else output
            sources.append(Source(quantizer, output, before))
    return sources


def require_channels_first(units: Iterable[nn.Module]) -> None:
    """Refuse scales per channel where dimension 1 of an activation is another than the channel.

    Linear layers and products take their channels from the last dimension: dimension 1 of what they
    read holds tokens, heads or rows, unless there are two dimensions.

    Raises:
        InputError: one of them reads values of more than two dimensions.
    """
    last = None
    for unit in units:
        assert isinstance(unit, fx.GraphModule)
        for node in unit.graph.nodes:
            sources = [last if s.op == "placeholder" else s for s in node.all_input_nodes]
            if node.op == "output":
                last = sources[0]
            elif _has_channels_last(unit, node) and any(map(_has_rows, sources)):
                raise InputError(
                    "per_channel_act must be off where linear layers or products read values of "
                    f"more than two dimensions, got it on and such values in {node.name!r}"
                )


def _has_channels_last(unit: fx.GraphModule, node: fx.Node) -> bool:
    layer = called_module(unit, node)
    is_linear = isinstance(layer, QuantLayer) and layer.codes.dim() == 2
    return is_linear or operation(node) in PRODUCTS


def _has_rows(source: fx.Node | None) -> bool:
    """Whether a value has more than two dimensions; the image (None) has none of interest."""
    return source is not None and carries_values(source) and source.meta["val"].dim() > 2


def watch(
    unit: fx.GraphModule, sources: list[Source], inputs: Tensor, device: torch.device
) -> Batches:
    """Run the unit in batches; yield for each batch the values of the nodes in ``sources``."""
    nodes = {node for source in sources for node in (source.output, source.before)}
    for batch in forward_batches(inputs, device, MOST_IMAGES):
        watcher = _Watcher(unit, nodes)
        with torch.no_grad():
            watcher.run(batch.to(device))
        yield watcher.seen


class _Watcher(fx.Interpreter):
    """An interpreter that keeps the values of some nodes."""

    def __init__(self, unit: fx.GraphModule, nodes: set[fx.Node]):
        super().__init__(unit)
        self.nodes = nodes
        self.seen: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.nodes:
            self.seen[n] = value
        return value


def measure_densities(
    unit: fx.GraphModule, inputs: Tensor, device: torch.device, per_channel: bool
) -> dict[ActivationQuantizer, Density]:
    """Measure the input of each quantizer of a unit in its current state.

    Args:
        inputs: (N, ...); the unit runs over them twice.
    """
    sources = find_sources(unit)
    densities: dict[ActivationQuantizer, Density] = {}
    ends = {source: _Ends(per_channel) for source in sources}
    for values in watch(unit, sources, inputs, device):
        for source, found in ends.items():
            found.add(values[source.output], values[source.before])
    spreads = {source: _Spread(found, source.has_relu) for source, found in ends.items()}
    for values in watch(unit, sources, inputs, device):
        for source, spread in spreads.items():
            spread.add(values[source.before])
    for source, spread in spreads.items():
        densities[source.quantizer] = spread.density()
    return densities


class _Ends:
    """Minimum, maximum and means, accumulated over batches."""

    def __init__(self, per_channel: bool):
        self.per_channel = per_channel
        self.batches: list[tuple[Tensor, ...]] = []
        self.count = 0

    def add(self, output: Tensor, before: Tensor) -> None:
        where = reduced(output, self.per_channel)
        sums = [x.sum(**where, dtype=torch.float64) for x in (output, before)]
        self.batches.append((output.amin(**where), output.amax(**where), *sums))
        self.count += output.numel() // sums[0].numel()

    def low_high_means(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lows, highs, sums, sums_before = map(torch.stack, zip(*self.batches, strict=True))
        means = (sums.sum(0) / self.count, sums_before.sum(0) / self.count)
        return lows.amin(0).double(), highs.amax(0).double(), *means


class _Spread:
    """Deviations from the centre, accumulated over batches."""

    def __init__(self, ends: _Ends, has_relu: bool):
        self.per_channel = ends.per_channel
        self.low, self.high, self.mean, self.centre = ends.low_high_means()
        self.positive_only = not has_relu and bool((self.low >= 0).all())
        self.one_sided = has_relu or self.positive_only
        if self.positive_only:
            self.centre = torch.zeros_like(self.centre)
        self.count = torch.zeros_like(self.centre)
        self.absolute = torch.zeros_like(self.centre)
        self.squared = torch.zeros_like(self.centre)

    def add(self, before: Tensor) -> None:
        where = reduced(before, self.per_channel)
        distance = before - self.centre.to(before.dtype)
        counted = before > 0 if self.positive_only else torch.ones_like(before, dtype=torch.bool)
        self.count += counted.sum(**where)
        self.absolute += distance.abs().sum(**where, dtype=torch.float64)
        self.squared += distance.square().sum(**where, dtype=torch.float64)

    def density(self) -> Density:
        count = self.count.clamp(min=1)
        return Density(
            self.one_sided,
            self.low,
            self.high,
            self.mean,
            self.centre,
            mean_deviation=self.absolute / count,
            deviation=(self.squared / count).sqrt(),
        )


def reduced(x: Tensor, per_channel: bool) -> dict[str, Any]:
    """Arguments that reduce ``x`` to (), or to (1, C, 1, ...) per channel."""
    if not per_channel:
        return {"dim": tuple(range(x.dim())), "keepdim": False}
    return {"dim": tuple(dim for dim in range(x.dim()) if dim != 1), "keepdim": True}
