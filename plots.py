"""Every figure, from arrays; headless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, drawn without a screen. (matplotlib is slow to import.)"""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG whose bytes depend on the figure alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        figure.savefig(part, format="png", dpi=150, metadata={"Software": None})


def sweep_figure(
    values: Sequence[float],
    accuracies: Sequence[float],
    full_precision: float,
    label: str,
    title: str,
) -> Figure:
    """Accuracy against a hyper-parameter, the full-precision accuracy as a line, the best point
    marked (of equals the one with the least value).

    Args:
        values, accuracies: a point each; accuracies in percent.
        full_precision: in percent.
        label: of the horizontal axis.
    """
    points = sorted(zip(values, accuracies, strict=True))
    best = max(points, key=lambda point: point[1])
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    axes.axhline(
        full_precision, color="grey", linestyle="--", label=f"full precision {full_precision:.2f} %"
    )
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


def bar_figure(
    panels: Mapping[str, Mapping[str, Sequence[float | None]]], groups: Sequence[str], label: str
) -> Figure:
    """Grouped bars, a panel below the other; a value that is None leaves its place empty.

    Args:
        panels: title -> name of a bar -> a value per group.
        groups: names along the horizontal axis.
        label: of the vertical axis.
    """
    figure = new_figure(8.0, 2.8 * max(1, len(panels)))
    rows = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
    names = list(dict.fromkeys(name for bars in panels.values() for name in bars))
    width = 0.8 / max(1, len(names))
    handles = {}
    for axes, (title, bars) in zip(rows, panels.items(), strict=False):
        for name, values in bars.items():
            index = names.index(name)
            shown = [(place, value) for place, value in enumerate(values) if value is not None]
            places = [place - 0.4 + (index + 0.5) * width for place, _ in shown]
            drawn = axes.bar(places, [value for _, value in shown], width, color=f"C{index}")
            axes.bar_label(drawn, fmt="%.0f", fontsize=6)
            handles[name] = drawn
        axes.set(title=title, ylabel=label, xticks=range(len(groups)))
        axes.set_xticklabels(groups)
        axes.grid(axis="y", alpha=0.3)
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    return figure


def error_bar_figure(
    series: Mapping[str, Mapping[str, tuple[float, float]]], label: str, title: str
) -> Figure:
    """Means with standard deviations as error bars, a line per series.

    Args:
        series: name -> place on the horizontal axis -> (mean, standard deviation); places in the
            order in which they are met first.
        label: of the vertical axis.
    """
    places = list(dict.fromkeys(place for values in series.values() for place in values))
    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    for index, (name, values) in enumerate(series.items()):
        shift = 0.06 * (index - (len(series) - 1) / 2)
        axes.errorbar(
            [places.index(place) + shift for place in values],
            [mean for mean, _ in values.values()],
            yerr=[deviation for _, deviation in values.values()],
            marker="o",
            capsize=4,
            label=name,
        )
    axes.set(xticks=range(len(places)), xlabel="bits of weights / activations", ylabel=label)
    axes.set_xticklabels(places)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if series:
        axes.legend()
    return figure
