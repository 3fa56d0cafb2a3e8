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
    """Steps of all tensors searched jointly for the network's loss."""

    name = "lapq"
    summary = "steps of all tensors searched jointly for the network's loss (Powell)"
    settings_class = LapqSettings
    short_forms = SHORT_FORMS
    beats_rtn = True

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
