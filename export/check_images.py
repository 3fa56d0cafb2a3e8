"""The images that an exported file is checked on."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError, first_line
from export.settings import ExportSettings
from loaders import load_dataset, resolve_dataset
from loaders.transforms import Preprocess

NOISE = "noise"  # where images of the check are from
NOISE_SEED = 0
MAX_SIDE = 10_000  # pixels

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class CheckImages:
    """The images to check on.

    Attributes:
        batches: images (B, 3, H, W) float32 and labels (B,) int64.
        shape: (3, H, W) of one image.
        origin: name of the data set, or ``noise``.
    """

    batches: Batches
    shape: tuple[int, ...]
    origin: str


def check_images(
    options: argparse.Namespace, settings: ExportSettings, metadata: dict[str, Any]
) -> CheckImages:
    """The images that the flags request: evaluation images of a data set, or noise.

    Args:
        metadata: metadata of the quantized model.

    Raises:
        InputError: the data set or the metadata is unusable.
    """
    try:
        if options.noise:
            return _noise(settings.export_images, options.batch_size, metadata)
        if "preprocess" not in metadata:
            raise InputError(
                f"{options.model}: must be saved with preprocess in its metadata, as a run does "
                "it (or use --noise), got none"
            )
        preprocess = Preprocess.from_values(metadata["preprocess"])
        preprocess.normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8))
        name = str(options.dataset or metadata["dataset"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = first_line(error)
        raise InputError(
            f"{options.model}: must be a whole quantized model, got: {reason}"
        ) from None
    if name == "imagenet" and options.data_path is None:
        raise InputError(
            "data_path must be given (the folder of images that the file is checked on, or use "
            "--noise instead), got none"
        )
    name, path, _ = resolve_dataset(name, options.data_path)
    dataset = load_dataset(
        name,
        path,
        preprocess,
        val_labels=options.val_labels,
        class_order=options.class_order,
    )
    chosen = dataset.val.subset(settings.choose(len(dataset.val))).loaded()
    first = next(chosen.batches(1))[0]
    return CheckImages(chosen.batches(options.batch_size), tuple(first.shape[1:]), name)


def _noise(count: int, batch_size: int, metadata: dict[str, Any]) -> CheckImages:
    """Images of standard normal noise, with labels 0."""
    shape = metadata.get("image_shape")
    if shape is None:
        raise InputError(
            "noise must be used with a model file that holds the shape of its images, got an older "
            "file (use --data_path instead)"
        )
    is_shape = isinstance(shape, list) and len(shape) == 3 and shape[0] == 3
    if not is_shape or not all(isinstance(n, int) and 0 < n <= MAX_SIDE for n in shape):
        raise ValueError(f"image_shape {shape!r}")
    generator = torch.Generator().manual_seed(NOISE_SEED)
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    batches = (
        (torch.randn(size, *shape, generator=generator), torch.zeros(size, dtype=torch.int64))
        for size in sizes
    )
    return CheckImages(batches, tuple(shape), NOISE)
