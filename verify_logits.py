"""Are these logits files what they claim to be? The exit status says so.

    python verify_logits.py --csv-dir outputs/rtn/initial_logits_digits_resnet_w4bit_a4bit_seed1005
        one folder of main_imagenet.py
    python verify_logits.py --csv-dir outputs
        every folder of logits below it

Checked: names, sequence of the chunks, shapes, finiteness, classes of the targets, the SHA-256 of every
file, and the metadata against the files. Exit status: 0 all is well, 1 something is not (file and row
on stdout), 2 there is nothing to check.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cli import FlagParser
from common import EXIT_FAILED, EXIT_OK, run_main, write_stdout
from logits_io.checks import find_logits_folders, verify_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = FlagParser(prog="verify_logits.py", description=__doc__)
    parser.add_argument(
        "--csv_dir", type=Path, required=True, help="a folder of logits, or one above such folders"
    )
    options = parser.parse(argv)
    failures = 0
    for folder in find_logits_folders(options.csv_dir):
        found = verify_folder(folder)
        failures += len(found)
        for line in found:
            write_stdout(f"FAILED {line}")
        if not found:
            write_stdout(f"ok     {folder}")
    return EXIT_FAILED if failures else EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
