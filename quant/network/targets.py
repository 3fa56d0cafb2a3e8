"""What the integer kernels of a runtime need of a quantized network.

A convolution of a target adds products of 8-bit integers in 32 bits, adds its bias as an integer
there, and multiplies the sum by (scale of the input) * (scale of the weight) / (scale of the
output), which is rounded to the output's code. The simulation computes the same in float once the
bias is a multiple of the first two scales.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, fx, nn

from common.errors import InputError
from quant.arithmetic.primitives import clamp_codes_
from quant.arithmetic.spec import TARGET_BITS, QuantSpec
from quant.network.layers import ActivationQuantizer, QuantLayer, is_depthwise
from quant.network.operations import called_module, is_average, is_pooling_or_shape, source_of

LARGEST_BIAS = 2**30  # half of what 32 bits hold, for the sum that it is added to
INT8_MAX = 127

Levels = dict[fx.Node, ActivationQuantizer]


def fit_to_target_(units: list[tuple[str, nn.Module]], spec: QuantSpec) -> None:
    """Check a quantized network for ``spec.target`` and round its biases, in place.

    Raises:
        InputError: a weight or an activation is not what the kernels of the target compute with.
    """
    for name, unit in units:
        for path, module in unit.named_modules():
            if isinstance(module, QuantLayer) and module.quantized:
                _require_levels(f"{name}.{path}", module, spec)
            elif isinstance(module, ActivationQuantizer) and module.quantized:
                _require_whole(f"{name}.{path}", module, spec)
    modules = [unit for _, unit in units]
    for layer, step in bias_steps(modules).items():
        _widen_(layer, step)
    for layer, step in bias_steps(modules).items():
        if layer.bias is not None:
            layer.bias = (layer.bias / step).round() * step


def _widen_(layer: QuantLayer, step: Tensor) -> None:
    """Widen the scale of weights, in place, until the bias is at most ``LARGEST_BIAS`` steps.

    Such weights are nearly or wholly zero. What their products lose is below the rounding error of
    the bias in float32.
    """
    if layer.bias is None:
        return
    factor = ((layer.bias / step).abs() / LARGEST_BIAS).clamp(min=1.0)
    factor = factor if layer.scale.numel() > 1 else factor.amax()
    if not (factor > 1).any():
        return
    factor = factor.reshape(layer.scale.shape)
    levels = (layer.codes.to(layer.scale.dtype) - layer.zero_point) / factor
    layer.scale = layer.scale * factor
    layer.zero_point = clamp_codes_(layer.zero_point.clone(), layer.bits)  # of 0 bits it is beyond
    layer.codes = (levels.round() + layer.zero_point).to(layer.codes.dtype)


def _require_levels(name: str, layer: QuantLayer, spec: QuantSpec) -> None:
    levels = layer.codes.to(layer.zero_point.dtype) - layer.zero_point
    if layer.offset is not None or layer.gap is not None:
        raise InputError(
            f"weight {name!r} must be integers times a scale with quant_target {spec.target}, got "
            "a shift besides (of a correction of its mean, or of the regularizer L0)"
        )
    low, high = int(levels.min()), int(levels.max())
    most = spec.max_level(is_depthwise(layer))
    if low < -most or high > min(most, INT8_MAX):
        raise InputError(
            f"integers of weight {name!r} must be from {-most} to "
            f"{min(most, INT8_MAX)} with quant_target {spec.target}, got {low} to "
            f"{high}; --symmetric may help"
        )


def _require_whole(name: str, quantizer: ActivationQuantizer, spec: QuantSpec) -> None:
    bits = quantizer.bits
    if quantizer.scale.numel() > 1 or bits.numel() > 1 or int(bits) != TARGET_BITS:
        raise InputError(
            f"activation {name!r} must have one scale and {TARGET_BITS} bits with quant_target "
            f"{spec.target}"
        )


def bias_steps(units: list[nn.Module]) -> dict[QuantLayer, Tensor]:
    """The step of the bias of every quantized layer whose input is on the grid of a quantizer.

    Returns:
        per layer (O,) float32, the product of the scales of input and weight.
    """
    steps: dict[QuantLayer, Tensor] = {}
    level: ActivationQuantizer | None = None
    for unit in units:
        graph = cast(fx.GraphModule, unit)
        levels: Levels = {}
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                before = level
            elif node.op == "output":
                level = levels.get(source_of(node))
                continue
            else:
                before = _level_before(graph, node, levels)
            if before is not None:
                levels[node] = before
            module = called_module(graph, node)
            if isinstance(module, QuantLayer) and module.quantized:
                found = levels.get(source_of(node))
                if found is not None and found.quantized:
                    steps[module] = _step(module, found)
    return steps


def _level_before(
    graph: fx.GraphModule, node: fx.Node, levels: Levels
) -> ActivationQuantizer | None:
    """The quantizer on whose grid the values of a node are."""
    module = called_module(graph, node)
    if isinstance(module, ActivationQuantizer):
        return module
    if is_pooling_or_shape(node) and not is_average(node):
        return levels.get(source_of(node))
    return None


def _step(layer: QuantLayer, quantizer: ActivationQuantizer) -> Tensor:
    return (quantizer.scale.reshape(()) * layer.scale.reshape(-1)).expand(len(layer.codes))
