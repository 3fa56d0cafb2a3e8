"""The text on stdout at the end of a run: results, files, next steps, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.report_table import report_table
from logits_io.naming import EXPORT_REPORT_FILE, MODEL_FILE, ONNX_FILE, PAGE_FILE
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
    rows = results.rows if table == "full" else main_rows(results)
    parts = [headline(results, job.subject), format_table(results, rows)]
    left_out = len(results.rows) - len(rows)
    if left_out:
        parts[-1] += f"\n({left_out} more corrections: --table full, or the summary below)"
    parts.append(_files(job))
    parts.append("\n".join(["next:", *(f"  {line}" for line in next_steps(job, results))]))
    if warnings:
        parts.append("\n".join(["warnings:", *(f"  {text}" for text in warnings)]))
    if job.options.export is not None and (job.folder / EXPORT_REPORT_FILE).exists():
        parts.append(report_table(job.folder))
    if job.recipe is not None:
        figures = results.full_precision.top1_pct, results.quantized.top1_pct
        parts.append(job.recipe.comparison(*figures))
    return "\n\n".join(parts)


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
