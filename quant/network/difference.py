"""The difference of two results that must be equal up to rounding."""

from __future__ import annotations

from torch import Tensor

TOLERANCE = 1e-4  # of the largest value


def relative_difference(value: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest absolute value; infinite for another shape."""
    if value.shape != expected.shape:
        return float("inf")
    largest = float(expected.abs().max())
    difference = float((value - expected).abs().max())
    return difference / largest if largest else difference
