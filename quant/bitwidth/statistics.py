"""Accuracies over bitwidths: bins, correlation, knee, and what they say in words."""

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
UNSTABLE = 0.05  # standard deviation within a bin
TREND = 0.5  # Spearman


@dataclass(frozen=True)
class Bin:
    """Accuracies of the configurations of about one average bitwidth."""

    bitwidth: float  # centre
    mean_acc: float
    std_acc: float  # population
    min_acc: float
    max_acc: float
    count: int


def bin_centre(x: float, width: float = DEFAULT_BIN_WIDTH) -> float:
    """The centre of the bin of ``x``: exact halves go up, so that each point is in one bin."""
    place = math.floor(round(x / width, 9) + 0.5)
    return round(place * width, 9)


def bin_statistics(
    bitwidths: Sequence[float], accuracies: Sequence[float], width: float = DEFAULT_BIN_WIDTH
) -> list[Bin]:
    """The bins of finite pairs, by bitwidth."""
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
        ValueError: of different length.
    """
    if len(bitwidths) != len(accuracies):
        raise ValueError(
            f"bitwidths and accuracies must be of one length, got {len(bitwidths)} and {len(accuracies)}"
        )
    pairs = zip(map(float, bitwidths), map(float, accuracies), strict=True)
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def correlations(
    bitwidths: Sequence[float], accuracies: Sequence[float]
) -> tuple[float | None, float | None, int]:
    """Pearson, Spearman (Pearson of average ranks) and the number of finite points; None for fewer than
    three points, or where one of the two does not vary.
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
) -> dict[str, Any] | None:
    """The smallest bitwidth whose accuracy is within ``tolerance`` of the best; None for fewer than two
    finite points.

    Args:
        points: (bitwidth, accuracy) in any order.
        source: what the points are.
    """
    finite = sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
    if len(finite) < 2:
        return None
    best_x, best_y = max(finite, key=lambda point: (point[1], -point[0]))
    bound = best_y - tolerance - SLACK
    knee_x, knee_y = next(point for point in finite if point[1] >= bound)
    return {
        "bitwidth": knee_x,
        "accuracy": knee_y,
        "best_bitwidth": best_x,
        "best_accuracy": best_y,
        "tolerance": tolerance,
        "monotone": all(y >= bound for x, y in finite if x > knee_x),
        "source": source,
        "n_points": len(finite),
    }


def knee_of(
    anchors: Sequence[tuple[float, float]],
    bitwidths: Sequence[float],
    accuracies: Sequence[float],
    tolerance: float,
) -> dict[str, Any] | None:
    """The knee of the anchors where there are two or more, else that of bins of half a bit."""
    if len(anchors) >= 2:
        return find_knee(anchors, tolerance)
    bins = bin_statistics(bitwidths, accuracies, KNEE_BIN_WIDTH)
    return find_knee([(part.bitwidth, part.mean_acc) for part in bins], tolerance, "bins")


def summarise(
    bitwidths: Sequence[float],
    accuracies: Sequence[float],
    losses: Sequence[float],
    anchors: Sequence[dict[str, float]],
    bin_width: float,
    tolerance: float,
) -> dict[str, Any]:
    """Means, extremes, correlations, bins and knee over the configurations that are finite.

    Raises:
        ValueError: none is.
    """
    triples = list(zip(bitwidths, accuracies, losses, strict=True))
    finite = [t for t in triples if all(map(math.isfinite, t))]
    if not finite:
        raise ValueError("accuracy and loss must be finite for one configuration, got none")
    found: dict[str, Any] = {}
    columns = [list(column) for column in zip(*finite, strict=True)]
    for name, values in zip(("bitwidth", "acc", "loss"), columns, strict=True):
        found[f"mean_{name}"] = float(np.mean(values))
        found[f"min_{name}"], found[f"max_{name}"] = float(min(values)), float(max(values))
        found[f"std_{name}"] = float(np.std(values))
    pearson, spearman, count = correlations(columns[0], columns[1])
    bins = bin_statistics(columns[0], columns[1], bin_width)
    several = [part.std_acc for part in bins if part.count > 1]
    points = [(anchor["bitwidth"], anchor["accuracy"]) for anchor in anchors]
    return {
        **found,
        "accuracy": found["mean_acc"],
        "loss": found["mean_loss"],
        "corr_pearson": pearson,
        "corr_spearman": spearman,
        "corr_n": count,
        "bin_stats": [asdict(part) for part in bins],
        "avg_val_std": float(np.mean(several)) if several else None,
        "knee": knee_of(points, columns[0], columns[1], tolerance),
        "num_nonfinite": len(triples) - len(finite),
    }


