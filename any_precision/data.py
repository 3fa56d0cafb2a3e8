"""The images of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from any_precision.settings import Config
from common.errors import InputError
from loaders import ImageSet, load_dataset, resolve_dataset
from loaders.transforms import Preprocess
from models.entries import IMAGENET_MEAN, IMAGENET_STD

EVERY = 5  # images 0, 5, 10 ... of the training source are for validation
UNIT = Preprocess((0.0,) * 3, (1.0,) * 3)  # pixels divided by their white value
LARGE = Preprocess(IMAGENET_MEAN, IMAGENET_STD, resize=256, crop=224)


@dataclass(frozen=True)
class TrainingImages:
    """Training, validation and test images.

    Attributes:
        augment: crop and mirror the training images at random.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet
    num_classes: int
    augment: bool

    def sample_size(self) -> int:
        """Width of the images in pixels."""
        images, _ = next(iter(self.val.subset([0]).batches(1)))
        return images.shape[-1]


def load_images(config: Config, download: bool) -> TrainingImages:
    """Read the data set of a configuration.

    Raises:
        InputError: it is unknown, missing, damaged, or without training images.
    """
    root = None if config.dataset == "digits" else Path(config.data_root)
    name, path, _ = resolve_dataset(config.dataset, root)
    preprocess = LARGE if name == "imagenet" else UNIT
    threads = max(1, config.num_workers)
    data = load_dataset(
        name,
        path,
        preprocess,
        download=download,
        threads=threads,
        class_order=config.class_order,
    )
    if data.train is None:
        raise InputError(f"{path} must hold train/, got val/ alone")
    positions = np.arange(len(data.train))
    return TrainingImages(
        train=data.train.subset(positions[positions % EVERY != 0]),
        val=data.train.subset(positions[positions % EVERY == 0]).loaded(),
        test=data.val.loaded(),
        num_classes=len(data.classes),
        augment=name != "digits",
    )
