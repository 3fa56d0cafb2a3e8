"""What the verification of experts' logits prints and writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cells import plain_cell
from common.files import atomic_file
from experts.console import Console
from experts.metrics import GROUPS
from experts.verification import FAIL, SKIPPED, WARN, Check, FileResult

if TYPE_CHECKING:
    import pandas as pd

REPORT_FORMAT_VERSION = 1
LABELS = {
    "reweighted": "Reweighted Acc",
    "balanced": "Balanced Acc",
    "head": "Head Acc",
    "medium": "Medium Acc",
    "tail": "Tail Acc",
}
SUMMARIES = ("reweighted", "balanced")
BAR_LABELS = ("overall", "balanced", "reweighted", *GROUPS)
SCALARS = ("accuracy", *LABELS, "top5", "nll", "reweighted_nll", "ece", "absent_weight")
TABLE_COLUMNS = ("expert", "split", "path", *SCALARS, "failures")


@dataclass(frozen=True)
class Verification:
    """All results; with ``strict`` a warning counts as a failure."""

    files: list[FileResult]
    cross: list[Check]
    groups: dict[str, list[int]]
    strict: bool

    @property
    def checks(self) -> list[Check]:
        return [*(check for file in self.files for check in file.checks), *self.cross]

    @property
    def bad(self) -> tuple[str, ...]:
        """What counts as a failure."""
        return (FAIL, WARN) if self.strict else (FAIL,)

    @property
    def failures(self) -> int:
        return sum(check.status in self.bad for check in self.checks)

    @property
    def warnings(self) -> int:
        return 0 if self.strict else sum(check.status == WARN for check in self.checks)

    def last_line(self) -> str:
        count = len(self.files)
        if not self.failures:
            return f"VERIFICATION PASSED: {count} files, 0 failures, {self.warnings} warnings"
        bad = sum(self._is_bad(file) for file in self.files)
        return (
            f"VERIFICATION FAILED: {self.failures} failures in {bad} of {count} files, "
            f"{self.warnings} warnings"
        )

    def _is_bad(self, file: FileResult) -> bool:
        return any(check.status in self.bad for check in file.checks)

    def best(self, metric: str, split: str) -> list[str]:
        """The experts with the best metric on a split; a file with a failure cannot be best."""
        found = {
            file.expert: getattr(file.figures, metric)
            for file in self.files
            if file.split == split and not file.failed and file.figures is not None
        }
        found = {name: value for name, value in found.items() if value is not None}
        return sorted(name for name, value in found.items() if value == max(found.values()))

    def splits(self) -> list[str]:
        return sorted({file.split for file in self.files})


def print_files(console: Console, verification: Verification) -> None:
    """Print checks and metrics of every file, then the checks across files."""
    for file in verification.files:
        console.line(f"\n{file.expert} / {file.split}: {file.path}")
        _print_checks(console, file.checks, f"{file.expert} / {file.split}: ", verification.bad)
        _print_figures(console, file)
    console.line("\nAcross files")
    _print_checks(console, verification.cross, "", verification.bad)


def _print_checks(
    console: Console, checks: Sequence[Check], where: str, bad: Sequence[str]
) -> None:
    """Print checks; a quiet console prints those whose status is in ``bad``."""
    for check in checks:
        mark = console.marks[check.status]
        skipped = "skipped: " if check.status == SKIPPED else ""
        detail = f": {check.detail}" if check.detail else ""
        text = f"{mark} {skipped}{check.name} [{check.id}]{detail}"
        if console.quiet and check.status in bad:
            console.always(f"{where}{text}")
        console.line(f"  {text}")


def _print_figures(console: Console, file: FileResult) -> None:
    figures = file.figures
    if figures is None:
        return
    console.line(f"  Shape: {file.arrays['logits'].shape}")
    console.line(f"  Samples: {len(file.arrays['logits'])}")
    for label, value in {"Accuracy": figures.accuracy, **_labelled(figures)}.items():
        shown = "-" if value is None else f"{value:.4f} ({100 * value:.2f}%)"
        console.line(f"  {label}: {shown}")
    console.line(f"  NLL: {figures.nll:.4f}")
    console.line(f"  ECE: {figures.ece:.4f}")


def _labelled(figures: Any) -> dict[str, float | None]:
    return {label: getattr(figures, name) for name, label in LABELS.items()}


def print_summaries(console: Console, verification: Verification) -> None:
    """Print the tables of reweighted and balanced accuracy, and the best experts."""
    experts = sorted({file.expert for file in verification.files})
    splits = verification.splits()
    width = max(len("Expert"), *map(len, experts))
    for metric in SUMMARIES:
        console.line(f"\nSUMMARY: {metric.upper()} ACCURACY BY EXPERT AND SPLIT")
        head = " | ".join(f"{name:>12}" for name in map(str.capitalize, splits))
        console.line(f"{'Expert':<{width}} | {head}")
        console.line("-" * (width + 3 + len(head)))
        for expert in experts:
            cells = (_cell(verification, expert, split, metric) for split in splits)
            console.line(f"{expert:<{width}} | {' | '.join(f'{cell:>12}' for cell in cells)}")
    console.line("\nBest per split:")
    for metric in SUMMARIES:
        for split in splits:
            names = ", ".join(verification.best(metric, split)) or "-"
            console.line(f"  {metric} accuracy, {split}: {names}")


def _cell(verification: Verification, expert: str, split: str, metric: str) -> str:
    for file in verification.files:
        if (file.expert, file.split) == (expert, split):
            if file.failed:
                return "FAIL"
            value = getattr(file.figures, metric) if file.figures else None
            return "-" if value is None else f"{100 * value:.2f}%"
    return "-"


def as_json(verification: Verification, about: dict[str, Any], exit_code: int) -> dict[str, Any]:
    """The content of the report of --json."""
    return {
        "format_version": REPORT_FORMAT_VERSION,
        **about,
        "groups": verification.groups,
        "files": [file.as_record() for file in verification.files],
        "cross_checks": [dataclasses.asdict(check) for check in verification.cross],
        "best": {
            metric: {split: verification.best(metric, split) for split in verification.splits()}
            for metric in SUMMARIES
        },
        "failures": verification.failures,
        "warnings": verification.warnings,
        "exit_code": exit_code,
    }


def as_table(verification: Verification) -> pd.DataFrame:
    """The report of --csv: one row per file."""
    import pandas as pd

    rows = []
    for file in verification.files:
        names = {"expert": file.expert, "split": file.split, "path": str(file.path)}
        row: dict[str, Any] = {key: plain_cell(name) for key, name in names.items()}
        row |= {name: getattr(file.figures, name, None) for name in SCALARS}
        row["failures"] = sum(check.status == FAIL for check in file.checks)
        rows.append(row)
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))


def bars(verification: Verification) -> dict[str, dict[str, list[float | None]]]:
    """Split -> expert -> accuracies in percent, in the order of ``BAR_LABELS``.

    Files with a failed check are left out.
    """
    names = ("accuracy", "balanced", "reweighted", *GROUPS)
    found: dict[str, dict[str, list[float | None]]] = {}
    for file in verification.files:
        if not file.failed and file.figures is not None:
            values = (getattr(file.figures, name) for name in names)
            shares = [None if value is None else 100 * value for value in values]
            name = file.expert.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
            found.setdefault(file.split, {})[name] = shares
    return found


def write_table(path: Path, verification: Verification) -> None:
    """Write the report of --csv.

    Raises:
        OSError: it cannot be written.
    """
    text = as_table(verification).to_csv(index=False)
    with atomic_file(path) as part:
        part.write_bytes(text.encode("utf-8", "backslashreplace"))
