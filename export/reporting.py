"""The whole export of a model: ONNX file, check, ``export_report.json``."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.files import write_json
from correction import ClusterAffineCorrection
from export.settings import ExportSettings
from export.tools import PACKAGES
from export.verification import REORDERED, uses_int2, verify
from export.writing import write_onnx
from logits_io.naming import EXPORT_REPORT_FILE, ONNX_FILE
from quant import QuantModel

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
        InputError: the model cannot be exported.
        OSError: a file cannot be written.
    """
    path = folder / name
    (folder / EXPORT_REPORT_FILE).unlink(missing_ok=True)
    notes = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in job.notes.items()
    }
    write_onnx(
        job.quantized,
        path,
        job.image_shape,
        correction=job.correction,
        int2=settings.int2,
        notes=notes,
    )
    found = verify(path, job.quantized, job.batches, job.correction)
    has_int2 = settings.int2 and uses_int2(path)
    if settings.int2 and not has_int2:
        logger.warning("%s: no tensor is stored in 2 bits: none has 2 bits or fewer", name)
    limit = _limit(found, settings.min_agreement)
    problems = _problems(found, limit)
    report = {
        "file": name,
        "correction": job.correction is not None,
        "int2": has_int2,
        **found,
        "limit": limit,
        "problems": problems,
        "input": INPUT,
        **job.notes,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
    write_json(folder / EXPORT_REPORT_FILE, report)
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
    return problems


def _limit(found: dict[str, Any], min_agreement: float) -> float:
    """The agreement that the file must reach.

    It is ``min_agreement`` or, if that is lower, the agreement of the simulation with itself when
    it sums in another order, less two standard errors.
    """
    own = found[REORDERED]["agreement"]
    return min(min_agreement, own - 2 * math.sqrt(own * (1 - own) / found["images"]))


def _problems(found: dict[str, Any], limit: float) -> list[str]:
    problems = []
    if found["wrong_integers"]:
        problems.append(
            "integers in the file must be the model's, got others in "
            f"{', '.join(found['wrong_integers'][:5])}"
        )
    low = [
        f"{level['agreement']:.4f} at {name}"
        for name, level in found["levels"].items()
        if level["agreement"] < limit
    ]
    if low:
        problems.append(
            f"argmax agreement with the simulation must be at least {limit:.4f}, got "
            f"{', '.join(low)}"
        )
    return problems
