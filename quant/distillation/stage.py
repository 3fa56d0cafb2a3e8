"""Network-wise distillation: the stage that may follow any method.

The quantized network is trained as a whole towards the outputs of the float network on random views
of the calibration images, on which the float network is run as well, so that its targets are exact.
No label is read. The loss is

    T^2 KL(softmax(float / T), softmax(quantized / T))
    + features * sum over units of |output - float output|^2 / |float output|^2

(Hinton et al. 2015, arXiv:1503.02531, for the first term). Trained are latent weights, the scales
of weights and activations, and biases. An eighth of the images is held out: the result is the state
with the least KL divergence there, the start included, so that the stage never ends above it.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from common.console import progress
from common.errors import InputError, RunError
from quant.arithmetic.augmentation import augmented
from quant.arithmetic.optim import FusedAdam
from quant.arithmetic.primitives import quant_max
from quant.distillation.latent import TrainableNetwork
from quant.network.chain import Task, generator_for
from quant.network.forward import run_unit
from quant.network.model import QuantModel
from quant.settings import MethodSettings

HELD_OUT = 8  # one of so many images
CHECKS = 20  # evaluations of the held-out images, and stored states, in the stage
SEED_INDEX = 1_000_000  # of ``generator_for``; no unit has it
TINY = 1e-12  # least squared size of an output that an error is divided by
EXACT = 1e-5  # relative squared error of the logits below which nothing can be learned
LARGE_BATCH = 1 << 22  # values of a batch from which units are computed again in the backward pass

logger = logging.getLogger(__name__)


def distill(task: Task, settings: MethodSettings) -> None:
    """Train ``task.model``, which is quantized, in place; with ``distill_steps`` 0 nothing changes.

    Raises:
        InputError: there are too few images to hold some out.
        RunError: the loss is not finite.
    """
    if settings.distill_steps == 0:
        return
    if len(task.images) < 2:
        raise InputError(
            f"num_samples must be at least 2 with distill_steps, got {len(task.images)}"
        )
    with TrainableNetwork(task.model) as trainable:
        if trainable.parameters:
            _Distillation(task, settings, trainable).run()


class _Distillation:
    """The training, whose state can be stored and continued."""

    def __init__(self, task: Task, settings: MethodSettings, trainable: TrainableNetwork):
        self.task, self.settings, self.trainable = task, settings, trainable
        self.generator = generator_for(settings.seed, SEED_INDEX, torch.device("cpu"))
        order = torch.randperm(len(task.images), generator=self.generator)
        held = max(1, len(order) // HELD_OUT)
        self.held_out, self.kept = task.images[order[:held].to(task.images.device)], order[held:]
        self.order = torch.empty(0, dtype=torch.int64)
        self.targets = run_unit(task.reference, self.held_out, task.model.device)
        weights = trainable.weights
        self.optimizers = [
            (FusedAdam([weight.codes for weight in weights], 0.0), _code_rate(settings)),
            (FusedAdam([weight.ratio for weight in weights], 0.0), settings.distill_lr_scale),
            (FusedAdam(trainable.biases, 0.0), settings.distill_lr_scale),
            *(
                (FusedAdam([scale], 0.0), settings.distill_lr_scale * float(scale.detach().mean()))
                for scale in trainable.scales
            ),
        ]
        self.step = 0
        self.least, self.best_step, self.best = math.inf, 0, self._values()
        self.first = math.nan

    def run(self) -> None:
        """Train to the end and leave the best state in the network."""
        steps = self.settings.distill_steps
        if not self._restore():
            if self._check() < EXACT:
                logger.info("distillation: left out, the network is as good as the float one")
                return
            self.first = self.least
        every = max(1, steps // CHECKS)
        for step in progress(range(self.step + 1, steps + 1), "distillation"):
            self._train(step)
            if step % every == 0 or step == steps:
                self._check()
                self._store()
        self._load(self.best)
        logger.info(
            "distillation: KL divergence on %d held-out calibration images %.4f, before %.4f "
            "(step %d of %d)",
            len(self.held_out),
            self.least,
            self.first,
            self.best_step,
            steps,
        )

    @torch.enable_grad()
    def _train(self, step: int) -> None:
        """One step of all optimisers."""
        self.step = step
        factor = 0.5 * (1.0 + math.cos(math.pi * (step - 1) / self.settings.distill_steps))
        loss = self._loss(self._batch())
        for optimizer, lr in self.optimizers:
            optimizer.zero_grad()
            optimizer.set_lr(lr * factor)
        loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(
                f"loss of the distillation must be finite, got {value} at step {step}; a "
                "lower distill_lr may help"
            )
        for optimizer, _ in self.optimizers:
            optimizer.step()
        self.trainable.keep_positive()

    def _batch(self) -> Tensor:
        """Views of the next images; each image comes once before any comes again."""
        size = self.settings.distill_batch
        while len(self.order) < size:
            shuffled = self.kept[torch.randperm(len(self.kept), generator=self.generator)]
            self.order = torch.cat([self.order, shuffled])
        pick, self.order = self.order[:size], self.order[size:]
        images = self.task.images[pick.to(self.task.images.device)].to(self.task.model.device)
        views = augmented(images, self.settings.distill_augment, self.generator)
        return views.contiguous(memory_format=torch.channels_last)

    def _loss(self, images: Tensor) -> Tensor:
        targets = _outputs_without_gradient(self.task.reference, images)
        is_large = images.numel() >= LARGE_BATCH
        value, loss = images, images.new_zeros(())
        for unit, target in zip(self.task.model.units, targets, strict=True):
            value = checkpoint(unit, value, use_reentrant=False) if is_large else unit(value)
            if unit is not self.task.model.units[-1] and self.settings.distill_features > 0:
                size = target.square().sum().clamp(min=TINY)
                error = F.mse_loss(value, target, reduction="sum") / size
                loss = loss + self.settings.distill_features * error
        heat = self.settings.distill_temperature
        return loss + heat**2 * _divergence(value / heat, targets[-1] / heat)

    @torch.no_grad()
    def _check(self) -> float:
        """Compare the network with the best so far on the held-out images.

        Returns:
            squared error of the logits, relative to their variance over images and classes.
        """
        logits = run_unit(self.task.model, self.held_out, self.task.model.device)
        loss = float(_divergence(logits, self.targets))
        if self.task.on_scalar is not None:
            self.task.on_scalar("distillation/held-out KL divergence", loss, self.step)
        if loss < self.least:
            self.least, self.best_step, self.best = loss, self.step, self._values()
        spread = (self.targets - self.targets.mean()).square().sum().clamp(min=TINY)
        return float((logits - self.targets).square().sum() / spread)

    def _values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.trainable.parameters]

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.trainable.parameters, values, strict=True):
            parameter.copy_(value)

    def _store(self) -> None:
        """Store everything that the next steps depend on, if the run stores its units."""
        if self.task.states is not None:
            self.task.states.save_stage(
                {
                    "step": self.step,
                    "values": self._values(),
                    "optimizers": [optimizer.state() for optimizer, _ in self.optimizers],
                    "generator": self.generator.get_state(),
                    "order": self.order,
                    "first": self.first,
                    "least": self.least,
                    "best_step": self.best_step,
                    "best": self.best,
                }
            )

    def _restore(self) -> bool:
        """Continue where the stored state is; False if there is none."""
        stored: dict[str, Any] | None = None
        if self.task.states is not None:
            stored = self.task.states.restore_stage()
        if stored is None:
            return False
        self._load(stored["values"])
        for (optimizer, _), state in zip(self.optimizers, stored["optimizers"], strict=True):
            optimizer.load(state)
        self.generator.set_state(stored["generator"])
        device = self.task.model.device
        self.best = [value.to(device) for value in stored["best"]]
        self.order = stored["order"]
        self.step, self.first = stored["step"], stored["first"]
        self.least, self.best_step = stored["least"], stored["best_step"]
        logger.info("distillation: %d steps taken from the earlier run", self.step)
        return True


def _code_rate(settings: MethodSettings) -> float:
    """Learning rate of latent codes: ``distill_lr`` steps of the coarser of the two grids.

    Weights make up for what the activations lose, which takes ways of the size of their steps.
    """
    finer = quant_max(settings.n_bits_w) / quant_max(settings.n_bits_a)
    return settings.distill_lr * max(1.0, finer)


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over images of KL(softmax(target), softmax(logits)), 0-dimensional, in nats."""
    pair = F.log_softmax(logits, 1), F.log_softmax(target, 1)
    return F.kl_div(*pair, log_target=True, reduction="batchmean")


@torch.no_grad()
def _outputs_without_gradient(network: QuantModel, images: Tensor) -> list[Tensor]:
    """The output of every unit of a network, in order."""
    outputs = []
    for unit in network.units:
        images = unit(images)
        outputs.append(images)
    return outputs
