"""Logits of an expert on a split: an npz file, and a JSON file next to it with their origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError, first_line
from common.files import atomic_file, sha256_file
from common.reading import regular_text
from common.sealed import unsealed
from common.unfolding import read_arrays

SIDE_FORMAT_VERSION = 1
BYTES = 8  # of a value, at most


def npz_path(root: Path, expert: str, split: str) -> Path:
    return root / expert / f"{split}_logits.npz"


def side_path(npz: Path) -> Path:
    return npz.with_name(f"{npz.stem}.meta.json")


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Write arrays as a compressed npz file and return its SHA-256.

    The file takes its final name only when complete.

    Raises:
        OSError: the disk is full or not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part, part.open("wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)
    return sha256_file(path)


def read_npz(path: Path, samples: int = 0, classes: int = 0) -> dict[str, np.ndarray]:
    """Read all arrays of a file without unpickling.

    Args:
        samples, classes: those that are expected. Far larger arrays are not unfolded.

    Raises:
        InputError: the file is missing or damaged, would have to be unpickled, or unfolds to an
            implausible size.
    """
    if not path.is_file():
        raise InputError(f"{path} must exist, got no such file")
    try:
        return read_arrays(path, samples * (classes + 3) * BYTES)
    except Exception as error:  # noqa: BLE001  (a damaged file fails in every possible way)
        reason = first_line(error)
        raise InputError(f"{path}: must be a whole npz file of arrays, got: {reason}") from None


def read_side(path: Path) -> dict[str, Any] | None:
    """Read the JSON file next to an npz file, without its own digest; None if there is none.

    Raises:
        InputError: it does not hold a JSON object, or its own digest does not hold.
    """
    side = side_path(path)
    if not side.exists():
        return None
    try:
        content = json.loads(regular_text(side))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{side}: must be a JSON object, got: {error}") from None
    return unsealed(content, side)
