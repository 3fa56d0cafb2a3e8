"""The grid of methods, bits and seeds: its runs, then tables, plots and report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.console import EXIT_FAILED, EXIT_OK, write_stdout
from common.files import require_writable
from common.provenance import provenance
from sweeps.results import SUMMARY_FILE, as_markdown, summary_row, table_rows, write_results
from sweeps.running import Choice, run_open
from sweeps.spec import GridRun

logger = logging.getLogger(__name__)


def run_grid(runs: Sequence[GridRun], root: Path, choice: Choice, argv: Sequence[str]) -> int:
    """Run the unfinished runs, then write tables, plots and report; returns the exit status.

    Args:
        root: folder of the sweep.
        argv: the command line, for the report.
    """
    require_writable(root)
    count = run_open(runs, root, choice)
    rows = [summary_row(run) for run in runs]
    if count or choice.report_only or not (root / SUMMARY_FILE).is_file():
        write_everything(root, runs, rows, argv)
    return _conclude(runs, rows)


def write_everything(
    root: Path, runs: Sequence[GridRun], rows: Sequence[dict[str, Any]], argv: Sequence[str]
) -> None:
    """Write tables, plots and the report."""
    from plots.axes import save_figure
    from sweeps.figures import sweep_figures
    from sweeps.report import write_report

    root.mkdir(parents=True, exist_ok=True)
    write_results(root, rows)
    figures = sweep_figures(rows)
    for text, figure in figures.items():
        save_figure(root / "image" / f"{text.replace(': ', '_').replace(' ', '_')}.png", figure)
    path = write_report(root, runs, rows, figures, provenance(argv))
    logger.info("report: %s", path)


def _conclude(runs: Sequence[GridRun], rows: Sequence[dict[str, Any]]) -> int:
    """Print the table and log what is not finished; returns the exit status."""
    write_stdout(as_markdown(table_rows(rows)).rstrip())
    pairs = zip(runs, rows, strict=True)
    failed = [run.name for run, row in pairs if row["status"] != "finished"]
    if failed:
        logger.error("not finished: %s", ", ".join(failed))
        return EXIT_FAILED
    return EXIT_OK
