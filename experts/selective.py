"""Rules that accept or reject a sample, such that groups of classes are served alike.

With the mixture's probabilities eta, the group g(y) of a class, and per group alpha and mu:

    prediction = argmax_y alpha_g(y) eta_y
    score      = max_y alpha_g(y) eta_y - sum_y (alpha_g(y) - mu_g(y)) eta_y
    accepted   where score >= threshold

This is the plug-in rule of Narasimhan et al., "Learning to Reject Meets Long-Tail Learning", ICLR
2024, theorem 1, with 1 / alpha for their alpha. (The code of AR-GSE has 1 / alpha in the sum and
alpha in front of it, which accepts every sample of one group before any of another.) With alpha = 1
and mu = 0 it is the rule of the maximum probability (Chow 1970). A rule sees predictions alone; the
groups of true classes are used to fit it and to measure errors.

Letters: N samples, C classes, K groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

LOW, HIGH = 0.75, 1.35  # bounds of alpha
LAMBDAS = np.linspace(-2.0, 2.0, 41)
FIXED_POINT_ROUNDS = 30
STEP = 0.5  # of the logarithm of alpha towards its new value
SETTLED = 1e-4
OBJECTIVES: dict[str, Callable[[np.ndarray], float]] = {
    "balanced": lambda errors: float(errors.mean()),
    "worst": lambda errors: float(errors.max()),
}
RATE, FLOOR, MOMENTUM, ROUNDS = 0.2, 0.05, 0.25, 30  # of the outer loop


@dataclass(frozen=True)
class Sample:
    """Probabilities of a mixture on a split.

    Attributes:
        eta: (N, C).
        targets: (N,) classes.
    """

    eta: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Rule:
    """A rule of one threshold.

    Attributes:
        of_class: (C,) the group of each class.
        alpha, mu: (K,).
        threshold: least score of an accepted sample.
    """

    of_class: np.ndarray
    alpha: np.ndarray
    mu: np.ndarray
    threshold: float = -math.inf

    def predictions(self, eta: np.ndarray) -> np.ndarray:
        """(N,) classes."""
        return (eta * self.alpha[self.of_class]).argmax(axis=1)

    def scores(self, eta: np.ndarray) -> np.ndarray:
        """(N,) scores, of which higher ones are accepted first."""
        alpha = self.alpha[self.of_class]
        return (eta * alpha).max(axis=1) - eta @ (alpha - self.mu[self.of_class])


@dataclass(frozen=True)
class Fit:
    """A fitted rule, and what chose it.

    Attributes:
        offset: lambda; mu falls from lambda / 2 in the head to -lambda / 2 in the tail.
        objective, on_tunev: value on ``val``, and on ``tunev``.
        answered: accepted share of the samples of a group of ``tunev``, least over groups.
        weights: (K,) beta of the outer loop.
    """

    rule: Rule
    offset: float
    objective: float
    on_tunev: float
    answered: float
    weights: np.ndarray

    @property
    def rank(self) -> tuple[float, float, float]:
        """What the best fit has least of; few samples often have no error at all."""
        return self.objective, self.on_tunev, -self.answered


def maximum_probability(of_class: np.ndarray) -> Rule:
    """The rule of the maximum probability, which accepts everything until it has a threshold."""
    groups = int(of_class.max()) + 1
    return Rule(of_class, np.ones(groups), np.zeros(groups))


def threshold_for(scores: np.ndarray, coverage: float) -> float:
    """The largest threshold that accepts at least a share of ``coverage`` of the samples.

    With a coverage of 1 everything is accepted, whatever its score.
    """
    if coverage >= 1:
        return -math.inf
    count = max(1, math.ceil(coverage * len(scores) - 1e-9))
    return float(np.sort(scores)[::-1][count - 1])


def accepting(rule: Rule, sample: Sample, coverage: float) -> Rule:
    """The rule with the threshold that accepts a share of ``coverage`` of a split."""
    return replace(rule, threshold=threshold_for(rule.scores(sample.eta), coverage))


def group_errors(accepted: np.ndarray, wrong: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Error among the accepted samples of each group, (K,); 1 for a group without any.

    Args:
        accepted, wrong: (N,) bool.
        groups: (N,) group of the true class.
    """
    count = int(groups.max()) + 1
    number = np.bincount(groups[accepted], minlength=count)
    errors = np.bincount(groups[accepted & wrong], minlength=count)
    return np.divide(errors, number, out=np.ones(count), where=number > 0)


