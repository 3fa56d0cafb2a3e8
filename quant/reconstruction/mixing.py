"""QDrop's random masks, drawn into fixed buffers before each step.

Thus the step itself draws no random numbers and can be compiled or captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16  # elements; each view of the buffer starts at a cache line


class RandomMasks:
    """Masks of ones with probability ``prob``, else zeros, for tensors of the given shapes.

    The masks are cut from 64-bit random numbers, in a tenth of the time of ``bernoulli_``: one byte
    per element if that represents the probability exactly, else two bytes (accurate to 1 / 65536).
    They are stored as floats, by which a CPU multiplies 25 times as fast as by bools.

    Args:
        shapes: shapes of the masks; ``masks`` holds one view for each.
        prob: probability of a one.
        generator: must be on ``device``.
        memory_format: memory format of the 4-dimensional masks, as of the tensors that they mask.
    """

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        prob: float,
        generator: torch.Generator,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        self.generator = generator
        self.cut = torch.int8 if float(prob * 256).is_integer() else torch.int16
        limits = torch.iinfo(self.cut)
        self.threshold = round(prob * 2**limits.bits) + limits.min
        self.always = self.threshold > limits.max
        sizes = [-(-shape.numel() // ALIGNMENT) * ALIGNMENT for shape in shapes]
        self.flat = torch.ones(sum(sizes), device=device)
        words = sum(sizes) * limits.bits // 64
        self.words = torch.empty(words, dtype=torch.int64, device=device)
        parts = self.flat.split(sizes) if sizes else ()
        self.masks = [
            _shaped(part[: shape.numel()], shape, memory_format)
            for part, shape in zip(parts, shapes, strict=True)
        ]

    def draw(self) -> None:
        """Draw all masks again."""
        if not self.masks or self.always:
            return
        self.words.random_(-(2**63), 2**63 - 1, generator=self.generator)
        torch.lt(self.words.view(self.cut), self.threshold, out=self.flat)


def _shaped(part: Tensor, shape: torch.Size, memory_format: torch.memory_format) -> Tensor:
    if memory_format is torch.channels_last and len(shape) == 4:
        count, channels, height, width = shape
        return part.view(count, height, width, channels).permute(0, 3, 1, 2)
    return part.view(shape)
