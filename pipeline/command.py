"""Turns the command line of ``main_imagenet.py`` into ``RunOptions``."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.errors import InputError, require_known
from common.flags import FlagParser
from common.remote import is_url
from correction.checks import check_alpha
from export.settings import optional_export_settings
from loaders import DATASETS, resolve_dataset
from models import brecq, get_entry, is_own, is_timm, read_arch_args
from pipeline.bitwidth_flags import sweep_settings
from pipeline.flags import LISTS, build_parser
from pipeline.method import require_settings
from pipeline.options import (
    DEFAULT_ARCH,
    DEFAULT_METHOD,
    CorrectionOptions,
    DataOptions,
    InputOptions,
    NetworkOptions,
    OutputOptions,
    RunOptions,
)
from pipeline.recipes import load_recipe
from quant.registry import method_settings

# Settings of the embedded example: so few bits that accuracy is lost and can be corrected.
EXAMPLE_SETTINGS = {"n_bits_w": 2, "n_bits_a": 1, "disable_8bit_head_stem": True}
WITH_COMPARE = ("compare", "output_dir", "force", "verbose", "quiet")  # flags
SMALL_IMAGES = ("cifar10", "cifar100")
Group = TypeVar("Group")


@dataclass(frozen=True)
class Command:
    """A parsed command line.

    Attributes:
        argv: the command line as given.
        lists: list to print, ``archs``, ``methods`` or ``recipes``; None: a run.
        compare: folders of runs to show side by side; empty: a run.
        table: rows of results to print, ``compact`` or ``full``.
    """

    argv: tuple[str, ...]
    options: RunOptions
    lists: str | None
    compare: tuple[Path, ...]
    print_config: bool
    dry_run: bool
    table: str
    verbose: bool
    quiet: bool


def read_command(parser: FlagParser, argv: Sequence[str]) -> Command:
    """Read a command line.

    Raises:
        InputError: a flag is unknown, malformed or does not apply.
    """
    found = _parse(parser, argv)
    if found.compare is not None:
        others = (name for name in vars(found) if name not in WITH_COMPARE)
        parser.refuse(found, others, "with --compare")
    lists = [name.removeprefix("list_") for name in LISTS if getattr(found, name)]
    return Command(
        argv=tuple(argv),
        options=_run_options(found),
        lists=lists[0] if lists else None,
        compare=tuple(found.compare or ()),
        print_config=found.print_config,
        dry_run=found.dry_run,
        table=found.table,
        verbose=found.verbose,
        quiet=found.quiet,
    )


def require_usable_flags(commands: Iterable[Sequence[str]]) -> None:
    """Check flags, methods, architectures, settings and strengths of command lines by themselves.

    Code of the user and networks of timm are not looked for; nothing is loaded.

    Raises:
        InputError: one is unknown, not used by its method, or out of range.
    """
    parser = build_parser()
    for argv in commands:
        options = read_command(parser, argv).options
        require_settings(options)
        for alpha in options.correction.alpha_list or ():
            check_alpha(alpha)
        network = options.network
        if not is_own(network.arch) and not is_timm(network.arch):
            get_entry(network.arch, read_arch_args(network.arch_args))


def _parse(parser: FlagParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; its flags override those of the recipe that it names, if any."""
    found = parser.parse(argv)
    if found.recipe is None:
        return found
    recipe = load_recipe(found.recipe)
    return parser.parse(argv, recipe.flags, f"recipe {recipe.name}")


def _run_options(found: argparse.Namespace) -> RunOptions:
    given = {name: getattr(found, name) for name in method_settings() if hasattr(found, name)}
    is_example = _is_example(found, given)
    return RunOptions(
        network=dataclasses.replace(_group(NetworkOptions, found), arch=_arch(found)),
        inputs=_group(InputOptions, found),
        data=dataclasses.replace(_group(DataOptions, found), dataset=_dataset(found)),
        quant_method=found.quant_method or DEFAULT_METHOD,
        settings=EXAMPLE_SETTINGS if is_example else given,
        correction=_group(CorrectionOptions, found),
        output=_output(found),
        device=found.device,
        recipe=found.recipe,
        expect_top1=found.expect_top1,
        force=bool(found.force),
        resume=found.resume,
        bitwidth=sweep_settings(found),
        export=optional_export_settings(found),
    )


def _is_example(found: argparse.Namespace, given: dict[str, Any]) -> bool:
    """Whether no flag sets network, images, method or its settings: run the embedded example."""
    said = (found.arch, found.data_path, found.recipe, found.checkpoint, found.quant_method)
    return not given and found.dataset == "auto" and all(value is None for value in said)


def _group(cls: type[Group], found: argparse.Namespace) -> Group:
    """Make a group of options from the flags that are named like its fields."""
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value = getattr(found, field.name, field.default)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _dataset(found: argparse.Namespace) -> str:
    """The data set: ``digits`` when neither a data set nor a network is given.

    Raises:
        InputError: it is unknown, or images are given without a network.
    """
    if found.dataset != "auto":
        require_known("dataset", found.dataset, DATASETS)
    if found.arch is not None:
        return found.dataset
    if found.data_path is not None or found.dataset not in ("auto", "digits"):
        raise InputError("arch must be given together with data_path or dataset, got none")
    return "digits"


def _arch(found: argparse.Namespace) -> str:
    """The architecture; on CIFAR, ``resnet18`` means its form for small images."""
    arch = found.arch or DEFAULT_ARCH
    if found.checkpoint_format == brecq.FORMAT:
        return brecq.resolve_arch(arch)
    if arch == "resnet18" and found.dataset != "digits":
        with suppress(InputError):  # reported when the data are loaded
            name, _, _ = resolve_dataset(found.dataset, found.data_path)
            return "cifar_resnet18" if name in SMALL_IMAGES else arch
    return arch


def _output(found: argparse.Namespace) -> OutputOptions:
    """Where the files go; those for a URL are first written to a folder below the default one."""
    folder, url = Path(found.output_dir), None
    if is_url(found.output_dir):
        url = found.output_dir
        folder = OutputOptions.output_dir / local_name(url)
    return dataclasses.replace(_group(OutputOptions, found), output_dir=folder, output_url=url)


def local_name(url: str) -> str:
    """A readable folder name for a URL; different URLs get different names."""
    readable = re.sub(r"\W+", "_", url)[:60]
    return f"{readable}_{hashlib.sha256(url.encode()).hexdigest()[:8]}"
