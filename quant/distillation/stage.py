"""Network-wise distillation: the stage that may follow any method.

The quantized network is trained as a whole towards the outputs of the float network on random views
of the calibration images, on which the float network is run as well, so that its targets are exact.
No label is read. The loss is

    T^2 KL(softmax(float / T), softmax(quantized / T))
    + features * sum over units of |output - float output|^2 / |float output|^2

(Hinton et al. 2015, arXiv:1503.02531, for the first term). ``features`` is a setting, or less, so
that the second term is at most ``MOST_FEATURES`` times the first one at the start. Trained are
latent weights, the scales of weights and activations, and biases; ``quant.distillation.normalised``
says what takes the place of scale and bias in convolutions meanwhile. The result is the average of
the last parameters (Polyak & Juditsky 1992). An eighth of the images is held out
(``quant.distillation.split``): where the KL divergence there is larger than at the start by more
than noise, the start is kept.
"""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from common.console import progress
from common.errors import RunError
from quant.arithmetic.augmentation import augmented
from quant.arithmetic.optim import FusedAdam
from quant.arithmetic.primitives import quant_max
from quant.distillation.latent import TrainableNetwork
from quant.distillation.normalised import Normalisation
from quant.distillation.split import is_larger, split_calibration
from quant.network.chain import Task
from quant.network.forward import RANGE_SAMPLES, run_unit
from quant.network.model import QuantModel
from quant.settings import MethodSettings

CHECKS = 20  # evaluations of the held-out images, and stored states, in the stage
AVERAGED = 0.05  # of the steps: the time in which the weight of a state in the average falls to 1/e
ESTIMATED = 64  # images that statistics of outputs are estimated on, before the end
MOST_HARM = 2.0  # largest factor by which normalisation may raise the KL divergence at the start
NOTHING_TO_NORMALISE = (
    "no convolution that is called once has a scale per channel and enough values in a batch"
)
TINY = 1e-12  # least squared size of an output that an error is divided by
EXACT = 1e-5  # relative squared error of the logits below which nothing can be learned
MOST_FEATURES = 50.0  # largest ratio of the terms of the loss at the start; ResNet-20 has 10 to 40
SAME_CLASS = 0.75  # least share of calibration images with the class of their mirrored ones
STATE_FORMAT = 3  # of what is stored; another number for another form or meaning
LARGE_BATCH = 1 << 22  # values of a batch from which units are computed again in the backward pass

logger = logging.getLogger(__name__)


def distill(task: Task, settings: MethodSettings) -> None:
    """Train ``task.model``, which is quantized, in place; with ``distill_steps`` 0 nothing changes.

    Raises:
        InputError: there are too few images to hold one out.
        RunError: the loss is not finite.
    """
    if settings.distill_steps == 0:
        return
    with TrainableNetwork(task.model) as trainable:
        if trainable.parameters:
            _Distillation(task, settings, trainable).run()


