"""Plot of the risk of selective classifiers against their coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from plots.axes import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Line:
    """The curve of one classifier.

    Attributes:
        color_by, style_by: lines with equal ones have equal colours and styles.
        points: coverages and risks, (T,) each; NaN risks where nothing is accepted.
        marked: coverage and risk that are marked by a star.
    """

    name: str
    color_by: str
    style_by: str
    points: tuple[np.ndarray, np.ndarray]
    marked: tuple[float, float]


def risk_figure(panels: Mapping[str, Sequence[Line]]) -> Figure:
    """Plot panels side by side; of lines that coincide, the earlier are drawn wider."""
    figure = new_figure(4.4 * len(panels), 4.4)
    all_axes = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    handles = {}
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
        colors = list(dict.fromkeys(line.color_by for line in lines))
        styles = list(dict.fromkeys(line.style_by for line in lines))
        for line in lines:
            coverage, risk = line.points
            order = np.argsort(coverage, kind="stable")
            place = colors.index(line.color_by)
            style = STYLES[styles.index(line.style_by) % len(STYLES)]
            (handles[line.name],) = axes.plot(
                100 * coverage[order],
                100 * risk[order],
                style,
                color=f"C{place}",
                linewidth=1.0 + 0.8 * (len(colors) - 1 - place),
            )
            axes.plot(*(100 * value for value in line.marked), "*", color=f"C{place}", markersize=9)
        axes.set(title=title, xlabel="coverage (%)", ylabel="error among accepted (%)")
        axes.grid(alpha=0.3)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    return figure
