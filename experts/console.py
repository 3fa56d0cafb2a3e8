"""The console output of the experts' scripts, and the flags that they share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.console import write_stdout
from common.flags import CLASS_ORDER_HELP, FlagParser

MARKS = {"pass": "✓", "fail": "✗", "warn": "⚠", "skipped": "-"}
ASCII_MARKS = {"pass": "[ok]", "fail": "[FAIL]", "warn": "[warn]", "skipped": "-"}


class Console:
    """Lines on stdout.

    Args:
        plain: print check marks in ASCII, as is also done where stdout cannot show other marks.
        quiet: print only the lines of ``always``.
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


def add_data_flags(parser: FlagParser) -> argparse._ArgumentGroup:
    """Add the flags of the data set and its splits; returns their group."""
    group = parser.add_argument_group("data")
    add_splits_flags(group, "--data_root or the splits")
    group.add_argument(
        "--data_root", type=Path, help="folder of CIFAR or ImageNet (default data for CIFAR)"
    )
    group.add_argument("--class_order", metavar="ORDER", help=CLASS_ORDER_HELP)
    return group


def add_splits_flags(group: argparse._ArgumentGroup, found_from: str) -> None:
    """Add the flags of splits alone.

    Args:
        found_from: what decides on the data set if none is given, in words.
    """
    group.add_argument(
        "--dataset",
        type=str.lower,
        default="auto",
        help=f"data set: auto (found from {found_from}), digits, cifar10, cifar100, imagenet "
        "(default auto)",
    )
    group.add_argument(
        "--splits_dir",
        type=Path,
        help="folder of the splits made by create_splits_fixed.py (default "
        "data/{dataset}_lt_if{imb_factor}_splits_fixed)",
    )


def add_logits_dir_flag(group: argparse._ArgumentGroup) -> None:
    """Add the flag of the folder that ``recompute_logits.py`` writes to by default."""
    group.add_argument(
        "--logits_dir",
        type=Path,
        default=Path("outputs") / "logits_fixed",
        help="folder of the experts' logits (default outputs/logits_fixed)",
    )


def add_console_flags(parser: FlagParser, has_marks: bool = True) -> None:
    """Add the flags of the console output.

    Args:
        has_marks: whether the script prints check marks.
    """
    add = parser.add_argument_group("console").add_argument
    if has_marks:
        add("--ascii", action="store_true", help="print check marks as [ok], [FAIL] and [warn]")
    else:
        parser.set_defaults(ascii=True)
    add("--quiet", action="store_true", help="print only failures and the result")
    add("--verbose", action="store_true", help="log more, with tracebacks of errors")


def console_of(options: argparse.Namespace) -> Console:
    return Console(options.ascii, options.quiet)
