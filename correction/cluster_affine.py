"""Cluster-affine correction of logits: PCA, KMeans, and one line per cluster and class.

Letters: N samples, C classes, K clusters, D dimensions of the projection. Logits are (N, C)
float32; fits accumulate in float64.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError, first_line
from common.files import atomic_file
from common.unfolding import read_arrays
from correction.checks import MAX_LOGIT, check_alpha, check_logits, check_pair, check_shrinkage
from correction.lines import Lines, Moments, apply_lines
from correction.partition import Partition, Projection, fit_partition
from correction.tensors import TensorForm, corrected_tensor, tensor_form

FORMAT = "cluster-affine correction 1"


class ClusterAffineCorrection:
    """Corrects quantized logits by a line per cluster and class, fitted to full-precision logits.

    PCA of the quantized logits to ``pca_dim`` dimensions, KMeans with ``num_clusters`` clusters on
    the projections, then per cluster k and class c the least-squares line fp ~ slope * q + shift.
    The corrected logit is q + alpha * (slope * q + shift - q). ``fit`` takes no labels, so none can
    leak.

    Args:
        num_clusters: K, at most the number of fitting samples.
        pca_dim: D, at most the number of classes.
        alpha: 0 leaves the logits unchanged, 1 moves them onto the line.
        shrinkage: shrinkage of each cluster's line towards the line fitted on all samples
            (pseudo-count, 0: none).
        random_state: seed of KMeans.

    Attributes:
        partition_: projection and cluster centres.
        slope_, shift_: (K, C) float64.
        counts_: (K,) samples per cluster.
    """

    partition_: Partition
    slope_: np.ndarray
    shift_: np.ndarray
    counts_: np.ndarray

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
        self._moments: Moments | None = None

    def fit(self, q_logits: np.ndarray, fp_logits: np.ndarray) -> ClusterAffineCorrection:
        """Fit to (N, C) quantized and full-precision logits of the same samples.

        Raises:
            InputError: shapes differ, a value is NaN or infinite, or K, D, alpha or shrinkage is
                out of range.
        """
        q_logits, fp_logits = check_pair(q_logits, fp_logits)
        self.fit_clusters(q_logits)
        return self.partial_fit(q_logits, fp_logits)

    def partial_fit(self, q_logits: np.ndarray, fp_logits: np.ndarray) -> ClusterAffineCorrection:
        """Update the lines with more samples.

        The clusters are those of ``fit_clusters`` or else of the first call; the lines are fitted
        to all samples seen since then.

        Raises:
            InputError: as ``fit``; the number of classes has changed; or the correction was loaded
                from a file.
        """
        q_logits, fp_logits = check_pair(q_logits, fp_logits)
        check_alpha(self.alpha)
        check_shrinkage(self.shrinkage)
        if self._moments is None:
            if hasattr(self, "slope_"):
                raise InputError(
                    "partial_fit must continue a correction that was fitted here, got a loaded one"
                )
            self.fit_clusters(q_logits)
        assert self._moments is not None
        self._require_classes(q_logits.shape[1])
        self._moments.add(q_logits, fp_logits, self.partition_.assign(q_logits))
        self._take(self._moments.lines(self.shrinkage), self._moments.counts)
        return self

    def fit_clusters(self, q_logits: np.ndarray) -> ClusterAffineCorrection:
        """Find the clusters of (N, C) quantized logits; this discards all lines fitted so far."""
        q_logits = check_logits("q_logits", q_logits)
        self.partition_ = fit_partition(
            q_logits, self.pca_dim, self.num_clusters, self.random_state
        )
        self._moments = Moments(self.num_clusters)
        for name in ("slope_", "shift_", "counts_", "_lines"):
            self.__dict__.pop(name, None)
        return self

    def transform(self, q_logits: Any) -> Any:
        """Return the corrected logits, (N, C) float32.

        Args:
            q_logits: a numpy array, or a float32 torch tensor, which is corrected on its device.

        Raises:
            InputError: not fitted, another number of classes, NaN or Inf, or too large.
        """
        self._require_fit("transform")
        check_alpha(self.alpha)
        if hasattr(q_logits, "new_tensor"):
            return self._transform_tensor(q_logits)
        q_logits = check_logits("q_logits", q_logits)
        self._require_classes(q_logits.shape[1])
        return apply_lines(q_logits, self._lines, self.partition_.assign(q_logits), self.alpha)

    build_correction_model = fit
    apply_correction = transform

    def _require_fit(self, what: str) -> None:
        if not hasattr(self, "slope_"):
            raise InputError(f"ClusterAffineCorrection must be fitted before {what}, got no fit")

    def _transform_tensor(self, q_logits: Any) -> Any:
        q_logits = q_logits.detach().float()
        if q_logits.dim() != 2 or len(q_logits) == 0:
            shape = tuple(q_logits.shape)
            raise InputError(f"q_logits must be of shape (samples, classes), got {shape}")
        self._require_classes(q_logits.shape[1])
        if not bool(q_logits.isfinite().all()):
            row = int((~q_logits.isfinite()).any(1).int().argmax())
            raise InputError(f"q_logits must be finite, got NaN or Inf in row {row}")
        largest = float(q_logits.abs().max())
        if largest > MAX_LOGIT:
            raise InputError(f"q_logits must be at most {MAX_LOGIT:g} in size, got {largest:g}")
        if self.alpha == 0:
            return q_logits.clone()
        form = self.tensor_form()
        return corrected_tensor(q_logits, TensorForm(*map(q_logits.new_tensor, form)))

    def tensor_form(self) -> TensorForm:
        """The arrays that ``transform`` computes with, for use in another program."""
        self._require_fit("tensor_form")
        return tensor_form(self.partition_, self._lines, self.alpha)

    def _require_classes(self, classes: int) -> None:
        known = self.partition_.projection.mean.shape[0]
        if classes != known:
            raise InputError(f"q_logits must have {known} classes as in fit, got {classes}")

    def _take(self, lines: Lines, counts: np.ndarray) -> None:
        self._lines, self.counts_ = lines, counts
        self.slope_, self.shift_ = lines.slope, lines.shift

    @classmethod
    def from_parts(
        cls, partition: Partition, lines: Lines, counts: np.ndarray, **settings: Any
    ) -> ClusterAffineCorrection:
        """Build a fitted correction from its parts; ``settings`` are constructor arguments."""
        centres, components = partition.centres, partition.projection.components
        correction = cls(len(centres), len(components), **settings)
        correction.partition_ = partition
        correction._take(lines, counts)
        return correction

    def save(self, path: str | Path) -> None:
        """Write the fitted correction to an npz file.

        Raises:
            OSError: the file cannot be written.
        """
        self._require_fit("save")
        settings = {
            "alpha": float(self.alpha),
            "shrinkage": float(self.shrinkage),
            "random_state": int(self.random_state),
        }
        arrays = {
            "settings": np.frombuffer(
                json.dumps({"format": FORMAT, **settings}).encode(), np.uint8
            ),
            **dataclasses.asdict(self.partition_.projection),
            "centres": self.partition_.centres,
            **dataclasses.asdict(self._lines),
            "counts": self.counts_,
        }
        with atomic_file(Path(path)) as part, part.open("wb") as handle:
            np.savez(handle, **arrays)

    @classmethod
    def load(cls, path: str | Path, num_classes: int | None = None) -> ClusterAffineCorrection:
        """Read a file written by ``save``; ``transform`` then returns the same bytes as before.

        Args:
            num_classes: number of classes of the model; None accepts any.

        Raises:
            InputError: missing, damaged, not such a file, or of another number of classes.
        """
        try:
            arrays = read_arrays(Path(path))
            settings = json.loads(arrays["settings"].tobytes())
            if settings.pop("format") != FORMAT:
                raise ValueError("another format")
            projection = Projection(arrays["mean"], arrays["components"])
            lines = Lines(arrays["slope"], arrays["shift"])
            partition = Partition(projection, arrays["centres"])
            correction = cls.from_parts(partition, lines, arrays["counts"], **settings)
            _check_shapes(partition, lines, correction.counts_)
            check_alpha(correction.alpha)
            check_shrinkage(correction.shrinkage)
        except Exception as error:  # noqa: BLE001  (a damaged file fails in every possible way)
            reason = first_line(error)
            raise InputError(
                f"{path}: must be a correction.npz written by this suite, got: {reason}"
            ) from None
        classes = correction.slope_.shape[1]
        if num_classes not in (None, classes):
            raise InputError(
                f"{path}: must be for {num_classes} classes like the model, got {classes}"
            )
        return correction


def _check_shapes(partition: Partition, lines: Lines, counts: np.ndarray) -> None:
    """Raise ValueError if shapes do not match, or a value is not finite or too large."""
    components = partition.projection.components
    (dims, classes), clusters = components.shape, len(partition.centres)
    expected = {
        "mean": (partition.projection.mean, (classes,)),
        "components": (components, (dims, classes)),
        "centres": (partition.centres, (clusters, dims)),
        "slope": (lines.slope, (clusters, classes)),
        "shift": (lines.shift, (clusters, classes)),
        "counts": (counts, (clusters,)),
    }
    for name, (array, shape) in expected.items():
        real = array.dtype.kind in "if" and np.isfinite(array).all()
        if array.shape != shape or clusters == 0 or not real or np.abs(array).max() > MAX_LOGIT:
            raise ValueError(f"{name} of shape {array.shape}, not finite, or too large")
