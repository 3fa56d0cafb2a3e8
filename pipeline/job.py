"""A run with everything loaded and checked, and nothing written yet."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError, first_line
from common.files import require_writable
from common.remote import Remote
from common.torch_setup import pick_device
from correction import MAX_LOGIT, ClusterAffineCorrection, GridRequest, GridShape, plan_grid
from loaders import DataPlan, Dataset, PlanRequest, load_dataset, make_plan, resolve_dataset
from loaders.transforms import Preprocess
from logits_io import LogitsAnalyzer, RunName
from logits_io.naming import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    CORRECTION_FILE,
    EVALUATION_FILE,
    MODEL_FILE,
    ONNX_FILE,
    file_name,
)
from models import (
    LoadedModel,
    brecq,
    entry_for,
    get_entry,
    load_model,
    read_arch_args,
    state_digest,
)
from pipeline.method import configuration, make_method
from pipeline.options import DEFAULT_ARCH, RunOptions
from pipeline.recipes import Recipe, load_recipe
from quant import BaseQuantizationMethod, MethodSettings
from quant.network.capture import EXAMPLES
from quant.network.outputs import OneOutput, chosen_output, named_outputs
from quant.network.own_copy import device_of, own_copy, unwrapped

IN_PYTHON = "python"  # origin of networks that are no file and no name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A run with everything checked and nothing written.

    Attributes:
        argv: the command line, for the record.
        config: every flag with its value in this run.
        shape: the grid of corrections; None where none is fitted.
        correction: the one loaded from a file; None: one is fitted, or none is used.
        recipe: the published result that the run is compared with, if any.
    """

    options: RunOptions
    argv: tuple[str, ...]
    config: dict[str, Any]
    method: BaseQuantizationMethod
    model: LoadedModel
    dataset: Dataset
    plan: DataPlan
    grid: GridRequest
    shape: GridShape | None
    correction: ClusterAffineCorrection | None
    device: torch.device
    name: RunName
    recipe: Recipe | None

    @property
    def root(self) -> Path:
        """The folder of the method, which holds the folders of all its runs."""
        return self.options.output.output_dir / self.method.name

    @property
    def folder(self) -> Path:
        """The run's own folder: model, configuration, log."""
        return self.root / self.name.run_folder

    @property
    def sweep_folder(self) -> Path | None:
        """The folder of the evaluation at random bits per layer; None if there is none."""
        settings = self.options.bitwidth
        if settings is None:
            return None
        return self.root / (settings.out or self.name.sweep_folder(self.method.name))

    def files(self) -> list[Path]:
        """The files that a finished run may have left, besides logits and its record."""
        names = (
            MODEL_FILE,
            CORRECTION_FILE,
            CONFIG_FILE,
            CALIBRATION_FILE,
            EVALUATION_FILE,
            ONNX_FILE,
        )
        summary = self.name.summary_folder
        endings = (".json", ".csv", "_comparison.csv", "_per_class.csv")
        tables = [self.root / summary / f"{summary}{ending}" for ending in endings]
        return [*(self.folder / name for name in names), *tables]

    @property
    def subject(self) -> str:
        """Network, method, bits and seed in words."""
        name = self.name
        bits = f"W{name.n_bits_w}A{name.n_bits_a}"
        return f"{name.arch} {self.method.name} {bits} seed {name.seed}"

    def describe(self) -> str:
        """The plan in words."""
        settings, plan, output = self.method.settings, self.plan, self.options.output
        images = f"{len(plan.calibration)} calibrate, "
        if plan.correction is not None:
            images += f"{len(plan.correction)} fit the correction, "
        images += f"{len(plan.evaluation)} evaluate"
        lines = {
            "model": f"{self.name.arch}, {self.model.num_classes} classes, "
            f"weights: {self.model.weights}",
            "data": f"{self.dataset.name}: {images}",
            "method": f"{self.method.name} W{settings.n_bits_w}A{settings.n_bits_a}, "
            f"seed {settings.seed}",
            "settings": ", ".join(
                f"{key}={value}" for key, value in self.method.get_quantization_params().items()
            ),
            **self._describe_correction(),
            "recipe": "none" if self.recipe is None else self.recipe.describe(),
            "device": str(self.device),
            "writes to": output.output_url or str(self.root),
        }
        return "\n".join(f"{key + ':':<12}{value}" for key, value in lines.items())

    def check_network(self) -> None:
        """Try on a few calibration images if the network can be quantized with these settings.

        Raises:
            InputError: the run would refuse it.
        """
        calibration = self.plan.calibration
        few = calibration.subset(range(min(EXAMPLES, len(calibration))))
        self.method.check(self.model.network, next(few.batches(EXAMPLES))[0])

    def warn_of_recipe(self) -> None:
        """Log a warning for every setting that differs from the recipe's."""
        if self.recipe is not None:
            config = {**self.config, "arch": brecq.their_arch(self.name.arch)}
            for change in self.recipe.changed(config):
                logger.warning("recipe %s: %s", self.recipe.name, change)

    def analyzer(self) -> LogitsAnalyzer:
        """The writer of the run's logits folders."""
        output = self.options.output
        formats = tuple(dict.fromkeys(output.logits_format))
        return LogitsAnalyzer(self.root, output.chunk_size, formats, output.compression)

    def describe_fit(self) -> dict[str, Any]:
        """Shrinkage and source of the correction, as metadata of the corrected logits."""
        if self.correction is not None:
            return {"shrinkage": self.correction.shrinkage, "correction_source": "file"}
        source = self.plan.correction_source
        return {"shrinkage": self.grid.shrinkage, "correction_source": source}

    def _describe_correction(self) -> dict[str, str]:
        """The line of the plan on the correction; none without one."""
        if self.correction is not None:
            return {"correction": f"loaded from {self.options.correction.load_correction}"}
        if self.shape is None:
            return {}
        settings = f"{len(self.shape.settings())} settings"
        return {"correction": f"{settings}, fitted on {self.plan.correction_source}"}


