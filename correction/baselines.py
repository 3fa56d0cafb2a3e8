"""A baseline that the cluster-affine correction must beat.

The other two are the identity and the global line, one line per class for all samples.
"""

from __future__ import annotations

import numpy as np

from correction.checks import check_pair


class RidgeMap:
    """A ridge-regularised linear map over all classes at once, fp ~ q @ W + shift.

    Args:
        ridge: penalty on ||W - I||^2, relative to the mean variance of the logits times the number
            of samples; a larger one keeps W closer to the identity.
    """

    def __init__(self, ridge: float = 1e-2):
        self.ridge = ridge

    def fit(self, q_logits: np.ndarray, fp_logits: np.ndarray) -> RidgeMap:
        """Fit to (N, C) quantized and full-precision logits of the same samples."""
        q_logits, fp_logits = check_pair(q_logits, fp_logits)
        q_mean, fp_mean = q_logits.mean(0, dtype=np.float64), fp_logits.mean(0, dtype=np.float64)
        q = q_logits - q_mean
        residual = fp_logits - fp_mean - q
        gram = q.T @ q
        penalty = self.ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
        change = np.linalg.solve(gram + penalty + 1e-12 * np.eye(len(gram)), q.T @ residual)
        self.change_ = change.astype(np.float32)  # W - I
        self.shift_ = (fp_mean - q_mean - q_mean @ change).astype(np.float32)
        return self

    def transform(self, q_logits: np.ndarray) -> np.ndarray:
        """Mapped logits, (N, C) float32."""
        return q_logits + (q_logits @ self.change_ + self.shift_)
