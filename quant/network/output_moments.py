"""Mean and standard deviation of each layer's output made those of the float network.

The calibration images say what quantization of weights and activations changed. A bias makes up for
the mean (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, arXiv:1906.04721, section 4.2 and appendix D, empirical form), the scale of a weight
channel for the standard deviation. Both together do what batch norms estimated anew do (Nagel et
al., "Overcoming Oscillations in Quantization-Aware Training", ICML 2022, arXiv:2203.11086).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant.network.chain import UnitData
from quant.network.forward import run_unit
from quant.network.layers import QuantConv2d, QuantLayer
from quant.network.model import quant_layers, set_state
from quant.network.observe import watch

MOST_GAIN = 2.0  # of a channel, whose inverse is the least one
LEAST_SPREAD = 1e-6  # variance, relative to the mean square: below it lies the error of float32


def match_output_means(data: UnitData) -> None:
    """Shift the bias of each layer of a quantized unit, in the order of the network.

    Then the mean output of the layer on the quantized inputs equals that of the float unit on the
    float inputs.
    """
    _match(data, deviations=False)


def match_output_moments(data: UnitData) -> None:
    """Match means by the biases and standard deviations by the scales, layer by layer.

    No scale changes by more than ``MOST_GAIN``, and none that channels share. The codes stay.
    """
    _match(data, deviations=True)


def _match(data: UnitData, deviations: bool) -> None:
    layers = list(quant_layers(data.unit).values())
    set_state(data.unit, weights=False, activations=False)
    targets = output_moments(data.unit, layers, data.float_input, data.device)
    set_state(data.unit, weights=True, activations=True)
    for layer, target in zip(layers, targets, strict=True):
        (present,) = output_moments(data.unit, [layer], data.quant_input, data.device)
        mean = present.mean
        if deviations and layer.scale.numel() == len(mean):
            gain = gains(target, present)
            layer.stretch(gain.float())
            bias = 0.0 if layer.bias is None else layer.bias.double()
            mean = gain * (mean - bias) + bias
        layer.shift_bias((target.mean - mean).float())


@dataclass
class Moments:
    """Sums of an output over images and positions, each (O,) float64, and their number."""

    total: Tensor
    squares: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        return (self.squares / self.count - self.mean.square()).clamp(min=0.0)

    @property
    def varies(self) -> Tensor:
        return self.variance > LEAST_SPREAD * self.squares / self.count


def gains(target: Moments, present: Moments) -> Tensor:
    """Factor of each channel, (O,) float64; 1 where an output is constant."""
    gain = (target.variance / present.variance).sqrt()
    return torch.where(target.varies & present.varies, gain, 1.0).clamp(1 / MOST_GAIN, MOST_GAIN)


def output_moments(
    unit: nn.Module, layers: Sequence[QuantLayer], inputs: Tensor, device: torch.device
) -> list[Moments]:
    """Moments of the output of each layer when the unit, or a network, runs on the inputs."""
    batches: dict[nn.Module, list[Moments]] = {layer: [] for layer in layers}

    def note(module: nn.Module, output: Tensor) -> None:
        channel = 1 if isinstance(module, QuantConv2d) else output.dim() - 1
        dims = [dim for dim in range(output.dim()) if dim != channel]
        batches[module].append(
            Moments(
                output.sum(dims, dtype=torch.float64),
                output.square().sum(dims, dtype=torch.float64),
                output.numel() // output.shape[channel],
            )
        )

    with watch(layers, note, outputs=True):
        run_unit(unit, inputs, device)
    return [_joined(batches[layer]) for layer in layers]


def _joined(parts: Sequence[Moments]) -> Moments:
    return Moments(
        torch.stack([part.total for part in parts]).sum(0),
        torch.stack([part.squares for part in parts]).sum(0),
        sum(part.count for part in parts),
    )
