"""Check that stored logits are complete, undamaged and computed for the right images.

    python verify_logits.py
        experts' logits of recompute_logits.py, in outputs/logits_fixed, against their splits: 20
        checks, and metrics; without that folder, the logits of main_imagenet.py below outputs
    python verify_logits.py --logits-dir outputs/logits_new --splits val test --json report.json
    python verify_logits.py --csv-dir outputs/rtn/initial_logits_digits_resnet_w4bit_a4bit_seed1005
        one folder of logits of main_imagenet.py, or all such folders below the given one

With --csv-dir, the checks are: file names, sequence of the chunks, shapes, finite values, classes
of the targets, SHA-256 of every file, and whether metadata and files agree. Caches are left out.
The last line says whether the checks passed, and names the folders where one failed. Exit status: 0
all passed, 1 a check failed, 2 there is nothing to check.
"""

from __future__ import annotations

from common.start import run_main

import sys
from collections.abc import Sequence
from pathlib import Path

from common.console import EXIT_FAILED, EXIT_OK, setup_logging, write_stdout
from common.errors import InputError
from experts.verify_flags import build_parser
from experts.verify_job import verify_experts
from logits_io.checks import find_logits_folders, verify_folder
from logits_io.runs import verify_runs

OF_CSV = {"csv_dir", "verbose", "help"}
OUTPUTS = Path("outputs")  # of the other scripts; checked if no flag says what else


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser(str(__doc__))
    options = parser.parse(argv)
    setup_logging(options.verbose, quiet=not options.verbose, plain=True)
    others = sorted({action.dest for action in parser.flags().values()} - OF_CSV)
    if options.csv_dir is not None:
        parser.refuse(options, others, "with --csv-dir")
        return verify_csv(options.csv_dir)
    is_bare = all(getattr(options, name) == parser.get_default(name) for name in others)
    if is_bare and not options.logits_dir.exists() and OUTPUTS.is_dir():
        return verify_csv(OUTPUTS)
    if options.group_by != "threshold":
        parser.refuse(options, ("threshold",), "without --group_by threshold")
    return verify_experts(options)


def verify_csv(root: Path) -> int:
    """Check the folder of CSV logits ``root``, or all below it; returns the exit status.

    Records of runs below it are checked too: what they promise must be there.
    """
    failures, damaged = 0, []
    broken = verify_runs(root)
    try:
        folders = find_logits_folders(root)
    except InputError:
        if not broken:
            raise
        folders = []
    for folder in folders:
        found = verify_folder(folder)
        failures += len(found)
        for line in found:
            write_stdout(f"FAILED {line}")
        if found:
            damaged.append(str(folder))
        else:
            write_stdout(f"ok     {folder}")
    for line in broken:
        write_stdout(f"FAILED {line}")
    failures += len(broken)
    if failures:
        places = [*damaged, *(["the records of runs"] if broken else [])]
        where = f"{len(damaged)} of {len(folders)} folders: {', '.join(places)}"
        word = "failure" if failures == 1 else "failures"
        write_stdout(f"VERIFICATION FAILED: {failures} {word} in {where}")
        return EXIT_FAILED
    write_stdout(f"VERIFICATION PASSED: {len(folders)} folders, 0 failures")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
