"""From decoded images to network input. The evaluation transform is fixed; augmentation is an
option.

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


@dataclass(frozen=True)
class Preprocess:
    """What a network expects of its input; pixels are divided by their white value first.

    ``resize`` (short side) and ``crop`` (centre) are in pixels; None leaves images at their own
    size.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Preprocess:
        """From what ``dataclasses.asdict`` made, and a file perhaps turned into lists.

        Raises:
            TypeError: a value is missing or unknown.
        """
        triples = {name: tuple(values[name]) for name in ("mean", "std") if name in values}
        return cls(**{**values, **triples})

    def normalise(self, pixels: Tensor, white: int = 255) -> Tensor:
        """(B, 3, H, W) uint8 pixels, ``white`` at most, to float32 network input."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return (pixels.float() / white - mean) / std


def as_rgb(image: Any) -> Any:
    """A PIL image as 8-bit RGB; 16-bit grey is scaled, which PIL's own conversion would clip."""
    if image.mode.startswith("I;16"):
        from PIL import Image

        grey = np.asarray(image, dtype=np.float32) / 257.0
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    return image.convert("RGB")


def as_pixels(image: Any) -> Tensor:
    """An RGB image of PIL as (3, H, W) uint8 pixels."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@cache
def image_transform(preprocess: Preprocess, augment: bool) -> Callable[[Any], Tensor]:
    """PIL image to (3, crop, crop) uint8 pixels: resize and centre crop, or random resized crop and
    flip.
    """
    if not (preprocess.crop or preprocess.resize):
        return as_pixels  # torchvision takes seconds to import
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
    """Random crop of the zero-padded images and, if asked, horizontal flip: (B, 3, H, W) uint8 in
    and out.
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
