"""Temperature scaling, with one temperature per expert.

Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2.

Letters: N samples, C classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import scipy

from evaluation.metrics import expected_calibration_error, log_softmax

LOWEST, HIGHEST = 0.05, 20.0  # temperatures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """A temperature, and NLL (nats) and ECE (0 to 1) on the split that it was fitted on."""

    split: str
    temperature: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float

    def describe(self) -> str:
        return (
            f"Temperature: T = {self.temperature:.3f} ({self.split} NLL {self.nll_before:.4f} -> "
            f"{self.nll_after:.4f}, ECE {self.ece_before:.3f} -> {self.ece_after:.3f})"
        )


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean -log softmax(logits)_target in nats; (N, C), (N,)."""
    return float(-np.take_along_axis(log_softmax(logits), targets[:, None], axis=1).mean())


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature T in [0.05, 20] that minimises the negative log-likelihood of logits / T.

    The loss is convex in 1 / T, so its minimum is where the derivative, the mean of E_p[z] - z_y,
    changes its sign. If it does not change its sign, a bound is returned, with a warning.

    Args:
        logits: (N, C).
        targets: (N,) classes.
    """
    z = logits.astype(np.float64)
    own = z[np.arange(len(z)), targets]

    def slope(log_beta: float) -> float:
        p = np.exp(log_softmax(np.exp(log_beta) * z))
        return float(((p * z).sum(axis=1) - own).mean())

    low, high = -np.log(HIGHEST), -np.log(LOWEST)
    if slope(low) >= 0 or slope(high) <= 0:
        bound = HIGHEST if slope(low) >= 0 else LOWEST
        logger.warning("the best temperature is at or beyond the bound %g, which is used", bound)
        return bound
    return float(np.exp(-scipy.optimize.brentq(slope, low, high, xtol=1e-9)))


def calibrate(logits: np.ndarray, targets: np.ndarray, split: str) -> Calibration:
    """Fit the temperature of an expert on a split.

    Args:
        logits: (N, C), not yet divided by a temperature.
        targets: (N,) classes.
        split: name of the split, for the record.
    """
    temperature = fit_temperature(logits, targets)
    scaled = logits.astype(np.float64) / temperature
    return Calibration(
        split,
        temperature,
        negative_log_likelihood(logits, targets),
        negative_log_likelihood(scaled, targets),
        calibration_error(logits, targets),
        calibration_error(scaled, targets),
    )


def calibration_error(logits: np.ndarray, targets: np.ndarray) -> float:
    """Expected calibration error, 0 to 1, of (N, C) logits."""
    confidence = np.exp(log_softmax(logits).max(axis=1))
    return expected_calibration_error(confidence, logits.argmax(axis=1) == targets)
