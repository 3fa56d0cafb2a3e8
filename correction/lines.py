"""A line per cluster and class, fitted from sums that can be accumulated part by part.

Letters: N samples, C classes, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from evaluation.blocks import blocks, map_blocks

MIN_VARIANCE = 1e-12  # relative to the second moment; below it no slope is fitted


@dataclass(frozen=True)
class Lines:
    """out = slope * q + shift, a line per cluster and class."""

    slope: np.ndarray  # (K, C) float64
    shift: np.ndarray  # (K, C) float64


class Moments:
    """Sums of q, f, q * q and q * f per cluster and class, float64.

    q and f are measured from the means of the first samples added, to avoid cancellation.

    Args:
        num_clusters: K.
    """

    def __init__(self, num_clusters: int):
        self.num_clusters = num_clusters
        self.counts = np.zeros(num_clusters, dtype=np.int64)
        self.origin: tuple[np.ndarray, np.ndarray] | None = None
        self.sums: list[np.ndarray] = []

    def add(self, q_logits: np.ndarray, fp_logits: np.ndarray, labels: np.ndarray) -> None:
        """Add (N, C) logits; ``labels`` (N,) holds the cluster of each sample."""
        if self.origin is None:
            means = [logits.mean(axis=0, dtype=np.float64) for logits in (q_logits, fp_logits)]
            self.origin = (means[0], means[1])
            shape = (self.num_clusters, q_logits.shape[1])
            self.sums = [np.zeros(shape) for _ in range(4)]
        self.counts += np.bincount(labels, minlength=self.num_clusters)
        for block in blocks(len(labels)):
            q, f = q_logits[block] - self.origin[0], fp_logits[block] - self.origin[1]
            members = _membership(labels[block], self.num_clusters)
            for total, values in zip(self.sums, (q, f, q * q, q * f), strict=True):
                total += members @ values

    def lines(self, shrinkage: float) -> Lines:
        """The global line plus, per cluster, a residual line shrunk towards zero.

        The weight of the residual line of a cluster of n samples is n / (n + shrinkage): with
        shrinkage 0 each cluster has its own least-squares line. An empty cluster keeps the global
        line.
        """
        whole = self.global_line()
        counts = self.counts[:, None]
        mean_q, mean_f, variance, covariance, flat = self._centred(self.sums, np.maximum(counts, 1))
        slope = np.where(flat, 0.0, covariance / np.where(flat, 1.0, variance) - whole.slope)
        shift = mean_f - whole.slope * mean_q - whole.shift - slope * mean_q
        share = np.where(counts > 0, counts / np.maximum(counts + shrinkage, 1e-300), 0.0)
        return Lines(whole.slope + share * slope, whole.shift + share * shift)

    def global_line(self) -> Lines:
        """Least-squares line of each class over all samples, K = 1; slope 1 if q is constant."""
        sums = [total.sum(axis=0, keepdims=True) for total in self.sums]
        mean_q, mean_f, variance, covariance, flat = self._centred(sums, self.counts.sum())
        slope = np.where(flat, 1.0, covariance / np.where(flat, 1.0, variance))
        return Lines(slope, mean_f - slope * mean_q)

    def _centred(self, sums: list[np.ndarray], count: np.ndarray) -> tuple[np.ndarray, ...]:
        """Means of q and f, variance of q, covariance of q and f, and where q is constant."""
        assert self.origin is not None
        q, f, qq, qf = (total / count for total in sums)
        variance, covariance = qq - q * q, qf - q * f
        mean_q = q + self.origin[0]
        flat = variance <= MIN_VARIANCE * (1.0 + qq + np.square(mean_q))
        return mean_q, f + self.origin[1], variance, covariance, flat


def _membership(labels: np.ndarray, num_clusters: int) -> scipy.sparse.csr_array:
    """Sparse (K, N) matrix with ones where a sample belongs to a cluster."""
    ends = np.arange(len(labels) + 1)
    rows = scipy.sparse.csr_array((np.ones(len(labels)), labels, ends), (len(labels), num_clusters))
    return rows.T.tocsr()


def apply_lines(q_logits: np.ndarray, lines: Lines, labels: np.ndarray, alpha: float) -> np.ndarray:
    """q + alpha * (slope * q + shift - q) with the line of each sample's cluster, (N, C) float32.

    alpha 0 returns a copy of ``q_logits``, bit for bit.
    """
    if alpha == 0:
        return q_logits.copy()
    gain, offset = blended(lines, alpha)
    out = np.empty(q_logits.shape, dtype=np.float32)

    def apply(block: slice) -> None:
        np.multiply(q_logits[block], gain[labels[block]], out=out[block])
        out[block] += offset[labels[block]]

    map_blocks(apply, len(q_logits))
    return out


def blended(lines: Lines, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Factor and summand, each (K, C) float32, of the lines blended with the identity by alpha."""
    gain = (1.0 + alpha * (lines.slope - 1.0)).astype(np.float32)
    return gain, (alpha * lines.shift).astype(np.float32)
