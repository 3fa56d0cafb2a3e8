"""Names in CSV tables: a spreadsheet must not compute what is the name of something."""

from __future__ import annotations

import re
from typing import Any

FORMULA = re.compile(r"'*[=+\-@\t\r]")  # the beginning of a cell that a spreadsheet computes
MARK = "'"


def plain_cell(value: Any) -> Any:
    """A value as a cell of a table: empty for None, and a text that looks like a formula is marked.

    The mark is an apostrophe in front of it. Numbers, also those in a text, are as they are.
    """
    if value is None:
        return ""
    is_marked = isinstance(value, str) and FORMULA.match(value) and not is_number(value)
    return f"{MARK}{value}" if is_marked else value


def cell_text(cell: Any) -> Any:
    """The value of a cell that ``plain_cell`` wrote: a text loses its mark."""
    is_marked = isinstance(cell, str) and cell.startswith(MARK) and FORMULA.match(cell)
    return cell[len(MARK) :] if is_marked else cell


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
