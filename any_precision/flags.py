"""The flags of ``train_any_precision.py``, and the configuration that they make."""

from __future__ import annotations

import argparse
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from any_precision.config import Resolver, read_file
from any_precision.settings import SIMPLE, VANILLA, Config, Optimizer, Validation
from common.errors import InputError, require_known
from common.flags import CLASS_ORDER_HELP, FlagParser

MODELS = ("ResNet",)
FLAG_FIELDS = {  # flag -> field of the configuration
    "optimizer": "name",
    "lr": "start_lr",
    "loss": "loss_name",
}
FIELD_FLAGS = {field: flag for flag, field in FLAG_FIELDS.items()}
RUN_FIELDS = ("experiments_dir", "data_root")  # folders, which --eval_only may change as well
OF_RANDOM_VALIDATION = (
    "num_bitwidths",
    "sampling",
    "anchors",
    "fixed_val_configs",
    "weighting",
    "bin_width",
    "knee_tolerance",
    "plot_every",
    "num_test_configs",
)

logger = logging.getLogger(__name__)


def build_parser(description: str = "") -> FlagParser:
    """Make the parser; the defaults in its help are those without ``--yaml_path``."""
    parser = FlagParser(
        prog="train_any_precision.py", usage="%(prog)s [flags]", description=description
    )
    _add_data_flags(parser)
    _add_model_flags(parser)
    _add_training_flags(parser)
    _add_validation_flags(parser)
    _add_output_flags(parser)
    _add_run_flags(parser)
    return parser


def _add_data_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add(
        "--dataset",
        type=str.lower,
        help="data set: digits, cifar10, cifar100 or imagenet (default digits)",
    )
    add("--data_root", help="folder of CIFAR or ImageNet (default data)")
    add("--class_order", metavar="ORDER", help=CLASS_ORDER_HELP)
    add("--download", action="store_true", help="download CIFAR first")
    add("--batch_size", type=int, help="images per batch (default 64)")


def _add_model_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", default=MODELS[0], help="family of networks, only ResNet (default ResNet)")
    add(
        "--model_variant",
        help="network: resnet8, resnet20, resnet32, resnet18, resnet34 or resnet50 (default "
        "resnet8)",
    )
    add(
        "--quantization_method",
        default="any_precision",
        help="section of the configuration that sets the quantizers: any_precision, dorefa, pact, "
        "lsq, or one of the file (default any_precision)",
    )
    add(
        "--bitwidth_options",
        type=int,
        nargs="+",
        help="bits that a layer can have, each 2 to 16 or 32 (default 2 4 8; dorefa, pact, lsq: 4 "
        "8)",
    )
    add(
        "--weight_quantization",
        help="quantizer of the weights: dorefa or lsq (default dorefa; lsq: lsq)",
    )
    add(
        "--activation_quantization",
        help="quantizer of the activations: dorefa, pact, lsq or lsqplus (default dorefa; pact: "
        "pact; lsq: lsq)",
    )
    add(
        "--switchable_bn",
        help="own: one batch norm per bitwidth; off: one for all (default own; dorefa, pact, lsq: "
        "off)",
    )


def _add_training_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add(
        "--training_method",
        help="joint_quantization, or vanilla_single_precision_training for a single bitwidth "
        "(default joint_quantization)",
    )
    add(
        "--joint_quantization_batch_size",
        type=int,
        help="passes over each batch, each at other random bits (default 2)",
    )
    add(
        "--distillation",
        help="none, or recursive: train each bitwidth on the outputs of the next higher one "
        "(default none)",
    )
    add("--loss", help="cross_entropy or label_smoothing_ce (default cross_entropy)")
    add("--optimizer", help="optimizer: AdamW, Adam or SGD (default AdamW)")
    add("--epochs", type=int, help="training epochs (default 10)")
    add("--lr", type=float, help="learning rate of the first epoch (default 0.002)")
    add("--weight_decay", type=float, help="weight decay (default 0.0001)")
    add("--clip_grad", type=float, help="largest norm of the gradient (default 5)")


