"""The results of a sweep: one row per run, and a table of means over seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cells import plain_cell
from common.files import atomic_file
from logits_io.naming import SWEEP_FILE
from plots.page import show
from sweeps.spec import GridRun

SUMMARY_FILE, TABLE_FILE, REPORT_FILE = SWEEP_FILE, "sweep_table", "report.html"
FIGURES = ("fullprecision", "quantized", "corrected")
SUMMARY_COLUMNS = (
    "arch",
    "method",
    "n_bits_w",
    "n_bits_a",
    "seed",
    "status",
    *(f"{name}_{top}" for name in FIGURES for top in ("top1", "top5")),
    "agreement",
    "corrected_agreement",
    "seconds_quantize",
    "seconds",
    "drop",
    "kl",
    "size_bytes",
    "correction",
    "images",
    "page",
    "error",
)
AGREEMENTS = {"quantized": "agreement", "corrected": "corrected_agreement"}
TABLE_COLUMNS = ("arch", "method", "W/A", "n", "full precision", "quantized", "corrected", "gain")


def summary_row(spec: GridRun) -> dict[str, Any]:
    """The row of a run, from its files: accuracies and agreements in percent, times in seconds."""
    row: dict[str, Any] = dict.fromkeys(SUMMARY_COLUMNS)
    row |= {"arch": spec.arch, "method": spec.method, "seed": spec.seed, "status": spec.state()}
    row |= {"n_bits_w": spec.n_bits_w, "n_bits_a": spec.n_bits_a}
    record = spec.record()
    if record is not None:
        for name in FIGURES:
            figures = record["figures"][name]
            if figures is not None:  # None for "corrected" in a run without correction
                row[f"{name}_top1"], row[f"{name}_top5"] = figures["top1_pct"], figures["top5_pct"]
                if name in AGREEMENTS:
                    row[AGREEMENTS[name]] = figures["agreement_pct"]
        row |= _details(spec, record)
        seconds = record["seconds"]
        row["seconds_quantize"] = round(seconds.get("quantize", 0.0), 2)
        row["seconds"] = round(sum(seconds.values()), 2)
    elif spec.failure() is not None:
        row["error"] = spec.reason()
    return row


def _details(spec: GridRun, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run lost, its size and its page; None where a record of earlier versions has none."""
    quantized, corrected = (record["figures"][name] for name in FIGURES[1:])
    page = find_page(spec.folder)
    return {
        "drop": round(quantized["top1_pct"] - record["figures"]["fullprecision"]["top1_pct"], 6),
        "kl": quantized.get("kl_to_fp"),
        "size_bytes": (record.get("sizes") or {}).get("file"),
        "correction": None if corrected is None else correction_text(corrected),
        "images": evaluated(record),
        "page": None if page is None else page.relative_to(spec.root).as_posix(),
    }


def correction_text(row: Mapping[str, Any]) -> str:
    """A correction in words: its kind, and the setting of one with clusters."""
    kind = str(row.get("logits", ""))
    if row.get("num_clusters") is None:
        return kind
    return f"{kind} alpha={row['alpha']:g} clusters={row['num_clusters']} pca={row['pca_dim']}"


def find_page(folder: Path) -> Path | None:
    """The page of the run in a folder of results; None if there is none."""
    return next(iter(sorted(folder.glob(f"*/run_*/{REPORT_FILE}"))), None)


def evaluated(record: Mapping[str, Any] | None) -> int | None:
    """The number of evaluation images of a run; None if its record does not say."""
    found = ((record or {}).get("data") or {}).get("evaluated")
    return found if isinstance(found, int) and found > 0 else None


def table_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of the finished runs of every setting."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["arch"], row["method"], row["n_bits_w"], row["n_bits_a"])
        groups.setdefault(key, []).append(row)
    table = []
    for (arch, method, weight, act), members in groups.items():
        done = [row for row in members if row["status"] == "finished"]
        found: dict[str, Any] = {
            "arch": arch,
            "method": method,
            "W/A": f"{weight}/{act}",
            "n": len(done),
        }
        for label, name in (("full precision", "fullprecision"), *((n, n) for n in FIGURES[1:])):
            found[label] = spread([row[f"{name}_top1"] for row in done])
        corrected = [row for row in done if row["corrected_top1"] is not None]
        found["gain"] = spread([row["corrected_top1"] - row["quantized_top1"] for row in corrected])
        table.append(found)
    return table


def spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation of the known values; None if there is none.

    One value has no deviation (None).
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([plain_cell(row[name]) for name in columns])
    return buffer.getvalue()


def flat_table(table: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of the table for CSV, with means and deviations in separate columns."""
    columns: list[str] = []
    rows = []
    for row in table:
        flat: dict[str, Any] = {}
        for name, value in row.items():
            if name in TABLE_COLUMNS[:4]:
                flat[name] = value
            else:
                flat[f"{name} mean"], flat[f"{name} sd"] = value or (None, None)
        columns = list(flat)
        rows.append(flat)
    return columns, rows


def as_markdown(table: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"| {' | '.join(TABLE_COLUMNS)} |", f"|{'---|' * len(TABLE_COLUMNS)}"]
    lines += [f"| {' | '.join(show(row[name]) for name in TABLE_COLUMNS)} |" for row in table]
    return "\n".join(lines) + "\n"


def result_texts(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """File -> content: the summary, and the table as CSV and Markdown."""
    table = table_rows(rows)
    columns, flat = flat_table(table)
    return {
        SUMMARY_FILE: as_csv(rows, SUMMARY_COLUMNS),
        f"{TABLE_FILE}.csv": as_csv(flat, columns),
        f"{TABLE_FILE}.md": as_markdown(table),
    }


def write_results(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the summary and the table, the latter as CSV and Markdown.

    Raises:
        OSError: one cannot be written.
    """
    for name, text in result_texts(rows).items():
        with atomic_file(root / name) as part:
            part.write_text(text, encoding="utf-8")
