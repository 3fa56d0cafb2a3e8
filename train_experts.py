"""Train experts on the long-tailed split of a data set, one per loss, and calibrate them.

    python create_splits_fixed.py && python train_experts.py
        cross entropy, balanced softmax, logit adjustment and two-stage decoupling
    python train_experts.py --expert ce balsoftmax --dataset cifar10 --data-root DIR

Balanced softmax and logit adjustment with tau 1 are the same loss; take --tau 1.5 or another --seed
where experts shall differ. Exit status: 0 all are trained or kept, 1 some failed, 2 nothing was started.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from common.console import EXIT_FAILED, EXIT_OK, run_main, setup_logging
from common.files import require_writable
from common.flags import FlagParser
from experts.console import add_console_flags, add_data_flags, console_of
from experts.images import choose
from experts.losses import DEFAULT_TAU
from experts.schedules import EXPERTS, TWO_STAGES, expert_names
from experts.training import train_all
from experts.training_data import read_training_data
from experts.training_plan import describe, training_options

DEFAULT_SEED = 42

logger = logging.getLogger(__name__)


def build_parser() -> FlagParser:
    parser = FlagParser(prog="train_experts.py", description=__doc__)
    names = ", ".join([*EXPERTS.values(), "all"])
    parser.add_argument(
        "--expert", nargs="+", default=["all"], type=str.lower, help=f"{names}, or the long names"
    )
    add_data_flags(parser)
    parser.add_argument("--download", action="store_true", help="fetch CIFAR first")
    parser.add_argument("--output_dir", type=Path, help="default checkpoints/experts/{slug}")
    parser.add_argument(
        "--backbone", help="cifar_resnet32 (for small images), resnet18 (imagenet's default)"
    )
    parser.add_argument("--epochs", type=int, help="milestones move along (default by data set)")
    parser.add_argument("--lr", type=float, help="of the first stage")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--weight_decay", type=float)
    parser.add_argument("--dropout", type=float, help="of channels, 0 to 1 (default 0.1)")
    parser.add_argument(
        "--tau", type=float, default=DEFAULT_TAU, help="of logit adjustment (default 1)"
    )
    parser.add_argument("--stage2_epochs", type=int, help="of the head of decoupling (default 30)")
    parser.add_argument(
        "--stage1_from", help="take the backbone of this expert, in the same folder, for decoupling"
    )
    parser.add_argument("--calib_split", choices=("val", "tunev"), default="val")
    parser.add_argument("--calibrate", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--num_workers", type=int, help="image files decoded at once")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="default 42")
    parser.add_argument("--resume", action="store_true", help="go on where a run was interrupted")
    parser.add_argument("--force", action="store_true", help="train what is there anew")
    parser.add_argument("--keep_last", action="store_true", help="keep what --resume needs")
    parser.add_argument("--dry_run", action="store_true", help="print the plan only")
    add_console_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser()
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