class _Distillation:
    """The training, whose state can be stored and continued."""

    def __init__(self, task: Task, settings: MethodSettings, trainable: TrainableNetwork):
        self.task, self.settings, self.trainable = task, settings, trainable
        held, self.kept, self.generator = split_calibration(len(task.images), settings.seed)
        self.held_out = task.images[held.to(task.images.device)]
        self.order = torch.empty(0, dtype=torch.int64)
        self.stored = None if task.states is None else task.states.restore_stage(STATE_FORMAT)
        self.targets = run_unit(task.reference, self.held_out, task.model.device)
        self.views = self._choose_views()
        if settings.distill_batch_norm != "off":
            self._normalise()
        self.optimizers = [
            (FusedAdam(trainable.codes, 0.0), _code_rate(settings)),
            (FusedAdam(trainable.factors, 0.0), settings.distill_lr_scale),
            (FusedAdam(trainable.summands, 0.0), settings.distill_lr_scale),
            *(
                (FusedAdam([scale], 0.0), settings.distill_lr_scale * float(scale.detach().mean()))
                for scale in trainable.scales
            ),
        ]
        self.step, self.first, self.divergences = 0, math.nan, self.targets[:0, 0]
        self.features = settings.distill_features
        self.start, self.average = self._values(), self._values()

    def run(self) -> None:
        """Train to the end; leave the average state in the network, or the start if worse."""
        steps = self.settings.distill_steps
        if not self._restore():
            logits, self.first = self._check()
            self.divergences = _divergences(logits, self.targets)
            spread = (self.targets - self.targets.mean()).square().sum().clamp(min=TINY)
            error = float((logits - self.targets).square().sum() / spread)
            if error < EXACT:
                logger.info("distillation: left out, the network is as good as the float one")
                return
            self._limit_features()
        every = max(1, steps // CHECKS)
        for step in progress(range(self.step + 1, steps + 1), "distillation"):
            self._train(step)
            if step % every == 0 and step < steps:
                self._estimate_and_check(ESTIMATED)
                self._store()
        self._finish(*self._estimate_and_check(len(self.kept)))

    def _finish(self, logits: Tensor, last: float) -> None:
        is_worse = is_larger(_divergences(logits, self.targets), self.divergences)
        self._load(self.start if is_worse else self.average)
        if not is_worse and self.trainable.normalisation is not None:
            self.trainable.normalisation.fold()
        outcome = ": the network stays as it was" if is_worse else ", a difference within noise"
        logger.info(
            "distillation: KL divergence on %d held-out calibration images %.4f, before %.4f%s",
            len(self.held_out),
            last,
            self.first,
            "" if last < self.first else outcome,
        )

    @torch.enable_grad()
    def _train(self, step: int) -> None:
        """One step of all optimisers."""
        self.step = step
        cosine = 0.5 * (1.0 + math.cos(math.pi * (step - 1) / self.settings.distill_steps))
        factor = cosine * self.distance
        with self._over_batches():
            loss = self._loss(self._batch())
            for optimizer, lr in self.optimizers:
                optimizer.zero_grad()
                optimizer.set_lr(lr * factor)
            loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(
                f"loss of the distillation must be finite, got {value} at step {step}; a "
                "lower distill_lr or distill_lr_scale may help"
            )
        for optimizer, _ in self.optimizers:
            optimizer.step()
        self.trainable.keep_positive()
        self._add_to_average()

    @property
    def distance(self) -> float:
        """Share of the learning rates: a start that is close to the float network needs small ones.

        The KL divergence grows with the square of a small change of the parameters.
        """
        return min(1.0, math.sqrt(max(0.0, self.first)))

    def _choose_views(self) -> str:
        """The kind of views; ``auto`` mirrors images unless that changes what they show.

        What they show is the class that the float network sees.
        """
        if self.settings.distill_augment != "auto":
            return self.settings.distill_augment
        if self.stored is not None:
            return str(self.stored["views"])
        images, device = self._calibration(RANGE_SAMPLES), self.task.model.device
        pair = (run_unit(self.task.reference, part, device) for part in (images, images.flip(3)))
        classes, mirrored = (logits.argmax(1) for logits in pair)
        share = float((classes == mirrored).float().mean())
        kind = "crop_flip" if share >= SAME_CLASS else "shift"
        logger.info(
            "distillation: views of the images are made by %s, as %.0f %% of mirrored images keep "
            "the class that the float network sees",
            kind,
            100 * share,
        )
        return kind

    def _normalise(self) -> None:
        """Normalise outputs over batches, with ``auto`` unless that harms more than it can help.

        It does where the start is close to the float network, or a batch says little about other
        images.
        """
        batch, model = self.settings.distill_batch, self.task.model
        images = self._calibration(RANGE_SAMPLES)
        normalisation = Normalisation(model, self.trainable.layers, images, batch)
        if not normalisation.outputs:
            if self.settings.distill_batch_norm == "on":
                logger.warning("distill_batch_norm on changes nothing: %s", NOTHING_TO_NORMALISE)
            return
        normalised = normalisation.logits_over_batches(self.held_out, batch)
        targets = self.targets[: len(normalised)]
        plain = run_unit(model, self.held_out[: len(normalised)], model.device)
        start, over_batches = _divergence(plain, targets), _divergence(normalised, targets)
        is_harmless = bool(over_batches <= MOST_HARM * start)
        is_used = self.settings.distill_batch_norm == "on" or is_harmless
        if self.stored is not None:
            is_used = self.stored["normalised"]
        if is_used:
            self.trainable.normalise(normalisation)
        else:
            normalisation.remove()
        logger.info(
            "distillation: outputs of %d layers are %snormalised over batches (KL divergence at "
            "the start %.4f, without %.4f)",
            len(normalisation.outputs),
            "" if is_used else "not ",
            over_batches,
            start,
        )

    def _over_batches(self) -> AbstractContextManager[None]:
        normalisation = self.trainable.normalisation
        return nullcontext() if normalisation is None else normalisation.over_batches()

    @torch.no_grad()
    def _add_to_average(self) -> None:
        horizon = max(1.0, AVERAGED * self.settings.distill_steps)
        share = 1.0 / min(float(self.step), horizon)
        torch._foreach_lerp_(self.average, self.trainable.parameters, share)

    def _calibration(self, count: int) -> Tensor:
        """The first images that are not held out, as they are."""
        return self.task.images[self.kept[:count].to(self.task.images.device)]

    def _batch(self) -> Tensor:
        """Views of the next images; each image comes once before any comes again."""
        size = self.settings.distill_batch
        while len(self.order) < size:
            shuffled = self.kept[torch.randperm(len(self.kept), generator=self.generator)]
            self.order = torch.cat([self.order, shuffled])
        pick, self.order = self.order[:size], self.order[size:]
        images = self.task.images[pick.to(self.task.images.device)].to(self.task.model.device)
        views = augmented(images, self.views, self.generator)
        return views.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _limit_features(self) -> None:
        """Lower the weight of the units' errors where they would outweigh the divergence."""
        images = self._calibration(ESTIMATED).to(self.task.model.device)
        parts = [self._terms(part) for part in images.split(self.settings.distill_batch)]
        divergence, errors = (float(sum(term)) for term in zip(*parts, strict=True))
        if errors > MOST_FEATURES * divergence:
            self.features *= MOST_FEATURES * divergence / errors
            logger.info(
                "distillation: distill_features %g in place of %g, so that the errors of the units "
                "are at most %g times the divergence in the loss",
                self.features,
                self.settings.distill_features,
                MOST_FEATURES,
            )

    def _loss(self, images: Tensor) -> Tensor:
        divergence, errors = self._terms(images)
        return errors + divergence

    def _terms(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the loss, with their weights."""
        targets = _outputs_without_gradient(self.task.reference, images)
        is_large = images.numel() >= LARGE_BATCH
        value, errors = images, images.new_zeros(())
        for unit, target in zip(self.task.model.units, targets, strict=True):
            value = checkpoint(unit, value, use_reentrant=False) if is_large else unit(value)
            if unit is not self.task.model.units[-1] and self.features > 0:
                size = target.square().sum().clamp(min=TINY)
                error = F.mse_loss(value, target, reduction="sum") / size
                errors = errors + self.features * error
        heat = self.settings.distill_temperature
        return heat**2 * _divergence(value / heat, targets[-1] / heat), errors

    def _estimate_and_check(self, count: int) -> tuple[Tensor, float]:
        """``_check`` for the average state, with statistics of the outputs on ``count`` images."""
        present = self._values()
        self._load(self.average)
        if self.trainable.normalisation is not None:
            self.trainable.normalisation.estimate(self._calibration(count))
        found = self._check()
        self._load(present)
        return found

    @torch.no_grad()
    def _check(self) -> tuple[Tensor, float]:
        """Logits of the held-out images, and their mean KL divergence from the float network."""
        logits = run_unit(self.task.model, self.held_out, self.task.model.device)
        loss = float(_divergence(logits, self.targets))
        if self.task.on_scalar is not None:
            self.task.on_scalar("distillation/held-out KL divergence", loss, self.step)
        return logits, loss

    def _values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.trainable.parameters]

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.trainable.parameters, values, strict=True):
            parameter.copy_(value)

    def _store(self) -> None:
        """Store everything that the next steps depend on, if the run stores its units."""
        normalisation = self.trainable.normalisation
        if self.task.states is not None:
            self.task.states.save_stage(
                STATE_FORMAT,
                {
                    "step": self.step,
                    "views": self.views,
                    "normalised": normalisation is not None,
                    "starts": [] if normalisation is None else normalisation.starts,
                    "values": self._values(),
                    "optimizers": [optimizer.state() for optimizer, _ in self.optimizers],
                    "generator": self.generator.get_state(),
                    "order": self.order,
                    "first": self.first,
                    "divergences": self.divergences,
                    "features": self.features,
                    "average": self.average,
                },
            )

    def _restore(self) -> bool:
        """Continue where the stored state is; False if there is none."""
        stored, self.stored = self.stored, None
        if stored is None:
            return False
        self._load(stored["values"])
        if self.trainable.normalisation is not None:
            self.trainable.normalisation.start_from(stored["starts"])
        for (optimizer, _), state in zip(self.optimizers, stored["optimizers"], strict=True):
            optimizer.load(state)
        self.generator.set_state(stored["generator"])
        device = self.task.model.device
        self.average = [value.to(device) for value in stored["average"]]
        self.divergences = stored["divergences"].to(self.targets.device)
        self.order = stored["order"]
        self.step, self.first = stored["step"], stored["first"]
        self.features = stored["features"]
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
def _divergences(logits: Tensor, target: Tensor) -> Tensor:
    """The KL divergence of each image, (B,), in nats."""
    pair = F.log_softmax(logits, 1), F.log_softmax(target, 1)
    return F.kl_div(*pair, log_target=True, reduction="none").sum(1)


@torch.no_grad()
def _outputs_without_gradient(network: QuantModel, images: Tensor) -> list[Tensor]:
    """The output of every unit of a network, in order."""
    outputs = []
    for unit in network.units:
        images = unit(images)
        outputs.append(images)
    return outputs
