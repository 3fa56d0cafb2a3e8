"""The flags of ``train_gating.py`` and ``train_argse.py``."""

from __future__ import annotations

from pathlib import Path

from common.flags import FlagParser, positive_int
from experts.console import add_console_flags, add_logits_dir_flag, add_splits_flags
from experts.gating import GateOptions
from experts.selective import OBJECTIVES, ROUNDS

MODES = ("pretrain", "selective")
SPLITS = ("dataset", "splits_dir")
TRAINING = ("epochs", "batch_size", "lr", "weight_decay")
FITTING = ("gate", "coverage", "objective", "groups", "head_above", "results_dir")


def build_gating_parser(description: str = "") -> FlagParser:
    parser = FlagParser(prog="train_gating.py", usage="%(prog)s [flags]", description=description)
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=MODES[0],
        help="train a gate (pretrain), or fit a rule on a trained one (selective) (default "
        "pretrain)",
    )
    _add_experts_flags(parser)
    add_splits_flags(parser.add_argument_group("splits"), "the splits")
    _add_training_flags(parser)
    _add_fitting_flags(parser)
    _add_output_flags(parser)
    add_console_flags(parser, has_marks=False)
    return parser


def build_argse_parser(description: str = "") -> FlagParser:
    parser = FlagParser(prog="train_argse.py", usage="%(prog)s [flags]", description=description)
    _add_experts_flags(parser)
    add_splits_flags(parser.add_argument_group("splits"), "the splits")
    group = _add_fitting_flags(parser)
    group.add_argument(
        "--rounds",
        type=positive_int,
        default=ROUNDS,
        help=f"rounds that move weight to groups with more errors (default {ROUNDS})",
    )
    _add_output_flags(parser)
    add_console_flags(parser, has_marks=False)
    return parser


def _add_experts_flags(parser: FlagParser) -> None:
    group = parser.add_argument_group("logits")
    add_logits_dir_flag(group)
    group.add_argument(
        "--experts",
        nargs="+",
        help="experts to mix, in this order; quantized ones too (default: the trained ones that "
        "have logits)",
    )


def _add_training_flags(parser: FlagParser) -> None:
    add, default = parser.add_argument_group("training of the gate").add_argument, GateOptions()
    add(
        "--epochs",
        type=positive_int,
        default=default.epochs,
        help="epochs over half of tunev; the other half chooses the best (default 25)",
    )
    add(
        "--batch_size",
        type=positive_int,
        default=default.batch_size,
        help="samples per step, at least 2 (default 128)",
    )
    add("--lr", type=float, default=default.lr, help="learning rate of AdamW (default 0.0008)")
    add(
        "--weight_decay",
        type=float,
        default=default.weight_decay,
        help="weight decay of AdamW (default 0.0002)",
    )


def _add_fitting_flags(parser: FlagParser):
    group = parser.add_argument_group("rule")
    add = group.add_argument
    add(
        "--gate",
        type=Path,
        help="gate of --mode pretrain (default "
        "checkpoints/gating_pretrained/{slug}/gating_pretrained.ckpt)",
    )
    add(
        "--coverage",
        type=float,
        default=0.7,
        help="share of samples to accept, above 0 and at most 1 (default 0.7)",
    )
    add(
        "--objective",
        choices=tuple(OBJECTIVES),
        default="worst",
        help="error among accepted samples that chooses the rule on val: mean over groups or that "
        "of the worst (default worst)",
    )
    add(
        "--groups",
        type=positive_int,
        help="number of groups of nearly equally many classes, by training samples (default: as "
        "--head_above 20 if both groups have two classes then, else 2 groups)",
    )
    add(
        "--head_above",
        type=positive_int,
        help="make classes with more training samples than this the head, the others the tail",
    )
    return group


def _add_output_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add(
        "--output_dir",
        type=Path,
        help="folder of the gate or rule (default checkpoints/{kind}/{slug})",
    )
    add(
        "--results_dir",
        type=Path,
        default=Path("outputs") / "selective",
        help="root folder of tables and figures, which are in {slug}/{kind} below it (default "
        "outputs/selective)",
    )
    add("--seed", type=int, default=42, help="seed of training and intervals (default 42)")
    add(
        "--apply",
        type=Path,
        metavar="FILE",
        help="apply the rule in this file to the logits of --logits_dir, and stop",
    )
    add("--split", default="test", help="with --apply: name of the logits (default test)")
    add(
        "--force",
        action="store_true",
        help="replace files of the same names that this suite did not write",
    )
