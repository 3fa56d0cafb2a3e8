"""Passes over a captured network before quantizers are placed.

They fold batch norms and write every convolution as a 2-d convolution.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from quant.network.building import Builder
from quant.network.capture import CapturedNetwork
from quant.network.operations import called_module, source_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Linear)

SOURCE = "source"  # key of a node's meta: the node of the captured graph with the same value

aten = torch.ops.aten


def prepared(network: CapturedNetwork, fold: bool) -> fx.GraphModule:
    """A copy of the captured graph whose only layers are ``nn.Conv2d`` and ``nn.Linear``.

    Args:
        fold: fold batch norms into the layers before them.
    """
    graph = copy.deepcopy(network.graph)
    for node in graph.graph.nodes:
        node.meta[SOURCE] = node.name
    _write_(graph, nn.ConvTranspose2d, _write_transposed_)
    if fold:
        _fold_norms_(graph)
    _write_(graph, nn.Conv1d, _write_conv1d_)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _write_(network: fx.GraphModule, kind: type[nn.Module], write: Callable) -> None:
    """Apply ``write`` to every call of a layer of one kind; called twice, it stays one layer."""
    written: dict[str, nn.Module] = {}
    for node in list(network.graph.nodes):
        module = written.get(str(node.target)) or called_module(network, node)
        if isinstance(module, kind):
            written[str(node.target)] = module
            write(network, node, module)


def _fold_norms_(network: fx.GraphModule) -> None:
    calls = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    for node in list(network.graph.nodes):
        norm = called_module(network, node)
        if not isinstance(norm, NORMS):
            continue
        before = source_of(node)
        layer = called_module(network, before)
        if not isinstance(layer, FOLDABLE) or len(before.users) > 1 or calls[before.target] > 1:
            continue
        if isinstance(layer, nn.Linear) and before.meta["val"].dim() > 2:
            continue  # the norm's channels are not the outputs of the layer
        network.set_submodule(str(before.target), _fused(layer, norm))
        before.meta[SOURCE] = node.meta[SOURCE]
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)


def _fused(layer: Any, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    return fuse_conv_bn_eval(layer, norm)


def _write_conv1d_(network: fx.GraphModule, node: fx.Node, layer: Any) -> None:
    """A 1-d convolution as a 2-d convolution over an axis of size 1."""
    padding = layer.padding if isinstance(layer.padding, str) else (0, *layer.padding)
    flat = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        (1, *layer.kernel_size),
        (1, *layer.stride),
        padding,
        (1, *layer.dilation),
        layer.groups,
        device="meta",
    )
    flat.weight = _parameter(layer.weight.unsqueeze(2))
    flat.bias = layer.bias
    network.set_submodule(str(node.target), flat.eval())
    build = Builder(network, node)
    wide = build(aten.unsqueeze.default, source_of(node), 2)
    called = _call(network, node, wide)
    called.meta["val"] = node.meta["val"].unsqueeze(2)
    build.finish(build(aten.squeeze.dim, called, 2))


def _write_transposed_(network: fx.GraphModule, node: fx.Node, layer: Any) -> None:
    """A transposed convolution as a convolution of the input with zeros between its values.

    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285,
    section 4.5.
    """
    build, source = Builder(network, node), source_of(node)
    network.set_submodule(str(node.target), _turned(layer))
    _, channels, height, width = source.meta["val"].shape
    (down, right), sizes = layer.stride, []
    apart = build(aten.reshape.default, source, [-1, channels, height, 1, width, 1])
    apart = build(aten.constant_pad_nd.default, apart, [0, right - 1, 0, 0, 0, down - 1], 0.0)
    spread = build(aten.reshape.default, apart, [-1, channels, height * down, width * right])
    for axis in (1, 0):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - layer.padding[axis]
        sizes += [reach, reach + layer.output_padding[axis] - (layer.stride[axis] - 1)]
    padded = build(aten.constant_pad_nd.default, spread, sizes, 0.0)
    called = _call(network, node, padded)
    build.finish(called)


def _turned(layer: Any) -> nn.Conv2d:
    inputs, outputs = layer.in_channels, layer.out_channels
    turned = nn.Conv2d(
        inputs,
        outputs,
        layer.kernel_size,
        dilation=layer.dilation,
        groups=layer.groups,
        device="meta",
    )
    groups = layer.weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    turned.weight = _parameter(groups.flip(2, 3))
    turned.bias = layer.bias
    return turned.eval()


def _parameter(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().contiguous(), requires_grad=False)


def _call(network: fx.GraphModule, node: fx.Node, source: fx.Node) -> fx.Node:
    """Call the module of ``node`` on ``source`` instead."""
    with network.graph.inserting_before(node):
        called = network.graph.call_module(str(node.target), (source,))
    called.meta = dict(node.meta)
    return called
