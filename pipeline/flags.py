"""The flags of ``main_imagenet.py``, in the groups that ``--help`` shows."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.flags import CLASS_ORDER_HELP, FlagParser, arch_name, positive_int
from export.settings import add_export_flags
from loaders import DATASETS
from loaders.transforms import INTERPOLATIONS
from logits_io.formats import COMPRESSIONS, FORMATS
from models import CHECKPOINT_FORMATS, brecq
from pipeline.bitwidth_flags import add_sweep_flags
from pipeline.comparing import COMPARISON_FILE
from pipeline.options import (
    DEFAULT_ARCH,
    DEFAULT_METHOD,
    DEFAULT_SHRINKAGE,
    CorrectionOptions,
    DataOptions,
    NetworkOptions,
    OutputOptions,
)
from quant import QuantizationManager
from quant.registry import method_settings
from quant.settings import flag_name, setting_type

SHORT_FLAGS = {"n_bits_w": ["-b"], "scalar": ["-s"]}  # as in the published GPFQ scripts
TABLES = ("compact", "full")
LISTS = ("list_archs", "list_methods", "list_recipes")


def build_parser(description: str = "") -> FlagParser:
    """Make the parser; the flags of the methods are made from the fields of their settings."""
    parser = FlagParser(prog="main_imagenet.py", usage="%(prog)s [flags]", description=description)
    _add_data_flags(parser)
    _add_model_flags(parser)
    _add_method_flags(parser)
    _add_correction_flags(parser)
    add_sweep_flags(parser)
    _add_output_flags(parser)
    add_export_flags(parser, with_switch=True)
    _add_run_flags(parser)
    return parser


def _add_data_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add(
        "-ds",
        "--dataset",
        type=str.lower,
        default=DataOptions.dataset,
        help=f"data set: auto (found from --data_path), {', '.join(DATASETS)} (default auto)",
    )
    add(
        "--data_path",
        type=Path,
        help="folder of the images: train/<class>/* and val/<class>/*, or files of CIFAR or MNIST",
    )
    add(
        "--val_labels",
        type=Path,
        help="file with the labels of a val folder without class folders: NAME LABEL on each line, "
        "or LABEL alone in the order of the names (class names, or numbers from 0)",
    )
    add("--class_order", metavar="ORDER", help=CLASS_ORDER_HELP)
    add("--download", action="store_true", help="download CIFAR or MNIST into --data_path first")
    add(
        "--skip_bad_images",
        action="store_true",
        help="leave out image files that cannot be read, and report their number",
    )
    add(
        "-bs",
        "--batch_size",
        type=positive_int,
        default=DataOptions.batch_size,
        help="images per forward pass (default 64)",
    )
    add(
        "--workers",
        type=positive_int,
        default=DataOptions.workers,
        help="image files decoded in parallel (default: one for each core)",
    )
    add(
        "--calibration_list",
        type=Path,
        help="file with the ids of the calibration images, in order (default: drawn with --seed)",
    )
    add(
        "--augment_calibration",
        action=argparse.BooleanOptionalAction,
        default=DataOptions.augment_calibration,
        help="apply a random training augmentation to the calibration images, as BRECQ, QDrop and "
        "PD-Quant do (default off)",
    )


def _add_model_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "-model",
        "--arch",
        type=arch_name,
        help=f"architecture (default {DEFAULT_ARCH}; --list_archs prints all), timm/NAME, or a "
        "function or class of yours: package.module:NAME or file.py:NAME",
    )
    add(
        "--arch_args",
        nargs="+",
        default=NetworkOptions.arch_args,
        metavar="KEY=VALUE",
        help="arguments of the function that makes the network; values are YAML",
    )
    add("--output", help="name or index of the logits, if the network returns several tensors")
    add(
        "--checkpoint",
        type=Path,
        help="file with the trained weights, a state_dict or a safetensors file",
    )
    add("--checkpoint_key", help="key of the state_dict in the checkpoint (default: a known one)")
    add(
        "--checkpoint_format",
        choices=CHECKPOINT_FORMATS,
        default=NetworkOptions.checkpoint_format,
        help="tensor names in the checkpoint: those of this suite and torchvision (plain, the "
        f"default), or those of BRECQ's release (brecq) of {', '.join(brecq.ARCHS)}",
    )
    add("--weights", help="DEFAULT: load the published weights of torchvision or timm")
    _add_input_flags(parser)


def _add_input_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("input, where it differs from what the network expects")
    flag = add.add_argument
    flag("--input_size", type=int, metavar="PIXELS", help="width and height of the images")
    flag("--resize", type=int, metavar="PIXELS", help="short side before the crop; 0: as it is")
    flag("--crop", type=int, metavar="PIXELS", help="square in the centre; 0: the whole image")
    flag("--interpolation", choices=INTERPOLATIONS, help="interpolation of the resize")
    flag("--mean", type=float, nargs=3, help="mean of each channel, of pixels from 0 to 1")
    flag("--std", type=float, nargs=3, help="standard deviation of each channel")


def _add_method_flags(parser: FlagParser) -> None:
    """Add a group for settings of all methods, then one for each set of methods that share some."""
    methods = tuple(QuantizationManager().list_available_methods())
    groups: dict[tuple[str, ...], dict[str, dict[str, dataclasses.Field]]] = {}
    for name, fields in method_settings().items():
        groups.setdefault(tuple(fields), {})[name] = fields
    common = parser.add_argument_group("method")
    common.add_argument(
        "--quant_method",
        type=str.lower,
        help=f"quantization method: {', '.join(methods)} (default {DEFAULT_METHOD}; --list_methods "
        "explains them)",
    )
    for users in sorted(groups, key=lambda users: (-len(users), users)):
        title = "" if users == methods else ", ".join(users)
        group = parser.add_argument_group(f"method: {title}") if title else common
        for name, fields in groups[users].items():
            _add_setting(group, name, fields)


def _add_setting(
    group: argparse._ArgumentGroup, name: str, fields: Mapping[str, dataclasses.Field]
) -> None:
    field = max(fields.values(), key=lambda field: len(field.metadata["choices"] or ()))
    kind = setting_type(field)
    text = field.metadata["help"]
    if kind is str:
        text += f": {', '.join(field.metadata['choices'])}"
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
    tells_default = "(default" in text and field.default is None
    options["help"] = text if tells_default else f"{text} ({_defaults(fields)})"
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options |= {"type": kind, "metavar": kind.__name__.upper()}
    group.add_argument(*SHORT_FLAGS.get(name, []), f"--{flag_name(name)}", **options)


def _defaults(fields: Mapping[str, dataclasses.Field]) -> str:
    """Text of the most common default, then of the other defaults with their methods."""
    users: dict[Any, list[str]] = {}
    for method, field in fields.items():
        users.setdefault(field.default, []).append(method)
    usual, *others = sorted(users, key=lambda default: -len(users[default]))
    return "; ".join(
        [
            f"default {_shown(usual)}",
            *(f"{', '.join(users[default])}: {_shown(default)}" for default in others),
        ]
    )


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default is None else f"{default}"


def _add_correction_flags(parser: FlagParser) -> None:
    group = parser.add_argument_group("correction of the logits")
    group.add_argument(
        "--correction",
        action=argparse.BooleanOptionalAction,
        default=CorrectionOptions.correction,
        help="correct the quantized logits (default on)",
    )
    add_grid_flags(group)
    group.add_argument(
        "--correction_source",
        help="source of these images: train (default), train_aug (training images with random "
        "augmentation) or val:FRACTION (that fraction of val, which no result then includes; "
        "without a train folder it also calibrates, and --no-correction keeps it)",
    )


def add_grid_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the grid of corrections, and of one from a file instead."""
    for flag, kind, text in (
        ("alpha", float, "strength of the correction, 0 to 1"),
        ("num_clusters", int, "number of clusters of the projected logits"),
        ("pca_dim", int, "dimensions of the projection, at most the number of classes"),
    ):
        either = group.add_mutually_exclusive_group()
        many = f"{flag}_list"
        either.add_argument(
            f"--{many}", type=kind, nargs="+", help=f"{text}; all combinations are compared"
        )
        either.add_argument(
            f"--{flag}", type=kind, nargs=1, dest=many, help=f"a single value of --{many}"
        )
    group.add_argument(
        "--shrinkage",
        type=float,
        help="shrinkage of each cluster's line towards the line fitted on all samples "
        f"(pseudo-count; 0: none; default {DEFAULT_SHRINKAGE:g})",
    )
    group.add_argument(
        "--correction_samples",
        type=positive_int,
        help="number of images that the correction is fitted on (default 10000, or all if fewer)",
    )
    group.add_argument(
        "--load_correction",
        type=Path,
        help="apply the correction.npz of an earlier run unchanged, instead of fitting one",
    )


