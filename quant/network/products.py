"""Matrix products with a constant as linear layers, whichever function computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from quant.network.building import ORIGIN, Builder, constant
from quant.network.operations import arguments, operation

aten = torch.ops.aten


def linear_from_products_(network: fx.GraphModule) -> None:
    """Replace products of an activation and a constant matrix by ``aten.linear``."""
    for node in list(network.graph.nodes):
        name = operation(node)
        if name in ("mm", "matmul"):
            _from_product_(network, node, *node.args)
        elif name == "addmm":
            _from_sum_(network, node)
        elif name == "einsum":
            _from_einsum_(network, node)


def _matrix(network: fx.GraphModule, node: Any) -> Tensor | None:
    value = constant(network, node)
    return value if value is not None and value.dim() == 2 else None


def _turned(build: Builder, weight: fx.Node, matrix: Tensor) -> fx.Node:
    return build.constant(matrix.t(), weight.meta.get(ORIGIN))


def _from_product_(network: fx.GraphModule, node: fx.Node, left: fx.Node, right: fx.Node) -> None:
    build = Builder(network, node)
    before, after = _matrix(network, left), _matrix(network, right)
    if after is not None and before is None:
        build.finish(build(aten.linear.default, left, _turned(build, right, after)))
    elif before is not None and right.meta["val"].dim() >= 2:
        columns = build(aten.transpose.int, right, -2, -1)
        product = build(aten.linear.default, columns, left)
        build.finish(build(aten.transpose.int, product, -2, -1))


def _from_sum_(network: fx.GraphModule, node: fx.Node) -> None:
    given = arguments(node)
    matrix, bias = _matrix(network, given["mat2"]), constant(network, given["self"])
    if (
        matrix is None
        or bias is None
        or bias.dim() != 1
        or (given["beta"], given["alpha"]) != (1, 1)
    ):
        return
    build = Builder(network, node)
    weight = _turned(build, given["mat2"], matrix)
    build.finish(build(aten.linear.default, given["mat1"], weight, given["self"]))


def _from_einsum_(network: fx.GraphModule, node: fx.Node) -> None:
    """Write ``einsum("...i...,io->...o...", x, weight)`` as permutations around a linear layer."""
    equation, operands = cast(str, node.args[0]), cast(list[fx.Node], node.args[1])
    matrices = [_matrix(network, operand) for operand in operands]
    if len(matrices) != 2 or (matrices[0] is None) == (matrices[1] is None):
        return
    place = 0 if matrices[0] is not None else 1
    letters = _read_equation(equation, place)
    matrix = matrices[place]
    if letters is None or matrix is None:
        return
    build, weight = Builder(network, node), operands[place]
    if letters.weight[0] == letters.summed:
        weight = _turned(build, weight, matrix)
    kept = letters.source.replace(letters.summed, "")
    source = build(
        aten.permute.default,
        operands[1 - place],
        [letters.source.index(letter) for letter in kept + letters.summed],
    )
    product = build(aten.linear.default, source, weight)
    order = [(kept + letters.made).index(letter) for letter in letters.output]
    build.finish(build(aten.permute.default, product, order))


@dataclass(frozen=True)
class _Letters:
    """The axes of an activation, a matrix and their product in the equation of an einsum."""

    source: str
    weight: str
    output: str
    summed: str  # the axis of both that is summed over
    made: str  # the axis of the matrix that the product has


def _read_equation(equation: str, place: int) -> _Letters | None:
    """The axes, if the equation is one linear layer whose matrix is operand ``place``."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or "." in equation:
        return None
    weight, source = terms[place], terms[1 - place]
    summed, made = set(weight) & set(source), set(weight) & set(output)
    once = all(len(term) == len(set(term)) for term in (weight, source, output))
    if not once or (len(summed), len(made), len(weight)) != (1, 1, 2) or summed & made:
        return None
    if set(output) != set(source) - summed | made:
        return None
    return _Letters(source, weight, output, summed.pop(), made.pop())
