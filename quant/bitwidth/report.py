"""The files of a validation at random bitwidths; all statistics come from its table."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cells import cell_text, plain_cell
from common.errors import InputError
from common.files import atomic_file, write_json
from common.marks import is_marked, mark, replace_link, require_replaceable
from common.reading import regular_text, require_regular
from quant.bitwidth.assignments import WEIGHTINGS
from quant.bitwidth.statistics import (
    DEFAULT_BIN_WIDTH,
    DEFAULT_TOLERANCE,
    Anchor,
    Statistics,
    correlations,
    interpretation,
    summarise,
)

COLUMNS = (
    "config",
    "kind",
    "avg_layers",
    "avg_params",
    "avg_macs",
    "relative_weight_memory",
    "relative_bitops",
    "top1",
    "top5",
    "loss",
    "bits",
)
RANDOM, ANCHOR, REFERENCE = "random", "anchor", "reference"
TABLE_FILE, FIGURE_FILE, SUMMARY_FILE = (
    "bitwidth_configs.csv",
    "bitwidth_vs_accuracy.png",
    "bitwidth_summary.json",
)
SENSITIVITY_FILE = "bitwidth_sensitivity.csv"
SWEEP_FILES = (TABLE_FILE, FIGURE_FILE, SUMMARY_FILE, SENSITIVITY_FILE)


@dataclass(frozen=True)
class SweepStatistics:
    """The statistics of a validation at random bitwidths.

    Attributes:
        correlations: weighting of the average -> Pearson, Spearman and number of points.
        full_precision: Top-1 of the float network; None if it is not in the table.
        interpretation: interpretation of the statistics, as lines of text.
    """

    statistics: Statistics
    weighting: str
    correlations: Mapping[str, tuple[float | None, float | None, int]]
    full_precision: float | None
    interpretation: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The statistics as plain values, for the summary."""
        names = ("pearson", "spearman", "n")
        return {
            **self.statistics.as_dict(),
            "weighting": self.weighting,
            "correlations": {
                weighting: dict(zip(names, found, strict=True))
                for weighting, found in self.correlations.items()
            },
            "full_precision": self.full_precision,
            "interpretation": self.interpretation,
        }


def sweep_statistics(
    rows: Sequence[Mapping[str, Any]], weighting: str, tolerance: float = DEFAULT_TOLERANCE
) -> SweepStatistics:
    """Compute the statistics from the rows of a table.

    Raises:
        InputError: the rows hold no random assignment, or not the averages of ``weighting``.
    """
    random = [row for row in rows if row["kind"] == RANDOM]
    if not random or any(row[f"avg_{weighting}"] is None for row in random):
        raise InputError(f"table must hold random configurations with avg_{weighting}, got none")
    anchors = [
        Anchor(int(str(row["bits"]).split("-")[0]), row["top1"], row["loss"])
        for row in rows
        if row["kind"] == ANCHOR
    ]
    averages = [row[f"avg_{weighting}"] for row in random]
    accuracies, losses = ([row[name] for row in random] for name in ("top1", "loss"))
    found = summarise(averages, accuracies, losses, anchors, DEFAULT_BIN_WIDTH, tolerance)
    reference = [row["top1"] for row in rows if row["kind"] == REFERENCE]
    return SweepStatistics(
        statistics=found,
        weighting=weighting,
        correlations={name: _correlations(random, name) for name in WEIGHTINGS},
        full_precision=reference[0] if reference else None,
        interpretation=interpretation(found, tolerance),
    )


def _correlations(
    rows: Sequence[Mapping[str, Any]], weighting: str
) -> tuple[float | None, float | None, int]:
    known = [row for row in rows if row[f"avg_{weighting}"] is not None]
    return correlations([row[f"avg_{weighting}"] for row in known], [row["top1"] for row in known])


def require_own_sweep(folder: Path, force: bool = False) -> None:
    """Check, without writing, that a sweep into a folder replaces no file of the user.

    In a folder of an earlier version, which has no list of files, the table proves the others.

    Raises:
        InputError: it would replace one, or the folder is none.
    """
    known: tuple[str, ...] = ()
    if not is_marked(folder) and (folder / TABLE_FILE).is_file():
        with suppress(InputError):
            read_table(folder / TABLE_FILE)
            known = SWEEP_FILES
    require_replaceable(folder, SWEEP_FILES, known, force)


def open_sweep_folder(folder: Path) -> None:
    """Make the folder of a sweep, and list the files that will be written into it.

    Raises:
        OSError: it cannot be written.
    """
    replace_link(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark(folder, SWEEP_FILES)


def write_sweep(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    result: SweepStatistics,
    about: Mapping[str, Any],
    title: str,
) -> None:
    """Write table and summary; ``plots.bitwidth.sweep_figure`` draws the plot.

    Args:
        folder: one of ``open_sweep_folder``.
        about: further entries of the summary, such as settings.

    Raises:
        OSError: a file cannot be written.
    """
    write_table(folder / TABLE_FILE, rows, COLUMNS)
    write_json(folder / SUMMARY_FILE, {"title": title, **about, "statistics": result.as_dict()})


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV; None becomes an empty field, and no cell is a formula."""
    with atomic_file(path) as part, part.open("w", newline="", encoding="utf-8") as handle:
        table = csv.DictWriter(handle, columns, lineterminator="\n")
        table.writeheader()
        table.writerows({key: plain_cell(value) for key, value in row.items()} for row in rows)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a table of ``write_sweep``.

    Raises:
        InputError: the file is missing or damaged, or is another table.
    """
    try:
        with require_regular(path).open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        texts = ("kind", "bits", "config")
        return [
            {key: cell_text(row[key]) if key in texts else _number(row[key]) for key in COLUMNS}
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: must be a table of --bitwidth_sweep, got: {error!r}") from None


def _number(text: str) -> float | None:
    value = float(text) if text else None
    if value is not None and math.isnan(value):
        raise ValueError("NaN")
    return value


def known_about(folder: Path) -> dict[str, Any]:
    """The entries of the summary in a folder, without the statistics; empty without a summary."""
    try:
        content = json.loads(regular_text(folder / SUMMARY_FILE))
        return {key: value for key, value in content.items() if key != "statistics"}
    except (OSError, ValueError, AttributeError):
        return {}
