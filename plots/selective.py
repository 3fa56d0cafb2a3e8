"""Plot of the risk of selective classifiers against their coverage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from plots.axes import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def risk_figure(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """Plot panels side by side, with a line per rule.

    Args:
        panels: title -> name of a rule -> coverages and risks (T,), NaN where nothing is accepted.
    """
    figure = new_figure(5.0 * len(panels), 4.2)
    all_axes = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    handles = {}
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
        for index, (name, (coverage, risk)) in enumerate(lines.items()):
            order = np.argsort(coverage, kind="stable")
            style = "o-" if index < len(lines) / 2 else "s--"
            (handles[name],) = axes.plot(
                100 * coverage[order], 100 * risk[order], style, markersize=3, color=f"C{index}"
            )
        axes.set(title=title, xlabel="coverage (%)", ylabel="error among accepted (%)")
        axes.grid(alpha=0.3)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    return figure
