"""The figures of a run from arrays: one row per correction, the table, the warning signs,
TensorBoard.

Letters: N samples, C classes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from correction import Setting
from evaluation.inference import Inference
from evaluation.metrics import Scorer, agreement, mean_confidence
from logits_io.naming import FULL_PRECISION, QUANTIZED
from quant import UnitReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MAX_GAP = 0.01  # difference of mean FP confidence above which the fitting images are called unlike the others

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One line of the summary: logits of one kind scored against the targets and the full-precision
    logits.
    """

    logits: (
        str  # fullprecision, or the kind of correction; identity is the quantized model as it is
    )
    alpha: float | None
    num_clusters: int | None
    pca_dim: int | None
    top1_pct: float
    top5_pct: float
    agreement_pct: float  # same prediction as full precision
    kl_to_fp: float  # nats
    mse_to_fp: float
    heldout_kl: float | None  # on the held-out fitting images; what the selection looks at
    selected: bool = False
    oracle: bool = False  # best Top-1 on the evaluation images: known afterwards only


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


def mark(rows: Sequence[Row], selected: int) -> list[Row]:
    """The rows with the selected one and the oracle marked.

    The oracle has the best Top-1, then the lowest KL, on the evaluation images; it is sought where
    the selection is, which leaves out the ridge map.
    """
    candidates = [
        i for i, row in enumerate(rows) if row.logits not in (FULL_PRECISION, "ridge_map")
    ]
    oracle = max(candidates, key=lambda i: (rows[i].top1_pct, -rows[i].kl_to_fp))
    return [
        dataclasses.replace(row, selected=i == selected, oracle=i == oracle)
        for i, row in enumerate(rows)
    ]


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(row) for row in rows]


HEADER = (
    *("logits", "alpha", "clusters", "pca", "Top-1 %", "Top-5 %", "agree %", "KL", "MSE"),
    *("held-out KL", ""),
)


def format_table(rows: Sequence[Row]) -> str:
    """The results table for people."""
    lines = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    return "\n".join(_aligned(line, widths) for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (row.alpha, row.num_clusters, row.pca_dim)
    shares = (row.top1_pct, row.top5_pct, row.agreement_pct)
    return (
        "quantized (identity)" if row.logits == "identity" else row.logits,
        *("-" if value is None else f"{value:g}" for value in numbers),
        *(f"{value:.2f}" for value in shares),
        f"{row.kl_to_fp:.4f}",
        f"{row.mse_to_fp:.3f}",
        "-" if row.heldout_kl is None else f"{row.heldout_kl:.6f}",
        " ".join(["selected"] * row.selected + ["oracle (best Top-1)"] * row.oracle),
    )


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The first and the last column to the left, the numbers to the right."""
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:-1], widths[1:-1], strict=True)]
    return "  ".join([cells[0].ljust(widths[0]), *numbers, cells[-1]]).rstrip()


def warning_signs(fitting: Inference, evaluation: Inference, source: str) -> dict[str, float]:
    """Compare, without labels, the images that the correction was fitted on with those it is
    applied to.

    A network that is surer of the fitting images has memorised them; a correction fitted there
    learns to restore memories. Logs both figures and says when the gap makes the correction
    untrustworthy.
    """
    signs = {}
    for name, part in (("fitting", fitting), ("evaluation", evaluation)):
        signs[f"fp_confidence_{name}"] = mean_confidence(part.logits[FULL_PRECISION])
        signs[f"agreement_{name}"] = agreement(part.logits[QUANTIZED], part.logits[FULL_PRECISION])
    logger.info(
        "correction fitted on %s: FP confidence %.3f there, %.3f on evaluation; agreement %.3f there, %.3f on evaluation",
        source,
        signs["fp_confidence_fitting"],
        signs["fp_confidence_evaluation"],
        signs["agreement_fitting"],
        signs["agreement_evaluation"],
    )
    gap = signs["fp_confidence_fitting"] - signs["fp_confidence_evaluation"]
    if gap > MAX_GAP and not source.startswith("val"):
        logger.warning(
            "the FP model is surer of the images that the correction was fitted on by %.3f (more than %g): it has seen "
            "them in training, and the correction may not carry over; --correction_source val:0.3 avoids this",
            gap,
            MAX_GAP,
        )
    return signs


class RunBoard:
    """The TensorBoard scalars of a run; the writer opens with the first scalar.

    Args:
        log_dir: folder of the event files.
    """

    def __init__(self, log_dir: Path):
        self.log_dir = log_dir

    @cached_property
    def writer(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.log_dir))

    def add_unit(self, report: UnitReport) -> None:
        """Losses and seconds of a unit; the step is the unit's index."""
        self.writer.add_scalar("reconstruction/loss", report.loss, report.index)
        self.writer.add_scalar("reconstruction/loss_nearest", report.loss_nearest, report.index)
        self.writer.add_scalar("reconstruction/flipped", report.flipped, report.index)
        self.writer.add_scalar("reconstruction/seconds", report.seconds, report.index)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)

    def add_results(self, rows: Sequence[Row]) -> None:
        """Accuracies of the full-precision, quantized and corrected (selected) logits, and close
        the writer.
        """
        named = {"fullprecision": rows[0], "quantized": rows[1]}
        named["corrected"] = next(row for row in rows if row.selected)
        for name, row in named.items():
            self.writer.add_scalar(f"accuracy/top1_{name}", row.top1_pct, 0)
            self.writer.add_scalar(f"accuracy/top5_{name}", row.top5_pct, 0)
        self.writer.close()
