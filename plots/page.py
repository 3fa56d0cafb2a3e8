"""Pages that need no network: HTML with tables that sort, pictures inside, style and script."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #2563eb; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 75rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
h1, h2, p, figcaption, .wrap td { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; \
white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 10rem; max-width: 20rem; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
img { max-width: 100%; height: auto; background: #fff; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); font-size: .8rem; }
.failed { color: #dc2626; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.tiles figure { margin: 0; font-size: .85rem; }
.tiles img { width: 6rem; height: 6rem; object-fit: contain; image-rendering: pixelated; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); \
gap: 1rem; }
.beside figure { margin: 0; }
"""
LONG = 32  # characters; longer texts of cells are broken into lines
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


class Link(str):
    """The text of a table cell that leads to ``href``, an address relative to the page."""

    href: str

    def __new__(cls, text: str, href: str) -> Link:
        link = super().__new__(cls, text)
        link.href = href
        return link


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page from pieces of HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"</head><body><main>\n{chr(10).join(parts)}\n</main><script>{SCRIPT}</script>"
        "</body></html>\n"
    )


def escape(value: Any) -> str:
    """A value as text that HTML shows as it is."""
    return html.escape(str(value))


def preformatted(text: str) -> str:
    """A text whose line breaks are kept."""
    return f"<pre>{escape(text)}</pre>"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A table that a click on a column's name sorts.

    Args:
        rows: values by column; of a pair the first sorts; rows of the status failed are red.
    """
    head = "".join(f'<th scope="col"><button>{escape(name)}</button></th>' for name in columns)
    lines = []
    for row in rows:
        cells = "".join(_cell(row[name]) for name in columns)
        kind = ' class="failed"' if row.get("status") == "failed" else ""
        lines.append(f"<tr{kind}>{cells}</tr>")
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    key = value[0] if isinstance(value, tuple) else value
    text = escape(show(value))
    if isinstance(value, Link):
        text = f'<a href="{escape(value.href)}">{text}</a>'
    kind = ' class="long"' if len(show(value)) > LONG else ""
    return f'<td{kind} data-value="{escape("" if key is None else key)}">{text}</td>'


def show(value: Any) -> str:
    """The text of a table cell: a number, or a mean and its deviation, with two decimals."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}"
    if not isinstance(value, tuple):
        return str(value)
    mean, deviation = value
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def picture(description: str, content: bytes, kind: str = "png") -> str:
    """An image from the bytes of its file.

    Args:
        description: what it shows, for those who cannot see it.
        kind: ``png`` or ``jpeg``.
    """
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:image/{kind};base64,{data}">'


def captioned(image: str, caption: str) -> str:
    """An image with a text below it."""
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def drawn(figure: Figure) -> bytes:
    """A matplotlib figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def titled(description: str, figure: Figure) -> str:
    """A matplotlib figure below its description."""
    return f"<h2>{escape(description)}</h2>{picture(description, drawn(figure))}"
