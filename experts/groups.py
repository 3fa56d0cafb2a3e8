"""Groups of classes by their number of training samples, and shares of samples in them.

Letters: C classes, K groups, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from experts.metrics import DEFAULT_THRESHOLD

FEWEST = 2  # classes of a group
NAMES = ("head", "tail")


@dataclass(frozen=True)
class Groups:
    """A partition of the classes, from the most frequent to the rarest.

    Attributes:
        of_class: (C,) the group of each class.
        counts: (C,) training samples of each class.
        rule: how it was made, in words.
    """

    of_class: np.ndarray
    counts: np.ndarray
    rule: str

    @property
    def count(self) -> int:
        return int(self.of_class.max()) + 1

    @property
    def names(self) -> list[str]:
        """head and tail, or group 1 to K."""
        if self.count == len(NAMES):
            return list(NAMES)
        return [f"group {index + 1}" for index in range(self.count)]

    def lists(self) -> dict[str, list[int]]:
        """The classes of each group by its name."""
        found = {}
        for index, name in enumerate(self.names):
            found[name] = np.flatnonzero(self.of_class == index).tolist()
        return found

    def describe(self) -> str:
        parts = []
        for index, name in enumerate(self.names):
            own = self.counts[self.of_class == index]
            parts.append(f"{name}: {len(own)} classes of {own.min()} to {own.max()}")
        return f"training samples in {'; '.join(parts)} ({self.rule})"


def make_groups(counts: Sequence[int], quantiles: int | None, head_above: int | None) -> Groups:
    """Group classes by training samples.

    Args:
        counts: (C,) training samples of each class.
        quantiles: number of groups of nearly equally many classes.
        head_above: head classes have more training samples than this, tail classes up to it. With
            neither, it is 20 if both groups have two classes then, else there are two quantiles.

    Raises:
        InputError: a group has fewer than two classes.
    """
    values = np.asarray(counts)
    if quantiles is None and head_above is None:
        halves = _by_threshold(values, DEFAULT_THRESHOLD)
        if min(np.bincount(halves, minlength=2)) >= FEWEST:
            return Groups(halves, values, f"head_above {DEFAULT_THRESHOLD}")
        quantiles = 2
    most = len(values) // FEWEST
    if most < 2:
        raise InputError(f"there must be at least {2 * FEWEST} classes, got {len(values)}")
    if quantiles is not None and not 2 <= quantiles <= most:
        raise InputError(
            f"groups must be from 2 to {most} for {len(values)} classes, got {quantiles}"
        )
    if quantiles is not None:
        rank = np.argsort(np.argsort(-values, kind="stable"), kind="stable")
        of_class, rule = rank * quantiles // len(values), f"groups {quantiles}"
    else:
        of_class, rule = _by_threshold(values, int(head_above or 0)), f"head_above {head_above}"
        quantiles = 2
    sizes = np.bincount(of_class, minlength=quantiles)
    if sizes.min() < FEWEST:
        raise InputError(
            f"every group must have at least {FEWEST} classes, got {', '.join(map(str, sizes))} "
            f"with {rule}"
        )
    return Groups(of_class, values, rule)


def _by_threshold(counts: np.ndarray, threshold: int) -> np.ndarray:
    return (counts <= threshold).astype(np.int64)
