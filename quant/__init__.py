"""Post-training quantization of image classifiers: quantizers, chain of units, methods by name.

Depends on torch, but not on data sets, files of logits or corrections.
"""

from __future__ import annotations

import quant.methods  # noqa: F401  (registers them)
from quant.base import BaseQuantizationMethod
from quant.network.capture import CapturedNetwork, capture
from quant.network.model import (
    QuantModel,
    bits_by_tensor,
    zero_share,
)
from quant.network.states import UnitReport, UnitStates
from quant.network.stored import read_quantized_file, restore_quantized
from quant.registry import QuantizationManager, register_method
from quant.settings import MethodSettings

__all__ = [
    "BaseQuantizationMethod",
    "CapturedNetwork",
    "MethodSettings",
    "QuantModel",
    "QuantizationManager",
    "UnitReport",
    "UnitStates",
    "bits_by_tensor",
    "capture",
    "read_quantized_file",
    "register_method",
    "restore_quantized",
    "zero_share",
]
