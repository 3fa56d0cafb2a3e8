"""Validation at random bitwidths, which shows how accuracy depends on the average bitwidth."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import InputError
from quant.bitwidth.assignments import (
    cost_of_configuration,
    draw_configurations,
    get_average_bitwidth,
    get_configuration,
    kept_bitwidths,
    quantized_layers,
    set_configuration,
)
from quant.bitwidth.statistics import (
    DEFAULT_BIN_WIDTH,
    DEFAULT_TOLERANCE,
    Anchor,
    Statistics,
    statistics_lines,
    summarise,
)

HEADING = "Random Bitwidths Validation Statistics"

Evaluate = Callable[[nn.Module], tuple[float, float]]

_logger = logging.getLogger(__name__)


@torch.inference_mode()
def evaluate_loader(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
) -> tuple[float, float]:
    """Top-1 accuracy as a fraction, and the mean loss over samples."""
    right = count = 0
    loss = 0.0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        right += int((logits.argmax(1) == labels).sum())
        loss += float(loss_fn(logits, labels)) * len(labels)
        count += len(labels)
    return right / count, loss / count


@dataclass(frozen=True)
class Plan:
    """Settings of a validation.

    Attributes:
        num_configs: number of random assignments.
        options: bitwidths to draw from; None: those of the first layer.
        anchors: evaluate every uniform assignment too; they are not in means and correlations.
    """

    num_configs: int = 4
    options: Sequence[int] | None = None
    weighting: str = "layers"
    sampling: str = "uniform"
    anchors: bool = False
    bin_width: float = DEFAULT_BIN_WIDTH
    tolerance: float = DEFAULT_TOLERANCE


@dataclass(frozen=True)
class ValidationResult:
    """Result of a validation.

    Attributes:
        options: the bitwidths to draw from, sorted.
        losses, configurations, costs: one value per random assignment.
    """

    plan: Plan
    options: Sequence[int]
    statistics: Statistics
    losses: Sequence[float]
    configurations: Sequence[dict[str, int]]
    costs: Sequence[dict[str, float | None]]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, as returned by ``validate_random_bitwidths``."""
        return {
            **self.statistics.as_dict(),
            "all_losses": list(self.losses),
            "configs": list(self.configurations),
            "costs": list(self.costs),
            "num_configs": self.plan.num_configs,
            "bitwidth_options": list(self.options),
            "weighting": self.plan.weighting,
            "sampling": self.plan.sampling,
        }


def validate(
    model: nn.Module,
    plan: Plan,
    evaluate: Evaluate,
    rng: np.random.Generator,
    logger: logging.Logger = _logger,
    heading: str = HEADING,
) -> ValidationResult:
    """Evaluate accuracy and loss at random assignments and, with ``plan.anchors``, at uniform ones.

    Bitwidths and training state of the model are restored at the end.

    Args:
        model: a model with at least one quantized layer.
        evaluate: model -> (accuracy, loss).
        rng: draws the assignments.
        heading: heading of the logged statistics.

    Raises:
        InputError: no quantized layer, or fewer than one assignment.
        ValueError: no assignment has finite accuracy and loss.
    """
    layers = _require_layers(model, plan)
    options = sorted(plan.options or layers[0][1].bitwidth_options)
    results = _Results(plan.weighting)
    with kept_bitwidths(model):
        model.eval()
        logger.info("Validating with %d random bitwidth configurations...", plan.num_configs)
        drawn = draw_configurations(options, len(layers), plan.num_configs, rng, plan.sampling)
        for number, bits in enumerate(drawn, 1):
            set_configuration(model, bits)
            results.add(model, *evaluate(model))
            logger.info("Config %d/%d: %s", number, plan.num_configs, results.last_line())
        uniform = []
        for bits in options if plan.anchors else []:
            set_configuration(model, bits)
            uniform.append(Anchor(bits, *evaluate(model)))
    found = results.summarised(uniform, plan)
    if found.nonfinite:
        logger.warning("%d configurations have NaN or infinite accuracy or loss", found.nonfinite)
    for line in ["", *statistics_lines(found, heading, logger.isEnabledFor(logging.DEBUG))]:
        logger.info("%s", line)
    return ValidationResult(plan, options, found, results.losses, results.configs, results.costs)


