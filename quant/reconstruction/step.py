"""One optimisation step of a unit: load the batch, compute the loss and its gradients, update.

Everything that changes from step to step (images, masks, exponent, learning rate) is written into
fixed buffers before the step, so that the rest can be compiled (``--compile``) or captured once and
replayed as a CUDA graph (``--cuda_graph``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from common.errors import RunError
from quant.arithmetic.optim import FusedAdam
from quant.network.chain import UnitData, reconstruction_loss
from quant.network.observe import watch
from quant.reconstruction.buffers import StepBuffers, StepInput
from quant.reconstruction.execution import Compiled, Graphs
from quant.reconstruction.prediction import PredictionDifference
from quant.reconstruction.settings import ReconstructionSettings
from quant.reconstruction.trainable import TrainableUnit


class UnitStep:
    """The optimisation step of one unit: its loss, its optimisers and how it is run.

    Args:
        trainable: the unit, made trainable.
        generator: draws the masks; on the device of the unit.
        prediction: the prediction difference of PD-Quant; None if it is off.
    """

    def __init__(
        self,
        data: UnitData,
        trainable: TrainableUnit,
        settings: ReconstructionSettings,
        generator: torch.Generator,
        prediction: PredictionDifference | None = None,
    ):
        self.data = data
        self.trainable = trainable
        self.settings = settings
        self.prediction = prediction
        probabilities = None if prediction is None else prediction.probabilities
        self.buffers = StepBuffers(data, settings, probabilities, generator)
        self._make_masks()
        self._compiled = Compiled(self.loss) if settings.compile else None
        self._graphs: Graphs | None = None
        if settings.cuda_graph and data.device.type == "cuda":
            self._graphs = Graphs(self._update, data.device)
        self._make_optimizers()
        self._count = torch.zeros((), dtype=torch.int64, device=data.device)
        self._first_bad = torch.zeros((), dtype=torch.int64, device=data.device)

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of the unit's tensors."""
        is_image = self.data.quant_input.dim() == 4
        return (
            torch.channels_last
            if self.settings.amp != "off" and is_image
            else torch.contiguous_format
        )

    def _make_masks(self) -> None:
        self.buffers.make_masks(self._quantizer_shapes(), self.memory_format)
        if self.settings.prob < 1.0:
            self.trainable.set_masks(self.buffers.masks.masks)

    @torch.no_grad()
    def _quantizer_shapes(self) -> list[torch.Size]:
        """Shape of the input of each quantizer of the unit in a step."""
        shapes: dict[nn.Module, torch.Size] = {}

        def note(quantizer: nn.Module, tensor: Tensor) -> None:
            shapes[quantizer] = tensor.shape

        with watch(self.trainable.quantizers, note):
            self.data.unit(self._unit_input(self.buffers.quant_batch.zero_()))
        return [shapes[quantizer] for quantizer in self.trainable.quantizers]

    def _make_optimizers(self) -> None:
        settings, trainable = self.settings, self.trainable
        self.optimizers: list[FusedAdam] = []
        if trainable.roundings:
            logits = [rounding.logits for rounding in trainable.roundings]
            self.optimizers.append(FusedAdam(logits, settings.lr_round))
        self.scale_optimizer: FusedAdam | None = None
        if trainable.quantizers:
            lr = settings.lr if self._graphs is None else torch.zeros((), device=self.data.device)
            self.scale_optimizer = FusedAdam([q.scale for q in trainable.quantizers], lr)
            self.optimizers.append(self.scale_optimizer)

    def run(self, step: StepInput) -> None:
        """Run one step."""
        self.load(step)
        with_penalty = step.exponent is not None
        if self._graphs is not None:
            self._graphs.run(with_penalty)
        else:
            self._update(with_penalty)

    def load(self, step: StepInput) -> None:
        """Fill the buffers and set the learning rate."""
        self.buffers.load(step)
        if self.scale_optimizer is not None:
            self.scale_optimizer.set_lr(step.lr)

    def close(self) -> None:
        """Break the reference cycle with the compiled step, so that its memory is freed at once."""
        self._compiled = self._graphs = None

    def check(self) -> None:
        """Check the losses of all steps so far.

        Raises:
            RunError: a loss was not finite; the text names unit and iteration.
        """
        bad = int(self._first_bad)
        if bad:
            raise RunError(
                f"loss of unit {self.data.index} {self.data.name} must be finite, got NaN or "
                f"infinity at iteration {bad}; a lower lr or lr_round may help"
            )

    def _unit_input(self, mixed: Tensor) -> Tensor:
        """The input of the unit.

        With the prediction difference it is the mixed batch, followed by the unmixed one.
        """
        if self.prediction is not None:
            mixed = torch.cat([mixed, self.buffers.quant_batch])
        return mixed.contiguous(memory_format=self.memory_format)

    def loss(self, with_penalty: bool) -> Tensor:
        """Loss of the batch in the buffers, 0-dimensional float32."""
        buffers = self.buffers
        mixed = buffers.mixed_input()
        enabled = self.settings.amp != "off"
        with torch.autocast(self.data.device.type, torch.bfloat16, enabled=enabled):
            output = self.data.unit(self._unit_input(mixed))
            size = len(buffers.target)
            loss = reconstruction_loss(output[:size].float(), buffers.target)
            if self.prediction is not None and buffers.teacher is not None:
                loss = loss + self.prediction.term(output[size:], buffers.teacher)
        if with_penalty:
            for penalty in self.trainable.penalty(buffers.exponent):
                loss = loss + self.settings.weight * penalty
        return loss

    def _update(self, with_penalty: bool) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = (self._compiled or self.loss)(with_penalty)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.trainable.keep_positive()
        with torch.no_grad():
            self._count += 1
            is_first = ~loss.detach().isfinite() & (self._first_bad == 0)
            self._first_bad.copy_(torch.where(is_first, self._count, self._first_bad))


def cosine(step: int, steps: int, start: float) -> float:
    """Learning rate of step 1 to ``steps``: half a cosine from ``start`` towards 0."""
    return 0.5 * start * (1.0 + math.cos(math.pi * (step - 1) / steps))
