"""Greedy path following in Gram form: Lybrand & Saab, "A Greedy Algorithm for Quantizing Neural
Networks", JMLR 22, 2021, arXiv:2010.15979; Zhang, Zhou & Saab, "Post-training Quantization for Neural
Networks with Provable Guarantees", SIAM J. Math. Data Sci. 5(2), 2023, arXiv:2201.11113.

Letters: N neurons (output channels), d weights of each, m rows (patches of the layer's input). X (m,
d) is what the layer reads in the float network, Y what it reads in the quantized one. With u_0 = 0,

    v_t = <Y_t, u_{t-1} + w_t X_t> / |Y_t|^2,   q_t = Q(v_t),   u_t = u_{t-1} + w_t X_t - q_t Y_t.

Only inner products of columns matter, so that with H = Y'Y and G = Y'X (both d x d)

    v_t = (sum_{s <= t} w_s G[t, s] - sum_{s < t} q_s H[t, s]) / H[t, t],

whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.layers import QuantConv2d, QuantLayer

BLOCK = 64  # columns whose corrections are applied to the later ones in one product

Rounding = Callable[[Tensor], Tensor]  # (N,) or (N, columns) values -> levels, element by element


@dataclass
class Grams:
    """Inner products of a layer's input columns, per group, float64.

    Attributes:
        cross: Y'X, (groups, d, d).
        own: Y'Y, (groups, d, d).
        mean_float, mean_quant: column means of X and Y, (groups, d).
        rows: m.
    """

    cross: Tensor
    own: Tensor
    sum_float: Tensor
    sum_quant: Tensor
    rows: int = 0

    @staticmethod
    def empty(layer: QuantLayer) -> Grams:
        groups = layer.groups if isinstance(layer, QuantConv2d) else 1
        columns = layer.codes[0].numel()
        zeros = layer.codes.new_zeros(groups, columns, columns, dtype=torch.float64)
        sums = layer.codes.new_zeros(groups, columns, dtype=torch.float64)
        return Grams(zeros, zeros.clone(), sums, sums.clone())

    def add(self, float_input: Tensor, quant_input: Tensor, layer: QuantLayer) -> None:
        """Add the rows of a batch of inputs."""
        x, y = patches(float_input, layer), patches(quant_input, layer)
        self.cross += y @ x.mT
        self.own += y @ y.mT
        self.sum_float += x.sum(2, dtype=torch.float64)
        self.sum_quant += y.sum(2, dtype=torch.float64)
        self.rows += x.shape[2]


def patches(inputs: Tensor, layer: QuantLayer) -> Tensor:
    """The columns that the layer multiplies with its weights, at its own stride: (groups, d, rows)."""
    if not isinstance(layer, QuantConv2d):
        return inputs.reshape(-1, inputs.shape[-1]).mT.unsqueeze(0)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        inputs = F.pad(inputs, layer.pad_sides, mode=_PAD_MODES[layer.padding_mode])
        padding: tuple[int, ...] = (0, 0)
    else:
        padding = layer.padding
    kernel = tuple(layer.codes.shape[2:])
    unfolded = F.unfold(inputs, kernel, layer.dilation, padding, layer.stride)  # (n, C k k, L)
    columns = layer.codes[0].numel()
    grouped = unfolded.reshape(len(inputs), layer.groups, columns, -1)
    return grouped.permute(1, 2, 0, 3).reshape(layer.groups, columns, -1)


_PAD_MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


def follow_path(weight: Tensor, cross: Tensor, own: Tensor, rounding: Rounding) -> Tensor:
    """Quantize the neurons of one group.

    Args:
        weight: (N, d) float64.
        cross: G = Y'X, (d, d) float64.
        own: H = Y'Y, (d, d) float64.
        rounding: gives the level of every value; called for one column of all neurons at a time.

    Returns:
        (N, d) levels; a column that is always zero gets the level of 0.
    """
    count, columns = weight.shape
    target = weight @ cross.tril().mT  # (N, d): the analog part of every v_t
    power = own.diagonal()
    levels = torch.zeros_like(weight)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        rest = target[:, start:stop] - levels[:, :start] @ own[:start, start:stop]
        for t in range(start, stop):
            value = rest[:, t - start] / power[t] if power[t] > 0 else torch.zeros(count).to(weight)
            levels[:, t] = rounding(value)
            rest -= torch.outer(levels[:, t], own[t, start:stop])
    return levels


def residual_mean(weight: Tensor, levels: Tensor, grams: Grams, group: int) -> Tensor:
    """Mean over the rows of X w - Y q, (N,) float64."""
    difference = weight @ grams.sum_float[group] - levels @ grams.sum_quant[group]
    return difference / grams.rows
