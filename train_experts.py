"""Train experts on the long-tailed split of a data set, one per loss, and calibrate them.

    python create_splits_fixed.py && python train_experts.py
        cross entropy, balanced softmax, logit adjustment and two-stage decoupling
    python train_experts.py --expert ce balsoftmax --dataset cifar10 --data-root DIR

Balanced softmax and logit adjustment with tau 1 are the same loss; use --tau 1.5 or another --seed
to make these experts differ. Exit status: 0 all are trained or kept, 1 some failed, 2 nothing was
started.
"""

from __future__ import annotations

from common.start import run_main

import logging
import sys
from collections.abc import Sequence

from common.console import EXIT_FAILED, EXIT_OK, setup_logging
from common.files import require_writable
from experts.console import console_of
from experts.images import choose
from experts.own_checkpoints import require_own_checkpoints
from experts.schedules import EXPERTS, TWO_STAGES, expert_names
from experts.training import train_all
from experts.training_data import read_training_data
from experts.training_flags import build_parser
from experts.training_plan import describe, training_options

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser(str(__doc__))
    options = parser.parse(argv)
    setup_logging(options.verbose, quiet=not options.verbose, plain=True)
    console = console_of(options)
    names = expert_names(options.expert)
    kinds = {EXPERTS[name] for name in names}
    if TWO_STAGES not in kinds:
        parser.refuse(options, ("stage2_epochs", "stage1_from"), "without decoupling")
    if "logitadjust" not in kinds:
        parser.refuse(options, ("tau",), "without logitadjust")
    if not options.calibrate:
        parser.refuse(options, ("calib_split",), "with --no-calibrate")
    choice = choose(options)
    console.line(choice.describe())
    asked = training_options(options, choice, console)
    require_writable(asked.folder)
    require_own_checkpoints(names, asked)
    data = read_training_data(
        choice, asked.backbone, options.calib_split, options.download, options.num_workers
    )
    for line in describe(names, asked):
        console.line(line)
    if options.dry_run:
        return EXIT_OK
    failed = train_all(names, data, asked, options.verbose)
    done = len(names) - len(failed)
    console.always(f"{done} of {len(names)} experts are in {asked.folder}")
    if failed:
        logger.error("failed: %s", ", ".join(failed))
        return EXIT_FAILED
    console.line("next: python3 recompute_logits.py")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
