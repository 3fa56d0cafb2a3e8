"""Greedy path following in Gram form.

Lybrand & Saab, "A Greedy Algorithm for Quantizing Neural Networks", JMLR 22, 2021,
arXiv:2010.15979; Zhang, Zhou & Saab, "Post-training Quantization for Neural Networks with Provable
Guarantees", SIAM J. Math. Data Sci. 5(2), 2023, arXiv:2201.11113.

Letters: N neurons (output channels), d weights of each, m rows (patches of the layer's input). X
(m, d) is the input of the layer in the float network, Y (m, d) that in the quantized network. With
u_0 = 0,

    v_t = <Y_t, u_{t-1} + w_t X_t> / |Y_t|^2,   q_t = Q(v_t),   u_t = u_{t-1} + w_t X_t - q_t Y_t.

This needs only inner products of columns: with H = Y'Y and G = Y'X (both d x d)

    v_t = (sum_{s <= t} w_s G[t, s] - sum_{s < t} q_s H[t, s]) / H[t, t],

for any number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.methods.gpfq.alphabet import Alphabet
from quant.network.layers import QuantConv2d, QuantLayer

BLOCK = 64  # columns whose errors are subtracted from the later columns in one product


@dataclass
class Grams:
    """Inner products of a layer's input columns, per group, float64.

    Attributes:
        cross: Y'X, (groups, d, d).
        own: Y'Y, (groups, d, d).
        sum_float, sum_quant: column sums of X and Y, (groups, d).
        rows: number of rows, m.
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
        """Add the rows of a batch of inputs of the layer."""
        x, y = patches(float_input, layer), patches(quant_input, layer)
        self.cross += y @ x.mT
        self.own += y @ y.mT
        self.sum_float += x.sum(2, dtype=torch.float64)
        self.sum_quant += y.sum(2, dtype=torch.float64)
        self.rows += x.shape[2]

    def residual_mean(self, weight: Tensor, levels: Tensor) -> Tensor:
        """Mean of X w - Y q over the rows, for each neuron of all groups, float64."""
        groups = len(self.own)
        pairs = zip(weight.chunk(groups), levels.chunk(groups), strict=True)
        parts = [
            part @ self.sum_float[group] - quantized @ self.sum_quant[group]
            for group, (part, quantized) in enumerate(pairs)
        ]
        return torch.cat(parts) / self.rows


def patches(inputs: Tensor, layer: QuantLayer) -> Tensor:
    """The input columns of the layer at its own stride, (groups, d, rows)."""
    if not isinstance(layer, QuantConv2d):
        return inputs.reshape(-1, inputs.shape[-1]).mT.unsqueeze(0)
    padding = layer.padding
    if isinstance(padding, str):
        inputs, padding = F.pad(inputs, layer.pad_sides), (0, 0)
    kernel = tuple(layer.codes.shape[2:])
    unfolded = F.unfold(inputs, kernel, layer.dilation, padding, layer.stride)  # (n, C k k, L)
    columns = layer.codes[0].numel()
    grouped = unfolded.reshape(len(inputs), layer.groups, columns, -1)
    return grouped.permute(1, 2, 0, 3).reshape(layer.groups, columns, -1)


def follow_path(
    weight: Tensor, cross: Tensor, own: Tensor, alphabet: Alphabet, act_order: bool = False
) -> Tensor:
    """Quantize the neurons of one group.

    Args:
        weight: (N, d) float64.
        cross: G = Y'X, (d, d) float64.
        own: H = Y'Y, (d, d) float64.
        act_order: process the columns in descending order of H[t, t].

    Returns:
        (N, d) float64 codes; a column that is always zero gets the code 0.
    """
    order = torch.arange(weight.shape[1], device=weight.device)
    if act_order:
        order = own.diagonal().argsort(descending=True, stable=True)
    cross, own = cross[order][:, order], own[order][:, order]
    target = weight[:, order] @ cross.tril().mT  # the part of every v_t from the float network
    power = own.diagonal()
    power = torch.where(power > 0, power, torch.inf)
    codes, levels = torch.zeros_like(weight), torch.zeros_like(weight)
    for start in range(0, weight.shape[1], BLOCK):
        stop = min(start + BLOCK, weight.shape[1])
        rest = target[:, start:stop] - levels[:, :start] @ own[:start, start:stop]
        for t in range(start, stop):
            column = alphabet.codes(rest[:, t - start : t - start + 1] / power[t])
            codes[:, t : t + 1] = column
            levels[:, t : t + 1] = alphabet.levels(column)
            rest -= levels[:, t : t + 1] * own[t, start:stop]
    return torch.empty_like(codes).index_copy_(1, order, codes)
