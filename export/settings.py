"""Settings of the export to ONNX, and their flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

import numpy as np

from common.errors import InputError
from common.flags import FlagParser
from export.containers import MAX_ACTIVATION_BITS, too_many_bits
from export.tools import require_export_tools
from quant.arithmetic.spec import NOT_QUANTIZED

ONNX_FLAG = "export_onnx"
MAX_IMAGES = 1_000_000


def has_integer_type(n_bits_a: int) -> bool:
    """Whether ONNX has an integer type for activations of these bits, or needs none."""
    return n_bits_a <= MAX_ACTIVATION_BITS or n_bits_a == NOT_QUANTIZED


@dataclass(frozen=True)
class ExportSettings:
    """The settings of an export.

    Attributes:
        with_correction: make the correction of the logits part of the graph.
        int2: store tensors in 2-bit integers where these suffice.
        export_images: number of images that the file is checked on, at most all.
        min_agreement: minimum fraction of them with the same argmax as the simulation; lowered if
            the simulation agrees less with itself when it sums in another order.
    """

    with_correction: bool = False
    int2: bool = False
    export_images: int = 1000
    min_agreement: float = 0.995

    def require_sane(self) -> None:
        """Check the ranges of the numbers.

        Raises:
            InputError: one is out of range.
        """
        if not 1 <= self.export_images <= MAX_IMAGES:
            raise InputError(
                f"export_images must be from 1 to {MAX_IMAGES}, got {self.export_images}"
            )
        if not 0 <= self.min_agreement <= 1:
            raise InputError(f"min_agreement must be from 0 to 1, got {self.min_agreement}")

    def require_bits(self, n_bits_a: int) -> None:
        """Check that ONNX has an integer type for the activations.

        Raises:
            InputError: they have too many bits.
        """
        if not has_integer_type(n_bits_a):
            raise InputError(too_many_bits(n_bits_a))

    def choose(self, available: int) -> np.ndarray:
        """Random indices of the images that the file is checked on, ascending."""
        count = min(self.export_images, available)
        return np.sort(np.random.RandomState(0).permutation(available)[:count])


def add_export_flags(parser: FlagParser, with_switch: bool = False) -> None:
    """Add the flags of ``ExportSettings``; those not given are left out of the configuration.

    Args:
        with_switch: add ``--export_onnx`` as well.
    """
    group = parser.add_argument_group("ONNX")
    if with_switch:
        group.add_argument(
            f"--{ONNX_FLAG}",
            action="store_const",
            const=True,
            help="write the quantized model as an ONNX file and check it in ONNX Runtime (default "
            "off)",
        )
    group.add_argument(
        "--with_correction",
        action="store_const",
        const=True,
        help="make the correction of the logits part of the ONNX graph (default off)",
    )
    group.add_argument(
        "--int2",
        action="store_const",
        const=True,
        help="store weights and activations of 2 bits as INT2 (opset 25) instead of INT4 (default "
        "off)",
    )
    group.add_argument(
        "--export_images",
        type=int,
        help="number of images that the ONNX file is checked on (default 1000, or all if fewer)",
    )
    group.add_argument(
        "--min_agreement",
        type=float,
        help="minimum fraction of checked images on which ONNX Runtime and the simulation predict "
        "the same class, 0 to 1 (default 0.995)",
    )


def export_settings(options: argparse.Namespace) -> ExportSettings:
    """The settings of an export.

    Raises:
        InputError: one is out of range, or a package is missing.
    """
    settings = ExportSettings(**_given(options))
    settings.require_sane()
    require_export_tools()
    return settings


def optional_export_settings(options: argparse.Namespace) -> ExportSettings | None:
    """The settings of an export; None without ``--export_onnx``.

    Raises:
        InputError: as ``export_settings``, or another flag is given without ``--export_onnx``.
    """
    if getattr(options, ONNX_FLAG, None):
        return export_settings(options)
    for name, value in _given(options).items():
        raise InputError(f"{name} must be given with --{ONNX_FLAG}, got {value} alone")
    return None


def _given(options: argparse.Namespace) -> dict:
    asked = {field.name: getattr(options, field.name, None) for field in fields(ExportSettings)}
    return {name: value for name, value in asked.items() if value is not None}
