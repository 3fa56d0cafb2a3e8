"""Accuracy over bitwidth: bins, correlation, knee, and their interpretation in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy

DEFAULT_BIN_WIDTH = 0.1
KNEE_BIN_WIDTH = 0.5
DEFAULT_TOLERANCE = 0.01
SLACK = 1e-12
FEW_POINTS = 8
UNSTABLE = 0.05  # standard deviation of the accuracy within a bin
TREND = 0.5  # Spearman correlation


@dataclass(frozen=True)
class Anchor:
    """Accuracy and loss of a uniform assignment: all layers at the same bits."""

    bitwidth: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Knee:
    """The smallest bitwidth whose accuracy is within ``tolerance`` of the best.

    Attributes:
        monotone: whether every larger bitwidth is within ``tolerance`` of the best as well.
        source: kind of the points: ``anchors`` or ``bins``.
    """

    bitwidth: float
    accuracy: float
    best_bitwidth: float
    best_accuracy: float
    tolerance: float
    monotone: bool
    source: str
    n_points: int


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and extremes of some values."""

    mean: float
    std: float  # of the population
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(
            float(np.mean(values)), float(np.std(values)), float(min(values)), float(max(values))
        )


@dataclass(frozen=True)
class Statistics:
    """Statistics of accuracy and bits over random and uniform assignments.

    Attributes:
        bitwidths, accuracies: one value per random assignment, finite or not.
        bitwidth, accuracy, loss: over the finite ones.
        pearson, spearman: correlation of bitwidth and accuracy; None if undefined.
        correlated: number of points of the correlation.
        mean_bin_std: mean standard deviation of the accuracy within bins of several points.
        nonfinite: number of random assignments with NaN or infinite accuracy or loss.
    """

    bitwidths: Sequence[float]
    accuracies: Sequence[float]
    anchors: Sequence[Anchor]
    bitwidth: Spread
    accuracy: Spread
    loss: Spread
    pearson: float | None
    spearman: float | None
    correlated: int
    bins: Sequence[Bin]
    mean_bin_std: float | None
    knee: Knee | None
    nonfinite: int

    def as_dict(self) -> dict[str, Any]:
        """The statistics as plain values, with the names of the tables and JSON files."""
        found: dict[str, Any] = {}
        for name, spread in self.spreads().items():
            found |= {f"{kind}_{name}": value for kind, value in asdict(spread).items()}
        return {
            **found,
            "accuracy": self.accuracy.mean,
            "loss": self.loss.mean,
            "corr_pearson": self.pearson,
            "corr_spearman": self.spearman,
            "corr_n": self.correlated,
            "bin_stats": [asdict(part) for part in self.bins],
            "avg_val_std": self.mean_bin_std,
            "knee": None if self.knee is None else asdict(self.knee),
            "num_nonfinite": self.nonfinite,
            "all_bitwidths": list(self.bitwidths),
            "all_accuracies": list(self.accuracies),
            "anchors": [asdict(anchor) for anchor in self.anchors],
        }

    def spreads(self) -> dict[str, Spread]:
        """The spreads by their names in the tables."""
        return {"bitwidth": self.bitwidth, "acc": self.accuracy, "loss": self.loss}

    def anchor_points(self) -> list[tuple[float, float]]:
        """(bitwidth, accuracy) of the uniform assignments."""
        return [(anchor.bitwidth, anchor.accuracy) for anchor in self.anchors]


@dataclass(frozen=True)
class Bin:
    """Accuracies of the assignments with average bitwidths in one bin."""

    bitwidth: float  # centre of the bin
    mean_acc: float
    std_acc: float  # of the population
    min_acc: float
    max_acc: float
    count: int


def bin_centre(x: float, width: float = DEFAULT_BIN_WIDTH) -> float:
    """The centre of the bin of ``x``; a point between two bins belongs to the upper one."""
    place = math.floor(round(x / width, 9) + 0.5)
    return round(place * width, 9)


