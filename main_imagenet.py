"""Quantize an image classifier after training, compare it with the float one, correct its logits
and save everything.

    python main_imagenet.py
        the embedded digits, AdaRound W4A4: under a minute on two cores
    python main_imagenet.py --data_path IMAGENET --arch resnet18 --weights DEFAULT
        a torchvision network on an ImageNet folder, 20,000 steps per unit as in the papers
    python main_imagenet.py --data_path CIFAR --arch cifar_resnet20 --checkpoint FILE.pt \\
            --quant_method rtn --n_bits_w 3 --n_bits_a 3
        a checkpoint of yours, round to nearest, 3 bits

Exit status: 0 fine, 1 failed, 2 wrong usage or unusable input, 3 finished but something could not
be saved, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import logging
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from common.console import EXIT_FAILED, EXIT_OK, EXIT_UNSAVED, run_main, setup_logging, write_stdout
from common.errors import InputError, require_known
from common.flags import FlagParser
from common.remote import is_url
from export.settings import add_export_flags, optional_export_settings
from loaders import DATASETS, resolve_dataset
from logits_io.formats import COMPRESSIONS, FORMATS
from models import CHECKPOINT_FORMATS, PLAIN, brecq, get_entry
from pipeline.bitwidth_flags import add_sweep_flags, sweep_settings
from pipeline.job import Record, prepare
from pipeline.recipes import load_recipe
from pipeline.results import format_table
from pipeline.stages import Stages, run
from quant import BaseQuantizationMethod, QuantizationManager
from quant.settings import flag_name, setting_type

DEFAULT_ARCH = "digits_resnet"
DEFAULT_OUTPUT = "outputs"
TERM_PARTNERS = {"T": "lamb_r", "lamb_c": "bn_lr"}  # either switches the term of both on
SHORT_FLAGS = {"n_bits_w": ["-b"], "scalar": ["-s"]}  # of the GPFQ scripts
SMALL_IMAGES = ("cifar10", "cifar100")
ONE_TIME_FLAGS = ("config", "print_config", "dry_run", "force", "help", "resume")

logger = logging.getLogger(__name__)


def build_parser() -> FlagParser:
    """All flags; those of the methods are made from the fields of their settings."""
    parser = FlagParser(prog="main_imagenet.py", description=__doc__)
    _add_data_flags(parser)
    _add_quantization_flags(parser)
    _add_correction_flags(parser)
    add_sweep_flags(parser)
    _add_run_flags(parser)
    add_export_flags(parser, with_switch=True)
    return parser


def _add_data_flags(parser: FlagParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument(
        *("-ds", "--dataset"),
        type=str.lower,
        default="auto",
        help=f"auto or {', '.join(DATASETS)} (default auto)",
    )
    data.add_argument(
        "--data_path", type=Path, help="folder with train/<class> and val/<class>, CIFAR or MNIST"
    )
    data.add_argument(
        "--val_labels",
        type=Path,
        help="labels of a val folder without class folders: NAME LABEL a line, or LABEL alone in the order of "
        "the names; names of classes, or numbers from 0",
    )
    data.add_argument("--download", action="store_true", help="fetch CIFAR or MNIST first")
    data.add_argument(
        "--skip_bad_images", action="store_true", help="leave out unreadable images and count them"
    )
    data.add_argument(
        *("-bs", "--batch_size"),
        type=_positive,
        default=64,
        help="images per forward (default 64)",
    )
    data.add_argument(
        "--workers", type=_positive, default=2, help="image files decoded at once (default 2)"
    )
    data.add_argument(
        "--calibration_list", type=Path, help="file of image ids to calibrate with, in that order"
    )
    data.add_argument(
        "--augment_calibration",
        action=argparse.BooleanOptionalAction,
        help="calibrate with a random training augmentation of the images, as BRECQ, QDrop and PD-Quant do (default off)",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "-model", "--arch", type=str.lower, help=f"architecture (default {DEFAULT_ARCH})"
    )
    model.add_argument(
        "--checkpoint", type=Path, help="file with the trained weights (a state_dict)"
    )
    model.add_argument(
        "--checkpoint_format",
        choices=CHECKPOINT_FORMATS,
        default=PLAIN,
        help="names in the checkpoint: ours (plain, the default), or those of BRECQ's release checkpoints "
        f"(brecq) of {', '.join(brecq.ARCHS)}",
    )
    model.add_argument("--weights", help="DEFAULT: torchvision's published weights")


def method_fields() -> dict[str, dict[str, dataclasses.Field]]:
    """Every setting of every method: name -> its field in each method that has it."""
    manager = QuantizationManager()
    found: dict[str, dict[str, dataclasses.Field]] = {}
    for method in manager.list_available_methods():
        for field in dataclasses.fields(manager.get_method_class(method).settings_class):
            found.setdefault(field.name, {})[method] = field
    return found


def _defaults(fields: dict[str, dataclasses.Field]) -> str:
    """The default of each method, methods with the same one together."""
    users: dict[Any, list[str]] = {}
    for method, field in fields.items():
        users.setdefault(field.default, []).append(method)
    return "; ".join(
        f"default {default}: {', '.join(methods)}" for default, methods in users.items()
    )


def _add_quantization_flags(parser: FlagParser) -> None:
    group = parser.add_argument_group("quantization")
    names = ", ".join(QuantizationManager().list_available_methods())
    group.add_argument(
        "--quant_method", type=str.lower, default="adaround", help=f"{names} (default adaround)"
    )
    options: dict[str, Any]
    for name, fields in method_fields().items():
        field = next(iter(fields.values()))
        kind = setting_type(field)
        text = f"{field.metadata['help']} ({_defaults(fields)})"
        if kind is str:
            text = f"{', '.join(field.metadata['choices'])}: {text}"
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        else:
            options = {"type": kind, "metavar": kind.__name__.upper()}
        options |= {"dest": name, "default": argparse.SUPPRESS, "help": text}
        group.add_argument(*SHORT_FLAGS.get(name, []), f"--{flag_name(name)}", **options)


def _add_correction_flags(parser: FlagParser) -> None:
    group = parser.add_argument_group("correction")
    for flag, many, kind, text in (
        ("alpha", "alpha_list", float, "strength of the correction, 0..1"),
        ("num_clusters", "num_clusters_list", int, "clusters of the projected logits"),
        ("pca_dim", "pca_dim_list", int, "dimensions of the projection, at most the classes"),
    ):
        either = group.add_mutually_exclusive_group()
        either.add_argument(
            f"--{many}", type=kind, nargs="+", dest=many, help=f"{text}; several: a grid"
        )
        either.add_argument(f"--{flag}", type=kind, nargs=1, dest=many, help="a single value")
    group.add_argument(
        "--shrinkage",
        type=float,
        help="pull of the clusters to the global line (default 10)",
    )
    group.add_argument(
        "--correction_samples", type=_positive, help="images to fit on (default 10000, or all)"
    )
    group.add_argument("--correction_source", help="train (default), train_aug or val:FRACTION")
    group.add_argument(
        "--load_correction",
        type=Path,
        help="correction.npz of an earlier run, applied as it is; nothing is fitted",
    )


def _add_run_flags(parser: FlagParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--output_dir",
        default=DEFAULT_OUTPUT,
        help="root of everything written: a folder, or a URL for fsspec (default outputs)",
    )
    group.add_argument(
        "--save_results",
        choices=("all", "selected"),
        default="all",
        help="result folders to write (default all)",
    )
    group.add_argument(
        "--chunk_size", type=_positive, default=1000, help="samples per file (default 1000)"
    )
    group.add_argument(
        "--logits_format",
        nargs="+",
        choices=FORMATS,
        default=["csv"],
        help=f"{', '.join(FORMATS)}, one or several (default csv)",
    )
    group.add_argument(
        "--compression", choices=COMPRESSIONS, default="none", help="of the logits (default none)"
    )
    group.add_argument(
        "--plots",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw the figures of the summary (default on)",
    )
    group.add_argument(
        "--log_dir", type=Path, help="TensorBoard folder (default: in the run's folder)"
    )
    group.add_argument(
        "--cache_dir",
        type=Path,
        help="what other runs need as well is kept here: decoded image files, logits of the float "
        "network, corrected inputs (default: the last alone, below output_dir/cache)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i (default auto)")
    group.add_argument(
        "--recipe",
        help="a published result, {arch}_{method}_w{bits}a{bits} such as resnet18_qdrop_w4a4 (all: configs/recipes): "
        "its flags, under those given",
    )
    group.add_argument(
        "--force",
        action="store_const",
        const=True,
        help="go on where the float network is not as accurate as the recipe's",
    )
    group.add_argument("--config", type=Path, help="YAML file of flags; the command line wins")
    group.add_argument(
        "--print_config", action="store_true", help="print the full configuration as YAML and stop"
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on behind the last finished unit of the same run, which was interrupted",
    )
    group.add_argument(
        "--dry_run", action="store_true", help="print the plan and stop; nothing is written"
    )
    group.add_argument("--verbose", action="store_true", help="log more")
    group.add_argument("--quiet", action="store_true", help="log warnings only")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def make_method(options: argparse.Namespace) -> BaseQuantizationMethod:
    """The method with the settings given, those of the architecture, and its own defaults, in this
    order.

    Raises:
        InputError: unknown method, a flag that it does not use, or a value out of range.
    """
    cls = QuantizationManager().get_method_class(options.quant_method)
    own = {field.name for field in dataclasses.fields(cls.settings_class)}
    known = method_fields()
    given = {key: value for key, value in vars(options).items() if key in known}
    unused = [key for key in given if key not in own]
    if unused:
        flags = ", ".join(f"--{flag_name(key)}" for key in unused)
        raise InputError(
            f"{flags} must be left out for {cls.name}, which does not use it, got {given[unused[0]]}"
        )
    arch_defaults = _arch_defaults(cls, options.arch, given)
    for key in sorted(set(arch_defaults) - set(given)):
        logger.info("%s = %s, the default for %s", key, arch_defaults[key], options.arch)
    method = cls(**{**arch_defaults, **given})
    if given.get("calib_size") is not None:  # another name of num_samples: a demand as well
        options.num_samples = method.settings.num_samples
    return method


def _arch_defaults(
    cls: type[BaseQuantizationMethod], arch: str, given: dict[str, Any]
) -> dict[str, Any]:
    """The architecture's defaults of those settings that the method uses; they switch no optional
    term on.
    """
    fields = {field.name: field for field in dataclasses.fields(cls.settings_class)}
    return {
        key: value
        for key, value in get_entry(arch).method_defaults.items()
        if key in fields and (fields[key].default is not None or TERM_PARTNERS.get(key) in given)
    }


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; the architecture and the data set are those of the embedded example when
    neither is given, and ``resnet18`` is the form for small images where the images are CIFAR's.

    Raises:
        InputError: a flag is unknown or malformed, or data are given without an architecture.
    """
    options = _parse(argv)
    options.output_url = options.output_dir if is_url(options.output_dir) else None
    options.output_dir = Path(options.output_dir)
    if options.output_url is not None:  # written here first, and copied at the end
        options.output_dir = Path(DEFAULT_OUTPUT, local_name(options.output_url))
    if options.dataset != "auto":
        require_known("dataset", options.dataset, DATASETS)
    if options.arch is None:
        if options.data_path is not None or options.dataset not in ("auto", "digits"):
            raise InputError("arch must be given together with data_path or dataset, got none")
        options.arch, options.dataset = DEFAULT_ARCH, "digits"
    if options.checkpoint_format == brecq.FORMAT:
        options.arch = brecq.resolve_arch(options.arch)
    elif options.arch == "resnet18" and options.dataset != "digits":
        with suppress(InputError):  # what is wrong with the data is said where they are loaded
            name, _, _ = resolve_dataset(options.dataset, options.data_path)
            options.arch = "cifar_resnet18" if name in SMALL_IMAGES else options.arch
    return options


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, on top of the recipe that it names, if any."""
    parser = build_parser()
    options = parser.parse(argv)
    if options.recipe is None:
        parser.refuse(options, ("force",), "without --recipe")
        return options
    recipe = load_recipe(options.recipe)
    return parser.parse(argv, recipe.flags, f"recipe {recipe.name}")


def local_name(url: str) -> str:
    """A folder name for a URL, another one for every URL."""
    readable = re.sub(r"\W+", "_", url)[:60]
    return f"{readable}_{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def configuration(options: argparse.Namespace, method: BaseQuantizationMethod) -> dict[str, Any]:
    """Every flag with the value in force, as ``--config`` reads it.

    A default that adapts to the data (``num_samples``) is left out: written down it would be a demand.
    """
    values = {
        key: value
        for key, value in vars(options).items()
        if key not in ONE_TIME_FLAGS and value is not None
    }
    if options.output_url is not None:
        values["output_dir"] = values.pop("output_url")
    values |= method.get_quantization_params()
    if not hasattr(options, "num_samples"):
        del values["num_samples"]
    return {
        flag_name(key): str(value) if isinstance(value, Path) else value
        for key, value in sorted(values.items())
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    options = read_options(argv)
    setup_logging(options.verbose, options.quiet)
    method = make_method(options)
    config = configuration(options, method)
    if options.print_config:
        write_stdout(yaml.safe_dump(config, sort_keys=True).rstrip())
        return EXIT_OK
    settings = method.settings
    stages = Stages(
        sweep_settings(options, settings.n_bits_w),
        optional_export_settings(options, settings.n_bits_a),
    )
    job = prepare(options, method, Record(argv=list(argv), config=config))
    if job.recipe is not None:
        for change in job.recipe.changed({**config, "arch": brecq.their_arch(options.arch)}):
            logger.warning("recipe %s: %s", job.recipe.name, change)
    if options.dry_run:
        write_stdout(job.describe())
        return EXIT_OK
    outcome = run(job, stages)
    write_stdout(format_table(outcome.rows))
    if job.recipe is not None:
        figures = (row.top1_pct for row in outcome.rows[:2])
        write_stdout("\n" + job.recipe.comparison(*figures))
    if outcome.problems:
        return EXIT_FAILED
    return EXIT_UNSAVED if outcome.unsaved else EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
