"""What a run came to: one row per kind of logits, and what the correction adds.

Letters: N samples, C classes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from correction import Setting
from evaluation.inference import Inference
from evaluation.metrics import Scorer, agreement, mean_confidence
from logits_io.naming import FULL_PRECISION, QUANTIZED

MAX_GAP = 0.01  # of mean FP confidence, above which the fitting images are called unlike the others
MAX_DOUBT = (
    0.2  # of float accuracy below the float network's confidence, above which labels are doubted
)
DECIMALS = 6  # of figures in tables
IDENTITY, RIDGE_MAP, CLUSTER_AFFINE = "identity", "ridge_map", "cluster_affine"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """Logits of one kind scored against the targets and the full-precision logits.

    Attributes:
        logits: fullprecision, or the kind of correction; identity is the quantized model as it is.
        agreement_pct: same prediction as full precision.
        kl_to_fp: mean KL divergence from full precision, nats.
        heldout_kl: on the held-out fitting images; what the selection looks at.
        oracle: the best Top-1 on the evaluation images, which is known afterwards only.
    """

    logits: str
    alpha: float | None
    num_clusters: int | None
    pca_dim: int | None
    top1_pct: float
    top5_pct: float
    agreement_pct: float
    kl_to_fp: float
    mse_to_fp: float
    heldout_kl: float | None
    selected: bool = False
    oracle: bool = False

    def as_record(self) -> dict[str, Any]:
        """Plain values, rounded."""
        values = dataclasses.asdict(self)
        return {name: rounded(value) for name, value in values.items()}


def rounded(value: Any) -> Any:
    """A float without the digits that are noise of its representation; anything else as it is."""
    return round(value, DECIMALS) if isinstance(value, float) else value


def score(
    name: str,
    logits: np.ndarray,
    scorer: Scorer,
    setting: Setting | None = None,
    heldout_kl: float | None = None,
) -> Row:
    """The row of (N, C) ``logits`` on the evaluation images."""
    figures = scorer(logits)
    return Row(
        logits=name,
        alpha=setting.alpha if setting else None,
        num_clusters=setting.num_clusters if setting else None,
        pca_dim=setting.pca_dim if setting else None,
        top1_pct=100 * float((figures.ahead < 1).mean()),
        top5_pct=100 * float((figures.ahead < 5).mean()),
        agreement_pct=100 * float(figures.agrees.mean()),
        kl_to_fp=float(figures.kl.mean()),
        mse_to_fp=float(figures.mse.mean()),
        heldout_kl=heldout_kl,
    )


@dataclass(frozen=True)
class Results:
    """The rows of a run.

    Attributes:
        quantized: the quantized model as it is.
        corrections: every correction, baselines first.
        selected: the one to use, ``quantized`` where none is better or wanted.
        oracle: the best Top-1 on the evaluation images, then the lowest KL; never the ridge map.
        images: number of evaluation images.
    """

    full_precision: Row
    quantized: Row
    corrections: tuple[Row, ...]
    selected: Row
    oracle: Row
    images: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows in the order of the tables."""
        return (self.full_precision, self.quantized, *self.corrections)

    @property
    def corrected(self) -> Row | None:
        """The selected row; None where nothing was to be corrected."""
        return self.selected if self.corrections else None

    @property
    def best_baseline(self) -> Row | None:
        """Of the corrections without clusters, the one with the best Top-1; None where there is none."""
        found = [row for row in self.corrections if row.logits != CLUSTER_AFFINE]
        return max(found, key=_merit) if found else None

    def as_records(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        return [row.as_record() for row in self.rows]


def _merit(row: Row) -> tuple[float, float]:
    return row.top1_pct, -row.kl_to_fp


def collect(full_precision: Row, candidates: Sequence[Row], selected: int, images: int) -> Results:
    """The results of a run.

    Args:
        candidates: the quantized model as it is, then every correction.
        selected: index of the one to use.
    """
    eligible = [i for i, row in enumerate(candidates) if row.logits != RIDGE_MAP]
    oracle = max(eligible, key=lambda i: _merit(candidates[i]))
    marked = [
        dataclasses.replace(row, selected=i == selected, oracle=i == oracle)
        for i, row in enumerate(candidates)
    ]
    quantized, *corrections = marked
    return Results(
        full_precision, quantized, tuple(corrections), marked[selected], marked[oracle], images
    )


def standard_error(percent: float, images: int) -> float:
    """Standard error of a share in percent of so many images, in percent."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def warning_signs(fitting: Inference, evaluation: Inference, source: str) -> dict[str, float]:
    """Compare, without labels, the images that the correction was fitted on with those it is
    applied to.

    A network that is surer of the fitting images has memorised them; a correction fitted there
    learns to restore memories. The log has both figures, and a warning where the gap makes the
    correction untrustworthy.
    """
    signs = {}
    for name, part in (("fitting", fitting), ("evaluation", evaluation)):
        signs[f"fp_confidence_{name}"] = mean_confidence(part.logits[FULL_PRECISION])
        signs[f"agreement_{name}"] = agreement(part.logits[QUANTIZED], part.logits[FULL_PRECISION])
    logger.info(
        "correction fitted on %s: mean FP confidence %.3f there, %.3f on the evaluation images; "
        "agreement %.3f there, %.3f on the evaluation images",
        source,
        signs["fp_confidence_fitting"],
        signs["fp_confidence_evaluation"],
        signs["agreement_fitting"],
        signs["agreement_evaluation"],
    )
    return signs


def warn_of_memories(signs: dict[str, float], source: str, results: Results) -> None:
    """Warn where the fitting images were seen in training, if anything is corrected at all."""
    gap = signs["fp_confidence_fitting"] - signs["fp_confidence_evaluation"]
    corrects = results.selected.logits != IDENTITY
    if corrects and gap > MAX_GAP and not source.startswith("val"):
        logger.warning(
            "the float network is more confident on the images that the correction was fitted on, by "
            "%.3f (more than %g): it has seen them in training, and the correction may not carry over "
            "to other images; --correction_source val:0.3 avoids this",
            gap,
            MAX_GAP,
        )


def warn_of_labels(evaluation: Inference, results: Results) -> None:
    """Warn where the float network is far less accurate than it believes itself to be."""
    confidence = mean_confidence(evaluation.logits[FULL_PRECISION])
    if confidence - results.full_precision.top1_pct / 100 > MAX_DOUBT:
        logger.warning(
            "the float network's Top-1 is %.2f %%, its mean confidence %.2f %%: labels in another "
            "order, another preprocessing or other images than it was trained for are likely",
            results.full_precision.top1_pct,
            100 * confidence,
        )
