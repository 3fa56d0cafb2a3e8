"""``report.html``: one page with tables, plots and failures that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import atomic_file
from sweeps.results import REPORT_FILE, SUMMARY_COLUMNS, TABLE_COLUMNS, show, table_rows
from sweeps.spec import RunSpec

RUN_COLUMNS = tuple(name for name in SUMMARY_COLUMNS if name != "error")

STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #2563eb; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 75rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; \
white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
img { max-width: 100%; height: auto; background: #fff; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); font-size: .8rem; }
.failed { color: #dc2626; }
"""
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = row => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const x = Number(value(a)), y = Number(value(b));
        const order = Number.isNaN(x) || Number.isNaN(y)
          ? value(a).localeCompare(value(b)) : x - y;
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });
}
"""


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
        f"<h1>Sweep: {_text(', '.join(dict.fromkeys(str(r['arch']) for r in rows)))}</h1>",
        f"<p>{len(rows)} runs: {counted}.</p>",
        "<h2>Mean and standard deviation over seeds</h2>",
        "<p>Top-1 in %; gain: corrected minus quantized.</p>",
        _table(table_rows(rows), TABLE_COLUMNS),
        *(_figure(text, figure) for text, figure in figures.items()),
        *_failures(specs),
        "<h2>Runs</h2>",
        _table(rows, RUN_COLUMNS),
        "<h2>Settings</h2>",
        f"<pre>{_text(json.dumps(dict(about), indent=2, default=str))}</pre>",
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>Sweep report</title><style>{STYLE}</style></head>'
        f"<body><main>\n{chr(10).join(parts)}\n</main><script>{SCRIPT}</script></body></html>\n"
    )
    path = root / REPORT_FILE
    with atomic_file(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    head = "".join(f'<th scope="col"><button>{_text(name)}</button></th>' for name in columns)
    lines = []
    for row in rows:
        cells = "".join(
            f'<td data-value="{_text(_sort_key(row[name]))}">{_text(_cell(row[name]))}</td>'
            for name in columns
        )
        kind = ' class="failed"' if row.get("status") == "failed" else ""
        lines.append(f"<tr{kind}>{cells}</tr>")
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def _sort_key(value: Any) -> Any:
    if isinstance(value, tuple):
        return value[0]
    return "" if value is None else value


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else show(value)


def _figure(text: str, figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<h2>{_text(text)}</h2><img alt="{_text(text)}" src="data:image/png;base64,{data}">'


def _failures(specs: Sequence[RunSpec]) -> list[str]:
    """HTML with the last lines of the log of every failed run."""
    parts = []
    for spec in specs:
        failure = spec.failure()
        if spec.record() is None and failure is not None:
            log = "\n".join(failure["log"])
            title = f"{spec.name}: status {failure['status']}"
            parts.append(f"<h3>{_text(title)}</h3><pre>{_text(log)}</pre>")
    return ["<h2>Failures</h2>", *parts] if parts else []