def prepare(options: RunOptions, argv: Sequence[str] = (), network: nn.Module | None = None) -> Job:
    """Load and check everything that a run needs; nothing is written.

    Args:
        argv: the command line that the options come from, for the record.
        network: a float network to use instead of the one that the options name; its name in the
            record is ``python:`` and its class, not that of a wrapper of data parallelism.

    Raises:
        InputError: an option, the data, the network or an output folder is unusable.
    """
    try:
        if network is not None:
            arch = f"{IN_PYTHON}:{type(unwrapped(network)).__name__}"
            named = dataclasses.replace(options.network, arch=arch)
            options = dataclasses.replace(options, network=named)
        return _prepare(options, make_method(options), tuple(argv), network)
    except OSError as error:
        raise InputError(f"files and folders must be readable, got {error}") from error


def _prepare(
    options: RunOptions,
    method: BaseQuantizationMethod,
    argv: tuple[str, ...],
    network: nn.Module | None,
) -> Job:
    settings = method.settings
    _check_stages(options, settings)
    device = pick_device(options.device)
    dataset = open_dataset(options)
    model = _open_model(options, dataset) if network is None else _given(options, dataset, network)
    plan = plan_images(options, method, dataset)
    grid = options.correction.grid(settings.seed)
    shape = None
    if plan.correction is not None:
        shape = plan_grid(grid, len(plan.correction), model.num_classes)
    arch = options.network.arch
    job = Job(
        options=options,
        argv=argv,
        config=configuration(options, method),
        method=method,
        model=model,
        dataset=dataset,
        plan=plan,
        grid=grid,
        shape=shape,
        correction=options.correction.loaded(model.num_classes),
        device=device,
        name=RunName(file_name(arch), settings.n_bits_w, settings.n_bits_a, settings.seed),
        recipe=None if options.recipe is None else load_recipe(options.recipe),
    )
    _check_output(job)
    _try_network(job)
    return job


def _check_stages(options: RunOptions, settings: MethodSettings) -> None:
    """Check that the optional stages can work with the bits of the run.

    Raises:
        InputError: one cannot.
    """
    if options.bitwidth is not None:
        options.bitwidth.require_quantized(settings.n_bits_w)
    if options.export is not None:
        options.export.require_bits(settings.n_bits_a)
        options.export.target_for(settings.quant_target)
    if options.bitwidth is not None and settings.has_target:
        raise InputError(
            f"bitwidth_sweep must be left out with quant_target {settings.quant_target}, got it"
        )


