"""The fixed buffers that one optimisation step reads: images, targets, masks, exponent.

Letters: B images in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.network.chain import UnitData
from quant.reconstruction.mixing import RandomMasks
from quant.reconstruction.settings import ReconstructionSettings


@dataclass(frozen=True)
class StepInput:
    """Input of one optimisation step.

    Attributes:
        pick: (B,) indices of the images, on the device of the cached activations.
        exponent: exponent of the rounding penalty; None leaves the penalty out.
        lr: learning rate of the activation step sizes.
    """

    pick: Tensor
    exponent: float | None
    lr: float


class StepBuffers:
    """The buffers of one unit, allocated once and filled before each step.

    Args:
        probabilities: (N, C) of the float network, for the prediction difference; None if off.
        generator: draws the masks; on the device of the unit.

    Attributes:
        quant_batch, float_batch: (B, ...) inputs from the quantized and the float prefix.
        target: (B, ...) output of the float unit.
        teacher: (B, C) probabilities of the float network; None without the prediction difference.
        exponent: exponent of the rounding penalty, 0-dimensional.
        masks: masks of the activation quantizers; none before ``make_masks``.
    """

    def __init__(
        self,
        data: UnitData,
        settings: ReconstructionSettings,
        probabilities: Tensor | None,
        generator: torch.Generator,
    ):
        self.data = data
        self.settings = settings
        self.probabilities = probabilities
        self.generator = generator
        self.quant_batch = self._like(data.quant_input)
        self.float_batch = self._like(data.float_input)
        self.target = self._like(data.target)
        self.teacher = None if probabilities is None else self._like(probabilities)
        self.exponent = torch.zeros((), device=data.device)
        shape = self.quant_batch.shape
        self.input_masks = RandomMasks([shape], settings.input_prob, generator, data.device)
        self.masks = RandomMasks([], settings.prob, generator, data.device)

    def _like(self, cache: Tensor) -> Tensor:
        shape = (self.settings.batch_size_recon, *cache.shape[1:])
        return torch.empty(shape, dtype=cache.dtype, device=self.data.device)

    def make_masks(self, shapes: Sequence[torch.Size], memory_format: torch.memory_format) -> None:
        """Allocate a mask for each tensor shape, in the memory format of the tensors."""
        settings, device = self.settings, self.data.device
        self.masks = RandomMasks(shapes, settings.prob, self.generator, device, memory_format)

    def mixed_input(self) -> Tensor:
        """The input of the unit: elements of quantized and float batch, mixed by ``input_prob``."""
        if self.settings.input_prob == 1.0:
            return self.quant_batch
        return torch.lerp(self.float_batch, self.quant_batch, self.input_masks.masks[0])

    def load(self, step: StepInput) -> None:
        """Fill all buffers for a step."""
        _gather(self.data.quant_input, step.pick, self.quant_batch)
        if self.settings.input_prob < 1.0:
            _gather(self.data.float_input, step.pick, self.float_batch)
        _gather(self.data.target, step.pick, self.target)
        if self.probabilities is not None and self.teacher is not None:
            _gather(self.probabilities, step.pick, self.teacher)
        self.input_masks.draw()
        self.masks.draw()
        if step.exponent is not None:
            self.exponent.fill_(step.exponent)


def _gather(cache: Tensor, pick: Tensor, batch: Tensor) -> None:
    if cache.device == batch.device:
        torch.index_select(cache, 0, pick, out=batch)
    else:
        batch.copy_(cache[pick].pin_memory(), non_blocking=True)
