"""The prediction difference of PD-Quant: Liu et al., "PD-Quant: Post-Training Quantization based on
Prediction Difference Metric", CVPR 2023, arXiv:2212.07048, section 3.2.

    KL(softmax(o_float / T) || softmax(o_quantized / T)) / lamb_r, averaged over the batch

where o_quantized are the logits when the unit is quantized and everything behind it is float.
Letters: N images, B images in a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PredictionDifference:
    """The term that one unit adds to its loss.

    Args:
        logits: (N, C) of the float network on the calibration images.
        tail: the float units behind the unit; none behind the last.
        temperature: T; there is no factor T^2.
        divisor: ``lamb_r``; small means a strong term.
    """

    def __init__(
        self, logits: Tensor, tail: Sequence[nn.Module], temperature: float, divisor: float
    ):
        self.probabilities = torch.softmax(logits / temperature, 1)  # (N, C)
        self.tail = nn.Sequential(*tail)
        self.temperature = temperature
        self.divisor = divisor

    def term(self, output: Tensor, probabilities: Tensor) -> Tensor:
        """The weighted difference for ``output`` of the unit, of which ``probabilities`` (B, C) are
        the float ones.
        """
        logits = self.tail(output).float()
        guess = torch.log_softmax(logits / self.temperature, 1)
        return F.kl_div(guess, probabilities, reduction="batchmean") / self.divisor
