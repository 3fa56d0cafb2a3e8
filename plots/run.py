"""Plots of one run, from its logits.

Letters: N samples, C classes; logits are (N, C), targets (N,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evaluation.metrics import ECE_BINS, Scorer, confidence_bins, standard_error
from plots.axes import float_line, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quant import UnitReport

GRID_POINT = tuple[float, int, int, float]  # alpha, clusters, dimensions, Top-1 in percent
COLOURS = {"fullprecision": "grey", "quantized": "tab:orange", "corrected": "tab:blue"}
SHOWN_POINTS = 20_000  # largest number of points in a scatter plot


def grid_figure(
    points: Sequence[GRID_POINT], quantized: float, full_precision: float, images: int
) -> Figure:
    """Plot Top-1 over the grid: a heat map of clusters and dimensions for each alpha.

    Args:
        quantized: Top-1 without a correction in percent; the colour scale is centred on it.
        full_precision: Top-1 of the float network in percent.
        images: number of evaluation images.
    """
    alphas, clusters, dims = (sorted({point[i] for point in points}) for i in range(3))
    reach = max(0.05, *(abs(point[3] - quantized) for point in points))
    figure = new_figure(2.2 + 2.3 * len(alphas), 1.6 + 0.7 * len(dims))
    panels = figure.subplots(1, len(alphas), squeeze=False)[0]
    for axes, alpha in zip(panels, alphas, strict=True):
        table = np.full((len(dims), len(clusters)), np.nan)
        for point in points:
            if point[0] == alpha:
                table[dims.index(point[2]), clusters.index(point[1])] = point[3]
        image = axes.imshow(
            table, cmap="RdBu", vmin=quantized - reach, vmax=quantized + reach, aspect="auto"
        )
        for row, column in np.argwhere(np.isfinite(table)):
            value = table[row, column]
            dark = abs(value - quantized) > 0.6 * reach
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
        axes.set_xticks(range(len(clusters)), [str(k) for k in clusters])
        axes.set_yticks(range(len(dims)), [str(d) for d in dims])
        axes.set(title=f"alpha {alpha:g}", xlabel="clusters")
    panels[0].set_ylabel("PCA dimensions")
    figure.colorbar(image, ax=list(panels), label="Top-1 (%)")
    error = standard_error(quantized, images)
    figure.suptitle(
        f"Corrected Top-1; quantized {quantized:.2f} ± {error:.2f} %, float {full_precision:.2f} %"
    )
    return figure


def scatter_figure(logits: Mapping[str, np.ndarray], seed: int = 0) -> Figure:
    """Plot quantized and corrected logits against the full-precision ones.

    Args:
        logits: kind -> logits, with ``fullprecision`` among the kinds.
    """
    reference = logits["fullprecision"].ravel()
    random = np.random.RandomState(seed)
    chosen = random.randint(0, len(reference), min(SHOWN_POINTS, len(reference)))
    kinds = [kind for kind in logits if kind != "fullprecision"]
    figure = new_figure(1 + 4.2 * len(kinds), 4.4)
    x = reference[chosen]
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        y = logits[kind].ravel()[chosen]
        ends = (min(x.min(), y.min()), max(x.max(), y.max()))
        axes.plot(ends, ends, color="grey", linewidth=1)
        axes.scatter(x, y, s=3, alpha=0.25, linewidths=0, color=COLOURS.get(kind))
        error = float(np.square(logits[kind] - logits["fullprecision"]).mean())
        axes.set(xlabel="full-precision logit", ylabel=f"{kind} logit", title=f"MSE {error:.3g}")
    return figure


def class_figure(
    classes: Sequence[int],
    changes: Mapping[str, Sequence[float]],
    full_precision: tuple[float, float],
) -> Figure:
    """Plot the change of each class's Top-1 against full precision.

    Args:
        full_precision: Top-1 of the float network over all classes in percent, and its standard
            error.
        changes: kind -> change in percentage points, one value per class; the classes are sorted by
            the first kind.
    """
    first = np.asarray(next(iter(changes.values())))
    order = np.argsort(first, kind="stable")
    figure = new_figure(min(16.0, 4 + 0.25 * len(first)), 4.2)
    axes = figure.subplots()
    places = np.arange(len(first))
    for kind, values in changes.items():
        mean = float(np.mean(values))
        axes.plot(
            places,
            np.asarray(values)[order],
            marker="o",
            markersize=4 if len(first) <= 100 else 1,
            linestyle="none",
            color=COLOURS.get(kind),
            label=f"{kind} (mean {mean:+.2f})",
        )
    accuracy, error = full_precision
    label = f"full precision (mean {accuracy:.2f} ± {error:.2f} %)"
    axes.axhline(0, color="grey", linewidth=1, label=label)
    if len(first) <= 40:
        axes.set_xticks(places, [str(classes[i]) for i in order])
    axes.set(xlabel="class", ylabel="Top-1 minus full precision (points)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def unit_figure(units: Sequence[UnitReport]) -> Figure:
    """Plot the reconstruction loss of every unit, rounded to nearest and at the end."""
    figure = new_figure(max(6.4, min(16.0, 2 + 0.3 * len(units))), 4.2)
    axes = figure.subplots()
    places = range(len(units))
    for label, losses in (
        ("rounded to nearest", [unit.loss_nearest for unit in units]),
        ("at the end", [unit.loss for unit in units]),
    ):
        axes.plot(places, losses, marker="o", markersize=4, label=label)
    if min(min(unit.loss, unit.loss_nearest) for unit in units) > 0:
        axes.set_yscale("log")
    if len(units) <= 60:
        axes.set_xticks(places, [unit.name for unit in units], rotation=90, fontsize=8)
    axes.set(ylabel="reconstruction loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def cluster_figure(projected: np.ndarray, labels: np.ndarray, seed: int = 0) -> Figure:
    """Plot samples in the first two principal components of the quantized logits, by cluster.

    Args:
        projected: (N, D) projections; with D = 1 the second axis is 0.
        labels: (N,) cluster of each sample, shown by colour.
    """
    random = np.random.RandomState(seed)
    chosen = random.permutation(len(projected))[:SHOWN_POINTS]
    second = projected[chosen, 1] if projected.shape[1] > 1 else np.zeros(len(chosen))
    figure = new_figure(6.4, 5.2)
    axes = figure.subplots()
    axes.scatter(projected[chosen, 0], second, c=labels[chosen] % 20, s=6, cmap="tab20")
    axes.set(
        xlabel="first principal component",
        ylabel="second principal component",
        title=f"{len(np.unique(labels))} clusters of {len(projected)} quantized logits",
    )
    return figure


def reliability_figure(logits: Mapping[str, np.ndarray], targets: np.ndarray) -> Figure:
    """Plot accuracy against confidence in bins of equal width, with the diagonal of calibration."""
    figure = new_figure(5.4, 5.0)
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color="grey", linewidth=1)
    scorer = Scorer(logits["fullprecision"], targets)
    for kind, values in logits.items():
        figures = scorer(values)
        bins = confidence_bins(figures.confidence)
        count = np.bincount(bins, minlength=ECE_BINS)
        filled = count > 0
        confidence = np.bincount(bins, figures.confidence, ECE_BINS)[filled] / count[filled]
        right = np.bincount(bins, figures.ahead == 0, ECE_BINS)[filled] / count[filled]
        axes.plot(confidence, right, marker="o", markersize=4, color=COLOURS.get(kind), label=kind)
    share = float((scorer(logits["fullprecision"]).ahead == 0).mean())
    float_line(axes, share, standard_error(100 * share, len(targets)) / 100, unit="")
    axes.set(
        xlabel="confidence", ylabel="accuracy", title="Reliability", xlim=(0, 1), ylim=(0, 1.02)
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
