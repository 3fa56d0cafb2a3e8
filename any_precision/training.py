"""Training and validation at random bits per layer."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from any_precision.data import TrainingImages
from any_precision.networks import AnyPrecisionResNet
from any_precision.run_folder import (
    BEST_FILE,
    CONFIG_COLUMNS,
    CONFIGS_FILE,
    HISTORY_COLUMNS,
    HISTORY_FILE,
    LAST_FILE,
    RunFolder,
    configuration_rows,
)
from any_precision.settings import JOINT, RANDOM, Config
from common.errors import InputError, RunError, first_line
from common.files import write_torch_file
from loaders import ImageSet
from models.checkpoints import load_strictly
from plots.bitwidth import plot_bitwidth_vs_accuracy
from quant.bitwidth.assignments import (
    TEST,
    TRAINING,
    VALIDATION,
    cost_of_configuration,
    draw_configuration,
    get_configuration,
    kept_bitwidths,
    measure_macs,
    quantized_layers,
    set_configuration,
    stream,
)
from quant.bitwidth.statistics import Statistics
from quant.bitwidth.validation import Plan, ValidationResult, evaluate_loader, validate

EVALUATION_BATCH = 256
BATCH_LOSS_EVERY = 50
SMOOTHING = 0.1

logger = logging.getLogger(__name__)


def build_network(config: Config, num_classes: int, image_size: int) -> AnyPrecisionResNet:
    """The network of a configuration, initialised with its seed, with multiply-adds measured."""
    torch.manual_seed(config.seed)
    network = AnyPrecisionResNet(
        config.model_variant,
        num_classes,
        image_size=image_size,
        spec=config.layer_spec(),
        switchable_bn=config.enable and config.switchable_bn == "own",
        dropout=config.dropout_ratio,
    )
    for _, layer in quantized_layers(network):
        layer.quantization_enabled = False
    measure_macs(network, torch.zeros(1, 3, image_size, image_size))
    for _, layer in quantized_layers(network):
        layer.quantization_enabled = config.enable
    return network


def make_criterion(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss function of that name, a mean over samples."""
    smoothing = SMOOTHING if name == "label_smoothing_ce" else 0.0
    return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing)


def make_optimizer(network: nn.Module, config: Config) -> tuple[Optimizer, LambdaLR]:
    """Optimizer, and learning-rate schedule with one step per epoch."""
    settings = config.optimizer
    parameters = [p for p in network.parameters() if p.requires_grad]
    lr, decay = settings.start_lr, settings.weight_decay
    optimizer: Optimizer
    if settings.name == "SGD":
        optimizer = SGD(parameters, lr=lr, weight_decay=decay, momentum=0.9)
    else:
        kind = AdamW if settings.name == "AdamW" else Adam
        optimizer = kind(parameters, lr=lr, weight_decay=decay)
    return optimizer, LambdaLR(optimizer, lambda epoch: _lr_factor(epoch, config))


