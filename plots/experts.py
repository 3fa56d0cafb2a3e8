"""Plot of the metrics of experts as grouped bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from plots.axes import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bar_figure(
    panels: Mapping[str, Mapping[str, Sequence[float | None]]], groups: Sequence[str], label: str
) -> Figure:
    """Plot grouped bars in panels, one below the other; a value of None leaves a gap.

    Args:
        panels: title -> name of a bar -> one value per group.
        groups: names along the horizontal axis.
        label: label of the vertical axis.
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
        axes.margins(y=0.12)  # room for the numbers
        axes.grid(axis="y", alpha=0.3)
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    return figure
