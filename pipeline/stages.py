"""The stages of one run of ``main_imagenet.py``: quantize, run both networks, correct, save.

Everything is checked before anything is written; a failing stage leaves the files of earlier stages
as they are.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from torch import nn

from common.console import collected_warnings, log_to_file
from common.errors import InputError, RunError
from common.files import atomic_file, write_json
from common.provenance import SaveLog, StageClock
from common.torch_setup import full_float32, seed_all
from correction import (
    Corrections,
    LoadedCorrection,
    NoCorrection,
    Setting,
    SettingResult,
    fit_grid,
    plan_grid,
)
from evaluation.inference import Inference
from evaluation.metrics import topk_accuracy
from export.reporting import NOTES, ExportJob, export_and_verify
from loaders import DataPlan
from logits_io.naming import (
    CACHE_FOLDER,
    CALIBRATION_FILE,
    CONFIG_FILE,
    CORRECTED,
    CORRECTION_FILE,
    FULL_PRECISION,
    LOG_FILE,
    MODEL_FILE,
    ONNX_FILE,
    QUANTIZED,
    STATE_FOLDER,
    TENSORBOARD_FOLDER,
)
from pipeline.belonging import doubt_of_labels, early_doubts, require_top1
from pipeline.bitwidth_stage import SweepJob, run_sweep
from pipeline.context import Context
from pipeline.finishing import finish, save_summary
from pipeline.folders import open_folder, require_own_folders, run_lock
from pipeline.job import Job
from pipeline.needs import require_disk, saves_all
from pipeline.networks import NetworkPair
from pipeline.record import (
    Outline,
    identity,
    logits_metadata,
    model_metadata,
    replaced_run,
    sizes,
    zero_shares,
)
from pipeline.results import (
    Results,
    score_corrections,
    warn_of_memories,
    warning_signs,
)
from pipeline.tensorboard import RunBoard
from quant import QuantModel, UnitReport, UnitStates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        unsaved: what could not be saved, in words.
        problems: what the check of the exported file found wrong, in words.
    """

    results: Results
    unsaved: list[str]
    problems: list[str]


@full_float32()
def run(job: Job) -> Outcome:
    """Run all stages; files written by a stage stay when a later one fails.

    Raises:
        InputError: an image cannot be read, the float network is not the recipe's, or a folder
            cannot be written or holds files of the user that would be replaced.
        RunError: a stage cannot continue.
    """
    with collected_warnings() as warnings:
        return _run(job, warnings)


def _run(job: Job, warnings: list[str]) -> Outcome:
    context = dataclasses.replace(begin(job), warnings=warnings)
    with run_lock(job):
        open_run(context)
        with log_to_file(job.folder / LOG_FILE):
            return _run_stages(context)


def _run_stages(context: Context) -> Outcome:
    quantized = quantize(context)
    fitting, evaluation = run_networks(context, quantized)
    corrections = choose_corrections(context, fitting)
    results = correct(context, corrections, evaluation)
    sweep_bits(context, quantized)
    problems = export(context, quantized, corrections)
    signs = {}
    if fitting is not None:
        source = context.plan.correction_source
        signs = warning_signs(fitting, evaluation, source)
        warn_of_memories(signs, source, results)
    job = context.job
    doubt = doubt_of_labels(evaluation.logits[FULL_PRECISION], evaluation.targets)
    if doubt is not None:
        logger.warning(doubt)
    outline = Outline(
        results=results,
        signs=signs,
        zero_share=zero_shares(context.networks.network, quantized),
        started=context.started,
        logits=context.logits,
        sizes=sizes(job.folder / MODEL_FILE, quantized),
    )
    summary = save_summary(context, outline, corrections, evaluation, quantized)
    finish(context, outline, summary)
    return Outcome(results, context.saves.failures, problems)


def begin(job: Job) -> Context:
    """Read the images and check what depends on them; nothing is written but caches.

    Raises:
        InputError: an image cannot be read, the float network is not the recipe's, or the disk is
            too small.
    """
    require_disk(job)
    clock, saves = StageClock(), SaveLog()
    options = job.options
    with clock("decode images"):
        plan = job.plan.decoded(options.output.cache_dir)
    if plan.correction is not None:
        plan_grid(job.grid, len(plan.correction), job.model.num_classes)
    networks = NetworkPair(
        network=job.model.network.to(job.device),
        weights_digest=job.model.digest,
        device=job.device,
        batch_size=options.data.batch_size,
        cache_dir=options.output.cache_dir,
        saves=saves,
    )
    with clock("float network"):
        for doubt in early_doubts(job.model.entry, networks, plan.calibration):
            logger.warning(doubt)
        float_logits = _check_accuracy(job, plan, networks)
    seed_all(job.method.settings.seed)
    states = UnitStates(job.folder / STATE_FOLDER, identity(job, plan))
    board = RunBoard(options.output.log_dir or job.folder / TENSORBOARD_FOLDER)
    metadata = logits_metadata(job, plan)
    return Context(job, plan, networks, metadata, float_logits, states, board, clock, saves)


