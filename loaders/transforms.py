"""Transforms of decoded images to network input, and the optional training augmentation.

Letters: B images in a batch, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.torch_setup import import_torchvision

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True)
class Preprocess:
    """The input transform that a network expects; pixels are first divided by their white value.

    ``resize`` (short side) and ``crop`` (centre) are in pixels; None leaves that step out.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Preprocess:
        """Build from the mapping of ``dataclasses.asdict``, whose tuples a file may hold as lists.

        Raises:
            TypeError: a value is missing or unknown.
        """
        triples = {name: tuple(values[name]) for name in ("mean", "std") if name in values}
        return cls(**{**values, **triples})

    def normalise(self, pixels: Tensor, white: int = 255) -> Tensor:
        """Convert (B, 3, H, W) uint8 pixels from 0 to ``white`` to float32 network input."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return (pixels.float() / white - mean) / std

    def pixels(self, image: Tensor) -> Tensor:
        """Convert (3, H, W) network input back to (H, W, 3) uint8 pixels from 0 to 255."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        white = (image * std + mean).clamp(0, 1) * 255
        return white.round().to(torch.uint8).permute(1, 2, 0).contiguous()


def as_pixels(image: Any) -> Tensor:
    """Convert an RGB image of PIL to (3, H, W) uint8 pixels."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@cache
def image_transform(preprocess: Preprocess, augment: bool) -> Callable[[Any], Tensor]:
    """The transform of an RGB image of PIL to (3, H, W) uint8 pixels.

    It is resize and centre crop, or with ``augment`` random resized crop and flip. A step whose
    size is None is left out.
    """
    if not (preprocess.crop or preprocess.resize):
        return as_pixels  # without the import of torchvision, which takes seconds
    transforms = import_torchvision().transforms
    mode = transforms.InterpolationMode(preprocess.interpolation)
    steps: list[Any] = []
    if augment and preprocess.crop:
        steps = [
            transforms.RandomResizedCrop(preprocess.crop, interpolation=mode),
            transforms.RandomHorizontalFlip(),
        ]
    else:
        if preprocess.resize:
            steps.append(transforms.Resize(preprocess.resize, interpolation=mode))
        if preprocess.crop:
            steps.append(transforms.CenterCrop(preprocess.crop))
    return transforms.Compose([*steps, as_pixels])


def augment_small(pixels: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crop of the zero-padded images and, with ``flip``, random horizontal flip.

    Args:
        pixels: (B, 3, H, W) uint8, as the result.
        padding: zeros added on each side, in pixels.
    """
    count, _, height, width = pixels.shape
    padded = F.pad(pixels, (padding,) * 4)
    tops = torch.randint(2 * padding + 1, (count,), generator=generator)
    lefts = torch.randint(2 * padding + 1, (count,), generator=generator)
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    images = torch.arange(count)
    return padded.permute(0, 2, 3, 1)[
        images[:, None, None], rows[:, :, None], columns[:, None, :]
    ].permute(0, 3, 1, 2)
