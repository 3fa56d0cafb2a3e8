"""The whole export of a model: ONNX file, check, ``export_report.json``."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import InputError
from common.files import write_json
from correction import ClusterAffineCorrection
from export.judging import OVERFLOW, agreement_limit, hint_for, problems_of
from export.runtimes import Kernels, kernels_of, machine_flags
from export.settings import ExportSettings
from export.timing import milliseconds
from export.tools import packages_for
from export.verification import REORDERED, uses_int2, verify
from export.writing import write_onnx
from logits_io.naming import EXPORT_REPORT_FILE, ONNX_FILE
from quant import QuantModel
from quant.arithmetic.spec import NOT_QUANTIZED
from quant.network.model import quant_layers

INPUT = "(pixels / white - mean) / std, RGB; white is 255, of digits 16"
# Entries of the model's metadata that go into the file and the report.
NOTES = ("arch", "num_classes", "method", "preprocess", "dataset", "weights_digest")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportJob:
    """A model and the images to check its file on.

    Attributes:
        correction: made part of the graph; None: the logits are not corrected.
        image_shape: (3, H, W).
        batches: images (B, 3, H, W) float32 and labels (B,) int64.
        notes: plain values for the file and the report: architecture, preprocessing, ...
    """

    quantized: QuantModel
    correction: ClusterAffineCorrection | None
    image_shape: tuple[int, ...]
    batches: Iterable[tuple[Tensor, Tensor]]
    notes: dict[str, Any]


def export_and_verify(
    job: ExportJob, settings: ExportSettings, folder: Path, name: str = ONNX_FILE
) -> list[str]:
    """Write the ONNX file, check it, and write the report.

    Returns:
        what the check found wrong, one line each; empty when file and model agree.

    Raises:
        InputError: the model cannot be exported, or its runtime refuses the file.
        OSError: a file cannot be written.
    """
    path, spec = folder / name, job.quantized.spec
    target = settings.target_for(spec.target)
    (folder / EXPORT_REPORT_FILE).unlink(missing_ok=True)
    _write(job, path, target, settings.int2)
    try:
        found = verify(path, job.quantized, job.batches, job.correction, target)
        kernels = kernels_of(path, target, job.quantized)
    except InputError:  # nobody may run a file that its runtime refuses
        path.unlink(missing_ok=True)
        raise
    has_int2 = settings.int2 and uses_int2(path)
    if settings.int2 and not has_int2:
        logger.warning("%s: no tensor is stored in 2 bits: none has 2 bits or fewer", name)
    limit = agreement_limit(found, settings.least_agreement(target))
    problems = problems_of(found, limit, target)
    hint = hint_for(target, spec)
    if hint == OVERFLOW:
        logger.warning("%s: %s", name, hint)
    report = {
        "file": name,
        "target": target,
        "correction": job.correction is not None,
        "int2": has_int2,
        **found,
        "kernels": asdict(kernels),
        "hint": hint,
        "weight_bits": _most_weight_bits(job.quantized),
        "machine": machine_flags(),
        "milliseconds": milliseconds(path, job.quantized, target) if settings.benchmark else None,
        "limit": limit,
        "problems": problems,
        "input": INPUT,
        **job.notes,
        "versions": {name: importlib.metadata.version(name) for name in packages_for(target)},
    }
    write_json(folder / EXPORT_REPORT_FILE, report)
    _log(name, found, kernels)
    return problems


def _write(job: ExportJob, path: Path, target: str, int2: bool) -> None:
    notes = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in job.notes.items()
    }
    write_onnx(
        job.quantized,
        path,
        job.image_shape,
        correction=job.correction,
        target=target,
        int2=int2,
        notes=notes,
    )


def _log(name: str, found: dict[str, Any], kernels: Kernels) -> None:
    sizes = found["bytes"]
    logger.info(
        "%s: argmax agreement with the simulation %.4f (of the simulation with itself, summed in "
        "another order: %.4f) on %d images; %d bytes, %d bytes in float32",
        name,
        found["agreement"],
        found[REORDERED]["agreement"],
        found["images"],
        sizes["file"],
        sizes["float32"],
    )
    logger.info("%s: %s", name, kernels.text)


def _most_weight_bits(quantized: QuantModel) -> int:
    bits = [int(layer.bits.max()) for layer in quant_layers(quantized).values()]
    return max(bits, default=NOT_QUANTIZED)
