"""Drawing the splits of a data set, and writing and comparing the files of a splits folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import RunError
from common.files import write_json
from common.provenance import utc_now
from common.reading import regular_text
from common.sealed import unsealed, write_record
from experts.class_counts import draw_train, exponential_counts, split_pool

FORMAT_VERSION = 1
SPLITS = ("train", "test", "val", "tunev")
DEFAULT_RATIOS = {"digits": 10.0}  # other data sets: 100
# Keys of split_info.json that may differ between equal splits.
CHANGING_KEYS = ("created_utc", "tool", "dataset_choice", "contents_sha256")
INFO_FILE = "split_info.json"
COUNTS_FILE, WEIGHTS_FILE = "train_class_counts.json", "class_weights.json"


@dataclass(frozen=True)
class SplitRequest:
    """The requested splits; None stands for the default of the data set.

    Attributes:
        imb_factor: training samples of class 0 over those of the last class.
        max_per_class: training samples of class 0.
        choice: reason for choosing this data set, for split_info.json.
        order: ``order_digest`` of the classes.
    """

    dataset: str
    seed: int = 42
    imb_factor: float | None = None
    max_per_class: int | None = None
    choice: str = "as given"
    order: str | None = None

    @property
    def ratio(self) -> float:
        default = DEFAULT_RATIOS.get(self.dataset, 100.0)
        return default if self.imb_factor is None else self.imb_factor

    @property
    def slug(self) -> str:
        return f"{self.dataset}_lt_if{self.ratio:g}"


@dataclass(frozen=True)
class Splits:
    """Drawn splits.

    Attributes:
        indices: split -> indices into the train source (train) or the test source (the others).
        counts: training samples of each class.
        info: content of split_info.json.
        dropped: number of samples of the test source that are in no split.
    """

    request: SplitRequest
    indices: dict[str, list[int]]
    counts: list[int]
    info: dict[str, Any]
    dropped: int

    def require_sound(self, test: np.ndarray) -> None:
        """Check that test, val and tunev are disjoint and that each is balanced.

        Args:
            test: (N,) labels of the test source.

        Raises:
            RunError: they are not.
        """
        pool = [self.indices[name] for name in SPLITS[1:]]
        if len(set().union(*pool)) != sum(map(len, pool)):
            raise RunError("test, val and tunev must be disjoint, got a sample twice")
        for name in SPLITS[1:]:
            found = np.bincount(test[self.indices[name]], minlength=len(self.counts))
            if found.min() != found.max():
                raise RunError(
                    f"{name} must be balanced, got {found.min()} to {found.max()} a class"
                )

    def short_of_profile(self) -> bool:
        """Whether a class has fewer training samples than the exponential profile requires."""
        info = self.info
        asked = exponential_counts(len(self.counts), info["imb_factor"], info["max_per_class"])
        return any(found < count for found, count in zip(self.counts, asked, strict=True))

    def files(self) -> dict[str, Any]:
        """Name of each file -> its content."""
        total = sum(self.counts)
        found: dict[str, Any] = {
            f"{name}_indices.json": indices for name, indices in self.indices.items()
        }
        numbers = {
            COUNTS_FILE: self.counts,
            WEIGHTS_FILE: [count / total for count in self.counts],
        }
        digests = {name: content_digest(values) for name, values in numbers.items()}
        return {**found, **numbers, INFO_FILE: {**self.info, "contents_sha256": digests}}


def list_digest(values: Iterable[int]) -> str:
    """SHA-256 of a list of integers, as stored in split_info.json and the side files of logits."""
    return content_digest([int(value) for value in values])


def content_digest(content: Any) -> str:
    """SHA-256 of the JSON text of a value."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def order_digest(classes: Sequence[str]) -> str | None:
    """SHA-256 of the names of the classes in their order; None where it is that of their text."""
    if list(classes) == sorted(classes):
        return None
    return hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()


def draw_splits(request: SplitRequest, train: np.ndarray, test: np.ndarray) -> Splits:
    """Draw all splits.

    Args:
        train, test: (N,) labels of the two sources.

    Raises:
        InputError: as ``exponential_counts``, ``draw_train`` and ``split_pool``.
    """
    classes = int(max(train.max(), test.max())) + 1
    largest = int(np.bincount(train, minlength=classes).min())
    limit = largest if request.max_per_class is None else request.max_per_class
    counts = exponential_counts(classes, request.ratio, limit)
    pool, dropped = split_pool(test, classes, request.seed)
    indices = {"train": draw_train(train, counts, request.seed), **pool}
    labels = {"train": train, **dict.fromkeys(pool, test)}
    drawn = np.bincount(train[indices["train"]], minlength=classes).tolist()
    info = {
        "format_version": FORMAT_VERSION,
        "dataset": request.dataset,
        "dataset_choice": request.choice,
        "slug": request.slug,
        "num_classes": classes,
        "imb_factor": request.ratio,
        "max_per_class": limit,
        "seed": request.seed,
        "rng": "numpy.random.RandomState",
        "sources": {
            "train": {"name": f"{request.dataset} train", "size": len(train)},
            "test": {"name": f"{request.dataset} test", "size": len(test)},
        },
        "splits": {
            name: {
                "source": "train" if name == "train" else "test",
                "size": len(values),
                "indices_sha256": list_digest(values),
                "targets_sha256": list_digest(labels[name][values]),
            }
            for name, values in indices.items()
        },
        "created_utc": utc_now(),
        "tool": "create_splits_fixed.py",
    }
    if request.order is not None:
        info["classes_sha256"] = request.order
    return Splits(request, indices, drawn, info, dropped)


def different_files(splits: Splits, folder: Path) -> list[str]:
    """Names of the existing files in ``folder`` that differ from ``splits``."""
    there = [name for name in splits.files() if os.path.lexists(folder / name)]
    return [name for name in there if not _is_same(folder / name, splits.files()[name])]


def missing_files(splits: Splits, folder: Path) -> list[str]:
    """Names of the files of ``splits`` that are not in ``folder``."""
    return [name for name in splits.files() if not os.path.lexists(folder / name)]


def _is_same(path: Path, content: Any) -> bool:
    """Whether a file holds a content, besides what may differ, and its own digest holds."""
    try:
        stored = json.loads(regular_text(path))
        if isinstance(stored, dict):
            stored = unsealed(stored, path)
    except (OSError, ValueError, RecursionError):  # an InputError is a ValueError
        return False
    return bool(_lasting(stored) == _lasting(content))


def _lasting(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {key: value for key, value in content.items() if key not in CHANGING_KEYS}


def write_splits(splits: Splits, folder: Path, names: Iterable[str]) -> list[Path]:
    """Write some files of splits; a file gets its name only when it is complete.

    Args:
        names: names of the files; split_info.json is written last.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, chosen = splits.files(), set(names)
    paths = [folder / name for name in files if name in chosen]
    for path in paths:
        write = write_record if path.name == INFO_FILE else write_json
        write(path, files[path.name])
    return paths
