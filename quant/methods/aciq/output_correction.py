"""Bias correction by the mean of each layer's output on the calibration images.

The bias compensates the shift that quantization of weights and activations causes. Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
arXiv:1906.04721, section 4.2 and appendix D, empirical form.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quant.network.chain import UnitData
from quant.network.forward import run_unit
from quant.network.layers import QuantConv2d, QuantLayer
from quant.network.model import quant_layers, set_state
from quant.network.observe import watch


def match_output_means(data: UnitData) -> None:
    """Shift the bias of each layer of a quantized unit, in the order of the network.

    Then the mean output of the layer on the quantized inputs equals that of the float unit on the
    float inputs.
    """
    layers = quant_layers(data.unit)
    set_state(data.unit, weights=False, activations=False)
    targets = {
        name: _output_mean(data.unit, layer, data.float_input, data.device)
        for name, layer in layers.items()
    }
    set_state(data.unit, weights=True, activations=True)
    for name, layer in layers.items():
        present = _output_mean(data.unit, layer, data.quant_input, data.device)
        layer.shift_bias((targets[name] - present).float())


def _output_mean(
    unit: nn.Module, layer: QuantLayer, inputs: Tensor, device: torch.device
) -> Tensor:
    """Mean of each output channel over images and positions, (O,) float64."""
    sums: list[Tensor] = []
    counts: list[int] = []

    def note(module: nn.Module, output: Tensor) -> None:
        channel = 1 if isinstance(module, QuantConv2d) else output.dim() - 1
        dims = [dim for dim in range(output.dim()) if dim != channel]
        sums.append(output.sum(dims, dtype=torch.float64))
        counts.append(output.numel() // output.shape[channel])

    with watch([layer], note, outputs=True):
        run_unit(unit, inputs, device)
    return torch.stack(sums).sum(0) / sum(counts)
