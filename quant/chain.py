"""Walking the chain of units with cached activations: every unit is run once per visit, never its
prefix.

``N`` is the number of calibration images. The input of unit i + 1 is the output of unit i, so a
whole calibration costs one float and one quantized forward of the network on top of what the
visited method does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import InputError
from quant.layers import ActivationQuantizer
from quant.model import QuantModel, activation_quantizers, quant_layers
from quant.ranges import activation_qparams
from quant.states import UnitReport, UnitStates

FORWARD_BATCH = 64
RANGE_SAMPLES = 256  # images from which activation ranges are chosen, as in QDrop and PD-Quant

logger = logging.getLogger(__name__)


@dataclass
class UnitData:
    """One unit and its cached activations on the calibration images; tensors are (N, ...)
    float32.
    """

    index: int
    name: str
    unit: nn.Module
    float_input: Tensor  # output of the float prefix
    quant_input: Tensor  # output of the quantized prefix
    target: Tensor  # output of the float unit on the float input
    device: torch.device  # where the unit computes; the tensors may be elsewhere


@dataclass(frozen=True)
class Task:
    """What a method works on.

    Attributes:
        model: in full-precision state; quantized in place.
        reference: the float network, cut in the same way.
        network: the network that ``reference`` was made from, its batch norms unfolded.
        images: (N, channels, height, width), where the activations shall be cached.
        on_unit: told after each unit what came out.
        states: where finished units are stored; None stores nothing.
        cache_dir: for what depends on ``network`` and ``images`` alone; None keeps nothing.
    """

    model: QuantModel
    reference: QuantModel
    network: nn.Module
    images: Tensor
    on_unit: Callable[[UnitReport], None] | None = None
    states: UnitStates | None = None
    cache_dir: Path | None = None


def collect_images(loader: Iterable, num_samples: int) -> Tensor:
    """The first ``num_samples`` images of a loader of (images, labels, ...) batches or of image
    tensors.

    Returns:
        (N, channels, height, width) float tensor; N is smaller when the loader ends early, which is
        logged.

    Raises:
        InputError: the loader gives no image.
    """
    batches: list[Tensor] = []
    count = 0
    for batch in loader:
        images = batch if isinstance(batch, Tensor) else batch[0]
        batches.append(images[: num_samples - count])
        count += len(batches[-1])
        if count >= num_samples:
            break
    if count == 0:
        raise InputError("calibration set must hold at least one image, got an empty loader")
    if count < num_samples:
        logger.info("calibration set: %d images, fewer than num_samples = %d", count, num_samples)
    return torch.cat(batches)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squared error summed over channels (dimension 1), averaged over images and positions."""
    total = F.mse_loss(output, target, reduction="sum")
    return total / (target.numel() // target.shape[1])


@torch.no_grad()
def run_unit(unit: nn.Module, inputs: Tensor, device: torch.device) -> Tensor:
    """Output of a unit for (N, ...) inputs, in batches; it lies where ``inputs`` lie, pinned when
    they are.
    """
    outputs = [unit(batch.to(device)).to(inputs.device) for batch in inputs.split(FORWARD_BATCH)]
    whole = torch.cat(outputs)
    return whole.pin_memory() if inputs.is_pinned() else whole


def initialise_unit(data: UnitData, weight_mode: str, activation_mode: str) -> None:
    """Round the weights to nearest, then choose each activation's range with everything before it
    quantized.

    The ranges come from the first ``RANGE_SAMPLES`` images, as in PD-Quant.
    """
    for layer in quant_layers(data.unit).values():
        layer.quantize_to_nearest(weight_mode)
    inputs = data.quant_input[:RANGE_SAMPLES]
    for quantizer in activation_quantizers(data.unit).values():
        batches = _inputs_of(quantizer, data, inputs)
        quantizer.scale, quantizer.zero_point = activation_qparams(
            batches, quantizer.num_bits, activation_mode
        )
        quantizer.quantized = True


@torch.no_grad()
def _inputs_of(quantizer: ActivationQuantizer, data: UnitData, inputs: Tensor) -> list[Tensor]:
    """What reaches ``quantizer`` when the unit runs on ``inputs``, a tensor per batch."""
    seen: list[Tensor] = []
    handle = quantizer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        run_unit(data.unit, inputs, data.device)
    finally:
        handle.remove()
    return seen


def walk_chain(
    task: Task, modes: tuple[str, str], refine: Callable[[UnitData], None] | None = None
) -> None:
    """Quantize every unit in order: round to nearest, choose the activation ranges, then ``refine``
    it. A unit that ``task.states`` holds is taken from there.

    Args:
        modes: range modes of weights and activations (quant.ranges.RANGE_MODES).
        refine: improves the nearest-rounded unit in place; without it the result is
            round-to-nearest.
    """
    if task.model.unit_names != task.reference.unit_names:
        raise InputError("fp_model must have the same blocks as model, got another network")
    device = task.model.device
    float_input = quant_input = task.images
    for index, (name, unit) in enumerate(task.model.named_units()):
        target = run_unit(task.reference.units[index], float_input, device)
        data = UnitData(index, name, unit, float_input, quant_input, target, device)
        report = None if task.states is None else task.states.restore(index, unit)
        if report is None:
            report, quant_output = _quantize_unit(data, modes, refine)
            if task.states is not None:
                task.states.save(report, unit)
        else:
            logger.info("unit %d %s: taken from the interrupted run", index, name)
            quant_output = run_unit(unit, quant_input, device)
        _log(report, refined=refine is not None)
        if task.on_unit is not None:
            task.on_unit(report)
        float_input, quant_input = target, quant_output


def _quantize_unit(
    data: UnitData, modes: tuple[str, str], refine: Callable[[UnitData], None] | None
) -> tuple[UnitReport, Tensor]:
    """What the unit came to, and its output on the quantized inputs."""
    start = time.perf_counter()
    initialise_unit(data, *modes)
    output = run_unit(data.unit, data.quant_input, data.device)
    nearest_loss = _loss(output, data.target)
    nearest_codes = {key: layer.codes.clone() for key, layer in quant_layers(data.unit).items()}
    if refine is not None:
        refine(data)
        output = run_unit(data.unit, data.quant_input, data.device)
    report = UnitReport(
        data.index,
        data.name,
        loss_nearest=nearest_loss,
        loss=_loss(output, data.target),
        flipped=_changed_share(data.unit, nearest_codes),
        seconds=time.perf_counter() - start,
    )
    return report, output


def _log(report: UnitReport, refined: bool) -> None:
    gain = ""
    if refined:
        flipped = 100 * report.flipped
        gain = (
            f" (rounded to nearest {report.loss_nearest:.4g}, {flipped:.1f} % of roundings flipped)"
        )
    text = "unit %d %s: reconstruction loss %.4g%s, %.1f s"
    logger.info(text, report.index, report.name, report.loss, gain, report.seconds)


def _loss(output: Tensor, target: Tensor) -> float:
    """``reconstruction_loss`` over all images, in batches so that no temporary is as large as the
    cache.
    """
    pairs = zip(output.split(FORWARD_BATCH), target.split(FORWARD_BATCH), strict=True)
    total = sum(float(reconstruction_loss(out, aim)) * len(out) for out, aim in pairs)
    return total / len(output)


def _changed_share(unit: nn.Module, codes: dict[str, Tensor]) -> float:
    changed = sum(
        int((layer.codes != codes[key]).sum()) for key, layer in quant_layers(unit).items()
    )
    return changed / max(1, sum(value.numel() for value in codes.values()))
