"""Validation at random bitwidths: how accuracy depends on the average bitwidth."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
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
    """Fraction of samples classified right, and the mean loss over samples."""
    right = count = 0
    loss = 0.0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        right += int((logits.argmax(1) == labels).sum())
        loss += float(loss_fn(logits, labels)) * len(labels)
        count += len(labels)
    return right / count, loss / count


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
    """Accuracy and loss at random configurations and, if asked for, at all uniform ones.

    Bitwidths and training state of the model are afterwards what they were.

    Args:
        model: with at least one quantized layer.
        val_loader, loss_fn, device: of ``evaluate_loader``; not needed with ``evaluate``.
        bitwidth_options: None: the layers' own.
        rng: draws the configurations.
        anchors: evaluate every uniform configuration too; they enter no statistics.
        evaluate: model -> (accuracy, loss), in place of the loader.
        logger: of the lines; None: this module's.

    Returns:
        Plain values: statistics over the finite random configurations, every configuration with
        its costs, correlations, bins, anchors, knee.

    Raises:
        InputError: no quantized layer, or fewer than one configuration.
        ValueError: no configuration gives finite figures.
    """
    layers = quantized_layers(model)
    if num_configs < 1 or not layers:
        raise InputError(
            f"validation must have a configuration and a quantized layer, got {num_configs} and {len(layers)}"
        )
    log = logger or _logger
    options = sorted(bitwidth_options or layers[0][1].bitwidth_options)
    run = evaluate or _loader_evaluation(val_loader, loss_fn, device)
    results = _Results(weighting)
    with kept_bitwidths(model):
        model.eval()
        log.info("Validating with %d random bitwidth configurations...", num_configs)
        drawn = draw_configurations(options, len(layers), num_configs, rng, sampling)
        for number, bits in enumerate(drawn, 1):
            set_configuration(model, bits)
            results.add(model, *run(model))
            log.info("Config %d/%d: %s", number, num_configs, results.last_line())
        uniform = []
        for bits in options if anchors else []:
            set_configuration(model, bits)
            accuracy, loss = run(model)
            uniform.append({"bitwidth": bits, "accuracy": accuracy, "loss": loss})
    if results.nonfinite:
        log.warning("%d configurations gave NaN or infinite figures", results.nonfinite)
    statistics = summarise(
        results.bitwidths, results.accuracies, results.losses, uniform, bin_width, tolerance
    )
    found = {
        **statistics,
        "all_accuracies": results.accuracies,
        "all_losses": results.losses,
        "all_bitwidths": results.bitwidths,
        "configs": results.configs,
        "costs": results.costs,
        "anchors": uniform,
        "num_configs": num_configs,
        "bitwidth_options": options,
        "weighting": weighting,
        "sampling": sampling,
    }
    for line in ["", *statistics_lines(found, heading, log.isEnabledFor(logging.DEBUG))]:
        log.info("%s", line)
    return found


def _loader_evaluation(
    loader: Iterable | None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None,
    device: torch.device | None,
) -> Evaluate:
    if loader is None or loss_fn is None or device is None:
        raise InputError("validation must have loader, loss and device, or evaluate, got neither")
    return lambda model: evaluate_loader(model, loader, loss_fn, device)


class _Results:
    """What the random configurations gave."""

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

    @property
    def nonfinite(self) -> int:
        pairs = zip(self.accuracies, self.losses, strict=True)
        return sum(not (math.isfinite(a) and math.isfinite(b)) for a, b in pairs)

    def last_line(self) -> str:
        text = (
            f"Acc={self.accuracies[-1]:.4f}, Loss={self.losses[-1]:.4f}, "
            f"Avg Bitwidth={self.bitwidths[-1]:.2f}"
        )
        return text if self.weighting == "layers" else f"{text} ({self.weighting})"
