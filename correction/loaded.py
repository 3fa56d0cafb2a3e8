"""A correction from a file in the place of a fitted grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from correction.cluster_affine import ClusterAffineCorrection
from correction.selection import Setting, SettingResult


class LoadedCorrection:
    """What ``CorrectionGrid`` is, for one correction that is not fitted here.

    Attributes:
        results: the identity, then the correction; nothing is held out, so neither has a KL divergence.
        selected: index of the correction.
    """

    def __init__(self, correction: ClusterAffineCorrection):
        self.correction = correction
        setting = Setting(correction.alpha, correction.num_clusters, correction.pca_dim)
        self.results = [
            SettingResult("identity", None, None),
            SettingResult("cluster_affine", setting, None),
        ]
        self.selected = 1

    def corrected(self, q_logits: np.ndarray) -> Iterator[tuple[SettingResult, np.ndarray]]:
        """The logits as they are, then corrected."""
        yield self.results[0], q_logits
        yield self.results[1], self.correction.transform(q_logits)

    def selected_correction(self) -> ClusterAffineCorrection:
        """The correction itself."""
        return self.correction
