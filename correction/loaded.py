"""Replacements of a fitted grid: a correction from a file, or none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from correction.cluster_affine import ClusterAffineCorrection
from correction.selection import Setting, SettingResult

IDENTITY = SettingResult("identity", None, None)


class LoadedCorrection:
    """The identity and one correction that was not fitted here.

    Attributes:
        results: the identity, then the correction; both without a held-out KL divergence.
        selected: index of the correction.
    """

    def __init__(self, correction: ClusterAffineCorrection):
        self.correction = correction
        setting = Setting(correction.alpha, correction.num_clusters, correction.pca_dim)
        self.results = [IDENTITY, SettingResult("cluster_affine", setting, None)]
        self.selected = 1

    def corrected(self, q_logits: np.ndarray) -> Iterator[tuple[SettingResult, np.ndarray]]:
        """Yield the unchanged logits, then the corrected ones."""
        yield self.results[0], q_logits
        yield self.results[1], self.correction.transform(q_logits)

    def selected_correction(self) -> ClusterAffineCorrection:
        """The correction from the file."""
        return self.correction


class NoCorrection:
    """The identity alone."""

    def __init__(self) -> None:
        self.results = [IDENTITY]
        self.selected = 0

    def corrected(self, q_logits: np.ndarray) -> Iterator[tuple[SettingResult, np.ndarray]]:
        """Yield the unchanged logits."""
        yield IDENTITY, q_logits

    def selected_correction(self) -> None:
        """None: nothing is corrected."""
        return
