"""Checks of the inputs of a correction."""

from __future__ import annotations

import numpy as np

from common.errors import InputError

MAX_LOGIT = 1e15  # sums of squares of larger logits overflow float32


def check_logits(name: str, logits: np.ndarray) -> np.ndarray:
    """Return the logits as (N, C) float32.

    Raises:
        InputError: not 2-d, empty, NaN or infinite (the text names the row), or above
            ``MAX_LOGIT`` in size.
    """
    try:
        array = np.asarray(logits)
        array = array.astype(
            np.float32, casting="same_kind" if array.dtype.kind == "c" else "unsafe", copy=False
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be an array of numbers, got: {error}") from None
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{name} must be of shape (samples, classes), got {array.shape}")
    largest = max(float(array.max()), -float(array.min()))
    if not np.isfinite(largest):
        row = int(np.argmin(np.isfinite(array).all(axis=1)))
        raise InputError(f"{name} must be finite, got NaN or Inf in row {row}")
    if largest > MAX_LOGIT:
        raise InputError(f"{name} must be at most {MAX_LOGIT:g} in size, got {largest:g}")
    return array


def check_pair(q_logits: np.ndarray, fp_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as (N, C) float32.

    Raises:
        InputError: as ``check_logits``, or their shapes differ.
    """
    q_logits, fp_logits = check_logits("q_logits", q_logits), check_logits("fp_logits", fp_logits)
    if q_logits.shape != fp_logits.shape:
        raise InputError(
            f"fp_logits must be of the shape of q_logits {q_logits.shape}, got {fp_logits.shape}"
        )
    return q_logits, fp_logits


def check_alpha(alpha: float) -> None:
    if not isinstance(alpha, (int, float, np.floating)) or not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha must be between 0 and 1, got {alpha}")


def check_shrinkage(shrinkage: float) -> None:
    if not isinstance(shrinkage, (int, float, np.floating)) or not 0.0 <= shrinkage:
        raise InputError(f"shrinkage must be at least 0, got {shrinkage}")
