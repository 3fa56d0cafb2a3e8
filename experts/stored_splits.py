"""Reads a splits folder, and checks its index lists."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.reading import regular_text
from common.sealed import unsealed
from experts.class_counts import MAX_PER_CLASS
from experts.splits import (
    COUNTS_FILE,
    INFO_FILE,
    WEIGHTS_FILE,
    SplitRequest,
    content_digest,
    list_digest,
    order_digest,
)

SUFFIX = "_splits_fixed"
PUBLISHED_SIZES = {"test": 8000, "val": 1000, "tunev": 1000}  # for CIFAR without split_info.json
WEIGHT_TOLERANCE = 1e-6
MAX_LISTED = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredSplits:
    """A splits folder.

    Attributes:
        info: content of split_info.json; None if the folder has none.
        counts: training samples of each class.
        weights: each class's fraction of the training samples.
    """

    folder: Path
    dataset: str
    slug: str
    info: dict[str, Any] | None
    counts: list[int]
    weights: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.weights)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}_indices.json"

    def indices(self, name: str) -> list[int]:
        """The indices of a split.

        Raises:
            InputError: the file is missing, or holds no list of integers.
        """
        path = self.path(name)
        values = _read_json(path)
        if not isinstance(values, list):
            raise InputError(f"{path}: must be a list of integers, got a {type(values).__name__}")
        for position, value in enumerate(values):
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(
                    f"{path}: must hold integers, got {value!r} at position {position}"
                )
        if not values:
            raise InputError(f"{path}: must hold at least one index, got none")
        return values

    def recorded(self, name: str, key: str) -> Any:
        """The entry ``key`` of a split in split_info.json; None if there is none."""
        splits = self.info.get("splits") if self.info else None
        known = splits.get(name) if isinstance(splits, dict) else None
        return known.get(key) if isinstance(known, dict) else None

    def require_order(self, classes: Sequence[str]) -> None:
        """Check that the classes have the order that they had when the splits were made.

        Raises:
            InputError: they do not.
        """
        recorded = self.info.get("classes_sha256") if self.info else None
        if order_digest(classes) != recorded:
            order = "of their text" if recorded is None else "recorded in split_info.json"
            raise InputError(
                f"class_order must be that of the splits in {self.folder}, the one {order}, got "
                f"{', '.join(classes[:MAX_LISTED])} ..."
            )

    def expected_size(self, name: str) -> int | None:
        """Number of samples that a split must have; None if unknown."""
        recorded = self.recorded(name, "size")
        if recorded is not None or self.info is not None:
            return recorded
        return PUBLISHED_SIZES.get(name) if self.dataset.startswith("cifar") else None


def splits_folder(dataset: str, folder: Path | None) -> Path:
    """``folder``, or by default that of the data set with its default imbalance."""
    return folder or Path("data") / f"{SplitRequest(dataset).slug}{SUFFIX}"


def read_splits(folder: Path, dataset: str) -> StoredSplits:
    """Read class counts and weights of a splits folder; the index lists are read later, on demand.

    Args:
        dataset: data set named in the error text about a missing folder.

    Raises:
        InputError: the folder or a file is missing, or a file is not what it must be.
    """
    if not folder.is_dir():
        raise InputError(
            f"splits must be in {folder}, got no such folder; make them: {making(dataset)}"
        )
    info = _read_info(folder / INFO_FILE)
    slug = str(info["slug"]) if info else folder.name.removesuffix(SUFFIX)
    known = str(info["dataset"]) if info else slug.partition("_lt_")[0]
    weights = read_weights(folder / WEIGHTS_FILE)
    counts = _numbers(folder / COUNTS_FILE, int)
    if len(counts) != len(weights) or not 1 <= min(counts) <= max(counts) <= MAX_PER_CLASS:
        raise InputError(
            f"{folder / COUNTS_FILE}: must hold {len(weights)} positive counts, got "
            f"{len(counts)} from {min(counts):.3g} to {max(counts):.3g}"
        )
    total = sum(counts)
    for label, (weight, count) in enumerate(zip(weights, counts, strict=True)):
        if abs(weight - count / total) > WEIGHT_TOLERANCE:
            raise InputError(
                f"{folder / WEIGHTS_FILE}: weights must be the shares of "
                f"{COUNTS_FILE}, got {weight:g} of class {label} ({count / total:g})"
            )
    _require_recorded(folder, info, {WEIGHTS_FILE: weights, COUNTS_FILE: counts})
    return StoredSplits(folder, known, slug, info, counts, weights)


def _read_info(path: Path) -> dict[str, Any] | None:
    """The content of split_info.json; None if there is none, as in published folders.

    Raises:
        InputError: it does not name its data set, or its own digest does not hold.
    """
    if not path.exists():
        return None
    info = _read_json(path)
    if not _names_itself(info):
        raise InputError(f"{path}: must name dataset and slug, got others")
    return unsealed(info, path)


def _require_recorded(
    folder: Path, info: Mapping[str, Any] | None, found: Mapping[str, list]
) -> None:
    """Check contents of files against their digests in split_info.json, where it has them.

    Raises:
        InputError: one differs.
    """
    digests = (info or {}).get("contents_sha256")
    for name, values in found.items():
        recorded = digests.get(name) if isinstance(digests, dict) else None
        if recorded is not None and recorded != content_digest(values):
            raise InputError(f"{folder / name}: must be what {INFO_FILE} describes, got others")


def _names_itself(info: Any) -> bool:
    """Whether dataset and slug are valid as parts of folder names."""
    if not isinstance(info, dict):
        return False
    names = [info.get("dataset"), info.get("slug")]
    plain = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
    return all(isinstance(name, str) and plain.fullmatch(name) for name in names)


def making(dataset: str) -> str:
    """The command that makes the splits of a data set."""
    return f"python3 create_splits_fixed.py --dataset {dataset}"


def read_weights(path: Path) -> list[float]:
    """The class weights.

    Raises:
        InputError: the file is missing, holds no numbers, or their sum is not 1.
    """
    weights = _numbers(path, (int, float))
    if not (abs(sum(weights) - 1) <= WEIGHT_TOLERANCE and min(weights) >= 0):
        raise InputError(f"{path}: weights must be positive with sum 1, got sum {sum(weights):g}")
    return weights


def _numbers(path: Path, kind: type | tuple[type, ...]) -> list[Any]:
    values = _read_json(path)
    good = isinstance(values, list) and values
    if not good or any(not isinstance(v, kind) or isinstance(v, bool) for v in values):
        raise InputError(f"{path}: must be a list of numbers, got {str(values)[:40]}")
    try:
        return [
            value if isinstance(value, int) and kind is int else float(value) for value in values
        ]
    except OverflowError:
        raise InputError(f"{path}: numbers must be of ordinary size, got a huge one") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(regular_text(path))
    except FileNotFoundError:
        raise InputError(
            f"{path} must exist, got no such file; python3 create_splits_fixed.py makes it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: must be a JSON file, got: {error}") from None


def check_indices(
    splits: StoredSplits, names: Sequence[str], sizes: Mapping[str, int], allow_mismatch: bool
) -> dict[str, list[int]]:
    """The index lists of some splits, checked against their sources and each other.

    Args:
        sizes: samples of the sources ``train`` and ``test``.
        allow_mismatch: only warn if a split has another size than recorded.

    Raises:
        InputError: an index is outside its source or repeated, two splits share a sample, or a size
            or a list is not the recorded one.
    """
    owners: dict[int, str] = {}
    found = {}
    for name in names:
        indices = found[name] = splits.indices(name)
        path, size = splits.path(name), sizes["train" if name == "train" else "test"]
        for position, index in enumerate(indices):
            if not 0 <= index < size:
                raise InputError(
                    f"{path}: indices must be from 0 to {size - 1}, got {index} at position "
                    f"{position}"
                )
        if len(set(indices)) < len(indices):
            position = next(i for i, v in enumerate(indices) if v in indices[:i])
            raise InputError(
                f"{path}: indices must differ, got {indices[position]} again at position {position}"
            )
        if name != "train":
            _require_disjoint(path, indices, name, owners)
        expected = splits.expected_size(name)
        if expected is not None and len(indices) != expected:
            text = f"{path}: {name} has {len(indices)} samples, expected {expected}"
            if not allow_mismatch:
                raise InputError(f"{text} (--allow-size-mismatch continues)")
            logger.warning(text)
            continue
        recorded = splits.recorded(name, "indices_sha256")
        if recorded is not None and recorded != list_digest(indices):
            raise InputError(f"{path}: must be what split_info.json describes, got other indices")
    return found


def _require_disjoint(
    path: Path, indices: Sequence[int], name: str, owners: dict[int, str]
) -> None:
    for position, index in enumerate(indices):
        if index in owners:
            raise InputError(
                f"{path}: splits must be disjoint, got index {index} at position {position}, which "
                f"is in {owners[index]} too"
            )
    owners.update(dict.fromkeys(indices, name))
