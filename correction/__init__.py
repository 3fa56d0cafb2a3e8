"""Correction of quantized logits towards the full-precision ones, without torch."""

from correction.baselines import RidgeMap
from correction.checks import MAX_LOGIT
from correction.cluster_affine import ClusterAffineCorrection
from correction.loaded import LoadedCorrection, NoCorrection
from correction.selection import (
    CorrectionGrid,
    Corrections,
    GridRequest,
    GridShape,
    Setting,
    SettingResult,
    fit_grid,
    plan_grid,
)

__all__ = [
    "MAX_LOGIT",
    "ClusterAffineCorrection",
    "CorrectionGrid",
    "Corrections",
    "GridRequest",
    "GridShape",
    "LoadedCorrection",
    "NoCorrection",
    "RidgeMap",
    "Setting",
    "SettingResult",
    "fit_grid",
    "plan_grid",
]
