"""Metrics of logits, computed with numpy.

Letters: N samples, C classes; all logits are (N, C), targets (N,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from evaluation.blocks import map_blocks

ECE_BINS = 15  # of equal width


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) float64 log-probabilities."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def topk_accuracy(logits: np.ndarray, targets: np.ndarray, k: int = 1) -> float:
    """Fraction of samples whose target is among the ``k`` largest logits.

    Among equal logits the lower class index ranks first.
    """
    return float((classes_ahead(logits, targets) < k).mean())


def classes_ahead(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Number of classes that rank before the target, (N,) int64; 0 means Top-1 is right.

    Among equal logits the lower class index ranks first.
    """
    target_logits = np.take_along_axis(logits, targets[:, None], axis=1)
    ahead = np.count_nonzero(logits > target_logits, axis=1)
    equal = logits == target_logits
    for row in np.flatnonzero(np.count_nonzero(equal, axis=1) > 1):
        ahead[row] += np.count_nonzero(equal[row, : targets[row]])
    return ahead


def agreement(logits: np.ndarray, reference: np.ndarray) -> float:
    """Fraction of samples on which both predict the same class."""
    return float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean())


def kl_divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean KL(softmax(reference) || softmax(logits)) in nats."""
    return float(sample_divergences(reference, logits).mean())


def sample_divergences(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL(softmax(reference) || softmax(logits)) of each sample in nats, (N,) float64."""
    log_p, log_q = log_softmax(reference), log_softmax(logits)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def mean_confidence(logits: np.ndarray) -> float:
    """Mean probability of the predicted class."""
    return float(np.exp(log_softmax(logits).max(axis=1)).mean())


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean over samples of the gap between mean confidence and accuracy in the sample's bin.

    Guo et al. 2017, arXiv:1706.04599, equation 3.

    Args:
        confidence: (N,) probability of the predicted class.
        right: (N,) bool, whether the prediction is right.
    """
    gaps = np.bincount(confidence_bins(confidence), confidence - right, ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def confidence_bins(confidence: np.ndarray) -> np.ndarray:
    """Index of the bin (low, high] that holds each confidence, (N,) int64."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)


@dataclass(frozen=True)
class SampleFigures:
    """Metrics of each sample, all (N,)."""

    ahead: np.ndarray  # classes that rank before the target: 0 is Top-1
    prediction: np.ndarray  # the first class with the largest logit
    agrees: np.ndarray  # bool: the reference predicts the same class
    kl: np.ndarray  # KL(softmax(reference) || softmax(logits)) in nats
    mse: np.ndarray  # squared difference to the reference, averaged over classes
    cosine: np.ndarray  # cosine similarity of logits and reference
    confidence: np.ndarray  # probability of the predicted class


class Scorer:
    """Computes the metrics of any number of logits against one reference, on all cores.

    Sums over classes are float32, within 1e-5 of float64 ones. Identical logits have a KL
    divergence of exactly 0.

    Args:
        reference: (N, C) float32.
        targets: (N,) int64.
    """

    def __init__(self, reference: np.ndarray, targets: np.ndarray):
        self.reference = reference
        self.targets = targets
        self.prediction = reference.argmax(axis=1)
        self.log_p = np.empty_like(reference)

        def prepare(block: slice) -> None:
            self.log_p[block] = _log_softmax32(reference[block])[0]

        map_blocks(prepare, len(reference))
        self.length = np.sqrt(_row_dots(reference, reference))

    def __call__(self, logits: np.ndarray) -> SampleFigures:
        """Metrics of (N, C) float32 logits."""
        parts = map_blocks(lambda block: self._block(logits[block], block), len(logits))
        return SampleFigures(
            *(
                np.concatenate([getattr(part, f.name) for part in parts])
                for f in fields(SampleFigures)
            )
        )

    def _block(self, logits: np.ndarray, block: slice) -> SampleFigures:
        reference, log_p = self.reference[block], self.log_p[block]
        log_q, confidence = _log_softmax32(logits)
        np.subtract(log_p, log_q, out=log_q)
        difference = logits - reference
        prediction = logits.argmax(axis=1)
        lengths = np.maximum(self.length[block] * np.sqrt(_row_dots(logits, logits)), 1e-30)
        return SampleFigures(
            ahead=classes_ahead(logits, self.targets[block]),
            prediction=prediction,
            agrees=prediction == self.prediction[block],
            kl=_row_dots(np.exp(log_p), log_q),
            mse=_row_dots(difference, difference) / logits.shape[1],
            cosine=_row_dots(logits, reference) / lengths,
            confidence=confidence,
        )


def _log_softmax32(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) float32 log-probabilities and the largest probability of each row, float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    shifted -= np.log(total)
    return shifted, 1.0 / total[:, 0].astype(np.float64)


def _row_dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products of the rows, (N,) float64."""
    return np.einsum("ij,ij->i", a, b).astype(np.float64)


def standard_error(percent: float, images: int) -> float:
    """Standard error, in percent, of an accuracy in percent on ``images`` images."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)
