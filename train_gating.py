"""Mix experts by a trained gate, and accept or reject samples such that rare classes are served.

    python train_gating.py --mode pretrain
        train the gate on the experts' logits of tunev, and compare it with its baselines on val
    python train_gating.py --mode selective
        fit the plug-in rule on tunev and val, and measure it on test: risk against coverage
    python train_gating.py --apply checkpoints/gating_selective/SLUG/gating_selective.ckpt
        apply the rule to the logits of --logits_dir: index, prediction, accepted, score

No image is read. The logits must pass verify_logits.py. Exit status: 0 done, 1 logits that fail a
check, 2 wrong usage, or something needed is missing.
"""

from __future__ import annotations

from common.start import run_main

import sys
from collections.abc import Sequence

from common.console import setup_logging
from experts.gate_files import SELECTIVE
from experts.gating_flags import FITTING, SPLITS, TRAINING
from experts.gating_flags import build_gating_parser as build_parser
from experts.gating_job import pretrain
from experts.selective_job import apply, selective


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser(str(__doc__))
    options = parser.parse(argv)
    setup_logging(options.verbose, quiet=not options.verbose, plain=True)
    if options.apply is not None:
        unused = ({*FITTING, *SPLITS, *TRAINING} - {"results_dir"}) | {"mode", "output_dir", "seed"}
        parser.refuse(options, sorted(unused), "with --apply")
        return apply(options)
    parser.refuse(options, ("split",), "without --apply")
    if options.mode == "pretrain":
        parser.refuse(options, FITTING, "with --mode pretrain")
        return pretrain(options)
    parser.refuse(options, TRAINING, "with --mode selective")
    return selective(options, SELECTIVE)


if __name__ == "__main__":
    raise SystemExit(main())
