"""Evaluation of a quantized model at random bits per layer: a stage of ``main_imagenet.py``.

Letters: N images, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.console import progress
from common.files import written_alone
from evaluation.metrics import kl_divergence, log_softmax, topk_accuracy
from loaders import ImageSet
from pipeline.bitwidth_flags import SweepSettings
from plots.axes import save_figure
from plots.bitwidth import sweep_figure
from quant import BaseQuantizationMethod, QuantModel, capture
from quant.bitwidth.assignments import (
    PTQ,
    WEIGHTINGS,
    cost_of_configuration,
    draw_configurations,
    get_configuration,
    kept_bitwidths,
    measure_macs,
    quantized_layers,
    set_configuration,
    stream,
    weighted_average,
)
from quant.bitwidth.banks import (
    BankedLayer,
    BankRequest,
    SweepModel,
    build_sweep,
    choose_assignment,
    draw_with_average,
    fixed_layers,
    method_runner,
    sizes_of,
)
from quant.bitwidth.report import (
    ANCHOR,
    FIGURE_FILE,
    RANDOM,
    REFERENCE,
    SENSITIVITY_FILE,
    SweepStatistics,
    open_sweep_folder,
    sweep_statistics,
    write_sweep,
    write_table,
)
from quant.bitwidth.statistics import statistics_lines
from quant.network.calibration import collect_calibration
from quant.network.capture import EXAMPLES

HEADING = "Random Bitwidths PTQ Statistics"
DEFAULT_SAMPLES = 2048
SENSITIVITY_SAMPLES = 1024  # calibration images, at most
RANDOM_AT_TARGET = 20
SENSITIVITY_COLUMNS = ("layer", "bits", "weights", "top1", "top1_drop", "kl", "kl_calibration")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepJob:
    """Model, images and settings of an evaluation at random bits per layer.

    Attributes:
        network: the float network on ``device`` that ``quantized`` was made from.
        folder: output folder.
    """

    settings: SweepSettings
    method: BaseQuantizationMethod
    network: nn.Module
    quantized: QuantModel
    calibration: ImageSet
    evaluation: ImageSet
    dataset: str
    device: torch.device
    batch_size: int
    folder: Path
    title: str


class _Images:
    """Batches in memory and the float network's logits on them."""

    def __init__(self, images: ImageSet, job: SweepJob):
        self.batches = [(x.to(job.device), y) for x, y in images.batches(job.batch_size)]
        self.targets = np.concatenate([labels.numpy() for _, labels in self.batches])
        self.reference = self.logits(job.network)

    @torch.inference_mode()
    def logits(self, network: nn.Module) -> np.ndarray:
        """(N, C) float32 logits of a network on all batches."""
        parts: list[Tensor] = [network(images).float().cpu() for images, _ in self.batches]
        return torch.cat(parts).numpy()

    def figures(self, logits: np.ndarray) -> dict[str, float]:
        """Top-1, Top-5, cross-entropy and KL from the float network, of (N, C) logits."""
        own = np.take_along_axis(log_softmax(logits), self.targets[:, None], axis=1)
        return {
            "top1": topk_accuracy(logits, self.targets),
            "top5": topk_accuracy(logits, self.targets, min(5, logits.shape[1])),
            "loss": float(-own.mean()),
            "kl": kl_divergence(self.reference, logits),
        }


class _Prefix:
    """Cached outputs of the units in front of a changed layer, which need not run again.

    Args:
        model: the model to run; nothing is cached at first.
    """

    def __init__(self, model: QuantModel, images: _Images):
        self.model, self.images, self.start = model, images, 0
        self.inputs = [x for x, _ in images.batches]

    @torch.inference_mode()
    def advance(self, unit: int) -> None:
        """Run the units before ``unit`` at their present bits and keep their outputs."""
        for part in self.model.units[self.start : unit]:
            self.inputs = [part(x) for x in self.inputs]
        self.start = unit

    @torch.inference_mode()
    def logits(self) -> np.ndarray:
        """(N, C) float32 logits, computed from the cached outputs on."""
        parts = []
        for x in self.inputs:
            for unit in self.model.units[self.start :]:
                x = unit(x)
            parts.append(x.float().cpu())
        return torch.cat(parts).numpy()


def run_sweep(job: SweepJob) -> None:
    """Evaluate random assignments and write the results; the quantized model is not changed.

    Raises:
        InputError: no layer has bits that may change.
        OSError: the files cannot be written.
    """
    _Sweep(job).run()