def _check_accuracy(job: Job, plan: DataPlan, networks: NetworkPair) -> np.ndarray | None:
    """Check the float network against the recipe and ``expect_top1``; None without both.

    Returns:
        (N, C) logits of the float network on the evaluation images.

    Raises:
        InputError: the float network is not as accurate as it must be.
    """
    expected = job.options.expect_top1
    if job.recipe is None and expected is None:
        return None
    found = networks.infer_float(plan.evaluation)
    logits = found.logits[FULL_PRECISION]
    if expected is not None:
        require_top1(logits, found.targets, expected)
    if job.recipe is not None and not job.options.force:
        job.recipe.require_float(100 * topk_accuracy(logits, found.targets), len(found.targets))
    return logits


def open_run(context: Context) -> None:
    """Make the run's folder and write what is known before the first stage.

    Raises:
        InputError: the folder cannot be written, files of the user would be replaced, or the run to
            resume has other settings.
    """
    job = context.job
    require_own_folders(job)
    if job.options.resume:
        context.states.require_same_settings()
    try:
        _open_folder(context)
    except OSError as error:
        raise InputError(f"output folder must be writable, got {error}") from error


def _open_folder(context: Context) -> None:
    job = context.job
    told = replaced_run(job.folder, job.config)
    if told is not None:
        logger.info(told)
    open_folder(job)
    with atomic_file(job.folder / CONFIG_FILE) as part:
        part.write_text(yaml.safe_dump(job.config), encoding="utf-8")
    write_json(job.folder / CALIBRATION_FILE, context.plan.calibration.ids)
    context.states.open(job.options.resume)
    context.written.append(job.name.run_folder)


def quantize(context: Context) -> QuantModel:
    """Quantize the network and save the quantized model."""
    job, board, saves = context.job, context.board, context.saves
    output = job.options.output

    def note_unit(report: UnitReport) -> None:
        context.units.append(report)
        with saves.attempt("the TensorBoard losses"):
            board.add_unit(report)

    def note_scalar(name: str, value: float, step: int) -> None:
        with saves.attempt("the TensorBoard losses"):
            board.add_scalar(name, value, step)

    with context.clock("quantize"):
        quantized = job.method.quantize_model(
            context.networks.network,
            None,
            context.plan.calibration.batches(job.options.data.batch_size),
            on_unit=note_unit,
            on_scalar=note_scalar,
            states=context.states,
            cache_dir=output.cache_dir or output.output_dir / CACHE_FOLDER,
        )
    with saves.attempt("the quantized model"):
        path = job.folder / MODEL_FILE
        quantized.save(path, model_metadata(job, context.plan))
        _log_sizes(path, quantized)
    return quantized


def _log_sizes(path: Path, quantized: QuantModel) -> None:
    found = sizes(path, quantized)
    logger.info(
        "%s: %d bytes; %d bytes in theory, %d bytes in float32 (%.1f times as large as the file)",
        path.name,
        found["file"],
        found["theory"],
        found["float32"],
        (found["float32"] or 0) / (found["file"] or 1),
    )


def run_networks(context: Context, quantized: nn.Module) -> tuple[Inference | None, Inference]:
    """Run both networks on the fitting and the evaluation images; save the logits of the latter.

    Returns:
        results on the images that the correction is fitted on (None if none is fitted) and on the
        evaluation images.
    """
    with context.clock("run networks and save logits"):
        fitting = None
        if context.plan.correction is not None:
            fitting = context.networks.infer_both(
                quantized, context.plan.correction, "correction images"
            )
        return fitting, _evaluate(context, quantized)


