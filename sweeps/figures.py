"""The plots of a sweep: accuracy against bits, and gain of the correction."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.metrics import standard_error
from plots.sweep import error_bar_figure
from sweeps.results import table_rows

IMAGES = "image"  # folder of the plots
KINDS = {"quantized": "Top-1 (%)", "gain": "corrected - quantized, Top-1 (points)"}
TITLES = {"quantized": "accuracy against bits", "gain": "what the correction adds"}


def figure_names(arch: str) -> list[str]:
    """The descriptions of an architecture's plots."""
    return [f"{arch}: {title}" for title in TITLES.values()]


def sweep_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Description -> plot, two per architecture, of mean and standard deviation over seeds.

    Args:
        rows: results of the runs, as ``summary_row`` gives them.
    """
    table = table_rows(
        sorted(rows, key=lambda row: (row["arch"], row["n_bits_w"], row["n_bits_a"]))
    )
    figures = {}
    for arch in dict.fromkeys(row["arch"] for row in table):
        for (kind, label), text in zip(KINDS.items(), figure_names(arch), strict=True):
            series: dict[str, dict[str, tuple[float, float | None]]] = {}
            for row in table:
                if row["arch"] == arch and row[kind] is not None:
                    series.setdefault(row["method"], {})[row["W/A"]] = row[kind]
            reference = _reference(rows, arch) if kind == "quantized" else None
            figures[text] = error_bar_figure(series, label, text, reference)
    return figures


def _reference(rows: Sequence[Mapping[str, Any]], arch: str) -> tuple[float, float | None] | None:
    """Mean float accuracy in percent of the runs of an architecture, and its standard error."""
    found = [row for row in rows if row["arch"] == arch and row["fullprecision_top1"] is not None]
    if not found:
        return None
    accuracy = statistics.fmean(row["fullprecision_top1"] for row in found)
    images = found[0]["images"]
    return accuracy, None if images is None else standard_error(accuracy, images)