class _Sweep:
    """An evaluation at random bits in progress."""

    def __init__(self, job: SweepJob):
        self.job, self.settings = job, job.settings
        seed = job.method.settings.seed if self.settings.seed is None else self.settings.seed
        self.seed = seed
        self.model = self._build()
        self.layers = quantized_layers(self.model)
        self.images = _Images(self._evaluation_images(), job)
        self.rows: list[dict[str, Any]] = []

    def _build(self) -> SweepModel:
        job, settings = self.job, self.settings
        images, _ = collect_calibration(self._calibration_batches(), EXAMPLES)
        network = capture(job.network, images)
        request = BankRequest(
            options=settings.options,
            bank=settings.bank,
            act_rule=settings.act,
            range_mode=getattr(job.method.settings, "init_wmode", "mse"),
            run=method_runner(job.method, network, self._calibration_batches),
        )
        return build_sweep(job.quantized, request)

    def _calibration_batches(self) -> list:
        return list(self.job.calibration.batches(self.job.batch_size))

    def _evaluation_images(self) -> ImageSet:
        images = self.job.evaluation
        default = len(images) if self.job.dataset == "digits" else DEFAULT_SAMPLES
        count = min(len(images), self.settings.samples or default)
        order = np.random.RandomState(self.seed).permutation(len(images))
        return images.subset(np.sort(order[:count])).loaded()

    def run(self) -> None:
        settings = self.settings
        measure_macs(self.model, self.images.batches[0][0][:1])
        self._evaluate_all()
        statistics = sweep_statistics(self.rows, settings.weighting, settings.tolerance)
        for line in statistics_lines(statistics.statistics, HEADING) + statistics.interpretation:
            logger.info("%s", line)
        about: dict[str, Any] = {"settings": self._describe(), "layers": self._layer_table()}
        sensitivity: list[dict[str, Any]] = []
        if settings.sensitivity or settings.target_average:
            sensitivity = self._sensitivity()
        if settings.target_average:
            about["targets"] = [self._target(sensitivity, b) for b in settings.target_average]
        with written_alone(self.job.folder):
            self._write(statistics, about, sensitivity)
        logger.info("evaluation at random bits per layer written to %s", self.job.folder)

    def _write(
        self,
        statistics: SweepStatistics,
        about: dict[str, Any],
        sensitivity: list[dict[str, Any]],
    ) -> None:
        folder = self.job.folder
        open_sweep_folder(folder)
        if sensitivity:
            write_table(folder / SENSITIVITY_FILE, sensitivity, SENSITIVITY_COLUMNS)
        figure = sweep_figure(statistics, self.job.title, len(self.images.targets))
        save_figure(folder / FIGURE_FILE, figure)
        write_sweep(folder, self.rows, statistics, about, self.job.title)

    def _evaluate_all(self) -> None:
        settings = self.settings
        rng = stream(self.seed, PTQ)
        drawn = draw_configurations(
            settings.options, len(self.layers), settings.num_configs, rng, settings.sampling
        )
        logger.info("Validating with %d random bitwidth configurations...", len(drawn))
        for number, bits in enumerate(drawn, 1):
            row = self._evaluate(RANDOM, number, bits)
            logger.info(
                "Config %d/%d: Acc=%.4f, Loss=%.4f, Avg Bitwidth=%.2f (%s)",
                number,
                len(drawn),
                row["top1"],
                row["loss"],
                row[f"avg_{settings.weighting}"],
                settings.weighting,
            )
        for number, option in enumerate(settings.options, 1):
            self._evaluate(ANCHOR, number, [option] * len(self.layers))
        self._add_row(REFERENCE, 1, self.images.figures(self.images.reference), {}, "")

    def _evaluate(self, kind: str, number: int, bits: Sequence[int]) -> dict[str, Any]:
        with kept_bitwidths(self.model):
            set_configuration(self.model, bits)
            figures = self.images.figures(self.images.logits(self.model))
            costs = cost_of_configuration(self.model)
            text = "-".join(map(str, get_configuration(self.model).values()))
        return self._add_row(kind, number, figures, costs, text)

    def _add_row(
        self, kind: str, number: int, figures: dict[str, float], costs: dict[str, Any], bits: str
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"config": f"{kind}{number}", "kind": kind, "bits": bits}
        row |= {f"avg_{name}": costs.get(name) for name in WEIGHTINGS}
        row |= {name: costs.get(name) for name in ("relative_weight_memory", "relative_bitops")}
        row |= {name: figures[name] for name in ("top1", "top5", "loss")}
        self.rows.append(row)
        return row

    def _describe(self) -> dict[str, Any]:
        settings = self.settings
        known = {f.name: getattr(settings, f.name) for f in fields(SweepSettings)}
        note = " (mixed assignments are not re-tuned)" if settings.bank == "uniform_runs" else ""
        known |= {"options": list(settings.options), "seed": self.seed}
        known["target_average"] = list(settings.target_average)
        known |= {"bank": settings.bank + note, "samples": len(self.images.targets)}
        return known | {"n_bits_a": self.job.quantized.spec.n_bits_a}

    def _layer_table(self) -> list[dict[str, Any]]:
        """One row per layer; layers with fixed bits are neither drawn nor part of an average."""
        fixed = fixed_layers(self.job.quantized)
        table = [
            {"name": name, "weights": layer.num_weights, "macs": layer.macs, "fixed": False}
            for name, layer in self.layers
        ]
        modules = dict(self.job.quantized.named_modules())
        for name in sorted(fixed):
            layer = modules[name]
            table.append(
                {
                    "name": name,
                    "weights": layer.codes.numel(),
                    "bits": int(layer.bits),
                    "fixed": True,
                }
            )
        return table

    def _sensitivity(self) -> list[dict[str, Any]]:
        """Accuracy and KL with one layer at each option and all others at the highest one."""
        count = min(len(self.job.calibration), SENSITIVITY_SAMPLES)
        calibration = _Images(self.job.calibration.subset(range(count)), self.job)
        units = list(self.model.model.units)
        rows: list[dict[str, Any]] = []
        with kept_bitwidths(self.model):
            set_configuration(self.model, self.settings.options[-1])
            measured = [_Prefix(self.model.model, part) for part in (self.images, calibration)]
            best = self.images.figures(measured[0].logits())["top1"]
            for name, layer in progress(self.layers, "sensitivity", len(self.layers)):
                unit = next(i for i, part in enumerate(units) if layer.module in part.modules())
                for prefix in measured:
                    prefix.advance(unit)
                rows += self._lowered(name, layer, measured, best)
        return rows

    def _lowered(
        self, name: str, layer: BankedLayer, measured: Sequence[_Prefix], best: float
    ) -> list[dict[str, Any]]:
        """The rows of one layer, which is left at the highest option."""
        rows = []
        evaluation, calibration = measured
        for bits in self.settings.options:
            layer.set_bitwidth(bits)
            figures = self.images.figures(evaluation.logits())
            row = {"layer": name, "bits": bits, "weights": layer.num_weights, "kl": figures["kl"]}
            row |= {"top1": figures["top1"], "top1_drop": best - figures["top1"]}
            reference = calibration.images.reference
            row["kl_calibration"] = kl_divergence(reference, calibration.logits())
            rows.append(row)
        return rows

    def _target(self, sensitivity: Sequence[dict[str, Any]], average: float) -> dict[str, Any]:
        """Compare a chosen assignment with the uniform one and random ones of the same average.

        The chosen one has the smallest sum of the layers' KL divergences; averages are weighted by
        parameters.
        """
        costs: dict[str, dict[int, float]] = {}
        for row in sensitivity:
            costs.setdefault(row["layer"], {})[row["bits"]] = row["kl_calibration"]
        sizes = sizes_of(self.model)
        chosen = choose_assignment([costs[name] for name, _ in self.layers], sizes, average)
        uniform = max(bits for bits in self.settings.options if bits <= average)
        rng = stream(self.seed, PTQ, 1)
        others = [
            draw_with_average(self.settings.options, sizes, average, rng)
            for _ in range(RANDOM_AT_TARGET)
        ]
        top1, uniform_top1, *random_top1 = (
            self._accuracy_at(bits) for bits in (chosen, [uniform] * len(sizes), *others)
        )
        found = {
            "average": average,
            "assignment": dict(zip(costs, chosen, strict=True)),
            "assignment_average": weighted_average(chosen, sizes),
            "top1": top1,
            "uniform_bits": uniform,
            "uniform_top1": uniform_top1,
            "random_averages": [weighted_average(bits, sizes) for bits in others],
            "random_top1": random_top1,
            "random_mean_top1": float(np.mean(random_top1)),
            "beats_uniform": top1 > uniform_top1,
            "beats_random_mean": top1 > float(np.mean(random_top1)),
        }
        logger.info(
            "Top-1 at %.2f bits on average: chosen assignment %.4f, all layers at %d bits %.4f, "
            "mean of %d random assignments %.4f (%.4f to %.4f)",
            found["assignment_average"],
            top1,
            uniform,
            uniform_top1,
            len(others),
            found["random_mean_top1"],
            min(random_top1),
            max(random_top1),
        )
        return found

    def _accuracy_at(self, bits: Sequence[int]) -> float:
        with kept_bitwidths(self.model):
            set_configuration(self.model, bits)
            return topk_accuracy(self.images.logits(self.model), self.images.targets)
