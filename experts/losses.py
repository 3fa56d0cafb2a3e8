"""The training losses of the experts.

Letters: B samples, C classes, N_c training samples of class c, N their sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError

DEFAULT_TAU = 1.0


class AdjustedCrossEntropy(nn.Module):
    """Cross entropy of logits to which a constant per class is added during training.

    Args:
        shift: (C,) float32.
    """

    shift: Tensor

    def __init__(self, shift: Tensor):
        super().__init__()
        self.register_buffer("shift", shift)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of (B, C) raw logits and (B,) classes."""
        return F.cross_entropy(logits + self.shift, targets)


def make_loss(kind: str, counts: Sequence[int], tau: float = DEFAULT_TAU) -> nn.Module:
    """The loss of a kind of expert.

    ``ce`` and ``decoupling``: cross entropy. ``balsoftmax``: shift log N_c (Ren et al. 2020,
    arXiv:2007.10740, equation 4). ``logitadjust``: shift tau log(N_c / N) (Menon et al. 2021,
    arXiv:2007.07314, equation 10). With tau 1 the last two are the same loss, since softmax ignores
    the constant log N.

    Raises:
        InputError: a class has no sample, or the kind is unknown.
    """
    numbers = torch.tensor(counts, dtype=torch.float64)
    if (numbers <= 0).any():
        empty = int((numbers <= 0).nonzero()[0])
        raise InputError(
            f"train_class_counts must be positive, got {counts[empty]} of class {empty}"
        )
    shifts = {
        "ce": torch.zeros_like(numbers),
        "decoupling": torch.zeros_like(numbers),
        "balsoftmax": numbers.log(),
        "logitadjust": tau * (numbers / numbers.sum()).log(),
    }
    if kind not in shifts:
        raise InputError(f"loss must be one of {', '.join(shifts)}, got {kind!r}")
    return AdjustedCrossEntropy(shifts[kind].float())
