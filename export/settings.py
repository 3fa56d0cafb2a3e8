"""Settings of the export to ONNX, and their flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

import numpy as np

from common.errors import InputError
from common.flags import FlagParser
from export.containers import MAX_ACTIVATION_BITS, too_many_bits
from export.tools import EXACT, EXPORT_TARGETS, require_export_tools, resolved_target
from quant.arithmetic.spec import NOT_QUANTIZED

ONNX_FLAG = "export_onnx"
MAX_IMAGES = 1_000_000
LEAST_AGREEMENT, LEAST_AGREEMENT_OF_KERNELS = 0.995, 0.99


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
            the simulation agrees less with itself when it sums in another order. None: 0.995 of the
            exact file, 0.99 of another.
        export_target: of ``EXPORT_TARGETS``; None: that of the model.
        benchmark: measure the time of the file beside that of the float network.
    """

    with_correction: bool = False
    int2: bool = False
    export_images: int = 1000
    min_agreement: float | None = None
    export_target: str | None = None
    benchmark: bool = False

    def require_sane(self) -> None:
        """Check the ranges of the numbers.

        Raises:
            InputError: one is out of range.
        """
        if not 1 <= self.export_images <= MAX_IMAGES:
            raise InputError(
                f"export_images must be from 1 to {MAX_IMAGES}, got {self.export_images}"
            )
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise InputError(f"min_agreement must be from 0 to 1, got {self.min_agreement}")

    def require_bits(self, n_bits_a: int) -> None:
        """Check that ONNX has an integer type for the activations.

        Raises:
            InputError: they have too many bits.
        """
        if not has_integer_type(n_bits_a):
            raise InputError(too_many_bits(n_bits_a))

    def target_for(self, quantized_for: str) -> str:
        """The target of the file of a model that was quantized for a target.

        Raises:
            InputError: the model is for another target, ``int2`` is given with a runtime's, or a
                package is missing.
        """
        target = resolved_target(self.export_target, quantized_for)
        if self.int2 and target != EXACT:
            raise InputError(f"int2 must be left out with export_target {target}, got it")
        require_export_tools(target)
        return target

    def least_agreement(self, target: str) -> float:
        """The fraction of images on which a file for ``target`` must agree."""
        if self.min_agreement is not None:
            return self.min_agreement
        return LEAST_AGREEMENT if target == EXACT else LEAST_AGREEMENT_OF_KERNELS

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
            help="write the quantized model as an ONNX file and check it in its runtime (default "
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
        help="minimum fraction of checked images on which the file and the simulation predict "
        "the same class, 0 to 1 (default 0.995, of a file for a runtime 0.99); lowered where the "
        "simulation agrees less with itself",
    )
    group.add_argument(
        "--export_target",
        choices=EXPORT_TARGETS,
        help="exact: the smallest file, which decides as the simulation does and runs in float; "
        "openvino or onnxruntime: the file that this runtime runs in 8-bit integers, of a model "
        "made with the same --quant_target (default: that of the model)",
    )
    group.add_argument(
        "--benchmark",
        action="store_const",
        const=True,
        help="measure the milliseconds of the ONNX file and of the float network (default off)",
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
