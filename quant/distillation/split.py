"""The calibration images that decide between the start and the end of the distillation.

Neither the distillation nor a reconstruction before it is trained on them; otherwise the comparison
would favour a start that has fitted them. Methods that fit far fewer numbers (ranges, moments), and
``gpfq``, do use them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.errors import InputError
from quant.network.chain import generator_for

HELD_OUT = 8  # one of so many images
NOISE = 2.0  # standard errors of a mean difference that may be chance
SEED_INDEX = 1_000_000  # of ``generator_for``; no unit has it


def split_calibration(count: int, seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """Choose the images that are held out.

    Returns:
        indices of the held-out images and of the others, in random order, int64 on the CPU, and the
        generator that drew them.

    Raises:
        InputError: there are too few images to hold one out.
    """
    if count < 2:
        raise InputError(f"num_samples must be at least 2 with distill_steps, got {count}")
    generator = generator_for(seed, SEED_INDEX, torch.device("cpu"))
    order = torch.randperm(count, generator=generator)
    held = max(1, count // HELD_OUT)
    return order[:held], order[held:], generator


def is_larger(found: Tensor, before: Tensor) -> bool:
    """Whether values of the same images, (B,), have grown on average by more than noise.

    Noise is ``NOISE`` standard errors of their mean difference, 0 for a single image. A value that
    is not finite has grown.
    """
    growth = (found - before).double()
    error = float(growth.std()) / math.sqrt(len(growth)) if len(growth) > 1 else 0.0
    return not float(growth.mean()) <= NOISE * error