def statistics_lines(result: dict[str, Any], heading: str, verbose: bool = False) -> list[str]:
    """The lines of the statistics of one validation."""
    lines = [f"{heading}:"]
    for label, name, digits in (
        ("Accuracy", "acc", 4),
        ("Loss", "loss", 4),
        ("Bitwidth", "bitwidth", 2),
    ):
        mean, low, high = (result[f"{kind}_{name}"] for kind in ("mean", "min", "max"))
        lines.append(
            f"  {label} - Mean: {mean:.{digits}f}, Min: {low:.{digits}f}, Max: {high:.{digits}f}, "
            f"Std: {result[f'std_{name}']:.4f}"
        )
    lines.append(f"  Correlation (bitwidth, accuracy) - {_correlation_text(result)}")
    anchors, knee = result["anchors"], result["knee"]
    if anchors:
        each = ", ".join(f"{a['bitwidth']:g}-bit: {a['accuracy']:.4f}" for a in anchors)
        lines.append(f"  Uniform configurations - {each}")
    if anchors and knee:
        lines.append(
            f"  Knee - {knee['bitwidth']:g} bits (accuracy {knee['accuracy']:.4f}, best "
            f"{knee['best_accuracy']:.4f} at {knee['best_bitwidth']:g} bits, tolerance "
            f"{knee['tolerance']:.4f})"
        )
    if verbose:
        lines += [
            f"    Bitwidth {b['bitwidth']:.1f}: Acc={b['mean_acc']:.4f}±{b['std_acc']:.4f} (n={b['count']})"
            for b in result["bin_stats"]
        ]
    return lines


def _correlation_text(result: dict[str, Any]) -> str:
    pearson, spearman, count = (result[f"corr_{name}"] for name in ("pearson", "spearman", "n"))
    if count < 3:
        return "n/a (fewer than 3 points)"
    if result["min_bitwidth"] == result["max_bitwidth"]:
        return "n/a (all bitwidths equal)"
    if pearson is None or spearman is None:
        return "n/a (all accuracies equal)"
    return f"Pearson: {pearson:.4f}, Spearman: {spearman:.4f} (n={count})"


def interpretation(result: dict[str, Any], tolerance: float = DEFAULT_TOLERANCE) -> list[str]:
    """What the figures of a validation mean, by fixed rules."""
    anchors = [(a["bitwidth"], a["accuracy"]) for a in result["anchors"]]
    bins = [(b["bitwidth"], b["mean_acc"]) for b in result["bin_stats"]]
    points = anchors if len(anchors) >= 2 else bins
    few = "(few points) " if len(result["all_bitwidths"]) + len(anchors) < FEW_POINTS else ""
    lines = [f"trend: {_trend(result, points, tolerance)}"]
    knee = result["knee"]
    below = knee is not None and knee["bitwidth"] < max(x for x, _ in points)
    plateau = f"from {knee['bitwidth']:g} bits on" if knee and below else "none below the maximum"
    lines.append(f"plateau: {plateau}")
    beaten = [
        f"{low:g} beats {high:g}"
        for i, (low, a) in enumerate(points)
        for high, b in points[i + 1 :]
        if a > b + tolerance
    ]
    if beaten:
        lines.append(f"non-monotonic: {', '.join(beaten)}")
    unstable = [
        f"{b['bitwidth']:g}"
        for b in result["bin_stats"]
        if b["count"] > 1 and b["std_acc"] >= UNSTABLE
    ]
    if unstable:
        lines.append(f"unstable: at {', '.join(unstable)} bits")
    return [few + line for line in lines]


def _trend(result: dict[str, Any], points: Sequence[tuple[float, float]], tolerance: float) -> str:
    values = [y for _, y in points]
    if values and max(values) - min(values) <= tolerance:
        return "flat: robust across bitwidths"
    spearman = result["corr_spearman"]
    if spearman is not None and abs(spearman) >= TREND:
        return f"higher bitwidth, {'higher' if spearman > 0 else 'lower'} accuracy"
    return "no clear trend"
