"""One optimisation step of a unit: load the batch, compute the loss and its gradients, update.

Everything that changes from step to step (images, masks, exponent, learning rate) is written into
fixed buffers before the step, so that the rest can be compiled (``--compile``) or captured once and
replayed as a CUDA graph (``--cuda_graph``).

Letters: B images in a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import RunError
from quant.arithmetic.optim import FusedAdam
from quant.arithmetic.primitives import MIN_SCALE
from quant.arithmetic.rounding import SoftRounding
from quant.network.chain import UnitData, reconstruction_loss
from quant.network.layers import ActivationQuantizer
from quant.network.model import activation_quantizers, quant_layers
from quant.reconstruction.execution import Compiled, Graphs
from quant.reconstruction.mixing import RandomMasks
from quant.reconstruction.prediction import PredictionDifference
from quant.reconstruction.settings import ReconstructionSettings


@dataclass(frozen=True)
class StepInput:
    """What one step works on.

    Attributes:
        pick: (B,) indices of the images, where the cached activations lie.
        exponent: of the rounding penalty; None leaves the penalty out.
        lr: learning rate of the activation steps.
    """

    pick: Tensor
    exponent: float | None
    lr: float


class UnitStep:
    """The step of one unit: buffers, optimisers and the way in which it is run."""

    def __init__(
        self,
        data: UnitData,
        settings: ReconstructionSettings,
        generator: torch.Generator,
        prediction: PredictionDifference | None,
    ):
        self.data = data
        self.settings = settings
        self.prediction = prediction
        self.device = data.device
        self.memory_format = (
            torch.channels_last
            if settings.amp != "off" and data.quant_input.dim() == 4
            else torch.contiguous_format
        )
        layers = quant_layers(data.unit).values()
        roundings = [layer.rounding for layer in layers]
        self.roundings = [found for found in roundings if isinstance(found, SoftRounding)]
        self.quantizers = list(activation_quantizers(data.unit).values())
        self._compiled = Compiled(self._loss) if settings.compile else None
        self._graphs: Graphs | None = None
        if settings.cuda_graph and self.device.type == "cuda":
            self._graphs = Graphs(self._update, self.device)
        self._make_buffers()
        self._make_masks(generator)
        self._make_optimizers()

    def _make_buffers(self) -> None:
        self.quant_batch = self._buffer(self.data.quant_input)
        self.float_batch = self._buffer(self.data.float_input)
        self.target = self._buffer(self.data.target)
        self.teacher: Tensor | None = None
        if self.prediction is not None:
            self.teacher = self._buffer(self.prediction.probabilities)
        self.exponent = torch.zeros((), device=self.device)
        self.count = torch.zeros((), dtype=torch.int64, device=self.device)
        self.first_bad = torch.zeros((), dtype=torch.int64, device=self.device)

    def _buffer(self, cache: Tensor) -> Tensor:
        shape = (self.settings.batch_size_recon, *cache.shape[1:])
        return torch.empty(shape, dtype=cache.dtype, device=self.device)

    def _make_masks(self, generator: torch.Generator) -> None:
        settings, shape = self.settings, self.quant_batch.shape
        self.input_masks = RandomMasks([shape], settings.input_prob, generator, self.device)
        shapes = self._quantizer_shapes()
        self.masks = RandomMasks(shapes, settings.prob, generator, self.device, self.memory_format)
        if settings.prob < 1.0:
            for quantizer, mask in zip(self.quantizers, self.masks.masks, strict=True):
                quantizer.mask = mask

    def _make_optimizers(self) -> None:
        self.optimizers: list[FusedAdam] = []
        if self.roundings:
            logits = [rounding.logits for rounding in self.roundings]
            self.optimizers.append(FusedAdam(logits, self.settings.lr_round))
        self.scale_optimizer: FusedAdam | None = None
        if self.quantizers:
            lr = self.settings.lr if self._graphs is None else torch.zeros((), device=self.device)
            self.scale_optimizer = FusedAdam([q.scale for q in self.quantizers], lr)
            self.optimizers.append(self.scale_optimizer)

    @torch.no_grad()
    def _quantizer_shapes(self) -> list[torch.Size]:
        """Shape of the tensor that each quantizer of the unit sees in a step."""
        shapes: dict[ActivationQuantizer, torch.Size] = {}

        def note(quantizer: Any, arguments: tuple[Tensor]) -> None:
            shapes[quantizer] = arguments[0].shape

        handles = [quantizer.register_forward_pre_hook(note) for quantizer in self.quantizers]
        try:
            self.data.unit(self._unit_input(self.quant_batch.zero_()))
        finally:
            for handle in handles:
                handle.remove()
        return [shapes[quantizer] for quantizer in self.quantizers]

    def run(self, step: StepInput) -> None:
        """Make one step."""
        self._load(step)
        with_penalty = step.exponent is not None
        if self._graphs is not None:
            self._graphs.run(with_penalty)
        else:
            self._update(with_penalty)

    def close(self) -> None:
        """Let go of the ways to run, which hold the step in turn: else its memory, and the unit's
        cache, would stay until the garbage collector comes by.
        """
        self._compiled = self._graphs = None

    def check(self) -> None:
        """Look at the losses so far.

        Raises:
            RunError: one was not finite; the text names unit and iteration.
        """
        bad = int(self.first_bad)
        if bad:
            raise RunError(
                f"loss of unit {self.data.index} {self.data.name} must be finite, got NaN or infinity at "
                f"iteration {bad}; a lower lr or lr_round may help"
            )

    def _load(self, step: StepInput) -> None:
        self._gather(self.data.quant_input, step.pick, self.quant_batch)
        if self.settings.input_prob < 1.0:
            self._gather(self.data.float_input, step.pick, self.float_batch)
        self._gather(self.data.target, step.pick, self.target)
        if self.prediction is not None and self.teacher is not None:
            self._gather(self.prediction.probabilities, step.pick, self.teacher)
        self.input_masks.draw()
        self.masks.draw()
        if step.exponent is not None:
            self.exponent.fill_(step.exponent)
        if self.scale_optimizer is not None:
            self.scale_optimizer.set_lr(step.lr)

    def _gather(self, cache: Tensor, pick: Tensor, batch: Tensor) -> None:
        if cache.device == batch.device:
            torch.index_select(cache, 0, pick, out=batch)
        else:
            batch.copy_(cache[pick].pin_memory(), non_blocking=True)

    def _unit_input(self, mixed: Tensor) -> Tensor:
        """The batch that goes through the unit: with the prediction difference, the unmixed one
        behind the mixed.
        """
        if self.prediction is not None:
            mixed = torch.cat([mixed, self.quant_batch])
        return mixed.contiguous(memory_format=self.memory_format)

    def _loss(self, with_penalty: bool) -> Tensor:
        """Loss of the batch in the buffers: 0-dimensional float32."""
        mixed = self.quant_batch
        if self.settings.input_prob < 1.0:
            mixed = torch.lerp(self.float_batch, self.quant_batch, self.input_masks.masks[0])
        enabled = self.settings.amp != "off"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            output = self.data.unit(self._unit_input(mixed))
            size = len(self.target)
            loss = reconstruction_loss(output[:size].float(), self.target)
            if self.prediction is not None and self.teacher is not None:
                loss = loss + self.prediction.term(output[size:], self.teacher)
        if with_penalty:
            for rounding in self.roundings:
                loss = loss + self.settings.weight * rounding.penalty(self.exponent)
        return loss

    def _update(self, with_penalty: bool) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = (self._compiled or self._loss)(with_penalty)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for quantizer in self.quantizers:
                quantizer.scale.clamp_(min=MIN_SCALE)
            self.count += 1
            is_first = ~loss.detach().isfinite() & (self.first_bad == 0)
            self.first_bad.copy_(torch.where(is_first, self.count, self.first_bad))


def cosine(step: int, steps: int, start: float) -> float:
    """Learning rate of step 1..``steps``: half a cosine from ``start`` towards 0."""
    return 0.5 * start * (1.0 + math.cos(math.pi * (step - 1) / steps))
