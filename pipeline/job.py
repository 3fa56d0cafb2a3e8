"""A run with everything loaded and checked, and nothing written yet."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.files import require_writable
from common.remote import Remote
from common.torch_setup import pick_device
from correction import MAX_LOGIT, ClusterAffineCorrection, GridRequest, GridShape, plan_grid
from loaders import DataPlan, Dataset, PlanRequest, load_dataset, make_plan, resolve_dataset
from logits_io import LogitsAnalyzer, RunName
from models import LoadedModel, entry_for, load_model
from pipeline.recipes import Recipe, load_recipe
from quant import BaseQuantizationMethod

DEFAULT_SHRINKAGE = 10.0
FITTING_FLAGS = (
    *("alpha_list", "num_clusters_list", "pca_dim_list", "shrinkage", "correction_samples"),
    "correction_source",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What was asked for, as it goes into run.json."""

    argv: list[str]
    config: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A run with everything checked and nothing written."""

    options: argparse.Namespace
    record: Record
    method: BaseQuantizationMethod
    model: LoadedModel
    dataset: Dataset
    plan: DataPlan
    grid: GridRequest
    shape: GridShape
    correction: ClusterAffineCorrection | None  # from a file; None: one is fitted
    device: torch.device
    name: RunName
    recipe: Recipe | None  # the published result that the run is compared with

    @property
    def root(self) -> Path:
        return self.options.output_dir / self.method.name

    @property
    def folder(self) -> Path:
        """The run's own folder: model, configuration, log."""
        return self.root / self.name.run_folder

    def describe(self) -> str:
        """The plan in words."""
        settings = self.method.settings
        images = f"{len(self.plan.calibration)} calibrate, {len(self.plan.correction)} fit the correction"
        lines = {
            "model": f"{self.name.arch}, {self.model.num_classes} classes, weights: {self.model.weights}",
            "data": f"{self.dataset.name}: {images}, {len(self.plan.evaluation)} evaluate",
            "method": f"{self.method.name} W{settings.n_bits_w}A{settings.n_bits_a}, seed {settings.seed}",
            "settings": ", ".join(
                f"{key}={value}" for key, value in self.method.get_quantization_params().items()
            ),
            "correction": self._describe_correction(),
            "recipe": "none" if self.recipe is None else self.recipe.describe(),
            "device": str(self.device),
            "writes to": self.options.output_url or str(self.root),
        }
        return "\n".join(f"{key + ':':<12}{value}" for key, value in lines.items())

    def analyzer(self) -> LogitsAnalyzer:
        """Writes the logits folders of the run."""
        options = self.options
        formats = tuple(dict.fromkeys(options.logits_format))
        return LogitsAnalyzer(self.root, options.chunk_size, formats, options.compression)

    def describe_fit(self) -> dict[str, Any]:
        """Where the lines of the corrections come from."""
        if self.correction is not None:
            return {"shrinkage": self.correction.shrinkage, "correction_source": "file"}
        source = self.plan.correction_source
        return {"shrinkage": self.grid.shrinkage, "correction_source": source}

    def _describe_correction(self) -> str:
        if self.correction is not None:
            return f"loaded from {self.options.load_correction}"
        return f"{len(self.shape.settings())} settings, fitted on {self.plan.correction_source}"


def prepare(options: argparse.Namespace, method: BaseQuantizationMethod, record: Record) -> Job:
    """Load and check everything that a run needs; nothing is written.

    Raises:
        InputError: anything of it is unusable.
    """
    try:
        return _prepare(options, method, record)
    except OSError as error:
        raise InputError(f"files and folders must be readable, got {error}") from error


def _prepare(options: argparse.Namespace, method: BaseQuantizationMethod, record: Record) -> Job:
    settings = method.settings
    device = pick_device(options.device)
    dataset = _open_dataset(options)
    model = load_model(
        options.arch,
        options.checkpoint,
        options.weights,
        len(dataset.classes),
        options.checkpoint_format,
    )
    if model.num_classes != len(dataset.classes):
        origin = f" ({dataset.origin})" if dataset.origin else ""
        raise InputError(
            f"model and data must have the same number of classes, got {model.num_classes} in {options.arch} "
            f"({model.weights}) and {len(dataset.classes)} in {dataset.name}{origin}"
        )
    request = PlanRequest(
        seed=settings.seed,
        num_samples=getattr(options, "num_samples", None),
        calibration_list=options.calibration_list,
        correction_samples=options.correction_samples,
        correction_source=options.correction_source,
        augment_calibration=bool(options.augment_calibration),
    )
    plan = make_plan(dataset, request, settings.num_samples)
    grid = GridRequest(
        options.alpha_list,
        options.num_clusters_list,
        options.pca_dim_list,
        DEFAULT_SHRINKAGE if options.shrinkage is None else options.shrinkage,
        settings.seed,
    )
    shape = plan_grid(grid, len(plan.correction), model.num_classes)
    correction = _load_correction(options, model.num_classes)
    name = RunName(options.arch, settings.n_bits_w, settings.n_bits_a, settings.seed)
    recipe = None if options.recipe is None else load_recipe(options.recipe)
    job = Job(
        options=options,
        record=record,
        method=method,
        model=model,
        dataset=dataset,
        plan=plan,
        grid=grid,
        shape=shape,
        correction=correction,
        device=device,
        name=name,
        recipe=recipe,
    )
    job.analyzer()
    if options.output_url is not None:
        Remote(options.output_url)
    for folder in (job.root, options.log_dir):
        if folder is not None:
            require_writable(folder)
    _try_network(job)
    return job


def _load_correction(
    options: argparse.Namespace, num_classes: int
) -> ClusterAffineCorrection | None:
    if options.load_correction is None:
        return None
    for name in FITTING_FLAGS:
        value = getattr(options, name)
        if value is not None:
            flag = name.removesuffix("_list")
            raise InputError(
                f"--{flag} must be left out with --load_correction, which fits nothing, got {value}"
            )
    return ClusterAffineCorrection.load(options.load_correction, num_classes)


@torch.inference_mode()
def _try_network(job: Job) -> None:
    """Run the float network on two calibration images.

    Raises:
        InputError: the images are too small for it, or its logits are not finite.
    """
    first = job.plan.calibration.subset(range(min(2, len(job.plan.calibration))))
    images = next((images for images, _ in first.batches(2)), None)
    if images is None:  # both unreadable and to be skipped
        return
    shape = "x".join(map(str, images.shape[1:]))
    try:
        logits = job.model.network(images)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"arch must take images of {shape}, got {job.name.arch}: {reason}"
        ) from None
    if not (logits.abs() <= MAX_LOGIT).all():
        raise InputError(
            f"logits of {job.name.arch} ({job.model.weights}) must be finite and at most {MAX_LOGIT:g} in size, "
            f"got {float(logits.abs().amax())}"
        )


def _open_dataset(options: argparse.Namespace) -> Dataset:
    name, path, reason = resolve_dataset(options.dataset, options.data_path)
    logger.info("dataset: %s (%s)", name, reason)
    preprocess = entry_for(options.arch, options.checkpoint).input_for(options.weights)
    return load_dataset(
        name,
        path,
        preprocess,
        download=options.download,
        skip_bad=options.skip_bad_images,
        threads=options.workers,
        val_labels=options.val_labels,
    )
