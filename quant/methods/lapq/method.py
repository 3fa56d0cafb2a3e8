"""LAPQ.

Nahshan et al., "Loss Aware Post-training Quantization", Machine Learning 110, 2021,
arXiv:1911.07190.

There are three phases. (A) The step sizes of all tensors minimise |error|^p, for several p. (B) A
parabola is fitted to the loss of the network as a function of p; its vertex is another start
(paper, section 4.1). (C) From the best start Powell's method minimises the loss over the step sizes
of all tensors jointly (section 4.2).

Between B and C, and not in the paper, gradient descent optimises the same step sizes: with 2-bit
activations Powell's method alone overfits to few images, and it works better from that point
(benchmarks/results/analytic_cifar10.md).

Differences from the published code: by default the loss compares with the predictions of the float
network instead of labels; a start is used only if it is better than the others; step sizes are
searched as factors of the start, and the best point visited is kept; zero is always a level; by
default batch norms are folded; stem, head and the tensor that feeds the head keep the ranges of
phase A if they have fixed bits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from quant.base import BaseQuantizationMethod
from quant.methods.lapq.search import FULL_RANGE, StepSearch
from quant.methods.lapq.settings import SHORT_FORMS, LapqSettings
from quant.network.chain import Task
from quant.registry import register_method

logger = logging.getLogger(__name__)


@register_method
class Lapq(BaseQuantizationMethod):
    """Joint search of the step sizes of all tensors for the lowest loss of the network."""

    name = "lapq"
    summary = "joint search of the step sizes of all tensors for the lowest network loss (Powell)"
    settings_class = LapqSettings
    short_forms = SHORT_FORMS
    beats_rtn = True
    walks_units = False

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
    """The norm at the minimum of the least-squares parabola through the losses.

    None if the parabola has no minimum between the smallest and the largest norm.
    """
    if len(norms) < 3:
        return None
    curvature, slope, _ = np.polyfit(norms, losses, 2)
    vertex = -slope / (2 * curvature) if curvature > 0 else np.inf
    return float(vertex) if norms[0] <= vertex <= norms[-1] else None
