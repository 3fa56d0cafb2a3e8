"""Plot of accuracy against average bitwidth, without pyplot: no global state, no window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.metrics import standard_error
from plots.axes import float_line, new_figure
from quant.bitwidth.report import SweepStatistics
from quant.bitwidth.statistics import (
    DEFAULT_BIN_WIDTH,
    Bin,
    Knee,
    bin_statistics,
    correlations,
    finite_pairs,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_bitwidth_vs_accuracy(
    bitwidths: Sequence[float],
    accuracies: Sequence[float],
    epoch: int | None,
    title: str = "Bitwidth vs Accuracy",
    *,
    bin_width: float = DEFAULT_BIN_WIDTH,
    anchors: Sequence[tuple[float, float]] | None = None,
    knee: Knee | Mapping[str, Any] | None = None,
    weighting: str = "layers",
    reference: float | None = None,
    images: int | None = None,
    y_label: str = "Validation Accuracy",
) -> Figure:
    """Plot configurations, means per bin, anchors and knee.

    Args:
        bitwidths, accuracies: one value per configuration; pairs with NaN or infinity are dropped.
        epoch: index from 0, for the title; None leaves it out.
        anchors: (bitwidth, accuracy) of uniform configurations.
        knee: result of ``find_knee``, or a mapping that holds ``bitwidth``.
        reference: accuracy in full precision.
        images: number of images that the accuracies are of; None: not known.

    Raises:
        ValueError: bitwidths and accuracies of different length.
    """
    pairs = finite_pairs(bitwidths, accuracies)
    figure = new_figure(10, 6)
    axes = figure.subplots()
    if not pairs:
        axes.text(
            0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", fontsize=14
        )
    else:
        bins = bin_statistics([x for x, _ in pairs], [y for _, y in pairs], bin_width)
        (_draw_one_bin if len(bins) == 1 else _draw_bins)(axes, pairs, bins)
        _draw_box(axes, pairs, bins, dropped=len(bitwidths) - len(pairs))
    _draw_marks(axes, anchors, knee, reference, images)
    label = "Average Bitwidth" + ("" if weighting == "layers" else f" ({weighting}-weighted)")
    axes.set_xlabel(label, fontsize=12, fontweight="bold")
    axes.set_ylabel(y_label, fontsize=12, fontweight="bold")
    full = title if epoch is None else f"{title} (Epoch {epoch + 1})"
    axes.set_title(full, fontsize=14, fontweight="bold")
    axes.grid(linestyle="--", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    return figure


def sweep_figure(result: SweepStatistics, title: str, images: int | None = None) -> Figure:
    """Plot the result of ``sweep_statistics``.

    Args:
        images: number of images that the accuracies are of; None: not known.
    """
    found = result.statistics
    return plot_bitwidth_vs_accuracy(
        found.bitwidths,
        found.accuracies,
        None,
        f"{title}: bitwidth vs accuracy",
        anchors=found.anchor_points(),
        knee=found.knee,
        weighting=result.weighting,
        reference=result.full_precision,
        images=images,
        y_label="Top-1 Accuracy",
    )


def _draw_bins(axes: Any, pairs: list[tuple[float, float]], bins: list[Bin]) -> None:
    x, y = zip(*pairs, strict=True)
    axes.scatter(
        x,
        y,
        s=50,
        c="lightblue",
        edgecolors="blue",
        linewidths=0.5,
        alpha=0.3,
        label="Individual configs",
    )
    centres = [part.bitwidth for part in bins]
    means = [part.mean_acc for part in bins]
    axes.plot(centres, means, "o-", color="red", lw=2, ms=8, zorder=5, label="Mean accuracy")
    several = [part for part in bins if part.count > 1]
    if not several:
        return
    where = [part.bitwidth for part in several]
    axes.errorbar(
        where,
        [part.mean_acc for part in several],
        yerr=[part.std_acc for part in several],
        fmt="none",
        ecolor="red",
        capsize=5,
        alpha=0.7,
        label="±1 std",
    )
    axes.vlines(
        where,
        [part.min_acc for part in several],
        [part.max_acc for part in several],
        colors="black",
        linewidth=1,
        alpha=0.3,
        label="Min-max range",
    )


def _draw_one_bin(axes: Any, pairs: list[tuple[float, float]], bins: list[Bin]) -> None:
    x, y = zip(*pairs, strict=True)
    mean, spread = bins[0].mean_acc, bins[0].std_acc
    axes.scatter(x, y, s=100, c="blue", alpha=0.6)
    axes.axhline(mean, color="red", linestyle="--", label=f"Mean: {mean:.4f}")
    if len(pairs) > 1:
        axes.axhspan(mean - spread, mean + spread, color="red", alpha=0.15, label="±1 std")


def _with_spread(values: np.ndarray, digits: int) -> str:
    """Mean and standard deviation as text; one value has no deviation."""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std():.{digits}f}"


def _draw_box(axes: Any, pairs: list[tuple[float, float]], bins: list[Bin], dropped: int) -> None:
    x, y = np.array(pairs).T
    lines = [
        f"Mean Acc: {_with_spread(y, 4)}",
        f"Mean BW: {_with_spread(x, 2)}",
    ]
    pearson, _, count = correlations(x.tolist(), y.tolist())
    if pearson is not None:
        lines.append(f"r = {pearson:.2f} (n = {count})")
    if len(bins) > 1 and all(part.count == 1 for part in bins):
        lines.append("1 config per bin")
    if dropped:
        lines.append(f"dropped: {dropped}")
    axes.text(
        0.02,
        0.98,
        "\n".join(lines),
        transform=axes.transAxes,
        va="top",
        bbox={"boxstyle": "round", "facecolor": "wheat", "alpha": 0.5},
    )


def _draw_marks(
    axes: Any,
    anchors: Sequence[tuple[float, float]] | None,
    knee: Knee | Mapping[str, Any] | None,
    reference: float | None,
    images: int | None,
) -> None:
    if anchors:
        x, y = zip(*anchors, strict=True)
        axes.scatter(x, y, s=120, c="darkgreen", marker="*", zorder=6, label="Uniform configs")
    if knee:
        bits = knee.bitwidth if isinstance(knee, Knee) else knee["bitwidth"]
        axes.axvline(bits, color="green", linestyle=":", label=f"Knee: {bits:g} bits")
    if reference is not None:
        error = None if images is None else standard_error(100 * reference, images) / 100
        float_line(axes, reference, error, unit="")
