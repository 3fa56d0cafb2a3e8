"""Equal ranges of all channels behind a LayerNorm, by an exact change of the float network.

The channels of a LayerNorm's output differ in range up to hundredfold in transformers, and one
scale for all of them loses the small ones. Ranges are chosen per channel; their differences move
into the weight and bias of the LayerNorm, and back out in the linear layers that read it (RepQ-ViT,
Li et al., ICCV 2023, arXiv:2212.08254, section 3.2, eq. 6 to 10).
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from quant.arithmetic.primitives import quant_max
from quant.network.building import ORIGIN, Builder, constant
from quant.network.capture import CapturedNetwork
from quant.network.forward import run_in_step
from quant.network.operations import (
    arguments,
    called_module,
    operation,
    reads_values,
    source_of,
)

SAMPLES = 32  # images, as in RepQ-ViT
BITS = 4  # for which ranges are chosen: runs with other bits, of which a bank is made, agree
MOST_IMAGES = 8  # in a batch
TAILS = (1e-3, 1e-4, 1e-5)  # shares clipped at each end, of which the best is taken
RESHAPES = frozenset("reshape view flatten expand".split())
MOVES = frozenset(
    "transpose select slice roll flip narrow split split_with_sizes chunk unbind".split()
)
LEAST_RATIO = 0.01  # of the scale of a channel to the mean scale; of constant channels it is 0


@dataclass(frozen=True)
class Move:
    """What moves from the ranges of one LayerNorm's output into weights; each (C,) float32.

    The output x becomes (x + shift) / ratio.
    """

    ratio: Tensor
    shift: Tensor


def layer_norms(network: fx.GraphModule) -> list[fx.Node]:
    """The LayerNorms of a captured graph."""
    return [node for node in network.graph.nodes if operation(node) == "layer_norm"]


def find_moves(network: CapturedNetwork, images: Tensor) -> dict[str, Move]:
    """The moves of all LayerNorms whose outputs only linear layers read, by their nodes' names.

    Args:
        images: (N, channels, height, width), of which ``SAMPLES`` are used.
    """
    norms = {node for node in layer_norms(network.graph) if _readers(network.graph, node)}
    moves: dict[str, Move] = {}

    def measure(node: fx.Node, runs: Sequence[fx.Interpreter]) -> None:
        if node in norms:
            moves[node.name] = _move(torch.cat([run.env[node].flatten(0, -2) for run in runs]))

    device = network.images.device
    run_in_step(network.graph, images[:SAMPLES], device, MOST_IMAGES, after=measure)
    return moves


def with_moves(network: CapturedNetwork, moves: dict[str, Move]) -> CapturedNetwork:
    """The network, equal in float, with ``moves`` made in a copy; itself if there are none."""
    if not moves:
        return network
    graph = copy.deepcopy(network.graph)
    for node in list(graph.graph.nodes):
        if node.name in moves and _readers(graph, node):
            _apply_(graph, node, moves[node.name])
    graph.recompile()
    return dataclasses.replace(network, graph=graph)


def _move(rows: Tensor) -> Move:
    """The move that gives all channels of (rows, C) values the mean scale and zero point."""
    scale, zero_point = _channel_qparams(rows)
    common = scale.mean()
    ratio = scale / common
    scale = ratio * common
    is_live = ratio > 1.1 * LEAST_RATIO  # the zero point of a constant channel may be any number
    wanted = (zero_point[is_live] if is_live.any() else zero_point).mean().round()
    return Move(ratio, scale * (zero_point - wanted))


def _channel_qparams(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each channel, (C,); zero points may lie outside of the codes."""
    ordered, top = rows.sort(0).values, quant_max(BITS)
    best: list[Tensor] = []
    for tail in TAILS:
        cut = round(tail * (len(rows) - 1))
        low, high = ordered[cut], ordered[len(rows) - 1 - cut]
        scale = (high - low).clamp(min=torch.finfo(rows.dtype).tiny) / top
        codes = ((rows - low) / scale).round_().clamp_(0, top)
        found = [codes.mul_(scale).add_(low).sub_(rows).square_().sum(0), scale, low]
        is_less = found[0] < best[0] if best else torch.ones_like(low, dtype=torch.bool)
        best = [torch.where(is_less, *pair) for pair in zip(found, best or found, strict=True)]
    _, scale, low = best
    common = scale.mean().clamp(min=torch.finfo(rows.dtype).tiny)
    scale = scale.maximum(LEAST_RATIO * common)
    return scale, -(low / scale).round()


def _readers(network: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The calls of linear layers that read a LayerNorm; none if something else does too."""
    if len(arguments(node)["normalized_shape"]) != 1:
        return []
    calls = Counter(n.target for n in network.graph.nodes if n.op == "call_module")
    readers: list[fx.Node] = []
    waiting = list(filter(reads_values, node.users))
    while waiting:
        user = waiting.pop()
        if isinstance(called_module(network, user), nn.Linear) and calls[user.target] == 1:
            readers.append(user)
        elif _keeps_channels(user):
            waiting += filter(reads_values, user.users)
        else:
            return []
    return readers


def _keeps_channels(node: fx.Node) -> bool:
    """Whether a node only moves values, and the last dimension stays that of the channels."""
    name = operation(node)
    if name == "getitem":  # of what one of the others returns
        return True
    if name not in (*RESHAPES, *MOVES, "permute"):
        return False
    before, given = source_of(node).meta["val"], arguments(node)
    if name in RESHAPES:
        return bool(before.shape[-1] == node.meta["val"].shape[-1])
    if name == "permute":
        return bool(given["dims"][-1] % before.dim() == before.dim() - 1)
    axes = [given[key] for key in ("dim", "dim0", "dim1") if key in given]
    return all(axis % before.dim() < before.dim() - 1 for axis in [*axes, *given.get("dims", [])])


def _apply_(network: fx.GraphModule, node: fx.Node, move: Move) -> None:
    """Move the ranges into a LayerNorm and out of the linear layers that read it, in place."""
    given, build = arguments(node), Builder(network, node)
    scale, offset = (constant(network, given[name]) for name in ("weight", "bias"))
    scale = torch.ones_like(move.ratio) if scale is None else scale
    offset = torch.zeros_like(move.ratio) if offset is None else offset
    changed = {"weight": scale / move.ratio, "bias": (offset + move.shift) / move.ratio}
    for place, name in ((2, "weight"), (3, "bias")):
        old = given[name]
        origin = None if old is None else old.meta.get(ORIGIN, str(old.target))
        new = build.constant(changed[name], origin)
        node.args = (*node.args[:place], *[None] * (place - len(node.args)), new)
    node.args = (*node.args, given["eps"])
    node.kwargs = {}
    for reader in _readers(network, node):
        _undo_(cast(nn.Linear, called_module(network, reader)), move)


def _undo_(layer: nn.Linear, move: Move) -> None:
    """Change a linear layer so that it computes from (x + shift) / ratio what it did from x."""
    weight = layer.weight.detach().double()
    shift = weight @ move.shift.double()
    bias = -shift if layer.bias is None else layer.bias.detach().double() - shift
    kind = layer.weight.dtype
    layer.weight = nn.Parameter((weight * move.ratio.double()).to(kind), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(kind), requires_grad=False)