def _add_validation_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("validation and test").add_argument
    add(
        "--validation_function",
        help="random_bitwidths, or simple_validation with all layers at the most bits (default "
        "random_bitwidths)",
    )
    add("--num_bitwidths", type=int, help="random assignments in each validation (default 4)")
    add(
        "--sampling",
        help="draw each layer's bits uniformly (uniform), or spread the averages of the "
        "assignments from low to high (spread) (default uniform)",
    )
    add(
        "--anchors",
        help="epochs that also evaluate all layers at equal bits: those with a plot (plot), always "
        "or never (default plot)",
    )
    add(
        "--fixed_val_configs",
        action="store_const",
        const=True,
        help="draw the same random assignments in every epoch (default off)",
    )
    add(
        "--weighting",
        help="weight of a layer in the average bitwidth: equal (layers), its number of parameters "
        "(params) or its multiply-adds (macs) (default layers)",
    )
    add(
        "--bin_width",
        type=float,
        help="width, in bits, of the bins that average accuracies (default 0.1)",
    )
    add(
        "--knee_tolerance",
        type=float,
        help="accuracy (0 to 1) that the knee, the smallest sufficient bitwidth, may lose (default "
        "0.01)",
    )
    add("--plot_every", type=int, help="epochs from one plot to the next (default 5)")
    add(
        "--test_mode",
        choices=("off", "final", "every_epoch"),
        default="final",
        help="test never, the best epoch at the end, or every epoch (default final)",
    )
    add(
        "--num_test_configs",
        type=int,
        default=10,
        help="random assignments in the test (default 10)",
    )


def _add_output_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--experiments_dir", help="root folder of all runs (default experiments)")
    add("--run_name", help="name of the folder of the run (default: time and network)")
    add(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write TensorBoard files (default on)",
    )
    add("--no_tensorboard", dest="tensorboard", action="store_false", help=argparse.SUPPRESS)


def _add_run_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add(
        "--yaml_path",
        type=Path,
        help="configuration file, YAML or JSON; flags override it (default: built in, for digits)",
    )
    add("--strict_config", action="store_true", help=argparse.SUPPRESS)  # what is always done now
    add("--gpu", type=int, default=0, help="index of the GPU; -1: the CPU (default 0)")
    add("--device", help="device instead of --gpu: cpu, cuda or cuda:i")
    add("--threads", type=int, help="CPU threads (default: as torch chooses)")
    add("--seed", type=int, help="seed of all random numbers (default 42)")
    add(
        "--resume",
        type=Path,
        help="folder of an interrupted run to continue, or models/last_epoch.pth in it",
    )
    add(
        "--force",
        action="store_true",
        help="replace a run of this name, and files of yours where the run writes its own",
    )
    add("--eval_only", type=Path, help="checkpoint to test; nothing is trained")
    add(
        "--dry_run",
        action="store_true",
        help="print the configuration and the quantized layers, and stop",
    )
    add("--verbose", action="store_true", help="log more")


def given_flags(options: argparse.Namespace) -> dict[str, Any]:
    """The given flags that set a field of the configuration: name of the field -> value."""
    names = {f.name for part in (Config, Validation, Optimizer) for f in fields(part)}
    found = {}
    for flag, value in vars(options).items():
        name = FLAG_FIELDS.get(flag, flag)
        if value is not None and name in names:
            found[name] = value
    if "bitwidth_options" in found:
        found["bitwidth_options"] = list(found["bitwidth_options"])
    return found


def resolve(options: argparse.Namespace) -> Config:
    """The configuration that the flags and their file describe.

    Raises:
        InputError: a flag, the file or their combination is unusable.
    """
    require_known("model", options.model, MODELS)
    content = read_file(options.yaml_path) if options.yaml_path else {}
    resolver = Resolver()
    config = resolver.resolve(content, given_flags(options), options.quantization_method)
    for text in resolver.warnings:
        logger.warning(text)
    return config


def check_flags(parser: FlagParser, options: argparse.Namespace) -> None:
    """Check the flags outside the configuration, and that no given flag is without effect.

    Raises:
        InputError: one is out of range, or has no effect.
    """
    if options.num_test_configs < 1:
        raise InputError(f"num_test_configs must be at least 1, got {options.num_test_configs}")
    if options.threads is not None and options.threads < 1:
        raise InputError(f"threads must be at least 1, got {options.threads}")
    if options.eval_only is not None:
        ours = [
            FIELD_FLAGS.get(name, name) for name in given_flags(options) if name not in RUN_FIELDS
        ]
        others = ("resume", "yaml_path", "quantization_method", "strict_config", "test_mode")
        parser.refuse(options, [*ours, *others], "with --eval_only, whose checkpoint sets it")
    if options.resume is not None:
        parser.refuse(options, ("run_name",), "with --resume, which continues in its folder")
    if options.test_mode == "off":
        parser.refuse(options, ("num_test_configs",), "with --test_mode off")
    if options.device is not None:
        parser.refuse(options, ("gpu",), "with --device")
    if options.validation_function == SIMPLE:
        parser.refuse(options, OF_RANDOM_VALIDATION, f"with {SIMPLE}")
    if options.training_method == VANILLA or options.distillation == "recursive":
        parser.refuse(
            options, ("joint_quantization_batch_size",), "where the bits are not drawn at random"
        )
