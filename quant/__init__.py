"""Post-training quantization of image classifiers: quantizers, the chain of units, and the methods
by name.

Knows torch; knows nothing of files of logits, data sets or corrections.
"""

from quant import (  # noqa: F401  (each registers its method)
    aciq_mix,
    adaround,
    gpfq,
    lapq,
    pd_quant,
    qdrop,
    rtn,
)
from quant.base import BaseQuantizationMethod
from quant.model import (
    QuantModel,
    bits_by_tensor,
    read_quantized_file,
    restore_quantized,
    zero_share,
)
from quant.registry import QuantizationManager, register_method
from quant.settings import MethodSettings
from quant.states import UnitReport, UnitStates

__all__ = [
    "BaseQuantizationMethod",
    "MethodSettings",
    "QuantModel",
    "QuantizationManager",
    "UnitReport",
    "UnitStates",
    "bits_by_tensor",
    "read_quantized_file",
    "register_method",
    "restore_quantized",
    "zero_share",
]