def bin_statistics(
    bitwidths: Sequence[float], accuracies: Sequence[float], width: float = DEFAULT_BIN_WIDTH
) -> list[Bin]:
    """The bins of the finite pairs, sorted by bitwidth."""
    found: dict[float, list[float]] = {}
    for x, y in finite_pairs(bitwidths, accuracies):
        found.setdefault(bin_centre(x, width), []).append(y)
    return [
        Bin(centre, float(np.mean(v)), float(np.std(v)), min(v), max(v), len(v))
        for centre, v in sorted(found.items())
    ]


def finite_pairs(
    bitwidths: Sequence[float], accuracies: Sequence[float]
) -> list[tuple[float, float]]:
    """The pairs without NaN or infinity.

    Raises:
        ValueError: the two sequences differ in length.
    """
    if len(bitwidths) != len(accuracies):
        raise ValueError(
            f"bitwidths and accuracies must be of one length, got {len(bitwidths)} and "
            f"{len(accuracies)}"
        )
    pairs = zip(map(float, bitwidths), map(float, accuracies), strict=True)
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def correlations(
    bitwidths: Sequence[float], accuracies: Sequence[float]
) -> tuple[float | None, float | None, int]:
    """Pearson and Spearman correlation, and the number of finite points.

    Spearman is Pearson of average ranks. Both are None for fewer than three points, or if
    bitwidths or accuracies are constant.
    """
    pairs = finite_pairs(bitwidths, accuracies)
    if len(pairs) < 3:
        return None, None, len(pairs)
    x, y = np.array(pairs).T
    return _pearson(x, y), _pearson(scipy.stats.rankdata(x), scipy.stats.rankdata(y)), len(pairs)


def _pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def find_knee(
    points: Sequence[tuple[float, float]],
    tolerance: float = DEFAULT_TOLERANCE,
    source: str = "anchors",
) -> Knee | None:
    """The smallest bitwidth whose accuracy is within ``tolerance`` of the best.

    None for fewer than two finite points.

    Args:
        points: (bitwidth, accuracy) in any order.
        source: kind of the points, ``anchors`` or ``bins``.
    """
    finite = sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
    if len(finite) < 2:
        return None
    best_x, best_y = max(finite, key=lambda point: (point[1], -point[0]))
    bound = best_y - tolerance - SLACK
    knee_x, knee_y = next(point for point in finite if point[1] >= bound)
    return Knee(
        bitwidth=knee_x,
        accuracy=knee_y,
        best_bitwidth=best_x,
        best_accuracy=best_y,
        tolerance=tolerance,
        monotone=all(y >= bound for x, y in finite if x > knee_x),
        source=source,
        n_points=len(finite),
    )


def knee_of(
    anchors: Sequence[tuple[float, float]],
    bitwidths: Sequence[float],
    accuracies: Sequence[float],
    tolerance: float,
) -> Knee | None:
    """The knee of the anchors if there are two or more, else of bins of half a bit."""
    if len(anchors) >= 2:
        return find_knee(anchors, tolerance)
    bins = bin_statistics(bitwidths, accuracies, KNEE_BIN_WIDTH)
    return find_knee([(part.bitwidth, part.mean_acc) for part in bins], tolerance, "bins")


def summarise(
    bitwidths: Sequence[float],
    accuracies: Sequence[float],
    losses: Sequence[float],
    anchors: Sequence[Anchor],
    bin_width: float,
    tolerance: float,
) -> Statistics:
    """Means, extremes, correlations, bins and knee over the finite random assignments.

    Raises:
        ValueError: no assignment has finite accuracy and loss.
    """
    triples = list(zip(bitwidths, accuracies, losses, strict=True))
    finite = [t for t in triples if all(map(math.isfinite, t))]
    if not finite:
        raise ValueError("accuracy and loss must be finite for one configuration, got none")
    x, y, lost = ([triple[i] for triple in finite] for i in range(3))
    pearson, spearman, count = correlations(x, y)
    bins = bin_statistics(x, y, bin_width)
    several = [part.std_acc for part in bins if part.count > 1]
    points = [(float(anchor.bitwidth), anchor.accuracy) for anchor in anchors]
    return Statistics(
        bitwidths=bitwidths,
        accuracies=accuracies,
        anchors=anchors,
        bitwidth=Spread.of(x),
        accuracy=Spread.of(y),
        loss=Spread.of(lost),
        pearson=pearson,
        spearman=spearman,
        correlated=count,
        bins=bins,
        mean_bin_std=float(np.mean(several)) if several else None,
        knee=knee_of(points, x, y, tolerance),
        nonfinite=len(triples) - len(finite),
    )


