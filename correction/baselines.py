"""What the cluster-affine correction must beat, besides leaving the logits alone and one line for
all samples.
"""

from __future__ import annotations

import numpy as np

from correction.checks import check_pair
from rowwise import blocks


class RidgeMap:
    """A linear map over all classes at once, fp ~ q @ W + shift, ridge-regularised.

    Args:
        ridge: penalty on ||W - I||^2 in units of the mean variance of the logits times the number
            of samples, so that no data means no change.
    """

    def __init__(self, ridge: float = 1e-2):
        self.ridge = ridge

    def fit(self, q_logits: np.ndarray, fp_logits: np.ndarray) -> RidgeMap:
        """Learn from (N, C) logits of the same samples."""
        q_logits, fp_logits = check_pair(q_logits, fp_logits)
        q_mean, fp_mean = q_logits.mean(0, dtype=np.float64), fp_logits.mean(0, dtype=np.float64)
        q = q_logits - q_mean
        residual = fp_logits - fp_mean - q
        gram = q.T @ q
        penalty = self.ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
        self.map_ = np.eye(len(gram)) + np.linalg.solve(
            gram + penalty + 1e-12 * np.eye(len(gram)), q.T @ residual
        )
        self.shift_ = fp_mean - q_mean @ self.map_
        return self

    def transform(self, q_logits: np.ndarray) -> np.ndarray:
        """Mapped logits, (N, C) float32."""
        out = np.empty(q_logits.shape, dtype=np.float32)
        for block in blocks(len(q_logits)):
            out[block] = q_logits[block].astype(np.float64) @ self.map_ + self.shift_
        return out
