"""Figures from logits: numpy in, floats out. Accuracies are fractions.

Letters: N samples, C classes; all logits are (N, C), targets (N,).
"""

from __future__ import annotations

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) float64 log-probabilities."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def topk_accuracy(logits: np.ndarray, targets: np.ndarray, k: int = 1) -> float:
    """Share of samples whose target is among the ``k`` largest logits; of equal logits the first
    class counts.
    """
    target_logits = np.take_along_axis(logits, targets[:, None], axis=1)
    columns = np.arange(logits.shape[1])
    ahead = (logits > target_logits) | ((logits == target_logits) & (columns < targets[:, None]))
    return float((ahead.sum(axis=1) < k).mean())


def agreement(logits: np.ndarray, reference: np.ndarray) -> float:
    """Share of samples on which both predict the same class."""
    return float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean())


def kl_divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean KL(softmax(reference) || softmax(logits)) in nats."""
    log_p, log_q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def mean_squared_error(logits: np.ndarray, reference: np.ndarray) -> float:
    """Mean squared difference over samples and classes."""
    return float(np.square(logits.astype(np.float64) - reference).mean())


def mean_confidence(logits: np.ndarray) -> float:
    """Mean probability of the predicted class."""
    return float(np.exp(log_softmax(logits).max(axis=1)).mean())
