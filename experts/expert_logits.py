"""The stored logits of several experts on one split, checked as ``verify_logits.py`` does.

Letters: E experts, N samples, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError, RunError
from common.files import sha256_file
from experts.metrics import class_groups
from experts.stored_splits import StoredSplits
from experts.verification import FAIL, WARN, FileResult, Rules, cross_checks, verify_file
from logits_io.npz import npz_path, read_npz, read_side

HUGE = 1e30  # magnitude that no logit has
UP_TO_DATE = 17  # number of the check of side files
ORIGIN = ("checkpoint_sha256", "temperature_applied", "temperature")


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpertLogits:
    """Logits of experts on the same samples.

    Attributes:
        logits: (E, N, C) float64.
        targets: (N,) int64; None if they are not known.
        indices: (N,) int64, into the source of the split.
    """

    experts: tuple[str, ...]
    logits: np.ndarray
    targets: np.ndarray | None
    indices: np.ndarray

    def known_targets(self) -> np.ndarray:
        assert self.targets is not None
        return self.targets


def read_experts(
    root: Path, experts: Sequence[str], names: Sequence[str], splits: StoredSplits
) -> dict[str, ExpertLogits]:
    """The logits of experts on some splits.

    Raises:
        RunError: a check of ``verify_logits.py`` fails; the text names file and check.
    """
    rules = Rules(splits, class_groups(splits.counts), accuracy_check="off")
    files = {name: [verify_file(root, expert, name, rules) for expert in experts] for name in names}
    for results in files.values():
        for result in results:
            _require_passed(result)
    everything = [result for results in files.values() for result in results]
    for check in cross_checks(everything):
        if check.status == FAIL:
            raise RunError(f"logits in {root} must pass verify_logits.py, got: {check.detail}")
        if check.status == WARN:
            logger.warning("%s", check.detail)
    return {name: _joined(experts, results, splits, name) for name, results in files.items()}


def require_folders(root: Path, experts: Sequence[str]) -> None:
    """Check that experts differ and have logits.

    Raises:
        InputError: they do not.
    """
    if len(set(experts)) < len(experts):
        raise InputError(f"experts must differ, got {', '.join(experts)}")
    missing = [name for name in experts if not (root / name).is_dir()]
    if missing:
        raise InputError(
            f"logits of {missing[0]} must be in {root}, got none; recompute_logits.py writes them"
        )


def _require_passed(result: FileResult) -> None:
    for check in result.checks:
        if check.status == FAIL:
            detail = f": {check.detail}" if check.detail else ""
            raise RunError(
                f"{result.path} must pass verify_logits.py, got a failure of check {check.id}, "
                f"{check.name}{detail}"
            )
        if check.status == WARN and check.id == UP_TO_DATE and result.side is not None:
            logger.warning("%s: %s", result.path, check.detail)


def _joined(
    experts: Sequence[str], results: Sequence[FileResult], splits: StoredSplits, name: str
) -> ExpertLogits:
    logits = np.stack([result.arrays["logits"].astype(np.float64) for result in results])
    targets = results[0].arrays["targets"].astype(np.int64)
    return ExpertLogits(tuple(experts), logits, targets, np.asarray(splits.indices(name)))


def read_plain(
    root: Path, experts: Sequence[str], name: str, classes: int, slug: str
) -> ExpertLogits:
    """The logits of experts on any samples, without splits to check them against.

    Args:
        slug: of the splits; compared with that of side files.

    Raises:
        InputError: a file is missing or damaged, is not the one that its side file describes, holds
            other classes or samples than the others, or values that are not finite.
    """
    require_folders(root, experts)
    arrays = [_plain_arrays(root, expert, name, classes, slug) for expert in experts]
    for key in ("logits", "indices", "targets"):
        first = arrays[0].get(key)
        for expert, found in zip(experts, arrays, strict=True):
            if not _fits(key, first, found.get(key)):
                raise InputError(
                    f"{npz_path(root, expert, name)} must have the {_word(key)} of {experts[0]}, "
                    "got others"
                )
    count = len(arrays[0]["logits"])
    indices = arrays[0].get("indices", np.arange(count))
    logits = np.stack([found["logits"].astype(np.float64) for found in arrays])
    return ExpertLogits(tuple(experts), logits, arrays[0].get("targets"), indices)


def _plain_arrays(
    root: Path, expert: str, name: str, classes: int, slug: str
) -> dict[str, np.ndarray]:
    path = npz_path(root, expert, name)
    arrays = read_npz(path)
    logits = arrays.get("logits", np.empty(0))
    if logits.ndim != 2 or logits.dtype.kind != "f" or logits.shape[1] != classes:
        raise InputError(
            f"{path} must hold logits (N, {classes}) of floats, got {logits.dtype} {logits.shape}"
        )
    if not (np.isfinite(logits) & (np.abs(logits) < HUGE)).all():
        raise InputError(f"{path} must hold finite logits of ordinary size, got others")
    for key in ("indices", "targets"):
        values = arrays.get(key, np.arange(len(logits)))
        if values.shape != logits.shape[:1] or values.dtype.kind not in "iu":
            raise InputError(
                f"{path} must hold {key} (N,) of integers, got {values.dtype} {values.shape}"
            )
    side = read_side(path)
    if side is None:
        return arrays
    expected = {"npz_sha256": sha256_file(path), "expert": expert, "split": name, "slug": slug}
    for key, value in expected.items():
        if side.get(key, value if key == "slug" else None) != value:
            raise InputError(
                f"{path} must be what its side file describes, got another {key}; "
                "recompute_logits.py writes both"
            )
    return arrays


def _fits(key: str, first: np.ndarray | None, found: np.ndarray | None) -> bool:
    if first is None or found is None:
        return first is found
    return first.shape == found.shape if key == "logits" else np.array_equal(first, found)


def _word(key: str) -> str:
    return "number of samples" if key == "logits" else key


def origins(root: Path, experts: Sequence[str], name: str) -> list[dict[str, Any]]:
    """Checkpoint and temperature that each expert's logits come from; None where not known."""
    found = [read_side(npz_path(root, expert, name)) or {} for expert in experts]
    return [{key: side.get(key) for key in ORIGIN} for side in found]
