"""Check that stored logits are complete, undamaged and computed for the right images.

    python verify_logits.py
        experts' logits of recompute_logits.py against their splits: 20 checks, and metrics
    python verify_logits.py --logits-dir outputs/logits_new --splits val test --json report.json
    python verify_logits.py --csv-dir outputs/rtn/initial_logits_digits_resnet_w4bit_a4bit_seed1005
        one folder of logits of main_imagenet.py, or all such folders below the given one

With --csv-dir, the checks are: file names, sequence of the chunks, shapes, finite values, classes
of the targets, SHA-256 of every file, and whether metadata and files agree. The last line says
whether the checks passed. Exit status: 0 all passed, 1 a check failed, 2 there is nothing to check.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.console import EXIT_FAILED, EXIT_OK, run_main, setup_logging, write_stdout
from experts.verify_flags import build_parser
from experts.verify_job import verify_experts
from logits_io.checks import find_logits_folders, verify_folder

OF_CSV = {"csv_dir", "verbose", "help"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser(str(__doc__))
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
    """Check the folder of CSV logits ``root``, or all below it; returns the exit status."""
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
