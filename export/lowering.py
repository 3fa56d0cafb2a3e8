"""Replaces our own operators by ONNX's QuantizeLinear and DequantizeLinear.

Every layer gets its own integer initialisers: the exporter would merge equal ones, also of layers
that are stored in different types.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from export.building import CODES, SCALE, ZERO_POINT, Builder
from export.containers import (
    StoredActivation,
    StoredWeight,
    per_channel,
    stored_activation,
    stored_weight,
)
from export.kernels import kernel_activation, kernel_bias, kernel_weight
from export.network import ACTIVATION, BIAS, DOMAIN, NAME, WEIGHT
from export.powers import log2_activation
from quant import QuantModel
from quant.network.layers import ActivationQuantizer, Log2Quantizer, QuantLayer
from quant.network.targets import bias_steps

INT2_OPSET, INT2_IR_VERSION = 25, 13
SIGNED: dict[int, Any] = {2: ml_dtypes.int2, 4: ml_dtypes.int4, 8: np.int8, 16: np.int16}
UNSIGNED: dict[int, Any] = {2: ml_dtypes.uint2, 4: ml_dtypes.uint4, 8: np.uint8}
# Operators that only move values.
MOVING = {
    "Concat",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "Pad",
    "Reshape",
    "Resize",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}


def lower(model: ir.Model, quantized: QuantModel, int2: bool, for_kernels: bool) -> None:
    """Replace our own operators in ``model``, in place, and remove the exporter's annotations.

    Args:
        for_kernels: write the pattern that a runtime runs in integers, not the exact one.

    Raises:
        InputError: a weight or an activation fits no integer type of ONNX.
    """
    modules = dict(quantized.named_modules())
    steps = bias_steps(list(quantized.units)) if for_kernels else {}
    for node in list(model.graph):
        if node.domain == DOMAIN:
            name = node.attributes[NAME].as_string()
            module = modules[name]
            builder = Builder(model.graph, node, name)
            if node.op_type == ACTIVATION:
                assert isinstance(module, ActivationQuantizer)
                result = _lowered_activation(builder, module, int2, for_kernels)
            elif node.op_type == BIAS:
                assert isinstance(module, QuantLayer)
                builder.name = f"{name}.bias"
                result = kernel_bias(builder, module, steps[module])
            else:
                assert node.op_type == WEIGHT and isinstance(module, QuantLayer)
                result = (
                    kernel_weight(builder, module)
                    if for_kernels
                    else _weight(builder, stored_weight(name, module, int2), module)
                )
            builder.finish(result)
    model.graph.opset_imports.pop(DOMAIN, None)  # absent if nothing is quantized
    if _uses_int2(model):
        model.graph.opset_imports[""] = INT2_OPSET
        model.ir_version = max(model.ir_version, INT2_IR_VERSION)
    _strip(model)


def _lowered_activation(
    builder: Builder, quantizer: ActivationQuantizer, int2: bool, for_kernels: bool
) -> ir.Value:
    if isinstance(quantizer, Log2Quantizer):
        return log2_activation(builder, quantizer)
    if for_kernels:
        return kernel_activation(builder, quantizer)
    narrow = _may_be_narrow(builder.node, quantizer)
    return _activation(builder, stored_activation(builder.name, quantizer, int2, narrow))


def _may_be_narrow(node: ir.Node, quantizer: ActivationQuantizer) -> bool:
    """Whether ONNX Runtime handles integers of fewer than 8 bits correctly at this node.

    Seen with onnxruntime 1.31: it moves integers through operators that only move values, but has
    these operators for whole bytes only; it refuses a file in which a clamp comes before a
    quantization to such integers, since it cannot fuse the two; and it drops a ReLU before such a
    quantization even if the zero point is not 0.
    """
    (value,), (result,) = node.inputs, node.outputs
    assert value is not None
    producer = value.producer()
    before = "" if producer is None else producer.op_type
    readers = {reader.op_type for reader in result.consumers()}
    has_offset = bool((quantizer.zero_point != 0).any())
    return (
        not ({before} | readers) & MOVING
        and before != "Clip"
        and not (before == "Relu" and has_offset)
    )


def _weight(builder: Builder, stored: StoredWeight, layer: QuantLayer) -> ir.Value:
    dtype = SIGNED[stored.width]
    value = builder.add(
        "DequantizeLinear",
        [
            builder.constant(CODES, stored.codes, dtype),
            builder.constant(SCALE, stored.scale),
            builder.constant(ZERO_POINT, stored.zero_point, dtype),
        ],
        axis=0,
    )
    if layer.gap is not None:
        gap = builder.constant("gap", per_channel(layer.gap.cpu().numpy().reshape(-1)))
        jump = builder.add("Mul", [builder.add("Sign", [value]), gap])
        value = builder.add("Add", [value, jump])
    if layer.offset is not None:
        offset = builder.constant("offset", per_channel(layer.offset.cpu().numpy().reshape(-1)))
        value = builder.add("Add", [value, offset])
    return value


def _activation(builder: Builder, stored: StoredActivation) -> ir.Value:
    dtype = UNSIGNED[stored.width]
    axis = {"axis": 1} if stored.scale.ndim else {}
    scale = builder.constant(SCALE, stored.scale)
    zero_point = builder.constant(ZERO_POINT, stored.zero_point, dtype)
    value = builder.node.inputs[0]
    assert value is not None
    if not stored.is_uniform:
        value = _clamped(builder, value, stored)
    codes = builder.add("QuantizeLinear", [value, scale, zero_point], **axis)
    last = 2 ** int(stored.bits.flat[0]) - 1
    if stored.is_uniform and last < 2**stored.width - 1:
        limits = {"first": 0, "last": last}
        constants = [builder.constant(k, np.array(v), dtype) for k, v in limits.items()]
        codes = builder.add("Clip", [codes, *constants])
    return builder.add("DequantizeLinear", [codes, scale, zero_point], **axis)


def _clamped(builder: Builder, value: ir.Value, stored: StoredActivation) -> ir.Value:
    """The values clamped to the range of their channel's codes."""
    value = builder.add("Max", [value, builder.constant("low", stored.low)])
    return builder.add("Min", [value, builder.constant("high", stored.high)])


def _uses_int2(model: ir.Model) -> bool:
    narrow = (ir.DataType.INT2, ir.DataType.UINT2)
    return any(value.dtype in narrow for value in model.graph.initializers.values())


def _strip(model: ir.Model) -> None:
    """Remove annotations of nodes and values, and shapes that can be inferred.

    They would take more bytes than a small network does.
    """
    nodes: Iterable[ir.Node] = model.graph
    for node in nodes:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape, value.type = None, None
    for value in model.graph.inputs:
        value.metadata_props.clear()
    for value in model.graph.initializers.values():  # the tensor itself holds type and shape
        value.metadata_props.clear()
        value.shape, value.type = None, None
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