def _lr_factor(epoch: int, config: Config) -> float:
    """Factor on the first learning rate in ``epoch``, counted from 0."""
    settings = config.optimizer
    warmup = settings.warmup_epochs
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    if settings.schedule == "cosine":
        share = (epoch - warmup) / max(1, settings.epochs - warmup)
        low = settings.min_lr / settings.start_lr
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    if settings.schedule == "step":
        return settings.gamma ** ((epoch - warmup) // settings.step_size)
    if settings.schedule == "multistep":
        return settings.gamma ** sum(epoch >= m for m in settings.milestones)
    return 1.0


@dataclass(frozen=True)
class TestResult:
    """Accuracy and loss on the test images.

    Attributes:
        validation: results of all assignments; None if only the most bits were tested.
    """

    accuracy: float
    loss: float
    validation: ValidationResult | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the summary."""
        if self.validation is None:
            return {"accuracy": self.accuracy, "loss": self.loss}
        return self.validation.as_dict()


class Trainer:
    """A run: epochs of training and validation, then the test of the best one.

    Args:
        network: made by ``build_network``, on ``device``.
        run: folder that everything is written to.
    """

    def __init__(
        self,
        config: Config,
        network: AnyPrecisionResNet,
        images: TrainingImages,
        device: torch.device,
        run: RunFolder,
    ):
        self.config, self.network, self.images = config, network, images
        self.device, self.run = device, run
        self.criterion = make_criterion(config.loss_name)
        self.optimizer, self.scheduler = make_optimizer(network, config)
        self.layers = quantized_layers(network) if config.enable else []
        self.tracks = config.enable and config.validation_function == RANDOM
        self.best_acc, self.best_epoch, self.done = -1.0, 0, 0
        self.validation: dict[str, Any] | None = None  # of the last epoch, for the summary
        self.anchor_costs = self._anchor_costs()

    def _anchor_costs(self) -> dict[int, dict[str, Any]]:
        costs = {}
        with kept_bitwidths(self.network):
            for bits in self.config.bitwidth_options if self.layers else ():
                set_configuration(self.network, bits)
                costs[bits] = cost_of_configuration(self.network)
        return costs

    def epochs(self, on_epoch: Callable[[int], None] | None = None) -> None:
        """Train and validate the epochs that are not done yet.

        Args:
            on_epoch: called with the number of each epoch, from 1, before its checkpoint.

        Raises:
            RunError: the loss is not finite.
        """
        for epoch in range(self.done, self.config.optimizer.epochs):
            start = time.perf_counter()
            lr = float(self.scheduler.get_last_lr()[0])
            loss, accuracy = self._train(epoch)
            self.scheduler.step()
            row: dict[str, Any] = {
                "epoch": epoch + 1,
                "train_loss": loss,
                "train_acc": accuracy,
                "lr": lr,
            }
            row |= self._validate(epoch)
            self.done = epoch + 1
            if row["val_acc"] > self.best_acc:
                self.best_acc, self.best_epoch = row["val_acc"], epoch + 1
            self.run.scalars(
                {
                    "Loss/train": loss,
                    "Loss/val": row["val_loss"],
                    "Accuracy/train": accuracy,
                    "Accuracy/val": row["val_acc"],
                    "Learning_Rate": lr,
                },
                epoch,
            )
            row["seconds"] = round(time.perf_counter() - start, 3)
            self.run.append(HISTORY_FILE, [row], HISTORY_COLUMNS)
            if on_epoch is not None:
                on_epoch(epoch + 1)
            self._save(row)
            logger.info(
                "Epoch %d/%d: train loss %.4f, train acc %.4f, val acc %.4f, %.1f s",
                epoch + 1,
                self.config.optimizer.epochs,
                loss,
                accuracy,
                row["val_acc"],
                row["seconds"],
            )

    def _train(self, epoch: int) -> tuple[float, float]:
        """Train for one epoch; returns mean loss and accuracy over passes and samples."""
        self.network.train()
        rng = stream(self.config.seed, TRAINING, epoch)
        total, right, count = 0.0, 0, 0
        batches = -(-len(self.images.train) // self.config.batch_size)
        for number, (images, labels) in enumerate(self._batches(epoch)):
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss, hits, passes = self._passes(images, labels, rng)
            if not math.isfinite(loss):
                bits = "-".join(map(str, get_configuration(self.network).values()))
                raise RunError(
                    f"loss must be finite, got {loss} in epoch {epoch + 1}, batch {number + 1}, "
                    f"bits {bits}"
                )
            if self.config.optimizer.clip_grad is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimizer.clip_grad)
            self.optimizer.step()
            if number % BATCH_LOSS_EVERY == 0:
                self.run.scalars({"Train/Batch_Loss": loss}, epoch * batches + number)
            total += loss * len(labels)
            right += hits
            count += len(labels)
        return total / count, right / (count * passes)

    def _passes(
        self, images: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[float, int, int]:
        """Compute the gradients of one batch.

        Returns:
            mean loss over the passes, correct predictions in all passes, number of passes.
        """
        configurations = self._configurations(rng)
        total, hits = 0.0, 0
        teacher: Tensor | None = None
        for bits in configurations:
            if bits is not None:
                set_configuration(self.network, bits)
            logits = self.network(images)
            if teacher is None:
                loss = self.criterion(logits, labels)
            else:
                loss = F.cross_entropy(logits, teacher)
            (loss / len(configurations)).backward()
            if self.config.distillation == "recursive":
                teacher = logits.detach().softmax(1)
            total += float(loss.detach()) / len(configurations)
            hits += int((logits.detach().argmax(1) == labels).sum())
        return total, hits, len(configurations)

    def _configurations(self, rng: np.random.Generator) -> list[list[int] | None]:
        """The bits per layer in each pass over a batch; None: leave the bits as they are."""
        options, count = self.config.bitwidth_options, len(self.layers)
        if not self.layers:
            return [None]
        if self.config.training_method != JOINT:
            return [[options[0]] * count]
        if self.config.distillation == "recursive":
            return [[bits] * count for bits in reversed(options)]
        passes = self.config.joint_quantization_batch_size
        return [draw_configuration(options, count, rng) for _ in range(passes)]

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = np.random.default_rng([self.config.seed, epoch])
        images = self.images.train.subset(generator.permutation(len(self.images.train)))
        if self.images.augment:
            images = images.augmented(int(generator.integers(1 << 31)))
        return images.batches(self.config.batch_size)

    def _validate(self, epoch: int) -> dict[str, Any]:
        """Validate; returns the metrics under the column names of the history."""
        if not self.tracks:
            accuracy, loss = self._evaluate_highest(self.images.val)
            return {"val_acc": accuracy, "val_loss": loss}
        settings = self.config.validation
        last = epoch + 1 == self.config.optimizer.epochs
        plots = (epoch + 1) % settings.plot_every == 0 or last
        anchors = settings.anchors == "always" or (settings.anchors == "plot" and plots)
        rng = stream(self.config.seed, VALIDATION, 0 if settings.fixed_val_configs else epoch)
        result = self._random_bitwidths(self.images.val, settings.num_bitwidths, rng, anchors)
        self.validation = json.loads(json.dumps(result.as_dict()))
        rows = configuration_rows(result, epoch + 1, "val", self.anchor_costs, len(self.layers))
        self.run.append(CONFIGS_FILE, rows, CONFIG_COLUMNS)
        self._show(result.statistics, epoch)
        if plots:
            figure = self._figure(result.statistics, epoch)
            self.run.figure(figure, f"bitwidth_vs_accuracy_epoch{epoch + 1:03d}.png", epoch)
        return _history_row(result.statistics)

    def _random_bitwidths(
        self, images: ImageSet, count: int, rng: np.random.Generator, anchors: bool
    ) -> ValidationResult:
        settings = self.config.validation
        plan = Plan(
            num_configs=count,
            options=settings.bitwidth_options or self.config.bitwidth_options,
            weighting=settings.weighting,
            sampling=settings.sampling,
            anchors=anchors,
            bin_width=settings.bin_width,
            tolerance=settings.knee_tolerance,
        )
        return validate(
            self.network, plan, lambda network: self._evaluate(network, images), rng, logger
        )

    def _evaluate(self, network: nn.Module, images: ImageSet) -> tuple[float, float]:
        return evaluate_loader(
            network, images.batches(EVALUATION_BATCH), self.criterion, self.device
        )

    def _evaluate_highest(self, images: ImageSet) -> tuple[float, float]:
        """Accuracy and loss with every layer at the highest option."""
        with kept_bitwidths(self.network):
            self.network.eval()
            if self.layers:
                set_configuration(self.network, self.config.bitwidth_options[-1])
            return self._evaluate(self.network, images)

    def _show(self, found: Statistics, epoch: int) -> None:
        values: dict[str, float | None] = {}
        for kind in ("mean", "std", "min", "max"):
            values[f"Validation/{kind}_acc"] = getattr(found.accuracy, kind)
            values[f"Bitwidth/{kind}_bitwidth"] = getattr(found.bitwidth, kind)
        values["Bitwidth/corr_pearson"] = found.pearson
        if found.anchors:
            values["Bitwidth/knee"] = found.knee.bitwidth if found.knee else None
        for anchor in found.anchors:
            values[f"Validation/acc_uniform_{anchor.bitwidth}bit"] = anchor.accuracy
        self.run.scalars(values, epoch)

    def _figure(self, found: Statistics, epoch: int | None) -> Any:
        return plot_bitwidth_vs_accuracy(
            found.bitwidths,
            found.accuracies,
            epoch,
            bin_width=self.config.validation.bin_width,
            anchors=found.anchor_points(),
            knee=found.knee if found.anchors else None,
            weighting=self.config.validation.weighting,
        )

    def test(self, count: int, epoch: int) -> TestResult:
        """Test random assignments and all uniform ones on the test images.

        With simple validation only the most bits are tested.

        Args:
            count: number of random assignments.
            epoch: number of the epoch, from 1, for the table.
        """
        if not self.tracks:
            return TestResult(*self._evaluate_highest(self.images.test))
        rng = stream(self.config.seed, TEST)
        result = self._random_bitwidths(self.images.test, count, rng, anchors=True)
        rows = configuration_rows(result, epoch, "test", self.anchor_costs, len(self.layers))
        self.run.append(CONFIGS_FILE, rows, CONFIG_COLUMNS)
        figure = self._figure(result.statistics, None)
        self.run.figure(figure, "bitwidth_vs_accuracy_test.png", None)
        found = result.statistics
        return TestResult(found.accuracy.mean, found.loss.mean, result)

    def _save(self, row: Mapping[str, Any]) -> None:
        """Write the checkpoint of this epoch, and the same as the best one if it is.

        The best one comes second: after a kill between them it can be written again.
        """
        content = {
            "epoch": self.done,
            "model_state_dict": self.network.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": self.scheduler.state_dict(),
            "rng_state": torch.get_rng_state(),
            "val_acc": row["val_acc"],
            "val_loss": row["val_loss"],
            "best": [self.best_acc, self.best_epoch],
            "config": self.config.as_dict(),
            "quantization_method": self.config.method,
            "bitwidth_options": list(self.config.bitwidth_options),
            "layer_names": [name for name, _ in self.layers],
            "bitwidth_assignment": get_configuration(self.network),
            "validation": self.validation,
            "tables": dict(self.run.tables),
        }
        write_torch_file(self.run.model(LAST_FILE), content)
        if self.best_epoch == self.done:
            write_torch_file(self.run.model(BEST_FILE), content)

    def load_weights(self, content: Mapping[str, Any], source: str) -> None:
        """Load the weights and bits of a checkpoint.

        Raises:
            RunError: they do not fit.
        """
        try:
            load_strictly(self.network, content["model_state_dict"], source)
            set_configuration(self.network, list(content["bitwidth_assignment"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(str(error)) from None

    def restore(self, content: Mapping[str, Any], source: str) -> None:
        """Go on behind the epoch of a checkpoint that ``require_resumable`` has checked.

        Raises:
            RunError: the weights or the bits do not fit.
            InputError: the state of the optimizer does not.
        """
        self.load_weights(content, source)
        try:
            self.optimizer.load_state_dict(content["optimizer_state_dict"])
            self.scheduler.load_state_dict(content["scheduler_state_dict"])
            torch.set_rng_state(content["rng_state"])
        except Exception as error:  # noqa: BLE001  (torch checks no state of an optimizer)
            reason = first_line(error)
            raise InputError(
                f"{source}: must hold the state of the run's optimizer, got: {reason}"
            ) from None
        self.done = content["epoch"]
        self.best_acc, self.best_epoch = content["best"]
        self.validation = content.get("validation")
        self.run.tables = dict(content["tables"])


def _history_row(found: Statistics) -> dict[str, Any]:
    """The metrics of a validation under the column names of the history."""
    spreads = {"acc": found.accuracy, "bitwidth": found.bitwidth}
    return {
        "val_acc": found.accuracy.mean,
        "val_loss": found.loss.mean,
        **{
            f"{kind}_{name}": getattr(spread, kind)
            for name, spread in spreads.items()
            for kind in ("mean", "std", "min", "max")
        },
        "corr_pearson": found.pearson,
        "corr_spearman": found.spearman,
        "knee": found.knee.bitwidth if found.knee else None,
    }
