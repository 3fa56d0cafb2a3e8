"""Risk against coverage of rules that reject samples, and the area below the curve.

Letters: N samples, K groups, T thresholds (one per coverage or cost), B bootstrap samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experts.selective import threshold_for

COSTS = np.linspace(0.0, 1.0, 21)
COVERAGES = np.linspace(0.02, 1.0, 50)
SWEEPS = {"coverage": COVERAGES, "cost": COSTS}
LOWS = (0.0, 0.2)  # lowest coverages of the areas
RISKS = ("overall", "balanced", "worst")
BOOTSTRAPS = 1000
INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Scored:
    """What a rule says of the samples of a split, and whether it is wrong.

    Attributes:
        scores: (N,); higher ones are accepted first.
        wrong: (N,) bool.
        parts: (N,) which threshold decides on a sample; all 0 if there is one.
        groups: (N,) group of the true class.
    """

    scores: np.ndarray
    wrong: np.ndarray
    parts: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Curve:
    """Coverage and risks at each threshold, (T,) each; NaN risks where nothing is accepted.

    Attributes:
        risks: overall, balanced and worst; by groups of the true class.
        group_risks, group_coverages: (T, K).
    """

    coverage: np.ndarray
    risks: dict[str, np.ndarray]
    group_risks: np.ndarray
    group_coverages: np.ndarray


def cost_threshold(scores: np.ndarray, wrong: np.ndarray, cost: float) -> float:
    """The threshold of the least coverage x risk + (1 - coverage) x cost; of equal ones the lowest.

    Infinity rejects everything.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    is_end = np.append(ranked[1:] != ranked[:-1], True)  # equal scores are accepted together
    counts = np.append(0, np.flatnonzero(is_end) + 1)
    errors = np.append(0, np.cumsum(wrong[order]))[counts]
    losses = errors + cost * (len(scores) - counts)
    best = int(np.flatnonzero(losses <= losses.min() + 1e-12 * len(scores))[-1])
    return float("inf") if best == 0 else float(ranked[counts[best] - 1])


def accepted_at(
    fitted: Scored, applied: Scored, sweep: str, values: np.ndarray | None = None
) -> np.ndarray:
    """(T, N) bool: what is accepted of ``applied`` with thresholds chosen on ``fitted``.

    A part without samples to choose on accepts everything.

    Args:
        sweep: whether the values are shares of samples to accept ("coverage"), or costs of a
            rejection where that of an error is 1 ("cost").
        values: (T,); None takes those of ``SWEEPS``.
    """
    values = SWEEPS[sweep] if values is None else values
    found = np.ones((len(values), len(applied.scores)), dtype=bool)
    for part in np.unique(fitted.parts):
        own, other = fitted.parts == part, applied.parts == part
        for index, value in enumerate(values):
            least = (
                threshold_for(fitted.scores[own], value)
                if sweep == "coverage"
                else cost_threshold(fitted.scores[own], fitted.wrong[own], value)
            )
            found[index, other] = applied.scores[other] >= least
    return found


def curve_of(accepted: np.ndarray, scored: Scored) -> Curve:
    """The curve of (T, N) accepted samples."""
    ones = np.ones((1, len(scored.wrong)))
    coverage, overall, group_risks, group_coverages = _measured(accepted, scored, ones)
    risks = _risks(coverage, overall, group_risks)
    return Curve(
        coverage[0],
        {name: values[0] for name, values in risks.items()},
        group_risks[0],
        group_coverages[0],
    )


def _measured(accepted: np.ndarray, scored: Scored, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Coverage (B, T), overall risk (B, T), risks and coverages of groups (B, T, K).

    Args:
        counts: (B, N) how often each sample is counted.
    """
    total = counts.sum(axis=1)[:, None]
    taken, failed = accepted.astype(float), (accepted & scored.wrong).astype(float)
    number, errors = counts @ taken.T, counts @ failed.T
    coverage = number / total
    overall = np.divide(errors, number, out=np.full_like(errors, np.nan), where=number > 0)
    risks, coverages = [], []
    for group in range(int(scored.groups.max()) + 1):
        member = scored.groups == group
        inside = counts * member
        own, own_errors = inside @ taken.T, inside @ failed.T
        risks.append(np.divide(own_errors, own, out=np.ones_like(own), where=own > 0))
        coverages.append(own / np.maximum(1.0, inside.sum(axis=1))[:, None])
    return coverage, overall, np.stack(risks, axis=-1), np.stack(coverages, axis=-1)


def _risks(
    coverage: np.ndarray, overall: np.ndarray, group_risks: np.ndarray
) -> dict[str, np.ndarray]:
    found = {"overall": overall, "balanced": group_risks.mean(-1), "worst": group_risks.max(-1)}
    return {name: np.where(coverage > 0, found[name], np.nan) for name in RISKS}


def area(coverage: np.ndarray, risk: np.ndarray, low: float = 0.0) -> float:
    """Mean risk over the coverages from ``low`` to 1: the area below the curve, by its width.

    The curve is linear between its points, and constant before the first and after the last.
    Points without an accepted sample are left out; of points with equal coverage the mean counts.
    """
    there = coverage > 0
    if not there.any():
        return 1.0
    places, inverse = np.unique(coverage[there], return_inverse=True)
    values = np.bincount(inverse, risk[there]) / np.bincount(inverse)
    inside = places[(places > low) & (places < 1.0)]
    grid = np.concatenate([[low], inside, [1.0]])
    heights = np.interp(grid, places, values)
    return float((np.diff(grid) * (heights[1:] + heights[:-1]) / 2).sum() / (1.0 - low))


@dataclass(frozen=True)
class Area:
    """An area with its bootstrap interval of 95 %."""

    risk: str
    low: float
    value: float
    interval: tuple[float, float]


def areas(accepted: np.ndarray, scored: Scored, seed: int) -> list[Area]:
    """Areas of every risk and lowest coverage, with intervals over samples of the split.

    The thresholds are kept; every rule is given the same bootstrap samples.
    """
    random = np.random.RandomState(seed)
    size = len(scored.wrong)
    curve = curve_of(accepted, scored)
    counts = np.stack(
        [np.bincount(random.randint(size, size=size), minlength=size) for _ in range(BOOTSTRAPS)]
    ).astype(float)
    coverage, overall, group_risks, _ = _measured(accepted, scored, counts)
    risks = _risks(coverage, overall, group_risks)
    found = []
    for name in RISKS:
        for low in LOWS:
            drawn = [area(c, r, low) for c, r in zip(coverage, risks[name], strict=True)]
            ends = np.percentile(drawn, INTERVAL)
            value = area(curve.coverage, curve.risks[name], low)
            found.append(Area(name, low, value, (float(ends[0]), float(ends[1]))))
    return found
