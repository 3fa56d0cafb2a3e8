"""Softmax outputs as powers of two in ONNX: the code of a value looks up its level."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from export.building import SCALE, Builder
from quant.arithmetic.log2 import log2_levels
from quant.network.layers import Log2Quantizer

POWERS = "powers"


def stored_levels(quantizer: Log2Quantizer) -> np.ndarray:
    """The values of the codes 0, 1, ..., float32."""
    return log2_levels(quantizer.scale.cpu(), quantizer.num_bits).numpy()


def log2_activation(builder: Builder, quantizer: Log2Quantizer) -> ir.Value:
    """The level of each value; of 0 the logarithm is infinite and its code the last one."""
    levels = stored_levels(quantizer)
    value = builder.node.inputs[0]
    assert value is not None
    share = builder.add("Div", [value, builder.constant(SCALE, quantizer.scale.cpu().numpy())])
    octave = builder.constant("octave", np.array(-1 / math.log(2)))
    exponent = builder.add("Round", [builder.add("Mul", [builder.add("Log", [share]), octave])])
    limits = {"first": 0, "last": len(levels) - 1}
    ends = [builder.constant(name, np.array(limit)) for name, limit in limits.items()]
    codes = builder.add("Cast", [builder.add("Clip", [exponent, *ends])], to=int(ir.DataType.INT64))
    return builder.add("Gather", [builder.constant(POWERS, levels), codes])
