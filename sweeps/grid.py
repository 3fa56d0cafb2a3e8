"""The grid of methods, bits and seeds: its runs, then tables, plots and report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.console import EXIT_FAILED, EXIT_OK, write_stdout
from common.files import locked, require_writable
from common.marks import (
    is_marked,
    mark,
    replace_link,
    require_own_folder,
    require_replaceable,
)
from common.provenance import provenance
from common.reading import regular_text
from logits_io.naming import file_name
from sweeps.figures import IMAGES, figure_names, sweep_figures
from sweeps.results import (
    REPORT_FILE,
    SUMMARY_COLUMNS,
    SUMMARY_FILE,
    TABLE_FILE,
    as_markdown,
    result_texts,
    summary_row,
    table_rows,
    write_results,
)
from sweeps.running import Choice, log_failures, run_open
from sweeps.spec import GridRun

LOCK = ".sweep.lock"  # held while the tables are written
WRITTEN = (SUMMARY_FILE, f"{TABLE_FILE}.csv", f"{TABLE_FILE}.md", REPORT_FILE)

logger = logging.getLogger(__name__)


def run_grid(runs: Sequence[GridRun], root: Path, choice: Choice, argv: Sequence[str]) -> int:
    """Run the unfinished runs, then write tables, plots and report; returns the exit status.

    Sweeps of one folder may run at once; each writes the tables of what is finished by then.

    Args:
        root: folder of the sweep.
        argv: the command line, for the report.

    Raises:
        InputError: the folder cannot be written, or holds files of the user of the same names.
    """
    require_writable(root)
    _require_own_files(runs, root, choice.force)
    count = run_open(runs, root, choice)
    with locked(root / LOCK):
        rows = [summary_row(run) for run in runs]
        if count or choice.report_only or not _is_written(root, rows):
            write_everything(root, runs, rows, argv)
    return _conclude(runs, rows)


def _require_own_files(runs: Sequence[GridRun], root: Path, force: bool) -> None:
    """Check that tables, report and plots replace no file of the user.

    Raises:
        InputError: one would.
    """
    require_own_folder(root / IMAGES, force)
    if force:
        return
    is_old = _is_of_earlier_version(root)
    require_replaceable(root, WRITTEN, WRITTEN if is_old else ())
    plots = _plot_files(runs)
    is_new = (root / REPORT_FILE).is_file() and not is_marked(root / IMAGES)
    require_replaceable(root / IMAGES, plots, plots if is_new else ())


def _plot_files(runs: Sequence[GridRun]) -> list[str]:
    return [_plot_file(text) for run in runs for text in figure_names(run.arch)]


def _plot_file(text: str) -> str:
    return f"{file_name(text)}.png"


def _is_of_earlier_version(root: Path) -> bool:
    """Whether a version that listed no files wrote the tables of a sweep."""
    try:
        header = regular_text(root / SUMMARY_FILE).partition("\n")[0]
    except (OSError, ValueError):
        return False
    found = header.split(",")
    is_ours = found[:6] == list(SUMMARY_COLUMNS[:6]) and set(found) <= set(SUMMARY_COLUMNS)
    return not is_marked(root) and is_ours


def _is_written(root: Path, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether tables and report of the rows are there; the report is the last to be written."""
    try:
        known = all(regular_text(root / name) == text for name, text in result_texts(rows).items())
    except (OSError, ValueError):
        return False
    return known and (root / REPORT_FILE).is_file()


def write_everything(
    root: Path, runs: Sequence[GridRun], rows: Sequence[dict[str, Any]], argv: Sequence[str]
) -> None:
    """Write tables, plots and the report."""
    from plots.axes import save_figure
    from sweeps.report import write_report

    root.mkdir(parents=True, exist_ok=True)
    mark(root, WRITTEN)
    replace_link(root / IMAGES)
    (root / IMAGES).mkdir(exist_ok=True)
    mark(root / IMAGES, _plot_files(runs))
    (root / REPORT_FILE).unlink(missing_ok=True)
    write_results(root, rows)
    figures = sweep_figures(rows)
    for text, figure in figures.items():
        save_figure(root / IMAGES / _plot_file(text), figure)
    path = write_report(root, runs, rows, figures, provenance(argv))
    logger.info("report: %s", path)


def _conclude(runs: Sequence[GridRun], rows: Sequence[dict[str, Any]]) -> int:
    """Print the table and log what is not finished; returns the exit status."""
    write_stdout(as_markdown(table_rows(rows)).rstrip())
    pairs = list(zip(runs, rows, strict=True))
    log_failures(run for run, row in pairs if row["status"] == "failed")
    left = [run.name for run, row in pairs if row["status"] == "open"]
    if left:
        logger.error("not run yet: %s", ", ".join(left))
    return EXIT_OK if all(row["status"] == "finished" for row in rows) else EXIT_FAILED
