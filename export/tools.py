"""The targets of the export, and the optional packages that they need."""

from __future__ import annotations

import importlib.util

from common.errors import InputError
from quant.arithmetic.spec import NO_TARGET, ONNXRUNTIME, OPENVINO

EXACT = "exact"
EXPORT_TARGETS = (EXACT, OPENVINO, ONNXRUNTIME)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def packages_for(target: str) -> tuple[str, ...]:
    """The packages that write and check a file for a target, of ``EXPORT_TARGETS``."""
    return (*PACKAGES, OPENVINO) if target == OPENVINO else PACKAGES


def require_export_tools(target: str = EXACT) -> None:
    """Check that the packages of the export are installed.

    Raises:
        InputError: one is missing; the error says how to install them.
    """
    missing = [name for name in packages_for(target) if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            "export to ONNX needs the packages of requirements-export.txt "
            f"(pip install -r requirements-export.txt), got no {', '.join(missing)}"
        )


def resolved_target(asked: str | None, quantized_for: str) -> str:
    """The target of a file: the one asked for, or else that of the model.

    Raises:
        InputError: the model was not quantized for it.
    """
    if asked is None:
        return EXACT if quantized_for == NO_TARGET else quantized_for
    if asked not in (EXACT, quantized_for):
        raise InputError(
            f"quant_target must be {asked} for export_target {asked}, got {quantized_for}; "
            f"quantize with --quant_target {asked} --n_bits_a 8"
        )
    return asked
