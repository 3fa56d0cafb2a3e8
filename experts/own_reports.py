"""Reports of ``verify_logits.py``: a former one may be replaced, another file of the user not."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.files import require_writable
from common.marks import has_keys, require_own_file
from experts.verification_report import TABLE_COLUMNS

FIGURE_TITLE = "accuracies of experts by verify_logits.py"
JSON_KEYS = {"format_version", "files", "cross_checks", "failures", "warnings", "exit_code"}


def require_own_reports(options: argparse.Namespace) -> None:
    """Check, without writing, that the requested reports can be written over no other file.

    Raises:
        InputError: one cannot; the text names the file.
    """
    for flag, is_known in (("json", is_report), ("csv", is_table), ("plot", is_figure)):
        path = getattr(options, flag)
        if path is not None:
            require_writable(path.parent)
            what = f"new or a former report of --{flag}"
            require_own_file(path, options.force, is_known, what)


def is_report(path: Path) -> bool:
    """Whether a file is a report of --json."""
    return has_keys(path, JSON_KEYS)


def is_table(path: Path) -> bool:
    """Whether a file is a report of --csv."""
    try:
        with path.open(encoding="utf-8") as handle:
            return handle.readline(1000).rstrip("\n") == ",".join(TABLE_COLUMNS)
    except (OSError, ValueError):
        return False


def is_figure(path: Path) -> bool:
    """Whether a file is a report of --plot."""
    from plots.axes import title_of

    return title_of(path) == FIGURE_TITLE
