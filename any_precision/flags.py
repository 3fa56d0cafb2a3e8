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
from common.flags import FlagParser

MODELS = ("ResNet",)
FLAG_FIELDS = {  # flag -> field of the configuration
    "optimizer": "name",
    "lr": "start_lr",
    "loss": "loss_name",
}
FIELD_FLAGS = {field: flag for flag, field in FLAG_FIELDS.items()}
RUN_FIELDS = ("experiments_dir", "data_root")  # where things lie, for a checkpoint as well
OF_RANDOM_VALIDATION = (
    *("num_bitwidths", "sampling", "anchors", "fixed_val_configs", "weighting", "bin_width"),
    *("knee_tolerance", "plot_every", "num_test_configs"),
)

logger = logging.getLogger(__name__)


def build_parser(description: str = "") -> FlagParser:
    parser = FlagParser(prog="train_any_precision.py", description=description)
    add = parser.add_argument
    add("--model", default=MODELS[0], help="ResNet")
    add("--model_variant", help="resnet8 (default), 20, 32, 18, 34, 50")
    add("--yaml_path", type=Path, help="configuration, YAML or JSON")
    add("--quantization_method", default="any_precision", help="a section below quantization")
    add("--gpu", type=int, default=0, help="index; -1: the CPU")
    add("--device", help="cpu, cuda, cuda:N; overrides --gpu")
    add("--loss", help="cross_entropy, label_smoothing_ce")
    add("--dataset", type=str.lower, help="digits (default), cifar10, cifar100, imagenet")
    add("--data_root")
    add("--download", action="store_true", help="fetch CIFAR first")
    for name in ("epochs", "batch_size", "joint_quantization_batch_size", "num_bitwidths"):
        add(f"--{name}", type=int)
    for name in ("lr", "weight_decay", "clip_grad"):
        add(f"--{name}", type=float)
    add("--optimizer", help="AdamW, Adam, SGD")
    add("--bitwidth_options", type=int, nargs="+", help="2..16, 32")
    for name in ("training_method", "validation_function", "weight_quantization"):
        add(f"--{name}")
    add("--activation_quantization", help="dorefa, pact, lsq, lsqplus")
    add("--switchable_bn", help="own, off")
    add("--distillation", help="none, recursive")
    add("--sampling", help="uniform, spread")
    add("--anchors", help="plot, always, never")
    add("--fixed_val_configs", action="store_const", const=True, help="the same in every epoch")
    add("--weighting", help="of the average: layers, params, macs")
    add("--bin_width", type=float)
    add("--knee_tolerance", type=float)
    add("--plot_every", type=int, help="epochs")
    add("--test_mode", choices=("off", "final", "every_epoch"), default="final")
    add("--num_test_configs", type=int, default=10)
    add("--seed", type=int)
    add("--experiments_dir")
    add("--run_name", help="of the folder (default: the time)")
    add("--resume", type=Path, help="last_epoch.pth of an interrupted run")
    add("--eval_only", type=Path, help="test a checkpoint, train nothing")
    add("--tensorboard", action=argparse.BooleanOptionalAction, default=True)
    add("--no_tensorboard", dest="tensorboard", action="store_false", help=argparse.SUPPRESS)
    add("--strict_config", action="store_true", help="unknown keys are errors")
    add("--dry_run", action="store_true", help="print configuration and layers only")
    add("--threads", type=int, help="of the CPU")
    add("--verbose", action="store_true")
    return parser


def given_flags(options: argparse.Namespace) -> dict[str, Any]:
    """The flags that set a field of the configuration, under its name."""
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
    """The configuration of the command.

    Raises:
        InputError: a flag, the file or their combination is unusable.
    """
    require_known("model", options.model, MODELS)
    content = read_file(options.yaml_path) if options.yaml_path else {}
    resolver = Resolver(options.strict_config)
    config = resolver.resolve(content, given_flags(options), options.quantization_method)
    for text in resolver.warnings:
        logger.warning(text)
    return config


def check_flags(parser: FlagParser, options: argparse.Namespace) -> None:
    """Check the flags that are no part of the configuration, and that every flag applies.

    Raises:
        InputError: one is out of range, or does not apply.
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
        parser.refuse(options, [*ours, *others], "with --eval_only, whose checkpoint says it")
    if options.resume is not None:
        parser.refuse(options, ("run_name",), "with --resume, which goes on in its folder")
    if options.test_mode == "off":
        parser.refuse(options, ("num_test_configs",), "with --test_mode off")
    if options.device is not None:
        parser.refuse(options, ("gpu",), "with --device")
    if options.validation_function == SIMPLE:
        parser.refuse(options, OF_RANDOM_VALIDATION, f"with {SIMPLE}")
    if options.training_method == VANILLA or options.distillation == "recursive":
        parser.refuse(
            options, ("joint_quantization_batch_size",), "where passes do not draw their bits"
        )
