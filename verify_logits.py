"""Are these logits what they claim to be? The last line and the exit status say so.

    python verify_logits.py
        the experts' logits of recompute_logits.py, against their splits: 20 checks, figures by expert
    python verify_logits.py --logits-dir outputs/logits_new --splits val test --json report.json
    python verify_logits.py --csv-dir outputs/rtn/initial_logits_digits_resnet_w4bit_a4bit_seed1005
        one folder of main_imagenet.py, or every folder of logits below the one given

With --csv-dir: names, sequence of the chunks, shapes, finiteness, classes of the targets, the SHA-256 of
every file, and the metadata against the files. Exit status: 0 all is well, 1 something is not (said on
stdout), 2 there is nothing to check.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.console import EXIT_FAILED, EXIT_OK, run_main, setup_logging, write_stdout
from common.flags import FlagParser
from experts.console import add_console_flags, add_data_flags
from experts.metrics import DEFAULT_THRESHOLD, GROUP_RULES
from experts.splits import SPLITS
from experts.verification import FAIL, METRICS, WARN
from experts.verify_job import verify_experts
from logits_io.checks import find_logits_folders, verify_folder

DEFAULT_SPLITS = ("val", "test", "tunev")
OF_CSV = {"csv_dir", "verbose", "help"}


def build_parser() -> FlagParser:
    parser = FlagParser(prog="verify_logits.py", description=__doc__)
    parser.add_argument(
        "--csv_dir", type=Path, help="check CSV logits instead: a folder, or one above such folders"
    )
    parser.add_argument("--logits_dir", type=Path, default=Path("outputs") / "logits_fixed")
    add_data_flags(parser)
    parser.add_argument("--experts", nargs="+", help="these must exist (default all that do)")
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=list(DEFAULT_SPLITS),
        help="default val test tunev",
    )
    parser.add_argument(
        "--min_accuracy", type=float, default=0.60, help="of check 13, 0 to 1 (default 0.6)"
    )
    parser.add_argument(
        "--accuracy_metric",
        choices=METRICS,
        default=METRICS[0],
        help="of check 13 (default accuracy)",
    )
    parser.add_argument(
        "--accuracy_check",
        choices=(WARN, FAIL, "off"),
        default=WARN,
        help="check 13 (default warn)",
    )
    parser.add_argument(
        "--group_by",
        choices=GROUP_RULES,
        default=GROUP_RULES[0],
        help="head, medium, tail: thirds of the classes (default); more than --threshold training "
        "samples or not; above 100, 20 to 100, fewer",
    )
    parser.add_argument("--threshold", type=int, default=DEFAULT_THRESHOLD, help="of --group-by")
    parser.add_argument(
        "--against_data", choices=("auto", "yes", "no"), default="auto", help="labels of the images"
    )
    parser.add_argument("--strict", action="store_true", help="a warning is a failure")
    parser.add_argument("--json", type=Path, help="write a report")
    parser.add_argument("--csv", type=Path, help="write a row per file")
    parser.add_argument("--plot", type=Path, help="draw the accuracies as bars (PNG)")
    add_console_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser()
    options = parser.parse(argv)
    setup_logging(options.verbose, quiet=not options.verbose, plain=True)
    if options.csv_dir is not None:
        others = {action.dest for action in parser.flags().values()} - OF_CSV
        parser.refuse(options, sorted(others), "with --csv-dir")
        return verify_csv(options.csv_dir)
    if options.group_by != "threshold":
        parser.refuse(options, ("threshold",), "without --group_by threshold")
    return verify_experts(options)


def verify_csv(root: Path) -> int:
    """Check the folders of logits at or below a folder; the exit status."""
    failures = damaged = 0
    folders = find_logits_folders(root)
    for folder in folders:
        found = verify_folder(folder)
        failures += len(found)
        damaged += bool(found)
        for line in found:
            write_stdout(f"FAILED {line}")
        if not found:
            write_stdout(f"ok     {folder}")
    if failures:
        write_stdout(
            f"VERIFICATION FAILED: {failures} failures in {damaged} of {len(folders)} folders"
        )
        return EXIT_FAILED
    write_stdout(f"VERIFICATION PASSED: {len(folders)} folders, 0 failures")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
