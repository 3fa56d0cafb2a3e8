"""Checks of the values that are read as logits from files of another program.

Letters: N samples, C classes.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from common.errors import InputError
from logits_io.given_csv import Given
from logits_io.schema import Schema

FEWEST_ROWS = 5  # from which a column of row numbers is told from logits
SUM_ERROR = 1e-3  # by which the probabilities of a sample may miss 1

logger = logging.getLogger(__name__)


def shape_text(logits: np.ndarray) -> str:
    """Rows and classes in words."""
    return f"{logits.shape[0]} rows of {logits.shape[1]} classes"


def as_logits(path: Path, schema: Schema, kind: str, part: Given) -> np.ndarray:
    """The logits of a file as (N, C) float32.

    Raises:
        InputError: they are not of that shape, not finite, or not logits.
    """
    array = part.logits
    if array is None or array.ndim != 2 or len(array) == 0 or array.shape[1] < 2:
        shape = None if array is None else array.shape
        raise InputError(f"{path}: logits must be of shape (samples, 2 or more), got {shape}")
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: logits must be numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        logits = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        row = int(finite.argmin())
        raise InputError(
            f"{path}: logits must be finite in float32, got NaN or Inf in row {row + 1}"
        )
    for name, values in (("labels", part.labels), ("ids", part.ids)):
        if values is not None and np.shape(values) != (len(logits),):
            raise InputError(
                f"{path}: {name} must be of shape ({len(logits)},), got {np.shape(values)}"
            )
    if not schema.of(kind):
        _require_logits_alone(path, logits)
    logger.info("%s: %s from %s", path, shape_text(logits), part.source)
    return _of_values(path, logits, schema.values == "probabilities")


def _require_logits_alone(path: Path, logits: np.ndarray) -> None:
    """Check that no column is one of row numbers or labels.

    Raises:
        InputError: a column looks like that, and the schema does not say that it is one of logits.
    """
    rows, classes = logits.shape
    if rows < FEWEST_ROWS:
        return
    whole = (logits == np.round(logits)).all(axis=0)
    if whole.all():
        return
    for column in np.flatnonzero(whole):
        values = logits[:, column]
        if (np.diff(values) == 1).all():
            what, key = "row numbers", "ids"
        elif 0 <= values.min() < values.max() < classes:
            what, key = "labels", "labels"
        else:
            continue
        raise InputError(
            f"{path}: column {column} of the logits looks like {what}; --schema {key}={column}, or "
            f"logits=0:{classes} if it is one of logits"
        )


def _of_values(path: Path, values: np.ndarray, is_probable: bool) -> np.ndarray:
    """Logits as they are, probabilities as their logarithms.

    Raises:
        InputError: they are probabilities though the schema does not say so, or vice versa.
    """
    inside = bool((values >= 0).all() and (values <= 1).all())
    sums = np.abs(values.sum(axis=1, dtype=np.float64) - 1)
    looks_so = inside and bool((sums <= SUM_ERROR).all())
    if is_probable and not looks_so:
        row = (
            int(((values < 0) | (values > 1)).any(axis=1).argmax()) if not inside else sums.argmax()
        )
        raise InputError(
            f"{path}: probabilities must lie in [0, 1] and sum to 1, got others in row {row + 1}"
        )
    if looks_so and not is_probable:
        raise InputError(
            f"{path}: must hold logits, got probabilities (rows in [0, 1] that sum to 1); save the "
            "values before the softmax, or give --schema values=probabilities, which takes their "
            "logarithms"
        )
    return np.log(np.maximum(values, np.finfo(np.float32).tiny)) if is_probable else values