def open_dataset(options: RunOptions) -> Dataset:
    """The data set of a run.

    Raises:
        InputError: it is unusable, or none is named or found for a network that is not the example.
    """
    data, arch = options.data, options.network.arch
    name, path, reason = resolve_dataset(data.dataset, data.data_path)
    if name == "digits" and data.dataset != name and arch != DEFAULT_ARCH:
        raise InputError(
            f"data_path must be given with arch {arch}, got none "
            "(--dataset digits runs it on the embedded digits)"
        )
    logger.info("dataset: %s (%s)", name, reason)
    return load_dataset(
        name,
        path,
        preprocess_of(options),
        download=data.download,
        skip_bad=data.skip_bad_images,
        threads=data.workers or os.cpu_count() or 1,
        val_labels=data.val_labels,
        class_order=data.class_order,
    )


def preprocess_of(options: RunOptions) -> Preprocess:
    """The input transform of the network, with the changes that the flags ask for."""
    network = options.network
    entry = entry_for(network.arch, network.checkpoint, read_arch_args(network.arch_args))
    return options.inputs.applied(entry.input_for(network.weights))


def _open_model(options: RunOptions, dataset: Dataset) -> LoadedModel:
    network = options.network
    model = load_model(
        network.arch,
        network.checkpoint,
        network.weights,
        len(dataset.classes),
        network.checkpoint_format,
        network.checkpoint_key,
        read_arch_args(network.arch_args),
    )
    if network.output is not None:
        model = dataclasses.replace(model, network=OneOutput(model.network, network.output))
    if model.num_classes != len(dataset.classes):
        origin = f" ({dataset.origin})" if dataset.origin else ""
        raise InputError(
            f"model and data must have the same number of classes, got {model.num_classes} in "
            f"{network.arch} ({model.weights}) and {len(dataset.classes)} in {dataset.name}{origin}"
        )
    return model


def _given(options: RunOptions, dataset: Dataset, network: nn.Module) -> LoadedModel:
    """A network that is given in Python, as if it had been loaded."""
    entry = get_entry(options.network.arch)
    network = own_copy(network)
    return LoadedModel(entry, network, len(dataset.classes), IN_PYTHON, state_digest(network))


def plan_images(options: RunOptions, method: BaseQuantizationMethod, dataset: Dataset) -> DataPlan:
    """Choose the images of a run.

    Raises:
        InputError: more images are asked for than there are.
    """
    settings, wanted = method.settings, options.correction
    request = PlanRequest(
        seed=settings.seed,
        num_samples=settings.num_samples if "num_samples" in method.given else None,
        calibration_list=options.data.calibration_list,
        correction_samples=wanted.correction_samples,
        correction_source=wanted.correction_source,
        augment_calibration=options.data.augment_calibration,
        fit_correction=wanted.is_fitted,
    )
    return make_plan(dataset, request, settings.num_samples)


def _check_output(job: Job) -> None:
    """Check that the output can be written, without writing anything.

    Raises:
        InputError: it cannot.
    """
    output = job.options.output
    job.analyzer()
    if output.output_url is not None:
        Remote(output.output_url)
    for folder in (job.root, output.log_dir, output.cache_dir):
        if folder is not None:
            require_writable(folder)


@torch.inference_mode()
def _try_network(job: Job) -> None:
    """Run the float network on two calibration images.

    Raises:
        InputError: the images are too small for it, or its logits are not finite.
    """
    first = job.plan.calibration.subset(range(min(2, len(job.plan.calibration))))
    images = next((images for images, _ in first.batches(2)), None)
    if images is None:  # neither can be read, and --skip_bad_images is given
        return
    shape = "x".join(map(str, images.shape[1:]))
    try:
        value = job.model.network(images.to(device_of(job.model.network)))
    except Exception as error:  # noqa: BLE001  (code of the user, which can fail in every way)
        reason = first_line(error)
        raise InputError(
            f"arch must take images of {shape}, got {job.options.network.arch}: {reason}"
        ) from None
    logits = chosen_output(named_outputs(value), None)
    classes = len(job.dataset.classes)
    if not isinstance(logits, torch.Tensor) or logits.shape != (len(images), classes):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(
            f"logits of {job.options.network.arch} must have the shape (images, {classes} classes "
            f"of {job.dataset.name}), got {got} for {len(images)} images"
        )
    if not (logits.abs() <= MAX_LOGIT).all():
        raise InputError(
            f"logits of {job.name.arch} ({job.model.weights}) must be finite and at most "
            f"{MAX_LOGIT:g} in size, got {float(logits.abs().amax())}"
        )
