"""Seconds that the steps of all units will take, from a few steps of each."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Collection
from contextlib import closing

import torch
from torch import Tensor, nn

from common.errors import RunError
from quant.network.chain import Task, UnitData, nearest
from quant.network.forward import run_unit
from quant.reconstruction.buffers import StepInput
from quant.reconstruction.settings import ReconstructionSettings
from quant.reconstruction.step import UnitStep
from quant.reconstruction.trainable import TrainableUnit

MANY_STEPS = 500  # per unit, from which the time is told before the start
WARM_UP = 1  # steps that are not timed
TIMED = 2

logger = logging.getLogger(__name__)


def log_forecast(task: Task, settings: ReconstructionSettings) -> None:
    """Log about how long the optimisation will take, if it has many steps.

    Units of an earlier run that are stored are left out.
    """
    steps = settings.iters_w
    left = [
        i for i in range(len(task.model.units)) if task.states is None or not task.states.has(i)
    ]
    if steps < MANY_STEPS or not left:
        return
    try:
        seconds = step_seconds(task, settings, left)
    except RunError:  # the run itself says what is wrong, and where
        return
    logger.info(
        "plan: %d steps for each of %d units take about %s",
        steps,
        len(left),
        in_words(steps * seconds),
    )


def in_words(seconds: float) -> str:
    """A duration in the unit that gives it few digits."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.3g} hours"


def step_seconds(task: Task, settings: ReconstructionSettings, indices: Collection[int]) -> float:
    """Seconds of one step of each of some units, measured on copies with the images of one batch.

    The terms of PD-Quant, compilation and CUDA graphs are left out.

    Raises:
        RunError: a loss is not finite.
    """
    plain = dataclasses.replace(settings, compile=False, cuda_graph=False)
    values = task.images[: settings.batch_size_recon]
    total = 0.0
    for index, unit in enumerate(task.model.units):
        target = run_unit(task.reference.units[index], values, task.model.device)
        if index in indices:
            total += _seconds(copy.deepcopy(unit), values, target, task.model.device, plain)
        values = target
    return total


@torch.enable_grad()
def _seconds(
    unit: nn.Module,
    values: Tensor,
    target: Tensor,
    device: torch.device,
    settings: ReconstructionSettings,
) -> float:
    data = UnitData(0, "", unit, values, values, target, device)
    nearest("minmax", "minmax")(data)
    trainable = TrainableUnit(unit)
    if not trainable:
        return 0.0
    generator = torch.Generator(device=device).manual_seed(0)
    pick = torch.arange(len(values), device=values.device).repeat(settings.batch_size_recon)
    step = StepInput(pick[: settings.batch_size_recon], None, 0.0)
    with trainable, closing(UnitStep(data, trainable, settings, generator)) as unit_step:
        for _ in range(WARM_UP):
            unit_step.run(step)
        unit_step.check()
        start = time.perf_counter()
        for _ in range(TIMED):
            unit_step.run(step)
        unit_step.check()
        return (time.perf_counter() - start) / TIMED