def _require_layers(model: nn.Module, plan: Plan) -> list[tuple[str, Any]]:
    """Return the quantized layers of a model.

    Raises:
        InputError: the model has none, or the plan has no assignment.
    """
    layers = quantized_layers(model)
    if plan.num_configs < 1 or not layers:
        raise InputError(
            "validation must have a configuration and a quantized layer, got "
            f"{plan.num_configs} and {len(layers)}"
        )
    return layers


def validate_random_bitwidths(
    model: nn.Module,
    val_loader: Iterable | None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None,
    device: torch.device | None,
    num_configs: int = 4,
    bitwidth_options: Sequence[int] | None = None,
    *,
    rng: np.random.Generator,
    weighting: str = "layers",
    sampling: str = "uniform",
    anchors: bool = False,
    evaluate: Evaluate | None = None,
    logger: logging.Logger | None = None,
    heading: str = HEADING,
    bin_width: float = DEFAULT_BIN_WIDTH,
    tolerance: float = DEFAULT_TOLERANCE,
) -> dict[str, Any]:
    """Run ``validate`` with keyword arguments instead of a plan.

    Args:
        val_loader, loss_fn, device: arguments of ``evaluate_loader``; not needed with ``evaluate``.
        num_configs, bitwidth_options, weighting, sampling, anchors, bin_width, tolerance: as in
            ``Plan``.
        evaluate: model -> (accuracy, loss), instead of the loader.
        logger: logger of the lines; None: that of this module.

    Returns:
        Plain values: statistics over the finite random assignments, every assignment with its
        costs, correlations, bins, anchors, knee.

    Raises:
        InputError, ValueError: as ``validate``.
    """
    plan = Plan(num_configs, bitwidth_options, weighting, sampling, anchors, bin_width, tolerance)
    _require_layers(model, plan)
    run = evaluate or _loader_evaluation(val_loader, loss_fn, device)
    return validate(model, plan, run, rng, logger or _logger, heading).as_dict()


def _loader_evaluation(
    loader: Iterable | None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None,
    device: torch.device | None,
) -> Evaluate:
    if loader is None or loss_fn is None or device is None:
        raise InputError("validation must have loader, loss and device, or evaluate, got neither")
    return lambda model: evaluate_loader(model, loader, loss_fn, device)


class _Results:
    """Collects the results of the random assignments."""

    def __init__(self, weighting: str):
        self.weighting = weighting
        self.accuracies: list[float] = []
        self.losses: list[float] = []
        self.bitwidths: list[float] = []
        self.configs: list[dict[str, int]] = []
        self.costs: list[dict[str, float | None]] = []

    def add(self, model: nn.Module, accuracy: float, loss: float) -> None:
        average = get_average_bitwidth(model, self.weighting)
        assert average is not None
        self.accuracies.append(float(accuracy))
        self.losses.append(float(loss))
        self.bitwidths.append(average)
        self.configs.append(get_configuration(model))
        self.costs.append(cost_of_configuration(model))

    def summarised(self, anchors: Sequence[Anchor], plan: Plan) -> Statistics:
        return summarise(
            self.bitwidths, self.accuracies, self.losses, anchors, plan.bin_width, plan.tolerance
        )

    def last_line(self) -> str:
        text = (
            f"Acc={self.accuracies[-1]:.4f}, Loss={self.losses[-1]:.4f}, "
            f"Avg Bitwidth={self.bitwidths[-1]:.2f}"
        )
        return text if self.weighting == "layers" else f"{text} ({self.weighting})"
