"""Cluster-affine correction of logits: PCA, KMeans, and one line per cluster and class.

Letters: N samples, C classes, K clusters, D dimensions of the projection. Logits are (N, C)
float32; fits accumulate in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from common import InputError

KMEANS_STARTS = 10
MAX_LOGIT = 1e15  # sums of squares of larger ones leave float32
MIN_VARIANCE = 1e-12  # relative to the squared mean: below it a class has no slope to fit


@dataclass(frozen=True)
class Lines:
    """out = slope * q + shift, a line per cluster and class."""

    slope: np.ndarray  # (K, C) float64
    shift: np.ndarray  # (K, C) float64


def check_logits(name: str, logits: np.ndarray) -> np.ndarray:
    """The logits as (N, C) float32.

    Raises:
        InputError: not 2-d, empty, NaN or infinite (the text names the row), or too large to square.
    """
    array = np.asarray(logits, dtype=np.float32)
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{name} must be of shape (samples, classes), got {array.shape}")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise InputError(f"{name} must be finite, got NaN or Inf in row {int(np.argmin(finite))}")
    largest = float(np.abs(array).max())
    if largest > MAX_LOGIT:
        raise InputError(f"{name} must be at most {MAX_LOGIT:g} in size, got {largest:g}")
    return array


def fit_projection(q_logits: np.ndarray, pca_dim: int) -> PCA:
    """PCA of the quantized logits, exact and deterministic.

    Raises:
        InputError: more dimensions than classes or samples.
    """
    limit = min(q_logits.shape)
    if not 1 <= pca_dim <= limit:
        raise InputError(
            f"pca_dim must be between 1 and {limit} (min of {q_logits.shape[1]} classes and "
            f"{q_logits.shape[0]} fitting samples), got {pca_dim}"
        )
    return PCA(n_components=pca_dim, svd_solver="covariance_eigh").fit(q_logits)


def fit_clusters(projected: np.ndarray, num_clusters: int, random_state: int) -> KMeans:
    """KMeans of (N, D) projections, on one thread: with several its sums depend on which finishes
    first.

    Raises:
        InputError: more clusters than samples.
    """
    if not 1 <= num_clusters <= len(projected):
        raise InputError(
            f"num_clusters must be between 1 and the {len(projected)} fitting samples, got {num_clusters}"
        )
    with threadpool_limits(limits=1):
        return KMeans(num_clusters, n_init=KMEANS_STARTS, random_state=random_state).fit(projected)


def fit_global_line(q_logits: np.ndarray, fp_logits: np.ndarray) -> Lines:
    """Per class the least-squares line from quantized to full-precision logits: K = 1."""
    labels = np.zeros(len(q_logits), dtype=np.int64)
    identity = Lines(np.ones((1, q_logits.shape[1])), np.zeros((1, q_logits.shape[1])))
    return _add_residual_lines(identity, q_logits, fp_logits, labels, 1, 0.0)


def fit_cluster_lines(
    q_logits: np.ndarray,
    fp_logits: np.ndarray,
    labels: np.ndarray,
    num_clusters: int,
    shrinkage: float,
) -> Lines:
    """The global line plus, per cluster, a residual line with weight n / (n + shrinkage), n samples
    in it.

    Shrinkage 0 gives each cluster its own least-squares line; an empty cluster keeps the global
    one.
    """
    line = fit_global_line(q_logits, fp_logits)
    start = Lines(line.slope.repeat(num_clusters, 0), line.shift.repeat(num_clusters, 0))
    return _add_residual_lines(start, q_logits, fp_logits, labels, num_clusters, shrinkage)


def _add_residual_lines(
    start: Lines,
    q_logits: np.ndarray,
    fp_logits: np.ndarray,
    labels: np.ndarray,
    num_clusters: int,
    shrinkage: float,
) -> Lines:
    slope, shift = start.slope.copy(), start.shift.copy()
    for k in range(num_clusters):
        members = labels == k
        count = int(members.sum())
        if count == 0:
            continue
        q = q_logits[members].astype(np.float64)  # (n, C)
        residual = fp_logits[members] - (start.slope[k] * q + start.shift[k])
        extra_slope, extra_shift = _least_squares(q, residual)
        share = count / (count + shrinkage)
        slope[k] += share * extra_slope
        shift[k] += share * extra_shift
    return Lines(slope, shift)


def _least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and shift (C,) per column of (n, C) arrays; slope 0 where x does not vary."""
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    centred = x - x_mean
    variance = np.square(centred).mean(axis=0)
    covariance = (centred * (y - y_mean)).mean(axis=0)
    flat = variance <= MIN_VARIANCE * (1.0 + np.square(x_mean))
    slope = np.where(flat, 0.0, covariance / np.where(flat, 1.0, variance))
    return slope, y_mean - slope * x_mean


