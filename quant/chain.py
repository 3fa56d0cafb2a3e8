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

import torch
from torch import Tensor, nn

from common import InputError
from quant.layers import ActivationQuantizer
from quant.model import QuantModel, activation_quantizers, quant_layers
from quant.ranges import activation_qparams

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
class UnitReport:
    """What the quantization of a unit came to; losses are ``reconstruction_loss`` over the
    calibration images.
    """

    index: int
    name: str
    loss_nearest: float  # with round-to-nearest weights
    loss: float  # at the end
    flipped: float  # share of weights not rounded to nearest
    seconds: float


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
    return (output - target).square().sum(1).mean()


@torch.no_grad()
def run_unit(unit: nn.Module, inputs: Tensor, device: torch.device) -> Tensor:
    """Output of a unit for (N, ...) inputs, in batches; it lies where ``inputs`` lie."""
    outputs = [unit(batch.to(device)).to(inputs.device) for batch in inputs.split(FORWARD_BATCH)]
    return torch.cat(outputs)


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
    model: QuantModel,
    reference: QuantModel,
    images: Tensor,
    modes: tuple[str, str],
    refine: Callable[[UnitData], None] | None = None,
    on_unit: Callable[[UnitReport], None] | None = None,
) -> None:
    """Quantize every unit in order: round to nearest, choose the activation ranges, then ``refine``
    it.

    Args:
        model: in full-precision state; quantized in place.
        reference: the float network, cut in the same way.
        images: (N, channels, height, width), on the device on which the activations shall be kept.
        modes: range modes of weights and activations (quant.ranges.RANGE_MODES).
        refine: improves the nearest-rounded unit in place; without it the result is
            round-to-nearest.
        on_unit: told after each unit what came out.
    """
    if model.unit_names != reference.unit_names:
        raise InputError("fp_model must have the same blocks as model, got another network")
    device = model.device
    float_input = quant_input = images
    for index, (name, unit) in enumerate(model.named_units()):
        start = time.perf_counter()
        target = run_unit(reference.units[index], float_input, device)
        data = UnitData(index, name, unit, float_input, quant_input, target, device)
        initialise_unit(data, *modes)
        quant_input = run_unit(unit, data.quant_input, device)
        nearest_loss = _loss(quant_input, target)
        nearest_codes = {key: layer.codes.clone() for key, layer in quant_layers(unit).items()}
        if refine is not None:
            refine(data)
            quant_input = run_unit(unit, data.quant_input, device)
        report = UnitReport(
            index,
            name,
            loss_nearest=nearest_loss,
            loss=_loss(quant_input, target),
            flipped=_changed_share(unit, nearest_codes),
            seconds=time.perf_counter() - start,
        )
        logger.info(
            "unit %d %s: loss %.4g (nearest %.4g), %.1f %% of roundings flipped, %.1f s",
            *(index, name, report.loss, report.loss_nearest, 100 * report.flipped, report.seconds),
        )
        if on_unit is not None:
            on_unit(report)
        float_input = target


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
