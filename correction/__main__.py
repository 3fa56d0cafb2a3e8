"""Fit, select and apply a correction to logits that another program wrote.

    python -m correction --quantized a.csv --fullprecision b.csv --fit 0.3
        a row per sample, a column per class; 30 % of the rows fit, the others are evaluated
    python -m correction --quantized all.npz --fullprecision all.npz
        one file with the arrays quantized, fullprecision and, if known, labels
    python -m correction --quantized q/ --fullprecision f/ --schema labels=y ids=image 'logits=c*'
        folders of parts, with columns of other names

The grid, its selection, the baselines and the tables are those of main_imagenet.py. Without labels,
agreement and KL divergence are given. Exit status: 0 done, 2 wrong usage or unusable input, 3 done
but something could not be saved, 130 interrupted.
"""

from __future__ import annotations

from common.start import run_main

import sys
from collections.abc import Sequence

from common.console import (
    EXIT_OK,
    EXIT_UNSAVED,
    collected_warnings,
    setup_logging,
    write_stdout,
)
from pipeline.closing import given_text
from pipeline.given_job import prepare_given
from pipeline.given_options import build_parser, given_options
from pipeline.given_run import run_given

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    found = build_parser(str(__doc__)).parse(argv)
    setup_logging(found.verbose, found.quiet)
    with collected_warnings() as warnings:
        job = prepare_given(given_options(found), argv)
        outcome = run_given(job)
    write_stdout(given_text(job, outcome.results, found.table, warnings))
    return EXIT_UNSAVED if outcome.unsaved else EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
