"""The grid of correction settings: fitting, and selection on held-out samples without labels.

Selection criterion: mean KL divergence to the full-precision model on held-out fitting samples. If
fitting is cheap, all samples are held out in turn (cross-validation), else a fifth of them. The
identity, then the global line, is preferred to a setting that is better by at most one standard
error of the paired difference (Hastie et al., The Elements of Statistical Learning, section 7.10).

Cost: PCA is fitted once at the largest dimension, whose leading components serve the smaller ones;
KMeans and lines are fitted once per (clusters, dimension); alpha costs nothing. No network is run.

Letters: N samples, C classes, K clusters, D dimensions of the projection.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from common.console import progress
from common.errors import InputError
from correction.baselines import RidgeMap
from correction.checks import check_alpha, check_pair, check_shrinkage
from correction.cluster_affine import ClusterAffineCorrection
from correction.lines import Lines, Moments, apply_lines
from correction.partition import Partition, Projection, fit_centres, fit_projection
from evaluation.metrics import sample_divergences

HOLDOUT = 0.2
CHEAP_VALUES = 1 << 21  # samples times classes up to which cross-validation is used
SIMPLE_KINDS = ("identity", "global_line")
DEFAULT_ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
DEFAULT_CLUSTERS = (8, 16, 64)
DEFAULT_PCA_DIMS = (25, 50, 100)
MAX_RIDGE_CLASSES = 1000
RIDGE_SAMPLES_PER_CLASS = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    alpha: float
    num_clusters: int
    pca_dim: int


# With one cluster the projection has no effect.
GLOBAL_LINE = Setting(alpha=1.0, num_clusters=1, pca_dim=1)


@dataclass(frozen=True)
class SettingResult:
    """A correction and its held-out mean KL divergence to the full-precision model, in nats.

    ``kind`` is identity, global_line, ridge_map or cluster_affine. Identity and ridge map have no
    ``setting``; the ridge map is a comparison that is never selected. Without a grid fitted here
    there is no ``heldout_kl``.
    """

    kind: str
    setting: Setting | None
    heldout_kl: float | None


@dataclass(frozen=True)
class GridRequest:
    """The requested grid; None selects the default, which depends on classes and samples."""

    alphas: Sequence[float] | None = None
    num_clusters: Sequence[int] | None = None
    pca_dims: Sequence[int] | None = None
    shrinkage: float = 10.0
    random_state: int = 0


@dataclass(frozen=True)
class GridShape:
    """The grid that is run, with all defaults filled in."""

    alphas: tuple[float, ...]
    num_clusters: tuple[int, ...]
    pca_dims: tuple[int, ...]

    def settings(self) -> list[Setting]:
        return [
            Setting(a, k, d) for d in self.pca_dims for k in self.num_clusters for a in self.alphas
        ]


def plan_grid(request: GridRequest, num_samples: int, num_classes: int) -> GridShape:
    """Check the requested values and fill in the defaults.

    Raises:
        InputError: alpha outside [0, 1], more clusters than fitting samples, more dimensions than
            classes or samples.
    """
    fitted = num_samples - holdout_size(num_samples)
    limit = min(num_classes, fitted)
    check_shrinkage(request.shrinkage)
    for alpha in request.alphas or ():
        check_alpha(alpha)
    for k in request.num_clusters or ():
        if not 1 <= k <= fitted:
            raise InputError(
                f"num_clusters must be between 1 and {fitted} ({num_samples} fitting samples, "
                f"{num_samples - fitted} of them held out), got {k}"
            )
    for dim in request.pca_dims or ():
        if not 1 <= dim <= limit:
            raise InputError(
                f"pca_dim must be between 1 and {limit} ({num_classes} classes, {fitted} fitting "
                f"samples), got {dim}"
            )
    clusters = request.num_clusters or [k for k in DEFAULT_CLUSTERS if k <= fitted] or [1]
    dims = request.pca_dims or default_pca_dims(limit)
    return GridShape(_unique(request.alphas or DEFAULT_ALPHAS), _unique(clusters), _unique(dims))


def default_pca_dims(limit: int) -> list[int]:
    """25, 50 and 100; if ``limit`` is below 100, a quarter, a half and all of it."""
    if limit >= DEFAULT_PCA_DIMS[-1]:
        return list(DEFAULT_PCA_DIMS)
    return [max(1, limit // 4), max(1, limit // 2), limit]


def _unique(values: Sequence) -> tuple:
    return tuple(dict.fromkeys(values))


def holdout_size(num_samples: int) -> int:
    """Number of fitting samples to hold out for the selection.

    Raises:
        InputError: fewer than three samples; two must remain to fit on.
    """
    if num_samples < 3:
        raise InputError(f"correction must have at least 3 fitting samples, got {num_samples}")
    return max(1, round(HOLDOUT * num_samples))


@dataclass(frozen=True)
class _FittedLines:
    """Clusters in the first D dimensions of the projection, and their lines."""

    centres: np.ndarray  # (K, D)
    lines: Lines
    counts: np.ndarray  # (K,)

    def partition(self, projection: Projection) -> Partition:
        dims = self.centres.shape[1]
        return Partition(Projection(projection.mean, projection.components[:dims]), self.centres)


class _FittedGrid:
    """Every correction of the grid, fitted on one set of samples."""

    def __init__(
        self, q_logits: np.ndarray, fp_logits: np.ndarray, shape: GridShape, request: GridRequest
    ):
        self.shape = shape
        self.request = request
        self.projection = fit_projection(q_logits, max(shape.pca_dims))
        projected = self.projection(q_logits)
        self.global_line = fit_global_line(q_logits, fp_logits)
        self.ridge = _fit_ridge(q_logits, fp_logits)

        def fit(pair: tuple[int, int]) -> _FittedLines:
            k, dim = pair
            centres = fit_centres(projected[:, :dim], k, request.random_state)
            labels = Partition(self.projection, centres).nearest(projected[:, :dim])
            moments = Moments(k)
            moments.add(q_logits, fp_logits, labels)
            return _FittedLines(centres, moments.lines(request.shrinkage), moments.counts)

        pairs = [(k, dim) for dim in shape.pca_dims for k in shape.num_clusters]
        with (
            threadpool_limits(limits=1),  # one thread per fit, several fits in parallel
            ThreadPoolExecutor(
                os.cpu_count(), initializer=threadpool_limits, initargs=(1,)
            ) as pool,
        ):
            fits = list(progress(pool.map(fit, pairs), "clusters", len(pairs)))
        self.clusters = dict(zip(pairs, fits, strict=True))

    def corrected(self, q_logits: np.ndarray) -> Iterator[tuple[str, Setting | None, np.ndarray]]:
        """Yield kind, setting and corrected logits of every correction, baselines first."""
        yield "identity", None, q_logits
        one_cluster = np.zeros(len(q_logits), dtype=np.int64)
        yield (
            "global_line",
            GLOBAL_LINE,
            apply_lines(q_logits, self.global_line.lines, one_cluster, GLOBAL_LINE.alpha),
        )
        if self.ridge is not None:
            yield "ridge_map", None, self.ridge.transform(q_logits)
        projected = self.projection(q_logits)
        for (_, dim), fitted in self.clusters.items():
            partition = fitted.partition(self.projection)
            labels = partition.nearest(projected[:, :dim])
            for alpha in self.shape.alphas:
                yield (
                    "cluster_affine",
                    Setting(alpha, len(fitted.centres), dim),
                    apply_lines(q_logits, fitted.lines, labels, alpha),
                )

    def correction(self, setting: Setting | None) -> ClusterAffineCorrection:
        """The single correction of a setting; the identity for None."""
        if setting is None:
            setting, fitted = Setting(0.0, 1, 1), self.global_line
        else:
            key = (setting.num_clusters, setting.pca_dim)
            fitted = self.clusters.get(key, self.global_line)
        return ClusterAffineCorrection.from_parts(
            fitted.partition(self.projection),
            fitted.lines,
            fitted.counts,
            alpha=setting.alpha,
            shrinkage=self.request.shrinkage,
            random_state=self.request.random_state,
        )


def fit_global_line(q_logits: np.ndarray, fp_logits: np.ndarray) -> _FittedLines:
    """Fit one least-squares line per class from quantized to full-precision logits."""
    moments = Moments(1)
    moments.add(q_logits, fp_logits, np.zeros(len(q_logits), dtype=np.int64))
    return _FittedLines(np.zeros((1, 1), np.float32), moments.global_line(), moments.counts)


def _fit_ridge(q_logits: np.ndarray, fp_logits: np.ndarray) -> RidgeMap | None:
    samples, classes = q_logits.shape
    if classes > MAX_RIDGE_CLASSES or samples < RIDGE_SAMPLES_PER_CLASS * classes:
        logger.info("no ridge map: too few samples (%d) or too many classes (%d)", samples, classes)
        return None
    return RidgeMap().fit(q_logits, fp_logits)


class Corrections(Protocol):
    """Corrections to compare on the evaluation images: a fitted grid, one from a file, or none.

    Attributes:
        results: one per correction, in the order of ``corrected``; the identity is first.
        selected: index of the correction to use.
    """

    results: list[SettingResult]
    selected: int

    def corrected(self, q_logits: np.ndarray) -> Iterator[tuple[SettingResult, np.ndarray]]:
        """Every correction with its (N, C) corrected logits, one after the other."""

    def selected_correction(self) -> ClusterAffineCorrection | None:
        """The correction to use; None if there is none."""


class CorrectionGrid:
    """All corrections of a grid, fitted on all samples, with the metrics that selected one.

    Attributes:
        results: baselines first, then the grid, in the order of ``corrected``.
        selected: index of the selected correction, never the ridge map.
    """

    def __init__(self, fitted: _FittedGrid, results: list[SettingResult], selected: int):
        self._fitted = fitted
        self.results = results
        self.selected = selected

    def corrected(self, q_logits: np.ndarray) -> Iterator[tuple[SettingResult, np.ndarray]]:
        """Every correction with its (N, C) corrected logits, one after the other."""
        for result, (_, _, logits) in zip(
            self.results, self._fitted.corrected(q_logits), strict=True
        ):
            yield result, logits

    def selected_correction(self) -> ClusterAffineCorrection:
        """The selected correction, to be saved or applied elsewhere."""
        return self._fitted.correction(self.results[self.selected].setting)


def fit_grid(q_logits: np.ndarray, fp_logits: np.ndarray, request: GridRequest) -> CorrectionGrid:
    """Fit all settings on all samples, and select one by trial fits without the held-out samples.

    Args:
        q_logits, fp_logits: (N, C) logits of the same fitting samples; results must not be
            reported on these samples.

    Raises:
        InputError: as ``plan_grid``; or NaN, Inf or differing shapes.
    """
    q_logits, fp_logits = check_pair(q_logits, fp_logits)
    shape = plan_grid(request, *q_logits.shape)
    final = _FittedGrid(q_logits, fp_logits, shape, request)
    order = np.random.RandomState(request.random_state).permutation(len(q_logits))
    measured: dict[tuple[str, Setting | None], list[np.ndarray]] = {}
    for held in _held_out(order, q_logits.shape[1]):
        kept = np.setdiff1d(order, held, assume_unique=True)
        trial = _FittedGrid(q_logits[kept], fp_logits[kept], shape, request)
        if trial.ridge is None:
            final.ridge = None
        for kind, setting, logits in trial.corrected(q_logits[held]):
            divergences = sample_divergences(fp_logits[held], logits)
            measured.setdefault((kind, setting), []).append(divergences)
    if final.ridge is None:
        measured.pop(("ridge_map", None), None)
    whole = {key: np.concatenate(parts) for key, parts in measured.items()}
    results = [SettingResult(*key, float(values.mean())) for key, values in whole.items()]
    return CorrectionGrid(final, results, _select(results, list(whole.values())))


def _held_out(order: np.ndarray, classes: int) -> list[np.ndarray]:
    """The sets of sample indices to hold out, one after the other."""
    size = holdout_size(len(order))
    if len(order) * classes > CHEAP_VALUES:
        return [order[:size]]
    return [order[start : start + size] for start in range(0, len(order), size)]


def _select(results: list[SettingResult], divergences: list[np.ndarray]) -> int:
    candidates = [i for i, result in enumerate(results) if result.kind != "ridge_map"]
    best = min(candidates, key=lambda i: divergences[i].mean())
    for i in candidates:
        if results[i].kind in SIMPLE_KINDS:
            loss = divergences[i] - divergences[best]
            if loss.mean() <= loss.std() / np.sqrt(len(loss)):
                return i
    return best
