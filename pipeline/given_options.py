"""What ``python -m correction`` can be told: its flags, and the options that they make."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.flags import FlagParser
from common.names import require_name
from loaders.plan import DEFAULT_VAL_FRACTION
from logits_io.naming import FULL_PRECISION, QUANTIZED, GivenName, file_name
from logits_io.schema import KEYS, Schema, read_schema
from pipeline.flags import TABLES, add_grid_flags, add_logits_flags
from pipeline.options import CorrectionOptions, OutputOptions
from quant import MethodSettings

GRID = (
    "alpha_list",
    "num_clusters_list",
    "pca_dim_list",
    "shrinkage",
    "correction_samples",
    "load_correction",
)
OUTPUT = ("chunk_size", "logits_format", "compression", "plots")


@dataclass(frozen=True)
class GivenOptions:
    """All options of a correction of given logits.

    Attributes:
        quantized, fullprecision: file or folder with the logits of all samples.
        labels: file with the labels; None: those in the other files, if any.
        fit: fraction of the samples that the correction is fitted on, drawn with the seed as a run
            does with ``val:FRACTION``; None: other samples, or a correction from a file.
        fit_quantized, fit_fullprecision: logits of other samples to fit on.
        name: part of the names of all output; None: that of the quantized file.

    Raises:
        InputError: a value is out of range, or other values make it useless.
    """

    quantized: Path
    fullprecision: Path
    labels: Path | None = None
    schema: Schema = field(default_factory=Schema)
    fit: float | None = None
    fit_quantized: Path | None = None
    fit_fullprecision: Path | None = None
    correction: CorrectionOptions = field(default_factory=CorrectionOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    seed: int = MethodSettings.seed
    name: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.fit is not None and not 0 < self.fit < 1:
            raise InputError(f"fit must be above 0 and below 1, got {self.fit:g}")
        if not 0 <= self.seed < 1 << 32:
            raise InputError(f"seed must be from 0 to 2^32 - 1, got {self.seed}")
        pair = (self.fit_quantized, self.fit_fullprecision)
        if None in pair and pair != (None, None):
            raise InputError("fit_quantized and fit_fullprecision must be given together, got one")
        fits_elsewhere = pair != (None, None)
        if self.fit is not None and fits_elsewhere:
            raise InputError("fit must be left out with --fit_quantized, got both")
        if self.correction.load_correction is not None and (self.fit is not None or fits_elsewhere):
            raise InputError("fit must be left out with --load_correction, which fits nothing")

    @property
    def files(self) -> dict[str, Path]:
        """The logits to correct, by kind."""
        return {QUANTIZED: self.quantized, FULL_PRECISION: self.fullprecision}

    @property
    def fitting_files(self) -> dict[str, Path] | None:
        """The logits of other samples to fit on, by kind; None where there are none."""
        if self.fit_quantized is None or self.fit_fullprecision is None:
            return None
        return {QUANTIZED: self.fit_quantized, FULL_PRECISION: self.fit_fullprecision}

    @property
    def fraction(self) -> float:
        """The fraction of the samples to fit on."""
        return DEFAULT_VAL_FRACTION if self.fit is None else self.fit

    @property
    def naming(self) -> GivenName:
        """The names of all output."""
        own = file_name(self.quantized.stem or self.quantized.resolve().name) or QUANTIZED
        return GivenName(own if self.name is None else self.name, self.seed)

    def as_record(self) -> dict[str, Any]:
        """The flags with their values, as plain values; those that are not given are left out."""
        values = {**vars(self), **vars(self.correction), **vars(self.output)}
        values["schema"] = {key: getattr(self.schema, key) for key in self.schema.keys}
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("correction", "output")]
        names += [*GRID, *OUTPUT, "output_dir"]
        kept = {name: values[name] for name in names if values[name] not in (None, {}, False)}
        return {name: str(v) if isinstance(v, Path) else v for name, v in kept.items()}


def build_parser(description: str = "") -> FlagParser:
    """Make the parser of ``python -m correction``."""
    parser = FlagParser(
        prog="python -m correction", usage="%(prog)s [flags]", description=description
    )
    _add_input_flags(parser)
    add_grid_flags(parser.add_argument_group("grid of corrections, as in main_imagenet.py"))
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output_dir",
        type=Path,
        default=OutputOptions.output_dir,
        help="root folder of all output (default outputs; the files are in correction/ below it)",
    )
    group.add_argument(
        "--name", help="part of the names of all output (default: that of the quantized file)"
    )
    add_logits_flags(group)
    group.add_argument("--table", choices=TABLES, default=TABLES[0], help="rows to print")
    group.add_argument(
        "--force", action="store_true", help="replace files that this suite did not write"
    )
    group.add_argument("--config", type=Path, help="YAML file of flags")
    group.add_argument("--verbose", action="store_true", help="log more")
    group.add_argument("--quiet", action="store_true", help="log warnings only")
    return parser


def _add_input_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("logits").add_argument
    add(
        "--quantized",
        type=Path,
        help="logits of the quantized network: a CSV, npz or npy file, or a folder of such parts",
    )
    add("--fullprecision", type=Path, help="logits of the float network on the same samples")
    add("--labels", type=Path, help="file of the labels (default: those in the files, if any)")
    add(
        "--schema",
        nargs="+",
        metavar="KEY=VALUE",
        help="which columns or arrays hold what, or a YAML file that says so; keys: "
        f"{', '.join(KEYS)}",
    )
    add(
        "--fit",
        type=float,
        metavar="FRACTION",
        help="fraction of the samples to fit on, which no result includes; drawn with the seed as "
        f"--correction_source val:FRACTION of a run does (default {DEFAULT_VAL_FRACTION:g})",
    )
    add("--fit_quantized", type=Path, help="logits of other samples to fit on, instead of --fit")
    add("--fit_fullprecision", type=Path, help="those of the float network")
    add("--seed", type=int, default=MethodSettings.seed, help="seed (default 1005)")


def given_options(found: argparse.Namespace) -> GivenOptions:
    """The options that the flags make.

    Raises:
        InputError: the logits are not named, or a flag does not apply.
    """
    for name in (QUANTIZED, FULL_PRECISION):
        if getattr(found, name) is None:
            raise InputError(f"{name} must be given, got none (--help lists the flags)")
    names = [f.name for f in dataclasses.fields(GivenOptions)]
    values: dict[str, Any] = {name: getattr(found, name, None) for name in names}
    if found.name is not None:
        values["name"] = file_name(require_name("name", found.name))
    values["schema"] = read_schema(found.schema or [])
    grid = {name: _frozen(getattr(found, name)) for name in GRID}
    values["correction"] = CorrectionOptions(**grid)
    output = {name: _frozen(getattr(found, name)) for name in (*OUTPUT, "output_dir")}
    values["output"] = OutputOptions(**output)
    return GivenOptions(**values)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
