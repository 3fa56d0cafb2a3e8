"""The records of a run: identity, metadata, ``run.json``."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import sealed
from common.provenance import (
    SaveLog,
    StageClock,
    current_commit,
    provenance,
    utc_now,
    versions,
)
from common.remote import Remote
from loaders import DataPlan, ImageSet
from logits_io.naming import FULL_PRECISION, LAST_FILES, QUANTIZED, RUN_FILE
from logits_io.runs import promises
from pipeline.job import Job, preprocess_of
from pipeline.results import Results
from quant import QuantModel, zero_share
from quant.arithmetic.packing import float_bytes, theoretical_bytes

logger = logging.getLogger(__name__)


def identity(job: Job, plan: DataPlan) -> dict[str, Any]:
    """Everything that determines the quantized model bit for bit."""
    settings = job.method.get_quantization_params()
    for name in ("keep_cpu", "cache_activations"):  # they change no bit
        del settings[name]
    return {
        "arch": job.options.network.arch,
        "quant_method": job.method.name,
        **settings,
        "weights": job.model.digest,
        "calibration images": plan.calibration.digest(),
        "device": job.device.type,
        "torch": torch.__version__,
        "CPU threads": torch.get_num_threads(),
    }


def model_metadata(job: Job, plan: DataPlan) -> dict[str, Any]:
    """Metadata stored in the file of the quantized model."""
    entry = job.model.entry
    preprocess = preprocess_of(job.options)
    return {
        "arch": entry.arch,
        "num_classes": job.model.num_classes,
        "image_shape": list(next(plan.calibration.batches(1))[0].shape[1:]),
        "preprocess": dataclasses.asdict(preprocess),
        "method": job.method.name,
        "settings": job.method.get_quantization_params(),
        "dataset": job.dataset.name,
        "weights_digest": job.model.digest,
    }


def logits_metadata(job: Job, plan: DataPlan) -> dict[str, Any]:
    """Metadata row saved with the logits.

    It holds no timestamp, so equal commands give equal bytes; the times are in ``run.json``.
    """
    settings = job.method.settings
    return {
        "arch": job.options.network.arch,
        "method": job.method.name,
        "n_bits_w": settings.n_bits_w,
        "n_bits_a": settings.n_bits_a,
        "seed": settings.seed,
        "dataset": job.dataset.name,
        "data_digest": plan.evaluation.digest(),
        "weights_digest": job.model.digest,
        "commit": current_commit() or "unknown",
        "versions": " ".join(f"{name}={number}" for name, number in versions().items()),
    }


def sizes(path: Path, quantized: QuantModel) -> dict[str, int | None]:
    """Bytes of the quantized model: of its file (None: not saved), in theory, and in float32."""
    state = quantized.state_dict()
    return {
        "file": path.stat().st_size if path.is_file() else None,
        "theory": theoretical_bytes(state),
        "float32": float_bytes(state),
    }


def zero_shares(float_network: nn.Module, quantized: QuantModel) -> dict[str, float]:
    """Fraction of exact zeros among the weights and biases of both networks."""
    networks = {FULL_PRECISION: float_network, QUANTIZED: quantized}
    return {name: zero_share(network) for name, network in networks.items()}


@dataclass(frozen=True)
class Outline:
    """The results of a run that go into its record.

    Attributes:
        signs: confidences and agreements on the fitting and the evaluation images.
        started: UTC time of the start.
        logits: names of the folders of logits below the root.
        sizes: bytes of the quantized model: of its file (None: not saved), in theory, and in
            float32.
    """

    results: Results
    signs: Mapping[str, float]
    zero_share: Mapping[str, float]
    started: str
    logits: Sequence[str]
    sizes: Mapping[str, int | None]


def run_record(
    job: Job, plan: DataPlan, outline: Outline, clock: StageClock, saves: SaveLog
) -> dict[str, Any]:
    """The content of run.json."""
    corrected = outline.results.corrected
    return {
        **provenance(job.argv),
        "started": outline.started,
        "finished": utc_now(),
        "config": job.config,
        "device": str(job.device),
        "model": {"weights": job.model.weights, "digest": job.model.digest},
        "data": {
            "dataset": job.dataset.name,
            "calibration": _describe_images(plan.calibration, job.plan.calibration),
            "correction": _describe_images(plan.correction, job.plan.correction),
            "evaluation": _describe_images(plan.evaluation, job.plan.evaluation),
            "evaluated": outline.results.images,
        },
        "figures": {
            "fullprecision": outline.results.full_precision.as_record(),
            "quantized": outline.results.quantized.as_record(),
            "corrected": None if corrected is None else corrected.as_record(),
        },
        "recipe": None if job.recipe is None else dataclasses.asdict(job.recipe),
        "zero_share": dict(outline.zero_share),
        "sizes": dict(outline.sizes),
        "warning_signs": dict(outline.signs),
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "unsaved": saves.failures,
        **promises(job.root, job.name.file_stem, outline.logits, job.files()),
    }


def replaced_run(folder: Path, config: Mapping[str, Any]) -> str | None:
    """What to say of a finished run in ``folder`` that one with other settings replaces, if any."""
    try:
        before = (sealed.read_record(folder / RUN_FILE) or {})["config"]
        now = json.loads(json.dumps(config))
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none is finished, or its record is damaged
    if not changed:
        return None
    key = changed[0]
    old, new = ("the default" if v is None else v for v in (before.get(key), now.get(key)))
    values = f"{key} = {old} (now {new})"
    return f"replaces the earlier run in {folder}, which had {values}"


def _describe_images(used: ImageSet | None, asked: ImageSet | None) -> dict[str, Any] | None:
    if used is None or asked is None:
        return None
    return {"images": len(used), "skipped": len(asked) - len(used), "digest": used.digest()}


def write_record(job: Job, record: Mapping[str, Any], saves: SaveLog) -> None:
    """Write ``run.json`` into the folder of the run and that of the method.

    It is written last, because its presence marks the run as complete.
    """
    for folder in (job.folder, job.root):
        with saves.attempt(RUN_FILE):
            sealed.write_record(folder / RUN_FILE, record)


def copy_to_url(job: Job, written: list[str], clock: StageClock, saves: SaveLog) -> None:
    """Copy the output of the run to ``output_url``, if there is one, its record last.

    Args:
        written: folders below the root.
    """
    url = job.options.output.output_url
    if url is None:
        return
    with clock(f"copy to {url}"), saves.attempt(url):
        remote = Remote(f"{url.rstrip('/')}/{job.method.name}")
        for folder in written:
            remote.put_folder(job.root / folder, folder, LAST_FILES)
        remote.put_file(job.root / RUN_FILE)
