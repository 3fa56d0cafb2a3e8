"""The results of a run: one row of metrics per kind of logits.

Letters: N samples, C classes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.console import progress
from correction import Corrections, Setting, SettingResult
from evaluation.inference import Inference
from evaluation.metrics import Scorer, agreement, mean_confidence
from logits_io.naming import FULL_PRECISION, QUANTIZED

# Mean float confidence on fitting minus evaluation images above which the correction is doubted.
MAX_GAP = 0.01
# Mean float confidence minus float accuracy above which the labels are doubted.
REMEDY = "--correction_source val:0.3"
DECIMALS = 6  # of metrics in tables
IDENTITY, RIDGE_MAP, CLUSTER_AFFINE = "identity", "ridge_map", "cluster_affine"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """Logits of one kind scored against the targets and the full-precision logits.

    Attributes:
        logits: fullprecision, or the kind of correction; identity: the uncorrected quantized model.
        agreement_pct: images with the same prediction as full precision, percent.
        kl_to_fp: mean KL divergence from full precision, nats.
        mse_to_fp: mean squared difference from the full-precision logits.
        top1_pct, top5_pct: percent; NaN where the labels are not known.
        heldout_kl: KL divergence on held-out fitting images, by which the correction is selected.
        oracle: best Top-1 on the evaluation images among the rows that can be selected; known only
            with their labels.
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
    """A float rounded to ``DECIMALS`` decimals, None for NaN; anything else unchanged."""
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, DECIMALS)
    return value


def score(
    name: str,
    logits: np.ndarray,
    scorer: Scorer,
    setting: Setting | None = None,
    heldout_kl: float | None = None,
    has_labels: bool = True,
) -> Row:
    """The row of (N, C) ``logits`` on the evaluation images.

    Args:
        has_labels: whether the targets of the scorer are labels.
    """
    figures = scorer(logits)
    top1, top5 = (
        100 * float((figures.ahead < k).mean()) if has_labels else math.nan for k in (1, 5)
    )
    return Row(
        logits=name,
        alpha=setting.alpha if setting else None,
        num_clusters=setting.num_clusters if setting else None,
        pca_dim=setting.pca_dim if setting else None,
        top1_pct=top1,
        top5_pct=top5,
        agreement_pct=100 * float(figures.agrees.mean()),
        kl_to_fp=float(figures.kl.mean()),
        mse_to_fp=float(figures.mse.mean()),
        heldout_kl=heldout_kl,
    )


@dataclass(frozen=True)
class Results:
    """The rows of a run.

    Attributes:
        quantized: the uncorrected quantized model.
        corrections: every correction, baselines first.
        selected: the row to use; ``quantized`` where no correction is better or wanted.
        oracle: the best Top-1 on the evaluation images, then the lowest KL; never the ridge map.
            None where the labels are not known.
        images: number of evaluation images.
    """

    full_precision: Row
    quantized: Row
    corrections: tuple[Row, ...]
    selected: Row
    oracle: Row | None
    images: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows in the order of the tables."""
        return (self.full_precision, self.quantized, *self.corrections)

    @property
    def has_labels(self) -> bool:
        """Whether the labels are known, and with them Top-1 and Top-5."""
        return not math.isnan(self.full_precision.top1_pct)

    @property
    def corrected(self) -> Row | None:
        """The selected row; None in a run without corrections."""
        return self.selected if self.corrections else None

    @property
    def best_baseline(self) -> Row | None:
        """The correction without clusters that has the best Top-1; None where there is none.

        Without labels, the one with the lowest KL divergence.
        """
        found = [row for row in self.corrections if row.logits != CLUSTER_AFFINE]
        return max(found, key=_merit) if found else None

    def as_records(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        return [row.as_record() for row in self.rows]


def _merit(row: Row) -> tuple[float, float]:
    return 0.0 if math.isnan(row.top1_pct) else row.top1_pct, -row.kl_to_fp


def collect(full_precision: Row, candidates: Sequence[Row], selected: int, images: int) -> Results:
    """The results of a run.

    Args:
        candidates: the uncorrected quantized model, then every correction.
        selected: index of the candidate to use.
    """
    eligible = [i for i, row in enumerate(candidates) if row.logits != RIDGE_MAP]
    oracle = None
    if not math.isnan(full_precision.top1_pct):
        oracle = max(eligible, key=lambda i: _merit(candidates[i]))
    marked = [
        dataclasses.replace(row, selected=i == selected, oracle=i == oracle)
        for i, row in enumerate(candidates)
    ]
    quantized, *corrections = marked
    best = None if oracle is None else marked[oracle]
    return Results(full_precision, quantized, tuple(corrections), marked[selected], best, images)


def score_corrections(
    corrections: Corrections,
    evaluation: Inference,
    on_corrected: Callable[[int, SettingResult, np.ndarray], None] | None = None,
    has_labels: bool = True,
) -> Results:
    """Score every correction on the evaluation images.

    Args:
        on_corrected: called with index, setting and (N, C) corrected logits of each.
        has_labels: whether the targets of ``evaluation`` are labels; if not, they are ignored.
    """
    reference = evaluation.logits[FULL_PRECISION]
    scorer = Scorer(reference, evaluation.targets if has_labels else reference.argmax(axis=1))
    rows = []
    corrected = corrections.corrected(evaluation.logits[QUANTIZED])
    bar = progress(corrected, "logits", len(corrections.results))
    for index, (result, logits) in enumerate(bar):
        rows.append(
            score(result.kind, logits, scorer, result.setting, result.heldout_kl, has_labels)
        )
        if on_corrected is not None:
            on_corrected(index, result, logits)
    full_precision = score(FULL_PRECISION, reference, scorer, has_labels=has_labels)
    return collect(full_precision, rows, corrections.selected, len(reference))


def warning_signs(fitting: Inference, evaluation: Inference, source: str) -> dict[str, float]:
    """Compare the fitting images with the evaluation images, without labels.

    A float network that is more confident on the fitting images has memorised them, and a
    correction fitted there may not help on other images; ``warn_of_memories`` warns of it.

    Returns:
        mean confidence of the float network, and agreement of both networks, on either set.
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


def warn_of_memories(
    signs: dict[str, float], source: str, results: Results, remedy: str = REMEDY
) -> None:
    """Warn if a selected correction was fitted on images that the network has memorised.

    Args:
        remedy: the flag that avoids it.
    """
    gap = signs["fp_confidence_fitting"] - signs["fp_confidence_evaluation"]
    corrects = results.selected.logits != IDENTITY
    if corrects and gap > MAX_GAP and not source.startswith("val"):
        logger.warning(
            "the float network is more confident on the images that the correction was fitted on "
            "than on the evaluation images, by %.3f (more than %g): it was trained on them, and "
            "the correction may not carry over to other images; %s avoids this",
            gap,
            MAX_GAP,
            remedy,
        )
