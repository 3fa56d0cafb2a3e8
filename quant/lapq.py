"""LAPQ: Nahshan et al., "Loss Aware Post-training Quantization", Machine Learning 110, 2021,
arXiv:1911.07190.

Three phases. (A) The steps of all tensors minimise |error|^p, for several p. (B) The loss of the
network as a function of p is fitted by a parabola, whose vertex is another start (paper, section
4.1). (C) From the best start Powell's method minimises the loss over the steps of all tensors
jointly (section 4.2).
Between B and C, and not in the paper, gradient descent over the same factors: with 2-bit activations
Powell's method fits few images closely, and starts better behind it (benchmarks/results/analytic_cifar10.md).

Departs from the published code: the loss compares with the float network's predictions unless told
to use labels; a start is used only when it is better than the others; steps are searched as factors
of the start, and the best point visited is kept; zero is always a level; batch norms
are folded; codes of the stem, the head and the tensor that feeds the head keep phase A's ranges.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from quant.base import BaseQuantizationMethod
from quant.chain import Task
from quant.graph import QuantSpec
from quant.registry import register_method
from quant.settings import BITS, MethodSettings, ShortForms, same_bits, setting
from quant.step_search import FULL_RANGE, LOSSES, StepSearch

FIRST_LAST = ("8bit", "fp32")

SHORT_FORMS: ShortForms = {
    "num_bits": same_bits,
    "per_channel": lambda value: {} if value is None else {"channel_wise": value},
    "calib_size": lambda value: {} if value is None else {"num_samples": value},
}


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LapqSettings(MethodSettings):
    """Settings of LAPQ."""

    num_samples: int = setting(512, "calibration images", low=1, high=10**9)
    num_bits: int | None = setting(None, "n_bits_w and n_bits_a in one", **BITS)
    per_channel: bool | None = setting(None, "another name of channel_wise")
    calib_size: int | None = setting(None, "another name of num_samples", low=1, high=10**9)
    asymmetric: bool = setting(
        True, "two-sided tensors get a searched zero point; off (published): the middle one"
    )
    p_min: float = setting(2.0, "least power of the error that a start minimises", low=0.5, high=50)
    p_max: float = setting(4.0, "greatest power of the error", low=0.5, high=50)
    p_steps: int = setting(10, "powers to try", low=1, high=1000)
    powell_maxiter: int = setting(1, "rounds of the joint search; 0: none", low=0, high=1000)
    powell_maxfev: int | None = setting(
        None, "evaluations of the loss in the joint search, at most", low=1, high=10**9
    )
    lapq_loss: str = setting(
        "ce",
        "cross-entropy or squared error against the float network, or cross-entropy with labels (published)",
        choices=tuple(LOSSES),
    )
    bias_correction: bool = setting(True, "give quantized weights the mean of the float ones")
    first_last: str = setting(
        "8bit",
        "first and last layer: 8 bits, or float with all linear layers (published)",
        choices=FIRST_LAST,
    )

    gradient_steps: int = setting(
        200,
        "steps of gradient descent before the joint search; 0 (published): none",
        low=0,
        high=10**6,
    )
    gradient_lr: float = setting(
        0.02, "learning rate of that, in logarithms of the quantizers' steps", low=0, high=10
    )
    fold_bn: bool = setting(
        True, "fold the batch norms; off (published): they stay in float behind their layers"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p_max < self.p_min:
            raise InputError(f"p_max must be at least p_min = {self.p_min:g}, got {self.p_max:g}")
        if self.first_last == "fp32" and self.disable_8bit_head_stem:
            raise InputError("disable_8bit_head_stem must be off with first_last fp32, got on")

    @property
    def uses_labels(self) -> bool:
        return self.lapq_loss == "ce_labels"

    @property
    def spec(self) -> QuantSpec:
        float_ends = self.first_last == "fp32"
        return dataclasses.replace(super().spec, float_ends=float_ends, fold=self.fold_bn)


@register_method
class Lapq(BaseQuantizationMethod):
    """Steps of all tensors searched jointly for the network's loss."""

    name = "lapq"
    summary = "steps of all tensors searched jointly for the network's loss (Powell)"
    settings_class = LapqSettings
    short_forms = SHORT_FORMS

    def _quantize(self, task: Task) -> None:
        settings = self.settings
        search = StepSearch(task, settings)
        norms = [float(p) for p in np.linspace(settings.p_min, settings.p_max, settings.p_steps)]
        starts = [search.start(norm) for norm in norms]
        vertex = parabola_vertex(norms, [start.loss for start in starts])
        if vertex is not None:
            starts.append(search.start(vertex))
        starts.append(search.start(FULL_RANGE))
        best = min(starts, key=lambda start: start.loss)
        logger.info("best of %d starts: p = %.3g, loss %.5g", len(starts), best.norm, best.loss)
        search.powell(search.gradient_descent(best))


def parabola_vertex(norms: Sequence[float], losses: Sequence[float]) -> float | None:
    """Where the least-squares parabola through the losses is least; None where it has no minimum
    within the norms.
    """
    if len(norms) < 3:
        return None
    curvature, slope, _ = np.polyfit(norms, losses, 2)
    vertex = -slope / (2 * curvature) if curvature > 0 else np.inf
    return float(vertex) if norms[0] <= vertex <= norms[-1] else None
