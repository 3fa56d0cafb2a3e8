"""The flags of ``verify_logits.py``."""

from __future__ import annotations

from pathlib import Path

from common.flags import FlagParser
from experts.console import add_console_flags, add_data_flags, add_logits_dir_flag
from experts.metrics import DEFAULT_THRESHOLD, GROUP_RULES
from experts.splits import SPLITS
from experts.verification import FAIL, METRICS, WARN

DEFAULT_SPLITS = ("val", "test", "tunev")


def build_parser(description: str = "") -> FlagParser:
    parser = FlagParser(prog="verify_logits.py", usage="%(prog)s [flags]", description=description)
    _add_logits_flags(parser)
    data = add_data_flags(parser)
    data.add_argument(
        "--against_data",
        choices=("auto", "yes", "no"),
        default="auto",
        help="compare the targets with the labels of the data set; auto: if it is on disk (default "
        "auto)",
    )
    _add_check_flags(parser)
    _add_report_flags(parser)
    add_console_flags(parser)
    return parser


def _add_logits_flags(parser: FlagParser) -> None:
    group = parser.add_argument_group("logits")
    add_logits_dir_flag(group)
    add = group.add_argument
    add("--experts", nargs="+", help="experts to check; each must exist (default all that do)")
    add(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=list(DEFAULT_SPLITS),
        help="splits to check for every expert (default val test tunev)",
    )
    add(
        "--csv_dir",
        type=Path,
        help="check this folder of CSV logits, or all such folders below it, instead of experts",
    )


def _add_check_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("checks").add_argument
    add(
        "--min_accuracy",
        type=float,
        default=0.60,
        help="accuracy that check 13 demands, 0 to 1 (default 0.6)",
    )
    add(
        "--accuracy_metric",
        choices=METRICS,
        default=METRICS[0],
        help="kind of accuracy that check 13 compares (default accuracy)",
    )
    add(
        "--accuracy_check",
        choices=(WARN, FAIL, "off"),
        default=WARN,
        help="make check 13 a warning or a failure, or switch it off (default warn)",
    )
    add(
        "--group_by",
        choices=GROUP_RULES,
        default=GROUP_RULES[0],
        help="rule for head, medium and tail classes: thirds of the classes (thirds); more than "
        "--threshold training samples or not, without medium (threshold); more than 100, 20 to "
        "100, or fewer than 20 training samples (shots) (default thirds)",
    )
    add(
        "--threshold",
        type=int,
        default=DEFAULT_THRESHOLD,
        help="number of training samples for --group_by threshold (default 20)",
    )
    add("--strict", action="store_true", help="count warnings as failures")


def _add_report_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("reports").add_argument
    add("--json", type=Path, help="write all results to this JSON file")
    add("--csv", type=Path, help="write one row per logits file to this CSV file")
    add("--plot", type=Path, help="draw the accuracies as bars to this PNG file")
    add(
        "--force",
        action="store_true",
        help="let a report replace any file, not only a former report of its kind",
    )
