"""The pattern of ONNX operators that runtimes turn into integer kernels.

Every layer reads DequantizeLinear nodes only: of 8-bit activations with one scale and zero point,
of weights with one scale per channel and the zero point 0, and of a bias of 32 bits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from torch import Tensor

from export.building import CODES, SCALE, ZERO_POINT, Builder
from export.containers import stored_activation
from quant.network.layers import ActivationQuantizer, QuantLayer


def kernel_weight(builder: Builder, layer: QuantLayer) -> ir.Value:
    """The weight as 8-bit integers without a zero point."""
    levels = layer.codes.to(layer.zero_point.dtype) - layer.zero_point
    scale = layer.scale.cpu().numpy().reshape(-1)
    per_channel = len(scale) > 1
    scale = scale if per_channel else scale[0]
    inputs = [
        builder.constant(CODES, levels.cpu().numpy(), np.int8),
        builder.constant(SCALE, scale),
        builder.constant(ZERO_POINT, np.zeros_like(scale), np.int8),
    ]
    return builder.add("DequantizeLinear", inputs, **({"axis": 0} if per_channel else {}))


def kernel_bias(builder: Builder, layer: QuantLayer, step: Tensor) -> ir.Value:
    """The bias as 32-bit integers in steps of the products that it is added to."""
    assert layer.bias is not None
    integers = (layer.bias.double() / step.double()).round().cpu().numpy()
    inputs = [
        builder.constant(CODES, integers, np.int32),
        builder.constant(SCALE, step.cpu().numpy()),
    ]
    return builder.add("DequantizeLinear", inputs, axis=0)


def kernel_activation(builder: Builder, quantizer: ActivationQuantizer) -> ir.Value:
    """The activation in 8 bits.

    What concatenates several values is quantized at its inputs, all with the same scale, which
    gives the same integers and lets them pass through it; and again behind it, which changes
    nothing, for readers that look for it there.
    """
    stored = stored_activation(builder.name, quantizer, int2=False, narrow=False)
    scale = builder.constant(SCALE, stored.scale)
    zero_point = builder.constant(ZERO_POINT, stored.zero_point, np.uint8)

    def quantized(value: ir.Value) -> ir.Value:
        codes = builder.add("QuantizeLinear", [value, scale, zero_point])
        return builder.add("DequantizeLinear", [codes, scale, zero_point])

    value = builder.node.inputs[0]
    assert value is not None
    producer = value.producer()
    if producer is None or producer.op_type != "Concat" or len(value.uses()) > 1:
        return quantized(value)
    parts = [quantized(part) for part in producer.inputs if part is not None]
    return quantized(builder.add("Concat", parts, axis=producer.attributes["axis"].as_int()))
