"""Plots of a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from plots.axes import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 0.3  # inches


def importance_figure(groups: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Plot how much each setting matters as bars, one panel per group.

    Args:
        groups: group -> setting -> share from 0 to 1; without groups the figure says so.
    """
    rows = [len(shares) for shares in groups.values()] or [1]
    figure = new_figure(6.4, 1.0 + sum(0.7 + ROW * count for count in rows))
    figure.suptitle(title)
    if not groups:
        figure.subplots().set_axis_off()
        figure.supxlabel("too few trials to say which setting matters")
        return figure
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[2 + n for n in rows])
    for axes, (group, shares) in zip(panels[:, 0], groups.items(), strict=True):
        names = sorted(shares, key=lambda name: shares[name])
        axes.barh(names, [100 * shares[name] for name in names])
        axes.set(title=group, xlim=(0, 100))
        axes.grid(axis="x", alpha=0.3)
    panels[-1, 0].set_xlabel("share of the variance of the KL that the setting explains (%)")
    return figure
