"""Search of the step sizes of all quantized tensors of a network (phases A and C of LAPQ)."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.console import progress
from common.errors import InputError, RunError
from quant.arithmetic.log2 import log2_qparams
from quant.arithmetic.range_search import Grid, Sample, full_qparams, search_qparams
from quant.arithmetic.ranges import NUM_BINS, histogram
from quant.arithmetic.spec import QuantSpec
from quant.methods.lapq.descent import DescentData, descend
from quant.methods.lapq.loss import LOSSES, CalibrationLoss
from quant.methods.lapq.powell import minimise
from quant.methods.lapq.settings import LapqSettings
from quant.network.chain import Task, generator_for
from quant.network.forward import RANGE_SAMPLES, run_front_to_back, run_unit
from quant.network.layers import ActivationQuantizer, QuantLayer, is_uniform
from quant.network.model import activation_quantizers, quant_layers
from quant.network.states import LossRecord

FULL_RANGE = math.inf  # the norm that counts only the largest error

QParams = tuple[Tensor, Tensor]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Ranges of all tensors, and the loss of the network with them.

    The ranges minimise |error|^norm, or were optimised from such ranges.
    """

    norm: float
    qparams: list[QParams]
    loss: float


class Tensors:
    """The quantized weights and activations of a chain, in the order of the units."""

    def __init__(self, units: list[nn.Module], settings: LapqSettings):
        self.bias_correction = settings.shifts_weights(settings.bias_correction)
        self.modules: list[QuantLayer | ActivationQuantizer] = []
        self.units: list[int] = []
        for index, unit in enumerate(units):
            self.modules += [*quant_layers(unit).values(), *activation_quantizers(unit).values()]
            self.units += [index] * (len(self.modules) - len(self.units))

    def set(self, index: int, scale: Tensor, zero_point: Tensor) -> None:
        """Set scale and zero point of a tensor; a weight is rounded to nearest again."""
        module = self.modules[index]
        if isinstance(module, ActivationQuantizer):
            module.set_qparams(scale, zero_point)
            return
        module.round_to(scale, zero_point)
        if self.bias_correction:
            module.match_moments(mean=True)

    def free(self, spec: QuantSpec) -> list[int]:
        """Indices of the tensors whose step sizes are searched: all but those of fixed bits."""
        return [i for i, module in enumerate(self.modules) if not spec.is_fixed(module.is_end)]

    def qparams(self) -> list[QParams]:
        return [(module.scale, module.zero_point) for module in self.modules]


