"""``report.html`` of a run: results with intervals, plots, changed decisions, units, settings."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.cells import cell_text
from common.files import atomic_file
from export.report_table import report_table
from logits_io.comparison import Comparison
from logits_io.naming import CORRECTED, EXPORT_REPORT_FILE, FULL_PRECISION, QUANTIZED
from pipeline.images import Change
from pipeline.results import Results
from pipeline.tables import format_table, headline, main_rows
from plots.page import captioned, drawn, escape, page, picture, preformatted, table
from plots.run import unit_figure
from quant import UnitReport
from quant.bitwidth.report import SENSITIVITY_FILE

WORST = 10  # classes shown
PLOTS = {
    "reliability.png": "Accuracy against confidence",
    "per_class_change.png": "Change of Top-1 by class",
    "logit_scatter.png": "Logits against those of the float network",
    "accuracy_grid.png": "Top-1 over the grid of corrections",
    "cluster_map.png": "Clusters of quantized logits",
}
METRICS = {
    "Top-1 %": ("top1_pct", 2),
    "Top-5 %": ("top5_pct", 2),
    "agreement %": ("agreement_pct", 2),
    "KL": ("kl_to_fp", 4),
    "ECE": ("ece", 4),
}
KINDS = {FULL_PRECISION: "float", QUANTIZED: "quantized", CORRECTED: "corrected"}
ABOUT = (
    "started",
    "finished",
    "seconds",
    "versions",
    "commit",
    "platform",
    "device",
    "model",
    "data",
)
UNIT_COLUMNS = ("unit", "name", "rounded to nearest", "loss", "flipped %", "seconds")


@dataclass(frozen=True)
class RunPage:
    """What the page of a run shows.

    Attributes:
        subject: network, method, bits and seed in words.
        record: content of run.json.
        warnings: logged during the run.
        changes: images whose decision changed.
        folder: folder of the run; ``summary`` that of its tables and plots, ``sweep`` that of its
            validation at random bits.
        draw: whether the losses of the units are drawn.
    """

    subject: str
    record: Mapping[str, Any]
    results: Results
    comparison: Comparison
    classes: Sequence[str]
    units: Sequence[UnitReport]
    changes: Sequence[Change]
    warnings: Sequence[str]
    folder: Path
    summary: Path
    sweep: Path | None
    draw: bool

    def html(self) -> str:
        """The whole page."""
        parts = [
            f"<h1>{escape(self.subject)}</h1>",
            f"<p>{escape(headline(self.results, self.subject))}</p>",
            *(f'<p class="failed">{escape(text)}</p>' for text in self.warnings),
            *self._results(),
            *_plots(self.summary),
            *self._classes(),
            *self._changes(),
            *self._units(),
            *_sensitivity(self.sweep),
            *self._export(),
            *self._settings(),
        ]
        return page(self.subject, parts)

    def _results(self) -> list[str]:
        found = self.comparison.overall.to_dict("records")
        return [
            "<h2>Results</h2>",
            f"<p>{self.results.images} evaluation images; in brackets 95 % intervals of a "
            "bootstrap over them. Agreement and KL (nats) are with the float network.</p>",
            table([_with_intervals(row) for row in found], ("logits", *METRICS)),
            preformatted(format_table(self.results, main_rows(self.results))),
            f"<p>{escape(size_text(self.record))}</p>",
        ]

    def _classes(self) -> list[str]:
        rows = class_rows(self.comparison, self.classes)
        worst = sorted(rows, key=lambda row: row["change"])[:WORST]
        return ["<h2>Classes that lost most</h2>", table(worst, tuple(worst[0]))]

    def _changes(self) -> list[str]:
        if not self.changes:
            return []
        tiles = [
            captioned(picture(change.name, change.content), _told(change))
            for change in self.changes
        ]
        return [
            "<h2>Changed decisions</h2>",
            "<p>Images that the quantized network decides otherwise than the float network: those "
            "of which the float network was surest.</p>",
            f'<div class="tiles">{"".join(tiles)}</div>',
        ]

    def _units(self) -> list[str]:
        if not self.units:
            return []
        rows = [dict(zip(UNIT_COLUMNS, _unit_cells(unit), strict=True)) for unit in self.units]
        parts = ["<h2>Reconstruction loss by unit</h2>"]
        if self.draw:
            description = "Reconstruction loss of every unit, rounded to nearest and at the end"
            parts.append(picture(description, drawn(unit_figure(self.units))))
        return [*parts, table(rows, UNIT_COLUMNS)]

    def _export(self) -> list[str]:
        if not (self.folder / EXPORT_REPORT_FILE).is_file():
            return []
        return ["<h2>Exported file</h2>", preformatted(report_table(self.folder))]

    def _settings(self) -> list[str]:
        record = self.record
        about = {key: record[key] for key in ABOUT if key in record}
        config = yaml.safe_dump(dict(record["config"]), sort_keys=True)
        return [
            "<h2>Settings, versions and times</h2>",
            *command(record["argv"]),
            preformatted(config.rstrip()),
            preformatted(json.dumps(about, indent=2, ensure_ascii=False)),
        ]


def write_page(path: Path, content: RunPage) -> None:
    """Write the page of a run.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(path) as part:
        part.write_text(content.html(), encoding="utf-8")


