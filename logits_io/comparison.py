"""Comparison of quantized and corrected logits with the full-precision ones.

Letters: N samples, C classes, F metrics, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.errors import InputError
from evaluation.metrics import ECE_BINS, SampleFigures, Scorer, confidence_bins
from logits_io.naming import FULL_PRECISION

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 1000
DRAWN_AT_ONCE = 2**20  # numbers of samples
LEVELS = (0.025, 0.975)  # of the 95 % interval
SHARES = {"top1_pct": 100.0, "top5_pct": 100.0, "agreement_pct": 100.0}
FLIPS = {"right_to_wrong_pct": 100.0, "wrong_to_right_pct": 100.0}
MEANS = {"kl_to_fp": 1.0, "mse_to_fp": 1.0, "cosine_to_fp": 1.0}
FIGURES = {**SHARES, **FLIPS, **MEANS}  # name -> factor of the mean over samples
OF_LABELS = ("top1_pct", "top5_pct", *FLIPS, "ece")


@dataclass(frozen=True)
class Comparison:
    """Tables of metrics with 95 % bootstrap intervals; without labels, of those that need none.

    The metrics are Top-1, Top-5, agreement with full precision, flips, KL, MSE, cosine and ECE; the
    ends of an interval are in the columns ``…_low`` and ``…_high``.
    """

    overall: pd.DataFrame  # a row per kind of logits
    per_class: pd.DataFrame  # a row per kind and class, without ECE; no row without labels


def compare_logits(
    logits: Mapping[str, np.ndarray],
    targets: np.ndarray | None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare every kind of logits with the full-precision ones.

    Args:
        logits: kind -> (N, C) float32, full precision among them.
        targets: (N,) int64; None where the labels are not known.
        resamples: B, number of bootstrap resamples; every kind uses the same ones.

    Raises:
        InputError: there are no full-precision logits, a value is not finite, a target is not a
            class, or ``resamples`` is below 1.
    """
    import pandas as pd

    if FULL_PRECISION not in logits:
        raise InputError(f"logits must hold {FULL_PRECISION}, got {', '.join(logits) or 'none'}")
    if targets is None:
        return _without_labels(logits, resamples, seed)
    _require_usable(logits, targets, resamples)
    scorer = Scorer(logits[FULL_PRECISION], targets)
    right = scorer(logits[FULL_PRECISION]).ahead == 0
    scored = {kind: scorer(values) for kind, values in logits.items()}
    tables = {kind: _sample_table(figures, right) for kind, figures in scored.items()}
    gaps = {kind: _calibration_gaps(figures) for kind, figures in scored.items()}
    random = np.random.RandomState(seed)
    overall = [
        {"logits": kind, "samples": len(targets), **_row(tables[kind], gaps[kind], draws)}
        for draws in [_draws(len(targets), resamples, random)]
        for kind in logits
    ]
    per_class = []
    for label in np.unique(targets):
        members = targets == label
        draws = _draws(int(members.sum()), resamples, random)
        per_class += [
            {
                "logits": kind,
                "class": int(label),
                "samples": int(members.sum()),
                **_row(tables[kind][members], None, draws),
            }
            for kind in logits
        ]
    return Comparison(pd.DataFrame(overall), pd.DataFrame(per_class))


def _without_labels(logits: Mapping[str, np.ndarray], resamples: int, seed: int) -> Comparison:
    """The comparison by the metrics that need no label."""
    predictions = logits[FULL_PRECISION].argmax(axis=1)  # stand for the labels, in no result
    overall = compare_logits(logits, predictions, resamples, seed).overall
    unknown = [name for name in overall if str(name).startswith(OF_LABELS)]
    overall = overall.drop(columns=unknown)
    return Comparison(overall, overall.iloc[:0].assign(**{"class": []}))


def _require_usable(logits: Mapping[str, np.ndarray], targets: np.ndarray, resamples: int) -> None:
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, got {resamples}")
    for kind, values in logits.items():
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise InputError(f"{kind} must be finite, got NaN or Inf in row {int(finite.argmin())}")
        outside = (targets < 0) | (targets >= values.shape[1])
        if outside.any():
            raise InputError(
                f"targets must be classes from 0 to {values.shape[1] - 1}, "
                f"got {int(targets[outside][0])}"
            )


def _sample_table(figures: SampleFigures, fp_right: np.ndarray) -> np.ndarray:
    """(N, F) float64 metrics of each sample, in the order of ``FIGURES``."""
    right = figures.ahead == 0
    columns = (
        right,
        figures.ahead < 5,
        figures.agrees,
        fp_right & ~right,
        right & ~fp_right,
        figures.kl,
        figures.mse,
        figures.cosine,
    )
    return np.stack(columns, axis=1).astype(np.float64)


def _calibration_gaps(figures: SampleFigures) -> np.ndarray:
    """(N, bins) float64: confidence minus correctness in the bin of each sample, 0 elsewhere."""
    table = np.zeros((len(figures.confidence), ECE_BINS))
    gap = figures.confidence - (figures.ahead == 0)
    table[np.arange(len(table)), confidence_bins(figures.confidence)] = gap
    return table


def _draws(samples: int, resamples: int, random: np.random.RandomState) -> np.ndarray:
    """(B, N) float32 counts of how often each sample is drawn."""
    draws = np.empty((resamples, samples), dtype=np.float32)
    rows = max(1, DRAWN_AT_ONCE // samples)
    for start in range(0, resamples, rows):
        part = draws[start : start + rows]
        drawn = random.randint(0, samples, part.shape)
        drawn += samples * np.arange(len(part))[:, None]
        part[:] = np.bincount(drawn.ravel(), minlength=part.size).reshape(part.shape)
    return draws


def _row(table: np.ndarray, gaps: np.ndarray | None, draws: np.ndarray) -> dict[str, float]:
    """Metrics of some samples, each with the ends of its interval."""
    values, spread = table.mean(axis=0), _weighted(draws, table)
    names = dict(FIGURES)
    if gaps is not None:
        names["ece"] = 1.0
        values = np.append(values, np.abs(gaps.mean(axis=0)).sum())
        spread = np.column_stack([spread, np.abs(_weighted(draws, gaps)).sum(axis=1)])
    ends = np.quantile(spread, LEVELS, axis=0)
    row = {}
    for index, (name, factor) in enumerate(names.items()):
        row[name] = factor * float(values[index])
        row[f"{name}_low"], row[f"{name}_high"] = (factor * float(end[index]) for end in ends)
    return row


def _weighted(draws: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(B, F) means over the drawn samples."""
    return draws @ table.astype(np.float32) / np.float32(draws.shape[1])
