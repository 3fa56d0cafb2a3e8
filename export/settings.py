"""What of a model is exported, and how closely the file must follow it."""

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


@dataclass(frozen=True)
class ExportSettings:
    """The flags of an export.

    Attributes:
        with_correction: the correction of the logits becomes part of the graph.
        int2: 2-bit integers where they suffice.
        export_images: how many images the file is run on, at most all.
        min_agreement: share of them whose argmax must be that of the simulation, unless the simulation
            itself scatters more.
    """

    with_correction: bool = False
    int2: bool = False
    export_images: int = 1000
    min_agreement: float = 0.995

    def require_sane(self) -> None:
        """Check the numbers.

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
        """Check that ONNX has integers for the activations.

        Raises:
            InputError: they have too many bits.
        """
        if MAX_ACTIVATION_BITS < n_bits_a < NOT_QUANTIZED:
            raise InputError(too_many_bits(n_bits_a))

    def choose(self, available: int) -> np.ndarray:
        """Indices of the images that the file is run on, spread over all of them, ascending."""
        count = min(self.export_images, available)
        return np.sort(np.random.RandomState(0).permutation(available)[:count])


def add_export_flags(parser: FlagParser, with_switch: bool = False) -> None:
    """The flags of ``ExportSettings``; those not given stay away from the configuration.

    Args:
        with_switch: ``--export_onnx`` too.
    """
    group = parser.add_argument_group("ONNX")
    if with_switch:
        group.add_argument(
            f"--{ONNX_FLAG}",
            action="store_const",
            const=True,
            help="write the quantized model as ONNX and check that file in onnxruntime",
        )
    group.add_argument(
        "--with_correction",
        action="store_const",
        const=True,
        help="the correction of the logits becomes part of the graph",
    )
    group.add_argument(
        "--int2",
        action="store_const",
        const=True,
        help="store weights and activations of 2 bits as INT2 (opset 25) instead of INT4",
    )
    group.add_argument(
        "--export_images", type=int, help="images to check on (default 1000), or all"
    )
    group.add_argument(
        "--min_agreement",
        type=float,
        help="share of them whose class must be that of the simulation, 0..1 (default 0.995)",
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
    """The settings of an export; None where none is asked for by ``--export_onnx``.

    Raises:
        InputError: as ``export_settings``, or a flag without ``--export_onnx``.
    """
    if getattr(options, ONNX_FLAG, None):
        return export_settings(options)
    for name, value in _given(options).items():
        raise InputError(f"{name} must be with --{ONNX_FLAG}, got {value} alone")
    return None


def _given(options: argparse.Namespace) -> dict:
    asked = {field.name: getattr(options, field.name, None) for field in fields(ExportSettings)}
    return {name: value for name, value in asked.items() if value is not None}
