"""Writing the ONNX file of a quantized model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.files import atomic_file
from correction import ClusterAffineCorrection
from export.network import exportable
from export.tools import EXACT, require_export_tools
from quant import QuantModel

OPSET = 21  # the first with 4-bit integers in QuantizeLinear and DequantizeLinear
IMAGE, LOGITS = "image", "logits"
CHATTY = ("torch.onnx", "onnxscript", "onnx_ir")


def write_onnx(
    quantized: QuantModel,
    path: Path,
    image_shape: Sequence[int],
    *,
    correction: ClusterAffineCorrection | None = None,
    target: str = EXACT,
    int2: bool = False,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a quantized model as an ONNX file.

    Input ``image`` is (N, 3, H, W) float32, normalised as for the network; output ``logits`` is
    (N, C) float32; N is free. Weights of up to 4 bits are stored as INT4, of up to 8 bits as INT8,
    of up to 16 bits as INT16. Activations are UINT4 or UINT8, with a clamp of the codes where
    neither is exact.

    Args:
        image_shape: (3, H, W).
        correction: correction to make part of the graph.
        target: ``exact``, or the runtime that the file is for; the model must have been quantized
            for it. Weights are then INT8, biases INT32 and activations UINT8.
        int2: store weights and activations of up to 2 bits as INT2 and UINT2, opset 25.
        notes: metadata to store in the file.

    Raises:
        InputError: a package is missing, the network cannot be exported, or a tensor has more bits
            than the integers of ONNX.
        OSError: the file cannot be written.
    """
    require_export_tools(target)
    import onnx
    import onnx_ir as ir

    from export.lowering import lower

    for_kernels = target != EXACT
    model = _exported(exportable(quantized, correction, for_kernels), image_shape)
    lower(model, quantized, int2, for_kernels)
    model.metadata_props.update(notes or {})
    with atomic_file(path) as part:
        ir.save(model, part)
        onnx.checker.check_model(str(part), full_check=True)


def write_float(network: nn.Module, path: Path, image_shape: Sequence[int]) -> None:
    """Write a float network as an ONNX file, with the input and output of ``write_onnx``."""
    import onnx_ir as ir

    ir.save(_exported(network, image_shape), path)


def _exported(network: nn.Module, image_shape: Sequence[int]) -> Any:
    """The network exported by torch, as an ``onnx_ir.Model``."""
    try:
        with _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (torch.zeros(2, *image_shape),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGE],
                output_names=[LOGITS],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        raise InputError(
            f"network must be one that torch can export, got: {_root_reason(error)}"
        ) from error
    assert program is not None
    return program.model


def _root_reason(error: BaseException) -> str:
    """The first line of the original error, which the exporter wraps in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress messages out of the log."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
