"""Walk over the chain of units with cached activations: a visit runs one unit, never its prefix.

``N`` is the number of calibration images. The cached output of unit i is the input of unit i + 1,
so a whole walk costs one float and one or two quantized forward passes of the network, besides the
work of the method.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError
from quant.network.cached import ActivationCache
from quant.network.capture import CapturedNetwork
from quant.network.forward import IN_MEMORY, MOST_IMAGES, RANGE_SAMPLES, run_front_to_back, run_unit
from quant.network.layers import ActivationQuantizer
from quant.network.model import QuantModel, quant_layers
from quant.network.states import UnitReport, UnitStates

logger = logging.getLogger(__name__)


@dataclass
class UnitData:
    """One unit and its cached activations on the calibration images, (N, ...) float32."""

    index: int
    name: str
    unit: nn.Module
    float_input: Tensor  # output of the float prefix
    quant_input: Tensor  # output of the quantized prefix
    target: Tensor  # output of the float unit on the float input
    device: torch.device  # of the unit; the tensors may be on another
    cache: ActivationCache = IN_MEMORY


@dataclass(frozen=True)
class Task:
    """Input of a method.

    Attributes:
        model: the model to quantize in place, in full-precision state.
        reference: the float network, cut into the same units.
        network: the float network that ``reference`` was made from.
        images: (N, channels, height, width); activations are cached on their device.
        labels: (N,) int64 if the settings of the method require them, else None.
        on_unit: called after each unit with its report.
        on_model: called after each unit with the model, whose later units are still in float.
        on_scalar: called with name, value and step of each further scalar to record.
        states: storage of finished units; None stores nothing.
        cache_dir: folder of results that depend only on ``network`` and ``images``; None keeps
            nothing.
        cache: where the cached activations are.
    """

    model: QuantModel
    reference: QuantModel
    network: CapturedNetwork
    images: Tensor
    labels: Tensor | None = None
    on_unit: Callable[[UnitReport], None] | None = None
    on_model: Callable[[QuantModel, UnitReport], None] | None = None
    on_scalar: Callable[[str, float, int], None] | None = None
    states: UnitStates | None = None
    cache_dir: Path | None = None
    cache: ActivationCache = IN_MEMORY


Initialise = Callable[[UnitData], Tensor | None]


def generator_for(seed: int, index: int, device: torch.device) -> torch.Generator:
    """A generator that depends only on seed and unit, so that each unit can be redone alone."""
    return torch.Generator(device=device).manual_seed(seed * 1_000_003 + index)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squared error, summed over channels (dimension 1), averaged over images and positions."""
    total = F.mse_loss(output, target, reduction="sum")
    return total / (target.numel() // target.shape[1])


def nearest(weight_mode: str, activation_mode: str) -> Initialise:
    """Make a function that quantizes a unit by rounding to nearest.

    It rounds the weights, then chooses the ranges of the activations (``choose_ranges``).

    Args:
        weight_mode, activation_mode: one of ``quant.arithmetic.ranges.RANGE_MODES``.
    """

    def initialise(data: UnitData) -> Tensor:
        for layer in quant_layers(data.unit).values():
            layer.quantize_to_nearest(weight_mode)
        return choose_ranges(data, activation_mode)

    return initialise


def choose_ranges(data: UnitData, mode: str) -> Tensor:
    """Choose the range of each activation of a unit in order, with everything before it quantized.

    Args:
        mode: one of ``quant.arithmetic.ranges.RANGE_MODES``.

    Returns:
        output of the unit on the first ``RANGE_SAMPLES`` images, from which the ranges come.
    """

    def choose(quantizer: ActivationQuantizer, batches: list[Tensor]) -> None:
        quantizer.set_qparams(*quantizer.best_qparams(batches, mode))

    inputs = data.quant_input[:RANGE_SAMPLES]
    return run_front_to_back(data.unit, inputs, data.device, choose, data.cache)


def walk_chain(
    task: Task,
    initialise: Initialise,
    refine: Callable[[UnitData], None] | None = None,
) -> None:
    """Quantize every unit in order; a unit stored in ``task.states`` is restored instead.

    Args:
        initialise: quantizes a unit in place by rounding to nearest (see ``nearest``); returns its
            output on the first of ``quant_input``, or None if it has not computed that.
        refine: then improves the unit in place.

    Raises:
        InputError: ``task.reference`` has other units than ``task.model``.
    """
    if task.model.unit_names != task.reference.unit_names:
        raise InputError("fp_model must have the same blocks as model, got another network")
    device = task.model.device
    float_input = quant_input = task.images
    for index, (name, unit) in enumerate(task.model.named_units()):
        target = run_unit(task.reference.units[index], float_input, device, task.cache)
        data = UnitData(index, name, unit, float_input, quant_input, target, device, task.cache)
        report, origin = None if task.states is None else task.states.restore(index, unit), ""
        if report is None:
            report, quant_output = _quantize_unit(data, initialise, refine)
            if task.states is not None:
                task.states.save(report, unit)
        else:
            origin = ", taken from the earlier run"
            quant_output = run_unit(unit, quant_input, device, task.cache)
        _log(report, origin, refined=refine is not None)
        if task.on_unit is not None:
            task.on_unit(report)
        if task.on_model is not None:
            task.on_model(task.model, report)
        float_input, quant_input = target, quant_output


def _quantize_unit(
    data: UnitData,
    initialise: Initialise,
    refine: Callable[[UnitData], None] | None,
) -> tuple[UnitReport, Tensor]:
    """Quantize a unit; return its report and its output on the quantized inputs."""
    start = time.perf_counter()
    output = _whole_output(data, initialise(data))
    nearest_loss = _loss(output, data.target)
    nearest_codes = {key: layer.codes.clone() for key, layer in quant_layers(data.unit).items()}
    if refine is not None:
        del output
        refine(data)
        output = run_unit(data.unit, data.quant_input, data.device, data.cache)
    report = UnitReport(
        data.index,
        data.name,
        loss_nearest=nearest_loss,
        loss=_loss(output, data.target),
        flipped=_changed_share(data.unit, nearest_codes),
        seconds=time.perf_counter() - start,
    )
    return report, output


def _whole_output(data: UnitData, first: Tensor | None) -> Tensor:
    """Output of the unit on all quantized inputs, of which ``first`` is known."""
    if first is None:
        return run_unit(data.unit, data.quant_input, data.device, data.cache)
    if len(first) == len(data.quant_input):
        return first
    rest = run_unit(data.unit, data.quant_input[len(first) :], data.device, data.cache)
    return data.cache.joined([first, rest], data.quant_input)


def _log(report: UnitReport, origin: str, refined: bool) -> None:
    gain = ""
    if refined:
        flipped = 100 * report.flipped
        gain = (
            f" (rounded to nearest {report.loss_nearest:.4g}, {flipped:.1f} % of roundings flipped)"
        )
    text = "unit %d %s: reconstruction loss %.4g%s, %.1f s%s"
    logger.info(text, report.index, report.name, report.loss, gain, report.seconds, origin)


def _loss(output: Tensor, target: Tensor) -> float:
    """``reconstruction_loss`` over all images, in batches to keep temporary tensors small."""
    pairs = zip(output.split(MOST_IMAGES), target.split(MOST_IMAGES), strict=True)
    total = sum(float(reconstruction_loss(out, aim)) * len(out) for out, aim in pairs)
    return total / len(output)


def _changed_share(unit: nn.Module, codes: dict[str, Tensor]) -> float:
    changed = sum(
        int((layer.codes != codes[key]).sum()) for key, layer in quant_layers(unit).items()
    )
    return changed / max(1, sum(value.numel() for value in codes.values()))
