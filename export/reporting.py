"""The whole export of a model: ONNX file, check, ``export_report.json``."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import InputError
from common.files import write_json
from correction import ClusterAffineCorrection
from export.check_images import NOISE
from export.runtimes import Kernels, adds_in_32_bits, kernels_of, machine_flags
from export.settings import ExportSettings
from export.timing import milliseconds
from export.tools import EXACT, packages_for
from export.verification import REORDERED, SIMULATION, uses_int2, verify
from export.writing import write_onnx
from logits_io.naming import EXPORT_REPORT_FILE, ONNX_FILE
from quant import QuantModel
from quant.arithmetic.spec import NO_TARGET, NOT_QUANTIZED
from quant.network.model import quant_layers

# Mean differences of logits that the sums of a runtime may make: in those of the simulation with
# itself when it sums in another order, or as a share of the mean size of the logits.
OWN_DIFFERENCES, LEAST_DIFFERENCE = 4, 0.005
INPUT = "(pixels / white - mean) / std, RGB; white is 255, of digits 16"
QUANTIZE = "for integers quantize with --quant_target openvino or onnxruntime"
OVERFLOW = (
    "this processor lacks VNNI, so that sums of products overflow here: run the file, which was "
    "made with target_vnni, on a processor that has it"
)
SLOW_INTEGERS = "this processor lacks VNNI, with which integer kernels are faster"
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
    target = settings.target_for(job.quantized.spec.target)
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
        target=target,
        int2=settings.int2,
        notes=notes,
    )
    try:
        found = verify(path, job.quantized, job.batches, job.correction, target)
        kernels = kernels_of(path, target, job.quantized)
    except InputError:  # nobody may run a file that its runtime refuses
        path.unlink(missing_ok=True)
        raise
    has_int2 = settings.int2 and uses_int2(path)
    if settings.int2 and not has_int2:
        logger.warning("%s: no tensor is stored in 2 bits: none has 2 bits or fewer", name)
    limit = _limit(found, settings.least_agreement(target))
    problems = _problems(found, limit)
    if target != EXACT:
        problems += _differences(found)
    hint = _hint(target, job.quantized)
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
    return problems


def _most_weight_bits(quantized: QuantModel) -> int:
    bits = [int(layer.bits.max()) for layer in quant_layers(quantized).values()]
    return max(bits, default=NOT_QUANTIZED)


def _differences(found: dict[str, Any]) -> list[str]:
    """What to say if the logits of the file are not those of the simulation."""
    own, size = found[REORDERED]["mean_difference"], found["mean_logit"]
    limit = max(OWN_DIFFERENCES * own, LEAST_DIFFERENCE * size)
    worst = max(level["mean_difference"] for level in found["levels"].values())
    if worst <= limit:
        return []
    return [
        f"mean difference of the logits to the simulation's must be at most {limit:.3g} (their "
        f"mean size is {size:.3g}), got {worst:.3g}"
    ]


def _hint(target: str, quantized: QuantModel) -> str:
    """How to get a file that runs in integers, or why one that does is not faster here."""
    if target != EXACT:
        if adds_in_32_bits():
            return ""
        return OVERFLOW if quantized.spec.target_vnni else SLOW_INTEGERS
    made_for = quantized.spec.target
    return QUANTIZE if made_for == NO_TARGET else f"for integers use --export_target {made_for}"


def table(folder: Path) -> str:
    """The report of a folder as lines for people."""
    report = json.loads((folder / EXPORT_REPORT_FILE).read_text(encoding="utf-8"))
    kernels, top1, time = Kernels(**report["kernels"]), report["top1_pct"], report["milliseconds"]
    lines = [
        ("file", str(folder / report["file"])),
        ("target", report["target"]),
        ("agreement", f"{100 * report['agreement']:.2f} % of {report['images']} images"),
        ("Top-1", f"{top1['file']:.2f} % (simulation {top1[SIMULATION]:.2f} %)"),
        ("logits", _difference_text(report)),
        ("weights", f"{report['weight_bits']} bits at most"),
        ("size", f"{report['bytes']['file']:,} bytes (float32 {report['bytes']['float32']:,})"),
        ("integers", kernels.text),
    ]
    if report["checked_on"] == NOISE:
        lines = [line for line in lines if line[0] != "Top-1"]
    if report["hint"]:
        lines.append(("note", report["hint"]))
    if time is not None:
        text = f"{time['file']:.2f} ms, float {time['float']:.2f} ms: speed-up {time['ratio']:.2f}"
        machine = " ".join(report["machine"])
        lines.append(("time", f"{text} (CPU time of one image, one thread; {machine})"))
    return "\n".join(f"{name + ':':<11}{text}" for name, text in lines)


def _difference_text(report: dict[str, Any]) -> str:
    """How far the logits are from the simulation's, beside the simulation with itself."""
    levels = report["levels"].values()
    mean, most = (max(level[f"{kind}_difference"] for level in levels) for kind in ("mean", "max"))
    own = report[REORDERED]["mean_difference"]
    return (
        f"differ by {mean:.2g} in the mean, {most:.2g} at most (simulation with itself {own:.2g})"
    )


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
