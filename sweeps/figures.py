"""The plots of a sweep: accuracy against bits, and gain of the correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
            figures[text] = error_bar_figure(series, label, text)
    return figures