class StepSearch:
    """The search of step sizes in the network of a task.

    Raises:
        InputError: the loss needs labels and there are none.
    """

    def __init__(self, task: Task, settings: LapqSettings):
        self.task = task
        self.settings = settings
        self.units = list(task.model.units)
        self.device = task.model.device
        self.tensors = Tensors(self.units, settings)
        self.free = self.tensors.free(task.model.spec)
        self.samples = {
            layer: weight_sample(layer)
            for unit in self.units
            for layer in quant_layers(unit).values()
        }
        self.images = task.images
        self.criterion = LOSSES[settings.lapq_loss]
        self.targets = self._targets()
        self.loss = CalibrationLoss(
            self.units, self.images, self.targets, self.criterion, self.device
        )
        self.record = LossRecord() if task.states is None else task.states.losses()
        self.changed: set[int] | None = None  # tensors changed since the last loss; None: any

    def _targets(self) -> Tensor:
        if self.settings.uses_labels:
            if self.task.labels is None:
                raise InputError(
                    "calibration set must have labels for lapq_loss ce_labels, got none"
                )
            logger.warning("labels of the calibration images are used: lapq_loss is ce_labels")
            return self.task.labels
        value = self.images
        for unit in self.task.reference.units:
            value = run_unit(unit, value, self.device)
        return value if self.settings.lapq_loss == "mse" else value.softmax(1)

    def start(self, norm: float) -> Start:
        """Phase A: set, unit by unit, the ranges that minimise |error|^norm of each tensor.

        Everything before a tensor is quantized; the ranges of activations come from the first
        ``RANGE_SAMPLES`` images.
        """
        value = self.images[:RANGE_SAMPLES]
        numbers = {module: index for index, module in enumerate(self.tensors.modules)}

        def set_range(quantizer: ActivationQuantizer, batches: list[Tensor]) -> None:
            sample, bits = histogram(batches), quantizer.num_bits
            if not is_uniform(quantizer):
                self.tensors.set(numbers[quantizer], *log2_qparams(sample, bits, norm))
                return
            scale, zero_point = _best(sample, self._grid(bits, norm, symmetric=False))
            self.tensors.set(numbers[quantizer], scale[0], zero_point[0])

        for unit in self.units:
            for quantizer in activation_quantizers(unit).values():
                quantizer.quantized = False
            for layer in quant_layers(unit).values():
                grid = self._grid(int(layer.bits), norm, layer.symmetric)
                scale, zero_point = _best(self.samples[layer], grid)
                shape = (-1,) + (1,) * (layer.codes.dim() - 1)
                self.tensors.set(numbers[layer], scale.reshape(shape), zero_point.reshape(shape))
            value = run_front_to_back(unit, value, self.device, set_range)
        self.changed = None
        loss = self.evaluate()
        logger.info("start p = %.3g: loss %.5g", norm, loss)
        if math.isfinite(norm):
            self.report("lapq/start_loss", loss, round(100 * norm))
        return Start(norm, self.tensors.qparams(), loss)

    def _grid(self, bits: int, norm: float, symmetric: bool) -> Grid:
        return Grid(bits, norm, symmetric or not self.settings.asymmetric)

    def gradient_descent(self, start: Start) -> Start:
        """Gradient descent over one factor per tensor; ``start`` if no result has a lower loss.

        It is run over all tensors, and again over only the activations, because the gradient in
        the step sizes of 2-bit weights is misleading.
        """
        modules = self.tensors.modules
        activations = [i for i in self.free if isinstance(modules[i], ActivationQuantizer)]
        found = [start]
        if self.settings.gradient_steps > 0:
            groups = dict.fromkeys([tuple(self.free), tuple(activations)])
            found += [self._descend(start, group) for group in groups if group]
        return min(found, key=lambda start: start.loss)

    def _descend(self, start: Start, group: Sequence[int]) -> Start:
        """Result of gradient descent over the factors of the tensors in ``group``."""
        self._place(start.qparams)
        settings = self.settings
        logarithms = self.record.next_list(
            lambda: descend(
                DescentData(self.units, self.images, self.targets, self.criterion, self.device),
                [self.tensors.modules[index] for index in group],
                settings.gradient_steps,
                settings.gradient_lr,
                generator_for(settings.seed, 0, torch.device("cpu")),
            )
        )
        qparams = list(start.qparams)
        for index, logarithm in zip(group, logarithms, strict=True):
            scale, zero_point = qparams[index]
            qparams[index] = scale * math.exp(logarithm), zero_point
        self._place(qparams)
        loss = self.record.next(self._compute)
        logger.info(
            "gradient descent over %d step sizes: loss %.5g -> %.5g", len(group), start.loss, loss
        )
        return Start(start.norm, qparams, loss if math.isfinite(loss) else math.inf)

    def _place(self, qparams: Sequence[QParams]) -> None:
        for index, pair in enumerate(qparams):
            self.tensors.set(index, *pair)
        self.changed = None

    def powell(self, start: Start) -> None:
        """Phase C: Powell's method over one factor per tensor, from ``start``.

        The network is left at the best point visited.
        """
        self._place(start.qparams)
        joint = JointSearch(self, start)
        minimise(joint, len(self.free), self.settings.powell_maxiter, self.settings.powell_maxfev)
        joint.finish()

    def move(self, index: int, scale: Tensor, zero_point: Tensor) -> None:
        """Set scale and zero point of a tensor, and record that it has changed."""
        self.tensors.set(index, scale, zero_point)
        if self.changed is not None:
            self.changed.add(index)

    def evaluate(self) -> float:
        """The loss of the network in its current state.

        Raises:
            RunError: the loss is not finite.
        """
        loss = self.record.next(self._compute)
        if not math.isfinite(loss):
            raise RunError(f"calibration loss must be finite, got {loss}")
        return loss

    def _compute(self) -> float:
        changed, self.changed = self.changed, set()
        if changed is None:
            return self.loss(0)
        first = min(self.tensors.units[index] for index in changed)
        return self.loss(first, [self.tensors.modules[index] for index in changed])

    def report(self, name: str, value: float, step: int) -> None:
        if self.task.on_scalar is not None:
            self.task.on_scalar(name, value, step)


class JointSearch:
    """The loss as a function of the logarithms of the factors; records the best point visited."""

    def __init__(self, search: StepSearch, start: Start):
        self.search = search
        self.start = start
        self.present = np.zeros(len(search.free))
        self.best, self.best_loss = self.present.copy(), start.loss
        self.known = {self.present.tobytes(): start.loss}
        self.bar = iter(progress(itertools.count(), "loss evaluations"))

    def __call__(self, point: np.ndarray) -> float:
        """The loss at ``point``, (tensors,) float64."""
        point = point + 0.0  # no negative zero
        key = point.tobytes()
        if key not in self.known:
            self._move(point)
            self.known[key] = loss = self.search.evaluate()
            next(self.bar)
            self.search.report("lapq/loss", loss, len(self.known) - 1)
            if loss < self.best_loss:
                self.best, self.best_loss = point.copy(), loss
        return self.known[key]

    def _move(self, point: np.ndarray) -> None:
        for place in np.flatnonzero(point != self.present):
            index = self.search.free[place]
            scale, zero_point = self.start.qparams[index]
            self.search.move(index, scale * math.exp(point[place]), zero_point)
        self.present = point.copy()

    def finish(self) -> None:
        """Set the network to the best point visited, and log the result."""
        self._move(self.best)
        evaluations = len(self.known) - 1
        self.search.report("lapq/evaluations", evaluations, 0)
        logger.info(
            "joint search over %d step sizes: loss %.5g -> %.5g in %d evaluations",
            len(self.search.free),
            self.start.loss,
            self.best_loss,
            evaluations,
        )


def weight_sample(layer: QuantLayer) -> Sample:
    """The values of a weight, one row per scale; a single long row as a histogram."""
    weight = layer.full_precision_weight()
    if layer.per_channel:
        return Sample(weight.flatten(1))
    return histogram([weight]) if weight.numel() > NUM_BINS else Sample(weight.reshape(1, -1))


def _best(sample: Sample, grid: Grid) -> QParams:
    """Ranges of least error; for the power ``FULL_RANGE`` those that clip nothing."""
    return (full_qparams if grid.norm == FULL_RANGE else search_qparams)(sample, grid)
