"""Assignment of samples to clusters: PCA of the logits, then the nearest centre.

Letters: N samples, C classes, K clusters, D dimensions of the projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from common.errors import InputError

KMEANS_STARTS = 10


@dataclass(frozen=True)
class Projection:
    """The leading principal components of logits."""

    mean: np.ndarray  # (C,) float32
    components: np.ndarray  # (D, C) float32

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Project (N, C) logits to (N, D) float32."""
        return logits @ self.components.T - self.mean @ self.components.T


@dataclass(frozen=True)
class Partition:
    """Clusters of projected logits."""

    projection: Projection
    centres: np.ndarray  # (K, D) float32

    def assign(self, logits: np.ndarray) -> np.ndarray:
        """The cluster of each sample of (N, C) logits, (N,) int64."""
        return self.nearest(self.projection(logits))

    def nearest(self, projected: np.ndarray) -> np.ndarray:
        """The cluster of each of (N, D) projections, (N,) int64; ties go to the first centre."""
        sizes = np.square(self.centres).sum(axis=1)
        return (sizes - 2 * (projected @ self.centres.T)).argmin(axis=1)


def fit_projection(q_logits: np.ndarray, pca_dim: int) -> Projection:
    """Exact and deterministic PCA of (N, C) quantized logits.

    Its leading components are the PCA to fewer dimensions.

    Raises:
        InputError: fewer than 2 samples, or more dimensions than classes or samples.
    """
    if len(q_logits) < 2:
        raise InputError(f"correction must have at least 2 fitting samples, got {len(q_logits)}")
    limit = min(q_logits.shape)
    if not 1 <= pca_dim <= limit:
        raise InputError(
            f"pca_dim must be between 1 and {limit} (min of {q_logits.shape[1]} classes and "
            f"{q_logits.shape[0]} fitting samples), got {pca_dim}"
        )
    from sklearn.decomposition import PCA  # scikit-learn takes a second to import

    pca = PCA(n_components=pca_dim, svd_solver="covariance_eigh").fit(q_logits)
    return Projection(pca.mean_.astype(np.float32), pca.components_.astype(np.float32))


def fit_centres(projected: np.ndarray, num_clusters: int, random_state: int) -> np.ndarray:
    """Find (K, D) centres of (N, D) projections by KMeans.

    KMeans runs on one thread: with several its sums depend on which finishes first.

    Raises:
        InputError: more clusters than samples.
    """
    if not 1 <= num_clusters <= len(projected):
        raise InputError(
            f"num_clusters must be between 1 and the {len(projected)} fitting samples, "
            f"got {num_clusters}"
        )
    from sklearn.cluster import KMeans

    with threadpool_limits(limits=1):
        kmeans = KMeans(num_clusters, n_init=KMEANS_STARTS, random_state=random_state)
        return kmeans.fit(projected).cluster_centers_.astype(np.float32)


def fit_partition(
    q_logits: np.ndarray, pca_dim: int, num_clusters: int, random_state: int
) -> Partition:
    """Fit the projection and the clusters of (N, C) quantized logits."""
    projection = fit_projection(q_logits, pca_dim)
    return Partition(projection, fit_centres(projection(q_logits), num_clusters, random_state))
