"""The text on stdout at the end of a run: results, files, next steps, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.report_table import report_table
from logits_io.naming import (
    CORRECTION_FILE,
    EVALUATION_FILE,
    EXPORT_REPORT_FILE,
    MODEL_FILE,
    ONNX_FILE,
    PAGE_FILE,
)
from pipeline.given_job import GivenJob
from pipeline.job import Job
from pipeline.next_steps import next_steps
from pipeline.results import Results
from pipeline.tables import format_table, headline, main_rows


def closing_text(job: Job, results: Results, table: str, warnings: Sequence[str]) -> str:
    """The text printed at the end of a run.

    Args:
        table: rows of results to show, ``compact`` or ``full``.
        warnings: the warnings logged during the run.
    """
    parts = [*_results(results, job.subject, table), _files(job)]
    parts.append("\n".join(["next:", *(f"  {line}" for line in next_steps(job, results))]))
    parts += _warnings(warnings)
    if job.options.export is not None and (job.folder / EXPORT_REPORT_FILE).exists():
        parts.append(report_table(job.folder))
    if job.recipe is not None:
        figures = results.full_precision.top1_pct, results.quantized.top1_pct
        parts.append(job.recipe.comparison(*figures))
    return "\n\n".join(parts)


def given_text(job: GivenJob, results: Results, table: str, warnings: Sequence[str]) -> str:
    """The text printed at the end of a correction of given logits; ``table`` as above."""
    name = job.options.naming
    places = {
        "logits": Path(name.logits_folder),
        "summary": Path(name.summary_folder, f"{name.summary_folder}.csv"),
        "correction": Path(name.run_folder, CORRECTION_FILE),
        "rows": Path(name.run_folder, EVALUATION_FILE),
    }
    lines = [f"  {what + ':':<12}{job.root / place}" for what, place in places.items()]
    parts = [*_results(results, name.tag, table), "\n".join(["files:", *lines])]
    return "\n\n".join([*parts, *_warnings(warnings)])


def _results(results: Results, subject: str, table: str) -> list[str]:
    """Headline and table of the results."""
    rows = results.rows if table == "full" else main_rows(results)
    text = format_table(results, rows)
    left_out = len(results.rows) - len(rows)
    if left_out:
        text += f"\n({left_out} more corrections: --table full, or the summary below)"
    return [headline(results, subject), text]


def _warnings(warnings: Sequence[str]) -> list[str]:
    return ["\n".join(["warnings:", *(f"  {text}" for text in warnings)])] if warnings else []


def _files(job: Job) -> str:
    name, url = job.name, job.options.output.output_url
    places = {
        "model": Path(name.run_folder, MODEL_FILE),
        "page": Path(name.run_folder, PAGE_FILE),
        "summary": Path(name.summary_folder, f"{name.summary_folder}.csv"),
        "logits": Path(name.initial_folder),
    }
    if job.options.export is not None and (job.folder / ONNX_FILE).exists():
        places["ONNX"] = Path(name.run_folder, ONNX_FILE)
    root = job.root if url is None else f"{url.rstrip('/')}/{job.method.name}"
    lines = [f"  {what + ':':<9}{root}/{place}" for what, place in places.items()]
    return "\n".join(["files:", *lines])
