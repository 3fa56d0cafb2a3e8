"""The flags of ``recompute_logits.py``."""

from __future__ import annotations

from pathlib import Path

from common.flags import FlagParser
from experts.checkpoints import PREFIXES
from experts.console import add_console_flags, add_data_flags
from experts.recompute_report import DEFAULT_OUTPUT
from experts.splits import SPLITS

DEFAULT_SPLITS = ("val", "test", "tunev")
DEFAULT_BATCH = 128


def build_parser(description: str = "") -> FlagParser:
    parser = FlagParser(
        prog="recompute_logits.py", usage="%(prog)s [flags]", description=description
    )
    _add_expert_flags(parser)
    _add_data_flags(parser)
    _add_training_flags(parser)
    _add_output_flags(parser)
    _add_run_flags(parser)
    add_console_flags(parser)
    return parser


def _add_expert_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("experts").add_argument
    add(
        "--experts",
        nargs="+",
        type=str.lower,
        help="experts to run, by name or key (ce ...); each must have a checkpoint (default all; "
        "decoupling only if it has one)",
    )
    add(
        "--quantized",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="quantized_model.pt files to run, alone unless --experts is given",
    )
    add(
        "--experts_dir",
        type=Path,
        default=Path("checkpoints") / "experts",
        help="root folder of the checkpoints (default checkpoints/experts)",
    )
    add(
        "--checkpoint_prefix",
        default=PREFIXES[0],
        help=f"kind of checkpoint: {', '.join(PREFIXES)} (default {PREFIXES[0]})",
    )
    add(
        "--backbone",
        help="backbone of the experts (default: as the checkpoint says, else cifar_resnet32)",
    )
    add(
        "--apply_temperature",
        choices=("auto", "yes", "no"),
        default="auto",
        help="divide the logits by the temperature of the checkpoint; auto: only with "
        "--checkpoint_prefix final_calibrated_ (default auto)",
    )
    add(
        "--allow_fallback_names",
        action="store_true",
        help="also accept checkpoints named {expert}.pth or expert_{expert}.pth",
    )
    add(
        "--unsafe_load",
        action="store_true",
        help="read checkpoints that must be unpickled, which runs any code in them",
    )


def _add_data_flags(parser: FlagParser) -> None:
    data = add_data_flags(parser)
    data.add_argument("--download", action="store_true", help="download CIFAR first")
    data.add_argument(
        "--splits",
        nargs="+",
        default=list(DEFAULT_SPLITS),
        choices=SPLITS,
        help="splits to compute the logits of (default val test tunev)",
    )
    data.add_argument(
        "--allow_size_mismatch",
        action="store_true",
        help="warn, instead of stopping, if a split does not have the recorded size",
    )


def _add_training_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("training of missing experts").add_argument
    add("--train_experts", action="store_true", help="first train experts without a checkpoint")
    add(
        "--train_epochs",
        type=int,
        help="epochs of their first or only stage (default 256; digits: 40)",
    )
    add(
        "--train_lr",
        type=float,
        help="learning rate of their first or only stage (default 0.1; digits: 0.05)",
    )
    add("--seed", type=int, default=42, help="seed of their training (default 42)")


def _add_output_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add(
        "--output_dir",
        type=Path,
        default=DEFAULT_OUTPUT,
        help="folder of the logits, a different one for each data set (default "
        "outputs/logits_fixed)",
    )
    add(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="type of the stored logits (default float32)",
    )
    add("--csv", action="store_true", help="write the logits as a folder of CSV files, too")
    add("--skip_existing", action="store_true", help="keep logits that are up to date")
    add(
        "--force",
        action="store_true",
        help="replace files of the same names that this suite did not write, checkpoints of "
        "--train_experts too",
    )


def _add_run_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add("--device", default="auto", help="device: auto, cpu, cuda or cuda:i (default auto)")
    add(
        "--batch_size",
        type=int,
        default=DEFAULT_BATCH,
        help="images per forward pass (default 128)",
    )
    add(
        "--no_auto_batch",
        action="store_true",
        help="fail when CUDA is out of memory, instead of halving the batch size",
    )
    add(
        "--num_workers",
        type=int,
        help="image files decoded in parallel (default: one less than there are cores, at most 4)",
    )
    add("--fail_fast", action="store_true", help="stop at the first failure")
    add("--dry_run", action="store_true", help="print the plan and stop")
    add("--inspect", type=Path, metavar="FILE", help="describe this checkpoint and stop")
