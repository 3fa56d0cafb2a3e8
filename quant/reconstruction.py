"""The engine that optimises a unit: learned rounding and learned activation steps, jointly.

Published form: BRECQ (Li et al., ICLR 2021, arXiv:2102.05426, section 3.2) for the blocks, AdaRound
for the rounding, LSQ (Esser et al., ICLR 2020, arXiv:1902.08153) for the steps, QDrop (Wei et al.,
ICLR 2022, arXiv:2203.05740) for the joint loop and the mixing. Compared with the code of QDrop and
PD-Quant; where it departs from them:

* Inputs and targets are cached unit by unit, so no prefix is ever run again.
* Scales of activations are kept positive after every step (as in QDrop, unlike PD-Quant).
* A quantizer that sees no gradient has no trainable step.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from common import progress
from quant.base import MethodSettings, generator_for, setting
from quant.chain import UnitData, reconstruction_loss
from quant.layers import ActivationQuantizer, QuantLayer, mix
from quant.model import activation_quantizers, quant_layers
from quant.primitives import MIN_SCALE
from quant.rounding import SoftRounding

MIN_TRAVEL = (
    3.0  # learning rate times iterations below which some rounding variables cannot saturate
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReconstructionSettings(MethodSettings):
    """Settings of the joint reconstruction; defaults of the QDrop code except for the
    probabilities.
    """

    iters_w: int = setting(20000, "optimisation steps per unit", low=0)
    batch_size_recon: int = setting(32, "images per optimisation step", low=1)
    weight: float = setting(0.01, "weight of the rounding penalty", low=0)
    b_start: float = setting(20.0, "exponent of the rounding penalty when it sets in", low=0)
    b_end: float = setting(2.0, "exponent of the rounding penalty at the end", low=0)
    warmup: float = setting(0.2, "share of the steps without rounding penalty", low=0, high=1)
    lr: float = setting(4e-5, "learning rate of the activation steps (cosine to 0)", low=0)
    lr_round: float = setting(1e-3, "learning rate of the rounding variables", low=0)
    prob: float = setting(
        1.0, "probability that an element keeps its quantized value inside the unit", low=0, high=1
    )
    input_prob: float = setting(
        1.0, "probability that an element of the unit's input is the quantized one", low=0, high=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        travel = self.lr_round * self.iters_w
        if 0 < travel < MIN_TRAVEL:
            logger.warning(
                "lr_round * iters_w = %.3g is below %g: some rounding variables cannot reach 0 or 1, "
                "and the final rounding is a jump; raise lr_round to %.2g",
                *(travel, MIN_TRAVEL, MIN_TRAVEL / self.iters_w),
            )


def reconstruct_unit(data: UnitData, settings: ReconstructionSettings) -> None:
    """Optimise the roundings and activation steps of a nearest-rounded unit in place, then round
    hard.
    """
    layers = list(quant_layers(data.unit).values())
    quantizers = list(activation_quantizers(data.unit).values())
    if settings.iters_w == 0 or not layers + quantizers:
        return
    generator = generator_for(settings.seed, data.index, data.device)
    _start(layers, quantizers, settings.prob, generator)
    try:
        _optimise(data, settings, layers, quantizers, generator)
    finally:
        _finish(layers, quantizers)


def _start(
    layers: list[QuantLayer],
    quantizers: list[ActivationQuantizer],
    prob: float,
    generator: torch.Generator,
) -> None:
    for layer in layers:
        weight = layer.full_precision_weight()
        layer.rounding = SoftRounding(weight, layer.scale, layer.zero_point, int(layer.bits))
    for quantizer in quantizers:
        quantizer.scale.requires_grad_(True)
        quantizer.keep_prob, quantizer.generator = prob, generator


def _finish(layers: list[QuantLayer], quantizers: list[ActivationQuantizer]) -> None:
    for layer in layers:
        if layer.rounding is not None:
            layer.codes = layer.rounding.hard_codes()
            layer.rounding = None
    for quantizer in quantizers:
        quantizer.scale = quantizer.scale.detach()
        quantizer.keep_prob, quantizer.generator = 1.0, None


@torch.enable_grad()
def _optimise(
    data: UnitData,
    settings: ReconstructionSettings,
    layers: list[QuantLayer],
    quantizers: list[ActivationQuantizer],
    generator: torch.Generator,
) -> None:
    steps = settings.iters_w
    roundings = [layer.rounding for layer in layers if layer.rounding is not None]
    scales = [quantizer.scale for quantizer in quantizers]
    optimizers: list[torch.optim.Optimizer] = []
    if roundings:
        optimizers.append(
            torch.optim.Adam([rounding.logits for rounding in roundings], lr=settings.lr_round)
        )
    schedule = None
    if scales:
        optimizers.append(torch.optim.Adam(scales, lr=settings.lr))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[-1], T_max=steps)
    picks = _draw_batches(data, settings, generator)
    for step in progress(range(1, steps + 1), f"unit {data.index} {data.name}"):
        batch, target = _batch(data, picks[step - 1], settings.input_prob, generator)
        loss = reconstruction_loss(data.unit(batch), target)
        if step >= settings.warmup * steps and settings.weight > 0:
            exponent = penalty_exponent(step, settings)
            for rounding in roundings:
                loss = loss + settings.weight * rounding.penalty(exponent)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if schedule is not None:
            schedule.step()
            _keep_positive(scales)


def penalty_exponent(step: int, settings: ReconstructionSettings) -> float:
    """The exponent falls linearly from ``b_start`` at the end of the warm-up to ``b_end`` at the
    last step.
    """
    start = settings.warmup * settings.iters_w
    left = 1.0 - (step - start) / max(settings.iters_w - start, 1.0)
    return settings.b_end + (settings.b_start - settings.b_end) * max(0.0, left)


def _draw_batches(
    data: UnitData, settings: ReconstructionSettings, generator: torch.Generator
) -> Tensor:
    """Image indices of every step, with replacement: (steps, batch), where the cache lies."""
    shape = (settings.iters_w, settings.batch_size_recon)
    count = len(data.quant_input)
    picks = torch.randint(count, shape, generator=generator, device=data.device)
    return picks.to(data.quant_input.device)


def _batch(
    data: UnitData, pick: Tensor, input_prob: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Input and target of one step; the input mixes quantized and float prefix element by
    element.
    """
    batch = data.quant_input[pick].to(data.device)
    if input_prob < 1.0:
        batch = mix(batch, data.float_input[pick].to(data.device), input_prob, generator)
    return batch, data.target[pick].to(data.device)


@torch.no_grad()
def _keep_positive(scales: list[Tensor]) -> None:
    for scale in scales:
        scale.clamp_(min=MIN_SCALE)
