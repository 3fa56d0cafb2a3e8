"""The ``--bw_*`` flags of ``main_imagenet.py``: what a sweep over random bits varies."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.flags import FlagParser
from quant.arithmetic.spec import NOT_QUANTIZED
from quant.bitwidth.assignments import SAMPLINGS, WEIGHTINGS
from quant.bitwidth.banks import ACT_RULES, BANKS, sweep_options
from quant.bitwidth.statistics import DEFAULT_TOLERANCE


@dataclass(frozen=True)
class SweepSettings:
    """The ``--bw_*`` flags."""

    options: tuple[int, ...] = (2, 4, 8)
    num_configs: int = 16
    sampling: str = "spread"
    bank: str = "rtn"
    act: str = "fixed"
    weighting: str = "params"
    tolerance: float = DEFAULT_TOLERANCE
    samples: int | None = None
    seed: int | None = None
    out: str | None = None
    sensitivity: bool = False
    target_average: tuple[float, ...] = ()

    def require_quantized(self, n_bits_w: int) -> None:
        """Check that there are weights whose bits can vary.

        Raises:
            InputError: the weights stay in float.
        """
        if n_bits_w == NOT_QUANTIZED:
            raise InputError(f"bitwidth_sweep must have quantized weights, got n_bits_w {n_bits_w}")

    def require_sane(self) -> None:
        """Check every number.

        Raises:
            InputError: one is out of range.
        """
        for name, low in (("num_configs", 1), ("samples", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and not low <= value < 1 << 32:
                raise InputError(f"bw_{name} must be at least {low}, got {value}")
        if not 0 <= self.tolerance <= 1:
            raise InputError(f"bw_tolerance must be from 0 to 1, got {self.tolerance}")
        for average in self.target_average:
            if not self.options[0] <= average <= 8:
                raise InputError(
                    f"bw_target_average must be from {self.options[0]} (the lowest of bw_options) to 8, "
                    f"got {average}"
                )
        if self.out is not None and (Path(self.out).name != self.out or self.out.startswith(".")):
            raise InputError(f"bw_out must be the name of a folder, got {self.out!r}")


def add_sweep_flags(parser: FlagParser) -> None:
    """The flags of a sweep; those not given stay away from the configuration."""
    group = parser.add_argument_group("bitwidth sweep")
    add = group.add_argument
    add(
        "--bitwidth_sweep",
        action="store_const",
        const=True,
        help="accuracy of the quantized model at random bits per layer",
    )
    add("--bw_options", type=int, nargs="+", help="2..8 (default 2 4 8)")
    add("--bw_num_configs", type=int, help="random assignments (default 16)")
    add("--bw_sampling", choices=SAMPLINGS, help="of the assignments (default spread)")
    add("--bw_bank", choices=BANKS, help="weights at each option (default rtn)")
    add("--bw_act", choices=ACT_RULES, help="bits of activations (default fixed)")
    add("--bw_weighting", choices=WEIGHTINGS, help="of the average (default params)")
    add("--bw_tolerance", type=float, help="of the knee (default 0.01)")
    add("--bw_samples", type=int, help="evaluation images (default 2048, all of digits)")
    add("--bw_seed", type=int, help="of the assignments (default --seed)")
    add("--bw_out", help="folder (default bitwidth_sweep_{arch}_{method}_seed{seed})")
    add(
        "--bw_sensitivity",
        action="store_const",
        const=True,
        help="what lowering one layer alone costs",
    )
    add(
        "--bw_target_average",
        type=float,
        nargs="+",
        help="choose bits per layer for these averages",
    )


def sweep_settings(options: argparse.Namespace) -> SweepSettings | None:
    """The settings of a sweep; None where none is asked for.

    Raises:
        InputError: a flag without ``--bitwidth_sweep``, or out of range.
    """
    asked = {f.name: getattr(options, f"bw_{f.name}", None) for f in fields(SweepSettings)}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if not getattr(options, "bitwidth_sweep", None):
        if given:
            name, value = next(iter(given.items()))
            raise InputError(f"bw_{name} must be with --bitwidth_sweep, got {value} alone")
        return None
    if "options" in given:
        given["options"] = sweep_options(given["options"])
    given["target_average"] = tuple(given.get("target_average", ()))
    settings = SweepSettings(**given)
    settings.require_sane()
    return settings
