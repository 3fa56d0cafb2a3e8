"""The prediction difference of PD-Quant: Liu et al., "PD-Quant: Post-Training Quantization based on
Prediction Difference Metric", CVPR 2023, arXiv:2212.07048, section 3.2.

    KL(softmax(o_float / T) || softmax(o_quantized / T)) / lamb_r, averaged over the batch

where o_quantized are the logits when the unit is quantized and everything behind it is float.
Letters: N images, B images in a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PredictionSettings:
    """Temperature T of the probabilities (there is no factor T^2), and ``lamb_r``, by which the
    difference is divided: small means a strong term.
    """

    temperature: float
    divisor: float


class PredictionDifference:
    """The term that one unit adds to its loss.

    Args:
        probabilities: (N, C) of the float network on the calibration images, at the temperature.
        tail: the float units behind the unit; none behind the last.
    """

    def __init__(
        self, probabilities: Tensor, tail: Sequence[nn.Module], settings: PredictionSettings
    ):
        self.probabilities = probabilities
        self.tail = nn.Sequential(*tail)
        self.settings = settings

    def term(self, output: Tensor, probabilities: Tensor) -> Tensor:
        """The weighted difference for ``output`` of the unit, of which ``probabilities`` (B, C) are
        the float ones.
        """
        logits = self.tail(output).float()
        guess = torch.log_softmax(logits / self.settings.temperature, 1)
        return F.kl_div(guess, probabilities, reduction="batchmean") / self.settings.divisor
