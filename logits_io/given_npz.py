"""npz and npy files of another program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import InputError, first_line, require_known
from common.reading import require_regular
from common.unfolding import MAX_HEADER, read_arrays
from logits_io.given_csv import Given
from logits_io.schema import ID_NAMES, LABEL_NAMES, LISTS, Schema

NAME = "logits"  # of the array, where the schema names none


def read_given_npz(path: Path, schema: Schema, kind: str | None) -> Given:
    """Read the arrays of a file.

    Args:
        kind: the kind of logits to read; None: only labels.

    Raises:
        InputError: the file is damaged, would have to be unpickled, or an array is not there.
    """
    arrays = _arrays(path)
    labels = _named(path, arrays, schema.labels, LABEL_NAMES)
    if labels is None and kind is None and len(arrays) == 1:
        labels = next(iter(arrays))
    logits = None if kind is None else _logits_name(path, arrays, schema.of(kind), kind)
    ids = _named(path, arrays, schema.ids, ID_NAMES)
    return Given(
        logits=None if logits is None else arrays[logits],
        labels=None if labels is None else arrays[labels],
        ids=None if ids is None else tuple(map(str, arrays[ids].tolist())),
        source=f"array {logits!r}",
    )


def read_given_npy(path: Path, schema: Schema, kind: str | None) -> Given:
    """Read the array of a file, which holds logits, or labels where ``kind`` is None.

    Raises:
        InputError: the file is damaged, would have to be unpickled, or the schema names columns.
    """
    for key in (*LISTS, "labels", "ids"):
        if key in schema.keys:
            raise InputError(f"{key} in schema must be left out for {path}, which is one array")
    array = _whole(path)
    return Given(None, array, None, "") if kind is None else Given(array, None, None, "the array")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(require_regular(path))
    except Exception as error:  # noqa: BLE001  (a damaged file fails in every possible way)
        raise InputError(
            f"{path}: must be a whole npz file of arrays, got: {first_line(error)}"
        ) from None


def _whole(path: Path) -> np.ndarray:
    try:
        with require_regular(path).open("rb") as handle:
            if handle.read(6) != b"\x93NUMPY":
                raise ValueError("another kind of file")
        # Mapped, so that a header that claims more than the file holds takes no memory.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=MAX_HEADER)
        return np.array(mapped)
    except Exception as error:  # noqa: BLE001  (a damaged file fails in every possible way)
        raise InputError(f"{path}: must be a whole npy file, got: {first_line(error)}") from None


def _named(
    path: Path, arrays: dict[str, np.ndarray], given: str | None, usual: Sequence[str]
) -> str | None:
    """The name of a 1-d array: the given one, else a usual one; None if the file has none."""
    if given is not None:
        if given not in arrays:
            return None
        if arrays[given].ndim != 1:
            raise InputError(
                f"{path}: array {given!r} must be of shape (samples,), got {arrays[given].shape}"
            )
        return given
    found = [name for name in usual if name in arrays and arrays[name].ndim == 1]
    if len(found) > 1:
        raise InputError(f"{path}: schema must say which array is which, got {', '.join(found)}")
    return found[0] if found else None


def _logits_name(path: Path, arrays: dict[str, np.ndarray], given: Sequence[str], kind: str) -> str:
    """The name of the array of logits: as given, that of its kind, ``logits``, or the only one.

    Raises:
        InputError: there is none, or it is not clear which.
    """
    if len(given) > 1:
        raise InputError(f"{path}: logits in schema must be one array, got {', '.join(given)}")
    if given:
        return require_known(f"array in schema of {path}", given[0], arrays)
    for name in (kind, NAME):
        if name in arrays:
            return name
    tables = [name for name, array in arrays.items() if array.ndim == 2]
    if len(tables) != 1:
        raise InputError(
            f"{path}: must hold an array {NAME!r}, got {', '.join(arrays) or 'none'} "
            f"(--schema {kind}=NAME)"
        )
    return tables[0]
