"""``report.html``: one page with tables, plots and failures that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.files import atomic_file
from plots.page import Link, escape, page, preformatted, table, titled
from sweeps.results import REPORT_FILE, SUMMARY_COLUMNS, TABLE_COLUMNS, table_rows
from sweeps.spec import RunSpec

RUN_COLUMNS = tuple(name for name in SUMMARY_COLUMNS if name != "error")


def write_report(
    root: Path,
    specs: Sequence[RunSpec],
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Path:
    """Write the report of a sweep.

    Args:
        specs: the runs.
        rows: results of the runs, as ``summary_row`` gives them.
        figures: description -> matplotlib figure.
        about: settings and versions.

    Raises:
        OSError: it cannot be written.
    """
    states = [row["status"] for row in rows]
    counted = ", ".join(f"{states.count(s)} {s}" for s in ("finished", "failed", "open"))
    parts = [
        f"<h1>Sweep: {escape(', '.join(dict.fromkeys(str(r['arch']) for r in rows)))}</h1>",
        f"<p>{len(rows)} runs: {counted}.</p>",
        "<h2>Mean and standard deviation over seeds</h2>",
        "<p>Top-1 in %; gain: corrected minus quantized.</p>",
        table(table_rows(rows), TABLE_COLUMNS),
        *(titled(text, figure) for text, figure in figures.items()),
        *_failures(specs),
        "<h2>Runs</h2>",
        "<p>Accuracies, agreements and the drop in %; kl: nats from the float network.</p>",
        table([_with_link(row) for row in rows], RUN_COLUMNS),
        "<h2>Settings</h2>",
        preformatted(json.dumps(dict(about), indent=2, default=str)),
    ]
    path = root / REPORT_FILE
    with atomic_file(path) as part:
        part.write_text(page("Sweep report", parts), encoding="utf-8")
    return path


def _with_link(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a run whose page, if there is one, is a link."""
    kl = None if row["kl"] is None else f"{row['kl']:.4f}"
    linked = None if row["page"] is None else Link("page", quote(row["page"]))
    return {**row, "kl": kl, "page": linked}


def _failures(specs: Sequence[RunSpec]) -> list[str]:
    """HTML with the last lines of the log of every failed run."""
    parts = []
    for spec in specs:
        failure = spec.failure()
        if spec.record() is None and failure is not None:
            log = "\n".join(failure["log"])
            title = f"{spec.name}: status {failure['status']}"
            parts.append(f"<h3>{escape(title)}</h3>{preformatted(log)}")
    return ["<h2>Failures</h2>", *parts] if parts else []