def _with_intervals(row: Mapping[Hashable, Any]) -> dict[str, str]:
    """A row of the comparison with its intervals as text."""
    cells = {"logits": KINDS.get(row["logits"], str(row["logits"]))}
    for label, (name, digits) in METRICS.items():
        value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
        cells[label] = f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return cells


def class_rows(comparison: Comparison, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Top-1 of every class in percent by kind of logits, and how it changed."""
    rows: dict[int, dict[str, Any]] = {}
    for found in comparison.per_class.to_dict("records"):
        row = rows.setdefault(found["class"], {"class": classes[found["class"]]})
        row["images"] = found["samples"]
        row[KINDS.get(found["logits"], found["logits"])] = found["top1_pct"]
    return [row | {"change": row["quantized"] - row["float"]} for row in rows.values()]


def command(argv: Sequence[str]) -> list[str]:
    """The command of a run as it can be typed; nothing for a run without flags, or from Python."""
    return [preformatted(shlex.join(["python", "main_imagenet.py", *argv]))] if argv else []


def size_text(record: Mapping[str, Any]) -> str:
    """The bytes of the quantized model in words."""
    sizes = record["sizes"]
    if sizes["file"] is None:
        return "The quantized model could not be saved."
    return (
        f"Quantized model: {sizes['file']:,} bytes; {sizes['theory']:,} bytes in theory, "
        f"{sizes['float32']:,} bytes in float32."
    )


def _plots(folder: Path) -> list[str]:
    """The plots of the summary that were drawn."""
    shown = [
        captioned(picture(text, (folder / name).read_bytes()), text)
        for name, text in PLOTS.items()
        if (folder / name).is_file()
    ]
    return ["<h2>Plots</h2>", f'<div class="beside">{"".join(shown)}</div>'] if shown else []


def _told(change: Change) -> str:
    (was, sure), (now, surely) = change.before, change.after
    return (
        f"row {change.row}, {change.name}: {change.label}; float {was} ({100 * sure:.0f} %), "
        f"quantized {now} ({100 * surely:.0f} %)"
    )


def _unit_cells(unit: UnitReport) -> tuple[Any, ...]:
    losses = f"{unit.loss_nearest:.4g}", f"{unit.loss:.4g}"
    return unit.index, unit.name, *losses, 100 * unit.flipped, unit.seconds


def _sensitivity(folder: Path | None) -> list[str]:
    """The table of a validation at random bits that lowers one layer at a time, if there is one."""
    path = None if folder is None else folder / SENSITIVITY_FILE
    if path is None or not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as handle:
        found = list(csv.DictReader(handle))
    rows = [{key: _rounded(cell_text(cell)) for key, cell in row.items()} for row in found]
    title = "<h2>Sensitivity of the layers to their bits</h2>"
    return [title, table(rows, tuple(rows[0]))] if rows else []


def _rounded(cell: str) -> str:
    """A number with at most four decimals; other texts unchanged."""
    try:
        return f"{round(float(cell), 4):.10g}"
    except ValueError:
        return cell
