"""Correcting the mean and the spread of quantized weights: Banner et al. (ACIQ), NeurIPS 2019,
arXiv:1810.05723, section 4, eq. 12 and 13.
"""

from __future__ import annotations

import torch

from quant.layers import QuantLayer
from quant.primitives import dequantize


def match_moments(layer: QuantLayer, *, mean: bool, variance: bool = False) -> None:
    """Shift, and with ``variance`` stretch, each output channel of a quantized weight so that its
    mean, and its standard deviation, are those of the float weight.

    The codes stay. The shift becomes the layer's offset: an integer implementation adds it times the
    sum of the inputs. The stretch goes into the scale, which must be one per output channel.
    """
    weight = layer.full_precision_weight()
    rounded = dequantize(layer.codes, layer.scale, layer.zero_point)
    dims = tuple(range(1, weight.dim()))
    target = weight.mean(dims, keepdim=True)
    centre = rounded.mean(dims, keepdim=True)
    stretch = torch.ones_like(target)
    if variance:
        spread = _spread(rounded, centre, dims)
        stretch = torch.where(spread > 0, _spread(weight, target, dims) / spread, stretch)
        layer.scale = layer.scale * stretch
    layer.offset = (target if mean else centre) - stretch * centre


def _spread(weight: torch.Tensor, centre: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    return torch.linalg.vector_norm(weight - centre, dim=dims, keepdim=True)