def apply_lines(q_logits: np.ndarray, lines: Lines, labels: np.ndarray, alpha: float) -> np.ndarray:
    """q + alpha * (slope * q + shift - q) with the line of each sample's cluster, (N, C) float32.

    alpha 0 returns the very bits of ``q_logits``.
    """
    gain = (1.0 + alpha * (lines.slope - 1.0)).astype(np.float32)
    offset = (alpha * lines.shift).astype(np.float32)
    return gain[labels] * q_logits + offset[labels]


class ClusterAffineCorrection:
    """Correct quantized logits by a line per cluster and class, learned from full-precision logits.

    PCA of the quantized logits to ``pca_dim`` dimensions, KMeans with ``num_clusters`` clusters on
    the projections, then per cluster k and class c the least-squares line fp ~ slope * q + shift.
    The result is q + alpha * (slope * q + shift - q). Labels are no argument of ``fit``, so they
    cannot leak.

    Args:
        num_clusters: K, at most the number of fitting samples.
        pca_dim: D, at most the number of classes.
        alpha: 0 leaves the logits alone, 1 puts them on the line.
        shrinkage: pseudo-count that pulls each cluster's line towards the line over all samples; 0
            is the plain method.
        random_state: seed of KMeans.

    Attributes:
        pca_, kmeans_: the fitted scikit-learn objects.
        slope_, shift_: (K, C) float64.
        counts_: (K,) samples per cluster.
    """

    def __init__(
        self,
        num_clusters: int = 8,
        pca_dim: int = 5,
        alpha: float = 1.0,
        shrinkage: float = 10.0,
        random_state: int = 0,
    ):
        self.num_clusters = num_clusters
        self.pca_dim = pca_dim
        self.alpha = alpha
        self.shrinkage = shrinkage
        self.random_state = random_state

    def fit(self, q_logits: np.ndarray, fp_logits: np.ndarray) -> ClusterAffineCorrection:
        """Learn from (N, C) quantized and full-precision logits of the same samples.

        Raises:
            InputError: shapes differ, a value is NaN or infinite, or K, D, alpha or shrinkage is
                out of range.
        """
        q_logits, fp_logits = check_pair(q_logits, fp_logits)
        check_alpha(self.alpha)
        check_shrinkage(self.shrinkage)
        self.pca_ = fit_projection(q_logits, self.pca_dim)
        self.kmeans_ = fit_clusters(
            self.pca_.transform(q_logits), self.num_clusters, self.random_state
        )
        labels = self.kmeans_.labels_
        self.counts_ = np.bincount(labels, minlength=self.num_clusters)
        self._lines = fit_cluster_lines(
            q_logits, fp_logits, labels, self.num_clusters, self.shrinkage
        )
        self.slope_, self.shift_ = self._lines.slope, self._lines.shift
        return self

    def transform(self, q_logits: np.ndarray) -> np.ndarray:
        """Corrected logits, (N, C) float32.

        Raises:
            InputError: not fitted, another number of classes, or NaN or Inf.
        """
        if not hasattr(self, "slope_"):
            raise InputError("ClusterAffineCorrection must be fitted before transform, got no fit")
        q_logits = check_logits("q_logits", q_logits)
        if q_logits.shape[1] != self.slope_.shape[1]:
            raise InputError(
                f"q_logits must have {self.slope_.shape[1]} classes as in fit, got {q_logits.shape[1]}"
            )
        labels = self.kmeans_.predict(self.pca_.transform(q_logits))
        return apply_lines(q_logits, self._lines, labels, self.alpha)

    build_correction_model = fit
    apply_correction = transform


def check_pair(q_logits: np.ndarray, fp_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as (N, C) float32 of one shape."""
    q_logits, fp_logits = check_logits("q_logits", q_logits), check_logits("fp_logits", fp_logits)
    if q_logits.shape != fp_logits.shape:
        raise InputError(
            f"fp_logits must be of the shape of q_logits {q_logits.shape}, got {fp_logits.shape}"
        )
    return q_logits, fp_logits


def check_alpha(alpha: float) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha must be between 0 and 1, got {alpha}")


def check_shrinkage(shrinkage: float) -> None:
    if not 0.0 <= shrinkage:
        raise InputError(f"shrinkage must be at least 0, got {shrinkage}")
