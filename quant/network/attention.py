"""Scaled dot-product attention as product, softmax and product, so that each can be quantized."""

from __future__ import annotations

import math

import torch
from torch import fx

from common.errors import InputError
from quant.network.building import Builder
from quant.network.operations import arguments, operation, owner

aten = torch.ops.aten


def decompose_attention_(network: fx.GraphModule) -> None:
    """Replace each ``scaled_dot_product_attention`` of the graph by its definition.

    Raises:
        InputError: it uses dropout or grouped queries.
    """
    for node in list(network.graph.nodes):
        if operation(node) == "scaled_dot_product_attention":
            _decompose_(Builder(network, node), node)


def _decompose_(build: Builder, node: fx.Node) -> None:
    given = arguments(node)
    for name, what in (("dropout_p", "dropout"), ("enable_gqa", "grouped queries")):
        if given.get(name):
            where = repr(owner(node)) if owner(node) else "the network itself"
            raise InputError(f"attention must be without {what}, got it in module {where}")
    query, key = given["query"], given["key"]
    shape = query.meta["val"].shape
    scale = 1 / math.sqrt(shape[-1]) if given["scale"] is None else given["scale"]
    scores = build(
        aten.matmul.default,
        build(aten.mul.Tensor, query, scale),
        build(aten.transpose.int, key, -2, -1),
    )
    if given["is_causal"]:
        whole = build(aten.ones_like.default, scores, dtype=torch.bool)
        scores = _hidden(build, scores, build(aten.tril.default, whole))
    mask = given["attn_mask"]
    if mask is not None:
        scores = _masked(build, scores, mask)
    is_hidden = mask is not None and mask.meta["val"].dtype == torch.bool
    softmax = aten._safe_softmax.default if is_hidden else aten.softmax.int
    weights = build(softmax, scores, -1)
    build.finish(build(aten.matmul.default, weights, given["value"]))


def _masked(build: Builder, scores: fx.Node, mask: fx.Node) -> fx.Node:
    if mask.meta["val"].dtype == torch.bool:
        return _hidden(build, scores, mask)
    return build(aten.add.Tensor, scores, mask)


def _hidden(build: Builder, scores: fx.Node, seen: fx.Node) -> fx.Node:
    """The scores, minus infinity where ``seen`` is false."""
    return build(aten.masked_fill.Scalar, scores, build(aten.logical_not.default, seen), -math.inf)
