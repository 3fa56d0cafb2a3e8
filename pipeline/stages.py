"""The stages of one run of ``main_imagenet.py``: quantize, run both networks, correct, save.

Everything is checked before anything is written; a later stage never undoes what an earlier one has
saved.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from common.console import log_to_file, progress
from common.errors import InputError, RunError
from common.files import atomic_file, atomic_folder, write_json
from common.provenance import SaveLog, StageClock, current_commit, provenance, utc_now, versions
from common.remote import Remote
from common.torch_setup import seed_all
from correction import CorrectionGrid, LoadedCorrection, Setting, fit_grid, plan_grid
from evaluation.inference import Inference
from evaluation.metrics import Scorer, topk_accuracy
from export.reporting import NOTES, ONNX_FILE, REPORT_FILE, ExportJob, export_and_verify
from export.settings import ExportSettings
from loaders import ImageSet
from logits_io.naming import CORRECTED, FULL_PRECISION, QUANTIZED, RUN_FILE
from pipeline.bitwidth_flags import SweepSettings
from pipeline.bitwidth_stage import SweepJob, run_sweep
from pipeline.job import Job
from pipeline.networks import NetworkPair
from pipeline.results import Row, RunBoard, as_records, mark, score, warning_signs
from pipeline.summary import Summary
from quant import QuantModel, UnitReport, UnitStates, bits_by_tensor, zero_share
from quant.arithmetic.packing import float_bytes, theoretical_bytes

MODEL_FILE = "quantized_model.pt"
CORRECTION_FILE = "correction.npz"
CONFIG_FILE = "config.yaml"
CALIBRATION_FILE = "calibration_ids.json"
LOG_FILE = "run.log"
STATE_FOLDER = "state"
CACHE_FOLDER = "cache"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run came to; ``unsaved`` names what could not be written, ``problems`` what a check found
    wrong.
    """

    rows: list[Row]
    unsaved: list[str]
    problems: list[str]


@dataclass(frozen=True)
class Stages:
    """Stages that a run has only when asked for."""

    sweep: SweepSettings | None = None
    export: ExportSettings | None = None


DEFAULT_STAGES = Stages()


def run(job: Job, stages: Stages = DEFAULT_STAGES) -> Outcome:
    """Run all stages; what was saved by a stage stays when a later one fails.

    Raises:
        InputError: an image cannot be read.
    """
    return _Run(job, stages).all_stages()


