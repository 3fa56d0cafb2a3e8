"""The optional packages of the export."""

from __future__ import annotations

import importlib.util

from common.errors import InputError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_export_tools() -> None:
    """Check that the packages of the export are installed.

    Raises:
        InputError: one is missing; the error says how to install them.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            "export to ONNX needs the packages of requirements-export.txt "
            f"(pip install -r requirements-export.txt), got no {', '.join(missing)}"
        )
