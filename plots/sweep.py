"""Plots of sweeps: accuracy against a hyper-parameter, and means with their spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from plots.axes import float_line, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sweep_figure(
    values: Sequence[float],
    accuracies: Sequence[float],
    full_precision: float,
    error: float | None,
    label: str,
    title: str,
) -> Figure:
    """Plot accuracy against a hyper-parameter, with the full-precision accuracy as a line.

    The best point is marked, of equal ones that with the smallest value.

    Args:
        values, accuracies: one of each per point; accuracies in percent.
        full_precision, error: accuracy in percent, and its standard error.
        label: label of the horizontal axis.
    """
    points = sorted(zip(values, accuracies, strict=True))
    best = max(points, key=lambda point: point[1])
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    float_line(axes, full_precision, error)
    axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label="quantized")
    axes.plot(
        *best,
        marker="*",
        markersize=14,
        linestyle="none",
        label=f"best {best[1]:.2f} % at {best[0]:g}",
    )
    axes.set(xlabel=label, ylabel="Top-1 (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def error_bar_figure(
    series: Mapping[str, Mapping[str, tuple[float, float | None]]],
    label: str,
    title: str,
    reference: tuple[float, float | None] | None = None,
) -> Figure:
    """Plot means with standard deviations as error bars, one line per series.

    Args:
        series: name -> place on the horizontal axis -> (mean, standard deviation or None); places
            are in the order of their first occurrence.
        label: label of the vertical axis.
        reference: accuracy of the float network in percent, and its standard error.
    """
    places = list(dict.fromkeys(place for values in series.values() for place in values))
    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    for index, (name, values) in enumerate(series.items()):
        shift = 0.06 * (index - (len(series) - 1) / 2)
        axes.errorbar(
            [places.index(place) + shift for place in values],
            [mean for mean, _ in values.values()],
            yerr=[math.nan if spread is None else spread for _, spread in values.values()],
            marker="o",
            capsize=4,
            label=name,
        )
    if reference is not None:
        float_line(axes, *reference)
    axes.set(xticks=range(len(places)), xlabel="bits of weights / activations", ylabel=label)
    axes.set_xticklabels(places)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if series:
        axes.legend()
    return figure
