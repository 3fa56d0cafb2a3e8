"""The flags of ``train_experts.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.flags import FlagParser
from experts.console import add_console_flags, add_data_flags
from experts.losses import DEFAULT_TAU
from experts.schedules import EXPERTS

DEFAULT_SEED = 42


def build_parser(description: str = "") -> FlagParser:
    parser = FlagParser(prog="train_experts.py", usage="%(prog)s [flags]", description=description)
    _add_expert_flags(parser)
    data = add_data_flags(parser)
    data.add_argument("--download", action="store_true", help="download CIFAR first")
    _add_training_flags(parser)
    _add_calibration_flags(parser)
    _add_run_flags(parser)
    add_console_flags(parser)
    return parser


def _add_expert_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("experts").add_argument
    names = ", ".join([*EXPERTS.values(), "all"])
    add(
        "--expert",
        nargs="+",
        default=["all"],
        type=str.lower,
        help=f"experts to train: {names}, or their long names such as {next(iter(EXPERTS))} "
        "(default all)",
    )
    add(
        "--backbone",
        help="network in front of the classifier: cifar_resnet32 (for small images) or resnet18 "
        "(default resnet18 for imagenet, else cifar_resnet32)",
    )
    add(
        "--output_dir",
        type=Path,
        help="folder of the checkpoints (default checkpoints/experts/{dataset}_lt_if{imb_factor})",
    )


def _add_training_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add(
        "--epochs",
        type=int,
        help="epochs of the first or only stage; the epochs at which the learning rate drops scale "
        "with them (default 256; digits: 40)",
    )
    add(
        "--lr",
        type=float,
        help="learning rate of the first or only stage (default 0.1; digits: 0.05)",
    )
    add("--batch_size", type=int, help="images per training step (default 128; digits: 64)")
    add(
        "--weight_decay",
        type=float,
        help="weight decay (default 0.0001 or 0.0005, depending on expert and data set)",
    )
    add(
        "--dropout",
        type=float,
        help="probability of dropping a channel in the first or only stage, below 1 (default 0.1)",
    )
    add(
        "--tau",
        type=float,
        default=DEFAULT_TAU,
        help="strength of the logit adjustment; 1 makes it equal to balanced softmax (default 1)",
    )
    add(
        "--stage2_epochs",
        type=int,
        help="epochs of the second stage of decoupling, which trains the classifier (default 30)",
    )
    add(
        "--stage1_from",
        help="use the backbone of this expert, trained in the same folder, as the first stage of "
        "decoupling (default: train one)",
    )


def _add_calibration_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("calibration").add_argument
    add(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fit a temperature and save a calibrated checkpoint (default on)",
    )
    add(
        "--calib_split",
        choices=("val", "tunev"),
        default="val",
        help="split that the temperature is fitted on (default val)",
    )


def _add_run_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add("--device", default="auto", help="device: auto, cpu, cuda or cuda:i (default auto)")
    add(
        "--num_workers",
        type=int,
        help="image files decoded in parallel (default: one less than there are cores, at most 4)",
    )
    add("--seed", type=int, default=DEFAULT_SEED, help="seed of all random numbers (default 42)")
    add(
        "--resume",
        action="store_true",
        help="resume an interrupted training after its last finished epoch",
    )
    add(
        "--force",
        action="store_true",
        help="train again experts that are already trained, and replace checkpoints of the same "
        "names that this suite did not write",
    )
    add(
        "--keep_last",
        action="store_true",
        help="keep the checkpoint of the last epoch, which --resume reads, after training",
    )
    add("--dry_run", action="store_true", help="print the plan and stop")
