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
        rule: how it was made, in words.
    """

    of_class: np.ndarray
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

    def describe(self) -> str:
        sizes = np.bincount(self.of_class)
        parts = [f"{name} {size} classes" for name, size in zip(self.names, sizes, strict=True)]
        return f"groups: {', '.join(parts)} ({self.rule})"


def make_groups(counts: Sequence[int], quantiles: int | None, threshold: int | None) -> Groups:
    """Group classes by training samples.

    Args:
        counts: (C,) training samples of each class.
        quantiles: number of groups of equally many classes.
        threshold: head classes have more training samples than this, tail classes up to it. With
            neither, it is 20 if both groups have two classes then, else there are two quantiles.

    Raises:
        InputError: a group has fewer than two classes.
    """
    values = np.asarray(counts)
    if quantiles is None and threshold is None:
        halves = _by_threshold(values, DEFAULT_THRESHOLD)
        if min(np.bincount(halves, minlength=2)) >= FEWEST:
            return Groups(halves, f"above or up to {DEFAULT_THRESHOLD} training samples")
        quantiles = 2
    if quantiles is not None:
        rank = np.argsort(np.argsort(-values, kind="stable"), kind="stable")
        found = Groups(rank * quantiles // len(values), f"{quantiles} of equally many classes")
        given = f"groups {quantiles}"
    else:
        found = Groups(_by_threshold(values, int(threshold or 0)), f"threshold {threshold}")
        quantiles, given = 2, f"threshold {threshold}"
    sizes = np.bincount(found.of_class, minlength=quantiles)
    if quantiles < 2 or sizes.min() < FEWEST:
        raise InputError(
            f"every group must have at least {FEWEST} classes, got {', '.join(map(str, sizes))} "
            f"with {given}"
        )
    return found


def _by_threshold(counts: np.ndarray, threshold: int) -> np.ndarray:
    return (counts <= threshold).astype(np.int64)
