"""The checkpoints of a training run: read and checked, and compared with a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from any_precision.run_folder import TABLES
from any_precision.settings import Config, checked, from_dict, without_where
from common.errors import InputError
from common.files import read_torch_file
from common.reading import regular_text

KINDS: dict[str, type] = {
    "epoch": int,
    "model_state_dict": dict,
    "bitwidth_assignment": dict,
    "config": dict,
}
KINDS_TO_RESUME: dict[str, type] = {
    "optimizer_state_dict": dict,
    "scheduler_state_dict": dict,
    "rng_state": Tensor,
    "best": list,
    "tables": dict,
}


def read_checkpoint(path: Path) -> tuple[dict[str, Any], Config]:
    """Read a checkpoint of a run and its configuration.

    Raises:
        InputError: it is unusable, or another kind of file.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict) or _missing(content, KINDS):
        raise InputError(
            f"{path}: must be a checkpoint of train_any_precision.py, got another file"
        )
    try:
        return content, checked(from_dict(content["config"]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def require_resumable(content: Mapping[str, Any], path: Path) -> None:
    """Check that a checkpoint holds what a run needs to go on.

    Raises:
        InputError: it does not.
    """
    missing = _missing(content, KINDS_TO_RESUME)
    if missing is None and not _is_usable(content):
        missing = "tables or best"
    if missing is not None:
        raise InputError(f"{path}: must hold {missing} to resume, got a checkpoint without")


def _missing(content: Mapping[str, Any], kinds: Mapping[str, type]) -> str | None:
    wrong = (key for key, kind in kinds.items() if not isinstance(content.get(key), kind))
    return next(wrong, None)


def _is_usable(content: Mapping[str, Any]) -> bool:
    best, tables = content["best"], content["tables"]
    texts = all(name in TABLES and isinstance(text, str) for name, text in tables.items())
    return texts and [type(value) for value in best] == [float, int]


def require_same(mine: Config, stored: Config, path: Path) -> None:
    """Check that a run is resumed with its own configuration, folders aside.

    Raises:
        InputError: a value differs.
    """
    a, b = without_where(mine).as_dict(), without_where(stored).as_dict()
    for key, value in a.items():
        if value != b[key]:
            raise InputError(f"{path}: {key} must be {b[key]} to resume, got {value}")


def stored_config(path: Path) -> Config | None:
    """The configuration in a run's config.json; None if it is missing or damaged."""
    try:
        return from_dict(json.loads(regular_text(path)))
    except (OSError, ValueError, RecursionError):
        return None


def require_best(path: Path, content: Mapping[str, Any]) -> bool:
    """Check the checkpoint of the best epoch before a run is resumed.

    Args:
        content: the checkpoint to resume from.

    Returns:
        whether the file must be written again, with ``content``: a kill came before it.

    Raises:
        InputError: it is missing, damaged or of another epoch, and its epoch is not that of
            ``content``.
    """
    epoch = content["best"][1]
    try:
        best, _ = read_checkpoint(path)
        if best["epoch"] == epoch and best["config"] == content["config"]:
            return False
        reason = f"{path}: must be the checkpoint of epoch {epoch}, got epoch {best['epoch']}"
    except InputError as error:
        reason = str(error)
    if epoch != content["epoch"]:
        raise InputError(f"{reason} (--force without --resume trains again)")
    return True
