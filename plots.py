"""Every figure, from arrays; headless."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from files import atomic_file


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
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
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