class _Run:
    """A run under way."""

    def __init__(self, job: Job, stages: Stages):
        self.job = job
        self.stages = stages
        self.options = job.options
        self.clock = StageClock()
        self.saves = SaveLog()
        self.saved_initial: str | None = None
        self.written = [job.name.run_folder]  # folders below the root, in order
        self.started = utc_now()
        self.analyzer = job.analyzer()
        self.network = job.model.network.to(job.device)
        self.networks = NetworkPair(
            network=self.network,
            weights_digest=job.model.digest,
            device=job.device,
            batch_size=self.options.batch_size,
            cache_dir=self.options.cache_dir,
            saves=self.saves,
        )

    def all_stages(self) -> Outcome:
        with self.clock("decode images"):
            self.plan = self.job.plan.decoded(self.options.cache_dir)
        plan_grid(self.job.grid, len(self.plan.correction), self.job.model.num_classes)
        self.float_logits = self._check_recipe()
        seed_all(self.job.method.settings.seed)
        self.states = UnitStates(self.job.folder / STATE_FOLDER, self._identity())
        if self.options.resume:
            self.states.require_same_settings()
        self._open_folder()
        with log_to_file(self.job.folder / LOG_FILE):
            quantized = self._quantize()
            self.bits = bits_by_tensor(quantized)
            networks = {FULL_PRECISION: self.network, QUANTIZED: quantized}
            self.zero_share = {name: zero_share(network) for name, network in networks.items()}
            self.metadata = self._metadata()
            with self.clock("run networks and save logits"):
                fitting = None
                if self.job.correction is None:
                    fitting = self.networks.infer_both(
                        quantized, self.plan.correction, "correction images"
                    )
                evaluation = self._evaluate(quantized)
            grid = self._fit_correction(fitting)
            rows = self._correct(grid, evaluation)
            self._sweep_bits(quantized)
            problems = self._export(quantized, grid)
            signs = {}
            if fitting is not None:
                signs = warning_signs(fitting, evaluation, self.plan.correction_source)
            self._save_summary(rows, signs, grid, evaluation)
            self._finish(rows, signs, len(evaluation.targets))
        return Outcome(rows, self.saves.failures, problems)

    def _check_recipe(self) -> np.ndarray | None:
        """The float network's logits on the evaluation images, where a recipe says how accurate it is.

        Raises:
            InputError: it is not.
        """
        recipe = self.job.recipe
        if recipe is None:
            return None
        with self.clock("float network"):
            found = self.networks.infer_float(self.plan.evaluation)
        logits = found.logits[FULL_PRECISION]
        if not self.options.force:
            recipe.require_float(100 * topk_accuracy(logits, found.targets), len(found.targets))
        return logits

    def _open_folder(self) -> None:
        """Make the run's folder and withdraw the records that would call an unfinished run
        complete.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            self._begin_files()
        except OSError as error:
            raise InputError(f"output folder must be writable, got {error}") from error

    def _begin_files(self) -> None:
        self.job.folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.job.root, self.job.folder):
            (folder / RUN_FILE).unlink(missing_ok=True)
        for name in (ONNX_FILE, REPORT_FILE):
            (self.job.folder / name).unlink(missing_ok=True)
        with atomic_file(self.job.folder / CONFIG_FILE) as part:
            part.write_text(yaml.safe_dump(self.job.record.config), encoding="utf-8")
        write_json(self.job.folder / CALIBRATION_FILE, self.plan.calibration.ids)
        self.states.open(self.options.resume)
        log_dir = self.options.log_dir or self.job.folder / "tensorboard"
        if self.options.log_dir is None:
            shutil.rmtree(log_dir, ignore_errors=True)
        self.board = RunBoard(log_dir)

    def _identity(self) -> dict[str, Any]:
        """All that decides the quantized model to the bit; where the cache lies does not."""
        settings = self.job.method.get_quantization_params()
        del settings["keep_cpu"]
        return {
            "arch": self.job.name.arch,
            "quant_method": self.job.method.name,
            **settings,
            "weights": self.job.model.digest,
            "calibration images": self.plan.calibration.digest(),
            "device": self.job.device.type,
            "torch": torch.__version__,
            "CPU threads": torch.get_num_threads(),
        }

    def _quantize(self) -> QuantModel:
        calibration = self.plan.calibration.batches(self.options.batch_size)
        with self.clock("quantize"):
            quantized = self.job.method.quantize_model(
                self.network,
                None,
                calibration,
                on_unit=self._note_unit,
                on_scalar=self._note_scalar,
                states=self.states,
                cache_dir=self.options.cache_dir or self.options.output_dir / CACHE_FOLDER,
            )
        with self.saves.attempt("the quantized model"):
            path = self.job.folder / MODEL_FILE
            quantized.save(path, self._model_metadata())
            _log_sizes(path, quantized)
        return quantized

    def _note_unit(self, report: UnitReport) -> None:
        with self.saves.attempt("the TensorBoard losses"):
            self.board.add_unit(report)

    def _note_scalar(self, name: str, value: float, step: int) -> None:
        with self.saves.attempt("the TensorBoard losses"):
            self.board.add_scalar(name, value, step)

    def _model_metadata(self) -> dict[str, Any]:
        return {
            "arch": self.job.model.entry.arch,
            "num_classes": self.job.model.num_classes,
            "image_shape": list(next(self.plan.calibration.batches(1))[0].shape[1:]),
            "preprocess": dataclasses.asdict(self.job.model.entry.input_for(self.options.weights)),
            "method": self.job.method.name,
            "settings": self.job.method.get_quantization_params(),
            "dataset": self.job.dataset.name,
            "weights_digest": self.job.model.digest,
        }

    def _evaluate(self, quantized: nn.Module) -> Inference:
        """The logits on the evaluation images, written to disk while the networks run."""
        name = self.job.name
        evaluation: Inference | None = None
        with self.saves.attempt("the initial logits"):
            with self.analyzer.writer(name.initial_folder, name.file_stem, self.metadata) as writer:
                images = self.plan.evaluation
                evaluation = self.networks.infer_both(
                    quantized, images, "evaluation images", writer.add, self.float_logits
                )
            self.saved_initial = name.initial_folder
            self.written.append(name.initial_folder)
        if evaluation is None:
            raise RunError("evaluation images must be readable; the log tells what was not")
        return evaluation

    def _metadata(self) -> dict[str, Any]:
        """The row beside the logits: the same for the same command, so it holds no time; run.json
        does.
        """
        settings = self.job.method.settings
        return {
            "arch": self.job.name.arch,
            "method": self.job.method.name,
            "n_bits_w": settings.n_bits_w,
            "n_bits_a": settings.n_bits_a,
            "seed": settings.seed,
            "dataset": self.job.dataset.name,
            "data_digest": self.plan.evaluation.digest(),
            "weights_digest": self.job.model.digest,
            "commit": current_commit() or "unknown",
            "versions": " ".join(f"{name}={number}" for name, number in versions().items()),
        }

    def _fit_correction(self, fitting: Inference | None) -> CorrectionGrid | LoadedCorrection:
        """The grid, or the correction from a file; the selected one is saved."""
        grid: CorrectionGrid | LoadedCorrection
        if self.job.correction is not None:
            grid = LoadedCorrection(self.job.correction)
        else:
            assert fitting is not None
            with self.clock("fit correction"):
                logits = fitting.logits
                grid = fit_grid(logits[QUANTIZED], logits[FULL_PRECISION], self.job.grid)
        with self.saves.attempt("the correction"):
            grid.selected_correction().save(self.job.folder / CORRECTION_FILE)
        return grid

    def _correct(self, grid: CorrectionGrid | LoadedCorrection, evaluation: Inference) -> list[Row]:
        """Score every correction and save those asked for."""
        scorer = Scorer(evaluation.logits[FULL_PRECISION], evaluation.targets)
        rows = [score(FULL_PRECISION, evaluation.logits[FULL_PRECISION], scorer)]
        with self.clock("apply and save corrections"):
            corrected = grid.corrected(evaluation.logits[QUANTIZED])
            bar = progress(corrected, "corrections", len(grid.results))
            for index, (result, logits) in enumerate(bar):
                rows.append(score(result.kind, logits, scorer, result.setting, result.heldout_kl))
                wanted = self.options.save_results == "all" or index == grid.selected
                if wanted and result.setting is not None:
                    self._save_result(result.setting, logits, evaluation)
        return mark(rows, grid.selected + 1)

    def _sweep_bits(self, quantized: QuantModel) -> None:
        """Random bits per layer, on a copy of the quantized model."""
        if self.stages.sweep is None:
            return
        name, method = self.job.name, self.job.method
        default = f"bitwidth_sweep_{name.arch}_{method.name}_seed{method.settings.seed}"
        folder = self.stages.sweep.out or default
        sweep = SweepJob(
            settings=self.stages.sweep,
            method=method,
            network=self.network,
            quantized=quantized,
            calibration=self.plan.calibration,
            evaluation=self.plan.evaluation,
            dataset=self.job.dataset.name,
            device=self.job.device,
            batch_size=self.options.batch_size,
            folder=self.job.root / folder,
            title=f"{name.arch} {method.name}",
        )
        with self.clock("bitwidth sweep"), self.saves.attempt(folder):
            run_sweep(sweep)
            self.written.append(folder)

    def _export(self, quantized: QuantModel, grid: CorrectionGrid | LoadedCorrection) -> list[str]:
        """The model as ONNX beside its own file; returns what the check of it found wrong."""
        settings = self.stages.export
        problems: list[str] = []
        if settings is None:
            return problems
        images = self.plan.evaluation
        images = images.subset(settings.choose(len(images)))
        metadata = self._model_metadata()
        job = ExportJob(
            quantized=quantized,
            correction=grid.selected_correction() if settings.with_correction else None,
            image_shape=tuple(metadata["image_shape"]),
            batches=images.batches(self.options.batch_size),
            notes={key: metadata[key] for key in NOTES} | {"checked_on": "evaluation images"},
        )
        with self.clock("export to ONNX"), self.saves.attempt("the ONNX model"):
            try:
                problems = export_and_verify(job, settings, self.job.folder)
            except InputError as error:  # the rest of the run is worth keeping
                problems = [str(error)]
        for problem in problems:
            logger.error("%s: %s", ONNX_FILE, problem)
        return problems

    def _save_result(self, setting: Setting, logits: np.ndarray, evaluation: Inference) -> None:
        name = self.job.name
        kinds = {kind: evaluation.logits[kind] for kind in (QUANTIZED, FULL_PRECISION)}
        extra = {**dataclasses.asdict(setting), **self.job.describe_fit()}
        folder = name.results_folder(setting.alpha, setting.num_clusters, setting.pca_dim)
        with self.saves.attempt(folder):
            self.analyzer.save_logits_to_csv(
                folder,
                name.file_stem,
                {**kinds, CORRECTED: logits},
                evaluation.targets,
                {**self.metadata, **extra},
                same_as=self.saved_initial,
            )
            self.written.append(folder)

    def _save_summary(
        self,
        rows: list[Row],
        signs: dict[str, float],
        grid: CorrectionGrid | LoadedCorrection,
        evaluation: Inference,
    ) -> None:
        """Tables and figures of the run."""
        stem = self.job.name.summary_folder
        correction = grid.selected_correction()
        summary = Summary(rows, evaluation, correction, self.job.method.settings.seed)
        with self.clock("save summary"):
            with self.saves.attempt("the summary"), atomic_folder(self.job.root / stem) as part:
                content = {"rows": as_records(rows), "warning_signs": signs, "bits": self.bits}
                write_json(part / f"{stem}.json", content)
                summary.write_tables(part, stem)
                if self.options.plots:
                    summary.draw(part)
            self.written.append(stem)
            with self.saves.attempt("the TensorBoard accuracies"):
                self.board.add_results(rows)

    def _finish(self, rows: list[Row], signs: dict[str, float], evaluated: int) -> None:
        """Write the record of the run, last of all: it says that the run is complete."""
        record = {
            **provenance(self.job.record.argv),
            "started": self.started,
            "finished": utc_now(),
            "config": self.job.record.config,
            "device": str(self.job.device),
            "model": {"weights": self.job.model.weights, "digest": self.job.model.digest},
            "data": {
                "dataset": self.job.dataset.name,
                "calibration": _describe_images(self.plan.calibration, self.job.plan.calibration),
                "correction": _describe_images(self.plan.correction, self.job.plan.correction),
                "evaluation": _describe_images(self.plan.evaluation, self.job.plan.evaluation),
                "evaluated": evaluated,
            },
            "figures": {
                "fullprecision": dataclasses.asdict(rows[0]),
                "quantized": dataclasses.asdict(rows[1]),
                "corrected": dataclasses.asdict(next(row for row in rows if row.selected)),
            },
            "recipe": None if self.job.recipe is None else dataclasses.asdict(self.job.recipe),
            "zero_share": self.zero_share,
            "warning_signs": signs,
            "seconds": self.clock.seconds,
            "unsaved": self.saves.failures,
        }
        for folder in (self.job.folder, self.job.root):
            with self.saves.attempt(RUN_FILE):
                write_json(folder / RUN_FILE, record)
        self._copy_to_url()
        logger.info(
            "seconds: %s",
            ", ".join(f"{stage} {value:.1f}" for stage, value in self.clock.seconds.items()),
        )
        logger.info("written to %s", self.options.output_url or self.job.root)

    def _copy_to_url(self) -> None:
        """Copy what the run wrote to the storage that was asked for, its record last."""
        url = self.options.output_url
        if url is None:
            return
        with self.clock(f"copy to {url}"), self.saves.attempt(url):
            remote = Remote(f"{url.rstrip('/')}/{self.job.method.name}")
            for folder in self.written:
                remote.put_folder(self.job.root / folder, folder)
            remote.put_file(self.job.root / RUN_FILE)


def _log_sizes(path: Path, quantized: QuantModel) -> None:
    state = quantized.state_dict()
    logger.info(
        "%s: %d bytes; %d in theory, %d in float32 (%.1f times as large as the file)",
        path.name,
        path.stat().st_size,
        theoretical_bytes(state),
        float_bytes(state),
        float_bytes(state) / path.stat().st_size,
    )


def _describe_images(used: ImageSet, asked: ImageSet) -> dict[str, Any]:
    return {"images": len(used), "skipped": len(asked) - len(used), "digest": used.digest()}
