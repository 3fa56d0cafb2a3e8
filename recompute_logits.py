"""Compute the logits of trained experts on the splits of a data set, without training them again.

    python recompute_logits.py
        the three baselines, and decoupling if it has a checkpoint, on val, test and tunev
    python recompute_logits.py --experts ce --checkpoint-prefix final_calibrated_ --splits test
    python recompute_logits.py --experts ce --quantized ce_w4a4=outputs/rtn/run_X/quantized_model.pt
        an expert before and after quantization
    python recompute_logits.py --inspect FILE

A checkpoint must fit its network exactly. Exit status: 0 everything is written, 1 an expert or a
split failed, 2 wrong usage, or something needed is missing and nothing was computed.
"""

from __future__ import annotations

from common.start import run_main

import shlex
import sys
from collections.abc import Sequence

from common.console import setup_logging
from common.errors import require_known
from experts.checkpoints import PREFIXES
from experts.recompute_command import run_command
from experts.recompute_flags import build_parser
from experts.recompute_report import inspect

OF_INSPECT = {"inspect", "unsafe_load", "ascii", "quiet", "verbose", "help"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser(str(__doc__))
    options = parser.parse(argv)
    setup_logging(options.verbose, quiet=not options.verbose, plain=True)
    if options.inspect is not None:
        others = {action.dest for action in parser.flags().values()} - OF_INSPECT
        parser.refuse(options, sorted(others), "with --inspect")
        return inspect(options.inspect, options.unsafe_load)
    if not options.train_experts:
        unused = ("train_epochs", "train_lr", "seed")
        parser.refuse(options, unused, "without --train_experts")
    require_known("checkpoint-prefix", options.checkpoint_prefix, PREFIXES)
    return run_command(options, shlex.join(["recompute_logits.py", *argv]))


if __name__ == "__main__":
    raise SystemExit(main())
