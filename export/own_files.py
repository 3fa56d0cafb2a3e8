"""The files of an export: those of the user are not replaced."""

from __future__ import annotations

from pathlib import Path

from common.marks import has_keys, require_own_file
from logits_io.naming import EXPORT_REPORT_FILE, ONNX_FILE

EXPORT_FILES = (ONNX_FILE, EXPORT_REPORT_FILE)
REPORT_KEYS = {"file", "levels", "wrong_integers", "versions"}
NOTED = {"checked_on", "arch", "method"}  # in the metadata of every exported file


def require_own_export(folder: Path, force: bool = False) -> None:
    """Check, without writing, that an export into a folder replaces no file of the user.

    The weights are part of the ONNX file, so no file of external data is written.

    Args:
        force: let files of the user be replaced.

    Raises:
        InputError: it would replace one; the text names it.
    """
    require_own_file(folder / ONNX_FILE, force, is_exported)
    require_own_file(folder / EXPORT_REPORT_FILE, force, is_report)


def is_exported(path: Path) -> bool:
    """Whether an ONNX file has the metadata that this suite writes."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, ValueError, DecodeError):
        return False
    return {entry.key for entry in model.metadata_props} >= NOTED


def is_report(path: Path) -> bool:
    """Whether a JSON file is the report of an export."""
    return has_keys(path, REPORT_KEYS)