def _add_output_flags(parser: FlagParser) -> None:
    group = parser.add_argument_group("output")
    add = group.add_argument
    add(
        "--output_dir",
        default=str(OutputOptions.output_dir),
        help="root folder of all output, or a URL that fsspec can write to (default outputs)",
    )
    add(
        "--save_results",
        choices=("auto", "all", "selected"),
        default=OutputOptions.save_results,
        help="write the corrected logits of all corrections, or of the selected one (default: all "
        "if they take at most 2 GB)",
    )
    add_logits_flags(group)
    add(
        "--log_dir",
        type=Path,
        help="folder of the TensorBoard files (default: a folder in the folder of the run)",
    )
    add(
        "--cache_dir",
        type=Path,
        help="folder for data that other runs can reuse: decoded images, logits of the float "
        "network, corrected inputs (default: corrected inputs only, in output_dir/cache)",
    )


def add_logits_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the files of logits and of the plots."""
    add = group.add_argument
    add(
        "--chunk_size",
        type=positive_int,
        default=OutputOptions.chunk_size,
        help="samples per file of logits (default 1000)",
    )
    add(
        "--logits_format",
        nargs="+",
        choices=FORMATS,
        default=list(OutputOptions.logits_format),
        help=f"file formats of the logits, one or several of {', '.join(FORMATS)} (default csv)",
    )
    add(
        "--compression",
        choices=COMPRESSIONS,
        default=OutputOptions.compression,
        help="compression of the logits (default none)",
    )
    add(
        "--plots",
        action=argparse.BooleanOptionalAction,
        default=OutputOptions.plots,
        help="draw the plots of the summary (default on)",
    )


def _add_run_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add("--device", default="auto", help="device: auto, cpu, cuda or cuda:i (default auto)")
    add(
        "--recipe",
        help="use the settings of a published result, {arch}_{method}_w{bits}a{bits}; flags on the "
        "command line override them (--list_recipes prints all names)",
    )
    add(
        "--expect_top1",
        type=float,
        metavar="PERCENT",
        help="stop unless the float network's Top-1 is within a point of this",
    )
    add(
        "--force",
        action="store_const",
        const=True,
        help="replace files in the run's folders that this suite did not write; with --recipe, "
        "continue even if the float network is not as accurate as the recipe's",
    )
    add("--config", type=Path, help="YAML file of flags; the command line overrides them")
    add("--print_config", action="store_true", help="print all flags as YAML and stop")
    add(
        "--resume",
        action="store_true",
        help="resume an interrupted run after its last finished unit",
    )
    add("--dry_run", action="store_true", help="check everything, print the plan and stop")
    add(
        "--table",
        choices=TABLES,
        default=TABLES[0],
        help="print the main rows of the results, or one for every correction (default compact)",
    )
    add(
        "--compare",
        nargs="+",
        type=Path,
        metavar="RUN",
        help=f"write {COMPARISON_FILE} into --output_dir, a page that shows the finished runs in "
        "these folders side by side, and stop",
    )
    add("--list_archs", action="store_true", help="print the architectures and stop")
    add("--list_methods", action="store_true", help="print the methods and stop")
    add("--list_recipes", action="store_true", help="print the published results and stop")
    add("--verbose", action="store_true", help="log more")
    add("--quiet", action="store_true", help="log warnings only")
