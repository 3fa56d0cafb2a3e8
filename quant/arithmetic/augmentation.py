"""Random views of calibration images, on which both networks are run.

Letters: B images in a batch, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

AUGMENTATIONS = ("crop_flip", "shift", "resized_crop", "none")
SHIFT = {"crop_flip": 1 / 8, "shift": 1 / 32}  # of the image's size, at least a pixel
SMALLEST = 0.5  # side of a resized crop, of that of the image


def augmented(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Draw a view of each image.

    Args:
        images: (B, channels, H, W) network inputs; the result has their shape.
        kind: of ``AUGMENTATIONS``: ``crop_flip`` shifts by up to an eighth of the size, with
            mirrored borders, and flips; ``shift`` by a 32nd, without a flip; ``resized_crop``
            enlarges a part of at least half the sides, and flips.
        generator: on the CPU, so that the views are the same on every device.
    """
    if kind == "none":
        return images
    if kind == "resized_crop":
        return _resized(images, generator)
    return _shifted(images, SHIFT[kind], kind == "crop_flip", generator)


def _shifted(images: Tensor, share: float, flip: bool, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    down, right = (max(1, round(size * share)) for size in (height, width))
    down, right = min(down, height - 1), min(right, width - 1)
    padded = F.pad(images, (right, right, down, down), mode="reflect")
    tops = torch.randint(2 * down + 1, (count,), generator=generator)
    lefts = torch.randint(2 * right + 1, (count,), generator=generator)
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = (torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :])
    views = padded.permute(0, 2, 3, 1)[tuple(part.to(images.device) for part in index)]
    return views.permute(0, 3, 1, 2).contiguous()


def _resized(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bilinear views of random rectangles, by one sampling grid per image."""
    count = len(images)
    sides = SMALLEST + (1 - SMALLEST) * torch.rand(count, 2, generator=generator)
    centres = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - sides)
    signs = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = sides[:, 0] * signs, sides[:, 1]
    matrix[:, :, 2] = centres
    grid = F.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
