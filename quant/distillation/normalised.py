"""Batch normalization in the training of a network that no longer has any.

The batch norms of a quantized network are folded, so that a change of a few codes moves the mean
and the standard deviation of a channel, and with them the input of all later layers. While the
network is trained, the output ``y`` of a convolution is therefore normalised over the batch (Ioffe
& Szegedy, "Batch Normalization", ICML 2015, arXiv:1502.03167):

    (y - mean(y)) / sqrt(var(y) + eps) * spread * gain + level + spread * shift

with the level and spread of the channel at the start, where gain 1 and shift 0 change nothing, and
gain and shift trained. The statistics of the result are estimated anew on calibration images, as
codes that changed last have moved them (Nagel et al., "Overcoming Oscillations in
Quantization-Aware Training", ICML 2022, arXiv:2203.11086, section 3.2), and become part of scale
and bias.

Letters: O output channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.network.forward import run_unit
from quant.network.layers import QuantConv2d, QuantLayer
from quant.network.model import QuantModel
from quant.network.operations import called_module
from quant.network.output_moments import Moments, output_moments

LEAST_VALUES = 256  # of a channel in a batch: with fewer its variance is too uncertain
LEAST_SPREAD = 1e-4  # variance that is added, relative to the mean one of the layer
TINY = 1e-12


class NormalisedOutput:
    """A forward hook of a convolution that normalises its output.

    Attributes:
        gain, shift: (O,), 1 and 0 at the start; trained.
        start: mean and variance of the output at the start, each (O,).
        estimate: mean and variance of the output, each (O,).
        over_batch: normalise with the statistics of the batch instead of the estimate.
        noted: mean, variance and size of batches that are to be an estimate; None notes nothing.
    """

    def __init__(self, layer: QuantLayer, start: Moments):
        self.layer = layer
        mean, variance = start.mean.float(), start.variance.float()
        self.start_from(mean, variance)
        self.gain = torch.ones_like(mean).requires_grad_(True)
        self.shift = torch.zeros_like(mean).requires_grad_(True)
        self.over_batch = False
        self.noted: list[tuple[Tensor, Tensor, int]] | None = None

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weight, bias = self.spread * self.gain, self.level + self.spread * self.shift
        if self.over_batch:
            if self.noted is not None:
                variance, mean = torch.var_mean(output, (0, 2, 3), correction=0)
                self.noted.append((mean, variance, len(output)))
            return F.batch_norm(output, None, None, weight, bias, True, 0.0, self.eps)
        return F.batch_norm(output, *self.estimate, weight, bias, False, 0.0, self.eps)

    def start_from(self, mean: Tensor, variance: Tensor) -> None:
        """Take level and spread, to which gain and shift relate, from (O,) statistics."""
        self.start = self.estimate = mean, variance
        self.eps = LEAST_SPREAD * float(variance.mean()) + TINY
        self.level, self.spread = mean, (variance + self.eps).sqrt()

    def use_noted(self) -> None:
        """Make the statistics of the batches that were noted the estimate."""
        assert self.noted
        means, variances, sizes = zip(*self.noted, strict=True)
        shares = (torch.tensor(sizes) / sum(sizes)).to(self.level.device)
        mean = shares @ torch.stack(means)
        self.estimate = (
            mean,
            shares @ (torch.stack(variances) + (torch.stack(means) - mean).square()),
        )
        self.noted = None

    @torch.no_grad()
    def fold(self) -> None:
        """Make gain, shift and the estimated statistics part of the scale and bias of the layer."""
        mean, variance = self.estimate
        factor = self.gain * self.spread / (variance + self.eps).sqrt()
        bias = torch.zeros_like(mean) if self.layer.bias is None else self.layer.bias
        self.layer.stretch(factor)
        level = self.level + self.spread * self.shift
        self.layer.bias = level + factor * (bias - mean)


class Normalisation:
    """Normalises the outputs of the convolutions of a quantized network for which that is possible.

    These have one scale per output channel, are called once and have enough values in a batch of
    the training.

    Args:
        layers: the layers that are trained.
        images: (N, ...), on which the start is measured.
        batch: number of images in a step of the training.
    """

    def __init__(self, network: QuantModel, layers: list[QuantLayer], images: Tensor, batch: int):
        calls = _calls(network)
        candidates = [layer for layer in layers if _scales_channels(layer) and calls[layer] == 1]
        start = output_moments(network, candidates, images, network.device)
        self.network = network
        self.outputs = [
            NormalisedOutput(layer, moments)
            for layer, moments in zip(candidates, start, strict=True)
            if moments.count * batch >= LEAST_VALUES * len(images)
        ]
        self.handles = [out.layer.register_forward_hook(out) for out in self.outputs]

    @torch.no_grad()
    def logits_over_batches(self, images: Tensor, batch: int) -> Tensor:
        """Logits of images that are normalised in batches as in the training.

        Args:
            images: (N, ...); those after the last full batch are left out, if there is one.

        Returns:
            (M, classes) on the device of ``images``, of the first M of them.
        """
        whole = images[: max(batch, len(images) // batch * batch)]
        with self.over_batches():
            parts = [self.network(part.to(self.network.device)) for part in whole.split(batch)]
        return torch.cat(parts).to(images.device)

    @property
    def starts(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and variance of each output at the start."""
        return [output.start for output in self.outputs]

    def start_from(self, starts: list[tuple[Tensor, Tensor]]) -> None:
        """Take the statistics of another ``Normalisation`` of the same network."""
        for output, (mean, variance) in zip(self.outputs, starts, strict=True):
            output.start_from(mean.to(self.network.device), variance.to(self.network.device))

    @contextmanager
    def over_batches(self) -> Iterator[None]:
        """Normalise with the statistics of each batch while the block runs."""
        for output in self.outputs:
            output.over_batch = True
        try:
            yield
        finally:
            for output in self.outputs:
                output.over_batch = False

    def estimate(self, images: Tensor) -> None:
        """Estimate the statistics of the present network on images, (N, ...)."""
        with self.over_batches():
            for output in self.outputs:
                output.noted = []
            run_unit(self.network, images, self.network.device)
        for output in self.outputs:
            output.use_noted()

    def fold(self) -> None:
        """Make the normalisation part of the layers; then it is over."""
        for output in self.outputs:
            output.fold()
        self.remove()

    def remove(self) -> None:
        """Let the layers return their own outputs again."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def _scales_channels(layer: QuantLayer) -> bool:
    """Whether each output channel of a convolution has a scale of its own."""
    return isinstance(layer, QuantConv2d) and layer.scale.numel() == len(layer.codes)


def _calls(network: QuantModel) -> Counter[nn.Module | None]:
    """How often each module is called when the network runs."""
    graphs = [cast(fx.GraphModule, unit) for unit in network.units]
    return Counter(called_module(graph, node) for graph in graphs for node in graph.graph.nodes)
