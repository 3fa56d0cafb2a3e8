"""Post-training quantization of image classifiers: quantizers, the chain of units, and the methods
by name.

Knows torch; knows nothing of files of logits, data sets or corrections.
"""

from quant import adaround, rtn  # noqa: F401  (each registers its method)
from quant.base import BaseQuantizationMethod, MethodSettings
from quant.chain import UnitReport
from quant.model import QuantModel, read_quantized_file, restore_quantized
from quant.registry import QuantizationManager, register_method

__all__ = [
    "BaseQuantizationMethod",
    "MethodSettings",
    "QuantModel",
    "QuantizationManager",
    "UnitReport",
    "read_quantized_file",
    "register_method",
    "restore_quantized",
]
