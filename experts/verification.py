"""The checks of experts' logits: of every file, and across files.

A check that cannot be made because an earlier one failed is skipped, never passed. Nothing here
needs torch.

Letters: n samples of a split, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import sha256_file
from experts.metrics import ExpertFigures, expert_figures
from experts.splits import list_digest
from experts.stored_splits import StoredSplits
from logits_io.npz import npz_path, read_npz, read_side, side_path

PASS, FAIL, WARN, SKIPPED = "pass", "fail", "warn", "skipped"
NAMES = {
    1: "File present",
    2: "Arrays present",
    3: "Data types",
    4: "Shape consistency",
    5: "Num classes",
    6: "Expected samples",
    7: "No NaN or Inf values",
    8: "Targets valid",
    9: "Predictions valid",
    10: "Predictions match argmax",
    11: "Targets match split",
    12: "Indices match split",
    13: "Accuracy reasonable",
    14: "Accuracy above chance",
    15: "Not degenerate",
    16: "Reweighted metrics computed correctly",
    17: "Up to date",
    18: "Same targets across experts",
    19: "Distinct experts",
    20: "Same provenance across splits",
}
FLOATS = (np.float16, np.float32, np.float64)
ARRAYS = ("logits", "targets", "predictions")
SAME = 1e-6  # logits that differ by no more are those of one expert
BALANCE_TOLERANCE = 1e-12
METRICS = ("accuracy", "reweighted", "balanced")


@dataclass(frozen=True)
class Check:
    """One check: its number and name, its status, and what was found."""

    id: int
    name: str
    status: str
    detail: str = ""


@dataclass(frozen=True)
class Rules:
    """What the files are checked against.

    Attributes:
        groups: head, medium and tail classes.
        min_accuracy: accuracy that check 13 demands, 0 to 1.
        accuracy_metric: metric that check 13 compares with it, one of ``METRICS``.
        accuracy_check: whether check 13 warns, fails, or is off.
        labels: (N,) labels of the sources ``train`` and ``test``; None: not compared.
    """

    splits: StoredSplits
    groups: dict[str, list[int]]
    min_accuracy: float = 0.60
    accuracy_metric: str = "accuracy"
    accuracy_check: str = WARN
    labels: Mapping[str, np.ndarray] | None = None


@dataclass
class FileResult:
    """What the checks of one file found; it has metrics only if its logits are valid."""

    expert: str
    split: str
    path: Path
    checks: list[Check] = field(default_factory=list)
    figures: ExpertFigures | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    side: dict[str, Any] | None = None

    @property
    def failed(self) -> bool:
        return any(check.status == FAIL for check in self.checks)

    def as_record(self) -> dict[str, Any]:
        """Plain values for the JSON report."""
        return {
            "expert": self.expert,
            "split": self.split,
            "path": str(self.path),
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "metrics": None if self.figures is None else dataclasses.asdict(self.figures),
        }


def verify_file(root: Path, expert: str, split: str, rules: Rules) -> FileResult:
    """Run checks 1 to 17 on one file."""
    return _File(root, expert, split, rules).result


class _File:
    """The checks of one file; each returns a status and a detail."""

    def __init__(self, root: Path, expert: str, split: str, rules: Rules):
        self.rules, self.split = rules, split
        self.result = FileResult(expert, split, npz_path(root, expert, split))
        self.passed: set[int] = set()
        for number, (check, needed) in CHECKS.items():
            self._run(number, check, needed)

    def _run(
        self, number: int, check: Callable[[_File], tuple[str, str]], needed: set[int]
    ) -> None:
        name = NAMES[number]
        if number == 13:
            name = f"{name} (>{100 * self.rules.min_accuracy:g}%)"
        if needed <= self.passed:
            try:
                status, detail = check(self)
            except (InputError, OSError) as error:
                status, detail = FAIL, str(error)
        else:
            status, detail = SKIPPED, ""
        if status in (PASS, WARN):
            self.passed.add(number)
        self.result.checks.append(Check(number, name, status, detail))

    @property
    def logits(self) -> np.ndarray:
        return self.result.arrays["logits"]

    @property
    def targets(self) -> np.ndarray:
        return self.result.arrays["targets"]

    @property
    def predictions(self) -> np.ndarray:
        return self.result.arrays["predictions"]

    @property
    def num_classes(self) -> int:
        return self.rules.splits.num_classes

    def file_present(self) -> tuple[str, str]:
        samples = 0
        with suppress(InputError):  # "samples" reports it
            samples = len(self.rules.splits.indices(self.split))
        self.result.arrays = read_npz(self.result.path, samples, self.num_classes)
        return PASS, ""

    def arrays_present(self) -> tuple[str, str]:
        missing = [name for name in ARRAYS if name not in self.result.arrays]
        return _judge(not missing, f"missing: {', '.join(missing)}")

    def data_types(self) -> tuple[str, str]:
        kinds = [self.result.arrays[name].dtype for name in ARRAYS]
        good = kinds[0] in FLOATS and all(kind.kind in "iu" for kind in kinds[1:])
        return _judge(good, f"must be float, integer, integer, got {', '.join(map(str, kinds))}")

    def shapes(self) -> tuple[str, str]:
        shapes = [self.result.arrays[name].shape for name in ARRAYS]
        good = [len(shape) for shape in shapes] == [2, 1, 1] and len({s[0] for s in shapes}) == 1
        good = good and shapes[0][0] >= 1
        return _judge(good, f"must be (n, C), (n,), (n,), got {shapes}")

    def classes(self) -> tuple[str, str]:
        found = self.logits.shape[1]
        return _judge(found == self.num_classes, f"must be {self.num_classes}, got {found}")

    def samples(self) -> tuple[str, str]:
        expected, found = len(self.rules.splits.indices(self.split)), len(self.logits)
        return _judge(found == expected, f"must be {expected}, got {found}")

    def finite(self) -> tuple[str, str]:
        bad = ~np.isfinite(self.logits).all(axis=1)
        return _judge(not bad.any(), f"{bad.sum()} samples, the first is {bad.argmax()}")

    def targets_valid(self) -> tuple[str, str]:
        return self._within(self.targets)

    def predictions_valid(self) -> tuple[str, str]:
        return self._within(self.predictions)

    def _within(self, values: np.ndarray) -> tuple[str, str]:
        bad = (values < 0) | (values >= self.num_classes)
        where = int(bad.argmax())
        return _judge(
            not bad.any(),
            f"must be from 0 to {self.num_classes - 1}, got {values[where]} in {where}",
        )

    def predictions_match(self) -> tuple[str, str]:
        chosen = np.take_along_axis(self.logits, self.predictions[:, None].astype(np.int64), axis=1)
        bad = chosen[:, 0] != self.logits.max(axis=1)
        return _judge(not bad.any(), f"{bad.sum()} differ, the first is {bad.argmax()}")

    def targets_match(self) -> tuple[str, str]:
        splits = self.rules.splits
        recorded = splits.recorded(self.split, "targets_sha256")
        if self.rules.labels is not None:
            source = self.rules.labels["train" if self.split == "train" else "test"]
            indices = splits.indices(self.split)
            if max(indices) >= len(source):
                return FAIL, f"index {max(indices)} is outside the {len(source)} images of the data"
            good = np.array_equal(source[indices], self.targets)
            return _judge(good, "not the labels of the data set")
        if recorded is None:
            return WARN, "not checkable: no split_info.json and no data set"
        return _judge(
            list_digest(self.targets.tolist()) == recorded, "not those of split_info.json"
        )

    def indices_match(self) -> tuple[str, str]:
        splits, current = self.rules.splits, self.rules.splits.indices(self.split)
        recorded = splits.recorded(self.split, "indices_sha256")
        if recorded is not None and recorded != list_digest(current):
            return FAIL, f"{splits.path(self.split)} is not what split_info.json describes"
        stored = self.result.arrays.get("indices")
        if stored is None:
            return WARN, "the file has no indices"
        good = stored.dtype.kind in "iu" and np.array_equal(stored, current)
        return _judge(good, f"not those of {self.rules.splits.path(self.split)}")

    def accuracy(self) -> tuple[str, str]:
        self.result.figures = expert_figures(
            self.logits, self.targets, self.rules.splits.weights, self.rules.groups
        )
        value = getattr(self.result.figures, self.rules.accuracy_metric)
        if self.rules.accuracy_check == "off":
            return PASS, "off"
        if value is not None and value > self.rules.min_accuracy:
            return PASS, f"{self.rules.accuracy_metric} {100 * value:.2f}%"
        shown = "undefined" if value is None else f"{100 * value:.2f}%"
        return self.rules.accuracy_check, f"{self.rules.accuracy_metric} {shown}"

    def above_chance(self) -> tuple[str, str]:
        chance, n = 1 / self.num_classes, len(self.targets)
        bound = chance + 3 * np.sqrt(chance * (1 - chance) / n)
        value = float((self.logits.argmax(axis=1) == self.targets).mean())
        return _judge(value > bound, f"{100 * value:.2f}% must be above {100 * bound:.2f}%")

    def not_degenerate(self) -> tuple[str, str]:
        predicted = len(np.unique(self.logits.argmax(axis=1)))
        flat = np.flatnonzero(np.ptp(self.logits, axis=0) == 0)
        if predicted < 2:
            return FAIL, "one class is predicted for all samples"
        return _judge(len(flat) == 0, f"the logit of class {flat[:1]} is the same for all samples")

    def metrics_sound(self) -> tuple[str, str]:
        figures = self.result.figures
        assert figures is not None
        shares = [figures.accuracy, figures.balanced, figures.ece, figures.reweighted]
        shares += [figures.head, figures.medium, figures.tail, figures.top5, *figures.per_class]
        losses = [figures.nll, figures.reweighted_nll]
        good = all(share is None or 0 <= share <= 1 for share in shares)
        good &= all(loss is None or (np.isfinite(loss) and loss >= 0) for loss in losses)
        counts = np.bincount(self.targets, minlength=self.num_classes)
        gap = abs(figures.balanced - figures.accuracy)
        if counts.min() == counts.max() and gap > BALANCE_TOLERANCE:
            return FAIL, f"balanced and overall accuracy differ by {gap:g} on a balanced split"
        if good and figures.absent_weight > 0:
            return WARN, f"classes of weight {figures.absent_weight:.4f} have no sample"
        return _judge(good, "a metric is out of its range")

    def up_to_date(self) -> tuple[str, str]:
        side = self.result.side = read_side(self.result.path)
        if side is None:
            return WARN, "no side file"
        if side.get("npz_sha256") != sha256_file(self.result.path):
            return (
                FAIL,
                f"the file is not the one that {side_path(self.result.path).name} describes",
            )
        if side.get("indices_sha256") != list_digest(self.rules.splits.indices(self.split)):
            path = self.rules.splits.path(self.split)
            return FAIL, f"computed for other indices than {path} holds"
        rows = self.result.arrays.get("logits", np.empty(0)).shape[:1]
        known: dict[str, Any] = {"split": self.split, "slug": self.rules.splits.slug}
        known |= {"num_classes": self.num_classes, "n": rows[0] if rows else 0}
        for key, value in known.items():
            if key in side and side[key] != value:
                return FAIL, f"the side file's {key} must be {value}, got {side[key]!r}"
        if side.get("expert", self.result.expert) != self.result.expert:
            return WARN, f"computed for {side['expert']!r}"
        return PASS, ""


def _judge(good: bool, otherwise: str) -> tuple[str, str]:
    return (PASS, "") if good else (FAIL, otherwise)


# Number -> the check, and the numbers of those that must have passed before it.
CHECKS: dict[int, tuple[Callable[[_File], tuple[str, str]], set[int]]] = {
    1: (_File.file_present, set()),
    2: (_File.arrays_present, {1}),
    3: (_File.data_types, {2}),
    4: (_File.shapes, {2}),
    5: (_File.classes, {4}),
    6: (_File.samples, {4}),
    7: (_File.finite, {3, 4}),
    8: (_File.targets_valid, {3, 4}),
    9: (_File.predictions_valid, {3, 4}),
    10: (_File.predictions_match, {5, 7, 9}),
    11: (_File.targets_match, {3, 4}),
    12: (_File.indices_match, {1}),
    13: (_File.accuracy, {5, 7, 8}),
    14: (_File.above_chance, {5, 7, 8}),
    15: (_File.not_degenerate, {5, 7}),
    16: (_File.metrics_sound, {5, 7, 8}),
    17: (_File.up_to_date, {1}),
}


def cross_checks(results: Sequence[FileResult]) -> list[Check]:
    """Run checks 18 to 20 across all files."""
    by_split: dict[str, list[FileResult]] = {}
    by_expert: dict[str, list[FileResult]] = {}
    for result in results:
        by_split.setdefault(result.split, []).append(result)
        by_expert.setdefault(result.expert, []).append(result)
    return [
        *(_same_targets(split, files) for split, files in by_split.items()),
        *(_distinct(split, files) for split, files in by_split.items()),
        *(_same_provenance(expert, files) for expert, files in by_expert.items()),
    ]


def _same_targets(split: str, files: Sequence[FileResult]) -> Check:
    usable = [file for file in files if _passed(file, 4)]
    different = [
        file.expert
        for file in usable[1:]
        if not np.array_equal(file.arrays["targets"], usable[0].arrays["targets"])
    ]
    status, detail = _judge(
        not different,
        f"{split}: {', '.join(different)} differ from {usable[0].expert if usable else ''}",
    )
    return Check(18, NAMES[18], status if len(usable) > 1 else SKIPPED, detail or split)


def _distinct(split: str, files: Sequence[FileResult]) -> Check:
    usable = [file for file in files if _passed(file, 7) and _passed(file, 5)]
    pairs = [
        f"{a.expert} and {b.expert}"
        for i, a in enumerate(usable)
        for b in usable[i + 1 :]
        if a.arrays["logits"].shape == b.arrays["logits"].shape
        and np.abs(a.arrays["logits"].astype(np.float64) - b.arrays["logits"]).max() <= SAME
    ]
    if len(usable) < 2:
        return Check(19, NAMES[19], SKIPPED, split)
    detail = f"{split}: {'; '.join(pairs)} have the same logits" if pairs else split
    return Check(19, NAMES[19], WARN if pairs else PASS, detail)


def _same_provenance(expert: str, files: Sequence[FileResult]) -> Check:
    sides = [file.side for file in files if file.side is not None]
    keys = ("checkpoint_sha256", "temperature_applied", "temperature")
    different = [key for key in keys if len({str(side.get(key)) for side in sides}) > 1]
    if len(sides) < 2:
        return Check(20, NAMES[20], SKIPPED, expert)
    status, detail = _judge(
        not different, f"{expert}: {', '.join(different)} differ between splits"
    )
    return Check(20, NAMES[20], status, detail or expert)


def _passed(file: FileResult, number: int) -> bool:
    return any(check.id == number and check.status in (PASS, WARN) for check in file.checks)
