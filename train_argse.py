"""Fit a rule that accepts or rejects samples such that the worst group of classes is served.

    python train_argse.py
        the plug-in rule of train_gating.py, with weights that move to groups with more errors, on
        the gate of train_gating.py --mode pretrain
    python train_argse.py --apply checkpoints/argse/SLUG/argse.ckpt --logits_dir DIR
        apply the rule to new logits: index, prediction, accepted, score

No image is read. The logits must pass verify_logits.py. Exit status: 0 done, 1 logits that fail a
check, 2 wrong usage, or something needed is missing.
"""

from __future__ import annotations

from common.start import run_main

import sys
from collections.abc import Sequence

from common.console import setup_logging
from experts.gate_files import ARGSE
from experts.gating_flags import FITTING, SPLITS
from experts.gating_flags import build_argse_parser as build_parser
from experts.selective_job import apply, selective


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser(str(__doc__))
    options = parser.parse(argv)
    setup_logging(options.verbose, quiet=not options.verbose, plain=True)
    if options.apply is not None:
        unused = ({*FITTING, *SPLITS} - {"results_dir"}) | {"rounds", "output_dir", "seed"}
        parser.refuse(options, sorted(unused), "with --apply")
        return apply(options)
    parser.refuse(options, ("split",), "without --apply")
    return selective(options, ARGSE)


if __name__ == "__main__":
    raise SystemExit(main())
