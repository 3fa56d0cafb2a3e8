"""The prediction difference of PD-Quant.

Liu et al., "PD-Quant: Post-Training Quantization based on Prediction Difference Metric", CVPR 2023,
arXiv:2212.07048, section 3.2.

    KL(softmax(o_float / T) || softmax(o_quantized / T)) / lamb_r, averaged over the batch

where o_quantized are the logits of the network quantized up to the unit and float after it.

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
    """Settings of the prediction difference.

    Attributes:
        temperature: T; there is no factor T^2.
        divisor: ``lamb_r``; the smaller, the stronger the term.
    """

    temperature: float
    divisor: float


class PredictionDifference:
    """The term that one unit adds to its loss.

    Args:
        probabilities: (N, C) of the float network on the calibration images, at the temperature.
        tail: the float units after the unit; empty for the last unit.
    """

    def __init__(
        self, probabilities: Tensor, tail: Sequence[nn.Module], settings: PredictionSettings
    ):
        self.probabilities = probabilities
        self.tail = nn.Sequential(*tail)
        self.settings = settings

    def term(self, output: Tensor, probabilities: Tensor) -> Tensor:
        """The weighted difference, 0-dimensional.

        Args:
            output: (B, ...) output of the unit.
            probabilities: (B, C) of the float network on the same images.
        """
        logits = self.tail(output).float()
        guess = torch.log_softmax(logits / self.settings.temperature, 1)
        return F.kl_div(guess, probabilities, reduction="batchmean") / self.settings.divisor
