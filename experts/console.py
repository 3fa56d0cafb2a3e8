"""What the scripts of the experts print."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.console import write_stdout
from common.flags import FlagParser

MARKS = {"pass": "✓", "fail": "✗", "warn": "⚠", "skipped": "-"}
ASCII_MARKS = {"pass": "[ok]", "fail": "[FAIL]", "warn": "[warn]", "skipped": "-"}


class Console:
    """Lines on stdout.

    Args:
        plain: marks in ASCII; they are, too, where stdout cannot show others.
        quiet: only what is printed with ``always``.
    """

    def __init__(self, plain: bool = False, quiet: bool = False):
        self.quiet = quiet
        self.marks = ASCII_MARKS if plain or not _can_show(MARKS) else MARKS

    def line(self, text: str = "") -> None:
        if not self.quiet:
            write_stdout(text)

    def always(self, text: str) -> None:
        write_stdout(text)


def _can_show(marks: dict[str, str]) -> bool:
    try:
        "".join(marks.values()).encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def add_data_flags(parser: FlagParser) -> None:
    """Which data set, and which splits of it."""
    parser.add_argument(
        "--dataset",
        type=str.lower,
        default="auto",
        help="auto, digits, cifar10, cifar100, imagenet",
    )
    parser.add_argument(
        "--data_root", type=Path, help="where CIFAR or ImageNet lies (default data)"
    )
    parser.add_argument(
        "--splits_dir", type=Path, help="of create_splits_fixed.py (default by data set)"
    )


def add_console_flags(parser: FlagParser) -> None:
    """How much is printed, and how."""
    parser.add_argument("--ascii", action="store_true", help="[ok] [FAIL] [warn] for marks")
    parser.add_argument("--quiet", action="store_true", help="print less")
    parser.add_argument("--verbose", action="store_true", help="log more, tracebacks too")


def console_of(options: argparse.Namespace) -> Console:
    return Console(options.ascii, options.quiet)
