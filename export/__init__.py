"""Export of a quantized model to an ONNX file with integer weights, checked in its runtime.

Needs onnx, onnxscript and onnxruntime, and openvino for its files (requirements-export.txt), which
are imported when a function is called.
"""

from export.reporting import export_and_verify
from export.runtimes import OnnxNetwork, OpenVinoNetwork
from export.tools import require_export_tools
from export.verification import verify, wrong_integers
from export.writing import write_onnx

__all__ = [
    "OnnxNetwork",
    "OpenVinoNetwork",
    "export_and_verify",
    "require_export_tools",
    "verify",
    "write_onnx",
    "wrong_integers",
]