def statistics_lines(found: Statistics, heading: str, verbose: bool = False) -> list[str]:
    """The statistics of one validation as lines of text."""
    lines = [f"{heading}:"]
    for label, spread, digits in (
        ("Accuracy", found.accuracy, 4),
        ("Loss", found.loss, 4),
        ("Bitwidth", found.bitwidth, 2),
    ):
        lines.append(
            f"  {label} - Mean: {spread.mean:.{digits}f}, Min: {spread.min:.{digits}f}, "
            f"Max: {spread.max:.{digits}f}, Std: {spread.std:.4f}"
        )
    lines.append(f"  Correlation (bitwidth, accuracy) - {_correlation_text(found)}")
    if found.anchors:
        each = ", ".join(f"{a.bitwidth:g}-bit: {a.accuracy:.4f}" for a in found.anchors)
        lines.append(f"  Uniform configurations - {each}")
    knee = found.knee
    if found.anchors and knee:
        lines.append(
            f"  Knee - {knee.bitwidth:g} bits (accuracy {knee.accuracy:.4f}, best "
            f"{knee.best_accuracy:.4f} at {knee.best_bitwidth:g} bits, tolerance "
            f"{knee.tolerance:.4f})"
        )
    if verbose:
        lines += [
            f"    Bitwidth {b.bitwidth:.1f}: Acc={b.mean_acc:.4f}"
            f"{f'±{b.std_acc:.4f}' if b.count > 1 else ''} (n={b.count})"
            for b in found.bins
        ]
    return lines


def _correlation_text(found: Statistics) -> str:
    if found.correlated < 3:
        return "n/a (fewer than 3 points)"
    if found.bitwidth.min == found.bitwidth.max:
        return "n/a (all bitwidths equal)"
    if found.pearson is None or found.spearman is None:
        return "n/a (all accuracies equal)"
    return f"Pearson: {found.pearson:.4f}, Spearman: {found.spearman:.4f} (n={found.correlated})"


def interpretation(found: Statistics, tolerance: float = DEFAULT_TOLERANCE) -> list[str]:
    """Interpretation of the statistics by fixed rules, as lines of text."""
    anchors = found.anchor_points()
    points = anchors if len(anchors) >= 2 else [(b.bitwidth, b.mean_acc) for b in found.bins]
    few = "(few points) " if len(found.bitwidths) + len(anchors) < FEW_POINTS else ""
    lines = [f"trend: {_trend(found, points, tolerance)}"]
    knee = found.knee
    below = knee is not None and knee.bitwidth < max(x for x, _ in points)
    plateau = f"from {knee.bitwidth:g} bits on" if knee and below else "none below the maximum"
    lines.append(f"plateau: {plateau}")
    beaten = [
        f"{low:g} beats {high:g}"
        for i, (low, a) in enumerate(points)
        for high, b in points[i + 1 :]
        if a > b + tolerance
    ]
    if beaten:
        lines.append(f"non-monotonic: {', '.join(beaten)}")
    unstable = [f"{b.bitwidth:g}" for b in found.bins if b.count > 1 and b.std_acc >= UNSTABLE]
    if unstable:
        lines.append(f"unstable: at {', '.join(unstable)} bits")
    return [few + line for line in lines]


def _trend(found: Statistics, points: Sequence[tuple[float, float]], tolerance: float) -> str:
    values = [y for _, y in points]
    if values and max(values) - min(values) <= tolerance:
        return "flat: robust across bitwidths"
    spearman = found.spearman
    if spearman is not None and abs(spearman) >= TREND:
        return f"higher bitwidth, {'higher' if spearman > 0 else 'lower'} accuracy"
    return "no clear trend"