def errors_of(rule: Rule, sample: Sample) -> np.ndarray:
    """``group_errors`` of a rule on a split."""
    accepted = rule.scores(sample.eta) >= rule.threshold
    wrong = rule.predictions(sample.eta) != sample.targets
    return group_errors(accepted, wrong, rule.of_class[sample.targets])


def group_coverages(rule: Rule, sample: Sample) -> np.ndarray:
    """Share of the samples of each group that a rule accepts, (K,)."""
    groups = rule.of_class[sample.targets]
    accepted = rule.scores(sample.eta) >= rule.threshold
    number = np.bincount(groups, minlength=len(rule.alpha))
    found = np.bincount(groups[accepted], minlength=len(rule.alpha))
    return found / np.maximum(number, 1)


def normalised(values: np.ndarray) -> np.ndarray:
    """Values with geometric mean 1, clipped to [0.75, 1.35]."""
    return np.clip(values / np.exp(np.log(values).mean()), LOW, HIGH)


def fixed_point(sample: Sample, start: Rule, coverage: float, weights: np.ndarray) -> Rule:
    """The rule whose alpha is inverse to the share of accepted samples of each group.

    1 / alpha_k is proportional to P(accepted, group k) / weights_k (Narasimhan et al. 2024, with
    the weights of their worst-group form), and the threshold accepts a share of ``coverage``.

    Args:
        start: its mu and groups are kept; alpha is where the iteration begins.
        weights: (K,).
    """
    alpha, groups = start.alpha, start.of_class[sample.targets]
    least = 1.0 / len(groups)
    for _ in range(FIXED_POINT_ROUNDS):
        scores = Rule(start.of_class, alpha, start.mu).scores(sample.eta)
        accepted = scores >= threshold_for(scores, coverage)
        shares = np.bincount(groups[accepted], minlength=len(alpha)) / len(groups)
        wanted = normalised(weights / shares.clip(min=least))
        new = np.exp((1 - STEP) * np.log(alpha) + STEP * np.log(wanted))
        settled = np.abs(new - alpha).max() < SETTLED
        alpha = new
        if settled:
            break
    return accepting(replace(start, alpha=alpha), sample, coverage)


def fit_rule(
    tunev: Sample,
    val: Sample,
    of_class: np.ndarray,
    coverage: float,
    objective: str,
    weights: np.ndarray | None = None,
) -> Fit:
    """The rule of the least objective on ``val`` among 41 values of lambda, fitted on ``tunev``.

    For each of them alpha is that of the fixed point, which need not be stable (a larger alpha
    makes errors of its group cost more, so that fewer of its samples are accepted), or the weights
    alone.

    Of equal ones that with the least objective on ``tunev`` is chosen, then that whose least
    accepted group is accepted most, then that with the lambda nearest to 0.
    """
    groups = int(of_class.max()) + 1
    weights = np.full(groups, 1.0 / groups) if weights is None else weights
    found = []
    for offset in sorted(LAMBDAS.tolist(), key=abs):
        mu = np.linspace(offset / 2, -offset / 2, groups)
        start = Rule(of_class, normalised(weights), mu)
        rules = (accepting(start, tunev, coverage), fixed_point(tunev, start, coverage, weights))
        for rule in rules:
            values = [OBJECTIVES[objective](errors_of(rule, part)) for part in (val, tunev)]
            answered = float(group_coverages(rule, tunev).min())
            found.append(Fit(rule, offset, values[0], values[1], answered, weights))
    return min(found, key=lambda fit: fit.rank)


def fit_argse(
    tunev: Sample,
    val: Sample,
    of_class: np.ndarray,
    coverage: float,
    objective: str,
    rounds: int = ROUNDS,
) -> tuple[Fit, list[Fit]]:
    """The best rule of an outer loop, and the rules of all its rounds.

    The loop moves weights beta to groups with more errors, by exponentiated gradient: beta <- beta
    exp(0.2 (e - mean e)), at least 0.05 before it is normalised, mixed with a quarter of the former
    beta. Its first round is ``fit_rule``.
    """
    groups = int(of_class.max()) + 1
    weights = np.full(groups, 1.0 / groups)
    found: list[Fit] = []
    for _ in range(rounds):
        found.append(fit_rule(tunev, val, of_class, coverage, objective, weights))
        errors = errors_of(found[-1].rule, tunev)
        new = np.maximum(weights * np.exp(RATE * (errors - errors.mean())), FLOOR)
        weights = MOMENTUM * weights + (1 - MOMENTUM) * new / new.sum()
    return min(found, key=lambda fit: fit.rank), found
