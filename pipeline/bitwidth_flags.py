"""The ``--bw_*`` flags of ``main_imagenet.py``: evaluation at random bits per layer."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any

from common.errors import InputError
from common.flags import FlagParser
from common.names import require_name
from logits_io.naming import is_of_runs
from quant.arithmetic.spec import NOT_QUANTIZED
from quant.bitwidth.assignments import SAMPLINGS, WEIGHTINGS
from quant.bitwidth.banks import ACT_RULES, BANKS, sweep_options
from quant.bitwidth.statistics import DEFAULT_TOLERANCE


@dataclass(frozen=True)
class SweepSettings:
    """The values of the ``--bw_*`` flags."""

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
        """Check that the weights are quantized, so that their bits can vary.

        Raises:
            InputError: the weights stay in float.
        """
        if n_bits_w == NOT_QUANTIZED:
            raise InputError(f"bitwidth_sweep must have quantized weights, got n_bits_w {n_bits_w}")

    def require_sane(self) -> None:
        """Check every value.

        Raises:
            InputError: a number is out of range, or ``out`` is no folder name.
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
                    f"bw_target_average must be from {self.options[0]} (the lowest of bw_options) "
                    f"to 8, got {average}"
                )
        if self.out is not None and is_of_runs(require_name("bw_out", self.out)):
            raise InputError(
                f"bw_out must be the name of a folder of its own, got {self.out!r}, as runs use"
            )


def add_sweep_flags(parser: FlagParser) -> None:
    """Add the ``--bw_*`` flags; those not given are left out of the saved configuration."""
    group = parser.add_argument_group("random bits per layer")
    _add_assignment_flags(group)
    _add_evaluation_flags(group)


def _add_assignment_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--bitwidth_sweep",
        action="store_const",
        const=True,
        help="evaluate the quantized model at random assignments of bits to layers (default off)",
    )
    add("--bw_options", type=int, nargs="+", help="bits to choose from, 2 to 8 (default 2 4 8)")
    add("--bw_num_configs", type=int, help="number of random assignments (default 16)")
    add(
        "--bw_sampling",
        choices=SAMPLINGS,
        help="draw each layer's bits uniformly (uniform), or spread the averages of the "
        "assignments from low to high (spread) (default spread)",
    )
    add("--bw_seed", type=int, help="seed of the random assignments (default --seed)")
    add(
        "--bw_bank",
        choices=BANKS,
        help="make the weights at each number of bits by rounding to nearest (rtn), or by a run of "
        "the method with all layers at these bits (uniform_runs) (default rtn)",
    )
    add(
        "--bw_act",
        choices=ACT_RULES,
        help="bits of the activations: --n_bits_a (fixed), those of the layer's weights (tied), or "
        "not quantized (fp) (default fixed)",
    )


def _add_evaluation_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--bw_weighting",
        choices=WEIGHTINGS,
        help="weight of a layer in the average bitwidth: equal (layers), its number of parameters "
        "(params) or its multiply-adds (macs) (default params)",
    )
    add(
        "--bw_tolerance",
        type=float,
        help="Top-1 (0 to 1) that the knee, the smallest sufficient bitwidth, may lose "
        "(default 0.01)",
    )
    add(
        "--bw_samples",
        type=int,
        help="number of evaluation images (default 2048; digits: all)",
    )
    add(
        "--bw_out",
        help="name of the output folder (default bitwidth_sweep_{arch}_{method}_seed{seed})",
    )
    add(
        "--bw_sensitivity",
        action="store_const",
        const=True,
        help="measure the accuracy with one layer at a time at fewer bits (default off)",
    )
    add(
        "--bw_target_average",
        type=float,
        nargs="+",
        help="choose bits per layer for each of these average bitwidths (default none)",
    )


def sweep_settings(options: argparse.Namespace) -> SweepSettings | None:
    """The values of the ``--bw_*`` flags; None without ``--bitwidth_sweep``.

    Raises:
        InputError: a flag is given without ``--bitwidth_sweep``, or is out of range.
    """
    asked = {f.name: getattr(options, f"bw_{f.name}", None) for f in fields(SweepSettings)}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if not getattr(options, "bitwidth_sweep", None):
        if given:
            name, value = next(iter(given.items()))
            raise InputError(f"bw_{name} must be given with --bitwidth_sweep, got {value} alone")
        return None
    if "options" in given:
        given["options"] = sweep_options(given["options"])
    given["target_average"] = tuple(given.get("target_average", ()))
    settings = SweepSettings(**given)
    settings.require_sane()
    return settings
