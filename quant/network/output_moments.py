"""Bias correction by the mean of each layer's output on the calibration images.

The bias compensates the shift that quantization of weights and activations causes. Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
arXiv:1906.04721, section 4.2 and appendix D, empirical form.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    layers = list(quant_layers(data.unit).values())
    set_state(data.unit, weights=False, activations=False)
    targets = _output_means(data.unit, layers, data.float_input, data.device)
    set_state(data.unit, weights=True, activations=True)
    for layer, target in zip(layers, targets, strict=True):
        (present,) = _output_means(data.unit, [layer], data.quant_input, data.device)
        layer.shift_bias((target - present).float())


def _output_means(
    unit: nn.Module, layers: Sequence[QuantLayer], inputs: Tensor, device: torch.device
) -> list[Tensor]:
    """Mean of each output channel over images and positions, (O,) float64, of each layer."""
    sums: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    counts = dict.fromkeys(sums, 0)

    def note(module: nn.Module, output: Tensor) -> None:
        channel = 1 if isinstance(module, QuantConv2d) else output.dim() - 1
        dims = [dim for dim in range(output.dim()) if dim != channel]
        sums[module].append(output.sum(dims, dtype=torch.float64))
        counts[module] += output.numel() // output.shape[channel]

    with watch(layers, note, outputs=True):
        run_unit(unit, inputs, device)
    return [torch.stack(sums[layer]).sum(0) / counts[layer] for layer in layers]