def _evaluate(context: Context, quantized: nn.Module) -> Inference:
    """The logits on the evaluation images, written to disk while the networks run."""
    job, name = context.job, context.job.name
    evaluation: Inference | None = None
    with context.saves.attempt("the initial logits"):
        with job.analyzer().writer(name.initial_folder, name.file_stem, context.metadata) as writer:
            evaluation = context.networks.infer_both(
                quantized,
                context.plan.evaluation,
                "evaluation images",
                writer.add,
                context.float_logits,
            )
        context.note_logits(name.initial_folder)
    if evaluation is None:
        raise RunError("evaluation images must be readable; the log names the one that was not")
    return evaluation


def choose_corrections(context: Context, fitting: Inference | None) -> Corrections:
    """Fit the grid of corrections, take the one from a file, or none; save the selected one."""
    job = context.job
    corrections: Corrections
    if job.correction is not None:
        corrections = LoadedCorrection(job.correction)
    elif fitting is None:
        corrections = NoCorrection()
    else:
        with context.clock("fit correction"):
            logits = fitting.logits
            corrections = fit_grid(logits[QUANTIZED], logits[FULL_PRECISION], job.grid)
    selected = corrections.selected_correction()
    with context.saves.attempt("the correction"):
        if selected is None:
            (job.folder / CORRECTION_FILE).unlink(missing_ok=True)
        else:
            selected.save(job.folder / CORRECTION_FILE)
    return corrections


def correct(context: Context, corrections: Corrections, evaluation: Inference) -> Results:
    """Score every correction and save the logits of all or of the selected one."""
    keeps_all = saves_all(context.job)

    def save(index: int, result: SettingResult, logits: np.ndarray) -> None:
        if result.setting is not None and (keeps_all or index == corrections.selected):
            _save_result(context, result.setting, logits, evaluation)

    is_corrected = context.job.options.correction.correction
    with context.clock("apply and save corrections" if is_corrected else "score logits"):
        return score_corrections(corrections, evaluation, save)


def _save_result(
    context: Context, setting: Setting, logits: np.ndarray, evaluation: Inference
) -> None:
    job, name = context.job, context.job.name
    kinds = {kind: evaluation.logits[kind] for kind in (QUANTIZED, FULL_PRECISION)}
    folder = name.results_folder(setting.alpha, setting.num_clusters, setting.pca_dim)
    has_initial = name.initial_folder in context.written
    with context.saves.attempt(folder):
        job.analyzer().save_logits_to_csv(
            folder,
            name.file_stem,
            {**kinds, CORRECTED: logits},
            evaluation.targets,
            {**context.metadata, **dataclasses.asdict(setting), **job.describe_fit()},
            same_as=name.initial_folder if has_initial else None,
        )
        context.note_logits(folder)


def sweep_bits(context: Context, quantized: QuantModel) -> None:
    """Evaluate random bits per layer on a copy of the quantized model, if requested."""
    job, settings = context.job, context.job.options.bitwidth
    folder = job.sweep_folder
    if settings is None or folder is None:
        return
    sweep = SweepJob(
        settings=settings,
        method=job.method,
        network=context.networks.network,
        quantized=quantized,
        calibration=context.plan.calibration,
        evaluation=context.plan.evaluation,
        dataset=job.dataset.name,
        device=job.device,
        batch_size=job.options.data.batch_size,
        folder=folder,
        title=f"{job.name.arch} {job.method.name}",
    )
    with context.clock("bitwidth sweep"), context.saves.attempt(folder.name):
        run_sweep(sweep)
        context.written.append(folder.name)


def export(context: Context, quantized: QuantModel, corrections: Corrections) -> list[str]:
    """Write the model as ONNX into the run's folder and check the file, if requested.

    Returns:
        what the check of the file found wrong, in words; empty if nothing.
    """
    job, settings = context.job, context.job.options.export
    problems: list[str] = []
    if settings is None:
        return problems
    images = context.plan.evaluation
    images = images.subset(settings.choose(len(images)))
    metadata = model_metadata(job, context.plan)
    export_job = ExportJob(
        quantized=quantized,
        correction=corrections.selected_correction() if settings.with_correction else None,
        image_shape=tuple(metadata["image_shape"]),
        batches=images.batches(job.options.data.batch_size),
        notes={key: metadata[key] for key in NOTES} | {"checked_on": "evaluation images"},
    )
    with context.clock("export to ONNX"), context.saves.attempt("the ONNX model"):
        try:
            problems = export_and_verify(export_job, settings, job.folder)
        except InputError as error:  # keep the rest of the run
            problems = [str(error)]
    for problem in problems:
        logger.error("%s: %s", ONNX_FILE, problem)
    return problems
