"""Metrics of an expert on a split of a long-tailed data set.

Letters: n samples, C classes, N_c training samples of class c, w_c their fraction of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import require_known
from evaluation.metrics import log_softmax, topk_accuracy
from experts.calibration import calibration_error

GROUPS = ("head", "medium", "tail")
GROUP_RULES = ("thirds", "threshold", "shots")
DEFAULT_THRESHOLD = 20
MANY_SHOTS, FEW_SHOTS = 100, 20
TOP5_CLASSES = 10  # fewer classes have no Top-5


def class_groups(
    counts: Sequence[int], rule: str = "thirds", threshold: int = DEFAULT_THRESHOLD
) -> dict[str, list[int]]:
    """Head, medium and tail classes, ordered by falling number of training samples, then by class.

    Rules: ``thirds`` of the classes; ``threshold``: more than ``threshold`` samples are head, the
    rest tail; ``shots``: more than 100, 20 to 100, fewer than 20 samples (Liu et al. 2019,
    arXiv:1904.05160, section 4). With fewer than three classes the first is head, the rest tail.

    Raises:
        InputError: unknown rule.
    """
    require_known("group-by", rule, GROUP_RULES)
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    size = len(order)
    if size < 3:
        first, second = 1, 1
    elif rule == "thirds":
        first, second = size // 3, 2 * size // 3
    elif rule == "threshold":
        first = second = sum(count > threshold for count in counts)
    else:
        first = sum(count > MANY_SHOTS for count in counts)
        second = sum(count >= FEW_SHOTS for count in counts)
    return {"head": order[:first], "medium": order[first:second], "tail": order[second:]}


@dataclass(frozen=True)
class ExpertFigures:
    """Metrics of an expert: accuracies from 0 to 1, negative log-likelihoods in nats.

    A metric of a group is None if the split holds none of its classes.

    Attributes:
        reweighted: accuracy if classes were as frequent as in training.
        balanced: mean of the classes' accuracies.
        per_class: accuracy of each class; None for a class without samples.
        absent_weight: sum of the weights of classes without samples.
    """

    accuracy: float
    reweighted: float | None
    balanced: float
    head: float | None
    medium: float | None
    tail: float | None
    top5: float | None
    nll: float
    reweighted_nll: float | None
    ece: float
    per_class: list[float | None]
    absent_weight: float


def expert_figures(
    logits: np.ndarray,
    targets: np.ndarray,
    weights: Sequence[float],
    groups: dict[str, list[int]],
) -> ExpertFigures:
    """The metrics of (n, C) finite logits; classes without a sample are left out of the means.

    Args:
        targets: (n,) classes from 0 to C - 1.
        weights: (C,) with sum 1.
        groups: classes of head, medium and tail, as ``class_groups`` gives them.
    """
    classes = logits.shape[1]
    w = np.asarray(weights, dtype=np.float64)
    number = np.bincount(targets, minlength=classes)
    right = logits.argmax(axis=1) == targets
    present = number > 0
    hits = np.bincount(targets, right, classes)
    share = np.divide(hits, number, out=np.zeros(classes), where=present)
    losses = -np.take_along_axis(log_softmax(logits), targets[:, None], axis=1)[:, 0]
    class_loss = np.bincount(targets, losses, classes)
    mean_loss = np.divide(class_loss, number, out=np.zeros(classes), where=present)
    weight = float(w[present].sum())

    def mean_of(members: list[int]) -> float | None:
        found = [share[c] for c in members if present[c]]
        return float(np.mean(found)) if found else None

    def weighted(values: np.ndarray) -> float | None:
        return float((w * values)[present].sum() / weight) if weight > 0 else None

    return ExpertFigures(
        accuracy=float(right.mean()),
        reweighted=weighted(share),
        balanced=float(share[present].mean()),
        **{name: mean_of(groups[name]) for name in GROUPS},
        top5=topk_accuracy(logits, targets, 5) if classes >= TOP5_CLASSES else None,
        nll=float(losses.mean()),
        reweighted_nll=weighted(mean_loss),
        ece=calibration_error(logits, targets),
        per_class=[float(a) if p else None for a, p in zip(share, present, strict=True)],
        absent_weight=float(w[~present].sum()),
    )
