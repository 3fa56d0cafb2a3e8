"""Top-1 against the CPU seconds of the quantization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from common.files import atomic_file
from plots.axes import new_figure

COLUMNS = 3  # panels beside each other
SHOWN = 12  # points below the best Top-1 that a panel shows
MARGIN = 0.5  # points between the lines and the edge


def draw_frontier(rows: Sequence[Sequence[str]], path: Path) -> None:
    """One panel per pair of bits: a line per method through its budgets; to an SVG file.

    Args:
        rows: method, budget, W/A, number of seeds, Top-1 in percent, its standard deviation,
            agreement, CPU seconds; as text.
    """
    import matplotlib

    pairs = list(dict.fromkeys(row[2] for row in rows))
    methods = list(dict.fromkeys(row[0] for row in rows))
    height = math.ceil((len(pairs) + 1) / COLUMNS)
    figure = new_figure(3.2 * COLUMNS, 2.8 * height)
    panels = list(figure.subplots(height, COLUMNS, squeeze=False).flat)
    for panel, bits in zip(panels, pairs, strict=False):
        for method in methods:
            points = [row for row in rows if row[0] == method and row[2] == bits]
            seconds, top1 = ([float(row[i]) for row in points] for i in (7, 4))
            panel.plot(seconds, top1, "o-", label=method, markersize=4)
        found = [float(row[4]) for row in rows if row[2] == bits]
        limits = max(max(found) - SHOWN, min(found) - MARGIN), max(found) + MARGIN
        panel.set(title=f"W{bits.replace('/', 'A')}", xscale="log", ylim=limits)
        panel.set(xlabel="CPU seconds", ylabel="Top-1 (%)")
        panel.grid(alpha=0.3)
    lines, labels = panels[0].get_legend_handles_labels()
    panels[len(pairs)].legend(lines, labels, loc="center")
    for panel in panels[len(pairs) :]:
        panel.axis("off")
    with matplotlib.rc_context({"svg.hashsalt": "frontier"}), atomic_file(path) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})
