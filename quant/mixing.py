"""QDrop's random masks: drawn before each step into fixed buffers, so that the step itself holds no
random draw (which is what lets it be compiled or captured in a CUDA graph).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

ALIGNMENT = 16  # elements: the views of one buffer start at whole cache lines


class RandomMasks:
    """Masks of ones with probability ``prob``, else zeros, for tensors of the given shapes.

    The probability holds to 1 / 65536: the masks are cut from 64-bit draws, in a tenth of the time
    of ``bernoulli_``, and are kept in floats, with which a CPU multiplies 25 times as fast as with
    bools.

    Args:
        shapes: of the masks; ``masks`` has one view for each.
        prob: share of ones.
        generator: lies on ``device``.
    """

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        prob: float,
        generator: torch.Generator,
        device: torch.device,
    ):
        self.generator = generator
        self.threshold = round(prob * 65536) - 32768
        sizes = [-(-shape.numel() // ALIGNMENT) * ALIGNMENT for shape in shapes]
        self.flat = torch.ones(sum(sizes), device=device)
        self.words = torch.empty(sum(sizes) // 4, dtype=torch.int64, device=device)
        parts = self.flat.split(sizes) if sizes else ()
        self.masks = [
            part[: shape.numel()].view(shape) for part, shape in zip(parts, shapes, strict=True)
        ]

    def draw(self) -> None:
        """Fill all masks anew."""
        if not self.masks or self.threshold > torch.iinfo(torch.int16).max:
            return
        self.words.random_(-(2**63), 2**63 - 1, generator=self.generator)
        torch.lt(self.words.view(torch.int16), self.threshold, out=self.flat)
