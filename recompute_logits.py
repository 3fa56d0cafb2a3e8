"""Logits of trained experts on the splits of a data set, without training anything again.

    python recompute_logits.py
        the three baselines, which must be there, and decoupling if it is, on val, test and tunev
    python recompute_logits.py --experts ce_baseline --checkpoint-prefix final_calibrated_ --splits test
    python recompute_logits.py --experts ce --quantized ce_w4a4=outputs/rtn/run_X/quantized_model.pt
        an expert before and after quantization
    python recompute_logits.py --inspect FILE

A checkpoint is loaded exactly or not at all. Exit status: 0 everything asked for is written, 1 an expert
or a split failed, 2 wrong usage, or something that is needed is missing and nothing was computed.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from common.console import run_main, setup_logging
from common.errors import require_known
from common.flags import FlagParser
from experts.checkpoints import PREFIXES
from experts.console import add_console_flags, add_data_flags
from experts.recompute_command import run_command
from experts.recompute_report import DEFAULT_OUTPUT, inspect
from experts.splits import SPLITS

DEFAULT_SPLITS = ("val", "test", "tunev")
DEFAULT_BATCH = 128

OF_INSPECT = {"inspect", "unsafe_load", "ascii", "quiet", "verbose", "help"}


def build_parser() -> FlagParser:
    parser = FlagParser(prog="recompute_logits.py", description=__doc__)
    parser.add_argument(
        "--experts",
        nargs="+",
        type=str.lower,
        help="names or keys (ce ...), which must be there (default all; decoupling may be missing)",
    )
    parser.add_argument(
        "--quantized", nargs="+", default=[], metavar="[NAME=]FILE", help="quantized_model.pt"
    )
    parser.add_argument("--checkpoint_prefix", default=PREFIXES[0], help=", ".join(PREFIXES))
    parser.add_argument(
        "--experts_dir",
        type=Path,
        default=Path("checkpoints") / "experts",
        help="default checkpoints/experts",
    )
    add_data_flags(parser)
    parser.add_argument("--download", action="store_true", help="fetch CIFAR first")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=DEFAULT_OUTPUT,
        help="default outputs/logits_fixed; one per data set",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        default=list(DEFAULT_SPLITS),
        choices=SPLITS,
        help="default val test tunev",
    )
    parser.add_argument("--batch_size", type=int, default=DEFAULT_BATCH, help="default 128")
    parser.add_argument("--backbone", help="default: what the checkpoint says, else cifar_resnet32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--num_workers", type=int, help="image files decoded at once")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of the stored logits"
    )
    parser.add_argument(
        "--apply_temperature",
        choices=("auto", "yes", "no"),
        default="auto",
        help="auto: for final_calibrated_",
    )
    parser.add_argument(
        "--no_auto_batch", action="store_true", help="fail when CUDA is out of memory"
    )
    parser.add_argument(
        "--allow_fallback_names", action="store_true", help="take {expert}.pth, expert_{expert}.pth"
    )
    parser.add_argument(
        "--allow_size_mismatch", action="store_true", help="warn of splits of another size"
    )
    parser.add_argument(
        "--unsafe_load", action="store_true", help="unpickle checkpoints: runs the code in them"
    )
    parser.add_argument("--skip_existing", action="store_true", help="keep what is up to date")
    parser.add_argument("--csv", action="store_true", help="a folder of CSV logits as well")
    parser.add_argument("--train_experts", action="store_true", help="train those that are missing")
    parser.add_argument("--train_epochs", type=int)
    parser.add_argument("--train_lr", type=float)
    parser.add_argument("--fail_fast", action="store_true", help="stop at the first failure")
    parser.add_argument("--dry_run", action="store_true", help="print the plan only")
    parser.add_argument("--inspect", type=Path, metavar="FILE", help="describe a checkpoint only")
    parser.add_argument("--seed", type=int, default=42, help="of --train-experts")
    add_console_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser()
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
