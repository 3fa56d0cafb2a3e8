"""The engine that optimises a unit: learned rounding and learned activation step sizes, jointly.

Published form: BRECQ (Li et al., ICLR 2021, arXiv:2102.05426, section 3.2) for the blocks, AdaRound
for the rounding, LSQ (Esser et al., ICLR 2020, arXiv:1902.08153) for the step sizes, QDrop (Wei et
al., ICLR 2022, arXiv:2203.05740) for the joint loop and the mixing. Differences from the code of
QDrop and PD-Quant:

* Inputs and targets are cached unit by unit, so that no prefix is run again.
* Scales of activations are kept positive after every step (as in QDrop, unlike PD-Quant).
* A quantizer that gets no gradient has no trainable step size.
"""

from __future__ import annotations

import dataclasses
from contextlib import closing

import torch
from torch import Tensor

from common.console import progress
from quant.base import BaseQuantizationMethod
from quant.distillation.split import split_calibration
from quant.network.chain import Task, UnitData, generator_for, nearest, walk_chain
from quant.network.forward import run_unit
from quant.reconstruction.buffers import StepInput
from quant.reconstruction.distribution import InputCorrection
from quant.reconstruction.forecast import log_forecast
from quant.reconstruction.prediction import PredictionDifference
from quant.reconstruction.settings import ReconstructionSettings
from quant.reconstruction.step import UnitStep, cosine
from quant.reconstruction.trainable import TrainableUnit

CHECK_EVERY = {"cpu": 1, "cuda": 100}  # steps between checks of the loss, which make a GPU wait


class ReconstructionMethod(BaseQuantizationMethod):
    """Base class of the methods that reconstruct unit by unit; they differ in their settings."""

    settings_class = ReconstructionSettings
    beats_rtn = True

    def _quantize(self, task: Task) -> None:
        log_forecast(task, self.settings)
        refiner = _Refiner(task, self.settings)
        walk_chain(task, nearest(self.settings.init_wmode, self.settings.init_amode), refiner)


class _Refiner:
    """Reconstructs each unit of a task, with the terms of PD-Quant that the settings enable."""

    def __init__(self, task: Task, settings: ReconstructionSettings):
        self.settings = settings
        self.reference = task.reference
        self.probabilities: Tensor | None = None
        if settings.prediction is not None:
            logits = run_unit(task.reference, task.images, task.model.device)
            softened = logits.to(task.model.device) / settings.prediction.temperature
            self.probabilities = torch.softmax(softened, 1).to(logits.device)
        self.correction: InputCorrection | None = None
        if settings.correction is not None:
            self.correction = InputCorrection(
                task.network,
                task.images,
                settings.correction,
                task.cache_dir,
                task.model.device,
            )

    def __call__(self, data: UnitData) -> None:
        reconstruct_unit(self._corrected(data), self.settings, self._prediction(data.index))

    def _corrected(self, data: UnitData) -> UnitData:
        unit = None if self.correction is None else self.correction.unit(data.index, data.name)
        if self.correction is None or unit is None:
            return data
        inputs = self.correction.corrected(data.index, data.name, data.float_input)
        target = run_unit(unit, inputs, data.device, data.cache)
        return dataclasses.replace(data, float_input=inputs, target=target)

    def _prediction(self, index: int) -> PredictionDifference | None:
        if self.probabilities is None or self.settings.prediction is None:
            return None
        tail = list(self.reference.units)[index + 1 :]
        return PredictionDifference(self.probabilities, tail, self.settings.prediction)


def reconstruct_unit(
    data: UnitData,
    settings: ReconstructionSettings,
    prediction: PredictionDifference | None = None,
) -> None:
    """Optimise rounding and activation step sizes of a unit in place, then round hard.

    The unit must have been initialised by rounding to nearest. Without layers and quantizers, or
    with ``iters_w`` 0, nothing changes.

    Raises:
        RunError: the loss is not finite.
    """
    trainable = TrainableUnit(data.unit)
    if settings.iters_w == 0 or not trainable:
        return
    with trainable:
        _optimise(data, trainable, settings, prediction)


@torch.enable_grad()
def _optimise(
    data: UnitData,
    trainable: TrainableUnit,
    settings: ReconstructionSettings,
    prediction: PredictionDifference | None,
) -> None:
    steps = settings.iters_w
    generator = generator_for(settings.seed, data.index, data.device)
    picks = _draw_batches(data, settings, generator)
    with closing(UnitStep(data, trainable, settings, generator, prediction)) as unit_step:
        for step in progress(range(1, steps + 1), f"unit {data.index} {data.name}"):
            penalised = step >= settings.warmup * steps and settings.weight > 0
            exponent = penalty_exponent(step, settings) if penalised else None
            unit_step.run(StepInput(picks[step - 1], exponent, cosine(step, steps, settings.lr)))
            if step % CHECK_EVERY[data.device.type] == 0 or step == steps:
                unit_step.check()


def penalty_exponent(step: int, settings: ReconstructionSettings) -> float:
    """Exponent of the rounding penalty at ``step``, from 1.

    It falls linearly from ``b_start`` at the end of the warm-up to ``b_end`` at the last step.
    """
    start = settings.warmup * settings.iters_w
    left = 1.0 - (step - start) / max(settings.iters_w - start, 1.0)
    return settings.b_end + (settings.b_start - settings.b_end) * max(0.0, left)


def _draw_batches(
    data: UnitData, settings: ReconstructionSettings, generator: torch.Generator
) -> Tensor:
    """Draw image indices with replacement: (steps, batch) int64, on the device of the cache.

    Images that the distillation after it holds out are left out.
    """
    shape = (settings.iters_w, settings.batch_size_recon)
    images = torch.arange(len(data.quant_input))
    if settings.distill_steps > 0:
        _, images, _ = split_calibration(len(images), settings.seed)
    picks = torch.randint(len(images), shape, generator=generator, device=data.device)
    return images.to(data.quant_input.device)[picks.to(data.quant_input.device)]
