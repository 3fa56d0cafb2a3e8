"""Long-tailed class counts and the splits drawn from them.

Letters: C classes, N_c training samples of class c. The legacy ``RandomState`` is used, so that a
seed gives the same splits as published split files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.errors import InputError

MAX_PER_CLASS = 10**9
POOL_PARTS = 10  # a tenth of the pool for val and for tunev each, the rest for test


def exponential_counts(num_classes: int, ratio: float, max_per_class: int) -> list[int]:
    """N_c of the exponential profile (Cui et al. 2019, section 6).

    Class 0 has ``max_per_class`` samples, the last class that number over ``ratio``, at least 1.

    Raises:
        InputError: fewer than two classes, a ratio below 1, or ``max_per_class`` out of range.
    """
    if num_classes < 2:
        raise InputError(f"num_classes must be at least 2, got {num_classes}")
    if not (ratio >= 1 and np.isfinite(ratio)):
        raise InputError(f"imb-factor must be at least 1, got {ratio:g}")
    if not 1 <= max_per_class <= MAX_PER_CLASS:
        raise InputError(f"max-per-class must be from 1 to {MAX_PER_CLASS}, got {max_per_class}")
    return [
        max(1, int(max_per_class * ratio ** (-i / (num_classes - 1.0)))) for i in range(num_classes)
    ]


def draw_train(labels: np.ndarray, counts: Sequence[int], seed: int) -> list[int]:
    """Draw ``counts`` indices of each class, or all if it has fewer, class 0 first.

    Args:
        labels: (N,) classes of the train source.

    Raises:
        InputError: a class has no sample.
    """
    random = np.random.RandomState(seed)
    chosen: list[int] = []
    for label, count in enumerate(counts):
        members = np.where(labels == label)[0]
        if len(members) == 0:
            raise InputError(f"train source must hold every class, got no sample of class {label}")
        chosen += random.choice(members, min(count, len(members)), replace=False).tolist()
    return chosen


def split_pool(labels: np.ndarray, num_classes: int, seed: int) -> tuple[dict[str, list[int]], int]:
    """Split the samples of every class 8 : 1 : 1 into ``test``, ``val`` and ``tunev``.

    Args:
        labels: (N,) classes of the test source.

    Returns:
        indices of each split, and the number of samples left out because their class is larger than
        the smallest one.

    Raises:
        InputError: a class has fewer than 10 samples.
    """
    random = np.random.RandomState(seed)
    sizes = np.bincount(labels, minlength=num_classes)
    size = int(sizes.min())
    if size < POOL_PARTS:
        raise InputError(
            f"test source must hold at least {POOL_PARTS} samples of every class, got {size} of "
            f"class {int(sizes.argmin())}"
        )
    tenth = size // POOL_PARTS
    borders = np.cumsum([size - 2 * tenth, tenth, tenth])
    splits: dict[str, list[int]] = {"test": [], "val": [], "tunev": []}
    for label in range(num_classes):
        members = np.where(labels == label)[0]
        random.shuffle(members)
        start = 0
        for name, end in zip(splits, borders, strict=True):
            splits[name] += members[start:end].tolist()
            start = int(end)
    return splits, int(sizes.sum()) - size * num_classes
